"""Ids and keys of a log: large integers stay apart, narrow floats are refused, and missing is one thing in any column."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import keras_ranking as kr
from keras_ranking.data.checks import check_events
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.log_columns import key_codes
from keras_ranking.data.sequences import build_sequences
from keras_ranking.ops.hashing import canonical_text

START = 1_600_000_000
SCHEMA = kr.Schema(member="m", time="t", request="r", session="s", features=[kr.Id("item", buckets=None)], tasks=["click"])
LARGE = [2**53, 2**53 + 1, 2**53 + 2, 2**53 + 1]
HOLDERS = {
    "int64": lambda values: np.asarray(values, dtype=np.int64),
    "uint64": lambda values: np.asarray(values, dtype=np.uint64),
    "Int64": lambda values: pd.array(values, dtype="Int64"),
    "UInt64": lambda values: pd.array(values, dtype="UInt64"),
    "arrow": lambda values: pd.array(values, dtype=pd.ArrowDtype(pa.int64())),
    "objects": lambda values: pd.Series(values, dtype=object),
    "texts": lambda values: pd.Series([str(value) for value in values]),
    "category": lambda values: pd.Categorical(values),
    "mixed": lambda values: pd.Series([np.uint64(values[0]), int(values[1]), np.int64(values[2]), int(values[3])], dtype=object),
}


def make_log(**columns: object) -> pd.DataFrame:
    base = {"m": [1, 2, 3, 4], "t": [START, START + 1000, START + 2000, START + 3000], "r": [1, 2, 3, 4], "s": 1, "item": [5, 6, 7, 8]}
    return pd.DataFrame({**base, "click": [1, 0, 1, 0], **columns})


@pytest.mark.parametrize("holder", HOLDERS)
def test_large_integers_stay_apart(holder) -> None:
    values = HOLDERS[holder](LARGE)
    assert canonical_text(values).tolist() == list(map(str, LARGE))
    built = build_sequences(make_log(m=values, s=values, item=values), SCHEMA)
    assert built.num_members == 3 and np.diff(built.offsets).tolist() == [1, 2, 1]
    assert len(set(map(tuple, built.columns["item"].tolist()))) == 3 and len(set(built.session.tolist())) == 3
    log = make_log(item=values)
    assert key_codes(log, ("item",)).tolist() == [0, 1, 2, 1]
    assert key_codes(log, ("click", "item")).tolist() == [0, 1, 2, 1]
    assert point_in_time_counts(log, "item", [None], time="t")["item_views_all"].tolist() == [0, 0, 0, 1]
    requests = build_sequences(make_log(r=HOLDERS[holder]([2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3])), SCHEMA)
    assert len(set(requests.request.tolist())) == 4


@pytest.mark.parametrize("column", ["m", "r", "s", "item"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "Float32", "float[pyarrow]"])
def test_narrow_floats_are_no_ids(column, dtype) -> None:
    log = make_log(**{column: pd.Series([1, 2, 3, 4]).astype(dtype)})
    with pytest.raises(ValueError, match=rf"column '{column}' is (a key and must not be float16|an id and must hold .*; [fF]loat)"):
        check_events(log, SCHEMA)
    with pytest.raises(ValueError, match="use int64 or text"):
        point_in_time_counts(log, column, [None], time="t")
    assert check_events(log, SCHEMA, on_error="drop")[1].kept == 0
    # Control: float64 holds small integers, as pandas reads a column with gaps.
    assert check_events(make_log(**{column: [1.0, 2.0, 3.0, 4.0]}), SCHEMA)[1].kept == 4


@pytest.mark.parametrize("column", ["m", "r", "s", "item"])
@pytest.mark.parametrize("value", [2.0**53, -(2.0**53), 1e300, np.inf])
def test_floats_in_which_ids_collide_are_refused(column, value) -> None:
    log = make_log(**{column: np.array([1.0, 2.0, 3.0, value])})
    with pytest.raises(ValueError, match=rf"column '{column}' is .* at row 3"):
        check_events(log, SCHEMA)
    with pytest.raises(ValueError, match="is a key and must not be a float of 2\\*\\*53 or more"):
        point_in_time_counts(log, column, [None], time="t")
    assert check_events(make_log(**{column: np.array([1.0, 2.0, 3.0, 2.0**53 - 1])}), SCHEMA)[1].kept == 4


def test_an_integer_beside_a_missing_value_is_not_rounded() -> None:
    """A list of both becomes float64 in pandas, in which 2**53 + 1 is 2**53."""
    assert canonical_text([2**53 + 1, None]).tolist() == [str(2**53 + 1), ""]
    with pytest.raises(ValueError, match="must hold integers or strings"):
        canonical_text([float(2**53 + 1), None])


MISSING = [None, np.nan, pd.NaT, pd.NA, float("nan")]


@pytest.mark.parametrize("missing", MISSING)
def test_missing_is_one_thing(missing) -> None:
    holders = [pd.Series([missing, "a", "b", "a"], dtype=object), pd.Series([missing, 1, 2, 1], dtype=object)]
    for values in holders:
        log = make_log(item=values)
        assert key_codes(log, ("item",)).tolist() == [-1, 0, 1, 0]
        assert point_in_time_counts(log, "item", [None], time="t")["item_views_all"].tolist() == [0, 0, 0, 1]
        assert build_sequences(log, SCHEMA).columns["item"][0].tolist() == [0, 0]
        for column, role in (("m", "member"), ("r", "request"), ("s", "session")):
            with pytest.raises(ValueError, match=f"column '{column}' must hold a {role} in every row. Received: .* at row 0"):
                check_events(make_log(**{column: values}), SCHEMA)


def test_days_as_keys_with_a_gap() -> None:
    days = pd.Series(pd.to_datetime(["2020-01-01", None, "2020-01-02", "2020-01-01"]))
    assert key_codes(pd.DataFrame({"d": days}), ("d",)).tolist() == [0, -1, 1, 0]
    assert key_codes(pd.DataFrame({"d": days.astype(object)}), ("d",)).tolist() == [0, -1, 1, 0]


def test_lists_are_no_keys() -> None:
    log = make_log(item=pd.Series([[1], [2], [1], None], dtype=object))
    with pytest.raises(ValueError, match="column 'item' is a key and must hold integers, texts or .* Received: .* at row 0"):
        point_in_time_counts(log, "item", [None], time="t")


@pytest.mark.parametrize("value", [True, np.True_, 1, "1", np.int8(1), b"1", 1.0])
def test_a_boolean_is_written_as_1_everywhere(value) -> None:
    assert canonical_text(pd.Series([value])).tolist() == ["1"]
    if not isinstance(value, float):  # in a column of objects a float is no id
        assert canonical_text(pd.Series([value, None], dtype=object)).tolist() == ["1", ""]
