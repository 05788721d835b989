"""Rotation by integer periods: the ladder, the formula, and scores that depend only on the difference of times."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

from keras_ranking.ops import rotary_periods, rotate
from keras_ranking.ops.rotary import rotary_frequencies, rotate_index

HALF_YEAR = 180 * 86400


def reference(x, angle):
    a, b = np.split(np.asarray(x, "float64"), 2, axis=-1)
    cos, sin = np.cos(angle)[:, :, None], np.sin(angle)[:, :, None]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def scores(x, y, times_x, times_y, turn):
    q, k = (keras.ops.convert_to_numpy(turn(part, times)) for part, times in ((x, times_x), (y, times_y)))
    return np.einsum("bthd,bshd->bhts", q.astype("float64"), k.astype("float64"))


@pytest.mark.quickest
@pytest.mark.parametrize(("head_dim", "shortest", "longest"), [(64, 1, HALF_YEAR), (8, 10, 86400), (4, 1, 100), (32, 0.5, 30)])
def test_periods_follow_the_formula(head_dim, shortest, longest):
    base = ((math.pi / 4) / math.pi * longest / shortest) ** (head_dim / (head_dim - 2))
    expected = [max(2, round(2 * math.pi / (math.pi / longest * base ** (2 * k / head_dim)))) for k in range(head_dim // 2)]
    periods = rotary_periods(head_dim, shortest, longest)
    assert periods.dtype == np.int32
    np.testing.assert_array_equal(periods, expected)
    assert periods[0] == 2 * longest and (np.diff(periods) <= 0).all() and periods.min() >= 2


@pytest.mark.quickest
def test_ends_of_the_ladder():
    periods = rotary_periods(64, 1, HALF_YEAR)
    assert periods[0] == 2 * HALF_YEAR  # half a turn over the longest span
    assert periods[-1] == 8  # an eighth of a turn per second


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 1, 10), "`head_dim` must be an even integer"),
        ((0, 1, 10), "`head_dim` must be an even integer"),
        ((8, 10, 10), "`shortest` must be positive and below `longest`"),
        ((8, 0, 10), "`shortest` must be positive"),
        ((8, 1, 2**30), "`longest` must be at most"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        rotary_periods(*arguments)


def test_rotation_equals_the_formula_in_float64(rng):
    periods = rotary_periods(16, 1, HALF_YEAR)
    x = rng.standard_normal((2, 5, 3, 16)).astype("float32")
    times = rng.integers(0, 2**31 - 1, (2, 5)).astype("int32")
    angle = 2 * np.pi * (times[..., None].astype("int64") % periods) / periods
    got = keras.ops.convert_to_numpy(rotate(x, times, periods))
    np.testing.assert_allclose(got, reference(x, angle), atol=4e-6)


def test_scores_depend_only_on_the_difference_of_times(rng):
    """Near 2**31 and near 0. Control: float32 seconds times a frequency have a large error."""
    periods = rotary_periods(32, 1, HALF_YEAR)
    x, y = (rng.standard_normal((1, 6, 2, 32)).astype("float32") for _ in range(2))
    early = np.sort(rng.integers(0, HALF_YEAR, (1, 6))).astype("int32")
    late = (early.astype("int64") + 2**31 - 1 - early.max()).astype("int32")

    def turn(part, times):
        return rotate(part, times, periods)

    base = scores(x, y, early, early, turn)
    assert np.abs(scores(x, y, late, late, turn) - base).max() < 2e-5
    assert np.abs(scores(x, y, late, early, turn) - base).max() > 1  # a shift of one side changes the scores

    def naive(part, times):
        return rotate_index(part, times, (2 * np.pi / periods).astype("float32"))

    assert np.abs(scores(x, y, late, late, naive) - scores(x, y, early, early, naive)).max() > 1


def test_index_rotation_equals_the_formula(rng):
    frequencies = rotary_frequencies(8, 100.0)
    np.testing.assert_allclose(frequencies, [1, 100**-0.25, 0.1, 100**-0.75], rtol=1e-6)
    x = rng.standard_normal((2, 7, 2, 8)).astype("float32")
    positions = np.arange(7, dtype="int32")[None].repeat(2, 0)
    got = keras.ops.convert_to_numpy(rotate_index(x, positions, frequencies))
    np.testing.assert_allclose(got, reference(x, positions[..., None] * frequencies.astype("float64")), atol=2e-6)


def test_dtype_is_kept_and_shapes_are_checked(rng):
    x = rng.standard_normal((1, 2, 1, 8)).astype("float32")
    times = np.zeros((1, 2), "int32")
    half = rotate(keras.ops.cast(x, "bfloat16"), times, rotary_periods(8, 1, 100))
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    with pytest.raises(ValueError, match="`periods` must have D/2"):
        rotate(x, times, rotary_periods(16, 1, 100))
    with pytest.raises(ValueError, match="`periods` must be integers"):
        rotate(x, times, np.array([1.5, 2.0, 3.0, 4.0]))
    with pytest.raises(ValueError, match="`base` must be above 1"):
        rotary_frequencies(8, 1.0)


def test_zero_time_changes_nothing(rng):
    x = rng.standard_normal((1, 3, 2, 8)).astype("float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(rotate(x, np.zeros((1, 3), "int32"), rotary_periods(8, 1, 100))), x)
