"""Command line: help, usage errors and values of options."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

import keras_ranking as kr
from keras_ranking.cli import build_parser
from tests.commands.shell import ROOT, usage_error

pytestmark = pytest.mark.one_backend

COMMANDS = ("simulate", "train", "evaluate", "export", "skew", "serve", "score", "promote", "rollback", "schema")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_valid_examples_and_explains_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(command, "--help") == 0
    text = capsys.readouterr().out
    examples = re.findall(rf"^  (keras-ranking {command} .*)$", text, flags=re.MULTILINE)
    assert examples, "a help without an example"
    for example in examples:  # the parser must accept each example
        arguments = build_parser().parse_args(example.split()[1:])
        assert arguments.command == command
    options = build_parser()._subparsers._group_actions[0].choices[command]._actions
    assert [option.dest for option in options if not option.help] == []


def test_help_of_the_whole_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("--help") == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^    {command} +\w", text, flags=re.MULTILINE) for command in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("--version") == 0
    assert capsys.readouterr().out == f"keras-ranking {kr.__version__}\n"


def test_help_loads_no_keras() -> None:
    program = "import sys, keras_ranking.cli as cli; cli.build_parser(); print({'keras', 'tensorflow', 'grpc'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fit",),
        ("train", "--data", "simulated"),
        ("train", "--out", "x"),
        ("train", "--data", "simulated", "--out", "x", "--epochs", "0"),
        ("train", "--data", "simulated", "--out", "x", "--seed", "-1"),
        ("train", "--data", "simulated", "--out", "x", "--backend", "mxnet"),
        ("train", "--data", "simulated", "--out", "x", "--set", "epochs"),
        ("serve", "x", "--rest-port", "70000"),
        ("score", "request.json"),
        ("score", "request.json", "--model", "x", "--server", "y"),
        ("simulate", "--out", "x.csv", "--members", "many"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("3", 3), ("0.5", 0.5), ("true", True), ("True", True), ("null", None)],
        *[("[1,4]", [1, 4]), ("(1,4)", (1, 4)), ("gelu", "gelu"), ("a=b", "a=b")],
    ],
)
def test_settings_keep_their_type(text: str, value: Any) -> None:
    arguments = build_parser().parse_args(["train", "--data", "simulated", "--out", "x", "--set", f"name={text}"])
    assert arguments.set == [("name", value)]
    assert type(arguments.set[0][1]) is type(value)
