"""`compile(jit_compile=True)`: a packed training step is one program, compiled once, whatever the batch holds, with the same losses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack

SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tower_hidden": (8,)}


class Compilations(keras.callbacks.Callback):
    """How many programs JAX has compiled since the first epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs, self.later = 0, 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1

    def count(self, event: str, _: float, **__: Any) -> None:
        self.later += self.epochs > 0 and event == "/jax/core/compile/backend_compile_duration"


def fitted(compiled: bool = True, callback: Any = None) -> dict[str, list[float]]:
    """History of CADET over some epochs of a few batches of packed rows, each of other members, of one shape."""
    log = kr.data.simulate(members=10, days=2, seed=1)
    schema = log.schema.fit(log.events)
    rows = pack(build_sequences(log.events, schema), 64)
    keras.utils.set_random_seed(0)
    model = kr.models.CADET(schema, **SMALL)
    dataset = PackedDataset(rows, 2, inputs=model.input_columns, seed=0)
    assert len(dataset) > 1 and len({dataset[number][0]["time"].shape for number in range(len(dataset))}) == 1
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=model.losses_by_task(pairwise_weight=0.1, window=rows.max_request),
        weighted_metrics={"click": [kr.metrics.GroupedAUC(boundaries=model.boundaries, name="impression_auc")]},
        jit_compile=compiled,
    )
    history: dict[str, list[float]] = model.fit(dataset, epochs=3, verbose=0, callbacks=callback and [callback]).history
    return history


def fitted_by_jax() -> dict[str, list[float]]:
    import jax

    counter = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter.count)
    try:
        history = fitted(callback=counter)
        assert counter.epochs == 3 and counter.later == 0
        jax.jit(lambda x: x * 3.25)(np.arange(7.0))  # control: a new program is counted
        assert counter.later == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(counter.count)
    return history


def fitted_by_tensorflow() -> dict[str, list[float]]:
    """XLA takes some operands for constants of the program, and compiles anew when they change."""
    script = "import json; from tests.models.test_compiled_training import fitted; print(json.dumps(fitted()))"
    count, printed = programs(script, "one_step_on_data")
    assert count == 1
    history: dict[str, list[float]] = json.loads(printed.splitlines()[-1])
    return history


def test_fit_learns_and_a_step_is_compiled_once_with_the_same_losses() -> None:
    # torch.compile of a data-dependent plan is out of scope; fit must run all the same
    compiled = {"tensorflow": [fitted_by_tensorflow], "jax": [fitted_by_jax], "torch": []}[keras.backend.backend()]
    histories = [fitted(compiled=False), *(fit() for fit in compiled)]
    for history in histories:
        assert history["loss"][-1] < history["loss"][0]
        assert 0 <= history["click_impression_auc"][-1] <= 1
        np.testing.assert_allclose(history["loss"], histories[0]["loss"], rtol=1e-3)


def programs(script: str, name: str) -> tuple[int, str]:
    """How often TensorFlow compiled a function, as its log tells, and what the script printed."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "device_compilation_profiler=1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | settings, capture_output=True, text=True, check=True)
    counts = [int(count) for count in re.findall(rf"Compiled __inference_{name}\S* (\d+) times", done.stderr)]
    assert counts, "XLA's log has another form now"
    return max(counts), done.stdout


ATTEND = """
import numpy as np, tensorflow as tf
from keras_ranking.ops import Spans, span_attention
from keras_ranking.ops.backends import tensorflow_xla as kernel

if {constant}:
    kernel._slice = lambda values, begin, size: tf.slice(values, tf.stack(begin), size)

@tf.function(jit_compile=True)
def attend(x, segments):
    return span_attention(x, x, x, Spans.causal(segments))

for seed in range(3):
    rng = np.random.default_rng(seed)
    attend(tf.ones((1, 70, 2, 4)), tf.constant(np.sort(rng.integers(1, 5, (1, 70))), tf.int32))
"""


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="counts TensorFlow's programs")
@pytest.mark.parametrize("constant", [False, True])
def test_tensorflow_compiles_span_attention_once(constant: bool) -> None:
    """Control: with slices that XLA wants constant, each row of other segments is compiled."""
    assert programs(ATTEND.format(constant=constant), "attend")[0] == (3 if constant else 1)
