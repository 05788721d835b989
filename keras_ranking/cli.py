"""`keras-ranking schema | simulate | prepare | train | tune | evaluate | report | predict | export | ...`: from a log to a served score.

Exit codes: 0 done; 1 failed (for example a server that cannot be reached, an export with other scores than Keras, a full disk);
2 wrong usage or bad input; 130 stopped by Ctrl-C. Errors are one line on stderr; `--debug` shows the traceback. Results go to stdout,
progress to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from keras_ranking import __version__
from keras_ranking.commands.label_parsers import LABEL_PARSERS
from keras_ranking.commands.parsers import BACKENDS, PARSERS, Help
from keras_ranking.commands.predicting import PREDICT_PARSERS
from keras_ranking.commands.report_command import REPORT_PARSERS
from keras_ranking.commands.scale_parsers import SCALE_PARSERS
from keras_ranking.commands.schemas import SCHEMA_PARSERS
from keras_ranking.commands.serving_parsers import SERVING_PARSERS
from keras_ranking.commands.tune_parser import TUNE_PARSERS


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; `--help` of each command lists its arguments, files and requirements."""
    parser = argparse.ArgumentParser(
        prog="keras-ranking",
        formatter_class=Help,
        description="From an event log to a served ranking: LinkedIn-class rankers in Keras 3.",
        epilog="""\
all steps, on simulated logs:
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
    own = (*PARSERS, *SERVING_PARSERS, *PREDICT_PARSERS, *SCALE_PARSERS)
    for add in (*own, *TUNE_PARSERS, *LABEL_PARSERS, *SCHEMA_PARSERS, *REPORT_PARSERS):
        add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (argparse exits with 2 on wrong usage)."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command == "train" and not (args.out or args.resume):
        parser.error("train: one of the arguments --out and --resume is required")
    if args.command == "train" and not (args.data or args.from_study):
        parser.error("train: the following arguments are required: --data")
    if args.command == "train" and args.epochs == 0 and not args.new_events:
        parser.error("train: argument --epochs: must be a positive integer; 0 is for a daily step (--new-events) that only refreshes")
    try:
        with warnings.catch_warnings():
            # One line for each warning, as for an error, without the place in the source.
            warnings.showwarning = lambda message, category, *_: print(f"warning: {message}", file=sys.stderr)
            return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if args.debug:
            raise
        code, message = _explain(error)
        message = in_shell(message, args)
        print(f"keras-ranking {args.command}: {message}", file=sys.stderr)
        return code


def in_shell(message: str, args: argparse.Namespace) -> str:
    """A message with arguments of Python as those of the command: `--data` for `source`, `--on-error drop` for on_error='drop'."""
    if args.command not in ("simulate", "prepare", "train", "tune", "evaluate", "report", "predict", "score-log"):
        return message
    message = message.replace("on_error='drop'", "--on-error drop").replace("`source`", "`--data`")
    message = message.replace("`Log(..., round='floor')` rounds down to whole seconds.", "`--round floor` rounds down to whole seconds.")
    for name in vars(args):
        message = message.replace(f"`{name}`", f"`--{name.replace('_', '-')}`")
    return message


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and one line for an error: 2 for wrong input, 1 for a failure."""
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRA_OF.get(error.name or "")
        hint = f"; pip install 'keras-ranking[{extra}]'" + (", or choose another --backend" if extra in BACKENDS else "") if extra else ""
        return 1, f"{error}{'' if 'pip install' in str(error) else hint}"
    problems = getattr(error, "errors", None)
    if callable(problems) and isinstance(error, ValueError):  # pydantic: a list of errors, each with its place
        first = problems()[0]
        place = ".".join(map(str, first["loc"]))
        text = f"{place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}"
    else:
        text = str(error) or type(error).__name__
    line = " ".join(text.split())
    line = line if len(line) <= 2000 else f"{line[:2000]} ..."
    wrong_input = isinstance(error, (ValueError, TypeError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError))
    wrong_input |= getattr(error, "code", None) in ("INVALID_ARGUMENT", "NOT_FOUND")
    return (2 if wrong_input else 1), line


_EXTRA_OF = {
    **{name: name for name in BACKENDS},
    "pyarrow": "data",
    "duckdb": "scale",
    "pyspark": "spark",
    "mlflow": "mlflow",
    "grpc": "serving",
    "aiohttp": "serving",
}

if __name__ == "__main__":
    sys.exit(main())
