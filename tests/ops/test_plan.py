"""The tiles of torch's kernel: together they are the mask of the spans, and a bias is made only where queries of a tile differ."""

from __future__ import annotations

import numpy as np
import pytest

from keras_ranking.ops.backends import plan as planning
from keras_ranking.ops.backends.plan import span_plan

pytestmark = pytest.mark.one_backend


def dense(start, end, own, num_keys, stride=1):
    keys = np.arange(num_keys)
    index = stride * np.arange(start.shape[1])[:, None]
    first = (keys >= start[..., None]) & (keys < end[..., None])
    return first | (keys >= own[..., None]) & (keys <= index)


def painted(plan, shape):
    """The mask that the tiles represent."""
    mask = np.zeros(shape, dtype=bool)
    for tile in plan.tiles:
        keys = np.concatenate([np.arange(low, high) for low, high in tile.keys])
        index = np.arange(tile.low, tile.high)
        seen = np.ones((len(tile.hidden()[1]) if tile.kind == "bias" else 1, len(index), len(keys)), dtype=bool)
        if tile.kind == "causal":
            seen = (keys <= index[:, None])[None]
        elif tile.kind == "bias":
            at, hidden = tile.hidden()
            seen[:, :, at : at + hidden.shape[-1]] &= ~hidden
        if tile.hollow is not None:
            seen = seen & ~tile.hollow[:, :, None]
        for row in range(tile.row, tile.row_end):
            mask[row][np.ix_(index, keys)] = seen[row - tile.row if len(seen) > 1 else 0]
            if tile.joined:
                mask[row, index, index] = True
    return mask


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("seed", range(20))
def test_tiles_are_the_mask(seed, stride):
    """Arbitrary spans: empty, reversed, queries that see nothing, several members per row, with and without own tokens."""
    rng = np.random.default_rng(seed)
    batch, queries = 3, int(rng.integers(1, 400))
    tokens = stride * queries
    lead = np.sort(rng.integers(0, tokens, (batch, tokens)), axis=1) // 50 * 50  # first token of the member
    index = np.broadcast_to(np.arange(tokens), (batch, tokens))
    start = np.where(rng.random((batch, tokens)) < 0.1, tokens, lead)
    end = index - rng.integers(0, 12, (batch, tokens))
    own = np.where(rng.random((batch, tokens)) < 0.7, index - rng.integers(0, 3, (batch, tokens)), tokens)
    if seed % 3 == 0:
        end, own = rng.integers(-2, tokens + 3, (batch, tokens)), rng.integers(-2, tokens + 3, (batch, tokens))
    start, end, own = (part[:, ::stride] for part in (start, end, own))
    plan = span_plan(start, end, own, tokens, stride)
    # Below 0 there are no keys.
    want = dense(np.clip(start, 0, tokens), end, np.clip(own, 0, None), tokens, stride)
    found = painted(plan, want.shape)
    np.testing.assert_array_equal(found, want)
    if plan.empty is not None:
        np.testing.assert_array_equal(plan.empty, ~want.any(-1))
    if want.any():
        where = tuple(np.argwhere(want)[0])
        want[where] = False
        assert (found != want).any()  # control: one more pair is different


@pytest.mark.parametrize("stride", [1, 2])
def test_short_rows_share_a_tile(monkeypatch, stride):
    """300 rows of 9 queries: one tile, which is the mask; three where fewer pairs go together."""
    rng = np.random.default_rng(stride)
    shape = (300, 9)
    start, end, own = (rng.integers(-2, 9 * stride + 3, shape) for _ in range(3))
    start[7], end[7], own[7] = 0, 0, 9 * stride  # a row that sees nothing
    want = dense(np.clip(start, 0, 9 * stride), end, np.clip(own, 0, None), 9 * stride, stride)
    for pairs, tiles in ((1 << 22, 1), (100 * 81 * stride, 3)):
        monkeypatch.setattr(planning, "_TOGETHER", pairs)
        plan = span_plan(start, end, own, 9 * stride, stride)
        assert len(plan.tiles) == tiles and plan.covers
        np.testing.assert_array_equal(painted(plan, want.shape), want)
        np.testing.assert_array_equal(plan.empty, ~want.any(-1))
        np.testing.assert_array_equal(plan.unseen, ~want.any(1))
    monkeypatch.setattr(planning, "_SHORT", 0)
    plan = span_plan(start, end, own, 9 * stride, stride)
    assert len(plan.tiles) > 200, "control: a tile a row"
    np.testing.assert_array_equal(painted(plan, want.shape), want)


def test_tiles_do_not_mix_members_with_stride_two():
    """Two members in a row, each token seeing all older ones: no tile holds queries of both."""
    index = np.arange(0, 400, 2)[None]
    start = np.where(index < 200, 0, 200)
    plan = span_plan(start, index, index, 400, 2)
    assert all(tile.high <= 100 or tile.low >= 100 for tile in plan.tiles)
    assert sum((tile.high - tile.low) * sum(high - low for low, high in tile.keys) for tile in plan.tiles) <= 2 * 100 * 200


def test_a_bias_is_made_only_where_queries_differ():
    """A causal row with a delay: all queries of a tile see the early keys, so a mask is only as wide as tile and delay."""
    tokens, delay = 4000, 30
    index = np.arange(tokens)[None]
    plan = span_plan(np.zeros((1, tokens), int), index - delay, index, tokens)
    widths = [tile.hidden()[1].shape[-1] for tile in plan.tiles]
    queries = max(tile.high - tile.low for tile in plan.tiles)
    assert all(tile.kind == "bias" for tile in plan.tiles) and max(widths) <= 2 * queries + delay
    assert sum(sum(high - low for low, high in tile.keys) for tile in plan.tiles) > 5 * sum(widths)  # of all the pairs
