"""Times of a log: one rule for fractions of seconds, for floats that cannot hold seconds, and for other units, wherever a time enters."""

from __future__ import annotations

import datetime as dt
import decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import keras_ranking as kr
from keras_ranking.data.checks import check_events
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.labels import long_dwell_labels
from keras_ranking.data.sequences import build_sequences
from keras_ranking.values import seconds_of

START = 1_600_000_000
SCHEMA = kr.Schema(member="m", time="t", request="r", features=[kr.Id("item")], tasks=["click"])


def make_log(times: object) -> pd.DataFrame:
    return pd.DataFrame({"m": [1, 1], "t": times, "r": [1, 2], "item": [5, 5], "click": [1, 0], "dwell": [3.0, 4.0]})


HALVES = {
    "floats": [START + 0.5, START + 60.25],
    "texts": [f"{START}.5", f"{START + 60}.25"],
    "decimals": [decimal.Decimal(START) + decimal.Decimal("0.5"), decimal.Decimal(START + 60)],
    "ns": pd.to_datetime([START * 10**9 + 1, (START + 60) * 10**9], unit="ns"),
    "ms": pd.to_datetime([START * 1000 + 900, (START + 60) * 1000 + 100], unit="ms").as_unit("ms"),
    "zone": pd.to_datetime([START * 1000 + 900, (START + 60) * 1000 + 100], unit="ms", utc=True).tz_convert("Asia/Tokyo"),
    "objects": pd.Series([dt.datetime(2020, 9, 13, 12, 26, 40, 5), START + 60], dtype=object),
    "arrow": pd.Series(pa.array([START * 1000 + 900, START * 1000 + 60_000], pa.timestamp("ms")), dtype=pd.ArrowDtype(pa.timestamp("ms"))),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_fraction_is_refused_wherever_a_time_enters(name) -> None:
    log = make_log(HALVES[name])
    match = r"column 't' must hold whole Unix seconds or datetimes, without a fraction of a second. Received: .* at row 0"
    for enter in (
        lambda: check_events(log, SCHEMA),
        lambda: build_sequences(log, SCHEMA),
        lambda: kr.data.requests(log, SCHEMA),
        lambda: SCHEMA.encode_time(log["t"]),
        lambda: point_in_time_counts(log, "item", [None], time="t", delay=60),
        lambda: long_dwell_labels(log, "dwell", "t", []),
    ):
        with pytest.raises(ValueError, match=match):
            enter()
    assert check_events(log, SCHEMA, on_error="drop")[1].kept < 2


def test_a_gap_below_the_delay_is_not_counted_unless_rounding_is_asked_for() -> None:
    log = make_log(pd.to_datetime([START * 1000 + 900, (START + 60) * 1000 + 100], unit="ms"))  # 59.2 s apart
    count = {
        round: point_in_time_counts(log, "item", [None], time="t", delay=60, round=round)["item_views_all"].tolist()
        for round in ("floor", "ceil", "nearest")
    }
    # :00 and 1:00; :01 and 1:01; :01 and 1:00
    assert count == {"floor": [0, 1], "ceil": [0, 1], "nearest": [0, 0]}
    assert point_in_time_counts(make_log([START, START + 60]), "item", [None], time="t", delay=60)["item_views_all"].tolist() == [0, 1]


@pytest.mark.parametrize(("round", "wanted"), [("floor", [-2, 7, 7, 7]), ("ceil", [-1, 8, 8, 7]), ("nearest", [-1, 7, 8, 7])])
def test_rounding(round, wanted) -> None:
    seconds, faults = seconds_of([-1.5, 7.25, 7.5, 7.0], round=round)
    assert seconds.tolist() == wanted and not faults
    stamps = pd.to_datetime([-1500, 7250, 7500, 7000], unit="ms")
    assert seconds_of(stamps, round=round)[0].tolist() == wanted
    assert seconds_of(pd.Series(list(stamps), dtype=object), round=round)[0].tolist() == wanted


def test_rounding_is_the_same_in_the_checks_and_in_the_streams() -> None:
    log = make_log([START + 0.75, START + 60.25])
    assert check_events(log, SCHEMA, round="floor")[1].kept == 2
    for round, wanted in (("floor", [0, 60]), ("ceil", [1, 61]), ("nearest", [1, 60])):
        assert (build_sequences(log, SCHEMA, round=round).time + SCHEMA.epoch - START).tolist() == wanted
        assert (SCHEMA.encode_time(log["t"], round=round) + SCHEMA.epoch - START).tolist() == wanted
    with pytest.raises(ValueError, match="`round` must be one of .* Received: round='down'"):
        build_sequences(log, SCHEMA, round="down")
    with pytest.raises(ValueError, match=r"round='floor' rounds down to whole seconds"):
        build_sequences(log, SCHEMA)


@pytest.mark.parametrize("dtype", ["float16", "float32", "Float32", "float[pyarrow]"])
def test_narrow_floats_are_no_times(dtype) -> None:
    small = make_log(pd.Series([0, 60]).astype(dtype))
    match = r"column 't' must hold whole Unix seconds or datetimes; float16 and float32 cannot hold seconds, use int64"
    with pytest.raises(ValueError, match=match):
        check_events(small, SCHEMA)
    with pytest.raises(ValueError, match=match):
        point_in_time_counts(small, "item", [None], time="t")
    with pytest.raises(ValueError, match=match):
        SCHEMA.encode_time(np.asarray([START], dtype="float32"))
    scalars = make_log(pd.Series([np.float32(START), START + 60], dtype=object))
    assert check_events(scalars, SCHEMA, on_error="drop")[1].kept == 1
    # Control: float64 holds every second.
    assert check_events(make_log(np.array([START, START + 60], dtype=np.float64)), SCHEMA)[1].kept == 2


@pytest.mark.parametrize(
    ("times", "unit", "factor"),
    [
        ([START * 1000], "milliseconds", "1,000"),
        ([START * 10**6], "microseconds", "1,000,000"),
        ([START * 10**9], "nanoseconds", "1,000,000,000"),
    ],
)
@pytest.mark.parametrize("dtype", ["int64", "float64", "str", "object"])
def test_other_units_are_named(times, unit, factor, dtype) -> None:
    values = pd.Series(times).astype(dtype)
    with pytest.raises(ValueError, match=f"column 't' must hold seconds and holds {unit}: divide by {factor}"):
        SCHEMA.encode_time(values)
    log = make_log([*times, times[0]])
    with pytest.raises(ValueError, match=f"holds {unit}"):
        point_in_time_counts(log, "item", [None], time="t")


def test_integers_beyond_int64_and_int32() -> None:
    for values in (np.array([2**63 + 5], dtype=np.uint64), np.array([-(2**63)]), [2**70], [10**30], ["1" * 30]):
        with pytest.raises(ValueError, match="column 't' must"):
            SCHEMA.encode_time(values)
    with pytest.raises(ValueError, match="must be at most 2147483647 s after the schema's epoch"):
        SCHEMA.encode_time(np.array([SCHEMA.epoch + 2**31]))
    assert SCHEMA.encode_time(np.array([SCHEMA.epoch + 2**31 - 1])).tolist() == [2**31 - 1]


def test_a_time_before_the_epoch_names_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"must not be before the schema's epoch \(1262304000\); give Schema\(epoch=...\)"):
        SCHEMA.encode_time([1_000_000_000])
    assert SCHEMA.model_copy(update={"epoch": 0}).encode_time([1_000_000_000]).tolist() == [1_000_000_000]


@pytest.mark.parametrize("missing", [None, np.nan, pd.NaT, pd.NA])
def test_a_missing_time_is_one_thing_in_any_column(missing) -> None:
    columns = [pd.Series([missing, START], dtype=object), pd.Series([None, START], dtype="Int64")]
    for values in (*columns, pd.to_datetime(columns[1], unit="s")):
        with pytest.raises(ValueError, match="column 't' must hold a time in every row. Received: .* at row 0"):
            SCHEMA.encode_time(values)
