"""LabelTreeEmbedding: sums and rows of a path, nodes below the depth, no node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import LabelTreeEmbedding
from tests.layers.common import numpy, randomise, run_layer_checks

DEPTH, D = 3, 4
NODES = np.array([[2, 3, 5, 14], [15, 9, 8, 31], [0, 1, -1, 2**30]], "int32")  # 31 and 2^30 are below the depth


def make(**settings: Any) -> LabelTreeEmbedding:
    return LabelTreeEmbedding(**{"depth": DEPTH, "dim": D, **settings})


def reference(layer: LabelTreeEmbedding) -> np.ndarray:
    table = numpy(layer.table.embeddings.value).astype("float64")
    out = np.zeros((*NODES.shape, DEPTH, D))
    for at in np.ndindex(*NODES.shape):
        path = f"{max(int(NODES[at]), 0):b}"  # the digits of a node are its path
        for level in range(1, min(len(path), DEPTH + 1)):
            out[at][level - 1] = table[int(path[: level + 1], 2)]
    return out.sum(axis=-2) if layer.combine == "sum" else out.reshape(*NODES.shape, DEPTH * D)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_reference(combine: str) -> None:
    layer = make(combine=combine)
    layer.build((None, 4))
    randomise(layer)
    got = numpy(layer(NODES))
    np.testing.assert_allclose(got, reference(layer), rtol=1e-5, atol=1e-6)
    assert not got[2, :3].any() and got[0].any(axis=-1).all()
    one = numpy(layer(np.array([14], "int32")))
    other = numpy(layer(np.array([15], "int32")))
    assert np.abs(one - other).max() > 0, "siblings differ by their last node"


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_common(combine: str, tmp_path: Path) -> None:
    run_layer_checks(lambda **more: make(combine=combine, **more), {"inputs": NODES}, tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`depth` must be from 1 to 29"):
        make(depth=30)
    with pytest.raises(ValueError, match="`dim` a positive integer. Received: depth=3, dim=0"):
        make(dim=0)
    with pytest.raises(ValueError, match="`combine` must be one of"):
        make(combine="mean")
