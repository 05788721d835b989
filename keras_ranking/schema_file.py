"""Reading a schema from JSON, with errors in the words of the file: its name, the line, and what is allowed there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from keras_ranking.columns import Category, Count, Id, Ids, Number, SemanticId, Task, Vector
from keras_ranking.field_errors import Place, errors_of_parts, field_words, written

_MOST_PROBLEMS = 10
_CLASSES: dict[str, type[BaseModel]] = {
    "id": Id,
    "category": Category,
    "ids": Ids,
    "semantic_id": SemanticId,
    "number": Number,
    "vector": Vector,
    "count": Count,
}
_COMMENT = re.compile(r"(?m)^[ \t]*//.*$")
_SPACE = re.compile(r"\s*")
_SCALAR = re.compile(r"[^\s,\]}]+")


def read_model(kind: type[BaseModel], path: str | Path) -> Any:
    """An object of a pydantic class from a JSON file, in which lines that begin with `//` are comments.

    Raises:
        ValueError: with up to ten problems, each with its line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be a JSON file of a schema. Received: a file that is not UTF-8 text") from error
    text = _COMMENT.sub("", text)  # its line stays, so that the lines of errors are those of the file
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: must be JSON. {error.msg} at column {error.colno}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}, line 1: must hold one JSON object, {{...}}. Received: a {type(data).__name__}")
    try:
        with errors_of_parts():
            return kind.model_validate_json(text)
    except ValidationError as error:
        problems = error.errors()
        lines = [_line(kind, text, problem) for problem in problems[:_MOST_PROBLEMS]]
        more = f"\n  and {len(problems) - _MOST_PROBLEMS} more" if len(problems) > _MOST_PROBLEMS else ""
        if len(lines) == 1:
            raise ValueError(f"{path}, {lines[0]}") from None
        raise ValueError(f"{path} has {len(problems)} problems:\n  " + "\n  ".join(lines) + more) from None


def commented(schema: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """A schema as JSON, a line a column, with a comment above those of `comments`: what `read_model` reads."""
    lines = []
    for key, value in schema.items():
        if isinstance(value, list) and value:
            parts = []
            for one in value:
                name = one.get("label") or one["name"] if isinstance(one, Mapping) else ""
                told = f"    // {comments[name]}\n" if name in comments else ""
                parts.append(f"{told}    {json.dumps(one)}")
            lines.append(f"  {json.dumps(key)}: [\n" + ",\n".join(parts) + "\n  ]")
            continue
        told = f"  // {comments[value]}\n" if isinstance(value, str) and value in comments else ""
        lines.append(f"{told}  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _line(kind: type[BaseModel], text: str, problem: Mapping[str, Any]) -> str:
    """'line 7: `kind` of features[1] must be ...'."""
    lines = line_numbers(text)
    path: Place = ()
    left: list[str | int] = []
    owner: type[BaseModel] = kind
    for part in problem["loc"]:  # pydantic adds the kind of a column to the place
        if (*path, part) in lines:
            path = (*path, part)
            owner = Task if path[0] == "tasks" else owner
        else:
            owner = _CLASSES.get(str(part), owner)
            left.append(part)
    last = problem["loc"][-1] if problem["loc"] else ""
    name = written(path) if isinstance(last, int) else str(last)
    if isinstance(last, int):
        inside = written(path) if problem["type"].startswith("union_tag") else ""
    else:
        inside = written(path[:-1] if path[-1:] == (last,) else path)
    return f"line {lines[path]}: {field_words(owner, problem, name)}{f' (in {inside})' if inside else ''}"


def line_numbers(text: str) -> dict[Place, int]:
    """The line on which each value of a JSON text begins, by its place: ("features", 0, "name").

    Example:
        >>> from keras_ranking.schema_file import line_numbers
        >>> line_numbers('{"a": [\\n1,\\n2]}')["a", 1]
        3
    """
    found: dict[Place, int] = {}

    def skip(at: int) -> int:
        return _SPACE.match(text, at).end()  # type: ignore[union-attr]

    def value(at: int, path: Place) -> int:
        at = skip(at)
        found[path] = text.count("\n", 0, at) + 1
        if text[at] == '"':
            return int(scanstring(text, at + 1)[1])
        if text[at] not in "{[":
            return _SCALAR.match(text, at).end()  # type: ignore[union-attr]
        keyed, close, number = text[at] == "{", "}" if text[at] == "{" else "]", 0
        at = skip(at + 1)
        while text[at] != close:
            part: str | int = number
            if keyed:
                part, at = scanstring(text, at + 1)
                at = skip(at) + 1
            at = skip(value(at, (*path, part)))
            number += 1
            at = skip(at + 1) if text[at] == "," else at
        return at + 1

    value(0, ())
    return found
