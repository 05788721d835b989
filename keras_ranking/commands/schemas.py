"""`schema`: a first schema of a log, with the reason of each guess."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from keras_ranking.commands.common import read_rows, step
from keras_ranking.commands.parsers import command


def schema(args: argparse.Namespace) -> int:
    """Guess, print the table, write the file."""
    from keras_ranking.schema import Schema
    from keras_ranking.schema_file import commented
    from keras_ranking.schema_inference import infer_columns

    out = Path(args.out)
    if out.exists() and not args.replace:
        raise FileExistsError(f"'{out}' exists: another --out, or --replace to write it anew")
    with step(f"reading {args.log}"):
        events = read_rows(args.log)
    stated = {name: getattr(args, name) for name in ("request", "session", "position", "item")}
    found = infer_columns(events, args.member, args.time, args.tasks, actions=args.actions, **stated)
    made = Schema(
        **found.roles, features=found.features, tasks=found.tasks, actions=tuple(args.actions), feedback_delay=args.feedback_delay
    )
    print(found.table())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(commented(made.model_dump(mode="json"), found.comments()), encoding="utf-8")
    print(f"written: {out}. Look at each line, then `--schema {out}` of `train`.", file=sys.stderr)
    return 0


def schema_parser(subparsers: Any) -> None:
    """Arguments of `schema`."""
    made = command(
        subparsers,
        "schema",
        schema,
        "guess a first schema of a log, with a reason for each column",
        """\
kinds are guessed from names, types and values of up to 200,000 rows; columns that tell a label alone (AUC above 0.95) are left out. The
file is JSON with a comment above each column; lines that begin with // are comments.

example:
  keras-ranking schema clicks.parquet --member user_id --time shown_at --tasks click --actions dwell_seconds --out schema.json
""",
    )
    made.add_argument("log", metavar="FILE", help="a .parquet, .csv, .csv.gz or .json file")
    made.add_argument("--member", required=True, metavar="COLUMN", help="the member's id")
    made.add_argument("--time", required=True, metavar="COLUMN", help="the time of the impression")
    made.add_argument("--tasks", required=True, nargs="+", metavar="COLUMN", help="labels to predict")
    made.add_argument("--actions", nargs="+", default=[], metavar="COLUMN", help="what the member did, read of past events only")
    for name, what in (
        ("request", "the request's id"),
        ("session", "the session's id"),
        ("position", "the rank shown"),
        ("item", "the item"),
    ):
        made.add_argument(f"--{name}", metavar="COLUMN", help=f"{what} (default: by its usual names)")
    made.add_argument("--feedback-delay", type=int, default=60, metavar="S", help="seconds until all actions are known (default: 60)")
    made.add_argument("--out", default="schema.json", metavar="FILE", help="the file to write (default: schema.json)")
    made.add_argument("--replace", action="store_true", help="write over a file that exists")


SCHEMA_PARSERS = (schema_parser,)
