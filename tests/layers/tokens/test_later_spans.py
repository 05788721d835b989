"""LaterSpans: what EventSpans of the whole row gives for the later events of a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import EventSpans, LaterSpans, TokenSpans
from tests.layers.common import numpy, run_layer_checks

RULES: list[dict[str, Any]] = [
    {"mask": "delay", "delay": 7},
    {"mask": "session", "delay": 4, "session_gap": 4},
    {"mask": "session", "delay": 3, "by_column": True},
    {"mask": "causal"},
]
B, L, M = 6, 16, 5
FIRST, COUNT = np.array([11, 11, 4, 0, 0, 7], "int32"), np.array([5, 3, 4, 5, 0, 1], "int32")


def row(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times with equal ones among them, ids of sessions that overlap, and segments; wild values behind the last event."""
    rng = np.random.default_rng(seed)
    times, ids = np.sort(rng.integers(0, 40, (B, L)), axis=1).astype("int32"), rng.integers(0, 4, (B, L)).astype("int32")
    segments = (np.arange(L) < (FIRST + COUNT)[:, None]).astype("int32")
    wild = rng.integers(-(2**31), 2**31 - 1, (B, L)).astype("int32")
    return np.where(segments, times, wild), np.where(segments, ids, wild), segments


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("own", [True, False])
def test_equals_the_spans_of_the_row(rule: dict[str, Any], own: bool) -> None:
    later, whole = LaterSpans(**rule, own=own), EventSpans(**rule, own=own)
    place, seen = FIRST[:, None] + np.arange(M), 0
    for seed in range(3):
        times, ids, segments = row(seed)
        more = {"sessions": ids} if rule.get("by_column") else {}
        given = {"new": np.zeros((B, M, 2), "float32"), "first": FIRST, "count": COUNT}
        found, expected = later(times, **given, **more), whole(times, segments=segments, **more)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(numpy(one), np.take_along_axis(numpy(other), place, axis=1))
        seen += int((numpy(found.end) - numpy(found.start)).sum())
        if own:
            tokens, others = TokenSpans("interleaved")(tuple(found), first=FIRST), TokenSpans("interleaved")(tuple(expected))
            at = 2 * FIRST[:, None] + np.arange(2 * M)
            for one, other in zip(tokens, others, strict=True):
                np.testing.assert_array_equal(numpy(one), np.take_along_axis(numpy(other), at, axis=1))
            assert (numpy(TokenSpans("interleaved")(tuple(found)).own) != numpy(tokens.own)).any()  # control: without the place
    assert seen  # control: some events are seen


@pytest.mark.quickest
def test_errors() -> None:
    given = {"new": np.zeros((B, M), "int32"), "first": FIRST, "count": COUNT}
    with pytest.raises(ValueError, match="`sessions` must be given with `by_column`"):
        LaterSpans("session", by_column=True)(row(0)[0], **given)
    with pytest.raises(ValueError, match="`first` is for the layout 'interleaved'"):
        TokenSpans("fused")(tuple(LaterSpans("causal")(row(0)[0], **given)), first=FIRST)


def test_common(tmp_path: Path) -> None:
    inputs = {"times": row(0)[0], "new": np.zeros((B, M), "int32"), "first": FIRST, "count": COUNT}
    run_layer_checks(lambda **more: LaterSpans("session", **more), inputs, tmp_path)
