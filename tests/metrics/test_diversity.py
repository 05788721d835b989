"""Diversity of lists and the greedy re-ranker, against loops over one list at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from keras_ranking import metrics

pytestmark = pytest.mark.one_backend


def log(seed: int, requests: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 9, requests)
    request = np.repeat(np.arange(requests), size)
    n = len(request)
    author = rng.integers(0, 4, n).astype(object)
    author[rng.random(n) < 0.1] = None
    table = {
        "scores": np.round(rng.normal(size=n), 1),  # with ties
        "groups": request,
        "author": author,
        "type": rng.choice(["video", "text"], n),
        "vectors": np.where(rng.random((n, 1)) < 0.1, 0.0, rng.normal(size=(n, 3))),
    }
    order = rng.permutation(n)
    return {name: values[order] for name, values in table.items()}


def lists(x: dict[str, Any], k: int | None = None) -> list[list[int]]:
    """Rows of each list, best first; of equal scores the earlier row first."""
    out = []
    for group in sorted(set(x["groups"])):
        rows = [i for i in range(len(x["groups"])) if x["groups"][i] == group]
        out.append(sorted(rows, key=lambda i: (-x["scores"][i], i))[:k])
    return out


def same(a: Any, b: Any) -> bool:
    return a is not None and a == b


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k", [1, 3, None])
def test_against_loops(seed: int, k: int | None) -> None:
    x = log(seed)
    similar, covered, broken = [], [], []
    for rows in lists(x, k):
        pairs = []
        for a in range(len(rows)):
            for b in range(a):
                u, v = x["vectors"][rows[a]], x["vectors"][rows[b]]
                norm = np.linalg.norm(u) * np.linalg.norm(v)
                pairs.append(u @ v / norm if norm else 0.0)
        if pairs:
            similar.append(np.mean(pairs))
        known = {x["author"][i] for i in rows} - {None}
        covered.append((len(known) + sum(x["author"][i] is None for i in rows)) / len(rows))
        broken.append(sum(any(same(x["author"][rows[p]], x["author"][rows[q]]) for q in range(max(0, p - 2), p)) for p in range(len(rows))))
    found = metrics.intra_list_similarity(x["vectors"], x["scores"], x["groups"], k)
    assert found.groups == len(similar)
    np.testing.assert_allclose(found.value, np.mean(similar) if similar else np.nan, atol=1e-12)
    found = metrics.coverage(x["author"], x["scores"], x["groups"], k)
    np.testing.assert_allclose(found, (np.mean(covered), len(covered)))
    violations = metrics.gap_violations(x["author"], x["scores"], x["groups"], gap=2, k=k)
    np.testing.assert_allclose(violations, (np.mean(broken), np.mean(np.array(broken) > 0), len(broken)))


def brute(x: dict[str, Any], rows: list[int], gaps: dict[str, int]) -> list[int]:
    left, placed = list(rows), []
    while left:
        costs = [
            sum(sum(same(x[name][i], x[name][j]) for j in placed[max(0, len(placed) - gap) :]) for name, gap in gaps.items()) for i in left
        ]
        placed.append(left.pop(int(np.argmin(costs))))  # `left` is in order of score
    return placed


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gaps", [{}, {"author": 1}, {"author": 2, "type": 1}, {"author": 50}])
def test_rerank(seed: int, gaps: dict[str, int]) -> None:
    x = log(seed)
    places = metrics.greedy_rerank(x["scores"], x["groups"], {"author": x["author"], "type": x["type"]}, gaps)
    for rows in lists(x):
        assert sorted(places[rows]) == list(range(1, len(rows) + 1)), "every item has a different place"
        expected = rows if not gaps else brute(x, rows, gaps)
        assert [rows[i] for i in np.argsort(places[rows])] == expected
    if gaps == {"author": 1}:
        before = metrics.gap_violations(x["author"], x["scores"], x["groups"], gap=1).mean
        after = metrics.gap_violations(x["author"], -places.astype(float), x["groups"], gap=1).mean
        assert after < 0.5 * before, "control: the rule was violated before"


def test_errors() -> None:
    x = log(0)
    with pytest.raises(ValueError, match="`k` must be a positive integer or None. Received: k=0"):
        metrics.coverage(x["author"], x["scores"], x["groups"], k=0)
    with pytest.raises(ValueError, match="`gap` must be a positive integer. Received: gap=0"):
        metrics.gap_violations(x["author"], x["scores"], x["groups"], gap=0)
    with pytest.raises(ValueError, match="`gaps` must name columns of `values`.*Received: 'actor'"):
        metrics.greedy_rerank(x["scores"], x["groups"], {"author": x["author"]}, {"actor": 1})
    with pytest.raises(ValueError, match="`vectors` must be finite"):
        metrics.intra_list_similarity(x["vectors"][:-1], x["scores"], x["groups"])
    with pytest.raises(ValueError, match="`values` must have one value per row"):
        metrics.coverage(x["author"][:-1], x["scores"], x["groups"])


def test_missing_values_are_different_from_all_others() -> None:
    missing = [None, float("nan"), pd.NA, pd.NaT]
    for values in (np.array([*missing, "x"], dtype=object), [*missing, "x"]):
        assert metrics.coverage(values, [5, 4, 3, 2, 1], ["a"] * 5, k=5).value == 1.0
    assert metrics.coverage(np.array([np.nan, np.nan, 1.0, 1.0]), [4, 3, 2, 1], ["a"] * 4).value == 0.75
