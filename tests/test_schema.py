"""Schema: roles and refusals, JSON, time, fitted constants."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from keras_ranking import Category, Id, Number, Schema, Task, Vector

EPOCH = 1_262_304_000
ROLES: dict[str, Any] = {"member": "member_id", "time": "shown_at", "request": "request_id"}


def make(**settings: Any) -> Schema:
    return Schema(**{**ROLES, "features": [Id("item_id")], "tasks": [Task("click")], **settings})


@pytest.fixture
def full() -> Schema:
    """Every role, kind and setting at once."""
    return Schema(
        member="member_id",
        time="shown_at",
        request="request_id",
        session="visit",
        position="rank",
        features=[
            Id("item_id", buckets=1000),
            Category("device", vocabulary=["desktop", "mobile"], known="context"),
            Category("region", buckets=16, known="context"),
            Number("age", transform="log1p_standardise", missing=0.0),
            Number("ctr", transform="standardise", mean=0.1, std=0.05, known="context"),
            Vector("content", size=3),
            Number("page_dwell", known="after"),
        ],
        actions=["like", Number("dwell", transform="log1p"), Category("reaction", vocabulary=["a", "b"])],
        tasks=[Task("click"), Task("long_dwell", label="is_long", missing="unknown")],
        epoch=1_000_000_000,
    )


# -- JSON ----------------------------------------------------------------------------------------------------------------


def test_json_round_trip(full: Schema, tmp_path: Path) -> None:
    assert Schema.model_validate_json(full.model_dump_json()) == full
    full.save(tmp_path / "schema.json")
    again = Schema.load(tmp_path / "schema.json")
    assert again == full
    assert again.digest == full.digest
    assert [type(feature) for feature in again.features] == [type(feature) for feature in full.features]
    assert again.actions[0] == Number("like", known="after")


def test_json_of_any_float_constant_is_exact() -> None:
    schema = make(features=[Number("x", transform="standardise", mean=0.1 + 0.2, std=1 / 3)])
    again = Schema.model_validate_json(schema.model_dump_json())
    assert (again.features[0].mean, again.features[0].std) == (0.1 + 0.2, 1 / 3)


def test_digest_differs_between_schemas(full: Schema) -> None:
    assert full.digest != full.model_copy(update={"epoch": 5}).digest
    assert len(full.digest) == 64


def test_frozen(full: Schema) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        full.epoch = 1
    with pytest.raises(ValidationError, match="frozen"):
        full.features[0].buckets = 3


# -- roles ---------------------------------------------------------------------------------------------------------------


def test_columns_each_once(full: Schema) -> None:
    assert full.columns == (
        *("member_id", "shown_at", "request_id", "visit", "rank"),
        *("item_id", "device", "region", "age", "ctr", "content", "page_dwell"),
        *("like", "dwell", "reaction", "click", "is_long"),
    )
    assert make(actions=["click"]).columns == ("member_id", "shown_at", "request_id", "item_id", "click")


def test_actions_are_known_after_scoring(full: Schema) -> None:
    assert {action.known for action in full.actions} == {"after"}


def test_inputs_of_a_score(full: Schema) -> None:
    assert [feature.name for feature in full.inputs()] == ["item_id", "device", "region", "age", "ctr", "content"]
    assert [feature.name for feature in full.inputs(known=("context",))] == ["device", "region", "ctr"]
    assert [feature.name for feature in full.inputs(["ctr", "item_id"])] == ["ctr", "item_id"]
    assert full.features_known("after") == (Number("page_dwell", known="after"),)


@pytest.mark.parametrize("name", ["page_dwell", "rank", "like", "dwell", "reaction", "click", "is_long"])
def test_after_scoring_column_cannot_be_an_input(full: Schema, name: str) -> None:
    with pytest.raises(ValueError, match=f"column '{name}' is known only after scoring and cannot be an input of a score"):
        full.inputs([name])


def test_unknown_input_is_refused(full: Schema) -> None:
    with pytest.raises(ValueError, match="column 'colour' is not a feature of the schema. It has: .*'age'"):
        full.inputs(["colour"])


def test_task_by_name(full: Schema) -> None:
    assert full.task("long_dwell").label == "is_long"
    assert full.task("click").label == "click"
    with pytest.raises(ValueError, match=r"unknown task 'clik'. The schema has: \['click', 'long_dwell'\]"):
        full.task("clik")


def test_member_and_session_may_be_features_and_a_request_may_share_a_column() -> None:
    features = [Id("item_id"), Id("member_id", known="context"), Id("visit", known="context")]
    assert len(make(session="visit", features=features).features) == 3
    assert make(session="visit", request="visit").columns == ("member_id", "shown_at", "visit", "item_id", "click")
    with pytest.raises(ValueError, match="has two roles, request and position"):
        make(position="request_id")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "position as a feature": (
        {"position": "rank", "features": [Number("rank", known="context")]},
        r"column 'rank' is the position shown, which is known only after scoring; it cannot be an input of a score \(known='context'\)",
    ),
    "label as a feature": ({"features": [Number("click")]}, "column 'click' is the label of task 'click', which is known only after"),
    "other label as a feature": ({"features": [Number("y")], "tasks": [Task("t", label="y")]}, "column 'y' is the label of task 't'"),
    "action as a feature": ({"actions": ["like"], "features": [Number("like")]}, "column 'like' is an action, which is known only after"),
    "action as an after feature": ({"actions": ["like"], "features": [Number("like", known="after")]}, "action and cannot be a feature"),
    "action twice": ({"actions": ["like", "like"]}, "`actions` must have distinct names. Received 'like' twice"),
    "time as a feature": ({"features": [Number("shown_at")]}, "column 'shown_at' is the time and cannot be a feature as well"),
    "request as a feature": ({"features": [Id("request_id")]}, "column 'request_id' is the request and cannot be a feature as well"),
    "position as an action": ({"position": "rank", "actions": ["rank"]}, "column 'rank' is the position and cannot be an action as well"),
    "time as an action": ({"actions": ["shown_at"]}, "column 'shown_at' is the time and cannot be an action as well"),
    "feature twice": ({"features": [Id("a"), Number("a")]}, "`features` must have distinct names. Received 'a' twice"),
    "two roles": ({"session": "member_id"}, "column 'member_id' has two roles, member and session"),
    "two roles, position": ({"position": "shown_at"}, "column 'shown_at' has two roles, time and position"),
    "no task": ({"tasks": []}, "`tasks` must name at least one task"),
    "task twice": ({"tasks": ["click", "click"]}, "`tasks` must have distinct names"),
    "two outputs of one name": ({"tasks": ["click", "click_by_position"]}, "has the name of an output of task 'click'"),
    "tasks as one text": ({"tasks": "click"}, "`tasks` must be a list"),
    "actions as one text": ({"actions": "like"}, "`actions` must be a list"),
    "unknown argument": ({"user": "u"}, "user"),
    "unknown kind": ({"features": [{"kind": "text", "name": "a"}]}, "kind"),
    "feature without a name": ({"features": [{"kind": "id"}]}, "`name` must be given"),
    "task without a name": ({"tasks": [{}]}, "`name` must be given"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_schema(case: str) -> None:
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_dtypes_and_shapes(full: Schema) -> None:
    found = {feature.name: (feature.dtype, feature.shape) for feature in full.features}
    assert found == {
        "item_id": ("int32", ()),
        "device": ("int32", ()),
        "region": ("int32", ()),
        "age": ("float32", ()),
        "ctr": ("float32", ()),
        "content": ("float32", (3,)),
        "page_dwell": ("float32", ()),
    }
    assert (full.features[0].rows, full.features[1].rows, full.features[2].rows) == (1000, 3, 16)


# -- fitted constants -----------------------------------------------------------------------------------------------------


def test_fit_measures_what_it_was_not_given() -> None:
    random = np.random.default_rng(0)
    events = pd.DataFrame({"age": random.exponential(5, 500), "ctr": random.normal(3, 2, 500), "dwell": random.exponential(9, 500)})
    events.loc[3, "age"] = np.nan
    schema = make(
        features=[
            Number("age", transform="log1p_standardise", missing=0),
            Number("ctr", transform="standardise"),
            Number("plain"),
            Id("item_id"),
        ],
        actions=[Number("dwell", transform="log1p_standardise")],
    )
    fitted = schema.fit(events)
    age = np.log1p(events["age"].fillna(0))
    np.testing.assert_allclose([fitted.features[0].mean, fitted.features[0].std], [age.mean(), age.std(ddof=0)], rtol=1e-12)
    for column in (*fitted.features[:2], *fitted.actions):
        encoded = column.encode(events[column.name]).astype(np.float64)
        assert abs(encoded.mean()) < 1e-6
        assert abs(encoded.std() - 1) < 1e-6
    assert fitted.features[2:] == schema.features[2:]
    assert schema.features[0].mean is None, "the schema it was called on stays as it was"
    assert fitted.fit(events.assign(age=1.0)) == fitted, "fitted constants are kept"
    assert fitted.actions[0].known == "after"


def test_fit_keeps_the_one_constant_that_was_given() -> None:
    fitted = make(features=[Number("x", transform="standardise", mean=5.0)]).fit(pd.DataFrame({"x": [1.0, 3.0]}))
    assert (fitted.features[0].mean, fitted.features[0].std) == (5.0, 1.0)


def test_fit_of_a_constant_column() -> None:
    # the mean of seven times 0.1 is not 0.1 in binary, and its std is 1e-17: dividing by that would make noise of it
    fitted = make(features=[Number("x", transform="standardise")]).fit(pd.DataFrame({"x": [0.1] * 7}))
    assert (fitted.features[0].mean, fitted.features[0].std) == (0.1, 1.0)
    np.testing.assert_array_equal(fitted.features[0].encode([0.1]), [0])


def test_fit_finds_edges_of_bins_in_encoded_values(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    events = pd.DataFrame({"age": random.exponential(5, 500), "ctr": random.integers(0, 2, 500), "dwell": [7.0] * 500})
    schema = make(
        features=[Number("age", transform="log1p_standardise", bins=4, missing=0), Number("ctr", bins=4), Number("plain")],
        actions=[Number("dwell", transform="standardise", bins=4)],
    )
    fitted = schema.fit(events)
    age, ctr, plain = fitted.features
    encoded = age.encode(events["age"])
    np.testing.assert_allclose(age.edges, np.quantile(encoded.astype(np.float64), [0, 0.25, 0.5, 0.75, 1]), rtol=1e-6)
    assert age.edges == tuple(float(np.float32(edge)) for edge in age.edges)
    assert ctr.edges == (0.0, 1.0), "equal quantiles are merged"
    assert plain == schema.features[2]
    assert fitted.actions[0].edges == (0.0, 1.0), "a constant column has one bin, from its value on"
    assert fitted.fit(events * 3) == fitted, "fitted constants are kept"
    np.testing.assert_array_equal(encoded, age.model_copy(update={"bins": None, "edges": None}).encode(events["age"]))
    fitted.save(tmp_path / "schema.json")
    assert Schema.load(tmp_path / "schema.json") == fitted
    other = fitted.model_copy(update={"features": (age.model_copy(update={"edges": age.edges[1:]}), ctr, plain)})
    assert other.digest != fitted.digest


def test_bins_are_written_where_they_are_chosen() -> None:
    schema = make(features=[Number("age", transform="log1p")])
    assert "bins" not in schema.model_dump_json()
    assert "edges" not in schema.model_dump_json()
    binned = schema.binned()
    assert '"bins":16,"edges":null' in binned.model_dump_json()
    assert binned.digest != schema.digest
    assert not binned.features[0].fitted
    assert binned.features[0].encode([0.0]) == 0, "bins change no value"
    assert binned.binned(4) == binned, "numbers that have bins keep them"
    assert binned.binned(4, ["age"]).features[0].bins == 4
    with pytest.raises(ValueError, match="`bins` must be an integer from 1 to 4096. Received: bins=0"):
        schema.binned(0)
    with pytest.raises(ValueError, match=r"`names` must name numbers of the schema, of \['age'\]. Received: \['agee'\]"):
        schema.binned(4, ["agee"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bins": 0}, "`bins` must be at least 1. Received: 0"),
        ({"bins": 2, "edges": [0.0]}, "`edges` must be from 2 to `bins` \\+ 1 numbers. Received: bins=2, 1 edges"),
        ({"bins": 2, "edges": [0.0, 1.0, 2.0, 3.0]}, "`edges` must be from 2 to `bins` \\+ 1 numbers. Received: bins=2, 4 edges"),
        ({"edges": [0.0, 1.0]}, "`edges` must be from 2 to `bins` \\+ 1 numbers. Received: bins=None"),
        ({"bins": 2, "edges": [0.0, 0.0]}, "`edges` must increase"),
        ({"bins": 2, "edges": [0.0, float("nan")]}, "`edges` must be finite numbers"),
    ],
)
def test_wrong_edges(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Number("x", **settings)


def test_fit_errors() -> None:
    schema = make(features=[Number("x", transform="standardise")])
    with pytest.raises(ValueError, match=r"column 'x' of the schema is not in the log. It has: \['y'\]"):
        schema.fit(pd.DataFrame({"y": [1]}))
    with pytest.raises(ValueError, match="column 'x' cannot be fitted on a log without rows"):
        schema.fit(pd.DataFrame({"x": []}))
    with pytest.raises(ValueError, match=r"column 'x' must not be missing; .* Received: nan at row 1"):
        schema.fit(pd.DataFrame({"x": [1, np.nan]}))


# -- time -----------------------------------------------------------------------------------------------------------------


def test_unix_seconds() -> None:
    schema = make()
    encoded = schema.encode_time([EPOCH, EPOCH + 1, EPOCH + 2**31 - 1])
    assert encoded.dtype == np.int32
    np.testing.assert_array_equal(encoded, [0, 1, 2**31 - 1])
    np.testing.assert_array_equal(schema.encode_time([str(EPOCH + 5), float(EPOCH + 6)]), [5, 6])
    np.testing.assert_array_equal(make(epoch=0).encode_time([0, 7]), [0, 7])
    assert schema.encode_time([]).shape == (0,)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_datetimes_are_utc_where_they_name_no_zone(unit: str) -> None:
    stamps = pd.Series(pd.to_datetime(["2010-01-01 00:00:00", "2023-05-18 07:00:12"])).astype(f"datetime64[{unit}]")
    expected = [0, int(dt.datetime(2023, 5, 18, 7, 0, 12, tzinfo=dt.UTC).timestamp()) - EPOCH]
    np.testing.assert_array_equal(make().encode_time(stamps), expected)
    np.testing.assert_array_equal(make().encode_time(stamps.dt.tz_localize("UTC")), expected)


def test_datetimes_with_a_zone() -> None:
    local = pd.Series(pd.to_datetime(["2023-03-26 01:59:59", "2023-03-26 03:00:00"])).dt.tz_localize("Europe/Copenhagen")
    first, second = make().encode_time(local)
    assert second - first == 1, "the hour that summer time skips did not pass"
    assert first == int(dt.datetime(2023, 3, 26, 0, 59, 59, tzinfo=dt.UTC).timestamp()) - EPOCH
    plus_two = [dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2)))]
    assert make().encode_time(plus_two)[0] == int(plus_two[0].timestamp()) - EPOCH


@given(st.integers(0, 2**31 - 1), st.integers(-(10**9), 10**9))
def test_any_second_of_any_epoch_comes_back(second: int, epoch: int) -> None:
    assert make(epoch=epoch).encode_time([epoch + second])[0] == second


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([EPOCH, EPOCH - 1], rf"must not be before the schema's epoch \({EPOCH}\); give Schema\(epoch=.* Received: {EPOCH - 1} at row 1"),
        (pd.to_datetime(["2009-12-31 23:59:59"]), "must not be before the schema's epoch"),
        ([EPOCH + 2**31], "must be at most 2147483647 s after the schema's epoch"),
        ([EPOCH * 1000], "must hold seconds and holds milliseconds: divide by 1,000, `// 1000`. Received: 1262304000000 at row 0"),
        ([EPOCH, None], "column 'shown_at' must hold a time in every row. Received: .*nan.* at row 1"),
        ([EPOCH + 0.5], "must hold whole Unix seconds or datetimes, without a fraction of a second. Received: .*0.5"),
        ([np.inf], "must hold whole Unix seconds or datetimes"),
        (["2023-05-18 07:00:12"], "datetimes; read texts with pd.to_datetime. Received: '2023-05-18 07:00:12' at row 0"),
        (pd.to_datetime(["2020-01-01", None]), "column 'shown_at' must hold a time in every row. Received: NaT at row 1"),
        (pd.to_datetime([EPOCH * 1000, EPOCH * 1000 + 250], unit="ms"), "without a fraction of a second. .*250.* at row 1; remove"),
    ],
)
def test_wrong_times(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().encode_time(values)
