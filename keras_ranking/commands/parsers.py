"""The arguments and help texts of each command, one function a command."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import shutil
from collections.abc import Callable
from typing import Any

from keras_ranking.commands import exports, learning, scoring
from keras_ranking.commands.daily import daily_arguments
from keras_ranking.commands.recipe_arguments import recipe_arguments, tracking_arguments, utility_argument

BACKENDS = ("tensorflow", "jax", "torch")
DATA_HELP = """\
source of the log:
  simulated             the simulator of this package; the log depends on --seed
  ebnerd:FOLDER         EB-NeRD, the published folders or ebnerd_*.csv.gz
  kuairand:FOLDER       KuaiRand
  movielens:FOLDER      MovieLens
  retail:FOLDER         Online Retail, which of a customer's earlier items are bought again
  parquet:FILE          your log, with --schema FILE: one row per impression; `split` is train, validation, test or history
                        (without this column the last fifth of the requests by time is validation)
  shards:FOLDER         a log of any size, which `keras-ranking prepare` has written

--holdout-members SHARE: members who are never trained on, chosen by a hash of the member. Their rows to train on are history, their later
rows are the split new_members. Give train and evaluate the same share.
"""


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(120, max(80, shutil.get_terminal_size((120, 24)).columns)))


def setting(text: str) -> tuple[str, Any]:
    """`name=value` -> (name, value); the value is read as JSON, then as a Python literal, then as text."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE. Received: {text!r}")
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return name, read(value)
    return name, value


def positive(text: str) -> int:
    """A positive integer.

    Raises:
        ArgumentTypeError: anything else.
    """
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text!r}")
    return number


def count(text: str) -> int:
    """A whole number, at least 0, or ArgumentTypeError."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 0. Received: {text!r}")
    return int(text)


def port(text: str) -> int:
    """A port, or ArgumentTypeError."""
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535 (0 = any free one). Received: {text!r}")
    return number


def seed(text: str) -> int:
    """A seed, or ArgumentTypeError."""
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**32 - 1. Received: {text!r}")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be a share above 0 and below 1, such as 0.25. Received: {text!r}")
    return share


def command(
    subparsers: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    text: str,
    *,
    keras: bool = False,
) -> argparse.ArgumentParser:
    """The parser of one command, with the arguments that all commands have."""
    description = f"{summary[0].upper()}{summary[1:]}."
    made: argparse.ArgumentParser = subparsers.add_parser(name, help=summary, formatter_class=Help, description=description, epilog=text)
    made.set_defaults(run=run)
    made.add_argument("--debug", action="store_true", help="show the traceback of an error, and all log lines of TensorFlow")
    if keras:
        made.add_argument("--backend", choices=BACKENDS, help="Keras backend (default: the environment variable KERAS_BACKEND)")
    return made


def data_arguments(made: argparse.ArgumentParser, schema: str, required: bool = True) -> None:
    """Arguments that choose a log."""
    sources = "simulated, ebnerd:FOLDER, kuairand:FOLDER, movielens:FOLDER, retail:FOLDER, parquet:FILE or shards:FOLDER (see below)"
    made.add_argument("--data", required=required, metavar="SOURCE", help=sources)
    made.add_argument("--schema", metavar="FILE", help=schema)
    made.add_argument("--release", metavar="NAME", help="which release of kuairand: or movielens: to read, where the folder has several")
    made.add_argument("--holdout-members", type=_share, metavar="SHARE", help="share of the members never trained on (default: none)")
    made.add_argument("--holdout-seed", type=seed, metavar="N", help="another seed holds out other members (default: 0)")
    made.add_argument("--round", choices=["floor", "ceil", "nearest"], help="how times with a fraction of a second are rounded")
    made.add_argument(
        "--on-error", choices=["raise", "drop"], help="rows with bad values: stop (default), or leave them out and report them on stderr"
    )


def setting_arguments(made: argparse.ArgumentParser, text: str) -> None:
    """`--set`."""
    made.add_argument("--set", type=setting, action="append", default=[], metavar="NAME=VALUE", help=text)


def server_arguments(made: argparse.ArgumentParser) -> None:
    """The server that a command calls."""
    made.add_argument("--name", default="cadet", metavar="NAME", help="with --server: the served model's name (default: cadet)")
    which = made.add_mutually_exclusive_group()
    which.add_argument("--version", type=positive, metavar="N", help="with --server: this version (default: the server's)")
    which.add_argument("--label", metavar="NAME", help="with --server: the version with this label, such as canary")
    made.add_argument("--token-file", metavar="FILE", help="with --server: its token (default: KERAS_RANKING_TOKEN, or none)")
    made.add_argument("--tls-ca", metavar="FILE", help="with --server: TLS, with the authority that signed its certificate")


def simulate_parser(subparsers: Any) -> None:
    """Arguments of `simulate`."""
    made = command(
        subparsers,
        "simulate",
        learning.simulate,
        "write a simulated feed log with planted taste, recency, position bias and late feedback",
        """\
writes the log (one row per impression, with its `split`) and its schema, ready for --data parquet:FILE --schema FILE.
The same arguments give the same log.

example:
  keras-ranking simulate --out runs/log.parquet --members 2000 --days 14 --set random_share=0.2
""",
    )
    made.add_argument("--out", required=True, metavar="FILE", help="log to write: .parquet (needs the extra `data`), .csv or .csv.gz")
    made.add_argument("--schema", metavar="FILE", help="schema to write (default: NAME.schema.json in the folder of the log)")
    made.add_argument("--members", type=positive, default=1200, metavar="N", help="members (default: 1200)")
    made.add_argument("--days", type=positive, default=14, metavar="N", help="days (default: 14)")
    made.add_argument("--seed", type=seed, default=0, metavar="N", help="seed of the random numbers (default: 0)")
    setting_arguments(made, "any other argument of keras_ranking.data.simulate")


def train_parser(subparsers: Any) -> None:
    """Arguments of `train`."""
    made = command(
        subparsers,
        "train",
        learning.train,
        "train a ranker on the `train` rows of a log",
        f"""\
{DATA_HELP}
writes DIR/model.keras, DIR/schema.json (with constants fitted on the training rows), DIR/history.json (losses by epoch, seconds,
counts, options) and DIR/checkpoint.npz (with the optimiser's state), each file atomically. Columns that the schema states as `count` are
counted from the log, and their state is written to DIR/counts.

--resume DIR continues the training in DIR, with its model and options:
  a training that was stopped by Ctrl-C, or that crashed (with --checkpoint-every), reaches the weights of an uninterrupted one; the
  log must be the same
  a finished training takes the daily step with --new-events, into --out: rows with split train and history are read (all rows of a
  log without split), the loss is on the new events alone, at the learning rate at which the training ended (after the schedules
  cosine and onecycle a hundredth of the highest; --learning-rate is another one), with its optimiser's state; the options of the daily
  step add a penalty, effects, exploration and the export, and DIR/daily.json, a report

--from DIR trains the model in DIR on another log: its trunk is kept, and heads are made for the tasks of that log. --set has the options
of keras_ranking.training.Transfer too: --set 'columns={{"clip_id": "item_id"}}' names a column of the log and the one it is read as.

examples:
  keras-ranking train --data simulated --out runs/cadet
  keras-ranking train --data ebnerd:data/ebnerd --out runs/ebnerd --seed 1 --epochs 2 --set row_length=1024
  keras-ranking train --model lirank --preset feed --data ebnerd:data/ebnerd --out runs/lirank
  keras-ranking train --data parquet:log.parquet --schema log.schema.json --out runs/mine --backend jax
  keras-ranking train --data simulated --out runs/short --epochs 20 --validation last_day --early-stopping 2
  keras-ranking train --data simulated --out runs/long --checkpoint-every 500
  keras-ranking train --data simulated --resume runs/long
  keras-ranking train --from-study runs/study --out runs/tuned
  keras-ranking train --from runs/feed --tasks like --data parquet:clips.parquet --schema clips.json --out runs/clips --compare validation
  keras-ranking train --data parquet:log.parquet --resume runs/mine --new-events 2026-01-09 --out runs/day9
  keras-ranking train --data parquet:log.parquet --resume runs/mine --new-events parquet:day9.parquet --out runs/day9
  keras-ranking train --data parquet:log.parquet --resume runs/day8 --new-events 2026-01-09 --out runs/day9 --penalty fisher --explore
  torchrun --nproc-per-node=2 -m keras_ranking.cli train --data simulated --out runs/two --backend torch --distribution data
""",
        keras=True,
    )
    made.add_argument("--model", metavar="NAME", help="architecture: cadet, lirank, amortized, ligr or feedsr (default: cadet)")
    made.add_argument("--preset", metavar="NAME", help="paper; with --model lirank also feed, ads or jobs (default: feed)")
    help_of_schema = "schema of a parquet log, as JSON (with --resume: default that of the training); replaces that of another source"
    data_arguments(made, help_of_schema, required=False)
    made.add_argument("--from-study", metavar="DIR", help="train the chosen setting of a study that `tune` made, on all training rows")
    made.add_argument("--out", metavar="DIR", help="folder to write; files of an earlier run in it are replaced")
    made.add_argument(
        "--seed", type=seed, metavar="N", help="seed of weights, shuffling, simulator (default: 0; a daily step has another default)"
    )
    made.add_argument(
        "--epochs", type=count, metavar="N", help="passes over the log (default: the model's; with --new-events 1, and 0 trains nothing)"
    )
    made.add_argument("--batch-size", type=positive, metavar="N", help="packed rows per step (default: the model's)")
    made.add_argument("--checkpoint-every", type=positive, metavar="N", help="number of steps between checkpoints, for --resume")
    made.add_argument("--resume", metavar="DIR", help="continue the training in DIR (see below)")
    made.add_argument(
        "--new-events",
        metavar="WHEN",
        help="with --resume: first day of the new rows (YYYY-MM-DD, or with a time; UTC), or a SOURCE of new rows",
    )
    setting_arguments(made, "any other option of training or of the model; an unknown name lists them all")
    made.add_argument("--quiet", action="store_true", help="no progress bar")
    recipe_arguments(made)
    daily_arguments(made)
    tracking_arguments(made)


def evaluate_parser(subparsers: Any) -> None:
    """Arguments of `evaluate`."""
    made = command(
        subparsers,
        "evaluate",
        learning.evaluate,
        "compute metrics of a trained model on one split of a log",
        f"""\
{DATA_HELP}
metrics per task: auc, impression_auc (mean over requests), ndcg_at_10, mrr, log_loss, normalized_entropy, calibration_error,
observed_over_expected. Every event is scored from earlier data only.

examples:
  keras-ranking evaluate runs/ebnerd --data ebnerd:data/ebnerd --split validation --json runs/ebnerd/validation.json
  keras-ranking evaluate runs/new --data ebnerd:data/ebnerd --holdout-members 0.25 --split new_members
""",
        keras=True,
    )
    made.add_argument("model_dir", metavar="MODEL_DIR", help="folder that `train` wrote")
    data_arguments(made, "schema of a parquet log, as JSON (default: that of the model); replaces that of another source")
    made.add_argument("--split", default="validation", metavar="NAME", help="rows of the metrics (default: validation)")
    made.add_argument("--seed", type=seed, metavar="N", help="seed of the simulator (default: that of `train`)")
    made.add_argument("--json", metavar="FILE", help="also write {task: {metric: number}} to FILE; null if undefined")


def export_parser(subparsers: Any) -> None:
    """Arguments of `export`."""
    made = command(
        subparsers,
        "export",
        exports.export,
        "write a trained model as the next version of a served model",
        """\
writes FOLDER/N, with N one above the highest version: a SavedModel for TensorFlow Serving or `keras-ranking serve`, atomically, after
its scores were compared with those of Keras in a fresh process; and FOLDER/tf_serving with configs and flags of the server. Without
--xla or --through jax it is a plain graph that runs with default flags. Needs the extra `serving`; any backend may have trained the
model.

example:
  keras-ranking export runs/cadet --out saved_models/cadet
  keras-ranking export runs/cadet --out saved_models/cadet --precision bfloat16 --events log.parquet
  keras-ranking export runs/cadet --out saved_models/cadet_xla --xla --history-buckets 128 512 --candidate-buckets 64
  keras-ranking export runs/lirank --out saved_models/lirank --quantize int8 --utility click=1,like=4
""",
        keras=True,
    )
    made.add_argument("model_dir", metavar="MODEL_DIR", help="folder that `train` wrote")
    made.add_argument("--out", required=True, metavar="FOLDER", help="the served model, with numbered folders as versions")
    made.add_argument("--quantize", choices=["int8"], help="embedding tables in int8, about 0.3 of the size")
    text = "data type of matrix products (default: float32)"
    made.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help=text)
    made.add_argument("--xla", action="store_true", help="compile attention and trunk for fixed lengths; the server needs flags")
    text = "backend that compiles the graph (default: tensorflow)"
    made.add_argument("--through", choices=["tensorflow", "jax"], default="tensorflow", help=text)
    lengths: dict[str, Any] = {"type": positive, "nargs": "+", "metavar": "N"}
    made.add_argument("--history-buckets", **lengths, help="with --xla or --through jax: history lengths (default: 128 512 1024)")
    made.add_argument("--candidate-buckets", **lengths, help="likewise: candidate counts (default: 64 512)")
    made.add_argument(
        "--server-batching", choices=["equal_lengths", "padded"], help="turn on batching in the flags of TensorFlow Serving (default: off)"
    )
    made.add_argument("--events", metavar="FILE", help="a log to check skew with: .parquet, .csv, .csv.gz or .json")
    utility_argument(made, "that of the model")
    made.add_argument("--no-verify", action="store_true", help="do not compare scores of the written graph with Keras")


def score_parser(subparsers: Any) -> None:
    """Arguments of `score`."""
    made = command(
        subparsers,
        "score",
        scoring.score,
        "score the candidates of one request and print them ranked",
        """\
REQUEST is JSON with values of the log (not encoded), oldest event first:
  {"time": 1767300000,
   "history": [{"item_id": 17, "time": 1767290000, "click": 1, ...}, ...],
   "candidates": [{"item_id": 42, ...}, ...]}
`time` is in Unix seconds. A candidate has the item and context columns of the schema, a history event the actions and its time
as well. --history, --candidates and --time take the same rows as tables. Counts that the candidates lack are read from the folder of
--model or --schema, at a time that is not before the newest row of the log; "member": 17 in REQUEST names the member for them.

examples:
  keras-ranking score request.json --model runs/cadet
  keras-ranking score request.json --server 127.0.0.1:8500 --name cadet --schema runs/cadet/schema.json
  keras-ranking score request.json --server 127.0.0.1:8500 --name cadet --schema runs/cadet/schema.json --label canary
  keras-ranking score --candidates candidates.csv --history history.csv --time 1767300000 --model runs/cadet
""",
        keras=True,
    )
    made.add_argument("request", nargs="?", metavar="REQUEST", help="JSON file, or - for stdin")
    made.add_argument("--history", metavar="FILE", help="history rows: .parquet, .csv, .csv.gz or .json")
    made.add_argument("--candidates", metavar="FILE", help="candidate rows, likewise")
    made.add_argument("--time", type=int, metavar="SECONDS", help="request time, Unix seconds")
    where = made.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", metavar="DIR", help="folder that `train` wrote: score in this process")
    where.add_argument("--server", metavar="ADDRESS", help="HOST:PORT of a gRPC server, or http://HOST:PORT of a REST server")
    made.add_argument("--schema", metavar="FILE", help="with --server: the schema.json that training wrote")
    made.add_argument("--signature", default="serving_default", metavar="NAME", help="with --server: serving_default or raw")
    server_arguments(made)
    made.add_argument("--task", metavar="NAME", help="task to rank by, or score (default: score, or the first task)")
    made.add_argument("--top", type=positive, metavar="N", help="print only the first N")
    made.add_argument("--json", action="store_true", help="print JSON")


PARSERS = (simulate_parser, train_parser, evaluate_parser, export_parser, score_parser)
