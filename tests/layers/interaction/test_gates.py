"""DenseGate and GatedMLP."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import DenseGate, GatedMLP
from tests.layers.common import (
    TOLERANCE,
    by_path,
    check_build,
    check_config,
    check_mixed,
    check_saving,
    check_symbolic,
    feed,
    functional,
    layer_norm,
    numpy,
    randomise,
    run_layer_checks,
    sigmoid,
    silu,
)

WIDTH = 8

GATES: list[dict[str, Any]] = [
    {},
    {"rank": 3},
    {"rank": "auto", "activation": "sigmoid", "use_bias": True},
    {"rank": 3, "activation": "sigmoid"},
    {"identity_at_start": True},
    {"identity_at_start": True, "activation": "sigmoid", "use_bias": True},
]

MLPS: list[dict[str, Any]] = [
    {},
    {"gate": None, "activation": "silu"},
    {"gate_rank": 3, "gate_identity_at_start": False, "activation": "silu"},
    {"gate_activation": "sigmoid", "normalization": "layer", "activation": "silu"},
]
BATCH = {"normalization": "batch", "activation": "silu", "dropout": 0.1}


def state(*lead: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(*(lead or (2, 5)), WIDTH)).astype("float32")


def gate(w: dict[str, np.ndarray], h: np.ndarray, prefix: str, settings: dict[str, Any]) -> np.ndarray:
    """h' for the last axis, one number at a time."""
    matrix = w[f"{prefix}kernel_0"]
    if f"{prefix}kernel_1" in w:
        matrix = matrix @ w[f"{prefix}kernel_1"]
    out = np.zeros_like(h)
    for j in range(h.shape[-1]):
        score = h @ matrix[:, j] + w.get(f"{prefix}bias", np.zeros(h.shape[-1]))[j]
        value = np.tanh(score) if settings.get("activation", "tanh") == "tanh" else sigmoid(score)
        if settings.get("identity_at_start"):
            value = value + 1 if settings.get("activation", "tanh") == "tanh" else value * 2
        out[..., j] = h[..., j] * value
    return out


@pytest.mark.few(1)
@pytest.mark.parametrize("settings", GATES)
def test_gate_common(settings: dict[str, Any], tmp_path: Path) -> None:
    run_layer_checks(lambda **more: DenseGate(**settings, **more), {"inputs": state()}, tmp_path)


@pytest.mark.few(3)
@pytest.mark.parametrize("settings", GATES)
def test_gate_reference(settings: dict[str, Any]) -> None:
    layer = DenseGate(**settings)
    layer.build((None, WIDTH))
    randomise(layer)
    for x in (state(), state(6), state(2, 2, 3)):
        np.testing.assert_allclose(numpy(layer(x)), gate(by_path(layer), x.astype("float64"), "", settings), **TOLERANCE)
    control = {**settings, "identity_at_start": not settings.get("identity_at_start")}
    assert np.abs(numpy(layer(x)) - gate(by_path(layer), x, "", control)).max() > 0.1


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("rank", [None, 3])
def test_identity_at_start_still_trains(activation: str, rank: int | None) -> None:
    layer, x = DenseGate(rank, activation=activation, identity_at_start=True), state(32)
    np.testing.assert_array_equal(numpy(layer(x)), x)
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    start = layer.get_weights()
    moved = []
    for _ in range(2):
        before = layer.get_weights()
        model.fit(x, np.tanh(x) * x, batch_size=32, epochs=1, verbose=0)
        moved.append([np.abs(new - old).max() for new, old in zip(layer.get_weights(), before, strict=True)])
    assert moved[0][-1] > 1e-3  # the zero factor changes in the first step
    assert min(moved[1]) > 1e-4  # and the first factor from the second step on
    assert rank is None or moved[0][0] == 0
    assert np.abs(numpy(layer(x)) - x).max() > 1e-3
    assert np.abs(start[-1]).max() == 0 and (rank is None or np.abs(start[0]).max() > 0)


@pytest.mark.parametrize(("activation", "factor"), [("tanh", 0.0), ("sigmoid", 0.5)])
def test_plain_gate_of_zeros(activation: str, factor: float) -> None:
    """A start at zero fails: h * tanh(0) = 0, and the layer below gets no gradient."""
    layer, x = DenseGate(activation=activation, kernel_initializer="zeros"), state(32)
    np.testing.assert_array_equal(numpy(layer(x)), factor * x)
    below = keras.layers.Dense(WIDTH)
    model = keras.Sequential([below, layer])
    model.build((None, WIDTH))
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    before = below.get_weights()[0]
    model.fit(x, x[:, ::-1].copy(), batch_size=32, epochs=1, verbose=0)
    assert (np.abs(below.get_weights()[0] - before).max() > 0) == (factor > 0)


def test_two_zero_factors_get_no_gradient() -> None:
    """Control for the identity form, in which only the second factor is zero."""
    layer, x = DenseGate(3, identity_at_start=True, kernel_initializer="zeros"), state(32)
    model = keras.Sequential([layer])
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    model.fit(x, np.tanh(x) * x, batch_size=32, epochs=3, verbose=0)
    assert all(np.abs(value).max() == 0 for value in layer.get_weights())


@pytest.mark.quickest
@pytest.mark.parametrize(("width", "rank"), [(100, None), (128, None), (129, 64), (3500, 70), (5000, 100)])
def test_auto_rank(width: int, rank: int | None) -> None:
    layer = DenseGate("auto", kernel_initializer="zeros")
    layer.build((None, width))
    assert [weight.shape for weight in layer.weights] == ([(width, width)] if rank is None else [(width, rank), (rank, width)])


def mlp(w: dict[str, np.ndarray], x: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    i = 0
    while f"dense_{i}/kernel" in w:
        x = x @ w[f"dense_{i}/kernel"] + w.get(f"dense_{i}/bias", 0.0)
        norm = [w.get(f"normalization_{i}/{name}", np.zeros(1)) for name in ("gamma", "beta", "moving_mean", "moving_variance")]
        if settings.get("normalization") == "layer":
            x = layer_norm(x, norm[0], norm[1], epsilon=1e-3)
        elif settings.get("normalization") == "batch":
            x = (x - norm[2]) / np.sqrt(norm[3] + 1e-3) * norm[0] + norm[1]
        x = np.maximum(x, 0) if settings.get("activation", "relu") == "relu" else silu(x)
        if settings.get("gate", "dense"):
            options = {"activation": settings.get("gate_activation", "tanh")}
            options["identity_at_start"] = settings.get("gate_identity_at_start", True)
            x = gate(w, x, f"gate_{i}/", options)
        i += 1
    return x


@pytest.mark.few(1)
@pytest.mark.parametrize("settings", MLPS)
def test_mlp_common(settings: dict[str, Any], tmp_path: Path) -> None:
    run_layer_checks(lambda **more: GatedMLP((9, 7), **settings, **more), {"inputs": state()}, tmp_path)


def test_mlp_with_batch_normalization(tmp_path: Path) -> None:
    """The same checks, with a training step that also checks the moving statistics."""

    def make(**more: Any) -> GatedMLP:
        return GatedMLP((9, 7), **BATCH, **more)

    inputs: dict[str, Any] = {"inputs": state()}
    for check in (check_build, check_config, check_symbolic):
        check(make, inputs, {})
    check_saving(make, inputs, {}, tmp_path)
    check_mixed(make, inputs, {}, "bfloat16")
    layer = make()
    model = functional(layer, inputs, {}, batch=False, tokens=True)
    before = layer.get_weights()
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    model.fit(feed(inputs), np.random.default_rng(1).normal(size=(2, 5, 7)), batch_size=2, epochs=1, verbose=0)
    for weight, new, old in zip(layer.weights, layer.get_weights(), before, strict=True):
        assert np.isfinite(new).all() and np.abs(new - old).max() > 0, weight.path


@pytest.mark.few(2)
@pytest.mark.parametrize("settings", [*MLPS, BATCH])
def test_mlp_reference(settings: dict[str, Any]) -> None:
    layer = GatedMLP((9, 7), **settings)
    layer.build((None, WIDTH))
    randomise(layer)
    for weight in layer.weights:
        if weight.name == "moving_variance":
            weight.assign(np.linspace(0.5, 2.0, weight.shape[0]))
    for x in (state(), state(6), state(2, 2, 3)):
        np.testing.assert_allclose(numpy(layer(x)), mlp(by_path(layer), x.astype("float64"), settings), rtol=1e-5, atol=1e-5)
    if settings.get("gate", "dense"):
        assert np.abs(numpy(layer(x)) - mlp(by_path(layer), x, {**settings, "gate": None})).max() > 0.01


def test_rows_do_not_depend_on_each_other() -> None:
    layer, x = GatedMLP((9, 7), normalization="batch"), state(6)
    before, changed = numpy(layer(x)), x.copy()
    changed[3] += 1.0
    moved = np.abs(numpy(layer(changed)) - before).max(-1) > 1e-6
    assert list(np.flatnonzero(moved)) == [3]
    # control: in training a batch is normalised by its own mean
    moved = np.abs(numpy(layer(changed, training=True)) - numpy(layer(x, training=True))).max(-1) > 1e-6
    assert moved.sum() > 1


def test_signal_through_gates_at_the_start() -> None:
    """Four layers before training: with the identity form the signal is as without gates, with the plain product it vanishes."""
    x, size = np.random.default_rng(0).normal(size=(64, 100)).astype("float32"), {}
    for name, settings in {"none": {"gate": None}, "identity": {}, "plain": {"gate_identity_at_start": False}}.items():
        keras.utils.set_random_seed(1)
        size[name] = float(np.sqrt((numpy(GatedMLP([100] * 4, **settings)(x)) ** 2).mean()))
    assert 0.5 < size["identity"] / size["none"] < 2.0
    assert size["plain"] < 0.01 * size["none"]


def test_sizes_of_the_paper() -> None:
    """A full gate would double 4 x 3500; 'auto' adds 4 %. On 4 x 100 with D = 3000 the full gate adds 12 %."""

    def parameters(widths: list[int], gate_rank: Any) -> int:
        # the number of parameters by formula, because the layers would fill memory
        dense = sum((before + 1) * width for before, width in zip([3000, *widths], widths))
        ranks = [DenseGate(gate_rank)._rank(width) for width in widths]
        gates = sum(width**2 if rank is None else 2 * width * rank for width, rank in zip(widths, ranks))
        return round(100 * gates / dense)

    made = GatedMLP([9, 7], gate_rank=2)
    made.build((None, 5))
    assert made.count_params() == (5 + 1) * 9 + (9 + 1) * 7 + 2 * 2 * (9 + 7)
    assert parameters([3500] * 4, None) == 104 and parameters([3500] * 4, "auto") == 4
    assert parameters([100] * 4, "auto") == 12


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenseGate(0), "`rank` must be a positive integer, None or 'auto'. Received: rank=0"),
        (lambda: DenseGate("full"), "Received: rank='full'"),
        (lambda: DenseGate(activation="relu"), "`activation` must be of .*Received: activation='relu'"),
        (lambda: DenseGate().build((2, None)), r"`inputs` must be \(B, ..., n\) with n known. Received: shape=\(2, None\)"),
        (lambda: GatedMLP([]), r"`widths` must be one or more positive integers. Received: widths=\(\)"),
        (lambda: GatedMLP([4, 0]), r"Received: widths=\(4, 0\)"),
        (lambda: GatedMLP([4], gate="sparse"), "`gate` must be 'dense' or None. Received: gate='sparse'"),
        (lambda: GatedMLP([4], normalization="group"), "`normalization` must be of .*Received: normalization='group'"),
        (lambda: GatedMLP([4], gate_rank=-1), "Received: rank=-1"),
        (lambda: GatedMLP([4]).build((8,)), r"with D known. Received: shape=\(8,\)"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
