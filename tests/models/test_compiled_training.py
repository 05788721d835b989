"""`compile(jit_compile=True)`: a packed training step is one program, compiled once, whatever the batch holds.

That it gives the losses of the uncompiled step stands in test_cadet.py.
"""

from __future__ import annotations

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


def fitted(epochs: int, callback: Any = None) -> keras.Model:
    """CADET after a few batches of packed rows, each of other members, of one shape."""
    log = kr.data.simulate(members=10, days=2, seed=1)
    schema = log.schema.fit(log.events)
    rows = pack(build_sequences(log.events, schema), 64)
    model = kr.models.CADET(schema, **SMALL)
    dataset = PackedDataset(rows, 2, inputs=model.input_columns, seed=0)
    assert len(dataset) > 1 and len({dataset[number][0]["time"].shape for number in range(len(dataset))}) == 1
    loss = model.losses_by_task(window=rows.max_request)
    model.compile(optimizer="adam", loss=loss, jit_compile=True)
    model.fit(dataset, epochs=epochs, verbose=0, callbacks=callback and [callback])
    return model


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="counts JAX's programs")
def test_jax_compiles_a_training_step_once() -> None:
    import jax

    counter = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter.count)
    try:
        fitted(3, callback=counter)
        assert counter.epochs == 3 and counter.later == 0
        jax.jit(lambda x: x * 3.25)(np.arange(7.0))  # control: a new program is counted
        assert counter.later == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(counter.count)


def programs(script: str, name: str) -> int:
    """How often TensorFlow compiled a function, as its log tells: it does so in silence."""
    settings = {"TF_CPP_MIN_LOG_LEVEL": "0", "TF_CPP_VMODULE": "device_compilation_profiler=1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | settings, capture_output=True, text=True, check=True)
    counts = [int(count) for count in re.findall(rf"Compiled __inference_{name}\S* (\d+) times", done.stderr)]
    assert counts, "XLA's log has another form now"
    return max(counts)


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="counts TensorFlow's programs")
def test_tensorflow_compiles_a_training_step_once() -> None:
    """XLA takes some operands for constants of the program, and compiles anew when they change."""
    assert programs("from tests.models.test_compiled_training import fitted\nfitted(2)", "one_step_on_data") == 1


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


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="counts TensorFlow's programs")
@pytest.mark.parametrize("constant", [False, True])
def test_tensorflow_compiles_span_attention_once(constant: bool) -> None:
    """Control: with slices that XLA wants constant, each row of other segments is compiled."""
    assert programs(ATTEND.format(constant=constant), "attend") == (3 if constant else 1)
