"""NumericEmbedding: every kind against loops over single numbers in float64, edges, half precision, wrong arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import NumericEmbedding
from keras_ranking.number_edges import checked_edges, quantile_edges
from tests.layers.common import by_path, numpy, randomise, run_layer_checks

EDGES = ((-1.0, -0.25, 0.5, 2.0), (0.0, 1.0), (10.0, 10.5, 300.0))
SETTINGS: dict[str, dict[str, Any]] = {
    "piecewise_linear": {"edges": EDGES, "width": 4},
    "piecewise_linear, relu": {"edges": EDGES, "width": 4, "activation": "relu", "flatten": True},
    "piecewise_linear, encoding": {"edges": EDGES, "width": None},
    "piecewise_linear, flat encoding": {"edges": EDGES, "width": None, "flatten": True},
    "periodic": {"kind": "periodic", "frequencies": 3, "sigma": 0.7, "width": 5, "activation": "relu"},
    "periodic, encoding": {"kind": "periodic", "frequencies": 3, "width": None},
    "linear": {"kind": "linear", "width": 2, "flatten": True},
}


def numbers(*lead: int) -> np.ndarray:
    """Numbers on edges, inside bins, before the first and beyond the last."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*(lead or (4, 3)), 3)) * [1.5, 1.0, 100.0] + [0.0, 0.5, 150.0]
    x.reshape(-1, 3)[:4] = [[-1.0, 0.0, 10.0], [2.0, 1.0, 300.0], [-9.0, -3.0, -50.0], [7.0, 4.0, 900.0]]
    return x.astype("float32")


def encoding_of(x: float, kind: str, edges: Any, c: np.ndarray) -> np.ndarray:
    """One number, by the formulas of the paper."""
    if kind == "linear":
        return np.array([x])
    if kind == "periodic":
        v = [2 * np.pi * each * x for each in c]
        return np.array([np.sin(each) for each in v] + [np.cos(each) for each in v])
    bins = len(edges) - 1
    out = np.zeros(bins)
    for t in range(1, bins + 1):
        low, high = float(edges[t - 1]), float(edges[t])
        if x < low and t > 1:
            out[t - 1] = 0.0
        elif x >= high and t < bins:
            out[t - 1] = 1.0
        else:
            out[t - 1] = (x - low) / (high - low)
    return out


def reference(layer: Any, x: np.ndarray) -> np.ndarray:
    weights, out = by_path(layer), []
    for at in np.ndindex(*x.shape[:-1]):
        vectors = []
        for f, value in enumerate(x[at].astype("float64")):
            found = encoding_of(float(value), layer.kind, layer.edges and layer.edges[f], weights.get("frequencies", [None] * 3)[f])
            if layer.width is not None:
                found = found @ weights["kernel"][f, : len(found)] + weights["bias"][f]
                found = np.maximum(found, 0.0) if layer.get_config()["activation"] == "relu" else found
            elif not layer.flatten:
                found = np.pad(found, (0, max(layer.lengths) - len(found)))
            vectors.append(found)
        out.append(np.concatenate(vectors) if layer.flatten else np.stack(vectors))
    return np.stack(out).reshape(*x.shape[:-1], *out[0].shape)


@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("lead", [(5,), (4, 3), (2, 3, 2)])
def test_reference(name: str, lead: tuple[int, ...]) -> None:
    layer, x = NumericEmbedding(**SETTINGS[name]), numbers(*lead)
    x = x / np.float32(100.0) if layer.kind == "periodic" else x  # float32 has no more digits of a large angle
    layer.build((None, 3))
    randomise(layer)
    got = numpy(layer(x))
    assert tuple(got.shape) == layer.compute_output_shape(x.shape)
    np.testing.assert_allclose(got, reference(layer, x), rtol=1e-5, atol=2e-5)


def test_control_closed_ends_are_another_encoding() -> None:
    layer, x = NumericEmbedding(edges=EDGES, width=None), numbers()
    closed = np.clip(reference(layer, x) if layer(x) is not None else x, 0.0, 1.0)
    assert np.abs(numpy(layer(x)) - closed).max() > 1.0


@pytest.mark.few(1)
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_layer(name: str, tmp_path: Path) -> None:
    run_layer_checks(lambda **more: NumericEmbedding(**SETTINGS[name], **more), {"inputs": numbers()}, tmp_path)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_some_columns(name: str) -> None:
    """Numbers that stand alone have the weights that they have among all."""
    layer, x = NumericEmbedding(**{**SETTINGS[name], "flatten": False}), numbers()
    layer.build((None, 3))
    randomise(layer)
    whole = numpy(layer(x))
    some = layer(x[..., [2, 0]], columns=(2, 0))
    assert tuple(some.shape) == layer.compute_output_shape((4, 3, 2), (2, 0))
    np.testing.assert_allclose(numpy(some), whole[..., [2, 0], :], rtol=1e-6, atol=1e-6)
    flat = NumericEmbedding(**{**SETTINGS[name], "flatten": True})
    flat.build((None, 3))
    flat.set_weights(layer.get_weights())
    part = flat(x[..., [2, 0]], columns=(2, 0))
    assert tuple(part.shape) == flat.compute_output_shape((4, 3, 2), (2, 0))
    lengths = [flat.width or flat.lengths[f] for f in (2, 0)]
    expected = np.concatenate([whole[..., f, :length] for f, length in zip((2, 0), lengths, strict=True)], axis=-1)
    np.testing.assert_allclose(numpy(part), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_numbers_keep_their_digits_in_half_precision(policy: str) -> None:
    layer = NumericEmbedding(edges=[[1000.0, 1000.5, 1001.0]], width=None, dtype=policy)
    x = np.array([[1000.125], [1000.75]], "float32")  # bfloat16 has 1000 and 1004 there
    got = numpy(keras.ops.cast(layer(x), "float32"))
    np.testing.assert_allclose(got[:, 0], [[0.25, 0.0], [1.0, 0.5]], rtol=1e-2)
    model = keras.Sequential([keras.Input((1,)), NumericEmbedding("periodic", sigma=1.0, flatten=True, dtype=policy)])
    assert np.isfinite(numpy(keras.ops.cast(model(x), "float32"))).all()


def test_first_weights_are_within_one_over_the_root_of_the_encoding() -> None:
    layer = NumericEmbedding(edges=EDGES, width=64)
    layer.build((None, 3))
    found = by_path(layer)
    for f, bins in enumerate((3, 1, 2)):
        for part in (found["kernel"][f], found["bias"][f]):
            assert 0.8 * bins**-0.5 < np.abs(part).max() <= bins**-0.5
    periodic = NumericEmbedding("periodic", frequencies=2000, sigma=0.3)
    periodic.build((None, 2))
    np.testing.assert_allclose(by_path(periodic)["frequencies"].std(), 0.3, rtol=0.1)
    zeros = NumericEmbedding("linear", initializer="zeros")
    zeros.build((None, 2))
    assert not any(weight.any() for weight in zeros.get_weights())


@pytest.mark.quickest
def test_edges_of_quantiles() -> None:
    rng = np.random.default_rng(1)
    values = np.stack([rng.normal(size=1000), rng.exponential(size=1000)], axis=1)
    edges = NumericEmbedding.edges_of(values, 8)
    for column, found in zip(values.T, edges, strict=True):
        np.testing.assert_allclose(found, np.sort(column)[np.round(np.linspace(0, 999, 9)).astype(int)], atol=0.02)
        shares = np.histogram(column.astype("float32"), found)[0] / 1000
        np.testing.assert_allclose(shares, 1 / 8, atol=0.003)
    assert NumericEmbedding.edges_of([0.0, 0.0, 0.0, 1.0], 4) == ((0.0, 0.25, 1.0),)
    assert NumericEmbedding.edges_of([0.1, 0.1], 4) == ((float(np.float32(0.1)), float(np.float32(1.1))),)
    for constant in (3e38, -3.4e38, 2.0**40, 0.0, -7.5):
        edge = quantile_edges([constant] * 3, 5)
        assert checked_edges(edge) == edge
        assert np.float32(constant) in edge


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "spline"}, "`kind` must be one of"),
        ({}, "`edges` go with kind='piecewise_linear', and with it alone"),
        ({"kind": "linear", "edges": EDGES}, "`edges` go with kind='piecewise_linear', and with it alone"),
        ({"edges": []}, "`edges` must be a list of edges for each number"),
        ({"edges": [[0.0, 1.0, 1.0]]}, r"`edges\[0\]` must increase"),
        ({"edges": [[0.0, 1.0], [2.0, 1.0]]}, r"`edges\[1\]` must increase"),
        ({"edges": [[1.0, 1.0 + 1e-9]]}, "must increase, in float32"),
        ({"edges": [[-3e38, 3e38]]}, "must increase, in float32"),
        ({"edges": [[0.0, float("nan")]]}, "must be finite numbers"),
        ({"edges": [[0.0, 1e39]]}, "must be finite numbers"),
        ({"edges": [[0.0]]}, "at least two numbers"),
        ({"edges": [0.0, 1.0]}, r"`edges\[0\]` must be a list of numbers. Received: 0.0"),
        ({"edges": [["a", "b"]]}, "must be a list of numbers"),
        ({"kind": "periodic", "frequencies": 0}, "`frequencies` must be a positive integer"),
        ({"kind": "periodic", "sigma": 0.0}, "`sigma` must be a positive number"),
        ({"kind": "linear", "width": 0}, "`width` must be a positive integer"),
        ({"kind": "linear", "width": None}, "`width` must be given"),
        ({"kind": "periodic", "width": None, "activation": "relu"}, "`width` must be given"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NumericEmbedding(**arguments)


@pytest.mark.quickest
def test_wrong_values() -> None:
    with pytest.raises(ValueError, match=r"inputs must have 3 numbers in their last axis. Received: shape \(2, 2\)"):
        NumericEmbedding(edges=EDGES)(np.zeros((2, 2), "float32"))
    with pytest.raises(ValueError, match="inputs must have a known number of numbers"):
        NumericEmbedding("linear")(keras.Input((None,)))
    with pytest.raises(ValueError, match="`bins` must be a positive integer. Received: bins=0"):
        NumericEmbedding.edges_of([1.0], 0)
    with pytest.raises(ValueError, match="at least one number"):
        NumericEmbedding.edges_of([], 2)
    with pytest.raises(ValueError, match="finite numbers within float32. Received: nan at place 1"):
        NumericEmbedding.edges_of([1.0, np.nan], 2)
    with pytest.raises(ValueError, match=r"must have the shape \(rows,\) or \(rows, numbers\)"):
        NumericEmbedding.edges_of(np.zeros((2, 2, 2)), 2)
