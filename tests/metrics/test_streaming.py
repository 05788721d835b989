"""The streaming metrics against the array functions, batch by batch, in packed and in plain form."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking import metrics
from keras_ranking.losses import ObservedTowerLoss, targets
from keras_ranking.metrics.running_sum import RunningSum
from tests.losses.helpers import chosen, random_batch

BOUNDARIES = (1, 4)


def stream(batches: int = 5, rows: int = 6, tokens: int = 40) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Packed targets, logits with ties, weights (some 0, with NaN logits there), and the plain columns."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(batches):
        y_true, logits, weight, plain = random_batch(rng, rows, tokens, longest=9)
        logits = np.round(logits * 2) / 2
        logits[weight == 0] = np.nan
        out.append((y_true, logits, weight, plain))
    return out


def flat(batches: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits, weights and groups of the weighted tokens, as float64 columns."""
    label, logit, weights, groups = [], [], [], []
    for number, (_, logits, weight, plain) in enumerate(batches):
        kept = weight > 0
        row = np.broadcast_to(np.arange(len(weight))[:, None], weight.shape)
        label.append(plain[..., 0][kept])
        logit.append(chosen(plain, logits, BOUNDARIES)[kept])
        weights.append(weight[kept].astype(np.float64))
        groups.append((plain[..., 2] + 1000 * row + 100_000 * number)[kept])
    return tuple(np.concatenate(x) for x in (label, logit, weights, groups))  # type: ignore[return-value]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def exact(batches: list[Any]) -> dict[str, float]:
    label, logit, weight, groups = flat(batches)
    chance = sigmoid(logit)
    return {
        "grouped_auc": metrics.grouped_auc(label, logit, groups, weight).value,
        "normalized_entropy": metrics.normalized_entropy(label, chance, weight),
        "observed_over_expected": metrics.observed_over_expected(label, chance, weight),
        "calibration_error": metrics.calibration_error(label, chance, weight),
    }


def make() -> list[keras.metrics.Metric]:
    return [
        metrics.GroupedAUC(BOUNDARIES),
        metrics.NormalizedEntropy(BOUNDARIES),
        metrics.ObservedOverExpected(BOUNDARIES),
        metrics.CalibrationError(boundaries=BOUNDARIES),
    ]


each_metric = pytest.mark.parametrize("metric", make(), ids=lambda metric: metric.name)


@each_metric
def test_a_stream_of_batches_equals_the_whole(metric: Any) -> None:
    batches = stream()
    wanted = exact(batches)[metric.name]
    for _ in range(2):  # the second time after a reset
        metric.reset_state()
        for y_true, logits, weight, _plain in batches:
            metric.update_state(y_true, logits, sample_weight=weight)
        # Half-integer logits are on cell borders and ties share a cell: even the calibration error is exact.
        assert float(metric.result()) == pytest.approx(wanted, rel=1e-5)
    # Controls: another tower, or no weights, gives another value.
    metric.reset_state()
    for y_true, logits, weight, _plain in batches:
        metric.update_state(y_true, np.roll(logits, 1, axis=-1), sample_weight=weight)
    assert float(metric.result()) != pytest.approx(wanted, rel=1e-3)
    metric.reset_state()
    metric.update_state(batches[0][0], np.nan_to_num(batches[0][1]))
    assert float(metric.result()) != pytest.approx(exact(batches[:1])[metric.name], rel=1e-4)


@pytest.mark.few(2)
@each_metric
def test_a_nan_prediction_makes_the_value_nan(metric: Any) -> None:
    y_true, logits, weight, _ = stream(1)[0]
    logits = np.nan_to_num(logits)
    metric.reset_state()
    metric.update_state(y_true, logits, weight)
    assert math.isfinite(float(metric.result()))
    logits[np.unravel_index(weight.argmax(), weight.shape)] = np.nan
    metric.update_state(y_true, logits, weight)
    assert math.isnan(float(metric.result()))


@pytest.mark.few(1)
@each_metric
def test_the_value_without_data_is_nan(metric: Any) -> None:
    metric.reset_state()
    assert math.isnan(float(metric.result()))
    y_true, logits, weight, _ = stream(1)[0]
    metric.update_state(y_true, logits, np.zeros_like(weight))
    assert math.isnan(float(metric.result()))


@pytest.mark.quickest
@each_metric
def test_a_config_makes_the_same_metric(metric: Any) -> None:
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(copy) is type(metric)
    assert copy.get_config() == metric.get_config()
    y_true, logits, weight, _ = stream(1)[0]
    metric.reset_state()
    metric.update_state(y_true, logits, weight)
    copy.update_state(y_true, logits, weight)
    assert float(copy.result()) == float(metric.result())


@pytest.mark.few(1)
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("shape", [(300,), (300, 1), (30, 10)])
def test_plain_labels_and_probabilities(from_logits: bool, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    logit = rng.normal(size=300) * 2
    chance = sigmoid(logit)
    label = (rng.random(300) < chance).astype(np.float32)
    given = (logit if from_logits else chance).astype(np.float32).reshape(shape)
    weight = rng.random(300).astype(np.float32)
    for metric, function in [
        (metrics.NormalizedEntropy(from_logits=from_logits), metrics.normalized_entropy),
        (metrics.ObservedOverExpected(from_logits=from_logits), metrics.observed_over_expected),
        (metrics.CalibrationError(from_logits=from_logits, resolution=100_000), metrics.calibration_error),
    ]:
        metric.update_state(label.reshape(shape), given, weight.reshape(shape))
        tolerance = float(metric.bound()) if isinstance(metric, metrics.CalibrationError) else 0.0
        assert tolerance < 0.2
        assert float(metric.result()) == pytest.approx(function(label, chance, weight), rel=1e-4, abs=tolerance)
    if len(shape) == 2 and shape[1] > 1:
        metric = metrics.GroupedAUC()
        metric.update_state(label.reshape(shape), given, weight.reshape(shape))
        wanted = metrics.grouped_auc(label, chance, np.repeat(np.arange(30), 10), weight).value
        assert float(metric.result()) == pytest.approx(wanted, rel=1e-5)


def test_probabilities_of_zero_and_one_are_not_clipped() -> None:
    metric = metrics.NormalizedEntropy()
    metric.update_state([1.0, 0.0, 1.0], [1.0, 0.0, 0.5])
    assert float(metric.result()) == pytest.approx(metrics.normalized_entropy([1, 0, 1], [1, 0, 0.5]), rel=1e-6)
    metric.update_state([1.0], [0.0])
    assert float(metric.result()) == math.inf
    error = metrics.CalibrationError(bins=2)
    error.update_state([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    assert float(error.result()) == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("resolution", [64, 512, 4096])
def test_the_calibration_error_keeps_its_bound(resolution: int) -> None:
    rng = np.random.default_rng(2)
    logit = (rng.normal(size=20_000) * 1.5 - 2).astype(np.float32)
    label = (rng.random(20_000) < sigmoid(0.7 * logit)).astype(np.float32)
    metric = metrics.CalibrationError(resolution=resolution, from_logits=True)
    for part in np.array_split(np.arange(20_000), 7):
        metric.update_state(label[part], logit[part])
    difference = abs(float(metric.result()) - metrics.calibration_error(label, sigmoid(logit.astype(np.float64))))
    bound = float(metric.bound())
    assert difference <= bound + 1e-6
    assert bound <= 2 * 9 * 20_000 * (32 / resolution) * 0.27 / 20_000  # nine edges, density at most 0.27
    if resolution == 4096:
        assert bound < 0.04
        assert difference < 5e-4
        # Control: the error is far larger than the difference, and bins of equal width differ by more.
        assert float(metric.result()) > 0.02
    constant = metrics.CalibrationError(resolution=resolution)
    constant.update_state([0.0, 1.0, 1.0, 1.0], [0.5] * 4)
    assert float(constant.result()) == pytest.approx(0.25)
    assert float(constant.bound()) == 2.0


def test_observed_updates_a_keras_metric() -> None:
    batches = stream()
    label, logit, weight, _ = flat(batches)
    wanted = {
        "auc": (keras.metrics.AUC(num_thresholds=2000), metrics.auc(label, logit, weight), 0.002),
        "binary_accuracy": (keras.metrics.BinaryAccuracy(), np.average((logit > 0) == (label > 0), weights=weight), 1e-5),
        "binary_crossentropy": (keras.metrics.BinaryCrossentropy(), metrics.log_loss(label, sigmoid(logit), weight), 1e-5),
        "recall": (keras.metrics.Recall(), weight[(logit > 0) & (label > 0)].sum() / weight[label > 0].sum(), 1e-5),
    }
    for name, (inner, value, tolerance) in wanted.items():
        metric = metrics.Observed(inner, BOUNDARIES)
        assert metric.name == inner.name
        for y_true, logits, w, _plain in batches:
            metric.update_state(y_true, logits, w)
        assert float(metric.result()) == pytest.approx(value, rel=tolerance), name
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
        copy.update_state(*batches[0][:3])
        metric.reset_state()
        metric.update_state(*batches[0][:3])
        assert float(copy.result()) == float(metric.result())
    with pytest.raises(ValueError, match=r"`metric` must be a keras.metrics.Metric"):
        metrics.Observed(None)


def test_requests_in_one_row_do_not_mix() -> None:
    y_true = targets([[1, 0, 1, 0]], request=[[1, 1, 2, 2]])
    logits = np.array([[[1.0], [0.0], [6.0], [5.0]]], dtype=np.float32)
    metric = metrics.GroupedAUC()
    metric.update_state(y_true, logits)
    assert float(metric.result()) == 1.0
    # Control: as one request, the first positive is below the last negative.
    metric.reset_state()
    metric.update_state(targets([[1, 0, 1, 0]]), logits)
    assert float(metric.result()) == 0.75


def test_a_running_sum_counts_beyond_the_limit_of_float32() -> None:
    metric = keras.metrics.Mean()
    total = RunningSum(metric, "count")
    plain = metric.add_variable(shape=(), initializer="zeros", name="plain")
    total.add(2.0**24)
    plain.assign_add(2.0**24)
    for _ in range(10):
        total.add(1.0)
        plain.assign_add(1.0)
    assert float(total.value) == 2**24 + 10
    assert float(plain) == 2**24  # control


@pytest.mark.parametrize("jit_compile", {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}[keras.backend.backend()])
def test_compile_passes_targets_and_weights_of_every_task(jit_compile: bool) -> None:
    batches = stream(1, rows=12)
    y_true, logits, weight, plain = batches[0]
    logits = np.nan_to_num(logits)
    other = y_true.copy()
    other[..., 0] = 1 - other[..., 0]
    inputs = keras.Input((None, 3), name="x")
    outputs = {name: keras.layers.Identity(name=name)(inputs) for name in ("click", "dwell")}
    model = keras.Model(inputs, outputs)
    model.compile(
        loss={name: ObservedTowerLoss(BOUNDARIES) for name in ("click", "dwell")},
        weighted_metrics={name: [*make(), metrics.Observed(keras.metrics.BinaryAccuracy(), BOUNDARIES)] for name in ("click", "dwell")},
        jit_compile=jit_compile,
    )
    result = model.evaluate(
        logits,
        {"click": y_true, "dwell": other},
        sample_weight={"click": weight, "dwell": weight},
        batch_size=5,
        verbose=0,
        return_dict=True,
    )
    flipped = plain.copy()
    flipped[..., 0] = 1 - flipped[..., 0]
    for name, columns in (("click", plain), ("dwell", flipped)):
        for key, value in exact([(y_true, logits, weight, columns)]).items():
            assert result[f"{name}_{key}"] == pytest.approx(value, rel=1e-5), key
    assert result["click_binary_accuracy"] == pytest.approx(1 - result["dwell_binary_accuracy"], rel=1e-5)


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: metrics.GroupedAUC(boundaries=(2, 2)), "`boundaries` must be increasing"),
        (lambda: metrics.CalibrationError(bins=0), "`bins` must be a positive integer"),
        (lambda: metrics.CalibrationError(bins=10, resolution=9), "`resolution` must be an integer of at least"),
        (lambda: metrics.NormalizedEntropy(dtype="bfloat16"), "`dtype` must be float32 or float64"),
        (lambda: metrics.GroupedAUC(BOUNDARIES).update_state(np.zeros((2, 5)), np.zeros((2, 5))), "`boundaries` need packed targets"),
        (lambda: metrics.GroupedAUC().update_state(np.zeros((1, 46_341)), np.zeros((1, 46_341))), "at most 46340 tokens"),
    ],
)
def test_wrong_arguments_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_bfloat16_logits_are_compared_as_given() -> None:
    y_true, logits, weight, plain = stream(1)[0]
    y_true[..., 2] += 300
    rounded = ops.cast(np.nan_to_num(logits), "bfloat16")
    values = ops.convert_to_numpy(ops.cast(rounded, "float32"))
    metric = metrics.GroupedAUC(BOUNDARIES)
    metric.update_state(y_true, rounded, weight)
    assert float(metric.result()) == pytest.approx(exact([(y_true, values, weight, plain)])["grouped_auc"], rel=1e-5)
