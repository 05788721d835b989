"""A schema file with mistakes: the file, the line of each, and what is allowed there."""

from __future__ import annotations

from pathlib import Path

import pytest

import keras_ranking as kr
from keras_ranking.schema_file import line_numbers

KINDS = "'id', 'category', 'ids', 'semantic_id', 'number', 'vector' or 'count'"
GOOD = """{
  "member": "m", "time": "t", "request": "r",
  "features": [
    {"kind": "id", "name": "item", "buckets": 100},
    {"kind": "number", "name": "age", "transform": "log1p"},
    {"kind": "category", "name": "device", "vocabulary": ["a\\"b", "c"]}
  ],
  "actions": ["click"],
  "tasks": ["click", {"name": "long", "label": "is long"}],
  "epoch": 0
}
"""


def load(tmp_path: Path, text: str) -> kr.Schema:
    path = tmp_path / "schema.json"
    path.write_text(text, encoding="utf-8")
    return kr.Schema.load(path)


def test_control_a_good_file(tmp_path: Path) -> None:
    schema = load(tmp_path, GOOD)
    assert [feature.kind for feature in schema.features] == ["id", "number", "category"] and schema.tasks[1].label == "is long"
    schema.save(tmp_path / "again.json")
    assert kr.Schema.load(tmp_path / "again.json") == schema


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            '"kind": "id"',
            '"kind": "ident"',
            f"line 4: `kind` must be {KINDS}. Received: 'ident' (in features[0])",
        ),
        ('"kind": "number", ', "", f"line 5: `kind` must be given: {KINDS} (in features[1])"),
        ('"log1p"', '"log"', "line 5: `transform` must be 'identity', 'log1p', 'standardise' or 'log1p_standardise'. Received: 'log'"),
        (
            '"buckets"',
            '"bucket"',
            "line 4: there is no `bucket`; did you mean `buckets`? It may have name, known, column, kind, ",
        ),
        ("100", '"many"', "line 4: `buckets` must be an integer. Received: 'many' (in features[0])"),
        ("100", "1", "line 4: `buckets` must be at least 2. Received: 1 (in features[0])"),
        (
            '"age"',
            '"age hours"',
            "line 5: `name` must be letters, digits and underscores, not starting with a digit. ",
        ),
        ('"member": "m", ', "", "line 1: `member` must be given"),
        ('"member": "m"', '"member": 5', "line 2: `member` must be a text. Received: 5"),
        ('"epoch"', '"epok"', "line 10: there is no `epok`; did you mean `epoch`?"),
        ('"epoch": 0', '"feedback_delay": 0', "line 10: `feedback_delay` must be at least 1. Received: 0"),
        (
            '"label"',
            '"lable"',
            "line 9: there is no `lable`; did you mean `label`? It may have name, label, missing, kind, ",
        ),
        ('["click"]', '"click"', "line 8: `actions` must be a list of names or features. Received: actions='click'"),
        ('{"kind": "id", "name": "item", "buckets": 100}', "5", "line 4: `features[0]` must be an object. Received: 5"),
        ('"epoch": 0', '"epoch": 0,', "line 11: must be JSON."),
    ],
)
def test_a_mistake_is_named_with_its_line(right: str, wrong: str, message: str, tmp_path: Path) -> None:
    assert right in GOOD
    with pytest.raises(ValueError) as caught:
        load(tmp_path, GOOD.replace(right, wrong, 1))
    assert str(caught.value).startswith(f"{tmp_path / 'schema.json'}, {message}")
    assert "pydantic" not in str(caught.value)


def test_several_mistakes_are_in_one_error(tmp_path: Path) -> None:
    text = GOOD.replace('"id"', '"ident"').replace("100", "1").replace('"log1p"', '"log"').replace('"epoch": 0', '"epoch": "x"')
    with pytest.raises(
        ValueError, match=r"(?s)schema.json has 3 problems:\n  line 4: `kind`.*\n  line 5: `transform`.*\n  line 10: `epoch`"
    ):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "line 1: must be JSON"), ("[1]", "line 1: must hold one JSON object, {...}. Received: a list"), ("{", "must be JSON")],
)
def test_no_schema_at_all(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


def test_a_file_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "log.parquet").write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(ValueError, match="log.parquet must be a JSON file of a schema. Received: a file that is not UTF-8 text"):
        kr.Schema.load(tmp_path / "log.parquet")


def test_lines_of_a_json_text() -> None:
    lines = line_numbers('{\n"a": {"b\\"": [1,\n 2.5e3, {"c": null}]},\n"d": "x",\n"e": []}')
    assert lines == {
        (): 1, ("a",): 2, ("a", 'b"'): 2, ("a", 'b"', 0): 2, ("a", 'b"', 1): 3, ("a", 'b"', 2): 3, ("a", 'b"', 2, "c"): 3,
        ("d",): 4, ("e",): 5,
    }  # fmt: skip
