"""Checks that every layer of the package must pass."""

from __future__ import annotations

import doctest
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tests import tiers
from tests.compiling import JIT

Factory = Callable[..., keras.layers.Layer]

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def numpy(structure: Any) -> Any:
    """Every tensor of a structure as a numpy array, bfloat16 as float32."""

    def one(tensor: Any) -> np.ndarray:
        if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
            tensor = keras.ops.cast(tensor, "float32")
        return keras.ops.convert_to_numpy(tensor)

    return keras.tree.map_structure(one, structure)


def leaves(structure: Any) -> list[Any]:
    return keras.tree.flatten(structure)


def randomise(layer: keras.layers.Layer, seed: int = 5, scale: float = 0.5) -> None:
    """Random weights, including biases: zeros and constants hide a missing or a doubled term."""
    rng = np.random.default_rng(seed)
    layer.set_weights([rng.normal(0.0, scale, weight.shape).astype("float32") for weight in layer.weights])


def by_path(layer: keras.layers.Layer) -> dict[str, np.ndarray]:
    """Weights in float64 by the end of their path, such as 'attention/query/kernel'."""
    root = layer.name + "/"
    return {weight.path.split(root, 1)[-1]: numpy(weight.value).astype("float64") for weight in layer.weights}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, epsilon: float = 1e-6) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * gamma + beta


def rotate_pairs(x: np.ndarray, times: np.ndarray, periods: np.ndarray) -> np.ndarray:
    """Pairs (k, k + D/2) of x (B, T, H, D) as complex numbers, rotated by 2 pi t / P_k."""
    half = x.shape[-1] // 2
    turns = (times[..., None].astype("int64") % periods) / periods
    turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(2j * np.pi * turns)[:, :, None, :]
    return np.concatenate([turned.real, turned.imag], axis=-1)


def masked_attention(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """softmax(q k / sqrt(d)) v over the keys visible in `mask` (B, T, S), zero if there is none. One query at a time."""
    out = np.zeros_like(query)
    group = query.shape[2] // key.shape[2]
    for b, t, h in np.ndindex(*query.shape[:3]):
        seen = np.flatnonzero(mask[b, t])
        if len(seen):
            scores = key[b, seen, h // group] @ query[b, t, h] / np.sqrt(query.shape[-1])
            weight = np.exp(scores - scores.max())
            out[b, t, h] = weight @ value[b, seen, h // group] / weight.sum()
    return out


def call(layer: keras.layers.Layer, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    first, *rest = inputs.values()
    return layer(first, **dict(zip(list(inputs)[1:], rest, strict=True)), **settings)


def shapes(structure: Any) -> Any:
    return keras.tree.map_structure(lambda tensor: tuple(tensor.shape), structure)


def first_shape(inputs: Mapping[str, Any]) -> Any:
    first = next(iter(inputs.values()))
    return {name: tuple(part.shape) for name, part in first.items()} if isinstance(first, dict) else tuple(first.shape)


def symbols(inputs: Mapping[str, Any], batch: bool, tokens: bool) -> dict[str, Any]:
    """A `keras.Input` for each tensor; axis 0 unknown unless `batch`, axis 1 unknown unless `tokens`."""

    def one(tensor: np.ndarray, name: str) -> Any:
        shape = list(tensor.shape)
        if not batch:
            shape[0] = None
        if not tokens and len(shape) > 1:
            shape[1] = None
        return keras.Input(batch_shape=tuple(shape), dtype=str(tensor.dtype), name=name)

    # Named in the order of `leaves`, as `feed` names them: map_structure visits a dict in another order on torch.
    flat = leaves(dict(inputs))
    packed = keras.tree.pack_sequence_as(dict(inputs), [one(leaf, f"input_{i}") for i, leaf in enumerate(flat)])
    return {name: packed[name] for name in inputs}


def functional(layer: keras.layers.Layer, inputs: Mapping[str, Any], settings: Mapping[str, Any], batch: bool, tokens: bool) -> keras.Model:
    placeholders = symbols(inputs, batch, tokens)
    outputs = call(layer, placeholders, settings)
    return keras.Model({symbol.name: symbol for symbol in leaves(placeholders)}, leaves(outputs))


def feed(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {f"input_{i}": leaf for i, leaf in enumerate(leaves(dict(inputs)))}


def check_build(make: Factory, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    layer = make()
    layer.build(first_shape(inputs))
    built = [(weight.path, tuple(weight.shape)) for weight in layer.weights]
    call(layer, inputs, settings)
    assert [(weight.path, tuple(weight.shape)) for weight in layer.weights] == built, "weights appear outside build()"


def check_config(make: Factory, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    layer = make(name="configured")
    expected = numpy(call(layer, inputs, settings))
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    for copy in (type(layer).from_config(layer.get_config()), keras.saving.deserialize_keras_object(json.loads(text))):
        assert copy.name == "configured"
        assert copy.get_config() == layer.get_config()
        if not copy.built:
            copy.build(first_shape(inputs))
        copy.set_weights(layer.get_weights())
        for got, want in zip(leaves(numpy(call(copy, inputs, settings))), leaves(expected), strict=True):
            np.testing.assert_array_equal(got, want)


def check_symbolic(make: Factory, inputs: Mapping[str, Any], settings: Mapping[str, Any], dtype: str | None = None) -> None:
    eager = leaves(call(make(dtype=dtype), inputs, settings))
    for batch, tokens in ((True, True), (False, True), (False, False)):
        symbolic = leaves(call(make(dtype=dtype), symbols(inputs, batch, tokens), settings))
        assert len(symbolic) == len(eager)
        for spec, tensor in zip(symbolic, eager, strict=True):
            want = list(tensor.shape)
            if not batch:
                want[0] = None
            if not tokens and len(want) > 1:
                want[1] = None
            known = f"batch known: {batch}, tokens known: {tokens}"
            assert tuple(spec.shape) == tuple(want), f"symbolic shape {spec.shape}, eager {tuple(tensor.shape)}; {known}"
            assert spec.dtype == keras.backend.standardize_dtype(tensor.dtype), f"symbolic dtype {spec.dtype}, eager {tensor.dtype}"


def check_saving(make: Factory, inputs: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> None:
    layer = make()
    model = functional(layer, inputs, settings, batch=False, tokens=False)
    if layer.weights:
        randomise(layer)
    path = folder / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    for got, want in zip(leaves(numpy(loaded(feed(inputs)))), leaves(numpy(model(feed(inputs)))), strict=True):
        np.testing.assert_array_equal(got, want)
    for got, want in zip(leaves(numpy(model(feed(inputs)))), leaves(numpy(call(layer, inputs, settings))), strict=True):
        np.testing.assert_allclose(got, want, **TOLERANCE)


def a_rounding() -> float:
    """The largest relative error of a product in bfloat16 on this machine: 2^-8 if rounded to nearest, 2^-7 if truncated.

    TensorFlow truncates on a CPU without bfloat16 instructions.
    """
    product = keras.ops.matmul(keras.ops.ones((1, 2), "bfloat16"), keras.ops.convert_to_tensor([[1.0], [0.75 * 2**-7]], "bfloat16"))
    return {1.0: 2.0**-7, 1.0 + 2**-7: 2.0**-8}[float(numpy(product)[0, 0])]


def check_mixed(make: Factory, inputs: Mapping[str, Any], settings: Mapping[str, Any], output_dtype: str) -> None:
    keras.utils.set_random_seed(2)
    layer = make(dtype="mixed_bfloat16")
    outputs = leaves(call(layer, inputs, settings))
    assert layer.compute_dtype == "bfloat16"
    assert all(weight.dtype == "float32" for weight in layer.trainable_weights)
    whole = make(dtype="float32")
    call(whole, inputs, settings)
    whole.set_weights(layer.get_weights())
    exact = leaves(numpy(call(whole, inputs, settings)))
    for tensor, want in zip(outputs, exact, strict=True):
        dtype = keras.backend.standardize_dtype(tensor.dtype)
        if "int" in dtype:
            np.testing.assert_array_equal(numpy(tensor), want)
            continue
        assert dtype == output_dtype
        # A layer rounds a few times.
        assert np.abs(numpy(tensor) - want).max() <= 10 * a_rounding() * np.abs(want).max()
    check_symbolic(make, inputs, settings, dtype="mixed_bfloat16")


def check_training(make: Factory, inputs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """One compiled step changes every trainable weight: each has an effect on the output and gets a gradient."""
    layer = make()
    model = functional(layer, inputs, settings, batch=False, tokens=True)
    outputs = leaves(model(feed(inputs)))
    before = [numpy(weight.value).copy() for weight in layer.trainable_weights]
    rng = np.random.default_rng(11)
    targets = [rng.normal(size=tuple(part.shape)).astype("float32") for part in outputs]
    model.compile(keras.optimizers.SGD(0.5), loss=["mse"] * len(targets), jit_compile="auto" if tiers.everything() else JIT)
    model.fit(feed(inputs), targets, batch_size=len(leaves(dict(inputs))[0]), epochs=1, verbose=0)
    for weight, old in zip(layer.trainable_weights, before, strict=True):
        new = numpy(weight.value)
        assert np.isfinite(new).all(), f"{weight.path} is not finite after a step"
        assert np.abs(new - old).max() > 0, f"no gradient reaches {weight.path}"


def check_frozen(layer: keras.layers.Layer, inputs: Mapping[str, Any]) -> None:
    """A layer that is made with `trainable=False` has no weight to train, nor has a model around it, which asks the weights themselves."""
    frozen = type(layer).from_config({**layer.get_config(), "trainable": False})
    frozen.build(first_shape(inputs))
    assert not frozen.trainable_weights
    assert [weight.path for weight in frozen.weights if weight.trainable] == []


def run_layer_checks(
    make: Factory,
    inputs: Mapping[str, Any],
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    mixed_dtype: str | None = "bfloat16",
) -> None:
    """All checks above.

    Args:
        make: makes the layer; takes `name` and `dtype`.
        inputs: the tensors of a call by argument name, the first one first; each a numpy array or a structure of them.
        folder: an empty folder.
        settings: further call arguments that are not tensors.
        mixed_dtype: dtype of float outputs under the policy mixed_bfloat16; None: the layer keeps the dtype of its inputs.
    """
    settings = settings or {}
    check_build(make, inputs, settings)
    check_config(make, inputs, settings)
    check_symbolic(make, inputs, settings)
    check_saving(make, inputs, settings, folder)
    if mixed_dtype is not None:
        check_mixed(make, inputs, settings, mixed_dtype)
    layer = make()
    layer.build(first_shape(inputs))
    if layer.trainable_weights:
        check_training(make, inputs, settings)
        check_frozen(layer, inputs)


class ExampleChecker(doctest.OutputChecker):
    """Compares examples with their output: backends print shapes differently, and docstrings show a tuple."""

    def check_output(self, want: str, got: str, flags: int) -> bool:
        return super().check_output(want, re.sub(r"(?:torch\.Size|TensorShape)\(\[([^]]*)\]\)", r"(\1)", got), flags)
