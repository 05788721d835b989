"""What a transfer gives on a second surface with few rows: the source as it is, from scratch, the heads alone, all weights.

    python tools/benchmarks/transfer.py run --json tools/benchmarks/results/transfer.jsonl --seeds 5
    python tools/benchmarks/transfer.py run --surfaces kuairand --data FOLDER --json tools/benchmarks/results/transfer.jsonl \\
        --seeds 3 --rows 1700 11344
    python tools/benchmarks/transfer.py table tools/benchmarks/results/transfer.jsonl --surfaces kuairand

`simulated`: two surfaces for each seed, with other members, items and authors, and the same topics. The first one is a feed of 500
members, on which CADET learns clicks alone. The second one has shorter lists, another position bias, items that age twice as fast, and
about 1,700 rows to learn from, clicks and likes; it is scored on the later rows of other members, whose earlier rows are read as history.

`kuairand`: two screens of KuaiRand-Pure, its column `tab`. The first one is that with the most rows, tab 1, on whose earlier rows a small
CADET learns clicks alone. The second one is that with the most rows of the others, tab 0: `is_click` and `long_view` of the earlier rows of
some members are learned, which each seed draws, and all later rows are scored, those of 2022-05-05 and after. A member's rows of tab 1 are
history. FOLDER holds the files `kuairand_pure_*.csv.gz`.

All ways have the same architecture, learning rate and number of epochs at most; each keeps the epoch that is best on the last fifth of
its training rows. Nothing is chosen on the scored rows.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from runs import half_interval, read_lines
from transfer_surfaces import MEMBERS, ROWS, Surfaces, kuairand, simulated

import keras_ranking as kr
from keras_ranking.data import Log

WAYS = ("source", "scratch", "heads", "heads-kept", "all", "heads-then-all")
SURFACES = ("simulated", "kuairand")
_TRAINING = {"validation": 0.2, "early_stopping": 4, "epochs": 30}
_METRICS = ("auc", "impression_auc", "log_loss")


def run(path: Path, name: str, surfaces: Surfaces, seeds: range, model: str, sizes: Sequence[int], ways: tuple[str, ...]) -> None:
    """Append a line for each way, task, seed and number of rows that the file lacks."""
    done = {(*_about(line), line["way"], line["seed"]) for line in read_lines(path)}
    for seed in seeds:
        lacking = [(rows, way) for rows in sizes for way in ways if (name, model, rows, way, seed) not in done]
        if not lacking:
            continue
        with tempfile.TemporaryDirectory() as folder:
            options = {**surfaces.options, "tasks": list(surfaces.tasks[:1])}
            kr.training.train(surfaces.first(seed), model, folder, seed, options=options, verbose=False)
            for rows, way in lacking:
                lines = of_way(surfaces.second(seed, rows), surfaces, folder, way, seed)
                lines = [{"surfaces": name, "model": model, "rows": rows, **line} for line in lines]
                with path.open("a", encoding="utf-8") as handle:
                    handle.writelines(json.dumps(line) + "\n" for line in lines)
                print(*(f"{line['task']} {way} {seed} {rows} auc {line['auc']:.4f}" for line in lines), sep="\n", flush=True)


def _about(line: Mapping[str, Any]) -> tuple[str, str, int]:
    """Surfaces, model and rows that were asked for; the first lines were made when there was one pair of surfaces and one size."""
    return line.get("surfaces", "simulated"), line["model"], line.get("rows", ROWS)


def of_way(log: Log, surfaces: Surfaces, source: str, way: str, seed: int) -> list[dict[str, Any]]:
    """The lines of one way."""
    options: dict[str, Any] = {} if way == "source" else {**_TRAINING, **({"heads": "kept"} if way == "heads-kept" else {})}
    named = "heads" if way == "heads-kept" else way
    report = kr.training.compare_transfer(log, source, surfaces.tasks, surfaces.split, (seed,), (named,), options)
    scored = log.events[log.events["split"] == surfaces.split]
    about = {"way": way, "seed": seed, "train_rows": int((log.events["split"] == "train").sum()), "scored_rows": len(scored)}
    about |= {"backend": keras.backend.backend()}
    metrics = _METRICS if surfaces.impression_auc else ("auc", "log_loss")
    lines = []
    for row in report.rows.to_dict("records"):
        positives = int(scored[log.schema.task(row["task"]).label].sum())
        lines.append({**about, "task": row["task"], "positives": positives, **{name: row[name] for name in metrics}})
    return lines


def table(path: Path, model: str, surfaces: str) -> str:
    """Of each number of rows: means over seeds with 95 % intervals, and the difference from scratch at equal seeds."""
    lines = [(_about(line), line) for line in read_lines(path)]
    chosen = [{**line, "rows": rows} for (name, of, rows), line in lines if (name, of) == (surfaces, model)]
    if not chosen:
        raise SystemExit(f"{path} has no line of {model} on the surfaces '{surfaces}'")
    return "\n\n".join(_table(part, model) for _, part in pd.DataFrame(chosen).groupby("rows"))


def _table(frame: pd.DataFrame, model: str) -> str:
    metrics = [metric for metric in _METRICS if metric in frame and frame[metric].notna().any()]
    rows, scored = frame["train_rows"], frame["scored_rows"]
    least, most = f"{rows.min():,}", f"{rows.max():,}"
    learned = least if least == most else f"{least} to {most}"
    text = [f"{model}, {frame['seed'].nunique()} seeds, {learned} rows to learn from, {int(scored.mean()):,} scored"]
    heads = {"auc": "AUC | from scratch", "impression_auc": "impression AUC | from scratch", "log_loss": "log loss"}
    text += ["", f"| task | way | {' | '.join(heads[metric] for metric in metrics)} |"]
    text.append("|---" * (text[-1].count("|") - 1) + "|")
    for task, part in frame.groupby("task"):
        by_way: Mapping[str, pd.DataFrame] = {way: part[part["way"] == way].set_index("seed").sort_index() for way in WAYS}
        for way, found in by_way.items():
            if not len(found):
                continue
            cells = [str(task), way]
            for metric in metrics:
                cells.append(_cell(found[metric], f"{{:.{4 if metric == 'log_loss' else 3}f}}"))
                if metric != "log_loss":
                    away = found[metric] - by_way["scratch"][metric]
                    cells.append("" if way == "scratch" else _cell(away, "{:+.3f}"))
            text.append(f"| {' | '.join(cells)} |")
    if "positives" in frame and frame["positives"].notna().all():
        text.append("")
        for task, part in frame.groupby("task"):
            auc, positives, rows = float(part["auc"].max()), int(part["positives"].mean()), int(part["scored_rows"].mean())
            error, rate = auc_error(auc, positives, rows - positives), positives / rows
            constant = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
            text.append(
                f"{task}: {positives:,} of the scored rows, a log loss of {constant:.4f} for their rate as a constant; "
                f"the standard error of an AUC of {auc:.3f} on them is {error:.3f}"
            )
    return "\n".join(text)


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """The standard error of an AUC on so many rows, taken as independent, with exponential scores: Hanley and McNeil, 1982."""
    of_positives, of_negatives = auc / (2 - auc) - auc**2, 2 * auc**2 / (1 + auc) - auc**2
    spread = auc * (1 - auc) + (positives - 1) * of_positives + (negatives - 1) * of_negatives
    return float((spread / (positives * negatives)) ** 0.5)


def _cell(values: pd.Series, shape: str) -> str:
    half = half_interval(values.tolist())
    return shape.format(values.mean()) + ("" if np.isnan(half) else f" ± {shape.format(half).lstrip('+')}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("run")
    made.add_argument("--surfaces", choices=SURFACES, default="simulated")
    made.add_argument("--data", type=Path, metavar="FOLDER", help="of --surfaces kuairand")
    made.add_argument("--json", type=Path, required=True)
    made.add_argument("--seeds", type=int, default=5)
    made.add_argument("--model", default="cadet")
    made.add_argument("--members", type=int, default=MEMBERS, help="of the simulated feed")
    made.add_argument("--rows", type=int, nargs="+", default=[ROWS])
    made.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    shown = commands.add_parser("table")
    shown.add_argument("path", type=Path)
    shown.add_argument("--model", default="cadet")
    shown.add_argument("--surfaces", choices=SURFACES, default="simulated")
    args = parser.parse_args()
    if args.command == "table":
        print(table(args.path, args.model, args.surfaces))
        return
    if (args.surfaces == "kuairand") != (args.data is not None):
        parser.error("--data FOLDER is needed with --surfaces kuairand, and goes with no other")
    surfaces = kuairand(args.data) if args.data else simulated(args.members)
    run(args.json, args.surfaces, surfaces, range(args.seeds), args.model, args.rows, tuple(args.ways))


if __name__ == "__main__":
    main()
