"""check_events: every fault is an error with column, row and value, or is counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from keras_ranking.columns import Category, Id, Number, Task, Vector
from keras_ranking.data.checks import check_events
from keras_ranking.schema import Schema

START = 1_600_000_000
SCHEMA = Schema(
    member="member",
    time="time",
    request="request",
    session="session",
    position="position",
    features=[
        Id("item"),
        Category("device", vocabulary=["m", "d"], known="context"),
        Number("age", transform="log1p"),
        Number("score", missing=0.0),
        Vector("embedding", size=2),
    ],
    actions=["click"],
    tasks=[Task("click"), Task("like", missing="unknown")],
)


def make_log() -> pd.DataFrame:
    rows = 12
    return pd.DataFrame(
        {
            "member": np.repeat(["a", "b"], 6),
            "time": START + np.repeat([0, 100, 50, 60], 3),
            "request": np.repeat([1, 2, 3, 4], 3),
            "session": np.repeat([1, 2], 6),
            "position": np.tile([1.0, 2.0, np.nan], 4),
            "item": np.arange(rows),
            "device": ["m", "d", None] * 4,
            "age": np.linspace(0, 5, rows),
            "score": [np.nan, 1.0] * 6,
            "embedding": [np.array([1.0, float(row)]) for row in range(rows)],
            "click": [0, 1, 0] * 4,
            "like": [0.0, 1.0, np.nan] * 4,
        },
        index=[f"r{row}" for row in range(rows)],
    )


def with_value(column: str, row: int, value: object) -> pd.DataFrame:
    log = make_log()
    values = log[column].astype(object).tolist()
    values[row] = value
    return log.assign(**{column: pd.Series(values, index=log.index, dtype=object)})


def test_a_good_log_passes_untouched():
    log = make_log()
    rows, report = check_events(log, SCHEMA)
    assert rows is log and report.kept == report.rows == 12 and not report.dropped and not report.reordered
    assert str(report) == "12 of 12 rows kept"


FAULTS = [
    ("member", None, "column 'member' must hold a member in every row"),
    ("session", None, "column 'session' must hold a session in every row"),
    ("time", None, "column 'time' must hold a time in every row"),
    ("time", "noon", "column 'time' must hold whole Unix seconds or datetimes"),
    ("time", START + 0.5, "column 'time' must hold whole Unix seconds or datetimes"),
    ("time", 100, "column 'time' must not be before the schema's epoch"),
    ("time", 5e9, "column 'time' must be at most"),
    ("item", 2.5, "column 'item' is an id and must hold integers or strings"),
    ("age", "old", "column 'age' must hold numbers"),
    ("age", np.inf, "column 'age' must hold finite numbers"),
    ("age", None, "column 'age' must not be missing"),
    ("age", -1.0, "column 'age' has transform='log1p' and must not be negative"),
    ("score", -np.inf, "column 'score' must hold finite numbers"),
    ("embedding", [1.0], "column 'embedding' must hold vectors of 2 numbers"),
    ("embedding", [1.0, np.nan], "column 'embedding' must hold finite numbers"),
    ("click", 2, "column 'click' of task 'click' must hold 0 or 1"),
    ("click", None, "column 'click' must not be missing"),
    ("like", 0.5, "column 'like' of task 'like' must hold 0 or 1"),
    ("member", "x", "column 'member' must hold one member for all rows of a request"),
    ("position", 0, "column 'position' must hold whole numbers, 1 = shown first"),
    ("position", 1.5, "column 'position' must hold whole numbers"),
    ("position", 2, "column 'position' must not repeat inside a request"),
]


@pytest.mark.parametrize(("column", "value", "message"), FAULTS)
def test_a_fault_is_named_and_counted(column, value, message):
    log = with_value(column, 5, value)
    with pytest.raises(ValueError) as caught:
        check_events(log, SCHEMA)
    assert message in str(caught.value)
    shown = "nan" if value is None else str(value).strip("[]")
    assert "at row 5 (index 'r5')" in str(caught.value) and shown.split(",")[0] in str(caught.value).replace("None", "nan")

    rows, report = check_events(log, SCHEMA, on_error="drop")
    gone = 3 if "for all rows of a request" in message else 1  # who is right cannot be known: the request goes
    assert report.kept == len(rows) == 12 - gone and list(report.dropped.values()) == [gone]
    assert "r5" not in rows.index and message in next(iter(report.dropped))
    assert f"{gone} left out: column '{column}'" in str(report)
    check_events(rows, SCHEMA)  # what is left is good


def test_a_request_with_two_times():
    log = make_log()
    log.loc["r4", "time"] += 1
    received = rf"Received: {START + 101} at row 4 \(index 'r4'\)"
    with pytest.raises(ValueError, match="column 'time' must hold one time for all rows of a request. " + received):
        check_events(log, SCHEMA)
    assert check_events(log, SCHEMA, on_error="drop")[1].dropped == {"column 'time' must hold one time for all rows of a request": 3}


def test_a_missing_column_is_named_with_what_there_is():
    for on_error in ("raise", "drop"):
        with pytest.raises(ValueError, match=r"column 'age' of the schema is not in the log. It has: \['click', 'device'"):
            check_events(make_log().drop(columns="age"), SCHEMA, on_error=on_error)


def test_a_column_twice():
    log = make_log()
    with pytest.raises(ValueError, match="column 'age' is in the log 2 times"):
        check_events(pd.concat([log, log[["age"]]], axis=1), SCHEMA)


def test_an_exact_repetition():
    log = make_log().drop(columns="position")
    schema = Schema.model_validate({**SCHEMA.model_dump(), "position": None})
    again = pd.concat([log.iloc[:9], log.iloc[[7]].rename(index={"r7": "again"}), log.iloc[9:]])
    with pytest.raises(ValueError, match=r"repeats an earlier row exactly .* at row 9 \(index 'again'\)"):
        check_events(again, schema)
    rows, report = check_events(again, schema, on_error="drop")
    assert list(rows.index) == list(log.index) and list(report.dropped.values()) == [1]
    # Control: the same item in the same list with another value is no repetition.
    other = again.copy()
    other.iloc[9, other.columns.get_loc("age")] = 0.25
    assert check_events(other, schema)[1].kept == 13


def test_time_going_back_is_a_fault_unless_sorting_is_asked_for():
    log = make_log()
    turned = log.iloc[[3, 4, 5, 0, 1, 2, *range(6, 12)]]
    with pytest.raises(ValueError, match=r"column 'time' must not go back in time within a member.* at row 3 \(index 'r0'\); 3 such rows"):
        check_events(turned, SCHEMA)
    rows, report = check_events(turned, SCHEMA, sort=True)
    assert report.reordered == 3 and report.kept == 12 and rows["time"].is_monotonic_increasing
    assert list(rows.index[:3]) == ["r0", "r1", "r2"] and "3 rows sorted into time order" in str(report)
    rows, report = check_events(turned, SCHEMA, on_error="drop")
    assert list(rows.index) == ["r3", "r4", "r5", *(f"r{row}" for row in range(6, 12))]
    # Control: members' times may interleave freely.
    assert check_events(log.iloc[[6, 7, 8, 0, 1, 2, 9, 10, 11, 3, 4, 5]], SCHEMA)[1].kept == 12


def test_several_faults_in_one_row_count_once():
    log = with_value("age", 5, np.inf)
    log["time"] = log["time"].where(log.index != "r5", 7)
    rows, report = check_events(log, SCHEMA, on_error="drop")
    assert sum(report.dropped.values()) == 1 and report.kept == len(rows) == 11


def test_datetimes_are_times():
    log = make_log()
    stamps = log.assign(time=pd.to_datetime(log["time"], unit="s"))
    assert check_events(stamps, SCHEMA)[1].kept == 12
    early = stamps.assign(time=stamps["time"].where(stamps.index != "r2", pd.Timestamp("1999-01-01")))
    with pytest.raises(ValueError, match=r"before the schema's epoch .*1999-01-01.* at row 2"):
        check_events(early, SCHEMA)


def test_an_empty_log_passes():
    assert check_events(make_log().iloc[:0], SCHEMA)[1].kept == 0


def test_wrong_arguments():
    with pytest.raises(TypeError, match="`events` must be a pandas DataFrame. Received: dict"):
        check_events({"member": [1]}, SCHEMA)
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'drop'. Received: on_error='ignore'"):
        check_events(make_log(), SCHEMA, on_error="ignore")
