"""HistoryAttention, LinearHistory and MatchingHistory under masks, without `start` and `end`, and the scores of the first."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import HistoryAttention, LinearHistory, MatchingHistory
from keras_ranking.ops.masks import mask_of, set_mask
from tests.layers.common import numpy, randomise
from tests.layers.history.test_target_history import B, L, N, inputs, make, reference

REAL = np.array([[1, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0, 1]], bool)
KINDS = [HistoryAttention, LinearHistory, MatchingHistory]


def ready(kind: type, **settings: Any) -> tuple[Any, dict[str, Any]]:
    layer, x = make(kind, **settings), inputs(kind)
    layer(**x)
    randomise(layer)
    return layer, x


def unseen(x: dict[str, Any], real: np.ndarray, value: float) -> dict[str, Any]:
    """Hidden events with other numbers, vectors, times and ids."""
    changed = dict(x)
    for name in ("key", "value", "numbers"):
        if name in x:
            changed[name] = np.where(real[:, :, None], x[name], np.float32(value))
    changed["key_times"] = np.where(real, x["key_times"], 1).astype("int32")
    if "past" in x:
        changed["past"] = {name: np.where(real, ids, 1).astype("int32") for name, ids in x["past"].items()}
    return changed


def of_events(layer: Any, x: dict[str, Any], seen: np.ndarray) -> np.ndarray:
    """The reference, in which each candidate has a history of its own: the events that it sees (B, N, L), and no others."""
    rows = np.zeros((B, N), dtype=object)
    for b, n in np.ndindex(B, N):
        at = np.flatnonzero(seen[b, n])
        own = {name: value if isinstance(value, dict) else value.copy() for name, value in x.items()}
        for name in ("key", "value", "numbers", "key_times"):
            if name in own:
                own[name][b, : len(at)] = x[name][b, at]
        if "past" in own:
            own["past"] = {name: ids.copy() for name, ids in x["past"].items()}
            for name, ids in x["past"].items():
                own["past"][name][b, : len(at)] = ids[b, at]
        own["start"], own["end"] = np.zeros((B, N), "int32"), np.full((B, N), len(at), "int32")
        rows[b, n] = reference(layer, own)[b, n]
    return np.array(rows.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_masked_event_is_read_by_none(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = ready(kind)
    place = np.arange(L)[None, None]
    within = (place >= x["start"][:, :, None]) & (place < x["end"][:, :, None]) & REAL[:, None, :]
    out = numpy(layer(**x, key_mask=REAL))
    np.testing.assert_allclose(out, of_events(layer, x, within), rtol=2e-5, atol=2e-6)
    x["start"][0, 4] = 2
    out = numpy(layer(**x, key_mask=REAL))
    np.testing.assert_allclose(numpy(layer(**x, key_mask=REAL, window=5)), out, rtol=2e-5, atol=2e-6)
    for value in (9.0, np.nan):
        np.testing.assert_array_equal(numpy(layer(**unseen(x, REAL, value), key_mask=REAL)), out)
    masked = keras.ops.convert_to_tensor(x["numbers"])
    set_mask(masked, keras.ops.convert_to_tensor(REAL))
    np.testing.assert_array_equal(numpy(layer(**{**x, "numbers": masked})), out)
    for module in ("of_the_past", "matching_history"):
        monkeypatch.setattr(f"keras_ranking.layers.history.{module}.mask_of_all", lambda *given, mask=None: None)
    moved = numpy(layer(**unseen(x, REAL, 9.0), key_mask=REAL)) - numpy(layer(**x, key_mask=REAL))
    assert np.abs(moved).max() > 1e-3, "control: a mask that is ignored is seen"


@pytest.mark.parametrize("kind", KINDS)
def test_without_start_and_end_a_candidate_sees_what_is_older(kind: type) -> None:
    layer, x = ready(kind)
    x["times"][0, 0] = x["key_times"][0, 3]  # an event of its own second is hidden
    given = {name: value for name, value in x.items() if name not in ("start", "end")}
    older = x["key_times"][:, None, :] < x["times"][:, :, None]
    out = numpy(layer(**given))
    np.testing.assert_allclose(out, of_events(layer, x, older), rtol=2e-5, atol=2e-6)
    late = {**given, "numbers": x["numbers"] + np.float32(9) * (x["key_times"] >= x["times"][:, :1])[:, :, None]}
    np.testing.assert_array_equal(numpy(layer(**late))[:, 0], out[:, 0])
    every, _ = ready(kind, causal=False)
    np.testing.assert_allclose(numpy(every(**given)), of_events(every, x, np.ones_like(older)), rtol=2e-5, atol=2e-6)
    assert np.abs(numpy(every(**given)) - out)[0, 0].max() > 1e-3, "control: all events"


def test_scores_of_history_attention() -> None:
    layer, x = ready(HistoryAttention)
    some = np.random.default_rng(1).random((B, N, L)) < 0.7
    out, scores = layer(**x, key_mask=REAL, attention_mask=some, return_attention_scores=True)
    scores = numpy(scores)
    assert scores.shape == (B, 2, N, L)
    place = np.arange(L)[None, None]
    seen = (place >= x["start"][:, :, None]) & (place < x["end"][:, :, None]) & REAL[:, None, :] & some
    assert not scores[~np.repeat(seen[:, None], 2, axis=1)].any()
    np.testing.assert_allclose(numpy(out), of_events(layer, x, seen), rtol=2e-5, atol=2e-6)
    # The last entry of a head is the sum of its weights, and those before are the weighted numbers.
    heads = numpy(out).reshape(B, N, 2, -1)
    np.testing.assert_allclose(scores.sum(-1), heads[..., -1].transpose(0, 2, 1), rtol=1e-5, atol=1e-6)
    means = np.einsum("bhnl,blm->bnhm", scores.astype("float64"), x["numbers"])
    np.testing.assert_allclose(heads[..., 5:-1], means, rtol=1e-5, atol=1e-6)
    candidates = keras.ops.convert_to_tensor(x["inputs"])
    set_mask(candidates, keras.ops.convert_to_tensor(np.arange(N)[None] < [[3], [5]]))
    assert numpy(mask_of(layer(**{**x, "inputs": candidates}))).sum() == 8, "the outputs have the mask of the candidates"


@pytest.mark.quickest
def test_errors() -> None:
    layer, x = ready(HistoryAttention)
    without = {name: value for name, value in x.items() if name not in ("start", "end")}
    with pytest.raises(ValueError, match="`start` and `end` must be given together"):
        layer(**without, start=x["start"])
    with pytest.raises(ValueError, match="`window` counts events from `start` on"):
        layer(**without, window=2)
    bare = {name: value for name, value in without.items() if "times" not in name}
    with pytest.raises(ValueError, match="`times` and `key_times` must be given, because of the time gaps"):
        layer(**bare)
    plain, _ = ready(HistoryAttention, decay=False)
    with pytest.raises(ValueError, match="because of causal=True"):
        plain(**bare)
    assert plain(**{**bare, "start": x["start"], "end": x["end"]}).shape == (B, N, 16)
