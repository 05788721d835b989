"""Kinds of columns, and tasks: errors and encoded values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from keras_ranking import Category, Id, Number, Task, Vector


@pytest.mark.parametrize("name", ["", "1st", "a b", "a-b", "ä", "a\n"])
@pytest.mark.parametrize("kind", [Id, Number, Task])
def test_unusable_name(kind: Any, name: str) -> None:
    with pytest.raises(ValueError, match="`name` must be letters, digits and underscores, not starting with a digit"):
        kind(name)


@pytest.mark.parametrize("name", ["time", "segment", "session", "length", "count", "request_time"])
def test_names_of_model_inputs_are_reserved(name: str) -> None:
    with pytest.raises(ValueError, match=f"must not be a word that the model inputs use themselves. Received: name='{name}'"):
        Id(name)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Id("a", buckets=1),
        lambda: Id("a", buckets=2**31),
        lambda: Id("a", known="later"),
        lambda: Id("a", bucket=5),
        lambda: Category("a", vocabulary=[]),
        lambda: Category("a", vocabulary=["x", "x"]),
        lambda: Category("a", vocabulary=["x", ""]),
        lambda: Category("a", vocabulary=["x", None]),
        lambda: Category("a", vocabulary="xyz"),
        lambda: Category("a", vocabulary=[1, "1"]),
        lambda: Number("a", transform="sqrt"),
        lambda: Number("a", std=0.0),
        lambda: Number("a", mean=float("nan")),
        lambda: Number("a", std=float("inf")),
        lambda: Number("a", missing=float("nan")),
        lambda: Vector("a"),
        lambda: Vector("a", size=0),
        lambda: Task("a", missing="drop"),
    ],
)
def test_invalid_column(build: Any) -> None:
    with pytest.raises(ValueError, match="^(`|there is no `)"):
        build()


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        (Number("x"), [1, -2.5, 0], [1, -2.5, 0]),
        (Number("x"), ["1", "-2.5", "1e3"], [1, -2.5, 1000]),
        (Number("x"), [True, False], [1, 0]),
        (Number("x"), pd.Series([1, 2], dtype="category"), [1, 2]),
        (Number("x"), pd.Series([1, 2], dtype="Int64"), [1, 2]),
        (Number("x"), [], []),
        (Number("x", transform="log1p"), [0, np.e - 1, 99], [0, 1, np.log(100)]),
        (Number("x", transform="standardise", mean=10, std=4), [10, 14, 2], [0, 1, -2]),
        (Number("x", transform="log1p_standardise", mean=1, std=2), [np.e - 1, 0], [0, -0.5]),
        (Number("x", missing=-1), [1, None, np.nan], [1, -1, -1]),
        (Number("x", missing=0), pd.Series([None, 3], dtype="Int64"), [0, 3]),
        (Number("x", missing=np.e - 1, transform="log1p"), [np.nan], [1]),
    ],
)
def test_number(column: Number, values: Any, expected: list[float]) -> None:
    encoded = column.encode(values)
    assert encoded.dtype == np.float32
    np.testing.assert_allclose(encoded, np.asarray(expected, dtype=np.float32), rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (Number("x"), [1, np.nan, np.nan], r"column 'x' must not be missing; state Number.* Received: nan at row 1 \(2 such rows\)"),
        (Number("x"), [np.inf], "must hold finite numbers. Received: inf at row 0"),
        (Number("x", missing=0), [1, -np.inf], "must hold finite numbers. Received: -inf at row 1"),
        (Number("x"), ["3", "three"], "column 'x' must hold numbers. Received: 'three' at row 1"),
        (Number("x", missing=0), ["3", "three"], "column 'x' must hold numbers. Received: 'three' at row 1"),
        (Number("x"), pd.Series(["a"], dtype="category"), "column 'x' must hold numbers. Received: 'a' at row 0"),
        (Number("x"), pd.to_datetime(["2020-01-01"]), "column 'x' must hold numbers. Received: Timestamp"),
        (Number("x"), [1.0, 1e300], r"column 'x' must hold numbers within float32. Received: 1e\+300 at row 1"),
        (Number("x", transform="log1p"), [1, -0.5], "transform='log1p' and must not be negative. Received: -0.5 at row 1"),
        (Number("x", transform="standardise"), [1], "column 'x' has transform='standardise' without `mean` and `std`"),
        (Number("x", transform="standardise", mean=1), [1], "without `mean` and `std`"),
        (Vector("v", size=2), [[1, 2], [3]], r"column 'v' must hold vectors of 2 numbers. Received: \[3\] at row 1"),
        (Vector("v", size=2, missing=0.0), [[1, 2], [3]], r"column 'v' must hold vectors of 2 numbers. Received: \[3\] at row 1"),
        (Vector("v", size=2), [[1, 2], None], "must hold vectors of 2 numbers. Received: None at row 1"),
        (Vector("v", size=2), ["ab"], "must hold vectors of 2 numbers. Received: 'ab' at row 0"),
        (Vector("v", size=2), [["1", "2"]], "must hold vectors of 2 numbers"),
        (Vector("v", size=2), np.zeros((4, 3)), "must hold vectors of 2 numbers"),
        (Vector("v", size=2), [[[1, 2], [3, 4]]], "must hold vectors of 2 numbers"),
        (Vector("v", size=2), [[1, 2], [np.nan, 1]], "column 'v' must hold finite numbers. Received: .* at row 1"),
        (Vector("v", size=1), [[1e300]], "column 'v' must hold numbers within float32"),
    ],
)
def test_wrong_values_name_column_row_and_value(column: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        column.encode(values)


def test_vector() -> None:
    expected = np.array([[1, 2], [3, 4.5]], dtype=np.float32)
    column = Vector("v", size=2)
    for values in ([[1, 2], [3, 4.5]], pd.Series([np.array([1, 2]), [3, 4.5]]), expected, expected.astype(np.float64)):
        encoded = column.encode(values)
        assert encoded.dtype == np.float32
        np.testing.assert_array_equal(encoded, expected)
    assert column.encode([]).shape == (0, 2)


def test_category_rows_follow_the_vocabulary() -> None:
    column = Category("c", vocabulary=["b", "a", "7"])
    np.testing.assert_array_equal(column.encode(["a", "b", 7, "z", None, np.nan, ""]), [2, 1, 3, 0, 0, 0, 0])
    np.testing.assert_array_equal(column.encode(pd.Series([7, 8])), [3, 0])
    assert column.encode(["a"]).dtype == np.int32


@pytest.mark.parametrize(("words", "values"), [([0, 1], [1, 0]), ([False, True], [True, False]), ([0.0, 1.0], [1, 0])])
def test_vocabulary_is_written_like_the_values(words: Any, values: Any) -> None:
    np.testing.assert_array_equal(Category("c", vocabulary=words).encode(pd.Series(values)), [2, 1])


def test_hashed_category_is_a_small_id() -> None:
    values = ["a", "b", None]
    np.testing.assert_array_equal(Category("c", buckets=16).encode(values), Id("c", buckets=16).encode(values))


def test_labels() -> None:
    for values in ([0, 1, 1], [False, True, True], ["0", "1", "1"], pd.Series([0, 1, 1], dtype="Int8")):
        encoded = Task("click").encode(values)
        assert encoded.dtype == np.float32
        np.testing.assert_array_equal(encoded, [0, 1, 1])
    unknown = Task("click", missing="unknown").encode([1, None, np.nan])
    np.testing.assert_array_equal(unknown, [1, np.nan, np.nan])


@pytest.mark.parametrize(
    ("missing", "values", "message"),
    [
        ("error", [0, None, None], r"column 'y' must hold a label of task 't' in every row; .* at row 1 \(2 such rows\)"),
        ("error", [0, 0.5], "must hold 0 or 1. Received: .*0.5.* at row 1"),
        ("error", [1, -1], "must hold 0 or 1. Received: .*-1.* at row 1"),
        ("error", [np.inf], "must hold 0 or 1"),
        ("error", ["1", "yes"], "must hold 0 or 1. Received: 'yes' at row 1"),
        ("unknown", ["1", "yes"], "must hold 0 or 1. Received: 'yes' at row 1"),
    ],
)
def test_wrong_labels(missing: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Task("t", label="y", missing=missing).encode(values)


def test_vectors_of_rows_without_one() -> None:
    column = Vector("v", size=2, missing=0.5)
    np.testing.assert_array_equal(column.encode([[1, 2], None, np.nan, pd.NA]), [[1, 2], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    assert column.encode([None, None]).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert "missing" not in Vector("v", size=2).model_dump() and Vector.model_validate(column.model_dump()) == column
