#!/usr/bin/env python
"""What one request of 1,000 items costs the steps of a training on requests of 8.

    KERAS_BACKEND=jax python tools/benchmarks/long_request.py --baseline d80eced --json long_request.jsonl

Two logs have the same events. In `eights` all requests have 8 items; in `one long` the last 1,000 events are one request. A small model
trains one epoch on each, with the pairwise loss, as `train` does it (`training_data`, `compile_for`). Each case runs in a process of its
own. With `--single 12`, one process trains 12 times in turn on one batch of requests of 8 and on the one with the long request, and prints
the medians of the steps in CPU milliseconds and their ratio.

One JSON object per line: revision, backend, model, case, slots (of a step), steps, step_ms (CPU time of a step, mean over the second
epoch), long_step_ms (of the steps with the long request, or with its member where rows are of members), loss (mean of the epoch).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from processes import packages

LONG, CASES = 1000, ("eights", "one long")
OPTIONS: dict[str, dict[str, Any]] = {
    "cadet": {"dim": 32, "num_heads": 2, "num_layers": 2, "row_length": 2048},
    "lirank": {"history_features": (), "hidden": (64,), "row_length": 512},
}


def logs(requests: int, case: str) -> Any:
    """A simulated log of requests of 8, and its schema; the last member has 1,000 more events, in 125 requests or in one."""
    import pandas as pd

    import keras_ranking as kr
    from keras_ranking.data import SimulatedLists

    log = kr.data.simulate(members=max(requests // 5, 10), days=8, seed=0, lists=SimulatedLists(list_size=(8, 8)))
    schema = log.schema
    events = log.events.iloc[: requests * 8]
    many = events.sample(LONG, random_state=0, replace=True).reset_index(drop=True)
    group = np.arange(LONG) // (LONG if case == "one long" else 8)
    many[schema.member] = "last" if events[schema.member].dtype.kind == "O" else events[schema.member].max() + 1
    many[schema.time] = events[schema.time].max() + 3600 * (1 + group)
    many[schema.request] = [f"last:{number}" for number in group] if events[schema.request].dtype.kind == "O" else 10**9 + group
    if schema.session is not None:
        many[schema.session] = many[schema.request] if events[schema.session].dtype.kind == "O" else 10**9 + group
    if schema.position is not None:
        many[schema.position] = 1 + pd.Series(group).groupby(group).cumcount().to_numpy()
    many["item_id"] = [f"new:{row}" for row in range(LONG)] if events["item_id"].dtype.kind == "O" else 10**6 + np.arange(LONG)
    return pd.concat([events, many], ignore_index=True), schema


def longest_list(packed: np.ndarray, weights: np.ndarray) -> int:
    """Items of the largest request of a batch."""
    return max(int(np.bincount(row[mark > 0, 2].astype(int)).max(initial=0)) for row, mark in zip(packed, weights, strict=True))


def prepared(model: str, case: str, requests: int) -> tuple[Any, list[Any]]:
    """A compiled model and the batches of an epoch."""
    import keras

    import keras_ranking as kr
    from keras_ranking.training import setup
    from keras_ranking.training.options import split_options

    keras.utils.set_random_seed(0)
    events, schema = logs(requests, case)
    schema = schema.fit(events)
    arguments, training = split_options(model, {**OPTIONS[model], "pairwise_weight": 0.2, "batch_size": 4})
    ranker = {"cadet": kr.models.CADET, "lirank": kr.models.LiRank}[model](schema, **arguments)
    sequences = kr.data.build_sequences(events, schema)
    dataset, window = setup.training_data(ranker, sequences, training)
    setup.compile_for(ranker, training, steps=2 * len(dataset), window=window)
    batches = [dataset[number] for number in range(len(dataset))]
    setup.build_for(ranker, batches[0])
    ranker.train_on_batch(*batches[0])  # compiles
    return ranker, batches


def single(model: str, requests: int, times: int) -> dict[str, Any]:
    """Steps on one batch of each case in turn."""
    import keras

    chosen, spent = {}, {case: [] for case in CASES}
    for case in CASES:
        ranker, batches = prepared(model, case, requests)
        lengths = [longest_list(next(iter(y.values())), next(iter(weights.values()))) for _, y, weights in batches]
        chosen[case] = (ranker, batches[int(np.argmax(lengths))])
    for number in range(times + 1):
        for case, (ranker, batch) in chosen.items():
            start = time.process_time()
            ranker.train_on_batch(*batch)
            if number:
                spent[case].append(1e3 * (time.process_time() - start))
    medians = {case: round(float(np.median(values)), 1) for case, values in spent.items()}
    return {"backend": keras.backend.backend(), "model": model, **medians, "ratio": round(medians[CASES[1]] / medians[CASES[0]], 3)}


def measure(model: str, case: str, requests: int) -> dict[str, Any]:
    """One epoch of steps, after one that compiles."""
    import keras

    ranker, batches = prepared(model, case, requests)
    times, losses = [], []
    for x, y, weights in batches:
        start = time.process_time()
        losses.append(float(np.ravel(ranker.train_on_batch(x, y, weights))[0]))
        times.append(1e3 * (time.process_time() - start))
    lists = [
        max(np.bincount(row)[1:].max(initial=0) for row in x["segment"])  # the same batch in both cases
        if "segment" in x
        else longest_list(next(iter(y.values())), next(iter(weights.values())))
        for x, y, weights in batches
    ]
    long = [spent for spent, longest in zip(times, lists, strict=True) if longest >= LONG]
    return {
        "backend": keras.backend.backend(),
        "model": model,
        "case": case,
        "slots": int(next(iter(batches[0][2].values())).size),
        "steps": len(batches),
        "step_ms": round(float(np.mean(times)), 1),
        "long_step_ms": round(float(np.mean(long)), 1) if long else None,
        "loss": round(float(np.mean(losses)), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--requests", type=int, default=12_000)
    parser.add_argument("--baseline", help="a revision of this repository")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--single", type=int, metavar="TIMES", help="steps of one batch in turn")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.single:
        for model in args.models:
            print(json.dumps(single(model, args.requests, args.single)), flush=True)
        return
    if args.worker:
        print(json.dumps(measure(args.models[0], args.worker, args.requests)))
        return
    with packages(args.baseline) as folders:
        for model in args.models:
            for revision, path in folders.items():
                steps = []
                for case in CASES:
                    command = [sys.executable, __file__, "--worker", case, "--models", model, "--requests", str(args.requests)]
                    ran = subprocess.run(
                        command,
                        env={**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"},
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    line = {"revision": revision, **json.loads(ran.stdout.splitlines()[-1])}
                    steps.append(line["step_ms"])
                    print(json.dumps(line), flush=True)
                    if args.json:
                        with args.json.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
                print(f"{revision} {model}: a step takes {steps[1] / steps[0]:.2f} times as long", flush=True)


if __name__ == "__main__":
    main()
