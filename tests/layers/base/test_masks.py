"""A Keras mask is passed on, or refused with an error: never lost."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking import layers
from keras_ranking.layers.base import PassesMask, ReadsKeyMask, RefusesMask
from keras_ranking.layers.forests import Tree, Trees
from keras_ranking.ops.masks import mask_of

WIDTH, REAL, PADDING = 8, 5, 40


def numpy(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), dtype=np.float64)


def spans(count: int) -> Any:
    """Padding is right of the tokens and no key of theirs."""
    return kr.ops.Spans.causal(np.array([[1] * REAL + [0] * (count - REAL)], "int32"))


def small_forest() -> Any:
    """One tree without a node."""
    none = np.zeros(0, int)
    tree = Tree(none, none.astype("float32"), none, none, (), none > 0, np.ones((1, 1)))
    return layers.Forest.from_trees(Trees([tree], [f"x{at}" for at in range(WIDTH)], np.zeros(1)))


# layer -> (the layer, what else a call takes for `count` tokens)
EACH_TOKEN: dict[str, tuple[Callable[[], Any], Callable[[int], dict[str, Any]]]] = {
    "SwiGLU": (lambda: layers.SwiGLU(16), lambda n: {}),
    "GatedResidual": (lambda: layers.GatedResidual(keras.layers.Dense(WIDTH)), lambda n: {}),
    "GatedResidual of attention": (
        lambda: layers.GatedResidual(layers.SelfGatedAttention(2, 4, rotary=None)),
        lambda n: {"spans": spans(n)},
    ),
    "SelfGatedAttention": (lambda: layers.SelfGatedAttention(2, 4, rotary=None), lambda n: {"spans": spans(n)}),
    "DecoderBlock": (lambda: layers.DecoderBlock(2, 4, rotary=None), lambda n: {"spans": spans(n)}),
    "LiGRBlock": (lambda: layers.LiGRBlock(2, 4, rotary=None), lambda n: {"spans": spans(n)}),
    "RescaleAndAdd": (layers.RescaleAndAdd, lambda n: {"branch": np.ones((1, n, WIDTH), "float32")}),
    "ResidualDCN": (lambda: layers.ResidualDCN(rank=2), lambda n: {}),
    "LowRankCross": (lambda: layers.LowRankCross(rank=2), lambda n: {}),
    "AttentionLowRankCross": (lambda: layers.AttentionLowRankCross(rank=2), lambda n: {}),
    "ParallelDCN": (lambda: layers.ParallelDCN(num_layers=1, rank=2, hidden=(4,)), lambda n: {}),
    "StackedDCN": (lambda: layers.StackedDCN(num_layers=1, rank=2, hidden=(4,)), lambda n: {}),
    "DenseGate": (layers.DenseGate, lambda n: {}),
    "GatedMLP": (lambda: layers.GatedMLP((WIDTH,)), lambda n: {}),
    "MaskedBatchNormalization": (layers.MaskedBatchNormalization, lambda n: {}),
    "PositionTowers": (lambda: layers.PositionTowers(3, hidden=(4,)), lambda n: {}),
    "RankingHead": (lambda: layers.RankingHead("mmoe", ["click", "like"], hidden=[4], num_experts=2), lambda n: {}),
    "BayesianLinear": (layers.BayesianLinear, lambda n: {}),
    "IsotonicCalibration": (lambda: layers.IsotonicCalibration(units=WIDTH), lambda n: {}),
    "FuseActions": (layers.FuseActions, lambda n: {}),
    "SetwiseAttention": (
        lambda: layers.SetwiseAttention(num_heads=2),
        lambda n: {"slot": np.array([[1] * REAL + [0] * (n - REAL)], "int32")},
    ),
    "SetwiseAttention of a mask": (lambda: layers.SetwiseAttention(num_heads=2), lambda n: {}),
    "DecoderBlock of a mask": (lambda: layers.DecoderBlock(2, 4, rotate_by="index", causal=False), lambda n: {}),
    "ListContext": (layers.ListContext, lambda n: {}),
    "ListPooling": (layers.ListPooling, lambda n: {}),
    "Forest": (small_forest, lambda n: {}),
    "NumericEmbedding": (lambda: layers.NumericEmbedding("periodic", width=2, flatten=True), lambda n: {}),
    "MultiTaskHead": (lambda: layers.MultiTaskHead("mmoe", ["click", "like"], num_experts=2), lambda n: {}),
}


def pooled(layer: Any, more: dict[str, Any], padding: int, mask: bool = True) -> list[np.ndarray]:
    """Mean over the tokens of each output, by Keras's own layer, of ids with `padding` more zeros."""
    table = keras.layers.Embedding(10, WIDTH, mask_zero=mask, embeddings_initializer=keras.initializers.RandomNormal(seed=1))
    ids = np.array([[1, 2, 3, 4, 5] + [0] * padding], "int32")
    found = layer(table(ids), **more)
    found = list(found.values()) if isinstance(found, dict) else [found[0]] if isinstance(found, (tuple, list)) else [found]
    wide = [keras.ops.expand_dims(x, -1) if len(x.shape) == 2 else x for x in found]
    for x, y in zip(found, wide, strict=True):
        if getattr(x, "_keras_mask", None) is not None:
            y._keras_mask = x._keras_mask
    return [numpy(keras.layers.GlobalAveragePooling1D()(x)) for x in wide]


@pytest.mark.few(5)
@pytest.mark.parametrize("name", sorted(EACH_TOKEN))
def test_more_padding_moves_no_mean(name: str) -> None:
    make, more = EACH_TOKEN[name]
    layer = make()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not support masking.*")
        few, many = (pooled(layer, more(REAL + padding), padding) for padding in (1, PADDING))
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_control_without_a_mask_padding_moves_the_mean() -> None:
    layer = layers.ResidualDCN(rank=2)
    few, many = (pooled(layer, {}, padding, mask=False)[0] for padding in (1, PADDING))
    assert np.abs(few - many).max() > 1e-3


KNOWN_TO_KERAS = (PassesMask, ReadsKeyMask, RefusesMask, keras.layers.BatchNormalization, keras.layers.Embedding)


@pytest.mark.quickest
def test_each_layer_has_a_rule() -> None:
    """Of every public layer it is known what becomes of a mask."""
    found = {name: value for name, value in vars(layers).items() if inspect.isclass(value) and issubclass(value, keras.layers.Layer)}
    assert len(found) > 40
    without = [name for name, kind in found.items() if not issubclass(kind, KNOWN_TO_KERAS)]
    assert without == []


REFUSE = {
    "Interleave": lambda x: layers.Interleave()(x, actions=x),
    "FlattenRows": lambda x: layers.FlattenRows()(x),
    "KeepFirst": lambda x: layers.KeepFirst()(x, length=np.array([2], "int32")),
    "AppendEvents": lambda x: layers.AppendEvents()(x, new=x, length=np.array([2], "int32")),
    "AppendKeys": lambda x: layers.AppendKeys()(x, values=x, new=(x, x), length=np.array([2], "int32")),
    "HeldKeys": lambda x: layers.HeldKeys()(x, values=x, spans=tuple(spans(3)), length=np.array([2], "int32")),
    "LatestKeys": lambda x: layers.LatestKeys(2)(x, length=np.array([2], "int32")),
    "ResidualQuantizer": lambda x: layers.ResidualQuantizer(levels=1, codebook_size=2)(x),
    "AloneSpans": lambda x: layers.AloneSpans()(x),
}


@pytest.mark.quickest
@pytest.mark.parametrize("name", sorted(REFUSE))
def test_a_layer_that_would_lose_it_refuses(name: str) -> None:
    table = keras.layers.Embedding(10, WIDTH, mask_zero=True)
    masked = table(np.array([[1, 2, 3, 0]], "int32"))
    with pytest.raises(ValueError, match=f"{name} does not read a Keras mask"):
        REFUSE[name](masked)


def test_a_stride_and_a_mask() -> None:
    masked = keras.layers.Embedding(10, WIDTH, mask_zero=True)(np.array([[1, 2, 3, 0]], "int32"))
    with pytest.raises(ValueError, match="`stride` drops tokens"):
        layers.SelfGatedAttention(2, 4, rotary=None)(masked, spans=kr.ops.Spans.causal(np.ones((1, 4), "int32")), stride=2)


def test_a_functional_model_keeps_the_mask_to_its_loss() -> None:
    """Keras leaves masked tokens out of a loss: the values of padding do not matter."""
    ids = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(10, WIDTH, mask_zero=True)(ids)
    out = layers.PositionTowers(1, hidden=(4,))(layers.DenseGate()(x))
    model = keras.Model(ids, out)
    model.compile("sgd", "mse", jit_compile=False)
    given = np.array([[1, 2, 0, 0]], "int32")
    losses = [model.evaluate(given, np.array([[[0.0], [1.0], [z], [z]]]), verbose=0) for z in (0.0, 1000.0)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("features", [1, 3])
def test_batch_normalisation_reads_the_mask_of_its_inputs(features: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, size=(2, 6, features)).astype("float32")
    x[:, 4:] = 1000.0
    real = np.zeros((2, 6), bool)
    real[:, :4] = True
    tensor = keras.ops.convert_to_tensor(x)
    tensor._keras_mask = keras.ops.convert_to_tensor(real)
    layer = layers.MaskedBatchNormalization(momentum=0.5)
    layer(tensor, training=True)
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.5 * x[real].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(numpy(layer.moving_variance), 0.5 + 0.5 * x[real].var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize("how", ["real", "mask"])
def test_a_batch_of_padding_moves_no_moment(features: int, how: str) -> None:
    """To the bit, over many batches; a batch with real cells then moves them as before."""
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, size=(2, 6, features)).astype("float32")
    layer = layers.MaskedBatchNormalization(momentum=0.7)
    layer(x, real=np.ones((2, 6), "int32"), training=True)
    before = [numpy(weight) for weight in layer.weights]
    for _ in range(5):
        if how == "real":
            out = layer(x, real=np.zeros((2, 6), "int32"), training=True)
        else:
            tensor = keras.ops.convert_to_tensor(x)
            tensor._keras_mask = keras.ops.zeros((2, 6), dtype="bool")
            out = layer(tensor, training=True)
        assert np.isfinite(numpy(out)).all()
    for old, weight in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(old, numpy(weight))
    layer(x, real=np.ones((2, 6), "int32"), training=True)
    np.testing.assert_allclose(numpy(layer.moving_mean), 0.7 * 0.3 * x.mean(axis=(0, 1)) + 0.3 * x.mean(axis=(0, 1)), rtol=1e-5)


def test_a_batch_of_padding_in_a_compiled_training() -> None:
    """The same inside `fit`, where the moments are assigned in a compiled step."""
    x, real = keras.Input((4, 1)), keras.Input((4,), dtype="int32")
    normal = layers.MaskedBatchNormalization(momentum=0.5)
    model = keras.Model([x, real], keras.layers.Dense(1)(normal(x, real=real)))
    model.compile("sgd", "mse")
    given = np.random.default_rng(0).normal(size=(2, 4, 1)).astype("float32")
    model.fit([given, np.zeros((2, 4), "int32")], np.zeros((2, 4, 1), "float32"), epochs=2, verbose=0)
    np.testing.assert_array_equal(numpy(normal.moving_mean), [0.0])
    np.testing.assert_array_equal(numpy(normal.moving_variance), [1.0])
    model.fit([given, np.ones((2, 4), "int32")], np.zeros((2, 4, 1), "float32"), epochs=1, verbose=0)
    np.testing.assert_allclose(numpy(normal.moving_mean), [0.5 * given.mean()], rtol=1e-4)


def test_a_compiled_training_reads_the_mask() -> None:
    """Inside a compiled step, JAX keeps a mask apart from its tensor."""
    table = keras.layers.Embedding(10, 4, mask_zero=True, embeddings_initializer=keras.initializers.RandomNormal(stddev=3.0, seed=1))
    ids, normal = keras.Input((5,), dtype="int32"), layers.MaskedBatchNormalization(momentum=0.0)
    model = keras.Model(ids, keras.layers.Dense(1)(normal(table(ids))))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    rows = numpy(table.embeddings)
    model.fit(np.array([[1, 2, 3, 0, 0]], "int32"), np.zeros((1, 5, 1), "float32"), verbose=0)
    np.testing.assert_allclose(numpy(normal.moving_mean), rows[[1, 2, 3]].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e38])
def test_no_number_in_padding_reaches_a_moment(padding: float) -> None:
    x = np.array([[[1.0, 2.0], [3.0, 6.0], [padding, -padding]]], "float32")
    layer = layers.MaskedBatchNormalization(momentum=0.0)
    out = numpy(layer(x, real=np.array([[1, 1, 0]], "int32"), training=True))
    np.testing.assert_allclose(numpy(layer.moving_mean), [2.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(numpy(layer.moving_variance), [1.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(out[0, :2], [[-1.0, -1.0], [1.0, 1.0]], atol=1e-3)


JOINS = {
    "RescaleAndAdd": lambda x, y: layers.RescaleAndAdd()(x, branch=y),
    "RescaleAndAdd by place": lambda x, y: layers.RescaleAndAdd()(x, y),
    "FuseActions": lambda x, y: layers.FuseActions()(x, actions=y),
    "SelfGatedAttention": lambda x, y: layers.SelfGatedAttention(2, 4, rotary=None)(
        x, spans=kr.ops.Spans.causal(np.ones((1, 4), "int32")), value_bias=y
    ),
}


@pytest.mark.parametrize("name", sorted(JOINS))
def test_a_token_is_real_where_all_inputs_say_so(name: str) -> None:
    table = keras.layers.Embedding(10, WIDTH, mask_zero=True)
    some, other, plain = table(np.array([[1, 2, 0, 4]])), table(np.array([[0, 2, 3, 4]])), np.ones((1, 4, WIDTH), "float32")
    for x, y, real in [(plain, other, [0, 1, 1, 1]), (some, other, [0, 1, 0, 1]), (some, plain, [1, 1, 0, 1])]:
        np.testing.assert_array_equal(numpy(mask_of(JOINS[name](x, y))), [real])
    assert mask_of(JOINS[name](plain, plain)) is None


@pytest.mark.quickest
def test_a_mask_of_a_later_argument_is_refused_too() -> None:
    masked = keras.layers.Embedding(10, WIDTH, mask_zero=True)(np.array([[1, 0]]))
    with pytest.raises(ValueError, match="Interleave does not read a Keras mask"):
        layers.Interleave()(np.ones((1, 2, WIDTH), "float32"), actions=masked)
