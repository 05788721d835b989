"""Values, gradients and limits of the losses, against loops in float64."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking.losses import InRequestPairwise, InRequestSoftmax, ObservedTowerLoss, ObservedValueLoss, largest_request, targets
from tests.losses.helpers import (
    random_batch,
    reference_cross_entropy,
    reference_pairwise,
    reference_softmax,
    value_and_gradient,
    value_of,
)

BOUNDARIES = (1, 4)
ALL = [
    ObservedTowerLoss(BOUNDARIES, pairwise_weight=0.7, listwise_weight=0.3, same_bucket=False),
    InRequestPairwise(BOUNDARIES),
    InRequestPairwise(BOUNDARIES, same_bucket=False, window=6),
    InRequestSoftmax(BOUNDARIES),
]
each_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: f"{loss.name}-{getattr(loss, 'window', None)}")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("same_bucket", [True, False])
def test_the_losses_equal_the_formula(seed: int, same_bucket: bool) -> None:
    y_true, logits, weight, plain = random_batch(np.random.default_rng(seed))
    entropy = reference_cross_entropy(plain, logits, weight, BOUNDARIES)
    pairs = reference_pairwise(plain, logits, weight, BOUNDARIES, same_bucket)
    lists = reference_softmax(plain, logits, weight, BOUNDARIES)
    window = largest_request(y_true, weight)
    assert min(entropy, pairs, lists) > 0.01

    def close(loss: Any, wanted: float) -> None:
        assert value_of(loss, y_true, logits, weight) == pytest.approx(wanted, rel=1e-5)

    close(ObservedTowerLoss(BOUNDARIES), entropy)
    close(InRequestPairwise(BOUNDARIES, same_bucket), pairs)
    close(InRequestPairwise(BOUNDARIES, same_bucket, window=window), pairs)
    close(InRequestSoftmax(BOUNDARIES), lists)
    both = ObservedTowerLoss(BOUNDARIES, pairwise_weight=0.3, listwise_weight=0.2, same_bucket=same_bucket, window=window)
    close(both, entropy + 0.3 * pairs + 0.2 * lists)
    # Control: the other choice of buckets gives another loss.
    assert pairs != pytest.approx(reference_pairwise(plain, logits, weight, BOUNDARIES, not same_bucket), rel=1e-3)


@pytest.mark.few(2)
@pytest.mark.parametrize("window", [1, 2, 5, 22, 40])
def test_a_window_forms_exactly_the_pairs_within_it(window: int) -> None:
    y_true, logits, weight, plain = random_batch(np.random.default_rng(5), longest=8)
    found = value_of(InRequestPairwise(BOUNDARIES, False, window=window), y_true, logits, weight)
    wanted = reference_pairwise(plain, logits, weight, BOUNDARIES, False, reach=window)
    assert found == pytest.approx(wanted, rel=1e-5)
    exact = reference_pairwise(plain, logits, weight, BOUNDARIES, False)
    # Control: a window shorter than the largest request misses pairs, one of the same length misses none.
    assert (found == pytest.approx(exact, rel=1e-5)) == (window >= largest_request(y_true, weight))


@pytest.mark.release("jax")
def test_the_same_number_in_two_rows_is_not_the_same_request() -> None:
    apart, together = targets([[1], [0]], request=[[1], [1]]), targets([[1, 0]], request=[[1, 1]])
    for loss in (InRequestPairwise(), InRequestPairwise(window=2)):
        assert value_of(loss, apart, np.zeros((2, 1, 1), np.float32)) == 0
        assert value_of(loss, together, np.zeros((1, 2, 1), np.float32)) == pytest.approx(np.log(2))
    # The loss of a list of one is 0; that of a list of two is not.
    assert float(InRequestSoftmax()(apart, np.zeros((2, 1, 1), np.float32))) == 0
    assert float(InRequestSoftmax()(together, np.zeros((1, 2, 1), np.float32))) == pytest.approx(np.log(2))


@pytest.mark.release("jax")
def test_plain_labels_take_rows_as_requests() -> None:
    rng = np.random.default_rng(3)
    label = (rng.random((6, 7)) < 0.4).astype(np.float32)
    logits = rng.normal(size=(6, 7)).astype(np.float32)
    weight = rng.random(6).astype(np.float32)
    packed = targets(label, request=np.ones((6, 7)))
    for loss in (ObservedTowerLoss(pairwise_weight=1.0, listwise_weight=1.0), InRequestPairwise(window=7), InRequestSoftmax()):
        wanted = value_of(loss, packed, logits[..., None], np.repeat(weight[:, None], 7, axis=1))
        assert value_of(loss, label, logits, weight) == pytest.approx(wanted, rel=1e-6)
        assert value_of(loss, packed, logits, weight[:, None]) == pytest.approx(wanted, rel=1e-6)
    # Pointwise models: labels (B,), predictions (B, 1).
    single = float(ObservedTowerLoss()(label[:, 0], logits[:, :1]))
    wanted = float(keras.losses.BinaryCrossentropy(from_logits=True)(label[:, :1], logits[:, :1]))
    assert single == pytest.approx(wanted, rel=1e-5)


@pytest.mark.release("jax")
def test_two_items_one_clicked_is_a_pair_and_a_list_alike() -> None:
    y_true = targets([[1, 0], [0, 1]], request=[[1, 1], [1, 1]])
    logits = np.array([[[0.3], [1.2]], [[0.1], [2.0]]], dtype=np.float32)
    assert float(InRequestPairwise()(y_true, logits)) == pytest.approx(float(InRequestSoftmax()(y_true, logits)), rel=1e-6)


@pytest.mark.few(3)
@each_loss
def test_gradients_equal_finite_differences_and_are_zero_for_other_towers(loss: Any) -> None:
    y_true, logits, weight, plain = random_batch(np.random.default_rng(7), rows=2, tokens=9)
    _, gradient = value_and_gradient(lambda x: loss(y_true, x, weight), logits)
    observed = np.zeros(logits.shape, dtype=bool)
    for b, t in np.ndindex(logits.shape[:2]):
        observed[b, t, int(plain[b, t, 1] > 1) + int(plain[b, t, 1] > 4)] = True
    assert np.all(gradient[~observed] == 0)
    assert np.all(gradient[weight == 0] == 0)

    def exact(values: np.ndarray) -> float:
        if isinstance(loss, InRequestSoftmax):
            return reference_softmax(plain, values, weight, BOUNDARIES)
        pairs = reference_pairwise(plain, values, weight, BOUNDARIES, loss.same_bucket)
        if isinstance(loss, InRequestPairwise):
            return pairs
        entropy = reference_cross_entropy(plain, values, weight, BOUNDARIES)
        return entropy + 0.7 * pairs + 0.3 * reference_softmax(plain, values, weight, BOUNDARIES)

    wanted = np.zeros(logits.shape)
    for index in np.argwhere(observed):
        step = np.zeros(logits.shape)
        step[tuple(index)] = 1e-5
        wanted[tuple(index)] = (exact(logits.astype(np.float64) + step) - exact(logits.astype(np.float64) - step)) / 2e-5
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.few(1)
@each_loss
def test_values_of_weight_zero_are_ignored_even_nan(loss: Any) -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(11))
    clean, clean_gradient = value_and_gradient(lambda x: loss(y_true, x, weight), logits)
    spoilt_true, spoilt = y_true.copy(), logits.copy()
    spoilt[weight == 0] = np.nan
    spoilt_true[weight == 0, 0] = np.nan
    value, gradient = value_and_gradient(lambda x: loss(spoilt_true, x, weight), spoilt)
    assert value == clean
    np.testing.assert_array_equal(gradient, clean_gradient)
    # Control: with a weight they have an effect.
    assert np.isnan(value_and_gradient(lambda x: loss(y_true, x, np.ones_like(weight)), spoilt)[0])


@pytest.mark.few(1)
@each_loss
def test_loss_without_weights_is_exactly_zero(loss: Any) -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(13))
    value, gradient = value_and_gradient(lambda x: loss(y_true, x, np.zeros_like(weight)), logits)
    assert value == 0
    assert np.all(gradient == 0)


@pytest.mark.few(2)
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize("tokens", [1, 23])
def test_no_pair_and_no_list_is_exactly_zero(window: int | None, tokens: int) -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(17), tokens=tokens)
    y_true[..., 0] = 0
    for loss in (InRequestPairwise(BOUNDARIES, window=window), InRequestSoftmax(BOUNDARIES)):
        value, gradient = value_and_gradient(lambda x, loss=loss: loss(y_true, x, weight), logits)
        assert value == 0
        assert np.all(gradient == 0)


@pytest.mark.few(1)
@each_loss
def test_large_logits_are_finite_and_correct(loss: Any) -> None:
    y_true = targets([[1, 0, 0]], position=[[2, 3, 4]], request=[[1, 1, 1]])
    logits = np.zeros((1, 3, 3), dtype=np.float32)
    logits[0, :, 1] = [-1e4, 1e4, -1e4]
    value, gradient = value_and_gradient(lambda x: loss(y_true, x), logits)
    wanted = {"in_request_pairwise": (2e4 + np.log(2)) / 2, "in_request_softmax": 2e4}
    wanted["observed_tower_loss"] = 2e4 / 3 + 0.7 * wanted["in_request_pairwise"] + 0.3 * 2e4
    assert value == pytest.approx(wanted[loss.name], rel=1e-6)
    assert np.all(np.isfinite(gradient))
    assert gradient[0, 0, 1] < -0.4  # the gradient increases the logit of the positive


def test_the_divisor_is_the_weight_not_the_number_of_tokens() -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(19))
    loss = ObservedTowerLoss(BOUNDARIES, pairwise_weight=0.5)
    value = float(loss(y_true, logits, weight))
    wide = [np.concatenate([x, np.zeros_like(x)], axis=1) for x in (y_true, logits, weight)]
    assert float(loss(*wide)) == pytest.approx(value, rel=1e-6)
    assert float(loss(y_true, logits, weight * 8)) == pytest.approx(value, rel=1e-6)
    # Control: Keras' default divisor, the number of tokens, halves the loss as the row grows.
    keras_loss = keras.losses.BinaryCrossentropy(from_logits=True, axis=())
    short = float(keras_loss(y_true[..., 0], logits[..., 0], weight))
    assert float(keras_loss(wide[0][..., 0], wide[1][..., 0], wide[2])) == pytest.approx(short / 2, rel=1e-5)


@pytest.mark.few(1)
@each_loss
def test_bfloat16_logits_lose_only_their_own_rounding(loss: Any) -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(23))
    y_true[..., 2] += 300  # beyond the integers that bfloat16 can represent
    rounded = ops.cast(logits, "bfloat16")
    value = loss(y_true, rounded, weight)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == pytest.approx(float(loss(y_true, ops.cast(rounded, "float32"), weight)), rel=1e-6)


@pytest.mark.quickest
@each_loss
def test_a_config_makes_the_same_loss(loss: Any) -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(29))
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert type(copy) is type(loss)
    assert copy.get_config() == loss.get_config()
    assert float(copy(y_true, logits, weight)) == float(loss(y_true, logits, weight))


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ObservedTowerLoss(pairwise_weight=-1), r"`pairwise_weight` must be a finite number >= 0. Received: pairwise_weight=-1"),
        (lambda: ObservedTowerLoss(listwise_weight=float("nan")), "`listwise_weight`"),
        (lambda: ObservedTowerLoss(window=0), "`window` must be a positive integer or None. Received: window=0"),
        (lambda: InRequestPairwise(boundaries=(4, 1)), "`boundaries`"),
        (lambda: InRequestSoftmax(dtype="bfloat16"), "`dtype` must be float32 or float64"),
    ],
)
def test_wrong_arguments_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("true_shape", "pred_shape", "weight_shape", "message"),
    [
        ((2, 5), (2, 5), None, "`boundaries` need packed targets"),
        ((2, 5, 3), (2, 5, 2), None, "one logit per position tower"),
        ((2, 5, 3), (2, 5, 3), (2, 4), "`sample_weight` must be"),
        ((2, 5, 3), (2, 5, 3), (2, 5, 3), "`sample_weight` must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(true_shape: tuple, pred_shape: tuple, weight_shape: tuple | None, message: str) -> None:
    weight = None if weight_shape is None else np.ones(weight_shape, np.float32)
    with pytest.raises(ValueError, match=message):
        ObservedTowerLoss(BOUNDARIES)(np.zeros(true_shape, np.float32), np.zeros(pred_shape, np.float32), weight)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="reads the traced program of JAX")
def test_memory_does_not_grow_with_the_square_of_the_row() -> None:
    import jax

    tokens, window = 400, 8
    y_true, logits, _, _ = random_batch(np.random.default_rng(31), rows=1, tokens=tokens)

    def largest(loss: Any) -> int:
        program = jax.make_jaxpr(jax.grad(lambda x: loss(y_true, x)))(logits)
        sizes = [0]

        def visit(jaxpr: Any) -> None:
            for equation in jaxpr.eqns:
                sizes.extend(int(np.prod(v.aval.shape)) for v in equation.outvars)
                for value in equation.params.values():
                    inner = getattr(value, "jaxpr", value)
                    if hasattr(inner, "eqns"):
                        visit(inner)

        visit(program.jaxpr)
        return max(sizes)

    assert largest(ObservedTowerLoss(BOUNDARIES, 1.0, 1.0, window=window)) <= 2 * tokens * window
    for longest in (None, 100):
        assert largest(ObservedTowerLoss(BOUNDARIES, 1.0, 1.0, window=longest)) <= tokens * tokens / 8


def test_a_sum_is_the_mean_times_its_divisor() -> None:
    y_true, logits, weight, plain = random_batch(np.random.default_rng(2))
    label, request, bucket = plain[..., 0], plain[..., 2], np.searchsorted(BOUNDARIES, plain[..., 1])
    higher = label[:, :, None] > label[:, None, :]
    pairs = higher & (request[:, :, None] == request[:, None, :]) & (bucket[:, :, None] == bucket[:, None, :])
    divisors = {
        ObservedTowerLoss: weight.sum(dtype=np.float64),
        ObservedValueLoss: weight.sum(dtype=np.float64),
        InRequestPairwise: (pairs * weight[:, :, None].astype(np.float64) * weight[:, None, :]).sum(),
    }
    for kind, divisor in divisors.items():
        mean, total = (value_of(kind(BOUNDARIES, reduction=way), y_true, logits, weight) for way in ("mean_with_sample_weight", "sum"))
        assert total == pytest.approx(mean * divisor, rel=1e-5) and divisor > 2
    # A list counts with the mean weight of its positives: by weights of one, once for each list that has a positive.
    ones = np.ones_like(weight)
    lists = len({(row, request[row, at]) for row, at in zip(*np.nonzero(label), strict=True)})
    mean, total = (
        value_of(InRequestSoftmax(BOUNDARIES, reduction=way), y_true, logits, ones) for way in ("mean_with_sample_weight", "sum")
    )
    assert total == pytest.approx(mean * lists, rel=1e-5)
    settings = {"reduction": "sum", "from_logits": False, "pairwise_weight": 0.5}
    again = ObservedTowerLoss.from_config(ObservedTowerLoss(**settings).get_config())
    assert {name: getattr(again, name) for name in settings} == settings


@pytest.mark.parametrize("kind", [ObservedTowerLoss, InRequestPairwise, InRequestSoftmax])
def test_probabilities_and_their_logits_have_one_loss(kind: Any) -> None:
    y_true, logits, weight, _ = random_batch(np.random.default_rng(4))
    probability = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    value, gradient = value_and_gradient(lambda x: kind(BOUNDARIES)(y_true, x, weight), logits)
    found, slope = value_and_gradient(lambda x: kind(BOUNDARIES, from_logits=False)(y_true, x, weight), probability)
    assert found == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(slope * probability * (1 - probability), gradient, atol=1e-6)  # dL/ds = dL/dp p (1 - p)
    ends = np.where(np.arange(logits.shape[1])[None, :, None] % 2 == 0, 0.0, 1.0) * np.ones_like(probability)
    value, gradient = value_and_gradient(lambda x: kind(BOUNDARIES, from_logits=False)(y_true, x, weight), ends.astype(np.float32))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    with pytest.raises(ValueError, match=r"`y_pred` must hold probabilities from 0 to 1 with from_logits=False. Received: "):
        kind(BOUNDARIES, from_logits=False)(y_true, logits, weight)  # what a caller of logits would give
    with pytest.raises(ValueError, match="`reduction` must be one of"):
        kind(reduction="none")
