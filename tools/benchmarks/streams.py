#!/usr/bin/env python
"""Rows a second of `build_sequences` on a log with five columns of texts, beside the same call of an older revision.

    KERAS_BACKEND=torch python tools/benchmarks/streams.py --rows 1000000 --baseline d80eced --json streams.jsonl

The log has requests of 8 rows, members of about 50, an `Id` of 20,000 and one of 5,000 texts, two hashed categories of 50 and 20, a
category with a vocabulary of 4, a number and a label. `--texts object` holds the texts as Python objects, as pandas 2 does; `str` in
the type that pandas infers. Each call runs in a process of its own. Seconds are CPU seconds of the call, `peak_gb` what the process
grew by. One JSON object per line: revision, rows, texts, cpu_s, rows_per_s, peak_gb, digest (of all encoded arrays: equal where the
results are the same to the bit).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from processes import packages


def log(rows: int, texts: str) -> pd.DataFrame:
    """A log of requests of 8 rows, with about 50 rows a member."""
    rng = np.random.default_rng(0)
    lists = rows // 8
    member = np.repeat(np.sort(rng.integers(0, max(lists // 6, 1), lists)), 8)

    def words(name: str, count: int) -> pd.Series:
        vocabulary = np.array([f"{name}:{number}" for number in range(count)], dtype=object)
        return pd.Series(vocabulary[rng.integers(0, count, len(member))], dtype=object if texts == "object" else "str")

    return pd.DataFrame(
        {
            "member": member,
            "time": 1_700_000_000 + np.repeat(np.arange(lists), 8),
            "request": np.repeat(np.arange(lists), 8),
            "item": words("item", 20_000),
            "author": words("author", 5_000),
            "topic": words("topic", 50),
            "language": words("language", 20),
            "device": words("device", 4),
            "age": rng.random(len(member)),
            "click": rng.integers(0, 2, len(member)),
        }
    )


def measure(rows: int, texts: str) -> dict[str, float | str]:
    """One call of the package that this process imports."""
    import keras_ranking as kr

    schema = kr.Schema(
        member="member",
        time="time",
        request="request",
        features=[
            kr.Id("item"),
            kr.Id("author"),
            kr.Category("topic"),
            kr.Category("language"),
            kr.Category("device", vocabulary=[f"device:{number}" for number in range(4)]),
            kr.Number("age"),
        ],
        tasks=["click"],
    )
    kr.data.build_sequences(log(800, texts), schema)  # imports
    events = log(rows, texts)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    sequences = kr.data.build_sequences(events, schema)
    seconds = time.process_time() - start
    digest = hashlib.sha256()
    for values in (sequences.time, sequences.request, sequences.rows, *sequences.columns.values(), *sequences.labels.values()):
        digest.update(np.ascontiguousarray(values))
    return {
        "rows": len(events),
        "texts": texts,
        "cpu_s": round(seconds, 3),
        "rows_per_s": round(len(events) / seconds),
        "peak_gb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20, 3),
        "digest": digest.hexdigest()[:16],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--texts", choices=("str", "object"), nargs="+", default=["str"])
    parser.add_argument("--baseline", help="a revision of this repository")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.rows, args.texts[0])))
        return
    with packages(args.baseline) as folders:
        for texts in args.texts:
            lines = []
            for revision, path in folders.items():
                command = [sys.executable, __file__, "--worker", "--rows", str(args.rows), "--texts", texts]
                environment = {**os.environ, "PYTHONPATH": path}
                ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                lines.append({"revision": revision, **json.loads(ran.stdout.splitlines()[-1])})
                print(json.dumps(lines[-1]), flush=True)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(lines[-1]) + "\n")
            if args.baseline:
                print(f"{texts}: {lines[0]['cpu_s'] / lines[1]['cpu_s']:.1f} times the rows per CPU second")


if __name__ == "__main__":
    main()
