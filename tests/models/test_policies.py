"""The table of dtype policies: what each model does under every policy that Keras has. One row, one behaviour, on every backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRequests, build_sequences, pack
from keras_ranking.models.wiring import POLICIES

SEQUENCE: dict[str, Any] = {"dim": 4, "num_heads": 1, "num_layers": 1, "id_dim": 2, "token_features": ("topic", "age_hours")}
REQUEST: dict[str, Any] = {"id_dim": 2, "features": ("age_hours", "topic")}
HISTORY: dict[str, Any] = {"history_features": ("topic",), "action_dim": 2, "max_history": 4}
MODELS: dict[str, dict[str, Any]] = {
    "CADET": {**SEQUENCE, "tower_hidden": (4,)},
    "FeedSR": SEQUENCE,
    "LiRank": {**REQUEST, "history_features": (), "hidden": (4,), "rank": 2, "cross_layers": 1},
    "AmortizedDLRM": {**REQUEST, **HISTORY, "dim": 4, "num_heads": 1, "num_layers": 1, "hidden": (4,), "rank": 2},
    "LiGR": {**REQUEST, **HISTORY, "dim": 4, "num_heads": 1, "num_layers": 1},
}
# Largest difference of a first loss from that in float32: of numbers of 8 and of 11 significant bits.
TRAINED = {"float32": 0.0, "mixed_float16": 0.03, "mixed_bfloat16": 0.15, "float16": 0.03, "bfloat16": 0.15}
REFUSED = {
    "float64": r"must be one of \('float32', .*Received: 'float64'",
    "int8_from_float32": "must be one of .*Received: 'int8_from_float32'; `keras_ranking.serving.quantize_embeddings`",
    "int4_from_mixed_bfloat16": "must be one of .*Received: 'int4_from_mixed_bfloat16'",
    "float8_from_float32": "must be one of .*Received: 'float8_from_float32'",
    "int8": "must be one of .*Received: 'int8'",
    "no_such_policy": "must be one of .*Received: 'no_such_policy'",
}
EAGER = keras.backend.backend() != "jax"  # JAX compiles each operation of an eager step
STEPS = 6  # a scaled loss starts too large, and a step that overflows halves the scale
LOG = kr.data.simulate(members=4, days=2, seed=1)
LOSSES: dict[str, float] = {}
WEIGHTS: dict[str, list[np.ndarray]] = {}


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")


def made(kind: str, **arguments: Any) -> Any:
    keras.utils.set_random_seed(0)
    return getattr(kr.models, kind)(LOG.schema.fit(LOG.events), **MODELS[kind], **arguments)


def batch_of(model: Any) -> Any:
    sequences = build_sequences(LOG.events, model.schema)
    if model.form == "rows":
        return PackedDataset(pack(sequences, 32), 2, inputs=model.input_columns, tasks=model.tasks, shuffle=False)[0]
    found = kr.training.model_requests(model, sequences)
    return PackedRequests(found, 32, 2, names=model.input_columns, tasks=model.tasks, shuffle=False)[0]


def first_loss(model: Any) -> float:
    """Loss of the first step, after which the weights have moved and are finite."""
    x, y, weight = batch_of(model)
    own = {"click": [kr.metrics.GroupedAUC(model.boundaries), kr.metrics.NormalizedEntropy(model.boundaries)]}
    model.compile(keras.optimizers.SGD(0.1), model.losses_by_task(pairwise_weight=0.1), weighted_metrics=own, run_eagerly=EAGER)
    before = [np.array(keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))) for weight in model.trainable_variables]
    result = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    for _ in range(STEPS):
        after = [np.array(keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))) for weight in model.trainable_variables]
        if any((a != b).any() for a, b in zip(before, after, strict=True)):
            break
        model.train_on_batch(x, y, sample_weight=weight)
    else:
        pytest.fail("no step moved the weights")
    assert all(np.isfinite(values).all() for values in after)
    assert all(np.isfinite(float(value)) for value in result.values())
    return float(result["loss"])


def marks(policy: str, kind: str) -> list[pytest.MarkDecorator]:
    """Every policy with CADET on each backend; with the other models on torch, where a case takes a second."""
    quick = [] if policy == "mixed_float16" else [pytest.mark.slow]
    return quick if kind == "CADET" else [*quick, pytest.mark.quickest]


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("policy", "kind"), [pytest.param(policy, kind, marks=marks(policy, kind)) for policy in TRAINED for kind in MODELS]
)
def test_trained_under_a_policy(policy: str, kind: str) -> None:
    model = made(kind, dtype=policy)
    assert model.arguments["dtype"] == policy
    if kind not in LOSSES:
        whole = made(kind)
        WEIGHTS[kind] = whole.get_weights()
        LOSSES[kind] = first_loss(whole)
    model.set_weights(WEIGHTS[kind])  # each policy draws others
    loss = first_loss(model)
    assert loss == pytest.approx(LOSSES[kind], rel=TRAINED[policy])
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")


@pytest.mark.quickest
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("policy", REFUSED)
def test_refused_by_name(policy: str, kind: str) -> None:
    with pytest.raises(ValueError, match=f"`dtype` {REFUSED[policy]}"):
        made(kind, dtype=policy)


@pytest.mark.quickest
@pytest.mark.parametrize("kind", MODELS)
def test_refused_as_the_float_type_of_keras(kind: str) -> None:
    keras.config.set_floatx("float64")
    for given in ({}, {"dtype": "float32"}):
        with pytest.raises(ValueError, match=r"compute in float32 or half precision, not in float64. .*set_floatx\('float32'\)"):
            made(kind, **given)


def test_the_global_policy_counts_and_objects_are_names() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert made("LiRank").arguments["dtype"] == "mixed_bfloat16"
    assert made("LiRank", dtype=keras.dtype_policies.DTypePolicy("float32")).arguments["dtype"] == "float32"
    keras.config.set_dtype_policy("int8_from_float32")
    with pytest.raises(ValueError, match="Keras's global dtype policy must be one of .*Received: 'int8_from_float32'"):
        made("LiRank")


@pytest.mark.one_backend
def test_the_table_of_the_guide_is_this_one() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "train.md").read_text(encoding="utf8")
    rows = [line.strip("|").split("|") for line in guide.splitlines() if line.startswith("| `")]
    table = {name.strip(" `"): cells[0].strip() for name, *cells in rows}
    assert {name for name, what in table.items() if what == "trained and scored"} == set(TRAINED) == set(POLICIES)
    assert {name for name, what in table.items() if what == "refused"} >= {"float64", "int8_from_float32", "float8_from_float32"}


@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
def test_losses_and_metrics_keep_at_least_32_bits(floatx: str) -> None:
    keras.config.set_floatx(floatx)
    wanted = "float64" if floatx == "float64" else "float32"
    loss = kr.losses.ObservedTowerLoss(pairwise_weight=0.1)
    assert loss.dtype == kr.metrics.GroupedAUC().dtype == wanted
    assert float(loss([[1.0, 0.0]], [[0.0, 0.0]])) == pytest.approx(1.1 * np.log(2), rel=1e-6)


@pytest.mark.release("jax")
def test_half_precision_as_the_float_type_of_keras() -> None:
    keras.config.set_floatx("bfloat16")
    model = made("LiRank", dtype="mixed_bfloat16")
    assert np.isfinite(first_loss(model))
    tensors = kr.data.requests(LOG.events, model.schema, max_history=4).tensors([0, 1], list(model.serving_model.input))
    scores = model.serving_model(tensors)["click"]
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert np.isfinite(keras.ops.convert_to_numpy(scores)).all()


@pytest.mark.release("jax")
@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["CADET", "LiGR"])
def test_a_model_in_float32_does_not_depend_on_the_float_type_of_keras(kind: str) -> None:
    window = {"max_history": 300} if kind == "CADET" else {}  # bfloat16 holds integers up to 256
    logits, weights = [], None
    for floatx in ("float32", "bfloat16"):
        keras.config.set_floatx(floatx)
        keras.utils.set_random_seed(0)
        model = getattr(kr.models, kind)(LOG.schema.fit(LOG.events), **{**MODELS[kind], **window}, dtype="float32")
        weights = model.get_weights() if weights is None else weights
        model.set_weights(weights)
        model.compile("sgd", model.losses_by_task(), jit_compile=False)
        x, y, sample_weight = batch_of(model)
        logits.append(model.predict_on_batch(x))
        loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True), sample_weight=sample_weight)
        assert np.isfinite(keras.ops.convert_to_numpy(keras.ops.cast(loss, "float32")))
    assert all(np.array_equal(logits[0][task], logits[1][task]) for task in logits[0])
