"""Values that a vocabulary probably means but does not have: row 0 for all of them, with a warning that shows examples."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data.checks import check_events
from keras_ranking.data.sequences import build_sequences

START = 1_600_000_000


def check(values: object, *, vocabulary: list | None) -> tuple[str, ...]:
    """The notes of a log with these values of a category."""
    values = pd.Series(values)
    n = np.arange(len(values))
    schema = kr.Schema(member="m", time="t", request="r", features=[kr.Category("c", vocabulary=vocabulary)], tasks=["click"])
    log = pd.DataFrame({"m": 1, "t": START + n, "r": n, "c": values, "click": 0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        notes = check_events(log, schema)[1].notes
        assert build_sequences(log, schema).report.notes == notes
    assert [str(warning.message) for warning in caught] == [*notes, *notes]
    return notes


@pytest.mark.parametrize(
    ("values", "vocabulary", "wanted"),
    [
        (
            ["ios", "android", "ios"],
            ["iOS", "Android"],
            "3 of 3 values are nearly, but not, in the vocabulary \\('ios' for 'iOS', 'android' for 'Android'\\)",
        ),
        (["iOS", "android"], ["iOS", "Android"], "1 of 2 values are nearly, but not, in the vocabulary \\('android' for 'Android'\\)"),
        ([" mobile", "desktop"], ["mobile", "desktop"], "1 of 2 values are nearly, .* \\(' mobile' for 'mobile'\\)"),
        ([True, False, True], ["true", "false"], "3 of 3 values are nearly, .*'1' for 'true'.* A boolean is written as '1' or '0'"),
        ([True, None, False], ["True", "False"], "2 of 2 values are nearly, .* A boolean is written as '1' or '0'"),
        (["True", "False"], [True, False], "2 of 2 values are nearly, .*\\('True' for '1', 'False' for '0'\\)"),
        (["a", "b", "c", "d"], ["x", "d"], "3 of 4 values are not in the vocabulary \\(such as 'a', 'b', 'c'\\)"),
    ],
)
def test_a_warning_shows_what_was_probably_meant(values, vocabulary, wanted) -> None:
    (note,) = check(values, vocabulary=vocabulary)
    assert re.search(f"^column 'c': {wanted}", note), note
    assert "get row 0, as a missing value does" in note


@pytest.mark.parametrize(
    ("values", "vocabulary"),
    [
        (["iOS", "Android", None], ["iOS", "Android"]),
        (["m", "d", "tv"], ["m", "d"]),  # a rare value outside an open vocabulary
        ([True, False], ["1", "0"]),
        ([True, False], [True, False]),
        ([1, 0, None], [True, False]),
        ([1, 2, 3], ["1", "2", "3"]),
        (["x", "Y"], None),
        ([None, None], ["a"]),
    ],
)
def test_control_no_warning(values, vocabulary) -> None:
    assert check(values, vocabulary=vocabulary) == ()


def test_booleans_among_their_texts_are_named() -> None:
    (note,) = check(pd.Series([True, "True", "x"], dtype=object), vocabulary=None)
    assert (
        note
        == "column 'c': booleans (in 1 rows), which are written as '1' and '0', are mixed with the text 'True': they are different ids."
    )


def test_the_rule_for_booleans_is_one() -> None:
    column = kr.Category("c", buckets=64)
    one = column.encode(["1"])[0]
    for values in ([True], [np.True_], [1], pd.array([True], dtype="boolean"), pd.Series([True, None], dtype=object)):
        assert column.encode(values)[0] == one
    assert column.encode(["True"])[0] != one and column.encode(["true"])[0] != one  # texts stay what they are
