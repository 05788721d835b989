"""TimestampRotaryEmbedding: pairs rotated by whole seconds modulo whole periods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import TimestampRotaryEmbedding
from tests.layers.common import numpy, rotate_pairs, run_layer_checks

LATEST = 2**31 - 1


def make(**settings: Any) -> TimestampRotaryEmbedding:
    return TimestampRotaryEmbedding(shortest=2, longest=15_552_000, **settings)


def periods(head_dim: int, shortest: float, longest: float) -> np.ndarray:
    """As described in the docstring: geometric, an eighth of a turn over `shortest`, half a turn over `longest`."""
    return np.rint(np.geomspace(2 * longest, 8 * shortest, head_dim // 2)).astype("int64")


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    times = rng.integers(0, 500_000_000, (2, 6)).astype("int32")
    times[0, 0], times[1, -1] = 0, LATEST
    return rng.normal(size=(2, 6, 3, 8)).astype("float32"), times


def test_common(tmp_path: Path) -> None:
    x, times = inputs()
    run_layer_checks(make, {"inputs": x, "times": times}, tmp_path)


def test_reference() -> None:
    x, times = inputs()
    layer = make()
    out = numpy(layer(x, times=times))
    ladder = periods(8, 2, 15_552_000)
    np.testing.assert_array_equal(layer.periods, ladder)
    want = rotate_pairs(x.astype("float64"), times, ladder)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=2e-6)
    # Control: an angle computed in float32 from the raw seconds is noise in the fast pairs.
    angle = (times[..., None].astype("float32") * (2 * np.pi / ladder).astype("float32"))[:, :, None, :]
    a, b = x[..., :4], x[..., 4:]
    naive = np.concatenate([a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)], axis=-1)
    assert np.abs(naive - want).max() > 0.01


def test_scores_depend_only_on_differences() -> None:
    x, _ = inputs()
    times = np.random.default_rng(1).integers(0, 40_000_000, (2, 6)).astype("int32")
    layer = make()

    def scores(t: np.ndarray) -> np.ndarray:
        turned = numpy(layer(x, times=t)).astype("float64")
        return np.einsum("bthd,bshd->bhts", turned, turned)

    before = scores(times)
    for shift in (1, 86_400, 2_000_000_000):
        np.testing.assert_allclose(scores(times + np.int32(shift)), before, rtol=1e-5, atol=1e-5)
    # Control: a shift of only a part of the times of a member changes them.
    some = times.copy()
    some[:, 3:] += 86_400
    assert np.abs(scores(some) - before).max() > 0.1


def test_lengths_are_kept() -> None:
    x, times = inputs()
    np.testing.assert_allclose(np.linalg.norm(numpy(make()(x, times=times)), axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.quickest
@pytest.mark.parametrize(("shortest", "longest"), [(0.5, 100.0), (100.0, 100.0), (200.0, 100.0), (8.0, 2.0**30)])
def test_errors(shortest: float, longest: float) -> None:
    with pytest.raises(ValueError, match=f"`shortest` must be at least 1.*Received: shortest={shortest}, longest={longest}"):
        TimestampRotaryEmbedding(shortest, longest)


def test_odd_head() -> None:
    with pytest.raises(ValueError, match="`head_dim` must be an even integer"):
        make()(np.ones((1, 2, 1, 5), "float32"), times=np.zeros((1, 2), "int32"))
