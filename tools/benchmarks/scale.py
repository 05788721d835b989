#!/usr/bin/env python
"""Preparing, training, evaluating and scoring logs of several sizes in a bounded memory.

    KERAS_BACKEND=torch python tools/benchmarks/scale.py --events 1000000 5000000 --limit 6GB --json scale.jsonl

The log is written in pieces of a million events, each a slice of time: requests of 8 impressions, members with about 100 events at a
million and 500 at most, but for one member with --hot of all rows; ids, numbers and two labels; the last twentieth of the time is the
split validation. Each stage runs in a process
of its own with `ulimit -v` of `--limit`, and is given the folder that the one before has written. Stages:

    prepare   `kr.engines.duckdb.prepare`, or `spark` with --engine spark (Java is outside of the limit)
    input     all batches of one epoch, as `train` reads them, without a model's step
    train     one epoch of --model: cadet with --dim, or lirank, the cheaper one, of candidates alone
    evaluate  metrics of the validation rows
    score     `kr.training.score_log` of the validation rows, or of all with --score-all

One JSON object per line: events, stage, seconds, cpu_s (of the process and those that it started), events_per_s (events that the stage
reads, per CPU second), peak_gb (resident), limit_gb, and what the stage says of itself. The share of the input in a step is `stage_cpu_s`
of `input` over that of `train`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PIECE, REQUEST = 1_000_000, 8
STAGES = ("prepare", "input", "train", "evaluate", "score")


def write(events: int, folder: Path, hot: float) -> None:
    """The log, as parquet files of a million events."""
    import pandas as pd

    folder.mkdir(parents=True)
    members = max(100, min(events // 100, 10_000 + events // 500))
    day, begin = 86_400, 1_767_225_600
    for number, at in enumerate(range(0, events, PIECE)):
        rng = np.random.default_rng(number)
        requests = min(PIECE, events - at) // REQUEST
        first, last = (int(begin + 30 * day * place / events) for place in (at, at + requests * REQUEST))
        member = np.where(rng.random(requests) < hot, 0, rng.integers(0, members, requests))
        clock = np.sort(rng.integers(first, last, requests))
        rows = np.repeat(np.arange(requests), REQUEST)
        item = rng.integers(0, 100_000, len(rows))
        taste = ((item * 2_654_435_761 + member[rows] * 40_503) % 997) / 997
        click = rng.random(len(rows)) < 0.3 * taste
        frame = pd.DataFrame(
            {
                "member": member[rows],
                "time": clock[rows],
                "request": (number * (PIECE // REQUEST) + rows).astype(np.int64),
                "rank": np.tile(np.arange(1, REQUEST + 1), requests),
                "item": item,
                "author": (item % 5_000),
                "topic": rng.choice(np.array(["news", "jobs", "sport", "science"], dtype=object), len(rows)),
                "device": rng.integers(0, 3, len(rows)),
                "age_hours": rng.exponential(20.0, len(rows)),
                "views": rng.integers(0, 10_000, len(rows)),
                "click": click.astype(np.int8),
                "like": (click & (rng.random(len(rows)) < 0.2)).astype(np.int8),
                "split": np.where(clock[rows] < begin + 28.5 * day, "train", "validation"),
            }
        )
        frame.to_parquet(folder / f"{number:05d}.parquet", index=False, row_group_size=250_000)


def schema() -> Any:
    """What the columns are."""
    import keras_ranking as kr

    return kr.Schema(
        member="member",
        time="time",
        request="request",
        position="rank",
        features=[
            kr.Id("item", buckets=20_000),
            kr.Id("author", buckets=5_001),
            kr.Category("topic", buckets=16),
            kr.Category("device", buckets=8),
            kr.Number("age_hours", transform="log1p_standardise"),
            kr.Number("views", transform="log1p_standardise", known="context"),
        ],
        actions=["click", "like"],
        tasks=["click", "like"],
    )


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Of the model and its training."""
    common = {"row_length": 512, "batch_size": 8}
    if args.model == "lirank":
        return {**common, "history_features": (), "hidden": (64, 32), "cross_layers": 1, "id_dim": args.dim, "pairwise_weight": 0.0}
    return {**common, "dim": args.dim, "num_layers": 1, "num_heads": 2}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One stage, in this process."""
    import keras_ranking as kr

    place = Path(args.folder)
    if args.stage == "prepare":
        if args.engine == "spark":
            shards = kr.engines.spark.prepare_files(place / "log", schema(), place / "shards")
        else:
            shards = kr.engines.duckdb.prepare(place / "log", schema(), place / "shards", memory=args.memory)
        return {"read": shards.events, "shards": shards.shards, "bytes": sum(about["bytes"] for about in shards.manifest["files"])}
    shards = kr.data.ShardedLog(place / "shards")
    if args.stage == "input":
        from keras_ranking.data.shards.log import TRAINING
        from keras_ranking.training.options import TrainingOptions
        from keras_ranking.training.streaming.data import Facts, StreamedData, Weigher

        model = kr.models.CADET(shards.schema, dim=args.dim, num_layers=1, num_heads=2)
        training = TrainingOptions(row_length=512, batch_size=8)
        facts = Facts.of(shards, TRAINING, model)
        made = StreamedData(model, shards, TRAINING, facts, training, 0, Weigher(shards, TRAINING, training, model.tasks, 0)).dataset
        made.on_epoch_begin()
        begin, slots = time.process_time(), 0
        for batch in range(len(made)):
            slots += made[batch][0]["time"].size
        return {"read": facts.targets, "batches": len(made), "stage_cpu_s": time.process_time() - begin, "slots": slots}
    if args.stage == "train":
        begin = time.process_time()
        _, history = kr.training.train(shards, args.model, place / f"run_{args.model}", epochs=1, options=options(args), verbose=False)
        return {"read": history["train_events"], "loss": history["epochs"]["loss"][-1], "stage_cpu_s": time.process_time() - begin}
    if args.stage == "evaluate":
        found = kr.training.evaluate(place / f"run_{args.model}", shards, "validation")
        return {"read": shards.events, "auc": found["click"]["auc"], "scored": shards.splits["validation"]}
    about = kr.training.score_log(place / f"run_{args.model}", shards, place / "scores", None if args.score_all else "validation")
    return {"read": shards.events, "scored": about["rows"]}


def measured(args: argparse.Namespace, events: int, stage: str, folder: Path) -> dict[str, Any]:
    """One stage in a process with a limit of memory."""
    limit = int(args.limit)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [
        sys.executable,
        __file__,
        "--stage",
        stage,
        "--folder",
        str(folder),
        "--dim",
        str(args.dim),
        "--engine",
        args.engine,
        "--model",
        args.model,
    ]
    command += ["--memory", str(args.memory), *(["--score-all"] if args.score_all else [])]
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    free = args.engine == "spark" and stage == "prepare"
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, preexec_fn=None if free or not limit else limited)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row: dict[str, Any] = {"events": events, "stage": stage, "seconds": round(time.perf_counter() - begin, 1), "cpu_s": round(cpu, 1)}
    row |= {
        "limit_gb": limit / 1e9,
        "backend": os.environ.get("KERAS_BACKEND", "tensorflow"),
        "model": args.model,
        "dim": args.dim,
        "hot": args.hot,
    }
    if done.returncode:
        return {**row, "failed": done.returncode}
    found = json.loads(done.stdout.splitlines()[-1])
    return {**row, **found, "events_per_s": round(found["read"] / cpu)}


def main() -> None:
    """Measure, or run one stage."""
    from keras_ranking.commands.scale import size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 5_000_000, 20_000_000, 50_000_000])
    parser.add_argument("--limit", type=size, default=6e9, help="of the address space of each stage; 0: none")
    parser.add_argument("--memory", type=size, default=1.5e9, help="for the engine")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--model", choices=["cadet", "lirank"], default="cadet")
    parser.add_argument("--engine", choices=["duckdb", "spark"], default="duckdb")
    parser.add_argument("--hot", type=float, default=0.02, help="share of the rows that are of one member, who needs a shard of that size")
    parser.add_argument("--score-all", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path, help="where the logs are written (default: a temporary folder)")
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--stages", choices=STAGES, nargs="+", default=STAGES)
    args = parser.parse_args()
    if args.stage:
        found = run(args)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({**found, "peak_gb": round(peak, 3)}))
        return
    root = args.folder or Path(tempfile.mkdtemp(prefix="scale"))
    for events in args.events:
        place = root / str(events)
        if not (place / "log").is_dir():
            write(events, place / "log", args.hot)
        for stage in args.stages:
            row = measured(args, events, stage, place)
            print(json.dumps(row), flush=True)
            if args.json:
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
            if "failed" in row:
                break
        if args.folder is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
