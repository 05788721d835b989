"""Shared by the quality benchmarks: runs as JSON lines, the last training day held out, means with intervals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.data import Log
from keras_ranking.layers import fit_base_rate

# Half of a 95 % interval over a few values is this times the standard error.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def holdout_of(line: Mapping[str, Any]) -> float:
    """Share of the members that a run held out; lines of earlier versions do not say that it was a quarter."""
    return float(line.get("holdout", 0.25))


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % t-interval of a mean over seeds; NaN for one value, or for more than five."""
    return STUDENT.get(len(values), np.nan) * float(np.std(values, ddof=1)) / len(values) ** 0.5 if len(values) > 1 else np.nan


def mean_cell(values: Sequence[float], least: int = 3) -> str:
    """'mean ± half'; only the mean for fewer values than `least`."""
    mean = f"{np.mean(values):.4f}"
    return f"{mean} ± {half_interval(values):.4f}" if len(values) >= least else mean


def followed_log_loss(label: np.ndarray, logit: np.ndarray, time: np.ndarray, delay: int, parts: int = 100, prior: float = 1000.0) -> float:
    """Log loss with an offset that follows the base rate: see `kr.layers.fit_base_rate`.

    Rows in order of time in `parts`; before each part the offset is fitted on the rows that became known since the last fit, those up to
    `delay` seconds before its first row, and is drawn to the one before as if by `prior` rows.
    """
    order = np.argsort(time, kind="stable")
    y, z, t = label[order].astype(np.float64), logit[order].astype(np.float64), time[order]
    begins = np.unique(np.searchsorted(t, t[np.linspace(0, len(t), parts, endpoint=False).astype(int)]))
    offset, read, losses = 0.0, 0, np.empty(len(y))
    for begin, end in zip(begins, [*begins[1:], len(y)], strict=True):
        known = int(np.searchsorted(t, t[begin] - delay, side="right"))
        if known > read:
            offset, read = fit_base_rate(y[read:known], z[read:known], prior, offset), known
        at = z[begin:end] + offset
        losses[begin:end] = np.logaddexp(0, at) - y[begin:end] * at
    return float(losses.mean())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The runs in the file; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add_line(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def held_out(log: Log) -> Log:
    """Only the training rows, with the last day for evaluation."""
    events = log.events[log.events["split"].isin(["history", "train"])].reset_index(drop=True)
    train = (events["split"] == "train").to_numpy()
    day = (events["time"].to_numpy() - events["time"].to_numpy()[train].min()) // 86_400
    events.loc[train & (day == day[train].max()), "split"] = "validation"
    return replace(log, events=events)


def log_arguments(about: str | None, logs: Sequence[str]) -> argparse.ArgumentParser:
    """The arguments of a benchmark on one of several logs: LOG FOLDER --json FILE --seeds ..., or --table FILE."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", metavar="LOG", choices=list(logs), help=", ".join(logs))
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    share = "share of the members that are never trained on, by hash: the split new_members (default: 0.25; 0: none)"
    parser.add_argument("--holdout-members", type=float, default=0.25, metavar="SHARE", dest="holdout", help=share)
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the tables of a file")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was given to `log_arguments`; exits where neither a table nor a whole run is asked for."""
    args = parser.parse_args(arguments)
    if not args.table and (not args.log or not args.json or (args.log != "simulated" and not args.folder)):
        parser.error("LOG, FOLDER and --json are needed, or --table")
    return args
