"""Initializers and regularizers of a layer's weights, as arguments of its constructor."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking import layers
from keras_ranking.layers.base import WeightRules
from tests.compiling import JIT
from tests.layers.common import numpy, randomise

D = 6
X = np.random.default_rng(0).normal(size=(2, 3, D)).astype("float32")
ROW = {"inputs": X}
PAST = {"inputs": X, "key": X, "numbers": X[..., :1], "start": np.zeros((2, 3), "int32"), "end": np.full((2, 3), 3, "int32")}
PAST |= {"times": np.full((2, 3), 9, "int32"), "key_times": np.ones((2, 3), "int32")}
COLUMNS = [kr.Id("item", buckets=7), kr.Number("age")]
EVENT = {"inputs": {"item": np.ones((2, 3), "int32"), "age": X[..., 0]}}
HISTORY = {"inputs": {"history": X, "candidates": X, "visible": np.array([3, 2], "int32")}}

# layer -> (the layer with rules, the arguments of a call)
MAKE: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "SelfGatedAttention": (lambda **r: layers.SelfGatedAttention(2, 4, rotary=None, **r), ROW),
    "DecoderBlock": (lambda **r: layers.DecoderBlock(2, 4, rotary=None, residual="dense_gate", **r), ROW),
    "LiGRBlock": (lambda **r: layers.LiGRBlock(2, 4, rotary=None, **r), ROW),
    "GatedResidual": (lambda **r: layers.GatedResidual(keras.layers.Identity(), **r), ROW),
    "RescaleAndAdd": (lambda **r: layers.RescaleAndAdd("dense_gate", **r), {"inputs": X, "branch": X}),
    "SwiGLU": (lambda **r: layers.SwiGLU(8, **r), ROW),
    "DenseGate": (lambda **r: layers.DenseGate(rank=2, use_bias=True, **r), ROW),
    "GatedMLP": (lambda **r: layers.GatedMLP([5, 4], **r), ROW),
    "LowRankCross": (lambda **r: layers.LowRankCross(2, **r), ROW),
    "AttentionLowRankCross": (lambda **r: layers.AttentionLowRankCross(2, learn_temperature=True, **r), ROW),
    "ResidualDCN": (lambda **r: layers.ResidualDCN(2, **r), ROW),
    "ParallelDCN": (lambda **r: layers.ParallelDCN(2, hidden=[4], gate="dense", **r), ROW),
    "StackedDCN": (lambda **r: layers.StackedDCN(2, hidden=[4], **r), ROW),
    "MLPBank": (lambda **r: layers.MLPBank(3, [5, 4], **r), {"inputs": X[:, 0]}),
    "SharedBottom": (lambda **r: layers.SharedBottom(["a", "b"], bottom=[5], tower=[4], **r), ROW),
    "GroupedTasks": (lambda **r: layers.GroupedTasks(["a", "b"], {"x": ["a"], "y": ["b"]}, bottom=[5], tower=[4], **r), ROW),
    "MMoE": (lambda **r: layers.MMoE(["a", "b"], num_experts=3, expert=[5], tower=[4], **r), ROW),
    "PLE": (lambda **r: layers.PLE(["a", "b"], expert=[5], tower=[4], **r), ROW),
    "SparseMMoE": (lambda **r: layers.SparseMMoE(["a", "b"], num_experts=3, expert=[5], tower=[4], **r), ROW),
    "MultiTaskHead": (lambda **r: layers.MultiTaskHead("mmoe", ["a", "b"], num_experts=3, expert=[5], tower=[4], **r), ROW),
    "PositionTowers": (lambda **r: layers.PositionTowers(2, hidden=[4], shared=True, **r), ROW),
    "RankingHead": (lambda **r: layers.RankingHead("mmoe", ["a", "b"], hidden=[4], num_experts=2, **r), ROW),
    "HistoryAttention": (lambda **r: layers.HistoryAttention(2, 4, 3, tied=False, **r), {**PAST, "value": X}),
    "LinearHistory": (lambda **r: layers.LinearHistory(2, 4, **r), PAST),
    "HistoryEncoder": (lambda **r: layers.HistoryEncoder(max_history=3, num_heads=1, projection=4, **r), HISTORY),
    "SetwiseAttention": (lambda **r: layers.SetwiseAttention(num_heads=2, **r), ROW),
    "ListPooling": (lambda **r: layers.ListPooling(**r), ROW),
    "NumericEmbedding": (lambda **r: layers.NumericEmbedding("linear", width=4, **r), ROW),
    "FeatureConcat": (lambda **r: layers.FeatureConcat(COLUMNS, id_dim=3, **r), EVENT),
    "EventEmbedding": (lambda **r: layers.EventEmbedding(COLUMNS, dim=4, hidden=5, id_dim=3, **r), EVENT),
    "ActionEmbedding": (
        lambda **r: layers.ActionEmbedding([kr.Number("click", known="after")], dim=4, **r),
        {"inputs": {"click": X[..., 0]}},
    ),
    "QuotientRemainderEmbedding": (
        lambda **r: layers.QuotientRemainderEmbedding(2, divisor=65_536, **r),
        {"inputs": np.ones((2, 3, 2), "int32")},
    ),
    "LabelTreeEmbedding": (lambda **r: layers.LabelTreeEmbedding(2, 3, **r), {"inputs": np.full((2, 3), 5, "int32")}),
    "SemanticIdEmbedding": (lambda **r: layers.SemanticIdEmbedding(2, 5, 3, **r), {"inputs": np.ones((2, 3, 2), "int32")}),
    "TableEmbedding": (lambda **r: layers.TableEmbedding(7, 3, **r), {"inputs": np.ones((2, 3), "int32")}),
}
TABLES_ONLY = ("FeatureConcat", "LabelTreeEmbedding", "QuotientRemainderEmbedding", "SemanticIdEmbedding", "TableEmbedding")
NO_BIAS = ("SwiGLU", "HistoryAttention", "LinearHistory")
# Neither a kernel nor a bias nor a table: numbers of a norm, scales, rates, and the vectors of position ranges.
OTHERS = ("gamma", "beta", "alpha", "log_temperature", "empty", "decay", "ranges")


def rules_of(name: str) -> dict[str, Any]:
    rules: dict[str, Any] = {}
    if name not in TABLES_ONLY:
        rules["kernel_regularizer"] = keras.regularizers.L2(0.5)
        if name not in NO_BIAS:
            rules["bias_regularizer"] = keras.regularizers.L1(0.25)
    if name in (*TABLES_ONLY, "EventEmbedding"):
        rules["embeddings_regularizer"] = keras.regularizers.L1(0.125)
    return rules


def called(layer: Any, given: dict[str, Any]) -> Any:
    first, *rest = given.values()
    return layer(first, **dict(zip(list(given)[1:], rest, strict=True)))


def penalty(layer: Any, rules: dict[str, Any]) -> float:
    """The sum by hand, over the weights by the last part of their path."""
    total = 0.0
    for weight in layer.trainable_weights:
        value, kind = numpy(weight.value).astype("float64"), weight.path.rsplit("/", 1)[-1]
        if kind == "embeddings":
            total += 0.125 * np.abs(value).sum() if "embeddings_regularizer" in rules else 0.0
        elif kind.startswith("bias"):
            total += 0.25 * np.abs(value).sum() if "bias_regularizer" in rules else 0.0
        elif not kind.startswith(OTHERS):
            total += 0.5 * (value**2).sum() if "kernel_regularizer" in rules else 0.0
    return total


@pytest.mark.few(6)
@pytest.mark.parametrize("name", sorted(MAKE))
def test_the_penalty_is_that_of_all_kernels_biases_and_tables(name: str) -> None:
    make, given = MAKE[name]
    rules = rules_of(name)
    layer = make(**rules)
    called(layer, given)
    randomise(layer)
    want = penalty(layer, rules)
    assert want > 0.1
    found = sum(float(numpy(loss)) for loss in layer.losses)
    assert found == pytest.approx(want, rel=1e-4)
    for rule in rules:  # control: each rule is part of it
        assert found != pytest.approx(penalty(layer, {key: value for key, value in rules.items() if key != rule}), rel=1e-3)
    assert not make().losses
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    called(copy, given)
    copy.set_weights(layer.get_weights())
    assert sum(float(numpy(loss)) for loss in copy.losses) == pytest.approx(found, rel=1e-6)


@pytest.mark.quickest
def test_every_layer_with_kernels_takes_rules() -> None:
    found = {name for name, kind in vars(layers).items() if inspect.isclass(kind) and issubclass(kind, WeightRules)}
    assert found == set(MAKE) - {"MultiTaskHead", "TableEmbedding"}, "these two hand all arguments on"


@pytest.mark.quickest
@pytest.mark.parametrize("name", sorted(set(MAKE) - set(TABLES_ONLY) - {"NumericEmbedding"}))
def test_an_initializer_draws_every_kernel(name: str) -> None:
    """Those that start at zero by design stay so: the last factor of a gate that starts as the identity, and the noise of a sparse gate."""
    make, given = MAKE[name]
    layer = make(kernel_initializer=keras.initializers.Constant(0.75))
    called(layer, given)
    values = {weight.path: numpy(weight.value) for weight in layer.trainable_weights}
    kernels = {path: value for path, value in values.items() if not path.rsplit("/", 1)[-1].startswith(("bias", "embeddings", *OTHERS))}
    zero = [path for path, value in kernels.items() if not value.any()]
    assert all(np.all(value == 0.75) for path, value in kernels.items() if path not in zero)
    assert all("gate" in path or "deviation" in path for path in zero) and len(zero) < len(kernels)


def test_one_seed_draws_other_numbers_for_each_part() -> None:
    """Experts that started equal would stay alike; the same seed gives the same layer."""

    def drawn() -> Any:
        layer = layers.MMoE(["a", "b"], num_experts=3, expert=[5], kernel_initializer=keras.initializers.RandomNormal(seed=3))
        layer(X)
        return layer

    one, other = drawn(), drawn()
    experts = numpy(one.experts.kernels[0].value)
    assert np.abs(experts[0] - experts[1]).max() > 1e-3
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    attention = layers.SelfGatedAttention(2, 3, rotary=None, kernel_initializer=keras.initializers.RandomNormal(seed=3))
    attention(X)
    assert np.abs(numpy(attention.query.kernel) - numpy(attention.key.kernel)).max() > 1e-3


def test_training_adds_the_penalty_to_the_loss(tmp_path: Path) -> None:
    """In `fit`, `evaluate` and after a reload, on top of what the predictions lose."""
    inputs = keras.Input((3, D))
    x = layers.DecoderBlock(2, 4, rotary=None, kernel_regularizer="l2")(inputs)
    model = keras.Model(inputs, layers.MMoE(["a"], num_experts=2, expert=[4], kernel_regularizer=keras.regularizers.L1(0.01))(x))
    model.compile(keras.optimizers.SGD(0.0), {"a": "mse"}, jit_compile=JIT)
    target = {"a": np.ones((2, 3), "float32")}
    data = float(np.mean((numpy(model(X)["a"]) - 1.0) ** 2))
    extra = 0.0
    for layer, rate in ((model.layers[1], 0.01), (model.layers[2], 0.01)):
        for weight in layer.trainable_weights:
            if weight.path.rsplit("/", 1)[-1].startswith("kernel"):
                value = numpy(weight.value).astype("float64")
                extra += rate * (np.abs(value).sum() if layer is model.layers[2] else (value**2).sum())
    assert extra > 0.1
    history = model.fit(X, target, batch_size=2, verbose=0)
    assert history.history["loss"][0] == pytest.approx(data + extra, rel=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.evaluate(X, target, batch_size=2, verbose=0) == pytest.approx(data + extra, rel=1e-4)


def test_mask_zero_of_fingerprints() -> None:
    halves = np.array([[[3, 4], [0, 5], [0, 0]]], "int32")
    layer = layers.QuotientRemainderEmbedding(2, divisor=65_536, mask_zero=True)
    assert numpy(layer(halves)._keras_mask).tolist() == [[True, True, False]]
    assert layer.get_config()["mask_zero"] is True
    assert layers.TableEmbedding(5, 2, mask_zero=True)(np.array([[1, 0]], "int32"))._keras_mask is not None


@pytest.mark.quickest
def test_tables_in_int8_take_no_penalty() -> None:
    with pytest.raises(ValueError, match="`quantized` tables are not trained"):
        layers.QuotientRemainderEmbedding(2, divisor=65_536, quantized=True, embeddings_regularizer="l2")
