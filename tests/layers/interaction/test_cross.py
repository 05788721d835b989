"""The cross layers: LowRankCross, AttentionLowRankCross, ResidualDCN, ParallelDCN and StackedDCN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import keras_rs
import numpy as np
import pytest

from keras_ranking.layers import AttentionLowRankCross, DenseGate, GatedMLP, LowRankCross, ParallelDCN, ResidualDCN, StackedDCN
from tests.layers.common import TOLERANCE, by_path, numpy, randomise, run_layer_checks

WIDTH, RANK = 8, 6

Call = Callable[[np.ndarray], np.ndarray]


def state(*lead: int, seed: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*(lead or (2, 5)), WIDTH)).astype("float32")


def ready(layer: Any, scale: float = 0.4) -> Any:
    """The layer, built for `state` and with random weights."""
    layer.build((None, WIDTH))
    randomise(layer, scale=scale)
    return layer


def mixture(q: np.ndarray, k: np.ndarray, v: np.ndarray, score: str, tau: float) -> np.ndarray:
    """A v for tokens (T, h), one query token at a time."""
    out = np.zeros_like(v)
    for i, query in enumerate(q):
        row = np.array([query @ key for key in k]) / (tau * np.sqrt(q.shape[1]))
        if score == "softmax":
            row = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        elif score == "identity":
            row = np.eye(len(k))[i]
        out[i] = sum(weight * value for weight, value in zip(row, v, strict=True))
    return out


def reference(w: dict[str, np.ndarray], x: np.ndarray, settings: dict[str, Any] | None = None) -> np.ndarray:
    """The stack for one sample at a time, in float64. `settings`: of the attention; None: plain cross layers."""
    out = []
    for sample in x.reshape(-1, x.shape[-1]).astype("float64"):
        state, layer = sample, 0
        while f"up_{layer}" in w:
            low = state @ w[f"down_{layer}"] if f"down_{layer}" in w else state
            if settings is not None:
                score, h = settings.get("score", "softmax"), settings.get("head_dim", 1)
                tau = np.exp(w[f"log_temperature_{layer}"]) if settings.get("learn_temperature") else settings.get("temperature", 1.0)
                q, k = (state @ w[f"{name}_{layer}"] if f"{name}_{layer}" in w else low for name in ("query", "key"))
                mixed = mixture(q.reshape(-1, h), k.reshape(-1, h), low.reshape(-1, h), score, tau).reshape(-1)
                low = mixed + low if settings.get("inner_skip", True) else mixed
            state = sample * (low @ w[f"up_{layer}"] + w[f"bias_{layer}"]) + state
            layer += 1
        out.append(state)
    return np.array(out).reshape(x.shape)


ATTENTION: list[dict[str, Any]] = [
    {},
    {"head_dim": 2, "temperature": 0.5},
    {"head_dim": 3, "inner_skip": False},
    {"head_dim": 2, "temperature": 2.0, "learn_temperature": True, "num_layers": 3},
    {"head_dim": 3, "score": "linear", "temperature": 4.0},
    {"score": "identity"},
]

LAYERS: dict[str, Callable[..., Any]] = {
    "low_rank": lambda **settings: LowRankCross(RANK, **settings),
    "full": lambda **settings: LowRankCross(None, activation="tanh", **settings),
    "attention": lambda **settings: AttentionLowRankCross(RANK, head_dim=2, learn_temperature=True, temperature=2.0, **settings),
    "attention_linear": lambda **settings: AttentionLowRankCross(RANK, score="linear", temperature=6.0, inner_skip=False, **settings),
    "attention_identity": lambda **settings: AttentionLowRankCross(RANK, score="identity", **settings),
    "residual": lambda **settings: ResidualDCN(RANK, head_dim=3, **settings),
    "residual_sum": lambda **settings: ResidualDCN(RANK, merge="sum", activation="tanh", **settings),
    "parallel": lambda **settings: ParallelDCN(RANK, hidden=(7, 5), **settings),
    "parallel_residual": lambda **settings: ParallelDCN(
        RANK, hidden=(7,), cross="residual", cross_options={"head_dim": 2, "merge": "sum"}, gate="dense", activation="silu", **settings
    ),
    "stacked": lambda **settings: StackedDCN(None, num_layers=1, hidden=(7, 5), activation="silu", **settings),
    "stacked_attention": lambda **settings: StackedDCN(
        RANK, hidden=(7,), cross="attention", normalization="layer", activation="silu", **settings
    ),
}


@pytest.mark.few(5)
@pytest.mark.parametrize("kind", list(LAYERS))
def test_common(kind: str, tmp_path: Path) -> None:
    run_layer_checks(LAYERS[kind], {"inputs": state()}, tmp_path)


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["low_rank", "attention", "residual", "parallel_residual", "stacked"])
def test_two_and_four_axes(kind: str) -> None:
    """Leading axes are samples: any number of them, known or not."""
    layer, x = ready(LAYERS[kind](), scale=0.2), state(3, 2, 2)
    flat = numpy(layer(x.reshape(12, WIDTH)))
    np.testing.assert_allclose(numpy(layer(x)), flat.reshape(3, 2, 2, -1), **TOLERANCE)
    model = keras.Model(symbol := keras.Input(batch_shape=(None, None, None, WIDTH)), layer(symbol))
    np.testing.assert_allclose(numpy(model(x)), flat.reshape(3, 2, 2, -1), **TOLERANCE)


@pytest.mark.parametrize("rank", [RANK, None])
def test_cross_reference(rank: int | None) -> None:
    layer, x = ready(LowRankCross(rank, num_layers=3)), state()
    want = reference(by_path(layer), x)
    np.testing.assert_allclose(numpy(layer(x)), want, rtol=1e-5, atol=1e-5)
    assert np.abs(reference(by_path(layer), x, {"inner_skip": True}) - want).max() > 0.1  # control: another formula


@pytest.mark.few(3)
@pytest.mark.parametrize("settings", ATTENTION)
def test_attention_reference(settings: dict[str, Any]) -> None:
    layer, x = ready(AttentionLowRankCross(RANK, **settings)), state()
    got, w = numpy(layer(x)), by_path(layer)
    np.testing.assert_allclose(got, reference(w, x, settings), rtol=1e-5, atol=1e-5)
    for control in ({**settings, "inner_skip": not settings.get("inner_skip", True)}, None):
        assert np.abs(got - reference(w, x, control)).max() > 0.01


@pytest.mark.few(1)
@pytest.mark.parametrize(("rank", "activation"), [(RANK, None), (RANK, "tanh"), (None, None)])
def test_equals_feature_cross_of_keras_rs(rank: int | None, activation: str | None) -> None:
    """One layer, and a stack of two layers of keras-rs, each with x_0 and the state as inputs."""
    x = state(6)
    theirs = [keras_rs.layers.FeatureCross(projection_dim=rank, pre_activation=activation) for _ in range(2)]
    rng = np.random.default_rng(2)
    for layer in theirs:
        layer(x, x)
        layer.set_weights([rng.normal(0.0, 0.4, weight.shape).astype("float32") for weight in layer.weights])
    for count in (1, 2):
        ours = LowRankCross(rank, num_layers=count, activation=activation)
        ours.build((None, WIDTH))
        for i, layer in enumerate(theirs[:count]):
            kernels = {"up": layer.dense.kernel, "bias": layer.dense.bias}
            kernels |= {} if rank is None else {"down": layer.down_proj_dense.kernel}
            for name, value in kernels.items():
                next(weight for weight in ours.weights if weight.name == f"{name}_{i}").assign(value)
        want = x
        for layer in theirs[:count]:
            want = layer(x, want)
        want = numpy(want)
        np.testing.assert_allclose(numpy(ours(x)), want, rtol=1e-6, atol=1e-6)
    assert np.abs(numpy(theirs[1](want, want)) - want).max() > 0.1


def test_identity_scores_equal_the_plain_cross() -> None:
    plain, attention = ready(LowRankCross(RANK)), AttentionLowRankCross(RANK, score="identity", inner_skip=False)
    attention.build((None, WIDTH))
    attention.set_weights(plain.get_weights())
    np.testing.assert_array_equal(numpy(attention(state())), numpy(plain(state())))
    skipping = AttentionLowRankCross(RANK, score="identity")
    skipping.build((None, WIDTH))
    # I v + v = 2 v: the factor is included in U
    skipping.set_weights([value / (2 if "up" in w.path else 1) for w, value in zip(plain.weights, plain.get_weights(), strict=True)])
    np.testing.assert_array_equal(numpy(skipping(state())), numpy(plain(state())))


def test_sharp_softmax_scores_equal_identity_scores() -> None:
    """Sharp softmax scores, by which each token attends to itself, give the same layer as score='identity'."""
    layer, w = AttentionLowRankCross(WIDTH, num_layers=1, head_dim=4, inner_skip=False, temperature=1e-3), np.eye(WIDTH)
    layer.build((None, WIDTH))
    up = np.random.default_rng(0).normal(size=(WIDTH, WIDTH))
    weights = {"down_0": w, "up_0": up, "bias_0": np.zeros(WIDTH), "query_0": w, "key_0": w}
    layer.set_weights([weights[weight.name].astype("float32") for weight in layer.weights])
    x = np.tile(np.array([[1.0, 0, 0, 2, -2, 0, 1, 0]], "float32"), (2, 1))  # q_i . k_i is larger than q_i . k_j
    np.testing.assert_allclose(numpy(layer(x)), x * (x @ up) + x, rtol=1e-5, atol=1e-5)


def over_the_batch(w: dict[str, np.ndarray]) -> Call:
    """A wrong interpretation: samples are the tokens, and the low-rank vector of a sample is mixed with those of its batch."""

    def run(x: np.ndarray) -> np.ndarray:
        x0 = x.astype("float64")
        q, k, v = (x0 @ w[f"{name}_0"] for name in ("query", "key", "down"))
        return x0 * ((mixture(q, k, v, "softmax", 1.0) + v) @ w["up_0"] + w["bias_0"]) + x0

    return run


def batch_leaks(run: Call) -> dict[str, float]:
    """Largest change of a sample's output when only the rest of its batch changes."""
    x, order = state(9), np.random.default_rng(1).permutation(9)
    whole, others = run(x), x.copy()
    others[1:] += 3.0
    return {
        "permuted": float(np.abs(run(x[order]) - whole[order]).max()),
        "others": float(np.abs(run(others)[0] - whole[0]).max()),
        "alone": max(float(np.abs(run(x[i : i + 1])[0] - whole[i]).max()) for i in range(9)),
    }


@pytest.mark.few(1)
@pytest.mark.parametrize("score", ["softmax", "linear"])
def test_samples_do_not_depend_on_their_batch(score: str) -> None:
    layer = ready(AttentionLowRankCross(RANK, num_layers=1, score=score, temperature=1.0))
    assert max(batch_leaks(lambda x: numpy(layer(x))).values()) < 1e-5
    deep = ready(ParallelDCN(RANK, hidden=(7,), cross="residual", gate="dense"))
    assert max(batch_leaks(lambda x: numpy(deep(x))).values()) < 1e-5
    # control: attention over the batch fails; a permutation would not show it
    wrong = batch_leaks(over_the_batch(by_path(layer)))
    assert wrong["permuted"] < 1e-9
    assert wrong["others"] > 0.1 and wrong["alone"] > 0.1


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["attention", "residual", "parallel"])
def test_permuting_leading_axes(kind: str) -> None:
    layer, x = ready(LAYERS[kind]()), state(3, 4)
    np.testing.assert_allclose(numpy(layer(x.transpose(1, 0, 2))), numpy(layer(x)).transpose(1, 0, 2), **TOLERANCE)


def test_residual_dcn_equals_its_two_nets() -> None:
    x = state()
    plain, attention = ready(LowRankCross(RANK)), ready(AttentionLowRankCross(RANK, head_dim=2, temperature=0.7))
    outs = {}
    for merge in ("concat", "sum"):
        layer = ResidualDCN(RANK, merge=merge, head_dim=2, temperature=0.7)
        layer.build((None, WIDTH))
        layer.cross.set_weights(plain.get_weights())
        layer.attention_cross.set_weights(attention.get_weights())
        outs[merge] = numpy(layer(x))
    want = [numpy(plain(x)), numpy(attention(x))]
    np.testing.assert_array_equal(outs["concat"], np.concatenate(want, axis=-1))
    np.testing.assert_array_equal(outs["sum"], want[0] + want[1])


@pytest.mark.parametrize("cross", ["low_rank", "attention", "residual"])
def test_parallel_and_stacked_equal_their_parts(cross: str) -> None:
    x, parts = state(), {"low_rank": LowRankCross, "attention": AttentionLowRankCross, "residual": ResidualDCN}
    settings = {"hidden": (7, 5), "gate": "dense", "activation": "silu", "normalization": "layer"}
    for layer in (ParallelDCN(RANK, cross=cross, **settings), StackedDCN(RANK, cross=cross, **settings)):
        ready(layer, scale=0.2)
        net = parts[cross](RANK)
        net(x)
        net.set_weights(layer.cross_net.get_weights())
        crossed = numpy(net(x))
        mlp = GatedMLP((7, 5), activation="silu", normalization="layer")
        mlp(x if isinstance(layer, ParallelDCN) else crossed)
        mlp.set_weights(layer.mlp.get_weights())
        want = np.concatenate([crossed, numpy(mlp(x))], -1) if isinstance(layer, ParallelDCN) else numpy(mlp(crossed))
        np.testing.assert_allclose(numpy(layer(x)), want, **TOLERANCE)
        assert any(isinstance(part, DenseGate) for step in layer.mlp.steps for part in step)


def test_dropout_only_in_training() -> None:
    layer, x = ParallelDCN(RANK, hidden=(50,), dropout=0.5), state()
    still, moved = numpy(layer(x)), numpy(layer(x, training=True))
    np.testing.assert_array_equal(still, numpy(layer(x, training=False)))
    np.testing.assert_array_equal(still[..., :WIDTH], moved[..., :WIDTH])
    assert np.abs(still - moved).max() > 0.01


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (lambda d, r: LowRankCross(r, num_layers=1), lambda d, r: 2 * d * r + d),
        (lambda d, r: AttentionLowRankCross(r, num_layers=1), lambda d, r: 4 * d * r + d),
        (lambda d, r: ResidualDCN(r, num_layers=1), lambda d, r: 6 * d * r + 2 * d),
        (lambda d, r: LowRankCross(None, num_layers=1), lambda d, r: d * d + d),
    ],
)
def test_number_of_parameters(layer: Any, formula: Any) -> None:
    made = layer(30, 6)
    made.build((None, 30))
    assert made.count_params() == formula(30, 6)


def test_each_matrix_is_drawn_separately() -> None:
    layer = AttentionLowRankCross(RANK)
    layer.build((None, WIDTH))
    drawn = [numpy(weight.value) for weight in layer.weights if weight.shape == (WIDTH, RANK)]
    assert len(drawn) == 6
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(drawn) for b in drawn[:i])


@pytest.mark.parametrize("learned", [False, True])
def test_initial_temperature(learned: bool) -> None:
    layer, fixed = (AttentionLowRankCross(RANK, temperature=0.3, learn_temperature=flag) for flag in (learned, False))
    layer.build((None, WIDTH)), fixed.build((None, WIDTH))
    for weight in fixed.weights:
        next(other for other in layer.weights if other.name == weight.name).assign(weight)
    np.testing.assert_allclose(numpy(layer(state())), numpy(fixed(state())), **TOLERANCE)
    assert len(layer.weights) - len(fixed.weights) == (2 if learned else 0)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LowRankCross(0), "`rank` must be a positive integer, or None for full matrices. Received: rank=0"),
        (lambda: LowRankCross(4, num_layers=0), "`num_layers` must be a positive integer. Received: num_layers=0"),
        (lambda: LowRankCross(4).build((8,)), r"`inputs` must be \(B, ..., D\) with D known. Received: shape=\(8,\)"),
        (lambda: LowRankCross(4).build((2, None)), r"with D known. Received: shape=\(2, None\)"),
        (lambda: AttentionLowRankCross(None), "attention is applied between two low-rank maps. Received: rank=None"),
        (lambda: AttentionLowRankCross(6, head_dim=4), "must be a positive divisor of `rank`. Received: head_dim=4, rank=6"),
        (lambda: AttentionLowRankCross(4, head_dim=4), "the softmax of one score is 1.*has no effect. Received: rank=4, head_dim=4"),
        (lambda: AttentionLowRankCross(4, temperature=0.0), "`temperature` must be positive. Received: temperature=0.0"),
        (lambda: AttentionLowRankCross(4, score="cosine"), "`score` must be of .*Received: score='cosine'"),
        (lambda: AttentionLowRankCross(4, score="identity", learn_temperature=True), "`learn_temperature` must be False"),
        (lambda: ResidualDCN(4, merge="max"), "`merge` must be 'concat' or 'sum'. Received: merge='max'"),
        (lambda: ResidualDCN(None), "Received: rank=None"),
        (lambda: ParallelDCN(4, cross="deep"), "`cross` must be of .*Received: cross='deep'"),
        (lambda: ParallelDCN(4, hidden=()), r"`hidden` must be one or more positive integers. Received: hidden=\(\)"),
        (lambda: StackedDCN(4, cross_options={"heads": 2}), "heads"),
    ],
)
def test_errors(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_one_token_is_allowed_without_attention() -> None:
    layer = AttentionLowRankCross(4, head_dim=4, score="identity")
    assert layer(state()).shape == (2, 5, WIDTH)


def test_scores_beyond_float16() -> None:
    """Queries and keys of a few hundred, whose products pass 65,504."""
    layers = [AttentionLowRankCross(RANK, num_layers=1, dtype=policy) for policy in ("float32", "mixed_float16")]
    for layer in layers:
        ready(layer)
        for weights in (*layer.queries, *layer.keys):
            weights.assign(weights * 400)
    want, got = (numpy(layer(state())) for layer in layers)
    x = state().astype("float64")
    query, key = (x @ numpy(weights[0]).astype("float64") for weights in (layers[0].queries, layers[0].keys))
    assert np.abs(query[..., :, None] * key[..., None, :]).max() > 65_504
    np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05)
