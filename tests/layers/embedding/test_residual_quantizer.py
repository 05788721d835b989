"""ResidualQuantizer: codes and losses against numpy, gradients through the bottleneck, unused codewords, running means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking.layers import ResidualQuantizer
from tests.layers.common import numpy, run_layer_checks, silu

F, K, LEVELS = 5, 8, 3


def vectors(rows: int = 64, seed: int = 0) -> np.ndarray:
    """Clusters of clusters, which suit codes of several levels."""
    rng = np.random.default_rng(seed)
    coarse, fine = 3 * rng.normal(size=(6, F)), rng.normal(size=(6, F))
    return (coarse[rng.integers(0, 6, rows)] + fine[rng.integers(0, 6, rows)] + 0.1 * rng.normal(size=(rows, F))).astype("float32")


def make(**settings: Any) -> ResidualQuantizer:
    return ResidualQuantizer(**{"levels": LEVELS, "codebook_size": K, **settings})


def codewords(layer: ResidualQuantizer) -> np.ndarray:
    base = numpy(layer.codebook.value).astype("float64")
    return base if layer.shift is None else base + numpy(layer.shift.value)


def reference(layer: ResidualQuantizer, x: np.ndarray) -> dict[str, np.ndarray]:
    def dense(h: np.ndarray, stack: list[Any]) -> np.ndarray:
        for i, each in enumerate(stack):
            h = h @ numpy(each.kernel.value).astype("float64") + numpy(each.bias.value)
            h = silu(h) if i < len(stack) - 1 else h
        return h

    residual = dense(x.astype("float64"), layer.encoder)
    total, commitment, codes = np.zeros_like(residual), 0.0, []
    for words in codewords(layer):
        code = np.array([np.argmin([np.sum((r - w) ** 2) for w in words]) for r in residual])
        commitment += np.mean((residual - words[code]) ** 2)
        residual, total = residual - words[code], total + words[code]
        codes.append(code)
    y = dense(total, layer.decoder)
    learned = 2 if layer.shift is not None else 1  # the codebook loss has the same value as the commitment loss
    weight = layer.commitment + (learned - 1)
    return {"codes": np.stack(codes, 1), "y": y, "losses": np.array([np.mean((y - x) ** 2), weight * commitment / LEVELS])}


@pytest.mark.few(1)
@pytest.mark.parametrize("settings", [{}, {"dim": 3, "hidden": (7,)}, {"update": "straight_through"}])
def test_reference(settings: dict[str, Any]) -> None:
    layer, x = make(**settings), vectors()
    layer(x, training=True)
    y = numpy(layer(x))
    expected = reference(layer, x)
    np.testing.assert_array_equal(numpy(layer.encode(x)), expected["codes"])
    np.testing.assert_allclose(y, expected["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numpy(layer.decode(expected["codes"].astype("int32"))), expected["y"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([float(numpy(loss)) for loss in layer.losses], expected["losses"], rtol=1e-4)


def train(layer: ResidualQuantizer, x: np.ndarray, epochs: int = 30) -> ResidualQuantizer:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((x.shape[1],))
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    model.fit(x, x, batch_size=64, epochs=epochs, verbose=0)
    return layer


def error(layer: ResidualQuantizer, x: np.ndarray) -> float:
    return float(np.mean((numpy(layer.decode(layer.encode(x))) - x) ** 2))


@pytest.mark.parametrize("settings", [{}, {"update": "straight_through"}, {"hidden": (16,), "dim": 4}])
@pytest.mark.quickest
def test_fit_reduces_the_error_and_further_levels_reduce_it_more(settings: dict[str, Any]) -> None:
    x = vectors(512)
    one, three = train(make(**{**settings, "levels": 1}), x), train(make(**settings), x)
    assert error(one, x) < 0.6 * x.var(), "better than the mean"
    assert error(three, x) < 0.6 * error(one, x)


@pytest.mark.release("jax")
def test_unused_codewords_are_replaced() -> None:
    """First two distant clusters, then others: without replacement the codebook stays near the first."""
    x = vectors(512)
    revived, stuck = make(levels=1, revive_after=3), make(levels=1, revive_after=None)
    for layer in (revived, stuck):
        layer.build((None, F))
        layer.codebook.assign(np.full((1, K, F), 100.0) + np.arange(K)[None, :, None])
        layer.sums.assign(numpy(layer.codebook.value))
        layer.unused.assign(np.zeros((1, K), "int32"))
        for _ in range(12):
            layer(x, training=True)
    used = [len(np.unique(numpy(layer.encode(x)))) for layer in (revived, stuck)]
    assert used[0] >= K - 1
    assert used[1] == 1, "control"
    assert error(revived, x) < 0.5 * error(stuck, x)


def test_running_means_and_gradients() -> None:
    x = vectors()
    layer = make(levels=1, decay=0.0)
    layer(x, training=True)
    before = numpy(layer.encode(x))[:, 0]
    codes = numpy(layer.encode(x))[:, 0]
    words = codewords(layer)[0]
    # decay 0: a codeword is the mean of its residuals in the last batch
    layer(x, training=True)
    for code in np.unique(before):
        np.testing.assert_allclose(codewords(layer)[0][code], x[codes == code].mean(axis=0), atol=1e-4)
    assert words.shape == (K, F)
    # through the bottleneck: d sum(y) / d x of the identity form is 1
    plain = make(levels=2)
    plain(x, training=True)
    np.testing.assert_allclose(gradient(plain, x), np.ones_like(x), atol=1e-6)


def gradient(layer: Any, x: np.ndarray) -> np.ndarray:
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        tensor = torch.tensor(x, requires_grad=True)
        layer(tensor).sum().backward()
        return tensor.grad.numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(lambda t: layer(t).sum())(x))
    import tensorflow as tf

    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        out = tf.reduce_sum(layer(tensor))
    return tape.gradient(out, tensor).numpy()


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"update": "straight_through", "hidden": (4,)}])
def test_common(settings: dict[str, Any], tmp_path: Path) -> None:
    run_layer_checks(lambda **more: make(**settings, **more), {"inputs": vectors().reshape(16, 4, F)}, tmp_path)


@pytest.mark.quickest
def test_errors() -> None:
    for settings, message in (
        ({"levels": 0}, "`levels` must be a positive integer. Received: levels=0"),
        ({"hidden": (0,)}, "`hidden` must be a positive integer"),
        ({"update": "mean"}, "`update` must be one of"),
        ({"decay": 1.0}, r"`decay` must be in \[0, 1\)"),
        ({"revive_after": 0}, "`revive_after` must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=message):
            make(**settings)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_codewords_that_are_close_and_far_from_zero(offset: float) -> None:
    """Half a unit apart at 10,000: in |c|^2 - 2 r.c, float32 holds steps of 8 there."""
    book = offset + np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    book[8:] -= 2 * offset  # some at the other end, so that no common shift helps
    layer = make(levels=1, codebook_size=16, revive_after=None)
    layer.build((None, 3))
    layer.codebook.assign(book[None])
    x = book[np.random.default_rng(2).integers(0, 16, 50)] + np.float32(0.1)
    exact = ((x[:, None].astype("float64") - book[None].astype("float64")) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(numpy(layer.encode(x))[:, 0], exact.argmin(axis=1))


@pytest.mark.few(1)
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_codes_do_not_depend_on_the_unit(unit: float) -> None:
    layer = make(levels=1, codebook_size=K, revive_after=None)
    layer.build((None, F))
    book, x = vectors(K, seed=3), vectors(40, seed=4)
    layer.codebook.assign(book[None])
    want = numpy(layer.encode(x))
    layer.codebook.assign((book * np.float32(unit))[None])
    np.testing.assert_array_equal(numpy(layer.encode(x * np.float32(unit))), want)
    assert len(np.unique(want)) > 2


@pytest.mark.release("jax")
def test_an_unused_codeword_stays_where_it_is() -> None:
    """For longer than float32 can hold its decaying mass."""
    layer = make(levels=1, codebook_size=2, revive_after=None, decay=0.5)
    layer.build((None, 1))
    for variable in (layer.codebook, layer.sums):
        variable.assign([[[1.0], [-5.0]]])
    for _ in range(160):
        layer(np.array([[1.0], [1.2]], "float32"), training=True)
    np.testing.assert_allclose(numpy(layer.codebook)[0, :, 0], [1.1, -5.0], rtol=1e-6)
    assert np.isfinite(numpy(layer.sums)).all()
    layer(np.array([[-4.0], [-4.0]], "float32"), training=True)
    np.testing.assert_allclose(numpy(layer.codebook)[0, 1, 0], -4.0, rtol=1e-6)


@pytest.mark.few(1)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_moves_no_codeword(bad: float) -> None:
    x, other = vectors(), vectors(seed=1)
    spoilt = np.concatenate([other, np.full((3, F), bad, "float32")])
    clean, dirty = make(revive_after=None, seed=3), make(revive_after=None, seed=3)
    for layer, second in ((clean, other), (dirty, spoilt)):
        layer(x, training=True)
        layer(second, training=True)
    for name in ("codebook", "mass", "sums", "unused"):
        np.testing.assert_allclose(numpy(getattr(dirty, name).value), numpy(getattr(clean, name).value), rtol=1e-6, err_msg=name)
    revived = make(revive_after=1, seed=3)
    for _ in range(5):
        revived(spoilt, training=True)
    assert np.isfinite(codewords(revived)).all()
