"""The arguments and help texts of `promote` and `rollback`."""

from __future__ import annotations

import argparse
import re
from typing import Any

from keras_ranking.commands import labels
from keras_ranking.commands.parsers import command, positive

_SERVER = """\
edits FOLDER/tf_serving/models.config, which TensorFlow Serving reads every 10 seconds with the flags that `export` writes. With
--server the command waits until the version is AVAILABLE before it moves the label, and then until the server has moved it; an error
of the server (a version that does not load) leaves the label where it was. Without --server the file is written at once: the server
applies it when the version is loaded. `keras-ranking serve` does not read this file: its labels are given by --label.
"""


def _label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", text):
        raise argparse.ArgumentTypeError(f"must be letters, digits, '_', '.' and '-'. Received: {text!r}")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds. Received: {text!r}")
    return seconds


def _server_arguments(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", metavar="FOLDER", help="the served model, as `export` writes it")
    made.add_argument("--label", type=_label, default="stable", metavar="NAME", help="label to move (default: stable)")
    made.add_argument("--server", metavar="ADDRESS", help="HOST:PORT of a gRPC server, or http://HOST:PORT of a REST server, to wait for")
    made.add_argument("--name", metavar="NAME", help="with --server: the served model's name (default: the folder's name)")
    made.add_argument("--timeout", type=_seconds, default=300.0, metavar="S", help="with --server: seconds to wait (default: 300)")
    made.add_argument("--token-file", metavar="FILE", help="with --server: its token (default: KERAS_RANKING_TOKEN, or none)")
    made.add_argument("--tls-ca", metavar="FILE", help="with --server: TLS, with the authority that signed its certificate")


def promote_parser(subparsers: Any) -> None:
    """Arguments of `promote`."""
    made = command(
        subparsers,
        "promote",
        labels.promote,
        "move a label of a served model to a version, for TensorFlow Serving",
        f"""\
{_SERVER}
examples:
  keras-ranking promote saved_models/cadet --server 127.0.0.1:8500
  keras-ranking promote saved_models/cadet --version 3 --label canary
""",
    )
    _server_arguments(made)
    made.add_argument("--version", type=positive, metavar="N", help="version of the label (default: the one that has the label canary)")


def rollback_parser(subparsers: Any) -> None:
    """Arguments of `rollback`."""
    made = command(
        subparsers,
        "rollback",
        labels.rollback,
        "move a label of a served model back to the version that it had before",
        f"""\
{_SERVER}
example:
  keras-ranking rollback saved_models/cadet --server 127.0.0.1:8500
""",
    )
    _server_arguments(made)


LABEL_PARSERS = (promote_parser, rollback_parser)
