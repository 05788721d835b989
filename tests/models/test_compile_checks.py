"""What a ranker may be compiled with: an error at `compile` or at the first batch, on every backend, and the right use beside it."""

from __future__ import annotations

import functools
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack
from keras_ranking.metrics import GroupedAUC, NormalizedEntropy, Observed

COMPILED = {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}[keras.backend.backend()]
SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tower_hidden": (8,), "token_features": ("topic",)}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=6, days=2, seed=1)


@pytest.fixture(scope="module")
def model(log: Any) -> Any:
    return kr.models.CADET(log.schema.fit(log.events), tasks=["click"], **SMALL)


@pytest.fixture(scope="module")
def batch(log: Any, model: Any) -> Any:
    rows = pack(build_sequences(log.events, model.schema), 32)
    return PackedDataset(rows, 2, inputs=model.input_columns, tasks=model.tasks, shuffle=False)[0]


class Own(keras.losses.Loss):
    """A caller's own loss that reads packed targets."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        label, logit, _, _ = kr.losses.observed_tower(y_true, y_pred, (1, 4))
        return keras.ops.square(label - keras.ops.sigmoid(logit))


class Renamed(keras.losses.MeanSquaredError):
    """A class of the caller's that computes what Keras does."""


def plain(y_true: Any, y_pred: Any) -> Any:
    return keras.ops.square(y_pred[..., 0])


bce = functools.partial(keras.losses.binary_crossentropy, from_logits=True)
AT_COMPILE = [
    ({"loss": "binary_crossentropy"}, "`loss` must be for logits.*losses_by_task"),
    ({"loss": keras.losses.BinaryCrossentropy()}, "`loss` must be for logits"),
    ({"loss": keras.losses.binary_focal_crossentropy}, "`loss` must be for logits"),
    ({"loss": {"click": "binary_crossentropy"}}, "`loss` must be for logits"),
    ({"metrics": ["AUC"]}, r"`metrics` must be for logits.*Observed\(metric, boundaries=model.boundaries\)"),
    ({"metrics": ["accuracy"]}, "`metrics` must be for logits"),
    ({"weighted_metrics": {"click": [keras.metrics.Precision()]}}, "`weighted_metrics` must be for logits"),
    ({"weighted_metrics": [[keras.metrics.BinaryCrossentropy()]]}, "`weighted_metrics` must be for logits"),
    ({"metrics": {"click": GroupedAUC((1, 4))}}, "`metrics` must hold metrics without weights.*`weighted_metrics`"),
    ({"weighted_metrics": [GroupedAUC((2, 4))]}, r"boundaries of the model's towers, \(1, 4\)"),
    ({"loss": kr.losses.ObservedTowerLoss()}, r"boundaries of the model's towers, \(1, 4\)"),
    ({"loss": kr.losses.ObservedTowerLoss((2, 5))}, r"boundaries of the model's towers, \(1, 4\)"),
]


@pytest.mark.quickest
@pytest.mark.parametrize(("settings", "message"), AT_COMPILE, ids=range(len(AT_COMPILE)))
def test_what_no_targets_make_right(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.compile("adam", **{"loss": model.losses_by_task(), **settings})


FIRST_BATCH = [
    {"loss": keras.losses.BinaryCrossentropy(from_logits=True)},
    {"loss": bce},
    {"loss": "mse"},
    {"loss": {"click": Renamed()}},
    {"weighted_metrics": [keras.metrics.AUC(from_logits=True)]},
    {"metrics": {"click": ["mse"]}},
    {"weighted_metrics": [keras.metrics.BinaryCrossentropy(from_logits=True)]},
]


@pytest.mark.few(2)
@pytest.mark.parametrize("jit_compile", COMPILED)
@pytest.mark.parametrize("settings", FIRST_BATCH, ids=range(len(FIRST_BATCH)))
def test_what_packed_targets_make_wrong(model: Any, batch: Any, settings: dict[str, Any], jit_compile: bool) -> None:
    x, y, weight = batch
    model.compile("sgd", **{"loss": model.losses_by_task(), **settings}, jit_compile=jit_compile)
    for run in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=r"must read packed targets \(B, T, 3\): label, position and request. Received"):
            run(x, y, sample_weight=weight, verbose=0)
    with pytest.raises(ValueError, match="must read packed targets"):
        model.train_on_batch(x, y, weight)


class One(keras.utils.PyDataset):
    def __init__(self, batch: Any) -> None:
        super().__init__()
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.batch


def test_in_a_dataset_too(model: Any, batch: Any) -> None:
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    with pytest.raises(ValueError, match="must read packed targets"):
        model.fit(One(batch), verbose=0)


@pytest.mark.parametrize("jit_compile", COMPILED)
def test_labels_out_of_range_name_task_and_place(model: Any, batch: Any, jit_compile: bool) -> None:
    x, y, weight = batch
    model.compile("sgd", model.losses_by_task(), jit_compile=jit_compile)
    row, token = (int(index[0]) for index in np.nonzero(weight["click"]))
    wrong = {"click": y["click"].copy()}
    wrong["click"][row, token, 0] = -1
    for run in (model.fit, model.evaluate):
        with pytest.raises(
            ValueError, match=rf"task 'click': `y_true` must hold labels from 0 to 1.* Received: label -1.0 at \({row}, {token}\)"
        ):
            run(x, wrong, sample_weight=weight, verbose=0)
        with pytest.raises(ValueError, match="task 'click': `y_true` must hold labels from 0 to 1"):
            run(One((x, wrong, weight)), verbose=0)
    with pytest.raises(ValueError, match="task 'click': `sample_weight`"):
        model.train_on_batch(x, y, {"click": -weight["click"]})


@pytest.mark.parametrize("jit_compile", COMPILED)
def test_right_uses(model: Any, batch: Any, jit_compile: bool) -> None:
    """Controls: the package's own, a metric of Keras that `Observed` reads, the caller's own, and plain labels."""
    x, y, weight = batch
    own = [GroupedAUC((1, 4)), NormalizedEntropy((1, 4)), Observed(keras.metrics.AUC(), (1, 4))]
    own_losses = ({"loss": Own()}, {"loss": {"click": plain}})
    for settings in (
        {"loss": model.losses_by_task(pairwise_weight=0.1), "weighted_metrics": {"click": own}},
        *(own_losses if jit_compile == COMPILED[-1] else ()),  # what is checked is the same, compiled or not: once on each backend
    ):
        model.compile("sgd", **settings, jit_compile=jit_compile)
        found = model.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
        assert np.isfinite(list(found.values())).all()
    # Plain labels, from the caller's own data: a cross-entropy of logits reads them.
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    model.check_targets({"click": y["click"][..., :1]})
