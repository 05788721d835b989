"""LatestKeys against slices, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keras_ranking.layers import LatestKeys
from tests.layers.common import numpy, run_layer_checks


def keys() -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).normal(size=(4, 2, 7, 2, 3)).astype("float32"), np.array([7, 5, 2, 0], "int32")


def test_common(tmp_path: Path) -> None:
    x, length = keys()
    run_layer_checks(lambda **settings: LatestKeys(3, **settings), {"inputs": x, "length": length}, tmp_path)


@pytest.mark.few(3)
@pytest.mark.parametrize("size", [0, 1, 3, 6, 7, 20])
def test_against_slices(size: int) -> None:
    x, length = keys()
    out = numpy(LatestKeys(size)(x, length=length))
    assert out.shape[2] == min(max(size, 1), 7)
    for row, count in enumerate(length):
        kept = min(count, size)
        np.testing.assert_array_equal(out[row, :, :kept], x[row, :, count - kept : count])


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`size` must be 0 or more. Received: size=-1"):
        LatestKeys(-1)
