"""Sets of ids in `FeatureConcat`: pooled embeddings against numpy; order, place and number of empty places change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.layers import FeatureConcat, TableEmbedding
from keras_ranking.layers.embedding.quotient_remainder_embedding import QuotientRemainderEmbedding
from tests.layers.common import by_path, numpy, run_layer_checks

SIZE, ROWS = 5, 40
POOLINGS = ("mean", "sum", "max")


def column(pooling: str, **settings: Any) -> kr.Ids:
    return kr.Ids("tags", **{"buckets": ROWS, "size": SIZE, "pooling": pooling, **settings})


def sets(seed: int = 0, halves: bool = False) -> np.ndarray:
    """(3, 4, SIZE): sets of 0 to SIZE ids, one of them with an id twice, the first without any."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(-(2**31), 2**31, (3, 4, SIZE, 2)) if halves else rng.integers(0, ROWS, (3, 4, SIZE))
    ids[np.arange(SIZE) >= rng.integers(1, SIZE + 1, (3, 4))[..., None]] = -1
    ids[0, 0], ids[0, 1, :2] = -1, ids[0, 1, 0]
    if halves:
        ids[2, 2, 0] = (-1, 5)  # one half of 32 set bits is an id
    return ids.astype("int32")


def reference(ids: np.ndarray, vectors: np.ndarray, pooling: str) -> np.ndarray:
    """Set by set in float64; `vectors` are those of each place, whatever they are at -1."""
    real = (ids != -1).any(axis=-1) if ids.ndim > 3 else ids != -1
    out = np.zeros((*real.shape[:-1], vectors.shape[-1]))
    for at in np.ndindex(*real.shape[:-1]):
        held = vectors[at][real[at]].astype(np.float64)
        if len(held):
            out[at] = {"mean": held.mean, "sum": held.sum, "max": held.max}[pooling](axis=0)
    return out


@pytest.mark.few(1)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_common(pooling: str, tmp_path: Path) -> None:
    run_layer_checks(lambda **settings: FeatureConcat([column(pooling)], id_dim=3, **settings), {"inputs": {"tags": sets()}}, tmp_path)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_reference(pooling: str) -> None:
    layer, ids = FeatureConcat([column(pooling), kr.Number("age")], id_dim=3), sets()
    out = numpy(layer({"tags": ids, "age": np.ones((3, 4), "float32")}))
    table = next(iter(by_path(layer).values()))
    assert table.shape == (ROWS, 3) and out.shape == (3, 4, layer.width) == (3, 4, 4)
    np.testing.assert_allclose(out[..., :3], reference(ids, table[ids], pooling), rtol=1e-6, atol=1e-7)
    assert not out[0, 0, :3].any(), "no id: zero"
    # Control: -1 read as an id of the table is another number.
    assert np.abs(out[..., :3] - reference(np.maximum(ids, 0), table[ids], pooling)).max() > 1e-3


@pytest.mark.parametrize("pooling", POOLINGS)
def test_order_and_empty_places_change_nothing(pooling: str) -> None:
    layer, wide = (FeatureConcat([column(pooling, size=size)], id_dim=3) for size in (SIZE, SIZE + 4))
    ids = sets()
    out = numpy(layer({"tags": ids}))
    rng = np.random.default_rng(1)
    wide.build({"tags": (None, None, SIZE + 4)})
    wide.set_weights(layer.get_weights())
    padded = np.pad(ids, ((0, 0), (0, 0), (0, 4)), constant_values=-1)
    for _ in range(2):
        np.testing.assert_allclose(numpy(layer({"tags": rng.permuted(ids, axis=-1)})), out, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(numpy(wide({"tags": rng.permuted(padded, axis=-1)})), out, rtol=1e-5, atol=1e-7)
    # Control: another id does.
    assert np.abs(numpy(layer({"tags": np.where(ids == -1, 1, ids)})) - out).max() > 1e-3


@pytest.mark.few(1)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_whole_fingerprints(pooling: str) -> None:
    layer, ids = FeatureConcat([column(pooling, buckets=None, divisor=2**20)], id_dim=3), sets(halves=True)
    out = numpy(layer({"tags": ids}))
    (table,) = layer.tables.values()
    assert isinstance(table, QuotientRemainderEmbedding)
    np.testing.assert_allclose(out, reference(ids, numpy(table(ids)), pooling), rtol=1e-5, atol=1e-7)
    assert np.abs(out[2, 2]).max() > 0


def test_one_table_with_single_ids() -> None:
    """A set of one id is the id, in any pooling; a set of the same id twice is it in mean and max."""
    features = [
        kr.Id("item", buckets=ROWS),
        *(kr.Ids(pooling, buckets=ROWS, size=2, pooling=pooling, table="item") for pooling in POOLINGS),
    ]
    layer = FeatureConcat(features, id_dim=3)
    assert list(layer.tables) == ["item"]
    item = np.arange(12, dtype="int32").reshape(3, 4)
    alone = np.stack([np.full_like(item, -1), item], axis=-1)
    out = numpy(layer({"item": item, **dict.fromkeys(POOLINGS, alone)})).reshape(3, 4, 4, 3)
    for place in (1, 2, 3):
        np.testing.assert_allclose(out[:, :, place], out[:, :, 0], rtol=1e-6)
    twice = numpy(layer({"item": item, **dict.fromkeys(POOLINGS, np.stack([item, item], axis=-1))})).reshape(3, 4, 4, 3)
    np.testing.assert_allclose(twice[:, :, 1:] / out[:, :, :1], np.broadcast_to([[1.0], [2.0], [1.0]], (3, 4, 3, 3)), rtol=1e-5)
    with pytest.raises(ValueError, match="columns of one table must have the same number of rows. Received: 'tags' in table 'item'"):
        FeatureConcat([kr.Id("item", buckets=ROWS), column("sum", buckets=ROWS + 1, table="item")])


@pytest.mark.few(1)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_by_rows_are_those_of_the_whole_table(pooling: str) -> None:
    """One step of row-wise AdaGrad: rows of ids move as in numpy, all others keep their bits."""
    ids = sets()[:, 0]
    inputs = keras.Input((SIZE,), dtype="int32", name="tags")
    layer = FeatureConcat([column(pooling)], id_dim=3)
    outputs = keras.ops.sum(layer({"tags": keras.ops.expand_dims(inputs, 1)}), axis=(1, 2))
    model = kr.models.TableModel({"tags": inputs}, outputs)
    (table,) = layer.tables.values()
    assert isinstance(table, TableEmbedding)
    before = numpy(table.embeddings)
    model.compile(kr.training.TableOptimizer("sgd", learning_rate=0.1), loss=lambda y, out: keras.ops.sum(out * y))
    weights = np.array([1.0, -2.0, 3.0], "float32")
    model.train_on_batch({"tags": ids}, weights)
    gradient = np.zeros_like(before, dtype=np.float64)
    for row, weight in zip(ids, weights.astype(np.float64), strict=True):
        held = row[row != -1]
        for d in range(3 if len(held) else 0):
            if pooling == "max":
                gradient[held[before[held, d].argmax()], d] += weight
            else:
                np.add.at(gradient[:, d], held, weight / (len(held) if pooling == "mean" else 1))
    want = before - 0.1 * gradient / (np.sqrt((gradient**2).mean(axis=1, keepdims=True)) + 1e-8)
    touched = np.zeros(len(before), dtype=bool)
    touched[ids[ids != -1]] = True
    after = numpy(table.embeddings)
    np.testing.assert_allclose(after[touched], want[touched], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after[~touched], before[~touched])
    assert np.abs(after - before)[touched].max() > 1e-2


def test_int8_and_half_precision() -> None:
    ids, exact = sets(), FeatureConcat([column("sum")], id_dim=3)
    out = numpy(exact({"tags": ids}))
    half = FeatureConcat([column("sum")], id_dim=3, dtype="mixed_bfloat16")
    half.build({"tags": (None, None, SIZE)})
    half.set_weights(exact.get_weights())
    assert keras.backend.standardize_dtype(half({"tags": ids}).dtype) == "bfloat16"
    np.testing.assert_allclose(numpy(keras.ops.cast(half({"tags": ids}), "float32")), out, atol=4e-3)
    small = FeatureConcat([column("sum")], id_dim=3, quantized=True)
    small.build({"tags": (None, None, SIZE)})
    (table,) = small.tables.values()
    for variable, values in zip((table.codes, table.middle, table.scale), kr.layers.quantize_rows(exact.get_weights()[0]), strict=True):
        variable.assign(values)
    np.testing.assert_allclose(numpy(small({"tags": ids})), out, atol=SIZE * 1e-3)
    assert not numpy(small({"tags": ids}))[0, 0].any()
