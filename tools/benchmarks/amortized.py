#!/usr/bin/env python
"""Time saved by reading the history once: one request of L events and N candidates, with `HistoryEncoder`, on one CPU thread.

    KERAS_BACKEND=torch python tools/benchmarks/amortized.py --json amortized.jsonl

    joint     history and all N candidates in one call (`append_cross`)
    cached    the N candidates against cached keys and values (`score`)
    singles   N calls of the same weights with one candidate each: a server without amortisation
    batched   the same as one batch: N copies of the history, one candidate each
    concat    `fusion="concat"` at the same width: every candidate concatenated with every event

All forms are compiled by their backend (tf.function, jax.jit; torch runs eagerly), and run in turn within a round; a figure is the
median of the rounds. `singles` runs all N passes in every round. `batched` and `concat`, which are linear in N, run on at most
`--chunk` candidates and are scaled to N. One JSON object per line: L, N, joint_ms, cached_ms, singles_ms, ratio (singles over
joint), batched_ms, concat_ms, backend, d, layers, and the largest difference between joint, cached and single results.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

for variable in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  reads the environment

from keras_ranking.commands import table  # noqa: E402
from keras_ranking.layers import HistoryEncoder  # noqa: E402


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled by its backend, which waits for the result."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        graph = tf.function(function, reduce_retracing=True)
        return lambda *a: keras.tree.map_structure(lambda x: x.numpy(), graph(*a))
    if backend == "jax":
        import jax

        jitted = jax.jit(function)
        return lambda *a: jax.block_until_ready(jitted(*a))
    import torch

    def run(*a: Any) -> Any:
        with torch.inference_mode():
            return function(*a)

    return run


def tensors(values: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: keras.ops.convert_to_tensor(x) for name, x in values.items()}


def request(length: int, count: int, width: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "history": rng.normal(size=(1, length, width)).astype("float32"),
        "candidates": rng.normal(size=(1, count, width)).astype("float32"),
        "visible": np.array([length], "int32"),
        "times": np.sort(rng.integers(0, 10_000_000, (1, length)), axis=1).astype("int32"),
        "request_time": np.array([10_000_000], "int32"),
    }


def encoder(fusion: str, length: int, width: int, layers: int) -> HistoryEncoder:
    keras.utils.set_random_seed(0)
    options: dict[str, Any] = {"max_history": length, "num_layers": layers, "num_heads": 4, "ffn_multiple": 4.0}
    layer = HistoryEncoder(fusion, rotary=(8.0, 15_552_000.0), **options)
    part = width if fusion != "concat" else width // 2  # concatenated: half of the width from each
    layer.build({name: x.shape for name, x in request(2, 2, part).items()})
    return layer


def measure(length: int, count: int, width: int, layers: int, rounds: int, chunk: int) -> dict[str, Any]:
    layer = encoder("append_cross", length, width, layers)
    x = request(length, count, width)
    some = min(count, chunk)
    whole, cache = tensors(x), layer.prefill(tensors({name: x[name] for name in ("history", "visible", "times")}))
    one = [tensors({**x, "candidates": x["candidates"][:, n : n + 1]}) for n in range(count)]
    joint, score = compiled(lambda inputs: layer(inputs)), compiled(lambda inputs, cache: layer.score(inputs, cache))
    requested = {name: whole[name] for name in ("candidates", "request_time")}
    copies = {name: np.repeat(values, some, axis=0) for name, values in x.items()}
    copies["candidates"] = x["candidates"][0, :some, None]
    batch = tensors(copies)
    concat_layer = encoder("concat", length, width, layers)
    joined = tensors(request(length, some, width // 2))
    concat = compiled(lambda inputs: concat_layer(inputs))
    forms: dict[str, tuple[Callable[[], Any], float]] = {
        "joint": (lambda: joint(whole), 1.0),
        "cached": (lambda: score(requested, cache), 1.0),
        "singles": (lambda: [joint(inputs) for inputs in one], 1.0),
        "batched": (lambda: joint(batch), count / some),
        "concat": (lambda: concat(joined), count / some),
    }
    first = joint(one[0])  # compiles
    together = np.asarray(joint(whole))
    differences = [np.abs(np.asarray(score(requested, cache)) - together).max(), np.abs(np.asarray(first) - together[:, :1]).max()]
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 1):  # the first warms up
        for name, (form, scale) in forms.items():
            if name == "singles" and turn == 0:
                continue
            begin = time.perf_counter()
            form()
            if turn:
                seconds[name].append((time.perf_counter() - begin) * scale)
    ms = {name: 1000 * float(np.median(values)) for name, values in seconds.items()}
    return {
        "L": length,
        "N": count,
        **{f"{name}_ms": round(value, 3) for name, value in ms.items()},
        "ratio": round(ms["singles"] / ms["joint"], 1),
        "backend": keras.backend.backend(),
        "d": width,
        "layers": layers,
        "difference": float(max(differences)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="append a line for each L and N")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512, 1024])
    parser.add_argument("--counts", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk", type=int, default=16)
    args = parser.parse_args()
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)
    rows = []
    for length in args.lengths:
        for count in args.counts:
            line = measure(length, count, args.width, args.layers, args.rounds, args.chunk)
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            print(f"L={length} N={count} done", file=sys.stderr, flush=True)
            names = ("joint", "cached", "singles", "batched", "concat")
            ratios = [line[f"{name}_ms"] / line["joint_ms"] for name in ("singles", "batched", "concat")]
            rows.append([f"L={length} N={count}", *(f"{line[f'{name}_ms']:,.1f}" for name in names), *(f"{r:.0f}x" for r in ratios)])
    header = ["ms", "joint", "cached", "singles", "batched", "concat", "singles/joint", "batched/joint", "concat/joint"]
    print(f"{keras.backend.backend()}, d={args.width}, {args.layers} layers, one thread\n{table(header, rows)}")


if __name__ == "__main__":
    main()
