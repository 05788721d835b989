"""What a transfer gives on a second surface with few rows: the source as it is, from scratch, the heads alone, all weights.

    python tools/benchmarks/transfer.py run --json tools/benchmarks/results/transfer.jsonl --seeds 5
    python tools/benchmarks/transfer.py table tools/benchmarks/results/transfer.jsonl

Two simulated surfaces for each seed, with other members, items and authors, and the same topics. The first one is a feed of 500 members, on
which CADET learns clicks alone. The second one has shorter lists, another position bias, items that age twice as fast, and about 1,700
rows to learn from, clicks and likes; it is scored on the later rows of other members, whose earlier rows are read as history.

All ways have the same architecture, learning rate and number of epochs at most; each keeps the epoch that is best on the last fifth of
its training rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from runs import half_interval, read_lines

import keras_ranking as kr
from keras_ranking.data import Log

WAYS = ("source", "scratch", "heads", "heads-kept", "all", "heads-then-all")
ROWS, MEMBERS = 1_700, 500
_TRAINING = {"validation": 0.2, "early_stopping": 4, "epochs": 30}
_METRICS = ("auc", "impression_auc", "log_loss")


def first_surface(seed: int, members: int = MEMBERS) -> Log:
    """The feed that the source is trained on."""
    return kr.data.simulate(members=members, seed=seed)


def second_surface(seed: int, rows: int = ROWS, members: int = 600) -> Log:
    """A surface with few rows to learn from: those of some members; the later rows of all others are the split `new_members`."""
    other = {"list_size": (5, 7), "examination": (1.0, 0.4, 0.3), "freshness": 0.6}
    log = kr.data.simulate(members=members, seed=10_000 + seed, **other)
    events, random = log.events, np.random.default_rng(seed)
    order = random.permutation(events["member_id"].unique())
    learned = events["split"] == "train"
    sizes = events[learned].groupby("member_id").size().reindex(order).fillna(0).cumsum()
    own = events["member_id"].isin(sizes.index[: int(np.searchsorted(sizes.to_numpy(), rows)) + 1])
    split = np.where(own, events["split"], np.where(learned, "history", "new_members"))
    return Log(events.assign(split=split), log.schema, "second surface")


def run(path: Path, seeds: range, model: str, members: int, rows: int, ways: tuple[str, ...]) -> None:
    """Append a line for each way, task and seed that the file lacks."""
    done = {(line["model"], line["way"], line["seed"]) for line in read_lines(path)}
    for seed in seeds:
        if all((model, way, seed) in done for way in ways):
            continue
        log = second_surface(seed, rows)
        with tempfile.TemporaryDirectory() as folder:
            kr.training.train(first_surface(seed, members), model, folder, seed, options={"tasks": ["click"]}, verbose=False)
            for way in (way for way in ways if (model, way, seed) not in done):
                lines = of_way(log, folder, model, way, seed)
                with path.open("a", encoding="utf-8") as handle:
                    handle.writelines(json.dumps(line) + "\n" for line in lines)
                print(*(f"{line['task']} {way} {seed} auc {line['auc']:.4f}" for line in lines), sep="\n", flush=True)


def of_way(log: Log, source: str, model: str, way: str, seed: int) -> list[dict[str, Any]]:
    """The lines of one way."""
    options: dict[str, Any] = {} if way == "source" else {**_TRAINING, **({"heads": "kept"} if way == "heads-kept" else {})}
    named = "heads" if way == "heads-kept" else way
    report = kr.training.compare_transfer(log, source, ["click", "like"], "new_members", (seed,), (named,), options)
    about = {"model": model, "way": way, "seed": seed, "train_rows": int((log.events["split"] == "train").sum())}
    about |= {"scored_rows": int((log.events["split"] == "new_members").sum()), "backend": keras.backend.backend()}
    return [{**about, "task": row["task"], **{name: row[name] for name in _METRICS}} for row in report.rows.to_dict("records")]


def table(path: Path, model: str) -> str:
    """Means over seeds with 95 % intervals, and the difference from scratch at equal seeds."""
    frame = pd.DataFrame([line for line in read_lines(path) if line["model"] == model])
    rows, scored = frame["train_rows"], frame["scored_rows"]
    head = f"{model}, {frame['seed'].nunique()} seeds, {rows.min():,} to {rows.max():,} rows to learn from, {int(scored.mean()):,} scored"
    text = [head, "", "| task | way | AUC | from scratch | impression AUC | from scratch | log loss |", "|---|---|---|---|---|---|---|"]
    for task, part in frame.groupby("task"):
        by_way: Mapping[str, pd.DataFrame] = {way: part[part["way"] == way].set_index("seed").sort_index() for way in WAYS}
        for way, found in by_way.items():
            if not len(found):
                continue
            cells = [str(task), way]
            for metric in _METRICS:
                cells.append(_cell(found[metric], f"{{:.{4 if metric == 'log_loss' else 3}f}}"))
                if metric != "log_loss":
                    away = found[metric] - by_way["scratch"][metric]
                    cells.append("" if way == "scratch" else _cell(away, "{:+.3f}"))
            text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def _cell(values: pd.Series, shape: str) -> str:
    half = half_interval(values.tolist())
    return shape.format(values.mean()) + ("" if np.isnan(half) else f" ± {shape.format(half).lstrip('+')}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("run")
    made.add_argument("--json", type=Path, required=True)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--model", default="cadet")
    made.add_argument("--members", type=int, default=MEMBERS)
    made.add_argument("--rows", type=int, default=ROWS)
    made.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    shown = commands.add_parser("table")
    shown.add_argument("path", type=Path)
    shown.add_argument("--model", default="cadet")
    args = parser.parse_args()
    if args.command == "table":
        print(table(args.path, args.model))
    else:
        run(args.json, range(args.seeds), args.model, args.members, args.rows, tuple(args.ways))


if __name__ == "__main__":
    main()
