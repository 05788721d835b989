#!/usr/bin/env python
"""What it costs to extend an encoded history by a few events, next to encoding all of them anew.

    KERAS_BACKEND=tensorflow python tools/benchmarks/extend.py --json extend.jsonl

One history of 1,010 events: `encode` of all, and `extend` of 10 on the cache of 1,000, in turn: on TensorFlow as a graph, on JAX
compiled, on torch eager. One JSON object per line: backend, model, dim, layout, mask, clock, encode_ms and extend_ms (medians), ratio (the
median of the ratios of neighbours), difference (largest of a score after both). `--clock cpu` counts the CPU time of the process in the
place of wall time: for a machine that other processes use, with one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

SIZES = {"num_layers": 4, "num_heads": 4, "id_dim": 16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("CADET", {"layout": "interleaved", "mask": "delay"}),
    ("FeedSR", {"layout": "interleaved", "mask": "session"}),
    ("FeedSR", {"layout": "fused", "mask": "causal"}),
    ("CADET", {"layout": "value", "mask": "delay"}),
]


def compiled(graph: Any) -> Any:
    """A functional model as a function that waits for its result."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        run = tf.function(lambda tensors: graph(tensors, training=False), autograph=False)
        return run
    if backend == "jax":
        import jax

        run = jax.jit(lambda tensors: graph(tensors, training=False))
        return lambda tensors: jax.block_until_ready(run(tensors))
    import torch

    def eager(tensors: Any) -> Any:
        with torch.no_grad():
            return graph(tensors, training=False)

    return eager


def measured(builder: str, dim: int, options: dict[str, Any], events: int, added: int, turns: int, clock: str) -> dict[str, Any]:
    """One row."""
    now = CLOCKS[clock]
    import keras

    import keras_ranking as kr
    from keras_ranking.serving.checking.sample_requests import random_requests
    from keras_ranking.serving.exporting.signatures import input_specs

    log = kr.data.simulate(members=30, days=3, seed=0)
    schema = log.schema.fit(log.events)
    keras.utils.set_random_seed(0)
    model = getattr(kr.models, builder)(schema, dim=dim, **SIZES, **options)
    total = events + added
    specs = input_specs(model.serving_model.input, schema)
    batch = random_requests(specs, (total,), (4,), hostile=False)
    as_tensor = keras.ops.convert_to_tensor

    def part(begin: int, end: int) -> dict[str, Any]:
        cut = {name: x[:, begin:end] for name, x in batch.items() if specs[name]["axis"] == "history"}
        return {name: as_tensor(x) for name, x in {**cut, "history_length": np.array([end - begin], "int32")}.items()}

    encode, extend, score = (compiled(graph) for graph in (model.encoder, model.extender, model.scorer))
    whole, begun, later = part(0, total), part(0, events), part(events, total)
    cache = {f"cache_{name}": x for name, x in encode({name: begun[name] for name in model.encoder.input}).items()}
    given = [{name: whole[name] for name in model.encoder.input}, {**cache, **later}]
    times: dict[str, list[float]] = {"encode": [], "extend": []}
    found = []
    for turn in range(turns + 3):
        for name, run, tensors in (("encode", encode, given[0]), ("extend", extend, given[1])):
            start = now()
            out = run(tensors)
            spent = now() - start
            if turn >= 3:
                times[name].append(1e3 * spent)
            elif not turn:
                found.append({f"cache_{key}": x for key, x in out.items()})
    candidates = {name: as_tensor(batch[name]) for name in model.scorer.input if not name.startswith("cache_")}
    scores = [{task: np.asarray(keras.ops.convert_to_numpy(x)) for task, x in score({**one, **candidates}).items()} for one in found]
    return {
        "backend": keras.backend.backend(),
        "model": builder,
        "dim": dim,
        **options,
        "events": events,
        "added": added,
        "clock": clock,
        "encode_ms": round(statistics.median(times["encode"]), 2),
        "extend_ms": round(statistics.median(times["extend"]), 2),
        "ratio": round(statistics.median(b / a for a, b in zip(times["encode"], times["extend"], strict=True)), 4),
        "difference": max(float(np.abs(scores[0][task] - scores[1][task]).max()) for task in scores[0]),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1000, help="events that are encoded already (default: 1000)")
    parser.add_argument("--added", type=int, default=10, help="later events (default: 10)")
    parser.add_argument("--cases", type=int, nargs="+", choices=range(len(CASES)), default=range(len(CASES)), help="which models")
    parser.add_argument("--dim", type=int, default=64, help="numbers of a hidden state (default: 64)")
    parser.add_argument("--turns", type=int, default=15, help="runs of each (default: 15)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what is measured: wall or CPU time (default: wall)")
    parser.add_argument("--json", metavar="FILE", help="also append the lines to FILE")
    args = parser.parse_args()
    for builder, options in (CASES[number] for number in args.cases):
        line = json.dumps(measured(builder, args.dim, options, args.events, args.added, args.turns, args.clock))
        print(line, flush=True)
        if args.json:
            with open(args.json, "a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
