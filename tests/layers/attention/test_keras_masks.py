"""Attention under a Keras mask, a mask of pairs, or no spans at all; and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking import layers
from keras_ranking.ops.masks import mask_of, set_mask
from tests.compiling import JIT
from tests.layers.attention.test_self_gated_attention import ALL, B, D, attention, ready, reference
from tests.layers.common import TOLERANCE, by_path, numpy, randomise

T = 7
# Gaps, padding left and right: no such row is one interval.
REAL = np.array([[1, 1, 0, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0, 1]], bool)
LOWER = np.tril(np.ones((T, T), bool))


def row() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(B, T, D)).astype("float32"), np.sort(rng.integers(0, 3_000_000, (B, T)), axis=1).astype("int32")


def pairs(causal: bool, real: np.ndarray = REAL) -> np.ndarray:
    return (LOWER if causal else np.ones_like(LOWER))[None] & real[:, None, :] & real[:, :, None]


def masked(x: np.ndarray, real: np.ndarray = REAL) -> Any:
    tensor = keras.ops.convert_to_tensor(x)
    set_mask(tensor, keras.ops.convert_to_tensor(real))
    return tensor


def other_padding(x: np.ndarray, times: np.ndarray, value: float) -> tuple[np.ndarray, np.ndarray]:
    return np.where(REAL[:, :, None], x, np.float32(value)), np.where(REAL, times, np.int32(7))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("how", ["keras mask", "mask=", "scores"])
def test_a_mask_with_gaps_equals_the_reference(causal: bool, how: str) -> None:
    layer, (x, times) = ready(attention(ALL, causal=causal)), row()
    if how == "keras mask":
        out = layer(masked(x), times=times)
        np.testing.assert_array_equal(numpy(mask_of(out)), REAL)
    elif how == "mask=":
        out = layer(x, times=times, mask=REAL)
        np.testing.assert_array_equal(numpy(mask_of(out)), REAL)
    else:
        out, _ = layer(x, times=times, mask=REAL, return_attention_scores=True)
    out = numpy(out)
    np.testing.assert_allclose(out, reference(layer, x, times, pairs(causal), None, ALL), rtol=1e-5, atol=5e-6)
    assert not out[~REAL].any(), "a hidden token sees nothing"
    for wrong in (pairs(causal, np.ones_like(REAL)), pairs(not causal)):
        assert np.abs(out - reference(layer, x, times, wrong, None, ALL))[REAL].max() > 1e-2, "control"


MIXING = {
    "SelfGatedAttention": lambda: layers.SelfGatedAttention(2, 4),
    "SelfGatedAttention, all": lambda: layers.SelfGatedAttention(2, 4, causal=False),
    "DecoderBlock": lambda: layers.DecoderBlock(2, 4, rotate_by="index"),
    "LiGRBlock": lambda: layers.LiGRBlock(2, 4),
    "GatedResidual": lambda: layers.GatedResidual(layers.SelfGatedAttention(2, 4)),
    "SetwiseAttention": lambda: layers.SetwiseAttention(num_heads=2),
    "SetwiseAttention, 2": lambda: layers.SetwiseAttention(num_heads=2, top_k=2),
    "ListPooling": lambda: layers.ListPooling(),
    "ListContext": lambda: layers.ListContext(),
}


def called(name: str, layer: Any, x: np.ndarray, times: np.ndarray, **settings: Any) -> np.ndarray:
    """Outputs of the real tokens."""
    if name.startswith(("SelfGated", "LiGR", "GatedResidual")):
        settings["times"] = times
    if name == "SetwiseAttention, 2":
        settings["score"] = x[:, :, 0]
    out = layer(masked(x), **settings)
    return np.asarray(numpy(out[0] if isinstance(out, tuple) else out)[REAL])


@pytest.mark.few(4)
@pytest.mark.parametrize("name", sorted(MIXING))
def test_what_a_mask_hides_moves_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, (x, times) = MIXING[name](), row()
    before = called(name, layer, x, times)
    randomise(layer)
    before = called(name, layer, x, times)
    for value in (9.0, np.nan):
        np.testing.assert_array_equal(called(name, layer, *other_padding(x, times, value)), before)
    # Control: the same layer where the mask is lost on the way to the attention.
    for module in ("attention.self_gated_attention", "attention.gated_residual", "lists.slots", "lists.setwise_attention"):
        monkeypatch.setattr(f"keras_ranking.layers.{module}.mask_of_all", lambda *given, mask=None: None)
    moved = called(name, layer, *other_padding(x, times, 9.0))
    assert np.abs(moved - called(name, layer, x, times)).max() > 1e-3, "a mask that is ignored is seen"


@pytest.mark.parametrize("how", ["spans", "attention_mask"])
def test_a_mask_hides_what_spans_and_pairs_show(how: str) -> None:
    """Spans over two members, and a mask of pairs, under a mask with gaps: both hold."""
    layer, (x, times) = ready(attention()), row()
    segments = np.array([[1, 1, 1, 2, 2, 2, 2], [1, 1, 1, 1, 2, 2, 2]], "int32")
    spans = kr.ops.Spans.causal(segments)
    shown = pairs(True) & (segments[:, :, None] == segments[:, None, :])
    settings: dict[str, Any] = {"spans": spans}
    if how == "attention_mask":
        some = np.random.default_rng(3).random((B, T, T)) < 0.6
        shown, settings = shown & some, {"spans": spans, "attention_mask": some}
    out = numpy(layer(x, times=times, mask=REAL, **settings))
    np.testing.assert_allclose(out, reference(layer, x, times, shown), rtol=1e-5, atol=5e-6)
    np.testing.assert_array_equal(numpy(layer(*other_padding(x, times, np.nan)[:1], times=times, mask=REAL, **settings)), out)
    assert np.abs(out - numpy(layer(x, times=times, **settings)))[REAL].max() > 1e-3, "control: without the mask"


def test_scores_are_the_softmax_of_the_formula() -> None:
    layer, (x, times) = ready(attention(kv=2)), row()
    out, key, value, scores = layer(x, times=times, mask=REAL, return_cache=True, return_attention_scores=True)
    np.testing.assert_allclose(numpy(out), numpy(layer(x, times=times, mask=REAL)), **TOLERANCE)
    query = numpy(layer._project(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(times))[0]).astype("float64")
    keys = np.repeat(numpy(key).astype("float64"), 2, axis=2)
    want = np.zeros((B, 4, T, T))
    for b, h, t in np.ndindex(B, 4, T):
        seen = np.flatnonzero(pairs(True)[b, t])
        if len(seen):
            weight = np.exp(keys[b, seen, h] @ query[b, t, h] / 2.0)
            want[b, h, t, seen] = weight / weight.sum()
    np.testing.assert_allclose(numpy(scores), want, rtol=2e-5, atol=1e-6)
    given = [keras.ops.convert_to_tensor(part) for part in (x, times)]
    cache = (key, value, keras.ops.convert_to_tensor(np.array([T, 2], "int32")))
    cached = layer(*given, cache=cache, return_attention_scores=True)[1]
    np.testing.assert_array_equal(numpy(cached), numpy(layer.candidate_weights(*given, cache)))


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_keras_s_attention_without_gates_and_rotation(causal: bool) -> None:
    """Outputs and scores of `keras.layers.MultiHeadAttention`, with a mask of tokens, a mask of pairs, and `use_causal_mask`."""
    ours, theirs = ready(attention((), None, None, causal=causal)), keras.layers.MultiHeadAttention(4, 4, use_bias=False)
    x, _ = row()
    some = np.random.default_rng(3).random((B, T, T)) < 0.7
    some |= np.eye(T, dtype=bool)  # in Keras, a token that sees nothing sees all
    theirs.build((None, None, D), (None, None, D))
    w = by_path(ours)
    theirs.set_weights(
        [w[f"{name}/kernel"].reshape(D, 4, 4) for name in ("query", "key", "value")] + [w["output_map/kernel"].reshape(4, 4, D)]
    )
    want, weights = theirs(masked(x), masked(x), attention_mask=some, use_causal_mask=causal, return_attention_scores=True)
    out, scores = ours(x, mask=REAL, attention_mask=some, return_attention_scores=True)
    np.testing.assert_allclose(numpy(out)[REAL], numpy(want)[REAL], rtol=1e-5, atol=5e-6)
    chosen = np.repeat(REAL[:, None, :], 4, axis=1)
    np.testing.assert_allclose(numpy(scores)[chosen], numpy(weights)[chosen], rtol=1e-5, atol=1e-6)


def test_without_spans_the_whole_row_is_seen() -> None:
    x, times = row()
    for causal in (True, False):
        layer = ready(attention(causal=causal))
        np.testing.assert_allclose(
            numpy(layer(x, times=times)), reference(layer, x, times, pairs(causal, np.ones_like(REAL))), rtol=1e-5, atol=5e-6
        )
    assert all(kind(2, 4).get_config()["causal"] for kind in (layers.SelfGatedAttention, layers.DecoderBlock, layers.LiGRBlock))
    # An index that is not given counts the real tokens: padding left of a row, and gaps, change nothing.
    layer = ready(attention(rotate_by="index"))
    alone = numpy(layer(x[:1, REAL[0]]))
    np.testing.assert_allclose(numpy(layer(x, mask=REAL))[:1, REAL[0]], alone, **TOLERANCE)


@pytest.fixture(scope="module")
def trained() -> tuple[keras.Model, np.ndarray]:
    """Ids with 0 for padding, two blocks, and the mean of real tokens; after a step of training."""
    ids = keras.Input((None,), dtype="int32", name="ids")
    x = keras.layers.Embedding(20, 8, mask_zero=True, embeddings_initializer=keras.initializers.RandomNormal(seed=1))(ids)
    x = layers.LiGRBlock(2, 4, rotary=None)(layers.DecoderBlock(2, 4, rotate_by="index")(x))
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.GlobalAveragePooling1D()(x)))
    model.compile("sgd", "mse", jit_compile=JIT)
    given = np.array([[3, 4, 5, 6, 0, 0], [0, 7, 0, 8, 9, 0]], "int32")
    model.fit(given, np.ones((2, 1), "float32"), verbose=0)
    return model, given


def test_padding_changes_no_prediction_of_a_trained_model(trained: Any) -> None:
    model, given = trained
    before = model.predict(given, verbose=0)
    wider = np.pad(given, ((0, 0), (2, 3)))
    np.testing.assert_allclose(model.predict(wider, verbose=0), before, **TOLERANCE)
    table = model.layers[1].embeddings
    rows = numpy(table.value).copy()
    table.assign(np.concatenate([rows[:1] + 50, rows[1:]]))  # the vector of padding
    np.testing.assert_array_equal(model.predict(given, verbose=0), before)
    table.assign(rows)
    assert np.abs(model.predict(np.where(given == 0, 11, given), verbose=0) - before).max() > 1e-4, "control"


def test_a_saved_model_reads_its_mask(trained: Any, tmp_path: Path) -> None:
    model, given = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(given, verbose=0), model.predict(given, verbose=0))


def test_a_mask_survives_a_cast_to_half_precision() -> None:
    layer, (x, times) = layers.DecoderBlock(2, 4, dtype="mixed_bfloat16"), row()
    before = numpy(layer(masked(x), times=times))[REAL]
    changed, _ = other_padding(x, times, 30.0)
    np.testing.assert_array_equal(numpy(layer(masked(changed), times=times))[REAL], before)


@pytest.mark.quickest
def test_what_does_not_go_together() -> None:
    layer, (x, times) = ready(attention()), row()
    _, key, value = layer(x, times=times, return_cache=True)
    cache = (key, value, np.array([3, 2], "int32"))
    wide = kr.ops.Spans.causal(np.ones((B, 2 * T), "int32"))
    with pytest.raises(ValueError, match="a mask does not go with `cache` and `spans`"):
        layer(x, times=times, cache=cache, spans=wide, mask=REAL)
    with pytest.raises(ValueError, match="`return_attention_scores` does not go with `cache` and `spans`"):
        layer(x, times=times, cache=cache, spans=wide, return_attention_scores=True)
    with pytest.raises(ValueError, match="`attention_mask` is for a row of tokens"):
        layer(x, times=times, cache=cache, attention_mask=LOWER)
    with pytest.raises(ValueError, match="go with stride=1"):
        layer(x[:, :6], times=times[:, :6], stride=2, return_attention_scores=True)
    with pytest.raises(ValueError, match=r"`attention_mask` must be \(T, S\) or \(B, T, S\)"):
        layer(x, times=times, attention_mask=np.ones(T, bool))
    with pytest.raises(ValueError, match="`times` must be given: this attention rotates by time. Give int32 seconds"):
        layer(x)
