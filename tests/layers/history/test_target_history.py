"""HistoryAttention, LinearHistory and MatchingHistory against the formulas in float64, pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.layers import HistoryAttention, LinearHistory, MatchingHistory
from tests.layers.common import by_path, numpy, randomise, run_layer_checks

B, N, L, D, M = 2, 5, 7, 6, 2
UNIT = 10.0


def inputs(kind: type) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    seen = {
        "numbers": rng.normal(size=(B, L, M)).astype("float32"),
        "start": np.array([[0, 0, 1, 3, 0], [0, 2, 2, 5, 7]], "int32"),
        "end": np.array([[0, 3, 4, 7, 7], [1, 2, 6, 7, 7]], "int32"),  # the first and two more see nothing
        "times": rng.integers(80, 200, (B, N)).astype("int32"),
        "key_times": np.sort(rng.integers(0, 90, (B, L)), axis=1).astype("int32"),
    }
    if kind is MatchingHistory:
        ids = {"item": rng.integers(0, 3, (B, N)).astype("int32"), "author": rng.integers(0, 2, (B, N)).astype("int32")}
        past = {"item": rng.integers(0, 3, (B, L)).astype("int32"), "author": rng.integers(0, 2, (B, L)).astype("int32")}
        return {"inputs": ids, "past": past, **seen}
    vectors = {"inputs": rng.normal(size=(B, N, D)).astype("float32"), "key": rng.normal(size=(B, L, D)).astype("float32")}
    value = {"value": rng.normal(size=(B, L, D)).astype("float32")} if kind is HistoryAttention else {}
    return {**vectors, **value, **seen}


def make(kind: type, **settings: Any) -> Any:
    sizes: dict[type, dict[str, Any]] = {
        HistoryAttention: {"num_heads": 2, "key_dim": 3, "value_dim": 5},
        LinearHistory: {"num_heads": 2, "key_dim": 3},
        MatchingHistory: {"columns": ["item", "author"], "decays": [0.1, 1.0]},
    }
    return kind(**{**sizes[kind], "unit": UNIT, **settings})


def softplus(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.exp(x))


def reference(layer: Any, x: dict[str, Any]) -> np.ndarray:
    """One query at a time, only with the events that it sees."""
    w, rows = by_path(layer), []
    for b in range(B):
        for n in range(N):
            events = np.arange(x["start"][b, n], x["end"][b, n])
            gap = np.log1p(np.maximum(x["times"][b, n] - x["key_times"][b, events], 0) / UNIT)
            numbers = x["numbers"][b, events].astype("float64")
            parts: list[Any] = []
            if isinstance(layer, MatchingHistory):
                numbers = np.concatenate([np.ones((len(events), 1)), numbers], axis=1)
                for place, name in enumerate(layer.columns):
                    one = x["inputs"][name][b, n]
                    same = (x["past"][name][b, events] == one) & (one != 0)
                    for rate in softplus(w["decay"][place]):
                        total = (same * np.exp(-rate * gap)) @ numbers
                        parts.append(np.sign(total) * np.log1p(np.abs(total)))
            else:
                query_map = w["query_map"] if isinstance(layer, HistoryAttention) else w["item_map"]
                key_map = w.get("key_map", query_map)
                for head in range(layer.num_heads):
                    rate = softplus(w["decay"][head]) if layer.decay else 0.0
                    score = (x["key"][b, events] @ key_map[:, head]) @ (x["inputs"][b, n] @ query_map[:, head]) / np.sqrt(3)
                    if isinstance(layer, HistoryAttention):
                        weight = np.exp(score - rate * gap)
                        weight = weight / (weight.sum() + np.exp(w["empty"][head]))
                        parts += [weight @ (x["value"][b, events] @ w["value_map"][:, head]), weight @ numbers, [weight.sum()]]
                    else:
                        parts.append((score * np.exp(-rate * gap)) @ numbers / np.sqrt(len(events) + layer.shrink))
            rows.append(np.concatenate(parts))
    return np.reshape(rows, (B, N, -1))


CASES = [
    (HistoryAttention, {}),
    (HistoryAttention, {"decay": False, "tied": False}),
    (LinearHistory, {}),
    (LinearHistory, {"decay": False, "shrink": 1.0}),
    (MatchingHistory, {}),
]
KINDS = [HistoryAttention, LinearHistory, MatchingHistory]


@pytest.mark.few(3)
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_reference(kind: type, settings: dict[str, Any]) -> None:
    layer, x = make(kind, **settings), inputs(kind)
    layer(**x)
    randomise(layer)
    out = numpy(layer(**x))
    np.testing.assert_allclose(out, reference(layer, x), rtol=2e-5, atol=2e-6)
    assert np.abs(out).max() > 0.1
    np.testing.assert_array_equal(out[0, 0], 0.0)  # sees nothing


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_windows_equal_all_events(kind: type, settings: dict[str, Any]) -> None:
    """Each query reads as many events as the one that sees most, from its first one on; a window that is too short reads too few."""
    layer, x = make(kind, **settings), inputs(kind)
    x["start"][0, 4] = 2  # then nobody sees more than 5 of the 7 events
    layer(**x)
    randomise(layer)
    np.testing.assert_allclose(numpy(layer(**x, window=5)), reference(layer, x), rtol=2e-5, atol=2e-6)
    np.testing.assert_array_equal(numpy(layer(**x, window=L)), numpy(layer(**x)))
    assert np.abs(numpy(layer(**x, window=2)) - numpy(layer(**x))).max() > 1e-3, "control"


@pytest.mark.parametrize("kind", KINDS)
def test_a_window_shows_no_other_event(kind: type) -> None:
    """Events behind the end are in the window of a query that ends earlier, and change no bit of it."""
    layer, x = make(kind), inputs(kind)
    x["start"][0, 4] = 2
    changed = {**x, "numbers": x["numbers"] + np.where(np.arange(L) == 4, 50.0, 0.0).astype("float32")[None, :, None]}
    before, after = (numpy(layer(**each, window=5)) for each in (x, changed))
    blind = (x["start"] > 4) | (x["end"] <= 4)
    np.testing.assert_array_equal(after[blind], before[blind])
    assert np.abs(after[0, 3:] - before[0, 3:]).max() > 1e-3, "control"


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_that_is_not_seen_changes_no_bit(kind: type) -> None:
    layer, x = make(kind), inputs(kind)
    before = numpy(layer(**x))

    def moved(place: int) -> np.ndarray:
        changed = {name: value if isinstance(value, dict) else value.copy() for name, value in x.items()}
        for name in ("key", "value", "numbers", "key_times"):
            if name in changed:
                changed[name][0, place] += 50
        if "past" in changed:
            changed["past"] = {name: np.where(np.arange(L) == place, 1, ids) for name, ids in x["past"].items()}
        return np.asarray(numpy(layer(**changed)))

    after = moved(6)
    np.testing.assert_array_equal(after[0, :3], before[0, :3])
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after[0, 3:] - before[0, 3:]).max() > 1e-3, "control"


@pytest.mark.parametrize("kind", KINDS)
def test_each_query_is_read_alone(kind: type) -> None:
    layer, x = make(kind), inputs(kind)
    whole = numpy(layer(**x))
    per_query = ("start", "end", "times")
    for n in range(N):
        one = {name: value[:, n : n + 1] if name in per_query else value for name, value in x.items()}
        ids = x["inputs"]
        one["inputs"] = {k: v[:, n : n + 1] for k, v in ids.items()} if isinstance(ids, dict) else ids[:, n : n + 1]
        np.testing.assert_allclose(numpy(layer(**one))[:, 0], whole[:, n], rtol=1e-5, atol=1e-6)


def test_a_softmax_cannot_count_and_exact_matches_do() -> None:
    """Two events with the item, and one: the same attention, but for the empty slot; sums that differ by ln 3 - ln 2."""
    layer = MatchingHistory(["item"], decays=[1e-9])
    x = {"numbers": np.ones((1, 2, 1), "float32"), "start": np.zeros((1, 2), "int32"), "end": np.array([[1, 2]], "int32")}
    times = {"times": np.full((1, 2), 9, "int32"), "key_times": np.array([[1, 1]], "int32")}
    out = numpy(layer({"item": np.full((1, 2), 3, "int32")}, past={"item": np.full((1, 2), 3, "int32")}, **x, **times))
    np.testing.assert_allclose(out[0, :, 0], np.log([2.0, 3.0]), rtol=1e-6)


@pytest.mark.few(3)
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_common(kind: type, settings: dict[str, Any], tmp_path: Path) -> None:
    run_layer_checks(lambda **more: make(kind, **{**settings, **more}), inputs(kind), tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    with pytest.raises(ValueError, match="`num_heads` must be a positive integer. Received: num_heads=0"):
        HistoryAttention(num_heads=0)
    with pytest.raises(ValueError, match="`unit` must be a positive number"):
        HistoryAttention(unit=0)
    with pytest.raises(ValueError, match="`shrink` must be a positive number"):
        LinearHistory(shrink=-1)
    with pytest.raises(ValueError, match="`window` must be a positive integer, or None. Received: window=0"):
        make(LinearHistory)(**inputs(LinearHistory), window=0)
    with pytest.raises(ValueError, match="`columns` must not be empty"):
        MatchingHistory([])
    with pytest.raises(ValueError, match="`decays` positive"):
        MatchingHistory(["item"], decays=[0.0])
