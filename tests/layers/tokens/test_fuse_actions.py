"""FuseActions: item and action in one token, or an item whose action is unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keras_ranking.layers import FuseActions
from tests.layers.common import TOLERANCE, numpy, randomise, run_layer_checks


def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 7, 4)).astype("float32"), rng.normal(size=(3, 7, 4)).astype("float32")


def test_common(tmp_path: Path) -> None:
    x, _ = tokens()
    run_layer_checks(FuseActions, {"inputs": x}, tmp_path)


def test_reference() -> None:
    x, a = tokens()
    layer = FuseActions(0.5)
    layer.build(x.shape)
    randomise(layer)
    unknown = numpy(layer.unknown)
    np.testing.assert_allclose(numpy(layer(x, actions=a)), x.astype("float64") + a, **TOLERANCE)
    np.testing.assert_allclose(numpy(layer(x)), x.astype("float64") + unknown, **TOLERANCE)
    assert np.abs(numpy(layer(x)) - numpy(layer(x, actions=a))).max() > 0.1  # control


def test_actions_are_masked_at_random_only_in_training() -> None:
    rng = np.random.default_rng(1)
    x, a = (rng.normal(size=(50, 40, 4)).astype("float32") for _ in range(2))
    layer = FuseActions(0.2, seed=3)
    layer.build(x.shape)
    randomise(layer)
    event, query = numpy(layer(x, actions=a)), numpy(layer(x))
    trained = numpy(layer(x, actions=a, training=True))
    hidden = np.abs(trained - query).max(-1) < 1e-6
    np.testing.assert_allclose(trained[~hidden], event[~hidden], **TOLERANCE)
    assert 0.16 < hidden.mean() < 0.24  # 2000 draws of 0.2: 4.5 standard deviations
    np.testing.assert_array_equal(numpy(layer(x, actions=a, training=False)), event)
    assert layer.get_config()["masking"] == 0.2


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match=r"`masking` must be in \[0, 1\). Received: masking=1"):
        FuseActions(1)
