"""Constraints of a layer's weights, as arguments of its constructor: applied by the optimiser after each step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking import layers
from keras_ranking.layers.base.weight_rules import ForEach
from tests.compiling import JIT
from tests.layers.base.test_weight_rules import MAKE, OTHERS, D, X, called, rules_of
from tests.layers.common import numpy, randomise

MOST, LEAST = 0.3, 0.0
STACKS = (layers.MLPBank, layers.NumericEmbedding)  # weights (M, ...) of M kernels
SERIALIZED = {"kernel": "MaxNorm", "bias": "NonNeg", "embeddings": "MaxNorm"}


def constraints_of(name: str) -> dict[str, Any]:
    made = {"kernel": keras.constraints.MaxNorm(MOST, axis=0), "bias": keras.constraints.NonNeg()}
    made["embeddings"] = keras.constraints.MaxNorm(MOST, axis=1)
    kinds = [rule.removesuffix("_regularizer") for rule in rules_of(name)]
    return {f"{kind}_constraint": made[kind] for kind in kinds}


def kind_of(path: str) -> str | None:
    last = path.rsplit("/", 1)[-1]
    if last.startswith(OTHERS):
        return None
    return "embeddings" if last == "embeddings" else "bias" if last.startswith("bias") else "kernel"


def held(value: np.ndarray, kind: str | None, stacked: bool) -> np.ndarray:
    """By hand, in float64: a kernel's columns and a table's rows have a norm of at most MOST, biases no negative number."""
    if kind == "bias":
        return np.maximum(value, LEAST)
    if kind is None:
        return value
    axis = 1 if kind == "embeddings" or stacked else 0
    norm = np.sqrt((value**2).sum(axis=axis, keepdims=True))
    return value * np.minimum(norm, MOST) / (norm + 1e-7)


def stacked_paths(layer: Any) -> set[str]:
    return {weight.path for one in layer._flatten_layers() if isinstance(one, STACKS) for weight in one.trainable_weights}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", sorted(MAKE))
def test_a_step_holds_all_kernels_biases_and_tables(name: str) -> None:
    make, given = MAKE[name]
    rules = constraints_of(name)
    layer = make(**rules)
    called(layer, given)
    randomise(layer)
    before = {weight.path: numpy(weight.value).astype("float64") for weight in layer.trainable_weights}
    stacks = stacked_paths(layer)
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.apply([keras.ops.zeros_like(weight.value) for weight in layer.trainable_weights], layer.trainable_weights)
    known = {f"{kind}_constraint" for kind in map(kind_of, before) if kind}
    assert set(rules) <= known
    moved = 0
    for weight in layer.trainable_weights:
        kind, path = kind_of(weight.path), weight.path
        ours = kind if kind and f"{kind}_constraint" in rules else None
        np.testing.assert_allclose(numpy(weight.value), held(before[path], ours, path in stacks), rtol=1e-4, atol=1e-6, err_msg=path)
        moved += int(ours is not None and not np.allclose(before[path], numpy(weight.value)))
    assert moved
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    copy = keras.saving.deserialize_keras_object(config)
    assert all(config["config"][rule]["class_name"] == SERIALIZED[rule.removesuffix("_constraint")] for rule in rules)
    called(copy, given)
    for one, other in zip(layer.trainable_weights, copy.trainable_weights, strict=True):
        assert type(one.constraint) is type(other.constraint)
        assert one.constraint is None or one.constraint.get_config() == other.constraint.get_config()


@pytest.mark.quickest
def test_each_kernel_of_a_stack_is_held_by_itself() -> None:
    value = np.random.default_rng(0).normal(size=(3, 5, 4))
    one = keras.constraints.MaxNorm(MOST, axis=0)
    found = numpy(ForEach(one)(keras.ops.convert_to_tensor(value.astype("float32"))))
    for number in range(3):
        np.testing.assert_allclose(found[number], held(value[number], "kernel", False), rtol=1e-4)
    whole = numpy(one(keras.ops.convert_to_tensor(value.astype("float32"))))
    assert np.abs(whole - found).max() > 0.01, "control: the first axis of the stack is another one"


def test_fit_holds_the_weights_also_after_a_reload(tmp_path: Path) -> None:
    inputs = keras.Input((3, D))
    x = layers.DecoderBlock(2, 4, rotary=None, kernel_constraint=keras.constraints.MaxNorm(MOST), name="block")(inputs)
    heads = layers.MMoE(["a"], num_experts=2, expert=[4], kernel_constraint="non_neg", bias_constraint="non_neg", name="heads")
    model = keras.Model(inputs, heads(x))
    model.compile(keras.optimizers.SGD(0.5), {"a": "mse"}, jit_compile=JIT)
    target = {"a": np.full((2, 3), -3.0, "float32")}

    def check(one: Any, want: bool) -> None:
        for weight in one.get_layer("block").trainable_weights:
            if weight.path.rsplit("/", 1)[-1] == "kernel":
                assert bool(np.all(np.sqrt((numpy(weight.value) ** 2).sum(axis=0)) <= MOST * 1.001)) == want, weight.path
        least = min(float(numpy(weight.value).min()) for weight in one.get_layer("heads").trainable_weights)
        assert (least >= 0) == want

    check(model, False)
    model.fit(X, target, batch_size=2, verbose=0)
    check(model, True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    randomise(loaded)
    check(loaded, False)
    loaded.fit(X, target, batch_size=2, verbose=0)
    check(loaded, True)


@pytest.mark.quickest
def test_tables_in_int8_take_no_constraint() -> None:
    with pytest.raises(ValueError, match="`quantized` tables are not trained: no embeddings_constraint"):
        layers.QuotientRemainderEmbedding(2, divisor=65_536, quantized=True, embeddings_constraint="non_neg")
