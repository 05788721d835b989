"""What a forest costs as a layer: 400 trees x 512 candidates on one core, next to LightGBM itself, by tree size and backend.

    export OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
    KERAS_BACKEND=jax python tools/benchmarks/forest.py [--json FILE]

Milliseconds, the least of 60 calls, each with other rows and its result as an array.

Forms: `layer` is the layer as it is called in a compiled model (JAX: `jit`;
TensorFlow: a function, and one compiled by XLA; torch: eager); `levels` follows each row down its trees by lookups; `matrix` compares all
nodes and finds leaves by a matrix product.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import lightgbm
import numpy as np
from keras import ops

from keras_ranking import layers
from keras_ranking.layers.forests.lightgbm_text import lightgbm_trees
from keras_ranking.layers.forests.trees import Trees

TREES, ROWS, FEATURES = 400, 512, 40


def fitted(leaves: int) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, FEATURES)).astype("float32")
    y = x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + x[:, 3] + rng.normal(size=len(x)) > 0
    options = {"objective": "binary", "num_leaves": leaves, "learning_rate": 0.05, "verbose": -1, "num_threads": 1}
    return lightgbm.train(options, lightgbm.Dataset(x, y), TREES), x[:ROWS]


def levels(trees: Trees) -> Callable[[Any], Any]:
    """Rows go down their trees one level at a time; leaves are nodes that lead to themselves."""
    inner, leaves = max(len(tree.feature) for tree in trees.trees), max(len(tree.values) for tree in trees.trees)
    width = inner + leaves
    shape = (len(trees.trees), width)
    feature, threshold, value = np.zeros(shape, np.int32), np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
    child = np.zeros((*shape, 2), np.int32)
    depth = 0
    for number, tree in enumerate(trees.trees):
        base, own = number * width, len(tree.feature)
        child[number, inner:] = base + inner + np.arange(leaves)[:, None]
        feature[number, :own], threshold[number, :own] = tree.feature, tree.threshold
        value[number, inner : inner + len(tree.values)] = tree.values[:, 0]
        for side, to in enumerate((tree.left, tree.right)):
            child[number, :own, side] = base + np.where(to >= 0, to, inner + ~to)
        deep = np.zeros(own, int)
        for node in range(own):
            for to in (tree.left[node], tree.right[node]):
                deep[to if to >= 0 else node] = max(deep[to if to >= 0 else node], deep[node] + (to >= 0))
        depth = max(depth, int(deep.max(initial=0)) + 1)
    flat = [part.reshape(-1) for part in (feature, threshold, child, value)]

    def call(x: Any) -> Any:
        nodes = [ops.convert_to_tensor(part) for part in flat]
        values, rows = ops.reshape(x, (-1,)), ops.convert_to_tensor(np.arange(ROWS, dtype=np.int32) * FEATURES)
        at = ops.broadcast_to(ops.convert_to_tensor(np.arange(len(trees.trees), dtype=np.int32)[:, None] * width), (len(trees.trees), ROWS))
        for _ in range(depth):
            right = ops.take(values, ops.take(nodes[0], at) + rows) > ops.take(nodes[1], at)
            at = ops.take(nodes[2], at * 2 + ops.cast(right, "int32"))
        return ops.sum(ops.take(nodes[3], at), axis=0)

    return call


def matrix(trees: Trees) -> Callable[[Any], Any]:
    """All nodes are compared; a leaf is where as many of them say left as its way has left turns, and none says otherwise."""
    inner, leaves, count = max(len(t.feature) for t in trees.trees), max(len(t.values) for t in trees.trees), len(trees.trees)
    feature, threshold = np.zeros((count, inner), np.int32), np.zeros((count, inner), np.float32)
    way, lefts = np.zeros((count, leaves, inner), np.float32), np.full((count, leaves), -1.0, np.float32)
    value = np.zeros((count, 1, leaves), np.float32)
    for number, tree in enumerate(trees.trees):
        own = len(tree.feature)
        feature[number, :own], threshold[number, :own] = tree.feature, tree.threshold
        value[number, 0, : len(tree.values)] = tree.values[:, 0]
        stack: list[tuple[int, list[tuple[int, int]]]] = [(0 if own else -1, [])]
        while stack:
            node, turns = stack.pop()
            if node < 0:
                lefts[number, ~node] = sum(turn > 0 for _, turn in turns)
                for at, turn in turns:
                    way[number, ~node, at] = turn
            else:
                stack += [(int(tree.left[node]), [*turns, (node, 1)]), (int(tree.right[node]), [*turns, (node, -1)])]

    def call(x: Any) -> Any:
        columns = ops.take(ops.transpose(x), feature.reshape(-1), axis=0)
        left = ops.reshape(ops.cast(columns <= ops.convert_to_tensor(threshold.reshape(-1, 1)), "float32"), (count, inner, ROWS))
        turns = ops.matmul(ops.convert_to_tensor(way), left)
        there = ops.cast(ops.equal(turns, ops.convert_to_tensor(lefts)[:, :, None]), "float32")
        return ops.sum(ops.matmul(ops.convert_to_tensor(value), there)[:, 0], axis=0)

    return call


def ways(call: Callable[[Any], Any], x: np.ndarray) -> dict[str, Callable[[], Any]]:
    """The same call as each backend runs it."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        compiled, given = jax.jit(call), itertools.cycle([jax.numpy.asarray(np.roll(x, at, 0)) for at in range(8)])
        return {"jit": lambda: np.asarray(compiled(next(given)))}
    if backend == "tensorflow":
        import tensorflow as tf

        given, others = (itertools.cycle([tf.constant(np.roll(x, at, 0)) for at in range(8)]) for _ in range(2))
        plain, xla = tf.function(call, autograph=False), tf.function(call, autograph=False, jit_compile=True)
        return {"graph": lambda: plain(next(given)).numpy(), "XLA": lambda: xla(next(others)).numpy()}
    import torch

    torch.set_num_threads(1)
    given = itertools.cycle([torch.tensor(np.roll(x, at, 0)) for at in range(8)])

    def eager() -> Any:
        with torch.no_grad():
            return call(next(given)).numpy()

    return {"eager": eager}


def least(call: Callable[[], Any], times: int = 60) -> float:
    """Milliseconds of one call."""
    call(), call()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return 1000 * min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--leaves", type=int, nargs="+", default=[15, 31, 63, 255])
    args = parser.parse_args()
    lines = []
    for leaves in args.leaves:
        booster, x = fitted(leaves)
        want = booster.predict(x, raw_score=True)
        trees = lightgbm_trees(booster)
        layer = layers.Forest.from_trees(trees, "raw")
        forms: dict[str, Callable[[Any], Any]] = {"layer": lambda x, layer=layer: layer(x)[:, 0], "levels": levels(trees)}
        forms |= {"matrix": matrix(trees)} if leaves <= 63 else {}
        peer = least(lambda booster=booster, x=x: booster.predict(x, raw_score=True, num_threads=1), 10)
        for form, call in forms.items():
            for way, run in ways(call, x).items():
                off = float(np.abs(run() - want).max())  # the first rows as they are
                line = {
                    "backend": keras.backend.backend(),
                    "form": form,
                    "way": way,
                    "leaves": leaves,
                    "milliseconds": round(least(run), 2),
                }
                lines.append({**line, "lightgbm": round(peer, 2), "ratio": round(peer / line["milliseconds"], 2), "difference": off})
                print(lines[-1], flush=True)
    if args.json:
        args.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
