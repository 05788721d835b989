#!/usr/bin/env python
"""Time and memory of a training step by the number of rows of an embedding table, with a peer that updates touched rows alone.

    python tools/benchmarks/tables.py --backends torch jax tensorflow --rows 1e4 1e6 1e7 --json tables.jsonl

The model: a table of `--dim` numbers a row, looked up in `--slots` places of a step (ids drawn uniformly), two dense layers of `--hidden`
units on each, the sum over 8 places, and a dense layer; trained by `fit`. Optimisers: `rowwise_adagrad` and `lazy_adam` of
`kr.training.TableOptimizer`, and `adamw`, which updates the whole table. Peers, in the same process, with the same model and ids, and
without Keras:

    torch        `torch.nn.Embedding(sparse=True)` and `torch.optim.SparseAdam`
    jax          a jitted gather and scatter AdaGrad on donated arrays
    tensorflow   a `tf.function` with `ResourceSparseApplyAdagradV2`

One JSON object per line: backend, optimizer, rows, step_ms, peer, peer_ms (CPU time, medians), table_gb (table and optimiser state),
peak_gb (peak of the process during training, less what it had before the model was made), start_gb (the same while the model was made).
Each line is a process of its own. Linux only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PLACES = 8
PEERS = {"torch": "SparseAdam", "jax": "gather and scatter AdaGrad", "tensorflow": "ResourceSparseApplyAdagradV2"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--optimizers", nargs="+", choices=("rowwise_adagrad", "lazy_adam", "adamw"), default=["rowwise_adagrad"])
    parser.add_argument("--rows", nargs="+", type=float, default=[1e4, 1e6, 1e7])
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--slots", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256, help="0: no dense layers on the rows, so that the table alone costs")
    parser.add_argument("--steps", type=int, default=30, help="measured steps; as many are run before")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="gpu: wall time, and no memory")
    parser.add_argument("--json", type=Path, help="append one JSON object per line to this file")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def memory(name: str) -> float:
    """A figure of /proc/self/status in GB: VmRSS now, VmHWM the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e9


def forget_peak() -> None:
    """Let the peak start again from the present memory."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise SystemExit(f"the peak of the memory cannot be reset: {error}") from error


def median_ms(step: Callable[[int], Any], steps: int, clock: Callable[[], float]) -> float:
    for number in range(steps):
        step(number)
    times = []
    for number in range(steps):
        start = clock()
        step(steps + number)
        times.append(clock() - start)
    return 1e3 * statistics.median(times)


def kernels(args: argparse.Namespace) -> list[np.ndarray]:
    """First weights of the peers' dense layers."""
    widths = [args.dim, *([args.hidden] * 2 if args.hidden else []), 1]
    rng = np.random.default_rng(1)
    return [rng.normal(0, a**-0.5, (a, b)).astype("float32") for a, b in itertools.pairwise(widths)]


def torch_peer(rows: int, args: argparse.Namespace, ids: np.ndarray, targets: np.ndarray) -> Callable[[int], Any]:
    import torch

    where = "cuda" if args.device == "gpu" else "cpu"
    table = torch.nn.Embedding(rows, args.dim, sparse=True, device=where)
    weights = [torch.nn.Parameter(torch.tensor(kernel, device=where)) for kernel in kernels(args)]
    of_table, of_dense = torch.optim.SparseAdam(list(table.parameters())), torch.optim.Adam(weights)
    batches = [(torch.tensor(i, device=where).long(), torch.tensor(t, device=where)) for i, t in zip(ids, targets, strict=True)]

    def step(number: int) -> Any:
        i, target = batches[number % len(batches)]
        of_table.zero_grad()
        of_dense.zero_grad()
        x = table(i)
        for weight in weights[:-1]:
            x = torch.relu(x @ weight)
        loss = ((x.sum(1) @ weights[-1] - target) ** 2).mean()
        loss.backward()
        of_table.step()
        of_dense.step()
        return loss.item()

    return step


def jax_peer(rows: int, args: argparse.Namespace, ids: np.ndarray, targets: np.ndarray) -> Callable[[int], Any]:
    import jax
    import jax.numpy as jnp

    def run(table: Any, sums: Any, weights: Any, i: Any, target: Any) -> Any:
        def loss(x: Any, weights: Any) -> Any:
            for weight in weights[:-1]:
                x = jax.nn.relu(x @ weight)
            return jnp.mean((x.sum(1) @ weights[-1] - target) ** 2)

        value, (g, slopes) = jax.value_and_grad(loss, argnums=(0, 1))(table[i], weights)
        flat, g = i.reshape(-1), g.reshape(-1, args.dim)
        sums = sums.at[flat].add((g**2).mean(-1))
        return (
            table.at[flat].add(-0.02 * g / (jnp.sqrt(sums[flat]) + 1e-8)[:, None]),
            sums,
            [w - 0.01 * s for w, s in zip(weights, slopes, strict=True)],
            value,
        )

    compiled = jax.jit(run, donate_argnums=(0, 1, 2))
    state = [jnp.zeros((rows, args.dim)), jnp.zeros((rows,)), [jnp.asarray(kernel) for kernel in kernels(args)]]
    batches = [(jnp.asarray(i), jnp.asarray(t)) for i, t in zip(ids, targets, strict=True)]

    def step(number: int) -> Any:
        *state[:], value = compiled(*state, *batches[number % len(batches)])
        return float(value)

    return step


def tensorflow_peer(rows: int, args: argparse.Namespace, ids: np.ndarray, targets: np.ndarray) -> Callable[[int], Any]:
    import tensorflow as tf

    table, sums = tf.Variable(tf.zeros((rows, args.dim))), tf.Variable(tf.zeros((rows, args.dim)))
    weights = [tf.Variable(kernel) for kernel in kernels(args)]

    @tf.function(reduce_retracing=True)
    def run(i: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            x = tf.gather(table, i)
            for weight in weights[:-1]:
                x = tf.nn.relu(tf.tensordot(x, weight, 1))
            loss = tf.reduce_mean((tf.reduce_sum(x, 1) @ weights[-1] - target) ** 2)
        slices, *slopes = tape.gradient(loss, [table, *weights])
        for weight, slope in zip(weights, slopes, strict=True):
            weight.assign_sub(0.01 * slope)
        tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=table.handle, accum=sums.handle, lr=0.02, epsilon=1e-8, grad=slices.values, indices=slices.indices
        )
        return loss

    batches = [(tf.constant(i), tf.constant(t)) for i, t in zip(ids, targets, strict=True)]
    return lambda number: float(run(*batches[number % len(batches)]))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One line: ours by `fit`, then the peer."""
    (backend,), (rows,), (rule,) = args.backends, [int(rows) for rows in args.rows], args.optimizers
    import keras

    import keras_ranking as kr

    clock = time.perf_counter if args.device == "gpu" else time.process_time
    rng, batch = np.random.default_rng(0), args.slots // PLACES
    ids = rng.integers(0, rows, (args.steps, batch, PLACES)).astype("int32")
    targets = rng.normal(size=(args.steps, batch, 1)).astype("float32")

    class Batches(keras.utils.PyDataset):
        def __len__(self) -> int:
            return 2 * args.steps

        def __getitem__(self, number: int) -> Any:
            return ids[number % args.steps], targets[number % args.steps]

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            self.start = clock()

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.times.append(clock() - self.start)

    before = memory("VmRSS")
    forget_peak()
    inputs = keras.Input((PLACES,), dtype="int32")
    table = kr.layers.TableEmbedding(rows, args.dim)
    x = table(inputs)
    for _ in range(2 if args.hidden else 0):
        x = keras.layers.Dense(args.hidden, activation="relu")(x)
    model = kr.models.TableModel(inputs, keras.layers.Dense(1)(keras.ops.sum(x, axis=1)))
    optimizer = keras.optimizers.AdamW() if rule == "adamw" else kr.training.TableOptimizer("adamw", rule, clip_norm=1.0)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    start = memory("VmHWM") - before
    forget_peak()
    watch = Clock()
    model.fit(Batches(), epochs=1, shuffle=False, verbose=0, callbacks=[watch])
    peak = memory("VmHWM") - before
    held = sum(int(np.prod(variable.shape)) * 4 for variable in [*model.variables, *optimizer.variables]) / 1e9
    line = {
        "backend": backend,
        "optimizer": rule,
        "rows": rows,
        "step_ms": round(1e3 * statistics.median(watch.times[args.steps :]), 3),
        "table_gb": round(held, 3),
        "peak_gb": round(peak, 3),
        "start_gb": round(start, 3),
    }
    del model, optimizer, table
    peer = {"torch": torch_peer, "jax": jax_peer, "tensorflow": tensorflow_peer}[backend](rows, args, ids, targets)
    return line | {"peer": PEERS[backend], "peer_ms": round(median_ms(peer, args.steps, clock), 3)}


def main() -> None:
    args = arguments()
    if args.one:
        print(json.dumps(measure(args)))
        return
    header = f"{'backend':<11} {'optimizer':<16} {'rows':>10} {'step ms':>9} {'peer ms':>9} {'state GB':>9} {'peak GB':>8} {'start GB':>9}"
    print(header)
    for backend in args.backends:
        for rule in args.optimizers:
            for rows in args.rows:
                options = ["--backends", backend, "--optimizers", rule, "--rows", str(rows), "--device", args.device]
                options += ["--dim", str(args.dim), "--slots", str(args.slots), "--hidden", str(args.hidden), "--steps", str(args.steps)]
                settings = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
                settings |= {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"} if args.device == "cpu" else {}
                command = [sys.executable, __file__, "--one", *options]
                done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
                if done.returncode:
                    print(f"{backend:<11} {rule:<16} {int(rows):>10} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
                    continue
                line = json.loads(done.stdout.strip().splitlines()[-1])
                print(
                    f"{backend:<11} {rule:<16} {line['rows']:>10} {line['step_ms']:>9.2f} {line['peer_ms']:>9.2f} {line['table_gb']:>9.2f} "
                    f"{line['peak_gb']:>8.2f} {line['start_gb']:>9.2f}",
                    flush=True,
                )
                if args.json:
                    with args.json.open("a") as handle:
                        handle.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
