#!/usr/bin/env python
"""The operations before attention in a decoder block (gates, rotation, head split), and the possible gain of fusing them.

Times a whole training step of one `DecoderBlock` (forward and gradient), compared with the same block without part of these operations
(the upper bound of the gain of a faster form) and with forms that need fewer passes:

    tables once     cos and sin of the rotation from one call for queries and keys together
    one product     queries, keys and values from one matrix product
    padded halves   the rotated halves, each padded to the head and added, instead of a concatenation

A form is used if it saves 5 % of the time of the block.

Example:
    python tools/benchmarks/prologue.py --backend torch --threads 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("torch", "tensorflow", "jax"), default="torch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def step(backend: str, layer: Any, x: np.ndarray, times: np.ndarray, spans: Any) -> Callable[[], Any]:
    """One call of forward and gradient with respect to the weights and the input, as in a training step of the backend."""
    import keras

    if backend == "torch":
        import torch

        tensors = torch.as_tensor(x), torch.as_tensor(times)

        def eager() -> Any:
            rows = tensors[0].detach().requires_grad_()
            layer.zero_grad(set_to_none=True)
            layer(rows, times=tensors[1], spans=spans).sum().backward()
            return rows.grad

        return eager
    if backend == "tensorflow":
        import tensorflow as tf

        rows, seconds = tf.constant(x), tf.constant(times)

        @tf.function(autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
        def graph() -> Any:
            with tf.GradientTape() as tape:
                tape.watch(rows)
                total = tf.reduce_sum(layer(rows, times=seconds, spans=spans))
            return tape.gradient(total, [rows, *(weight.value for weight in layer.trainable_variables)])

        return graph
    import jax

    held = [weight.value for weight in layer.trainable_variables]
    rest = [weight.value for weight in layer.non_trainable_variables]

    def loss(weights: Any, rows: Any) -> Any:
        return keras.ops.sum(layer.stateless_call(weights, rest, rows, times=times, spans=spans)[0])

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1)))
    rows = jax.numpy.asarray(x)
    return lambda: jax.block_until_ready(compiled(held, rows))


def tables_once(attention: Any) -> None:
    """Queries and keys rotated in one call, so that the tables are made once."""
    from keras import ops

    def project(inputs: Any, times: Any, value_bias: Any = None) -> Any:
        x = attention._gate("representation", inputs)
        query = attention._heads(attention._gate("query", attention.query(x)), attention.num_heads)
        key = attention._heads(attention._gate("key", attention.key(x)), attention.num_kv_heads)
        both = attention._rotated(ops.concatenate([query, key], axis=2), times)
        value = attention._heads(attention.value(x), attention.num_kv_heads)
        return both[:, :, : attention.num_heads], both[:, :, attention.num_heads :], value

    attention._project = project


def one_product(attention: Any) -> None:
    """Queries, keys and values from one matrix product with the concatenated weights."""
    from keras import ops

    def project(inputs: Any, times: Any, value_bias: Any = None) -> Any:
        x = attention._gate("representation", inputs)
        weights = ops.concatenate([attention.query.kernel, attention.key.kernel, attention.value.kernel], axis=1)
        query, key, value = ops.split(ops.matmul(x, weights), 3, axis=-1)
        query = attention._rotated(attention._heads(attention._gate("query", query), attention.num_heads), times)
        key = attention._rotated(attention._heads(attention._gate("key", key), attention.num_kv_heads), times)
        return query, key, attention._heads(value, attention.num_kv_heads)

    attention._project = project


def padded_halves(attention: Any) -> None:
    from keras import ops

    from keras_ranking.ops.rotary import rotary_periods

    periods = rotary_periods(attention.head_dim, *attention.rotary)

    def rotated(x: Any, times: Any) -> Any:
        remainder = ops.mod(ops.expand_dims(ops.cast(times, "int32"), 2), ops.convert_to_tensor(periods))
        angle = ops.cast(remainder, "float32") * ops.convert_to_tensor((2 * np.pi / periods).astype(np.float32))
        cos, sin = ops.expand_dims(ops.cos(angle), 2), ops.expand_dims(ops.sin(angle), 2)
        a, b = ops.split(x, 2, axis=-1)
        half = attention.head_dim // 2
        left = ops.pad(a * cos - b * sin, [(0, 0), (0, 0), (0, 0), (0, half)])
        return left + ops.pad(a * sin + b * cos, [(0, 0), (0, 0), (0, 0), (half, 0)])

    attention._rotated = rotated


def main() -> None:
    args = arguments()
    os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: args.threads]))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ[name] = str(args.threads)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import keras_ranking as kr
    from keras_ranking.ops import Spans

    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, args.tokens, args.width)).astype("float32")
    times = np.sort(rng.integers(0, 10_000_000, (1, args.tokens)), axis=1).astype("int32")
    spans = Spans.causal((np.arange(args.tokens)[None] // 128 + 1).astype("int32"))
    size = args.width // args.heads
    all_gates = ("representation", "query", "key")

    def block(gates: tuple[str, ...] = all_gates, rotary: Any = (8.0, 15_552_000.0), change: Any = None) -> Any:
        layer = kr.layers.DecoderBlock(num_heads=args.heads, head_dim=size, gates=gates, rotary=rotary)
        layer.build(x.shape)
        if change is not None:
            change(layer.attention)
        return layer

    layers = {
        "as it is": block(),
        "tables once": block(change=tables_once),
        "one product": block(change=one_product),
        "padded halves": block(change=padded_halves),
        "no rotation": block(rotary=None),
        "no gates": block(gates=()),
    }
    calls = {name: step(args.backend, layer, x, times, spans) for name, layer in layers.items()}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(args.rounds):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            taken[name].append(1e3 * (time.perf_counter() - begin))
    whole = statistics.median(taken["as it is"])
    print(f"python {' '.join(sys.argv)}\n\n| form | ms a step | of the block |\n|---|---|---|")
    for name, values in taken.items():
        print(f"| {name} | {statistics.median(values):.1f} | {100 * statistics.median(values) / whole:.1f} % |")


if __name__ == "__main__":
    main()
