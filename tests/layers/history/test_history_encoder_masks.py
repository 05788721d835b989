"""HistoryEncoder under Keras masks, and built from a history before it has seen a candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.ops.masks import mask_of, set_mask
from tests.layers.common import TOLERANCE, numpy, randomise
from tests.layers.history.test_history_encoder import INDEX, TIME, B, L, N, inputs, make

FUSIONS: dict[str, dict[str, Any]] = {
    "append_cross": {"rotary": INDEX, "rotate_by": "index", "history_mask": "causal", "pool": True, "latest": 2, "projection": 3},
    "append_falcon": {"rotary": TIME, "history_mask": "sessions"},
    "append_self": {"rotary": TIME},
    "concat": {"dim": None, "latest": 2},
    "convolution": {"widths": (1, 3)},
}
# Gaps, padding on both sides, and no event at all.
REAL = np.array([[1, 0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0, 0], [0] * 7, [1] * 7], bool)
SHOWN = np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1], [1] * 5, [1] * 5], bool)


def encoder(fusion: str) -> Any:
    layer = make(fusion, **FUSIONS[fusion])
    layer.build({name: x.shape for name, x in inputs().items()})
    randomise(layer, scale=0.3)
    return layer


def with_mask(x: np.ndarray, real: np.ndarray) -> Any:
    tensor = keras.ops.convert_to_tensor(x)
    set_mask(tensor, keras.ops.convert_to_tensor(real))
    return tensor


def real_first(x: dict[str, np.ndarray], real: np.ndarray) -> dict[str, np.ndarray]:
    """The same request without a mask: real events first, and their number."""
    order = np.argsort(~real, axis=1, kind="stable")
    moved = {name: np.stack([row[at] for row, at in zip(x[name], order, strict=True)]) for name in ("history", "times")}
    return {**x, **moved, "visible": real.sum(axis=1).astype("int32")}


@pytest.mark.parametrize("fusion", sorted(FUSIONS))
def test_a_masked_history_is_its_real_events(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = encoder(fusion), inputs()
    without = {name: value for name, value in x.items() if name != "visible"}
    out = numpy(layer({**without, "history": with_mask(x["history"], REAL)}))
    np.testing.assert_allclose(out, numpy(layer(real_first(x, REAL))), **TOLERANCE)
    np.testing.assert_array_equal(out, numpy(layer({**without, "history_real": REAL})))
    both = numpy(layer({**x, "history": with_mask(x["history"], REAL)}))
    visible = REAL & (np.arange(L)[None] < x["visible"][:, None])
    np.testing.assert_allclose(both, numpy(layer(real_first(x, visible))), **TOLERANCE)
    for value in (9.0, np.nan):
        history = np.where(REAL[:, :, None], x["history"], np.float32(value))
        changed = {**without, "history": with_mask(history, REAL), "times": np.where(REAL, x["times"], 3).astype("int32")}
        np.testing.assert_array_equal(numpy(layer(changed)), out)
    # Control: the mask is lost on the way, and what it hides is read.
    monkeypatch.setattr("keras_ranking.layers.history.history_encoder.mask_of_all", lambda *given, mask=None: None)
    all_events = {**without, "visible": np.full(B, L, "int32")}
    hidden = np.where(REAL[:, :, None], x["history"], np.float32(9.0))
    moved = numpy(layer({**all_events, "history": with_mask(hidden, REAL)})) - numpy(layer({**all_events, "history": x["history"]}))
    assert np.abs(moved).max() > 1e-2


@pytest.mark.quickest
def test_a_masked_candidate() -> None:
    """The outputs have its mask; it has no influence where candidates see one another, and an empty slot where they are packed."""
    layer, x = encoder("append_self"), inputs()
    given = {**x, "candidates": with_mask(x["candidates"], SHOWN)}
    out = layer(given)
    np.testing.assert_array_equal(numpy(mask_of(out)), SHOWN)
    hidden = np.where(SHOWN[:, :, None], x["candidates"], np.float32(np.nan))
    np.testing.assert_array_equal(numpy(layer({**given, "candidates": with_mask(hidden, SHOWN)}))[SHOWN], numpy(out)[SHOWN])
    assert np.abs(numpy(layer(x)) - numpy(out))[SHOWN].max() > 1e-3, "control"
    layer, slot = encoder("append_cross"), np.tile(np.arange(1, B + 1, dtype="int32"), (1, 2))[:, :N]
    row = {**x, "candidates": x["candidates"][:1], "slot": slot}
    masked = numpy(layer.packed({**row, "candidates": with_mask(row["candidates"], SHOWN[:1])}))
    np.testing.assert_array_equal(masked, numpy(layer.packed({**row, "slot": np.where(SHOWN[:1], slot, 0)})))
    with pytest.raises(ValueError, match="`streams` reads `stream` in place of a mask"):
        make().streams({**x, "slot": slot, "stream": slot, "begin": slot, "end": slot, "history_real": REAL})


def test_a_cache_grows_by_real_events() -> None:
    layer, x = encoder("append_falcon"), inputs()
    cache = layer.prefill({**x, "visible": np.array([2, 1, 0, 1], "int32")})
    new = {"history": x["history"][:, :4], "times": np.sort(x["times"][:, :4] + 50_000, axis=1)}
    real = REAL[:, :4]
    grown = layer.extend({**new, "history_real": real}, cache)
    order = np.argsort(~real, axis=1, kind="stable")
    moved = {name: np.stack([row[at] for row, at in zip(value, order, strict=True)]) for name, value in new.items()}
    want = layer.extend({**moved, "count": real.sum(axis=1).astype("int32")}, cache)
    np.testing.assert_array_equal(numpy(grown["length"]), numpy(want["length"]))
    np.testing.assert_allclose(numpy(layer.score(x, grown)), numpy(layer.score(x, want)), **TOLERANCE)


@pytest.mark.parametrize("fusion", ["append_falcon", "concat"])
def test_built_from_a_history_alone(fusion: str, tmp_path: Path) -> None:
    """Equal to the layer that has seen both from the start, weight by weight; saved before and after the first candidates."""
    whole, x = encoder(fusion), inputs()
    past = {name: x[name] for name in ("history", "visible", "times")}
    layer = make(fusion, **FUSIONS[fusion], name=whole.name)
    early = layer.prefill(past)
    assert len(layer.weights) < len(whole.weights), "the weights for candidates wait"

    symbols = {name: keras.Input(value.shape[1:], dtype=str(value.dtype), name=name) for name, value in x.items()}
    reads = keras.Model({name: symbols[name] for name in past}, dict(layer.prefill({name: symbols[name] for name in past})))
    reads.save(tmp_path / "history.keras")
    loaded = keras.saving.load_model(tmp_path / "history.keras")
    for name, value in loaded(past).items():
        np.testing.assert_array_equal(numpy(value), numpy(early[name]))

    scores = keras.Model(symbols, layer(symbols))
    assert [weight.path for weight in layer.weights] == [weight.path for weight in whole.weights]
    layer.set_weights(whole.get_weights())
    out = numpy(layer.score(x, layer.prefill(past)))
    np.testing.assert_array_equal(out, numpy(whole.score(x, whole.prefill(past))))
    for model, file in ((scores, "both.keras"), (reads, "later.keras")):
        model.save(tmp_path / file)
    np.testing.assert_array_equal(numpy(keras.saving.load_model(tmp_path / "both.keras")(x)), numpy(scores(x)))
    again = keras.saving.load_model(tmp_path / "later.keras").layers[-1]
    assert len(again.weights) == len(whole.weights), "the file holds the weights of candidates too"


@pytest.mark.quickest
def test_the_first_candidates_must_have_a_width() -> None:
    layer, x = make("append_cross"), inputs()
    layer.prefill({"history": x["history"], "visible": x["visible"]})
    with pytest.raises(ValueError, match="the last axis of candidates must be known"):
        layer._meet_candidates({"candidates": keras.Input((None, None))})
