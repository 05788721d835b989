"""Losses and streaming metrics of this package in wrong uses: an error that names the right one, and never a figure."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking import metrics
from keras_ranking.losses import InRequestPairwise, InRequestSoftmax, ObservedTowerLoss, targets

IN_REQUEST = [
    InRequestPairwise,
    InRequestSoftmax,
    lambda: ObservedTowerLoss(pairwise_weight=1.0),
    lambda: ObservedTowerLoss(listwise_weight=1.0),
]
LOSSES = [ObservedTowerLoss, *IN_REQUEST]
STREAMING = [
    metrics.NormalizedEntropy,
    metrics.CalibrationError,
    metrics.ObservedOverExpected,
    lambda **given: metrics.Observed("AUC", **given),
]
COMPILED = {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}[keras.backend.backend()]
LOG2 = math.log(2)
GRAPH_ERROR = importlib.import_module("tensorflow").errors.InvalidArgumentError if False in COMPILED[1:] else ValueError

as_array: Callable[[Any], Any] = lambda x: np.asarray(x, np.float32)
as_tensor: Callable[[Any], Any] = lambda x: ops.convert_to_tensor(np.asarray(x, np.float32))
each_container = pytest.mark.parametrize("given", [list, as_array, as_tensor], ids=["list", "array", "tensor"])


@pytest.mark.few(2)
@each_container
@pytest.mark.parametrize("make", LOSSES)
def test_a_label_or_weight_out_of_range_is_an_error(make: Any, given: Any) -> None:
    logits = np.zeros((1, 3), np.float32)
    clean = given([[1.0, 0.0, 0.0]])
    assert float(make()(clean, logits)) > 0  # control
    for label in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`y_true` must hold .*Received: label (-1|nan|inf).* at \(0, 1\)"):
            make()(given([[1.0, label, 0.0]]), logits)
        # An unknown label has weight 0.
        assert float(make()(given([[1.0, label, 0.0]]), logits, given([[1.0, 0.0, 1.0]]))) == float(
            make()(clean, logits, given([[1.0, 0.0, 1.0]]))
        )
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"`sample_weight` must hold finite numbers >= 0. Received: (-1|nan|inf).* at \(0, 2\)"):
            make()(clean, logits, given([[1.0, 1.0, weight]]))


@pytest.mark.few(2)
@each_container
def test_grades_are_for_losses_of_lists(given: Any) -> None:
    graded, logits = given([[2.0, 0.0, 1.0]]), np.zeros((1, 3), np.float32)
    assert float(InRequestPairwise()(graded, logits)) == pytest.approx(LOG2)
    assert float(InRequestSoftmax()(graded, logits)) == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match=r"labels from 0 to 1.*Received: label 2"):
        ObservedTowerLoss()(graded, logits)
    # A share between 0 and 1 has a cross-entropy: here of a coin, whatever the share.
    assert float(ObservedTowerLoss()(given([[0.25, 0.5, 1.0]]), logits)) == pytest.approx(LOG2)


def test_packed_targets_hold_no_negative_label() -> None:
    assert np.isnan(targets([[1, np.nan]])[0, 1, 0])
    for label in (-1.0, float("inf")):
        with pytest.raises(
            ValueError, match=r"`label` must hold finite numbers >= 0, and NaN where it is unknown. Received: .* at \(0, 1\)"
        ):
            targets([[1.0, label]])


@pytest.mark.few(2)
@pytest.mark.parametrize("make", LOSSES)
def test_tensors_are_looked_at_once_and_are_never_a_figure_later(make: Any) -> None:
    loss, logits = make(), np.zeros((1, 3), np.float32)
    assert float(loss(as_tensor([[1.0, 0.0, 0.0]]), logits)) > 0
    assert math.isnan(float(loss(as_tensor([[1.0, -1.0, 0.0]]), logits)))


@pytest.mark.few(1)
@pytest.mark.parametrize("make", IN_REQUEST)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 1, 1)])
def test_rows_of_one_item_hold_nothing_to_compare(make: Any, shape: tuple[int, ...]) -> None:
    label = np.array([1.0, 0.0, 0.0, 1.0], np.float32).reshape(shape)
    with pytest.raises(ValueError, match=r"items of a request in a row, \(B, N\) with N > 1, or be packed targets"):
        make()(label, np.zeros((4, 1), np.float32))
    with pytest.raises(ValueError, match="items of a request in a row"):
        metrics.GroupedAUC().update_state(label, np.zeros((4, 1), np.float32))
    # Controls: the same four items as one request, and a cross-entropy, which compares nothing.
    assert float(make()(label.reshape(1, 4), np.zeros((1, 4), np.float32))) > 0.5
    assert float(ObservedTowerLoss()(label, np.zeros((4, 1), np.float32))) == pytest.approx(LOG2)
    assert float(make()(targets(label.reshape(4, 1)), np.zeros((4, 1, 1), np.float32))) >= 0


@pytest.mark.few(2)
@pytest.mark.parametrize("make", STREAMING)
def test_logits_are_no_probabilities(make: Any) -> None:
    label, logits = [1.0, 0.0, 1.0, 0.0], [2.0, -1.0, 0.5, 0.1]
    wanted = make(from_logits=True)
    wanted.update_state(label, logits)
    chance = make()
    chance.update_state(label, 1 / (1 + np.exp(-np.array(logits))))
    assert float(chance.result()) == pytest.approx(float(wanted.result()), rel=1e-4)  # control
    with pytest.raises(ValueError, match=r"probabilities from 0 to 1.*from_logits=True"):
        make().update_state(label, logits)
    metric = make()
    metric.update_state(as_tensor(label), as_tensor(logits))
    with pytest.raises(ValueError, match=r"probabilities from 0 to 1.*from_logits=True"):
        metric.result()
    metric.reset_state()
    metric.update_state(label, [0.5, 0.5, 0.75, 0.25])
    assert math.isfinite(float(metric.result()))


@pytest.mark.few(2)
@pytest.mark.parametrize("make", [*STREAMING, lambda **_: metrics.GroupedAUC(), lambda **_: metrics.ReplayContributionRate()])
def test_a_metric_of_wrong_labels_or_weights_is_an_error(make: Any) -> None:
    packed, logits = targets([[1, 0, 0]], position=[[1, 2, 3]]), np.array([[0.3, 0.2, 0.1]], np.float32)
    wrong = packed.copy()
    wrong[0, 1, 0] = -1
    for y_true, weight, message in ((wrong, [[1.0, 1.0, 1.0]], "`y_true`"), (packed, [[1.0, -1.0, 1.0]], "`sample_weight`")):
        with pytest.raises(ValueError, match=message):
            make().update_state(y_true, logits, weight)
        metric = make()
        metric.update_state(as_tensor(y_true), as_tensor(logits), as_tensor(weight))
        with pytest.raises(ValueError, match=message):
            metric.result()
    control = make()
    control.update_state(as_tensor(wrong), as_tensor(logits), as_tensor([[1.0, 0.0, 1.0]]))
    assert not math.isinf(float(control.result()))


def head(activation: Any, *after: Any, policy: str = "float32") -> keras.Model:
    inputs = keras.Input((4, 3))
    outputs = keras.layers.Dense(1, activation=activation, dtype=policy)(inputs)
    for layer in after:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


X, Y = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32"), np.tile([1.0, 0.0, 0.0, 1.0], (8, 1)).astype("float32")
HEADS = {
    "dense": lambda: head("sigmoid"),
    "softmax": lambda: head(None, keras.layers.Reshape((4,)), keras.layers.Softmax()),
    "layer": lambda: head(None, keras.layers.Activation("sigmoid")),
    "reshaped": lambda: head(None, keras.layers.Activation("sigmoid"), keras.layers.Reshape((4,)), keras.layers.Reshape((4, 1))),
    "bfloat16": lambda: head(
        None, keras.layers.Activation("sigmoid", dtype="bfloat16"), keras.layers.Activation("linear", dtype="float32")
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("kind", HEADS)
def test_a_head_of_probabilities_is_not_squashed_twice(kind: str, jit_compile: bool) -> None:
    model = HEADS[kind]()
    make = {"dense": ObservedTowerLoss, "softmax": InRequestSoftmax, "layer": InRequestPairwise}.get(kind, ObservedTowerLoss)
    model.compile("sgd", make(), jit_compile=jit_compile)
    with pytest.raises(ValueError, match="`y_pred` must be logits.*leave out the activation of the last layer"):
        model.fit(X, Y, verbose=0)


@pytest.mark.parametrize("jit_compile", COMPILED)
def test_a_head_of_logits_is_trained(jit_compile: bool) -> None:
    """Control, with a gate inside: a sigmoid that is multiplied, not returned."""
    inputs = keras.Input((4, 3))
    gate = keras.layers.Dense(1, activation="sigmoid")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs) * gate)
    model.compile("sgd", ObservedTowerLoss(pairwise_weight=0.5), weighted_metrics=[metrics.GroupedAUC()], jit_compile=jit_compile)
    history = model.fit(X, Y, verbose=0).history
    assert math.isfinite(history["loss"][0]) and math.isfinite(history["grouped_auc"][0])


@pytest.mark.parametrize("jit_compile", COMPILED)
def test_compiled_steps_never_report_a_figure(jit_compile: bool) -> None:
    wrong = Y.copy()
    wrong[2, 1] = -1
    model = head(None)
    model.compile("sgd", ObservedTowerLoss(), jit_compile=jit_compile)
    if not jit_compile:  # eager on torch
        with pytest.raises(GRAPH_ERROR, match="`y_true` must hold labels"):
            model.fit(X, wrong, verbose=0)
        assert all(np.isfinite(keras.ops.convert_to_numpy(variable)).all() for variable in model.trainable_variables)
    else:
        assert math.isnan(model.fit(X, wrong, verbose=0).history["loss"][0])
    model = head(None)
    model.compile("sgd", "mse", weighted_metrics=[metrics.NormalizedEntropy()], jit_compile=jit_compile)
    with pytest.raises(ValueError, match=r"probabilities from 0 to 1.*from_logits=True"):
        model.evaluate(X * 9, Y, verbose=0)
