"""QuotientRemainderEmbedding, and the halves of ids that are its inputs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import QuotientRemainderEmbedding
from keras_ranking.ops.hashing import fingerprint64, split_fingerprint
from tests.layers.common import TOLERANCE, by_path, numpy, randomise, run_layer_checks

EDGES = [0, 1, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2, 2**32 - 1, 999, 1000, 65_535, 65_536]


def fingerprints() -> np.ndarray:
    """Edge cases in both halves, then random ones; (2, 90)."""
    edges = [low + (high << 32) for low, high in itertools.product(EDGES, EDGES)]
    random = np.random.default_rng(2).integers(0, 2**64, 36, dtype="uint64").tolist()
    return np.array(edges + random, "uint64").reshape(2, 90)


def test_split_fingerprint() -> None:
    ids = fingerprints()
    for given in (ids, ids.view("int64"), ids.astype(">u8")[:, ::-1][:, ::-1]):
        halves = split_fingerprint(given)
        assert halves.shape == (2, 90, 2) and halves.dtype == np.int32
        for got, value in zip(halves.reshape(-1, 2).tolist(), ids.reshape(-1).tolist(), strict=True):
            assert [half % 2**32 for half in got] == [value % 2**32, value >> 32]
    with pytest.raises(TypeError, match="`ids` must be uint64 or int64 fingerprints. Received: dtype=int32"):
        split_fingerprint(np.array([1], "int32"))
    assert split_fingerprint(np.array([2**32 + 7, 2**64 - 1], "uint64")).tolist() == [[7, 1], [-1, -1]]


@pytest.mark.parametrize("divisor", [2, 3, 1000, 65_536, 2**30 - 1, 2**30])
def test_rows_against_python_integers(divisor: int) -> None:
    values = [*EDGES, *np.random.default_rng(3).integers(0, 2**32, 500).tolist()]
    patterns = np.array(values, "uint64").astype("uint32").view("int32")
    quotient, remainder = QuotientRemainderEmbedding(2, divisor).rows(patterns)
    assert numpy(quotient).tolist() == [value // divisor for value in values]
    assert numpy(remainder).tolist() == [value % divisor for value in values]


def make(join: str, **settings: Any) -> QuotientRemainderEmbedding:
    return QuotientRemainderEmbedding(4, divisor=50_021, join=join, **settings)


@pytest.mark.few(1)
@pytest.mark.parametrize("join", ["sum", "concat"])
def test_common(join: str, tmp_path: Path) -> None:
    halves = split_fingerprint(fingerprints())
    # With unknown T the two halves must be known, so (B, T, 2).
    run_layer_checks(lambda **settings: make(join, **settings), {"inputs": halves}, tmp_path)


@pytest.mark.parametrize("join", ["sum", "concat"])
def test_reference(join: str) -> None:
    layer, ids = make(join), fingerprints()
    halves = split_fingerprint(ids)
    layer(halves)
    randomise(layer)
    w = {path.removesuffix("/embeddings"): table for path, table in by_path(layer).items()}
    assert w["low_quotient"].shape == (-(-(2**32) // 50_021), 4) and w["high_remainder"].shape == (50_021, 4)
    out = numpy(layer(halves)).reshape(ids.size, -1)
    differs = 0.0
    for got, value in zip(out, ids.reshape(-1).tolist(), strict=True):
        low, high = value % 2**32, value >> 32
        parts = [
            w[f"{half}_quotient"][number // 50_021] + w[f"{half}_remainder"][number % 50_021]
            for half, number in (("low", low), ("high", high))
        ]
        want = parts[0] + parts[1] if join == "sum" else np.concatenate(parts)
        np.testing.assert_allclose(got, want, **TOLERANCE)
        # control: the bit pattern read as a signed number is another row
        wrong = (low - 2**32 if low >= 2**31 else low) // 50_021
        differs += np.abs(w["low_quotient"][wrong] - w["low_quotient"][low // 50_021]).max()
    assert differs > 0.1


def test_tables_have_different_initial_values() -> None:
    layer = QuotientRemainderEmbedding(4, divisor=65_536)
    layer.build((None, 2))
    assert all(np.abs(a - b).max() > 0 for a, b in itertools.combinations(layer.get_weights(), 2))


def test_table_sizes_of_the_paper() -> None:
    assert -(-(2**32) // 1000) == 4_294_968
    patterns = split_fingerprint(fingerprint64([f"member:{i}" for i in range(2000)]))
    quotient, remainder = (numpy(part) for part in QuotientRemainderEmbedding(2, 1000).rows(patterns))
    assert quotient.min() >= 0 and quotient.max() < 4_294_968 and remainder.min() >= 0 and remainder.max() < 1000
    assert len(np.unique(np.concatenate([quotient, remainder], axis=1), axis=0)) == 2000


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`dim` must be a positive integer. Received: dim=0"):
        QuotientRemainderEmbedding(0, 1000)
    with pytest.raises(ValueError, match=r"`divisor` must be from 2 to 2\*\*30. Received: divisor=1"):
        QuotientRemainderEmbedding(4, 1)
    with pytest.raises(ValueError, match="`join` must be 'sum' or 'concat'. Received: join='mult'"):
        QuotientRemainderEmbedding(4, 1000, join="mult")
    with pytest.raises(ValueError, match="the two halves of each id. Received: shape="):
        QuotientRemainderEmbedding(4, 65_536).build((None, 3))
    with pytest.raises(ValueError, match="`inputs` must be integers .int32.. Received: dtype=float32"):
        make("sum")(np.zeros((2, 2), "float32"))
