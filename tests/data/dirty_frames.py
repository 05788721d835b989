"""Small frames with faults of every kind, and the rows that a check must leave out, known because they were put there."""

from __future__ import annotations

import datetime as dt
import decimal
import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from keras_ranking.columns import Category, Id, Ids, Number, Task, Vector
from keras_ranking.schema import Schema

START = 1_600_000_000
_ROLES: dict[str, Any] = {"member": "member", "time": "time", "request": "request"}
# Two schemas with half of the kinds each: a frame costs half as much.
SCHEMAS = (
    Schema(
        **_ROLES,
        session="session",
        features=[
            Id("item", buckets=64),
            Category("device", vocabulary=["m", "d"], known="context"),
            Number("age", transform="log1p"),
            Vector("embedding", size=2),
        ],
        actions=["click"],
        tasks=[Task("click")],
    ),
    Schema(
        **_ROLES,
        position="position",
        features=[
            Id("author", buckets=None),
            Category("topic", buckets=16),
            Ids("tags", buckets=64, size=3, separator="|"),
            Number("score", missing=0.5),
            Number("price", transform="standardise", mean=2.0, std=0.5),
        ],
        actions=[Number("dwell", transform="log1p", missing=0.0)],
        tasks=[Task("like", missing="unknown")],
    ),
)
NONE: tuple[Any, ...] = (None, np.nan, pd.NaT, pd.NA, float("nan"), decimal.Decimal("nan"))
NOT_NUMBERS: tuple[Any, ...] = (
    "x", "1,5", "0x10", "True", b"\xff", [1.0], (1.0,), {}, {"a": 1}, np.ones(1), object(), 1 + 2j, dt.datetime(2020, 1, 1),
    dt.timedelta(1), pd.Timestamp(5), np.datetime64("2020-01-01"), pd.Period("2020"), "\ud800", "nan!",
)  # fmt: skip
NOT_FINITE: tuple[Any, ...] = (
    np.inf, -np.inf, np.float32(np.inf), "inf", "-inf", decimal.Decimal("Infinity"), 10**400, 1e39, np.float64(1e300), 10**40, "1e39",
)  # fmt: skip
NOT_IDS: tuple[Any, ...] = (
    1.5, 2.0, np.float32(3), [1], (1, "a"), {"a"}, b"\xff\xfe", "\ud800", "a\udfffb", decimal.Decimal(3), dt.datetime(2020, 1, 1),
    np.array([1]), 1j, 10**5000, np.inf, object(), pd.Timestamp(5), fractions.Fraction(1, 2),
)  # fmt: skip
NOT_SETS: tuple[Any, ...] = (
    [1, 2, 3, 4], "a|b|c|d", np.arange(4), {1, 2, 3, 4}, ["a", None, "b", "c", "d"], [1.5], np.array([1.5]), 1.5, np.inf, [2.0**53], [[1]],
    np.ones((2, 1), dtype=int), np.array([1.0], "float32"), [np.float16(1)], {}, {"a": 1}, object(), [object()], 1j, b"\xff", "a|\ud800",
    ["\ud800"], [b"\xff"], [decimal.Decimal(3)], decimal.Decimal(3), dt.datetime(2020, 1, 1), [pd.Timestamp(5)], [10**5000],
    np.array(["2020"], "M8[D]"), pa.scalar({"a": 1}), bytearray(b"a"),
)  # fmt: skip
NOT_KEYS: tuple[Any, ...] = ([1], {"a": 1}, {1}, np.array([1, 2]), np.float32(7), np.float16(7), float(2**53), 1e300, np.inf, ([1],))
NOT_TIMES: tuple[Any, ...] = (
    *NONE, START + 0.5, f"{START}.5", pd.Timestamp(START + 0.25, unit="s"), np.datetime64("2020-09-13T12:26:40.000001"), np.float32(START),
    "noon", "2020-09-13", START * 1000, START * 10**6, START * 10**9, -5, 100, 2**32, 2**63, 2**70, 10**400, np.inf, -np.inf, True, [START],
    dt.date(2020, 9, 13), dt.timedelta(1), 1j, b"\xff", "\ud800", pd.Timestamp("1999-01-01"), pd.Timestamp("2200-01-01", tz="Asia/Tokyo"),
    decimal.Decimal("1600000000.5"), decimal.Decimal("Infinity"), dt.datetime(9999, 12, 31), np.timedelta64(5, "s"),
)  # fmt: skip
NOT_VECTORS: tuple[Any, ...] = (
    *NONE, [1.0], [1.0, 2.0, 3.0], "ab", b"ab", "[1, 2]", ["1", "2"], [[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.0]], [1.0, [2.0]], [True, False],
    np.array([True, False]), [1.0, True], [1.0, None], [1.0, np.nan], [np.inf, 0.0], [1e39, 0.0], [2**200, 1], np.array([1.0, 1e300]), 5,
    2.5, {"a": 1, "b": 2}, {1, 2}, [1j, 2], [decimal.Decimal(1), 2], np.ones((2, 1)), np.ones((1, 2)), np.array(["a", "b"]), [pd.NA, 1.0],
    [dt.datetime(2020, 1, 1)] * 2, np.ma.masked_array([1.0, 2.0], [True, False]), np.array([1, 2], "M8[s]"), [10**400, 1.0], (),
)  # fmt: skip
NOT_LABELS: tuple[Any, ...] = (
    2,
    -1,
    0.5,
    "yes",
    "true",
    np.inf,
    [1],
    b"\xff",
    1e39,
    10**400,
    "\ud800",
    1j,
    dt.datetime(2020, 1, 1),
    np.ones(1),
)
BAD: dict[str, tuple[Any, ...]] = {
    "member": (*NONE, *NOT_KEYS),
    "session": (*NONE, *NOT_KEYS),
    "request": (*NONE, *NOT_KEYS),
    "time": NOT_TIMES,
    "position": (*NOT_NUMBERS, *NOT_FINITE, 0, -1, 1.5, "2.5", 2**31),
    "item": NOT_IDS,
    "author": NOT_IDS,
    "device": NOT_IDS,
    "topic": NOT_IDS,
    "tags": NOT_SETS,
    "age": (*NONE, *NOT_NUMBERS, *NOT_FINITE[:7], -1, -0.001, "-5", np.float32(-2), decimal.Decimal(-1)),
    "score": (*NOT_NUMBERS, *NOT_FINITE),
    "price": (*NONE, *NOT_NUMBERS, *NOT_FINITE, 3e38, -3e38),
    "embedding": NOT_VECTORS,
    "click": (*NONE, *NOT_LABELS),
    "dwell": (*NOT_NUMBERS, -1, "-0.5", np.inf),
    "like": NOT_LABELS,
}
# Other ways to hold the same values, all of them good. Each takes and returns a Series.
COLUMNS: dict[str, tuple[Callable[[pd.Series], Any], ...]] = {
    "number": (
        lambda s: s.astype("Float64"),
        lambda s: s.astype("category"),
        lambda s: s.map(str),
        lambda s: s.map(lambda value: str(value).encode()).astype(object),
        lambda s: s.map(decimal.Decimal).astype(object),
        lambda s: s.map(fractions.Fraction).astype(object),
        lambda s: s.map(np.float64).astype(object),
        lambda s: s.astype(np.float32),
        lambda s: s.astype(pd.ArrowDtype(pa.float64())),
        lambda s: s.astype(pd.SparseDtype("float64")),
    ),
    "id": (
        lambda s: s.astype("Int64"),
        lambda s: s.astype("category"),
        lambda s: s.astype(str),
        lambda s: s.astype(np.uint64),
        lambda s: s.astype(np.float64),
        lambda s: s.map(lambda value: str(value).encode()).astype(object),
        lambda s: s.map(np.int32).astype(object),
        lambda s: s.map(lambda value: np.str_(value)).astype(object),
        lambda s: s.astype(pd.ArrowDtype(pa.int32())),
        lambda s: (s + 2**60).astype(object),
        lambda s: s + 2**62,
    ),
    "time": (
        lambda s: pd.to_datetime(s, unit="s"),
        lambda s: pd.to_datetime(s, unit="s").dt.tz_localize("UTC").dt.tz_convert("America/New_York"),
        lambda s: pd.to_datetime(s, unit="s").dt.as_unit("ms").astype(pd.ArrowDtype(pa.timestamp("ms"))),
        lambda s: s.astype(np.float64),
        lambda s: s.astype("Int64"),
        lambda s: s.astype(str),
        lambda s: s.map(decimal.Decimal).astype(object),
        lambda s: pd.to_datetime(s, unit="s").astype(object),
        lambda s: pd.Series([value if value % 2 else pd.Timestamp(value, unit="s") for value in s], index=s.index, dtype=object),
    ),
    "vector": (
        lambda s: s.map(np.asarray),
        lambda s: s.map(tuple),
        lambda s: s.map(lambda value: np.asarray(value, dtype=np.float16)),
        lambda s: s.astype(pd.ArrowDtype(pa.list_(pa.float64()))),
        lambda s: s.map(pd.Series),
    ),
    "set": (
        lambda s: s.map(tuple),
        lambda s: s.map(set),
        lambda s: s.map(lambda value: np.asarray(value, dtype=np.int32)),
        lambda s: s.map(lambda value: np.asarray([*value, np.nan])),
        lambda s: s.map(lambda value: [*map(str, value), None, ""]),
        lambda s: s.map(lambda value: "|".join(map(str, value))),
        lambda s: s.map(lambda value: "|".join(map(str, value)).encode()).astype(object),
        lambda s: s.map(lambda value: "|".join(map(str, value))).astype("category"),
        lambda s: s.map(lambda value: value or None),
        lambda s: s.map(lambda value: value[0] if len(value) == 1 else value),
        lambda s: s.astype(pd.ArrowDtype(pa.list_(pa.int64()))),
        lambda s: s.map(pa.scalar),
        lambda s: s.map(lambda value: pd.Series(value, dtype="Int64")),
    ),
    "label": (
        lambda s: s.astype(bool),
        lambda s: s.astype("boolean"),
        lambda s: s.astype(str),
        lambda s: s.astype(np.float32),
        lambda s: s.astype(pd.ArrowDtype(pa.bool_())),
        lambda s: s.map(np.bool_).astype(object),
    ),
}
KINDS = {
    "number": ("age", "score", "price", "dwell"),
    "id": ("item", "author", "topic", "member", "request", "session"),
    "time": ("time",),
    "vector": ("embedding",),
    "set": ("tags",),
    "label": ("click", "like"),
}


def clean_frame(rng: np.random.Generator) -> pd.DataFrame:
    """A good log of 3 to 5 requests of 2 rows."""
    requests = int(rng.integers(3, 6))
    rows = 2 * requests
    request = np.repeat(np.arange(requests), 2)
    frame = pd.DataFrame(
        {
            "member": request % 2,
            "time": START + 60 * request,
            "request": request + 100,
            "session": request % 2,
            "position": np.tile([1, 2], requests),
            "item": np.arange(rows),
            "author": rng.integers(0, 1000, rows),
            "device": rng.choice(["m", "d"], rows),
            "topic": rng.integers(0, 9, rows),
            "tags": [rng.choice(9, rng.integers(0, 4), replace=False).tolist() for _ in range(rows)],
            "age": rng.integers(0, 50, rows) / 2,
            "score": rng.integers(-50, 50, rows) / 4,
            "price": rng.integers(0, 50, rows) / 8,
            "embedding": rng.integers(-9, 9, (rows, 2)).astype(float).tolist(),
            "click": rng.integers(0, 2, rows),
            "dwell": rng.integers(0, 50, rows) / 2,
            "like": rng.integers(0, 2, rows),
        }
    )
    return frame.set_axis([f"r{row}" for row in rng.permutation(rows)], axis=0)


def dirty_frame(seed: int) -> tuple[Schema, pd.DataFrame, pd.DataFrame, list[int]]:
    """A schema, a frame, the clean one that it was made from, and the places of the rows that are good."""
    rng = np.random.default_rng(seed)
    schema = SCHEMAS[seed % 2]
    clean = clean_frame(rng)
    frame = clean.copy()
    for kind, names in KINDS.items():
        name = str(rng.choice(names))
        if rng.random() < 0.5 and name in schema.columns:
            frame[name] = COLUMNS[kind][int(rng.integers(len(COLUMNS[kind])))](clean[name])
    bad: set[int] = set()
    for _ in range(int(rng.integers(1, 4))):
        name = str(rng.choice(schema.columns))
        row = int(rng.integers(len(frame)))
        value = BAD[name][int(rng.integers(len(BAD[name])))]
        whole = frame[name].dtype.kind == "f" and name in KINDS["id"]  # as objects, floats are not ids
        values = (clean if whole else frame)[name].astype(object).tolist()
        values[row] = value
        column = np.empty(len(values), dtype=object)
        column[:] = values
        frame[name] = pd.Series(column, index=frame.index, dtype=object)
        bad.add(row)
    return schema, frame, clean, [row for row in range(len(frame)) if row not in bad]


def whole_columns(rows: int) -> dict[str, pd.Series]:
    """Columns of every type that pandas has, of an even number of rows; most of them are no values of a log."""
    count, half = list(range(rows)), rows // 2

    def arrow(values: list[Any], kind: pa.DataType) -> pd.Series:
        return pd.Series(pa.array(values, kind), dtype=pd.ArrowDtype(kind))

    def objects(values: list[Any]) -> pd.Series:
        return pd.Series(values, dtype=object)

    columns: dict[str, Any] = {
        "period": pd.period_range("2020", periods=rows),
        "interval": pd.interval_range(0, rows),
        "timedelta": pd.to_timedelta(count, unit="s"),
        "complex": np.arange(rows) + 1j,
        "big endian": np.arange(rows).astype(">i8"),
        "big endian float": np.arange(rows).astype(">f8"),
        "long double": np.arange(rows).astype(np.longdouble),
        "float16": np.arange(rows).astype(np.float16),
        "uint64": np.full(rows, 2**64 - 1, dtype=np.uint64),
        "bytes": np.array([b"1"] * rows),
        "days": np.array(["2020-01-01"] * rows, dtype="M8[s]"),
        "zone": pd.date_range("2020", periods=rows, tz="UTC"),
        "no times": pd.to_datetime([None] * rows),
        "nullable": pd.array([1, pd.NA] * half, dtype="Int8"),
        "nullable booleans": pd.array([True, pd.NA] * half, dtype="boolean"),
        "texts": pd.array(["1", pd.NA] * half, dtype="string"),
        "sparse": pd.array(count, dtype=pd.SparseDtype("int64", 0)),
        "sparse gaps": pd.array([np.nan, 1.0] * half, dtype="Sparse[float]"),
        "categories": pd.Categorical([1, None] * half),
        "categories of floats": pd.Categorical([1.5, 2.0] * half),
        "categories of both": pd.Categorical(objects([1, "a"] * half)),
        "no categories": pd.Categorical([None] * rows),
        "structs": arrow([{"a": row} for row in count], pa.struct([("a", pa.int64())])),
        "lists": arrow([[float(row), 1.0] for row in count], pa.list_(pa.float64())),
        "lists with gaps": arrow([[float(row), None] for row in count], pa.list_(pa.float64(), 2)),
        "binary": arrow([b"\xff"] * rows, pa.binary()),
        "decimals": arrow([decimal.Decimal(row) for row in count], pa.decimal128(10, 2)),
        "nulls": arrow([None] * rows, pa.null()),
        "dates": arrow([dt.date(2020, 1, 1)] * rows, pa.date32()),
        "times of day": arrow([dt.time(1)] * rows, pa.time64("us")),
        "durations": arrow([dt.timedelta(seconds=row) for row in count], pa.duration("s")),
        "stamps": arrow([dt.datetime(2020, 1, 1)] * rows, pa.timestamp("ms", "Asia/Tokyo")),
        "dictionary": pd.Series(pa.array(["a"] * rows).dictionary_encode(), dtype=pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string()))),
        "tuples": objects([(row,) for row in count]),
        "sets": objects([{row} for row in count]),
        "series": objects([pd.Series([1.0, 2.0])] * rows),
        "frames": objects([pd.DataFrame({"a": [1]})] * rows),
        "types": objects([int] * rows),
        "scalars in arrays": objects([np.array(1.0)] * rows),
        "signalling": objects([decimal.Decimal("sNaN")] * rows),
        "missing of two kinds": objects([np.datetime64("NaT"), np.timedelta64("NaT")] * half),
        "zones and none": objects([pd.Timestamp("2020-01-01", tz="UTC"), pd.Timestamp("2020-01-01")] * half),
    }
    return {name: pd.Series(values) for name, values in columns.items()}
