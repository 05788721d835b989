"""`report`: the page of one run, or of several side by side."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import open_log_of, start_keras, step
from keras_ranking.commands.parsers import DATA_HELP, command, data_arguments, positive, seed


def report(args: argparse.Namespace) -> int:
    """Measure, write the page, print the metrics."""
    for run in args.runs:
        if not (Path(run) / "model.keras").is_file():
            raise FileNotFoundError(f"no model at '{run}': `keras-ranking train` writes such a folder")
    if Path(args.out).suffix not in (".html", ".htm"):
        raise ValueError(f"`--out` must end in .html. Received: {args.out}")
    if args.data.startswith("shards:"):
        raise ValueError(f"`--data` must be a log in memory: `evaluate` measures shards. Received: {args.data}")
    log = open_log_of(args, _log_seed(Path(args.runs[0])), folder=args.runs[0])
    log.is_split(args.split)
    start_keras(args)
    if args.mlflow:
        from keras_ranking.training.tracking.mlflow import client_of

        client_of(args.mlflow)  # before the work, if it is not installed
    from keras_ranking import reports
    from keras_ranking.reports.report import write_json

    groups: dict[str, tuple[str, ...]] | None = dict(args.group) or None
    settings = {name: getattr(args, name) for name in ("max_rows", "sample", "seed") if getattr(args, name) is not None}
    options = reports.ReportOptions(groups=groups, segments=args.segment or None, **settings)
    with step("measuring"):
        found = reports.report_of(args.runs, log, args.split, options, on_error=args.on_error or "raise")
    with step(f"writing {args.out}"):
        file = found.save(args.out)
        if args.json:
            write_json(found, Path(args.json))
        if args.tensorboard:
            found.to_tensorboard(args.tensorboard)
        if args.mlflow:
            found.to_mlflow(args.mlflow)
    print(found.text())
    print(f"\nreport: {file}")
    return 0


def _log_seed(folder: Path) -> int:
    """The seed of the simulator that the run has read."""
    try:
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        return int(history.get("log_seed", history["seed"]))
    except (OSError, ValueError, KeyError):
        return 0


def _group(text: str) -> tuple[str, tuple[str, ...]]:
    name, separator, columns = text.partition("=")
    if not name or not separator or not all(columns.split(",")):
        raise argparse.ArgumentTypeError(f"must be NAME=COLUMN,COLUMN. Received: {text!r}")
    return name, tuple(columns.split(","))


def report_parser(subparsers: Any) -> None:
    """Arguments of `report`."""
    made = command(
        subparsers,
        "report",
        report,
        "write a page about one run, or about several side by side",
        f"""\
{DATA_HELP}
one HTML file that loads nothing from elsewhere: training curves; metrics with bootstrap intervals, and paired differences to the first
RUN; reliability, scores, labels by position; metrics by segment; importance of features; attention over time; splits, columns and their
drift; cost. Needs the extra `plots`.

examples:
  keras-ranking report runs/cadet --data simulated --out report.html
  keras-ranking report runs/ligr runs/cadet --data ebnerd:data/ebnerd --out report.html --segment device --segment subscriber
  keras-ranking report runs/mine --data parquet:log.parquet --split test --out report.html --group counts=views_1h,views_24h
  keras-ranking report runs/mine --data parquet:log.parquet --out report.html --tensorboard boards/mine
""",
        keras=True,
    )
    made.add_argument("runs", nargs="+", metavar="RUN", help="folders that `train` wrote; the others are compared with the first")
    data_arguments(made, "schema of a parquet log, as JSON (default: that of the first RUN); replaces that of another source")
    made.add_argument("--out", required=True, metavar="FILE", help="page to write: .html")
    made.add_argument("--split", default="validation", metavar="NAME", help="rows to score (default: validation)")
    made.add_argument("--segment", action="append", metavar="COLUMN", help="column of the log to measure by (default: some of the schema)")
    made.add_argument(
        "--group", action="append", type=_group, default=[], metavar="NAME=COL,COL", help="columns exchanged together (default: by name)"
    )
    made.add_argument("--sample", type=positive, metavar="N", help="requests for importance and attention (default: 200)")
    made.add_argument("--max-rows", type=positive, metavar="N", help="of more rows, those of drawn members are scored (default: 100000)")
    made.add_argument("--seed", type=seed, metavar="N", help="seed of draws and exchanges (default: 0)")
    made.add_argument("--json", metavar="FILE", help="also write the numbers to FILE")
    made.add_argument("--tensorboard", metavar="DIR", help="also write metrics and figures for `tensorboard --logdir DIR`")
    text = "also log metrics, figures and the page as a run of MLflow: http://HOST:PORT or sqlite:///FILE (the extra mlflow)"
    made.add_argument("--mlflow", metavar="URI", help=text)


REPORT_PARSERS = (report_parser,)
