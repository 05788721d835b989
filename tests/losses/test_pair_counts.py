"""Pairs with a gradient: counted from labels as the loss compares them."""

from __future__ import annotations

import numpy as np
import pytest

from keras_ranking.losses import InRequestPairwise, PairCounts, targets

ROWS = 4


def drawn(seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, (ROWS, 24)).astype(float)
    position, request = rng.integers(1, 12, label.shape), np.sort(rng.integers(0, 6, label.shape), axis=1)
    weight = (rng.random(label.shape) < 0.8).astype(float)
    return label, position, request, weight


def by_hand(label: np.ndarray, position: np.ndarray, request: np.ndarray, weight: np.ndarray, same_bucket: bool) -> PairCounts:
    pairs = used = 0
    better = np.zeros(label.shape, dtype=bool)
    bucket = (position > 1).astype(int) + (position > 4)
    for row in range(len(label)):
        for i in range(label.shape[1]):
            for j in range(label.shape[1]):
                if request[row, i] == request[row, j] and label[row, i] > label[row, j] and weight[row, i] * weight[row, j] > 0:
                    pairs += 1
                    if not same_bucket or bucket[row, i] == bucket[row, j]:
                        used += 1
                        better[row, i] = True
    return PairCounts(pairs, used, int(((label > 0) & (weight > 0)).sum()), int((better & (label > 0)).sum()))


@pytest.mark.one_backend
@pytest.mark.parametrize("same_bucket", [True, False])
@pytest.mark.parametrize("graded", [False, True])
def test_counts_are_those_of_a_double_loop(same_bucket: bool, graded: bool) -> None:
    label, position, request, weight = drawn()
    label = label * np.random.default_rng(1).integers(1, 4, label.shape) if graded else label
    want = by_hand(label, position, request, weight, same_bucket)
    numbered = request + 100 * np.arange(ROWS)[:, None]
    flat = [x.reshape(-1) for x in (label, numbered, position, weight)]
    found = PairCounts.of(flat[0], flat[1], flat[2], (1, 4), same_bucket, flat[3])
    assert found == want and 0 < found.used <= found.pairs
    assert (found.share < 1) == same_bucket, "control: of the whole request all pairs are compared"
    halves = [PairCounts.of(*(x[part] for x in flat[:3]), (1, 4), same_bucket, flat[3][part]) for part in (slice(0, 48), slice(48, None))]
    assert halves[0] + halves[1] == want
    unknown = np.where(flat[3] > 0, flat[0], np.nan)
    assert PairCounts.of(unknown, flat[1], flat[2], (1, 4), same_bucket) == want


@pytest.mark.parametrize("same_bucket", [True, False])
def test_positives_with_a_gradient(same_bucket: bool) -> None:
    """The loss falls where the logit of a positive in a pair rises, and of no other."""
    label, position, request, weight = (x[:1] for x in drawn(2))
    loss = InRequestPairwise((1, 4), same_bucket, reduction="sum")
    y_true, logits = targets(label, position, request), np.zeros((1, 24, 3), "float32")
    before = float(loss(y_true, logits, weight))
    moved = 0
    for at in np.flatnonzero((label > 0) & (weight > 0)):
        raised = logits.copy()
        raised[0, at] = 1.0
        moved += float(loss(y_true, raised, weight)) < before - 1e-3
    want = by_hand(label, position, request, weight, same_bucket)
    assert 0 < want.positives_used == moved
    assert (moved < want.positives) or not same_bucket, "control: in one bucket some positives are in no pair"


@pytest.mark.one_backend
def test_nothing_to_count() -> None:
    none = PairCounts.of([0, 0, 1], [1, 1, 2])
    assert none.plain() == {"pairs": 0, "used": 0, "positives": 1, "positives_used": 0, "share": None, "positives_share": 0.0}
    assert PairCounts.of([], []).plain()["positives_share"] is None
    with pytest.raises(ValueError, match="`position` must be given with `boundaries`. Received: position=None, boundaries=\\(4,\\)"):
        PairCounts.of([1, 0], [1, 1], boundaries=(4,))
    with pytest.raises(ValueError, match="`request` must have the length of `label`, 2. Received: 1"):
        PairCounts.of([1, 0], [1])
