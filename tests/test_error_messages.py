"""No message names an argument that its caller cannot give: in the source of all messages, and in what each function says of bad logs."""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import build_parser, in_shell
from keras_ranking.configuration import option_names
from tests import error_messages as messages

# Arguments that reach a model or a training as options, by name.
OPTIONS = (kr.Schema, kr.Id, kr.Category, kr.Number, kr.Vector, kr.Count, kr.Task)
# Words in backticks that are no arguments: tensors, columns, fields of a call of gRPC, `logs` of a Keras callback, extras of pip.
OTHER_WORDS = {"history_", "candidate_", "play_seconds", "metadata_field", "logs", "predict_on_batch", "serving"}
# Arguments of Keras, for which the message says whose they are.
OF_KERAS = {"mask_zero", "monitor"}


def option_fields() -> set[str]:
    fields = {name for kind in OPTIONS for name in kind.model_fields}
    for builder in kr.models.wiring.BUILDERS:
        fields |= set(kr.models.model_options(builder))
    return fields | set(option_names([kr.training.TrainingOptions, kr.training.Recipe]))


def wrong_names(found: list[messages.Definition], options: set[str]) -> list[str]:
    """Each name in a text that no user of the text's definition can give."""
    allowed = messages.givers(found)
    arguments: dict[str, set[str]] = {}
    for definition in found:
        arguments.setdefault(definition.name, set()).update(definition.arguments)
    wrong = []
    for definition in found:
        for text, where in definition.texts:
            if "=" not in text and "`" not in text:
                continue
            mine = allowed(definition.name) | options
            wrong += [f"{where} {name}=" for name in messages.named_arguments(text) if name not in mine | OF_KERAS]
            wrong += [f"{where} `{name}`" for name in messages.TICKED.findall(text) if name not in mine | arguments.keys() | OTHER_WORDS]
            called = messages.called_arguments(text)
            wrong += [f"{where} {called}({name}=)" for called, name in called if called in arguments and name not in arguments[called]]
    return wrong


def test_texts_name_arguments_that_somebody_can_give() -> None:
    found = messages.definitions()
    texts = [text for definition in found for text, _ in definition.texts]
    assert sum("must" in text for text in texts) > 300  # control: the messages are found
    shell = ("commands/parsers.py", "commands/serving_parsers.py", "/cli.py")
    assert [place for place in wrong_names(found, option_fields()) if not any(name in place for name in shell)] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("on_fault='drop' leaves them out", "on_fault="),
        ("`seeds` must be positive", "`seeds`"),
        ("`rows` must be positive, state Box(sise=3)", "Box(sise=)"),
        ("`rows` must be positive, state Box(size=3); leave=True or `outer` helps", None),
    ],
)
def test_control_a_wrong_name_is_seen(text: str, wrong: str | None, tmp_path: Path) -> None:
    source = f"class Box:\n    size: int\n\ndef inner(rows):\n    raise ValueError({text!r})\n\ndef outer(leave):\n    return inner(Box)\n"
    (tmp_path / "package.py").write_text(source)
    found = wrong_names(messages.definitions(tmp_path), set())
    assert [place.rpartition(" ")[2] for place in found] == ([wrong] if wrong else [])


# -- what each function says of a bad log ---------------------------------------------------------------------------------------

START = 1_600_000_000
SCHEMA = kr.Schema(
    member="m", time="t", request="r", position="p", features=[kr.Id("item"), kr.Number("age", transform="log1p")], tasks=["click"]
)
FAULTS: dict[str, tuple[str, Any]] = {
    "missing member": ("m", None), "fraction": ("t", START + 0.5), "milliseconds": ("t", START * 1000), "early": ("t", 5),
    "text": ("t", "noon"), "half an id": ("item", 1.5), "no id": ("item", [1]), "negative": ("age", -1.0), "infinite": ("age", np.inf),
    "unknown": ("age", None), "label": ("click", 7), "no label": ("click", None), "position": ("p", 0),
}  # fmt: skip


def bad_log(fault: str) -> pd.DataFrame:
    column, value = FAULTS[fault]
    n = np.arange(4)
    log = pd.DataFrame({"m": 1, "t": START + n, "r": n, "p": 1, "item": n, "age": 1.0, "click": n % 2, "dwell": 1.0, "split": "train"})
    values = np.empty(4, dtype=object)
    values[:] = log[column].tolist()
    values[2] = value
    return log.assign(**{column: values})


def evaluate(log: kr.data.Log, **settings: Any) -> Any:
    schema = SCHEMA.fit(bad_log("early"))
    return kr.training.evaluate(kr.models.LiRank(schema, history_features=(), hidden=(4,)), log, "train", **settings)


ENTRIES: dict[str, tuple[Callable[..., Any], Callable[[pd.DataFrame], Any]]] = {
    "check_events": (kr.data.check_events, lambda log: kr.data.check_events(log, SCHEMA)),
    "build_sequences": (kr.data.build_sequences, lambda log: kr.data.build_sequences(log, SCHEMA)),
    "requests": (kr.data.requests, lambda log: kr.data.requests(log, SCHEMA)),
    "encode_time": (SCHEMA.encode_time, lambda log: SCHEMA.encode_time(log["t"])),
    "encode": (kr.Number.encode, lambda log: [feature.encode(log[feature.name]) for feature in (*SCHEMA.features, *SCHEMA.tasks)]),
    "counts": (kr.data.point_in_time_counts, lambda log: kr.data.point_in_time_counts(log, "item", [None], time="t")),
    "long_dwell": (kr.training.long_dwell_labels, lambda log: kr.training.long_dwell_labels(log, "dwell", "t", [])),
    "train": (kr.training.train, lambda log: kr.training.train(kr.data.Log(log, SCHEMA, "mine"), "lirank", verbose=False)),
    "evaluate": (kr.training.evaluate, lambda log: evaluate(kr.data.Log(log, SCHEMA, "mine"))),
    "request_tensors": (
        kr.serving.request_tensors,
        lambda log: kr.serving.request_tensors(SCHEMA, None, log.drop(columns="t"), log["t"].iloc[2], ["candidate_item", "candidate_age"]),
    ),
}


def caught(enter: Callable[[pd.DataFrame], Any], fault: str) -> str:
    try:
        enter(bad_log(fault))
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("entry", ENTRIES)
def test_messages_of_bad_logs_name_arguments_of_the_function_called(entry: str) -> None:
    function, enter = ENTRIES[entry]
    parameters = set(inspect.signature(function).parameters)
    said = {fault: caught(enter, fault) for fault in FAULTS}
    assert sum(map(bool, said.values())) >= (3 if entry in ("encode_time", "counts", "long_dwell", "request_tensors") else 6)
    for fault, text in said.items():
        text = re.sub(r"Received: .*? at row \d+( \(index .*?\))?", "", text)
        # `transform` is what the schema's column has, not what to give.
        assert set(messages.named_arguments(text)) <= parameters | {"transform"}, (fault, text)
        for called, name in messages.called_arguments(text):
            owner = getattr(kr.data, called) if called == "Log" else getattr(kr, called)
            assert name in inspect.signature(owner).parameters, (fault, text)


def test_control_the_hint_is_given_where_it_can_be_followed() -> None:
    for entry in ("check_events", "build_sequences", "requests", "train", "evaluate"):
        assert "on_error='drop' leaves such rows out and counts them." in caught(ENTRIES[entry][1], "negative")
    assert ". round='floor' rounds" in caught(ENTRIES["build_sequences"][1], "fraction")
    for entry in ("train", "evaluate"):
        assert "`Log(..., round='floor')` rounds" in caught(ENTRIES[entry][1], "fraction")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_the_shell_names_its_own_arguments(command: str) -> None:
    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    flags = {flag for action in commands.choices[command]._actions for flag in action.option_strings}
    args = parser.parse_args([command, *(["run"] if command == "evaluate" else ["--out", "run"]), "--data", "parquet:log.parquet"])
    for fault in FAULTS:
        text = in_shell(caught(ENTRIES[command][1], fault), args)
        assert set(re.findall(r"--[a-z-]+", text)) <= flags and not {"on_error", "round="} & set(re.findall(r"on_error|round=", text))
    assert "--on-error drop" in in_shell(caught(ENTRIES[command][1], "negative"), args)
    with pytest.raises(ValueError) as error:
        kr.data.open_log("parquet:log.parquet")
    assert "`--schema` must be given" in in_shell(str(error.value), args)
