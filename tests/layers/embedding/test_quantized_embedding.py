"""QuantizedEmbedding: row-wise middle-max int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import QuantizedEmbedding, dequantize_rows, quantize_rows
from tests.layers.common import numpy, run_layer_checks


def table(rows: int = 40, dim: int = 16) -> np.ndarray:
    """Rows of many sizes and offsets, including constant rows and a tiny range."""
    rng = np.random.default_rng(6)
    out = rng.normal(size=(rows, dim)) * 10.0 ** rng.uniform(-6, 6, (rows, 1)) + rng.normal(size=(rows, 1))
    out[3], out[4], out[5] = 0.1, 0.0, -3e38
    out[6] = 0.0
    out[6, 0] = 1e-44  # a scale too small for float32
    out[7, ::2], out[7, 1::2] = -3e38, 3e38
    return out.astype("float32")


def make(**settings: Any) -> QuantizedEmbedding:
    return QuantizedEmbedding.from_table(table()[8:], **settings)


def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 32, (2, 5)).astype("int32")


def test_common(tmp_path: Path) -> None:
    run_layer_checks(make, {"inputs": ids()}, tmp_path)


def test_quantize_against_the_formula() -> None:
    x = table()[8:]
    codes, middle, scale = quantize_rows(x)
    assert (codes.dtype, middle.dtype, scale.dtype) == (np.int8, np.float32, np.float32)
    for row, got, m, s in zip(x.astype("float64"), codes, middle, scale, strict=True):
        want_scale = (row.max() - row.min()) / (2**8 - 1)
        want_middle = (row.max() * 2**7 + row.min() * (2**7 - 1)) / (2**8 - 1)
        np.testing.assert_allclose([m, s], [want_middle, want_scale], rtol=1e-6)
        # Float32 storage of the middle may move a value across a half: one code at most.
        assert (
            np.abs(got - np.clip(np.round((row - want_middle) / want_scale), -128, 127)).max() <= 1 + np.abs(row).max() / want_scale / 2**23
        )
    assert codes.min() == -128 and codes.max() == 127


def test_error_bound() -> None:
    x = table()
    codes, middle, scale = quantize_rows(x)
    error = np.abs(dequantize_rows(codes, middle, scale).astype("float64") - x).max(1)
    bound = scale.astype("float64") / 2 + 2.0**-22 * np.abs(x.astype("float64")).max(1) + 1e-40
    assert (error <= bound).all()
    assert (error[8:] > 0.3 * scale[8:]).any()  # control: the bound is tight
    shifted = np.abs(dequantize_rows(np.roll(codes, 1, axis=1), middle, scale).astype("float64") - x).max(1)
    assert (shifted[8:] > bound[8:]).all()


def test_constant_rows_are_exact() -> None:
    x = table()
    codes, middle, scale = quantize_rows(x)
    for row in (3, 4, 5):
        assert scale[row] == 0 and (codes[row] == 0).all()
        np.testing.assert_array_equal(dequantize_rows(codes, middle, scale)[row], x[row])


def test_chunks_of_rows_equal_the_whole_table() -> None:
    x = np.random.default_rng(1).normal(size=(65_536 + 3, 2)).astype("float32")
    for whole, tail in zip(quantize_rows(x), quantize_rows(x[-5:]), strict=True):
        np.testing.assert_array_equal(whole[-5:], tail)


def test_layer_reads_the_table() -> None:
    x, layer = table()[8:], make()
    out = numpy(layer(ids()))
    np.testing.assert_allclose(
        out, dequantize_rows(*quantize_rows(x))[ids()], rtol=1e-6, atol=1e-6 * np.abs(out).max(-1, keepdims=True).min()
    )
    assert not layer.trainable_weights and str(layer.codes.dtype) == "int8"


def test_size() -> None:
    layer = QuantizedEmbedding.from_table(np.random.default_rng(0).normal(size=(100, 128)))
    size = sum(weight.nbytes for weight in layer.get_weights())
    assert 1 - size / (100 * 128 * 4) == pytest.approx(0.734, abs=1e-3)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match=r"`table` must be \(rows, dim\). Received: shape=\(3,\)"):
        quantize_rows(np.zeros(3))
    with pytest.raises(ValueError, match="`table` must be finite in float32. Received: .* at row 1"):
        quantize_rows(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="`rows` and `dim` must be positive integers. Received: rows=0, dim=4"):
        QuantizedEmbedding(0, 4)


def test_rows_at_the_end_of_float32() -> None:
    """Both signs of its largest number in one row; every number decodes to a finite one, within the bound."""
    largest = float(np.finfo(np.float32).max)
    rng = np.random.default_rng(0)
    table = np.concatenate(
        [
            [[-largest, largest, 0.0], [-largest, largest / 2, 1.0], [largest, largest, 0.999 * largest]],
            rng.uniform(-largest, largest, size=(200, 3)),
        ]
    ).astype("float32")
    codes, middle, scale = quantize_rows(table)
    layer = QuantizedEmbedding.from_table(table)
    for found in (dequantize_rows(codes, middle, scale), numpy(layer(np.arange(len(table))))):
        assert np.isfinite(found).all()
        error = np.abs(found.astype("float64") - table)
        assert (error <= 0.5 * scale.astype("float64")[:, None] + 2.0**-21 * np.abs(table.astype("float64")).max(axis=1)[:, None]).all()
    with pytest.raises(ValueError, match="must be finite in float32. Received: .* at row 1"):
        quantize_rows(np.array([[1.0, 2.0], [1e39, 0.0]]))
