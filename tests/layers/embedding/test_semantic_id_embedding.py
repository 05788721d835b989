"""SemanticIdEmbedding: sums over levels, prefixes, rows, missing codes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import SemanticIdEmbedding
from tests.layers.common import numpy, randomise, run_layer_checks

K, LEVELS, D = 5, 3, 4


def make(**settings: Any) -> SemanticIdEmbedding:
    return SemanticIdEmbedding(**{"levels": LEVELS, "codebook_size": K, "dim": D, **settings})


def codes() -> np.ndarray:
    found = np.random.default_rng(0).integers(0, K, (6, 2, LEVELS)).astype("int32")
    found[0, 0], found[1, 1, 1] = -1, -1
    return found


def reference(layer: SemanticIdEmbedding, x: np.ndarray) -> np.ndarray:
    tables = [numpy(table.embeddings.value).astype("float64") for table in layer.tables]
    out = np.zeros((*x.shape[:-1], D))
    for at in np.ndindex(*x.shape[:-1]):
        prefix = 0
        for level in range(LEVELS):
            code = int(x[at][level])
            if code < 0 and layer.prefixes:
                break
            if code < 0:
                continue
            prefix = prefix * K + code  # Python integers: exact
            row = prefix if layer.prefixes else code
            out[at] += tables[level][row % len(tables[level])]
    return out


@pytest.mark.few(2)
@pytest.mark.parametrize("settings", [{}, {"prefixes": True}, {"prefixes": True, "buckets": 17}])
def test_reference(settings: dict[str, Any]) -> None:
    layer = make(**settings)
    layer.build((None, LEVELS))
    randomise(layer)
    expected_rows = [K] * 3 if not layer.prefixes else [min(K ** (i + 1), layer.buckets) for i in range(3)]
    assert layer.rows == expected_rows
    got = numpy(layer(codes()))
    np.testing.assert_allclose(got, reference(layer, codes()), rtol=1e-5, atol=1e-6)
    assert not got[0, 0].any(), "an item without codes is zero"


def test_prefixes_distinguish_items_that_share_a_code() -> None:
    """(0, 1) and (1, 1) share their second code: the plain form has one row for it, prefixes two."""
    pairs = np.array([[0, 1], [1, 1], [0, 2], [1, 2]], "int32")
    for prefixes, same in ((False, True), (True, False)):
        layer = make(levels=2, prefixes=prefixes)
        layer.build((None, 2))
        randomise(layer)
        e = numpy(layer(pairs))
        assert np.allclose(e[0] - e[2], e[1] - e[3], atol=1e-5) is same


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"prefixes": True, "buckets": 17}])
def test_common(settings: dict[str, Any], tmp_path: Path) -> None:
    run_layer_checks(lambda **more: make(**settings, **more), {"inputs": codes()}, tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`dim` must be a positive integer. Received: dim=0"):
        make(dim=0)
    with pytest.raises(ValueError, match=r"codebook_size \* buckets must stay below 2\^31"):
        make(codebook_size=65536, buckets=65536)
    with pytest.raises(ValueError, match="`inputs` must have 3 codes per item"):
        make()(np.zeros((2, 4), "int32"))
