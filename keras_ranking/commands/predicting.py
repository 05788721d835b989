"""`predict`: scores of rows without labels, from a file to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import read_rows, start_keras, step
from keras_ranking.commands.parsers import command, positive


def predict(args: argparse.Namespace) -> int:
    """Write the rows of a file with a column of scores for each task."""
    if not (Path(args.model_dir) / "model.keras").is_file():
        raise FileNotFoundError(f"no model at '{args.model_dir}': `keras-ranking train` writes such a folder")
    out = Path(args.out)
    write = {".parquet": "to_parquet", ".csv": "to_csv", ".gz": "to_csv"}.get(out.suffix)
    if write is None:
        raise ValueError(f"`--out` must end in .parquet, .csv or .csv.gz. Received: {args.out}")
    with step(f"reading {args.rows}"):
        rows = read_rows(args.rows)
    history = None
    if args.history is not None:
        with step(f"reading {args.history}"):
            history = read_rows(args.history)
    start_keras(args)
    from keras_ranking import training

    with step("scoring"):
        scores = training.predict(
            args.model_dir, rows, history, max_history=args.max_history, on_error=args.on_error or "raise", round=args.round
        )
    scores = scores.add_prefix(args.prefix)
    if taken := [name for name in scores if name in rows]:
        raise ValueError(
            f"`--prefix` must make names that {args.rows} does not have. Received: --prefix {args.prefix!r}, column {taken[0]!r}"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    getattr(rows.join(scores), write)(out, index=False)
    print(f"{int(scores.notna().all(axis=1).sum()):,} of {len(rows):,} rows scored, columns {', '.join(map(str, scores))}: {out}")
    return 0


def predict_parser(subparsers: Any) -> None:
    """Arguments of `predict`."""
    made = command(
        subparsers,
        "predict",
        predict,
        "score rows that have no labels, and write them with a column for each task",
        """\
ROWS need the columns of member, time, items and context; no label, action or position. Rows of one request are one list; without that
column, rows of one member at one time are. Past events come from --history, or from those of ROWS that have their actions. The scores are
those of the exported model. Rows keep their order and their columns.

examples:
  keras-ranking predict runs/mine tomorrow.parquet --history log.parquet --out scores.parquet
  keras-ranking predict runs/mine log_with_open_rows.parquet --out scores.parquet --on-error drop
""",
        keras=True,
    )
    made.add_argument("model_dir", metavar="MODEL_DIR", help="folder that `train` wrote")
    made.add_argument("rows", metavar="ROWS", help="rows to score: .parquet, .csv, .csv.gz or .json")
    made.add_argument("--history", metavar="FILE", help="past events with their actions, likewise (default: those of ROWS)")
    made.add_argument("--out", required=True, metavar="FILE", help="file to write: .parquet, .csv or .csv.gz")
    made.add_argument("--prefix", default="predicted_", metavar="TEXT", help="of the columns of scores (default: predicted_)")
    made.add_argument("--max-history", type=positive, metavar="N", help="most events of a history (default: as many as the model reads)")
    made.add_argument("--round", choices=["floor", "ceil", "nearest"], help="how times with a fraction of a second are rounded")
    text = "bad rows: stop (default), or give them no score and report them on stderr"
    made.add_argument("--on-error", choices=["raise", "drop"], help=text)


PREDICT_PARSERS = (predict_parser,)
