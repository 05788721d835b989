"""The arguments and help text of `tune`."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from keras_ranking.commands import tuning
from keras_ranking.commands.parsers import DATA_HELP, command, data_arguments, port, positive, seed, setting_arguments


def _confirm(text: str) -> tuple[int, int]:
    best, cross, seeds = text.partition("x")
    with contextlib.suppress(ValueError):
        if cross and int(best) >= 1 and int(seeds) >= 2:
            return int(best), int(seeds)
    raise argparse.ArgumentTypeError(f"must be SETTINGSxSEEDS with at least two seeds, such as 5x3. Received: {text!r}")


def _slot(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    raise argparse.ArgumentTypeError(f"must be the number of a trial. Received: {text!r}")


def _rows(text: str) -> Any:
    with contextlib.suppress(ValueError):
        return float(text)
    return text


def tune_parser(subparsers: Any) -> None:
    """Arguments of `tune`."""
    made = command(
        subparsers,
        "tune",
        tuning.tune,
        "find options of a ranker: many trainings, judged on held-out training rows",
        f"""\
{DATA_HELP}
needs the extra `tune`. Writes DIR/study.json, DIR/study.db (what was tried and found), DIR/trials (checkpoints) and DIR/report.txt, .json
and .html. A space is a JSON file of options of training and of the model:

  {{"learning_rate": {{"type": "float", "low": 0.0005, "high": 0.02, "log": true}},
   "num_layers": {{"type": "int", "low": 1, "high": 4}}, "layout": ["value", "interleaved"]}}

every trial is judged on the last training rows, never on other splits. A worker that dies is replaced, and its trial goes on from its
checkpoint; a trial that fails ends no study. On several machines give each the same --storage URL, or set KERAS_RANKING_STORAGE; a URL with
a password is not written to the folder.

examples:
  keras-ranking tune --model cadet --data simulated --out runs/study --trials 40 --workers 2 --confirm 5x3
  keras-ranking tune --model lirank --data ebnerd:data/ebnerd --space space.json --out runs/study --sampler random
  keras-ranking tune --join runs/study
  keras-ranking tune --study runs/study --list
  keras-ranking tune --study runs/study --cancel 7
  keras-ranking tune --study runs/study --dashboard 8080
  keras-ranking train --from-study runs/study --out runs/tuned
""",
        keras=True,
    )
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", metavar="DIR", help="make a study in this folder, and run it")
    where.add_argument("--join", metavar="DIR", help="more workers for the study in DIR, here or, with --storage, on another machine")
    where.add_argument("--study", metavar="DIR", help="look at the study in DIR, or cancel one of its trials")

    of_new = made.add_argument_group("with --out")
    of_new.add_argument("--model", metavar="NAME", help="architecture: cadet, lirank, amortized, ligr or feedsr (default: cadet)")
    data_arguments(made, "schema of a parquet log, as JSON; replaces that of another source", required=False)
    of_new.add_argument("--space", metavar="FILE", help="what is varied, as JSON (default: a space of the model)")
    of_new.add_argument("--sampler", metavar="NAME", help="tpe, random, gp, gp-noisy, cmaes or grid (default: tpe)")
    of_new.add_argument("--pruner", metavar="NAME", help="none, median or hyperband (default: none)")
    of_new.add_argument("--seeds", type=positive, metavar="N", help="runs of each setting (default: 1)")
    text = "log_loss, normalized_entropy, auc or impression_auc, or of one task, such as click_log_loss (default: log_loss)"
    of_new.add_argument("--metric", metavar="NAME", help=text)
    text = "training rows that judge: last_day, or a share such as 0.1 (default: last_day)"
    of_new.add_argument("--validation", type=_rows, metavar="ROWS", help=text)
    of_new.add_argument("--seed", type=seed, metavar="N", help="seed of the search, the trainings and the simulator (default: 0)")
    of_new.add_argument("--heartbeat", type=positive, metavar="S", help="seconds between signs of life of a worker (default: 10)")
    of_new.add_argument("--checkpoint-every", type=positive, metavar="N", help="steps between checkpoints (default: after each epoch)")
    of_new.add_argument("--keep", choices=["best", "all"], help="weights of the best trial alone stay, or all (default: best)")
    setting_arguments(of_new, "an option of training or of the model that all trials have")  # type: ignore[arg-type]

    running = made.add_argument_group("with --out and --join")
    running.add_argument("--trials", type=positive, metavar="N", help="number of settings (default: 40; with --join as it was)")
    running.add_argument("--workers", type=positive, default=1, metavar="N", help="processes on this machine (default: 1)")
    running.add_argument("--confirm", type=_confirm, metavar="5x3", help="then run the best settings with fresh seeds, and report on these")
    running.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)

    looking = made.add_argument_group("with --study")
    looking.add_argument("--list", action="store_true", help="print the trials")
    looking.add_argument("--best", action="store_true", help="print the chosen setting")
    looking.add_argument("--report", action="store_true", help="print the report, and write it to DIR")
    looking.add_argument("--cancel", type=_slot, metavar="TRIAL", help="end a waiting or running trial; its worker goes on with another")
    looking.add_argument("--json", action="store_true", help="print JSON")

    common = made.add_argument_group("always")
    text = "Optuna's dashboard on 127.0.0.1 (default: 8080; 0: any free port): trials as they run, with a button that fails one"
    common.add_argument("--dashboard", type=port, nargs="?", const=8080, metavar="PORT", help=text)
    common.add_argument("--storage", metavar="URL", help="database of the study (default: SQLite in its folder)")
    common.add_argument("--name", metavar="NAME", help="of the study in the database (default: that of the folder)")


TUNE_PARSERS = (tune_parser,)
