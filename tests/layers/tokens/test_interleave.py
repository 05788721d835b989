"""Interleave and ItemTokens: two tokens per event, and the item tokens of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from keras_ranking.layers import Interleave, ItemTokens
from tests.layers.common import numpy, run_layer_checks


def tokens() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(2, 5, 4)).astype("float32"), rng.normal(size=(2, 5, 4)).astype("float32")


def test_common(tmp_path: Path) -> None:
    items, actions = tokens()
    run_layer_checks(Interleave, {"inputs": items, "actions": actions}, tmp_path)
    run_layer_checks(ItemTokens, {"inputs": np.concatenate([items, actions], axis=1)}, tmp_path)


def test_order() -> None:
    items, actions = tokens()
    row = numpy(Interleave()(items, actions=actions))
    assert row.shape == (2, 10, 4)
    for event in range(5):
        np.testing.assert_array_equal(row[:, 2 * event], items[:, event])
        np.testing.assert_array_equal(row[:, 2 * event + 1], actions[:, event])
    # Control: all items first, then all actions, is a different order.
    assert np.abs(row - np.concatenate([items, actions], axis=1)).max() > 0.1


def test_item_tokens_of_an_interleaved_row() -> None:
    items, actions = tokens()
    row = Interleave()(items, actions=actions)
    np.testing.assert_array_equal(numpy(ItemTokens()(row)), items)


def test_item_tokens_of_the_fused_layout(tmp_path: Path) -> None:
    events, queries = tokens()
    row = np.concatenate([events, queries], axis=1)
    np.testing.assert_array_equal(numpy(ItemTokens("fused")(row)), queries)
    run_layer_checks(lambda **settings: ItemTokens("fused", **settings), {"inputs": row}, tmp_path)
    with pytest.raises(ValueError, match="`layout` must be 'interleaved' or 'fused'"):
        ItemTokens("value")
