"""The daily step of an operator: `train --resume RUN --new-events ...` with a penalty, effects, exploration, and the export."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.commands.common import finite, step, table

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_OPTIONS = ("penalty", "forgetting", "refresh_effects", "effects_window", "explore", "export")
_METRICS = ("log_loss", "auc", "impression_auc", "observed_over_expected")


def duration(text: str) -> int:
    """Seconds of a duration such as 8h, 30m or 7d.

    Raises:
        ArgumentTypeError: anything else.
    """
    found = re.fullmatch(r"([1-9]\d*)([smhd])", text.strip())
    if found is None:
        raise argparse.ArgumentTypeError(f"must be a duration such as 30m, 8h or 7d. Received: {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def _amount(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number, at least 0. Received: {text!r}")
    return number


def _rate(text: str) -> float:
    number = _amount(text)
    if not number:
        raise argparse.ArgumentTypeError(f"must be a positive number. Received: {text!r}")
    return number


def daily_arguments(made: argparse.ArgumentParser) -> None:
    """The arguments of `train` that need --new-events."""
    group = made.add_argument_group("the daily step, with --resume and --new-events")
    group.add_argument(
        "--learning-rate", type=_rate, metavar="RATE", help="of this step and the next ones (default: that at which the training ended)"
    )
    group.add_argument("--penalty", choices=["fisher"], help="hold each weight to its earlier value by its Fisher information")
    group.add_argument("--forgetting", type=_amount, metavar="WEIGHT", help="with --penalty: its weight (default: 30)")
    group.add_argument(
        "--refresh-effects", type=duration, metavar="EVERY", help="fit the random effects of ids anew, where the last fit is so old, as 8h"
    )
    group.add_argument(
        "--effects-window", type=duration, metavar="TIME", help="with --refresh-effects: of the newest rows that are read (default: 7d)"
    )
    group.add_argument("--explore", action="store_true", help="let the posterior for exploration take in the new events")
    group.add_argument(
        "--export",
        metavar="FOLDER",
        help="then export the model as the next version of a served model, with the label canary, unless it shows skew on the new events",
    )


def wants_daily(args: argparse.Namespace) -> bool:
    """Whether the step is more than `warm_start`."""
    return any(getattr(args, name) for name in _OPTIONS)


def check_daily(args: argparse.Namespace) -> None:
    """Raise a ValueError for options of the daily step without --new-events, or that go together with others."""
    for name in ("learning_rate", *_OPTIONS):
        if getattr(args, name) and not (args.resume and args.new_events):
            raise ValueError(f"`--{name.replace('_', '-')}` is of the daily step: it needs --resume RUN and --new-events.")
    for name, needed in (("forgetting", "penalty"), ("effects_window", "refresh_effects")):
        if getattr(args, name) is not None and not getattr(args, needed):
            raise ValueError(f"`--{name.replace('_', '-')}` needs `--{needed.replace('_', '-')}`.")


def daily(args: argparse.Namespace, log: Any, new: np.ndarray, callbacks: Any) -> int:
    """Take the daily step, export its model, and print the report."""
    from keras_ranking import training
    from keras_ranking.data import ShardedLog

    first = next(name for name in _OPTIONS if getattr(args, name)).replace("_", "-")
    if args.distribution is not None:
        raise ValueError(f"`--distribution` does not work with `--{first}`: take this step on one device.")
    if isinstance(log, ShardedLog):
        raise ValueError(f"`--{first}` does not work with --data shards:FOLDER: read the new events and their history as a log.")
    weight = {} if args.forgetting is None else {"forgetting": args.forgetting}
    penalty = None if args.penalty is None else training.FisherPenalty(**weight)
    window = {} if args.effects_window is None else {"window": args.effects_window}
    effects = None if args.refresh_effects is None else training.RefreshEffects(every=args.refresh_effects, **window)
    model, report = training.daily_step(
        log,
        args.resume,
        new,
        args.out,
        epochs=1 if args.epochs is None else args.epochs,
        penalty=penalty,
        effects=effects,
        explore=args.explore,
        seed=args.seed,
        verbose=not args.quiet,
        callbacks=callbacks,
        on_error=args.on_error or "raise",
        learning_rate=args.learning_rate,
    )
    if args.export:
        report["version"] = _exported(args, model, log, new)
        (Path(args.out) / "daily.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _tell(args, report)
    return 0


def _exported(args: argparse.Namespace, model: Any, log: Any, new: np.ndarray) -> dict[str, Any]:
    """Export the model, with a check of skew on requests of the new events."""
    from keras_ranking import serving
    from keras_ranking.serving.exporting.server_configs import read_labels

    member = log.schema.member
    members = log.events[member].isin(log.events[member][new].unique()).to_numpy()
    kept = members & (new | log.events["split"].isin(["train", "history"]).to_numpy())
    with step("exporting, and checking the written graph and skew in a fresh process"):
        version = serving.export(model, args.export, events=log.events[kept], run=args.out)
    return {"number": int(version.name), "folder": str(version), "labels": read_labels(Path(args.export)).now}


def _cell(value: float | None) -> str:
    return "-" if finite(value) is None else f"{value:.4f}"


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> None:
    begin, end = report["span"]
    print(f"{report['new_events']:,} new events, {begin} to {end}, scored before they were learned:")
    rows = [[task, *(_cell(found.get(name)) for name in _METRICS)] for task, found in report["before"].items()]
    print(table(["task", *_METRICS], rows))
    if report["penalty"] is not None:
        first = ", and of the training before" if report["penalty"]["measured_first"] else ""
        print(f"Fisher penalty {report['penalty']['forgetting']:g}; measured on {report['penalty']['samples']:,} new events{first}")
    if report["effects"] is not None:
        ids = ", ".join(f"{task} {count:,}" for task, count in report["effects"]["ids"].items())
        print(f"random effects {'fitted' if report['effects']['fitted'] else 'kept: their time has not come'} (ids: {ids})")
    if report["explored"] is not None:
        spread = ", ".join(f"{task} {value:.3f}" for task, value in report["explored"].items())
        print(f"exploration: standard deviation of a logit, mean: {spread}")
    if "version" in report:
        labels = ", ".join(f"{label} {number}" for label, number in sorted(report["version"]["labels"].items()))
        print(f"version {report['version']['number']} without skew; labels: {labels}")
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
    print(f"{seconds}\nmodel: {Path(args.out) / 'model.keras'}\nreport: {Path(args.out) / 'daily.json'}")
