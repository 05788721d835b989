"""What `test_devices.py` runs in a process of its own, where JAX has four virtual devices: `operations`, or `models FOLDER`.

It writes as JSON what the devices send each other in compiled programs, and how far results are from those of one device. In the folder
are the programs that XLA wrote.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

import keras_ranking as kr
from keras_ranking.ops import Spans, candidate_attention, rows, span_attention
from keras_ranking.ops.backends import jax as kernels, jax_devices, jax_search
from tests.ops.support import distance, packed_rows

PLACE_OF = jax_devices.place_of
MESH = keras.distribution.DataParallel(devices=keras.distribution.list_devices())
BATCH, TOKENS = 8, 40


def use(distribution: Any, by_rows: bool = True) -> None:
    keras.distribution.set_distribution(distribution)
    for module in (kernels, jax_devices, jax_search):
        module.place_of = PLACE_OF if by_rows else lambda *_, **__: None


def shared_out(values: Any) -> Any:
    rows = jax.sharding.NamedSharding(MESH.device_mesh.backend_mesh, jax.sharding.PartitionSpec("batch"))
    return jax.device_put(values, rows)


def parts(text: str) -> int:
    """Operations of a compiled program that send parts of tensors between devices."""
    return len(re.findall(r" (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text))


def sent(text: str, numbers: bool) -> int:
    """The same, and sums over devices of more than a number, or with `numbers` all of them."""
    sums = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    return parts(text) + sum(numbers or re.search(r"\[\d", kind) is not None for kind in sums)


def operations() -> dict[str, tuple[Any, list[np.ndarray]]]:
    """By name: a function of operands whose results are compared, and its operands."""
    rng = np.random.default_rng(0)
    segments, times, _, _ = packed_rows(rng, BATCH, TOKENS, 9)
    query, key, value, upstream = (rng.standard_normal((BATCH, TOKENS, heads, 4)).astype("float32") for heads in (4, 2, 2, 4))
    length = rng.integers(0, TOKENS, BATCH).astype("int32")
    label = (rng.random((BATCH, TOKENS)) < 0.4).astype("float32")
    targets = np.asarray(kr.losses.targets(label, request=segments))
    logit = rng.standard_normal((BATCH, TOKENS, 1)).astype("float32")
    place = (np.arange(BATCH)[:, None] * TOKENS + rng.integers(0, TOKENS, (BATCH, 12))).astype("int32")

    def attention(kernel: str) -> Any:
        def run(*given: Any) -> Any:
            loss = lambda q, k, v: (span_attention(q, k, v, Spans(*given[4:]), kernel=kernel) * given[3]).sum()
            return jax.value_and_grad(loss, argnums=(0, 1, 2))(*given[:3])

        return run

    def candidates(*given: Any) -> Any:
        loss = lambda q, k, v, sk, sv: (candidate_attention(q, k, v, given[4], sk, sv) * given[3]).sum()
        return jax.value_and_grad(loss, argnums=(0, 1, 2, 3, 4))(*given[:3], given[1] + 1, given[2] + 1)

    def taken(values: Any, index: Any) -> Any:
        loss = lambda values: jnp.square(rows.take_in_rows(values.reshape(BATCH * TOKENS, 4, 4), index, BATCH)).sum()
        return jax.value_and_grad(loss)(values)

    spans = [np.asarray(part) for part in Spans.delayed(times, 3, segments)]
    found: dict[str, tuple[Any, list[np.ndarray]]] = {
        kernel: (attention(kernel), [query, key, value, upstream, *spans]) for kernel in ("tiles", "pallas", "library")
    }
    found["candidates"] = candidates, [query, key, value, upstream, length]
    found["spans"] = (lambda *given: tuple(Spans.delayed(given[0], 3, given[1]))), [times, segments]
    found["take"] = taken, [query, place]
    for name, loss in {"pairs": kr.losses.InRequestPairwise(), "softmax": kr.losses.InRequestSoftmax()}.items():
        found[name] = jax.value_and_grad(lambda logit, y, loss=loss: loss(y, logit)), [logit, targets]
    return found


def of_operations() -> dict[str, dict[str, float]]:
    out = {}
    for name, (function, operands) in operations().items():
        use(None)
        expected = jax.tree.leaves(jax.jit(function)(*operands))
        use(MESH)
        placed = [shared_out(part) for part in operands]
        compiled = jax.jit(lambda *given, function=function: function(*given)).lower(*placed).compile()
        away = max(distance(a, b) for a, b in zip(jax.tree.leaves(compiled(*placed)), expected, strict=True))
        use(MESH, by_rows=False)
        gathered = jax.jit(lambda *given, function=function: function(*given)).lower(*placed).compile()
        # Losses are one number of the whole batch.
        before, after = (sent(program.as_text(), numbers=name == "spans") for program in (gathered, compiled))
        out[name] = {"sent": after, "away": away, "sent_before": before}
    return out


def of_models(folder: str) -> dict[str, dict[str, float]]:
    from keras_ranking.training.options import MODELS, split_options
    from keras_ranking.training.setup import training_data

    log = kr.data.simulate(members=30, days=3, seed=3, feedback_delay=60)
    schema = log.schema.fit(log.events)
    sequences = kr.data.build_sequences(log.events, schema)
    small = {"id_dim": 4, "batch_size": 4, "row_length": 64}
    options = {
        "cadet": {**small, "dim": 8, "num_heads": 2, "num_layers": 1},
        "lirank": {**small, "hidden": (8,), "rank": 2, "cross_layers": 1, "max_history": 8},
    }
    out = {}
    for name, given in options.items():
        own, training = split_options(name, given, None)
        losses = {}
        for form, distribution in {"one": None, "four": MESH}.items():
            keras.utils.set_random_seed(0)
            use(distribution)
            model = MODELS[name](schema, **own)
            dataset = training_data(model, sequences, training, 0)[0]
            model.compile(keras.optimizers.SGD(0.01), loss=model.losses_by_task(pairwise_weight=0.1))
            # LiRank's maxima over a history have near ties: which event has the gradient depends on rounding, on one device too.
            steps = 3 if name == "cadet" else 1
            losses[form] = [float(np.ravel(model.train_on_batch(*dataset[0]))[0]) for _ in range(steps)]
        newest = max(Path(folder).glob("*after_optimizations.txt"), key=lambda path: path.stat().st_mtime)
        text = newest.read_text()
        out[name] = {"parts": parts(text), "sums": text.count(" all-reduce("), "away": distance(losses["four"], losses["one"])}
    return out


if __name__ == "__main__":
    print(json.dumps({"operations": of_operations, "models": of_models}[sys.argv[1]](*sys.argv[2:])))
