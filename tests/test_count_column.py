"""Count: names, defaults, JSON, what a schema refuses, and that a model reads it as a number of the context."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr


def schema(*features: Any, **more: Any) -> kr.Schema:
    roles = {"member": "m", "time": "t", "request": "r", "position": "p", "actions": ["click"], "tasks": ["click"], **more}
    return kr.Schema(features=[kr.Id("item"), *features], **roles)


@pytest.mark.parametrize(
    ("count", "name", "transform"),
    [
        (kr.Count("item", action="click"), "item_click_rate_all", "standardise"),
        (kr.Count("item", action="click", window=86_400), "item_click_rate_24h", "standardise"),
        (kr.Count(("m", "topic"), action="dwell", of="sum", window=900), "m_topic_dwell_15m", "log1p_standardise"),
        (kr.Count("m", of="views", window=90), "m_views_90s", "log1p_standardise"),
        (kr.Count("item", of="views", name="shown", transform="log1p"), "shown", "log1p"),
    ],
)
def test_names_are_those_of_point_in_time_counts_and_json_keeps_all(count: kr.Count, name: str, transform: str) -> None:
    assert (count.name, count.transform, count.known) == (name, transform, "context")
    made = schema(count)
    again = kr.Schema.model_validate_json(made.model_dump_json())
    assert again == made and again.digest == made.digest and isinstance(again.counts[0], kr.Count)
    assert json.loads(made.model_dump_json())["features"][1]["kind"] == "count"
    assert kr.Count(**count.model_dump(mode="json")) == count


def test_the_schema_says_what_a_log_needs_before_and_after_counting() -> None:
    made = schema(kr.Count(("item", "author"), action="like", window=60, where="is_shown"))
    assert "item_author_like_rate_1m" in made.columns and "author" not in made.columns
    assert made.logged == ("m", "t", "r", "p", "item", "click", "author", "like", "is_shown")
    assert [feature.name for feature in made.inputs()] == ["item", "item_author_like_rate_1m"]
    without = schema()
    assert without.counts == () and without.logged == without.columns and "count" not in without.model_dump_json()


def test_it_is_a_number_to_encode_fit_and_bin() -> None:
    count, number = kr.Count("item", of="views"), kr.Number("item_views_all", transform="log1p_standardise", known="context")
    values = np.array([0.0, 3.0, 8.0, 0.0])
    fitted, plain = count.fit(values), number.fit(values)
    np.testing.assert_array_equal(fitted.encode(values), plain.encode(values))
    assert isinstance(fitted, kr.Count) and fitted.key == "item" and fitted.prior is None
    binned = schema(count).binned(2)
    events = pd.DataFrame({"item_views_all": values})
    assert binned.fit(events).features[1].edges == schema(number).binned(2).fit(events).features[1].edges
    with pytest.raises(ValueError, match=r"'item_views_all' of the schema is not in the log; `kr.data.with_counts\(log\)` counts it"):
        schema(count).fit(pd.DataFrame({"item": [1]}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`key` must be given"),
        ({"key": ()}, r"`key` must be a column, or a tuple of different columns. Received: key=\(\)"),
        ({"key": ("a", "a"), "of": "views"}, "`key` must be a column, or a tuple of different columns"),
        ({"key": 7, "of": "views"}, "Received: key=7"),
        ({"key": "item"}, "of='rate' needs `action`, the column that is summed. Received: action=None"),
        ({"key": "item", "of": "sum"}, "of='sum' needs `action`"),
        ({"key": "item", "of": "views", "action": "click"}, "of='views' counts rows and has no `action`. Received: action='click'"),
        ({"key": "item", "of": "mean", "action": "click"}, "`of` must be 'views', 'sum' or 'rate'. Received: 'mean'"),
        ({"key": "item", "of": "views", "window": 0}, "`window` must be at least 1. Received: 0"),
        ({"key": "item", "of": "views", "window": "1h"}, "`window` must be an integer. Received: '1h'"),
        ({"key": "item", "action": "click", "prior": (1, 0)}, r"`prior` must be \(a, b\) with a >= 0 and b > 0. Received: prior=\(1, 0\)"),
        ({"key": "item", "action": "click", "prior": 3}, r"`prior` must be \(a, b\)"),
        ({"key": "item", "of": "views", "prior": (1, 2)}, "`prior` is of a rate"),
        ({"key": "item", "of": "views", "known": "item"}, "`known` of a count must be 'context'.* Received: known='item'"),
        ({"key": "item id", "of": "views"}, r"Received: name='item id_views_all'; give the count another one: Count\(..., name='...'\)"),
        ({"key": "item", "of": "views", "windows": 3}, "there is no `windows`; did you mean `window`?"),
    ],
)
def test_wrong_settings_are_refused_in_the_words_of_the_user(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kr.Count(**settings)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([kr.Count("p", of="views")], "`key` of count 'p_views_all' must be known when a row is scored. Received: 'p', the position shown"),
        ([kr.Count("click", of="views")], "Received: 'click', the label of task 'click'|Received: 'click', an action"),
        ([kr.Count("dwell", of="views"), kr.Number("dwell", known="after")], "Received: 'dwell', a feature"),
        ([kr.Count("r", of="views")], "must come again in later requests. Received: 'r'"),
        (
            [kr.Count("item", of="views"), kr.Count("item_views_all", of="views")],
            "must be of columns of the log. Received: 'item_views_all'",
        ),
        ([kr.Count("item", of="views")] * 2, r"Received 'item_views_all' twice. Give one of them another: Count\(..., name='...'\)"),
        ([kr.Count("item", of="views", name="m")], "count 'm' has the name of a column of the log"),
        ([kr.Count("author", of="views", name="author")], "count 'author' has the name of a column of the log"),
    ],
)
def test_a_schema_refuses_counts_that_cannot_be_served(features: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schema(*features)


def test_a_count_is_no_action_and_errors_in_a_file_name_its_line(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="a `Count` is a feature. Received: 'item_views_all'"):
        schema(actions=[kr.Count("item", of="views")])
    text = schema(kr.Count("item", of="views")).model_dump_json(indent=1).replace('"window": null', '"window": -5')
    (tmp_path / "schema.json").write_text(text)
    with pytest.raises(ValueError, match=r"line \d+: `window` must be at least 1. Received: -5"):
        kr.Schema.load(tmp_path / "schema.json")
