"""Schemas and columns built in Python report what is wrong in the words that files have, not in those of pydantic."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

import keras_ranking as kr

GIVEN: dict[str, Any] = {"member": "m", "time": "t", "request": "r", "features": [kr.Id("item")], "tasks": ["click"]}


def schema(**changes: Any) -> Callable[[], Any]:
    return lambda: kr.Schema(**{**GIVEN, **changes})


COLUMNS = "a list of `Id`, `Category`, `Ids`, `SemanticId`, `Number`, `Vector` and `Count`"
WRONG: list[tuple[Callable[[], Any], str]] = [
    (lambda: kr.Id(), "`name` must be given"),
    (lambda: kr.Id("a", buckets=1), "`buckets` must be at least 2. Received: 1"),
    (lambda: kr.Id("a", buckets="x"), "`buckets` must be an integer. Received: 'x'"),
    (lambda: kr.Id(3), "`name` must be a text. Received: 3"),  # type: ignore[arg-type]
    (lambda: kr.Id("a", bucket=4),
     "there is no `bucket`; did you mean `buckets`? It may have name, known, column, kind, buckets, divisor, table"),
    (lambda: kr.Number("a", transform="log"),
     "`transform` must be 'identity', 'log1p', 'standardise' or 'log1p_standardise'. Received: 'log'"),
    (lambda: kr.Number("a", std=float("nan")), "`std` must be a finite number. Received: nan"),
    (lambda: kr.Vector("v"), "`size` must be given"),
    (lambda: kr.Category("c", vocabulary="ab"), "`vocabulary` must be a list of texts. Received: vocabulary='ab'"),
    (lambda: kr.Task("a", missing="no"), "`missing` must be 'error' or 'unknown'. Received: 'no'"),
    (schema(user="x"),
     "there is no `user`. It may have member, time, request, session, position, features, actions, tasks, epoch, feedback_delay"),
    (schema(epoch=1.5), "`epoch` must be an integer. Received: 1.5"),
    (schema(time="m"), "column 'm' has two roles, member and time."),
    (schema(features=["item"]), "`features` must say what 'item' is, such as Number('item') or Category('item'); a bare name that ends in "
     "'_id' is an `Id`. Received: 'item'"),
    (schema(features=[3]), f"`features` must be {COLUMNS}. Received: 3 at 0"),
    (schema(actions=[3]), f"`actions` must be {COLUMNS}, or of names. Received: 3 at 0"),
    (schema(tasks=[3]), "`tasks` must be a list of `Task`, or of names. Received: 3 at 0"),
    (schema(features=[{"name": "a", "kind": "id", "buckets": 0}]), "`buckets` must be at least 2. Received: 0 (in features[0])"),
    (schema(tasks=[{"nam": "a"}]),
     "Schema has 2 problems:\n  `name` must be given (in tasks[0])\n  there is no `nam`; did you mean `name`? "
     "It may have name, label, missing, kind, levels, "
     "transform, mean, std, loss, delta, weight, given (in tasks[0])"),
    (schema(features=[{"name": "a", "kind": "text"}]),
     "`kind` must be 'id', 'category', 'ids', 'semantic_id', 'number', 'vector' or 'count'. Received: 'text'"),
]  # fmt: skip


@pytest.mark.parametrize(("build", "words"), WRONG, ids=[words[:40] for _, words in WRONG])
def test_words(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        build()
    assert str(caught.value) == words
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("field", ["features", "actions", "tasks"])
def test_one_column_is_no_list(field: str) -> None:
    for one in (kr.Id("item"), "item"):
        with pytest.raises(ValueError, match=f"^`{field}` must be a list of .* Received: {field}="):
            schema(**{field: one})()


def test_many_problems_are_counted() -> None:
    with pytest.raises(ValueError, match=r"^Schema has 14 problems:\n(  `buckets` must be .*\n){10}  and 4 more$"):
        schema(features=[{"name": f"a{number}", "kind": "id", "buckets": 0} for number in range(14)])()


def test_what_is_right_stays_as_it_was() -> None:
    """Control: copies, pickles and round trips go through pydantic, and signatures are those of the classes."""
    whole = schema()()
    assert copy.deepcopy(whole) == pickle.loads(pickle.dumps(whole)) == kr.Schema.model_validate_json(whole.model_dump_json()) == whole
    assert list(inspect.signature(kr.Schema).parameters)[:3] == ["member", "time", "request"]
