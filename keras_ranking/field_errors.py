"""What is wrong with a field of a schema or column, in plain words: of an object built in Python as of a file."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic._internal._model_construction import ModelMetaclass  # what type(BaseModel) is, with types

from keras_ranking.ops.messages import shown

_KINDS = "'id', 'category', 'ids', 'semantic_id', 'number', 'vector' or 'count'"
_TYPES = {"string": "a text", "int": "an integer", "float": "a number", "tuple": "a list", "model": "an object", "dict": "an object"}
_COLUMNS = "a list of `Id`, `Category`, `Ids`, `SemanticId`, `Number`, `Vector` and `Count`"
_OBJECTS = {"features": _COLUMNS, "actions": f"{_COLUMNS}, or of names", "tasks": "a list of `Task`, or of names"}
_MOST_PROBLEMS = 10
Place = tuple[str | int, ...]


_within: contextvars.ContextVar[bool] = contextvars.ContextVar("within", default=False)


@contextlib.contextmanager
def errors_of_parts() -> Iterator[None]:
    """Constructors raise the errors of pydantic, for a caller that puts them in words."""
    token = _within.set(True)
    try:
        yield
    finally:
        _within.reset(token)


class PlainWords(ModelMetaclass):
    """Metaclass of classes of pydantic whose constructor raises its errors as a ValueError in the words of this package.

    The parts of a whole raise those of pydantic, from which the error of the whole names their places.
    """

    made: dict[str, Any] = {}

    def __init__(cls, name: str, *rest: Any, **settings: Any) -> None:
        super().__init__(name, *rest, **settings)
        PlainWords.made[name.lower()] = cls

    def __call__(cls, *values: Any, **fields: Any) -> Any:
        if _within.get():
            return super().__call__(*values, **fields)
        try:
            with errors_of_parts():
                return super().__call__(*values, **fields)
        except ValidationError as error:
            problems = [_line(cls, problem) for problem in error.errors()]
        more = [f"and {len(problems) - _MOST_PROBLEMS} more"] if len(problems) > _MOST_PROBLEMS else []
        lines = [*dict.fromkeys(problems[:_MOST_PROBLEMS]), *more]
        raise ValueError(lines[0] if len(lines) == 1 else f"{cls.__name__} has {len(problems)} problems:\n  " + "\n  ".join(lines))


def _line(kind: Any, problem: Mapping[str, Any]) -> str:
    """'`buckets` must be at least 2. Received: 1 (in features[0])'."""
    place = tuple(problem["loc"])
    whole = place[0] if place else ""
    if len(place) == 2 and whole in _OBJECTS and problem["type"].startswith("model"):
        return f"`{whole}` must be {_OBJECTS[whole]}. Received: {shown(problem['input'])} at {place[1]}"
    if len(place) < 2 or isinstance(place[-1], int):
        name = f"{whole}" if len(place) < 2 else written(place)
        return field_words(kind, problem, name)
    # Of a part that is given as a dict; pydantic adds the kind of a column to its place.
    owner = PlainWords.made["task" if whole == "tasks" else str(place[2])]
    return f"{field_words(owner, problem, str(place[-1]))} (in {written(place[:2])})"


def written(path: Place) -> str:
    """('features', 0, 'name') as 'features[0].name'."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def field_words(owner: type[BaseModel], problem: Mapping[str, Any], name: str) -> str:
    """One problem of pydantic, with a field of this class, in plain words."""
    kind, context = problem["type"], problem.get("ctx", {})
    received = f". Received: {shown(problem.get('input'))}"
    if kind == "union_tag_invalid":
        return f"`kind` must be {_KINDS}. Received: {context['tag']!r}"
    if kind == "union_tag_not_found":
        return f"`kind` must be given: {_KINDS}"
    if kind == "missing":
        return f"`{name}` must be given"
    if kind == "extra_forbidden":
        known = list(owner.model_fields)
        near = difflib.get_close_matches(name, known, n=1)
        return f"there is no `{name}`{f'; did you mean `{near[0]}`?' if near else '.'} It may have {', '.join(known)}"
    if kind == "literal_error":
        return f"`{name}` must be {context['expected']}{received}"
    if kind == "value_error":
        return str(problem["msg"]).removeprefix("Value error, ")
    bounds = {"greater_than_equal": ("at least", "ge"), "less_than_equal": ("at most", "le"), "greater_than": ("above", "gt")}
    if kind in bounds:
        return f"`{name}` must be {bounds[kind][0]} {context[bounds[kind][1]]}{received}"
    if kind == "finite_number":
        return f"`{name}` must be a finite number{received}"
    wanted = _TYPES.get(kind.partition("_")[0])
    return f"`{name}` must be {wanted}{received}" if wanted else f"`{name}`: {problem['msg']}{received}"
