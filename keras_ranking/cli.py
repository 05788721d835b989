"""`keras-ranking simulate | train | evaluate | export | skew | serve | score`: the road from a log to a served score, in a shell.

Exit codes: 0 done; 1 it failed (a server that cannot be reached, an export that does not give the Keras scores, a full
disk); 2 wrong usage or bad input; 130 stopped by Ctrl-C. Errors are one line on stderr; `--debug` shows where they came
from. Results go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from keras_ranking import __version__, commands

BACKENDS = ("tensorflow", "jax", "torch")
_DATA_HELP = """\
where the log comes from:
  simulated             the package's own simulator; the log depends on --seed
  ebnerd:FOLDER         EB-NeRD, the published folders or ebnerd_*.csv.gz
  kuairand:FOLDER       KuaiRand
  movielens:FOLDER      MovieLens
  parquet:FILE          your own, with --schema FILE: one row per impression; `split` says train, validation, test or history
                        (without that column the last fifth of the requests by time is validation)
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of the examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=min(120, max(80, shutil.get_terminal_size((120, 24)).columns)))


def _setting(text: str) -> tuple[str, Any]:
    """`name=value` -> (name, value); the value is read as JSON, then as a Python literal, then as text."""
    name, separator, value = text.partition("=")
    if not separator or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE. Received: {text!r}")
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError):
            return name, read(value)
    return name, value


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer. Received: {text!r}")
    return number


def _port(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port, 0 to 65535 (0 = any free one). Received: {text!r}")
    return number


def _seed(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not 0 <= number < 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2**32 - 1. Received: {text!r}")
    return number


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; `--help` of each command says what it takes, writes and needs."""
    parser = argparse.ArgumentParser(
        prog="keras-ranking",
        formatter_class=_Help,
        description="From an event log to a served ranking: LinkedIn-class rankers in Keras 3.",
        epilog="""\
the whole road, on simulated logs:
  keras-ranking train --model cadet --data simulated --out runs/cadet
  keras-ranking evaluate runs/cadet --data simulated --split validation
  keras-ranking export runs/cadet --out saved_models/cadet
  keras-ranking serve saved_models/cadet
  keras-ranking score request.json --server 127.0.0.1:8500 --name cadet --schema runs/cadet/schema.json

exit codes: 0 done, 1 failed, 2 wrong usage or bad input, 130 stopped
""",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(
        name: str, run: Callable[[argparse.Namespace], int], summary: str, text: str, *, keras: bool = False
    ) -> argparse.ArgumentParser:
        description = f"{summary[0].upper()}{summary[1:]}."
        made = subparsers.add_parser(name, help=summary, formatter_class=_Help, description=description, epilog=text)
        made.set_defaults(run=run)
        made.add_argument("--debug", action="store_true", help="show the traceback of an error, and everything that TensorFlow logs")
        if keras:
            made.add_argument("--backend", choices=BACKENDS, help="Keras backend (default: the environment variable KERAS_BACKEND)")
        return made

    def data_arguments(made: argparse.ArgumentParser) -> None:
        sources = "simulated, ebnerd:FOLDER, kuairand:FOLDER, movielens:FOLDER or parquet:FILE (see below)"
        made.add_argument("--data", required=True, metavar="SOURCE", help=sources)
        made.add_argument("--schema", metavar="FILE", help="schema of a parquet log, as JSON; replaces that of another source")

    def setting(made: argparse.ArgumentParser, text: str) -> None:
        made.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help=text)

    made = command(
        "simulate",
        commands.simulate,
        "write a simulated feed log, with planted taste, recency, position bias and late feedback",
        """\
writes the log (one row per impression, with its `split`) and its schema, ready for --data parquet:FILE --schema FILE.
The same arguments give the same log.

example:
  keras-ranking simulate --out runs/log.parquet --members 2000 --days 14 --set random_share=0.2
""",
    )
    made.add_argument("--out", required=True, metavar="FILE", help="log to write: .parquet (needs the extra `data`), .csv or .csv.gz")
    made.add_argument("--schema", metavar="FILE", help="schema to write (default: beside the log, NAME.schema.json)")
    made.add_argument("--members", type=_positive, default=1200, metavar="N", help="members (default: 1200)")
    made.add_argument("--days", type=_positive, default=14, metavar="N", help="days (default: 14)")
    made.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the random numbers (default: 0)")
    setting(made, "any other argument of keras_ranking.data.simulate")

    made = command(
        "train",
        commands.train,
        "train a ranker on the `train` rows of a log",
        f"""\
{_DATA_HELP}
writes DIR/model.keras, DIR/schema.json (with the constants fitted on the training rows), DIR/history.json (losses by
epoch, seconds, counts, options) and DIR/checkpoint.npz (the optimiser's state as well), each file whole or not at all.

--resume DIR goes on with what was begun in DIR, with the model and options of that run:
  a training that was stopped (it had --checkpoint-every) reaches the weights it would have reached; the log must be the same
  a finished one takes the daily step with --new-events, into --out: rows of split train and history are read (all, where the log
  has no split), the loss is on the new events alone,
  at the learning rate at which the training ended, with its optimiser's state

examples:
  keras-ranking train --data simulated --out runs/cadet
  keras-ranking train --data ebnerd:data/ebnerd --out runs/ebnerd --seed 1 --epochs 2 --set row_length=1024
  keras-ranking train --model lirank --preset feed --data ebnerd:data/ebnerd --out runs/lirank
  keras-ranking train --data parquet:log.parquet --schema log.schema.json --out runs/mine --backend jax
  keras-ranking train --data simulated --out runs/long --checkpoint-every 500
  keras-ranking train --data simulated --resume runs/long
  keras-ranking train --data parquet:log.parquet --resume runs/mine --new-events 2026-01-09 --out runs/day9
  keras-ranking train --data parquet:log.parquet --resume runs/mine --new-events parquet:day9.parquet --out runs/day9
""",
        keras=True,
    )
    made.add_argument("--model", metavar="NAME", help="architecture: cadet, lirank, amortized, ligr or feedsr (default: cadet)")
    made.add_argument("--preset", metavar="NAME", help="with --model lirank: feed, ads or jobs (default: feed)")
    data_arguments(made)
    made.add_argument("--out", metavar="DIR", help="folder to write; files of an earlier run in it are replaced")
    made.add_argument("--seed", type=_seed, metavar="N", help="of weights, shuffling, simulator (default: 0; of a daily step: its own)")
    made.add_argument("--epochs", type=_positive, metavar="N", help="passes over the log (default: the model's; with --new-events 1)")
    made.add_argument("--batch-size", type=_positive, metavar="N", help="packed rows a step (default: the model's)")
    made.add_argument("--checkpoint-every", type=_positive, metavar="N", help="steps after which the state is written, for --resume")
    made.add_argument("--resume", metavar="DIR", help="go on with the training in DIR (see below)")
    made.add_argument(
        "--new-events",
        metavar="WHEN",
        help="with --resume: the day (YYYY-MM-DD, or with a time; UTC) from which on rows are new, or a SOURCE of new rows",
    )
    setting(made, "any other option of training or of the model; an unknown name lists them all")
    made.add_argument("--quiet", action="store_true", help="no progress bar")

    made = command(
        "evaluate",
        commands.evaluate,
        "judge a trained model on one split of a log",
        f"""\
{_DATA_HELP}
figures per task: auc, impression_auc (mean over requests), ndcg_at_10, mrr, log_loss, normalized_entropy, calibration_error,
observed_over_expected. Every event is scored from what was known before it.

example:
  keras-ranking evaluate runs/ebnerd --data ebnerd:data/ebnerd --split validation --json runs/ebnerd/validation.json
""",
        keras=True,
    )
    made.add_argument("model_dir", metavar="MODEL_DIR", help="folder that `train` wrote")
    data_arguments(made)
    made.add_argument("--split", default="validation", metavar="NAME", help="rows to judge on (default: validation)")
    made.add_argument("--seed", type=_seed, metavar="N", help="of the simulator (default: the seed that `train` had)")
    made.add_argument("--json", metavar="FILE", help="write {task: {figure: number}} here as well; null where the rows define none")

    made = command(
        "export",
        commands.export,
        "write a trained model as the next version of a served model",
        """\
writes FOLDER/N, N one above the highest there: a SavedModel for TensorFlow Serving or `keras-ranking serve`, whole or not at all,
checked in a fresh process against the Keras scores; in FOLDER/tf_serving the server's configs and flags. Without --xla or
--through jax it is a plain graph that runs with default flags. Needs the extra `serving`; the model may have been trained on any
backend.

example:
  keras-ranking export runs/cadet --out saved_models/cadet
  keras-ranking export runs/cadet --out saved_models/cadet --precision bfloat16 --events log.parquet
  keras-ranking export runs/cadet --out saved_models/cadet_xla --xla --history-buckets 128 512 --candidate-buckets 64
  keras-ranking export runs/lirank --out saved_models/lirank --quantize int8
""",
        keras=True,
    )
    made.add_argument("model_dir", metavar="MODEL_DIR", help="folder that `train` wrote")
    made.add_argument("--out", required=True, metavar="FOLDER", help="the served model; its versions are numbered folders in it")
    made.add_argument("--quantize", choices=["int8"], help="embedding tables in int8, about 0.3 of the size")
    made.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of matrix products (default: float32)")
    made.add_argument("--xla", action="store_true", help="compile attention and trunk for fixed lengths; the server needs flags")
    made.add_argument("--through", choices=["tensorflow", "jax"], default="tensorflow", help="who makes the graph (default: tensorflow)")
    lengths: dict[str, Any] = {"type": _positive, "nargs": "+", "metavar": "N"}
    made.add_argument("--history-buckets", **lengths, help="with --xla or --through jax: history lengths (default: 128 512 1024)")
    made.add_argument("--candidate-buckets", **lengths, help="likewise: candidate counts (default: 64 512)")
    made.add_argument("--events", metavar="FILE", help="a log, to check skew on: .parquet, .csv, .csv.gz or .json")
    made.add_argument("--no-verify", action="store_true", help="do not run the written graph against the Keras scores")

    made = command(
        "skew",
        commands.skew,
        "check an exported model for training-serving skew on logged requests",
        """\
replays requests of a log through the exported model (encoded and raw), the Keras model and the data pipeline, and prints the
differences by feature and by score with the worst request and row. Exit code 1 where there are any. Needs the extra `serving`.

example:
  keras-ranking skew --model saved_models/cadet --keras runs/cadet --events log.parquet
""",
        keras=True,
    )
    made.add_argument("--model", required=True, metavar="FOLDER", help="the served model, or one version of it")
    made.add_argument("--keras", required=True, metavar="DIR", help="folder that `train` wrote")
    made.add_argument("--events", required=True, metavar="FILE", help="log rows: .parquet, .csv, .csv.gz or .json")
    made.add_argument("--sample", type=_positive, default=64, metavar="N", help="requests to replay (default: 64)")
    made.add_argument("--bound", type=float, metavar="X", help="largest difference of a score (default: that of the export)")
    made.add_argument("--seed", type=_seed, default=0, metavar="N", help="of the sample (default: 0)")
    made.add_argument("--json", metavar="FILE", help="write the report here as well")

    made = command(
        "serve",
        commands.serve,
        "serve an exported model by REST and gRPC, with the protocol of TensorFlow Serving",
        """\
runs until Ctrl-C or SIGTERM; picks up new versions as they appear in FOLDER. It listens on this machine alone unless --host says
otherwise, and beyond it only with a token, with client certificates or with --insecure. The token is the content of --token-file, or
the environment variable KERAS_RANKING_TOKEN. Needs the extra `serving`.

examples:
  keras-ranking serve saved_models/cadet --rest-port 8501 --grpc-port 8500
  keras-ranking serve saved_models/cadet --host 0.0.0.0 --tls-cert chain.pem --tls-key key.pem --token-file token.txt --log-format json
""",
    )
    made.add_argument("folder", metavar="FOLDER", help="the served model, as `export` writes it")
    made.add_argument("--name", metavar="NAME", help="of the model in paths and messages (default: the folder's name)")
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    made.add_argument("--rest-port", type=_port, default=8501, metavar="PORT", help="default: 8501; 0 = any free port")
    made.add_argument("--grpc-port", type=_port, default=8500, metavar="PORT", help="default: 8500; 0 = any free port")
    made.add_argument("--threads", type=int, default=0, metavar="N", help="TensorFlow threads (default: 0, one a core)")
    made.add_argument("--label", action="append", type=_setting, default=[], metavar="NAME=VERSION", help="keep a version under a name")
    text = "bound of requests, such as queue=512; see keras_ranking.serving.Limits"
    made.add_argument("--limit", action="append", type=_setting, default=[], metavar="NAME=VALUE", help=text)
    made.add_argument("--token-file", metavar="FILE", help="calls must carry this token (default: KERAS_RANKING_TOKEN, or none)")
    made.add_argument("--tls-cert", metavar="FILE", help="certificate chain of both ports, PEM; with --tls-key")
    made.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    made.add_argument("--tls-client-ca", metavar="FILE", help="authority of the certificates that clients must show")
    made.add_argument("--insecure", action="store_true", help="listen beyond this machine without knowing who calls")
    made.add_argument("--notice-seconds", type=float, default=0.0, metavar="S", help="say so before stopping (default: 0)")
    made.add_argument("--drain-seconds", type=float, default=10.0, metavar="S", help="wait for calls under way (default: 10)")
    made.add_argument("--log-format", choices=["text", "json"], default="text", help="of the log lines on stderr (default: text)")
    made.add_argument("--log-calls", action="store_true", help="one line a call")

    made = command(
        "score",
        commands.score,
        "score the candidates of one request and print them ranked",
        """\
REQUEST is JSON, in the values of the log (not yet encoded), oldest event first:
  {"time": 1767300000,
   "history": [{"item_id": 17, "time": 1767290000, "click": 1, ...}, ...],
   "candidates": [{"item_id": 42, ...}, ...]}
`time` is in Unix seconds. A candidate has the item and context columns of the schema, a history event the actions and its time
as well. The same rows may come as tables: --history, --candidates and --time.

examples:
  keras-ranking score request.json --model runs/cadet
  keras-ranking score request.json --server 127.0.0.1:8500 --name cadet --schema runs/cadet/schema.json
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
    made.add_argument("--name", default="cadet", metavar="NAME", help="with --server: the served model's name (default: cadet)")
    made.add_argument("--schema", metavar="FILE", help="with --server: the schema.json that training wrote")
    made.add_argument("--signature", default="serving_default", metavar="NAME", help="with --server: serving_default or raw")
    made.add_argument("--token-file", metavar="FILE", help="with --server: its token (default: KERAS_RANKING_TOKEN, or none)")
    made.add_argument("--tls-ca", metavar="FILE", help="with --server: TLS, with the authority that signed its certificate")
    made.add_argument("--task", metavar="NAME", help="task to rank by (default: the schema's first)")
    made.add_argument("--top", type=_positive, metavar="N", help="print only the first N")
    made.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse itself exits with 2 on wrong usage)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "train" and not (args.out or args.resume):
        parser.error("train: one of the arguments --out and --resume is required")
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        code, message = _explain(error)
        print(f"keras-ranking {args.command}: {message}", file=sys.stderr)
        return code


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and one line for an error: 2 where the input was wrong, 1 where the work failed."""
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRA_OF.get(error.name or "")
        hint = f"; pip install 'keras-ranking[{extra}]'" + (", or choose another --backend" if extra in BACKENDS else "") if extra else ""
        return 1, f"{error}{'' if 'pip install' in str(error) else hint}"
    problems = getattr(error, "errors", None)
    if callable(problems) and isinstance(error, ValueError):  # pydantic: a list of problems, each with its place
        first = problems()[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
    else:
        text = str(error) or type(error).__name__
    line = " ".join(text.split())
    line = line if len(line) <= 800 else f"{line[:800]} ..."
    wrong_input = isinstance(error, (ValueError, TypeError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError))
    wrong_input |= getattr(error, "code", None) in ("INVALID_ARGUMENT", "NOT_FOUND")
    return (2 if wrong_input else 1), line


_EXTRA_OF = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch", "pyarrow": "data", "grpc": "serving", "aiohttp": "serving"}

if __name__ == "__main__":
    sys.exit(main())
