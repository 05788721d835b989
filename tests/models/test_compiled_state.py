"""A compiled ranker that is saved, pickled or copied is compiled, with its optimiser's state, and trains on as if nothing had happened."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedRequests, build_sequences
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.setup import compile_for
from tests.compiling import JIT

SMALL: dict[str, Any] = {
    "history_features": (),
    "features": ("age_hours", "topic"),
    "hidden": (4,),
    "cross_layers": 1,
    "rank": 2,
    "id_dim": 2,
}
EAGER = keras.backend.backend() != "jax"  # JAX compiles each operation of an eager step
SMALL |= {"dropout": 0.3, "calibration": False}


@pytest.fixture(scope="module")
def schema() -> Any:
    return LOG.schema.fit(LOG.events)


LOG = kr.data.simulate(members=6, days=2, seed=1)


@pytest.fixture(scope="module")
def batches(schema: Any) -> list[Any]:
    model = kr.models.LiRank(schema, **SMALL)
    found = kr.training.model_requests(model, build_sequences(LOG.events, schema))
    dataset = PackedRequests(found, 32, 2, names=model.input_columns, tasks=model.tasks, shuffle=False)
    return [dataset[number] for number in range(6)]


def plain(model: Any) -> None:
    losses = model.losses_by_task(pairwise_weight=0.1)
    own = {"click": [kr.metrics.GroupedAUC(model.boundaries), kr.metrics.Observed(keras.metrics.AUC(), model.boundaries)]}
    rate = keras.optimizers.schedules.CosineDecay(1e-2, 20)
    optimizer = keras.optimizers.AdamW(rate, global_clipnorm=1.0)
    model.compile(optimizer, losses, loss_weights={"click": 1.0, "like": 0.5}, weighted_metrics=own, run_eagerly=EAGER)


def trained(model: Any) -> None:
    """As `train` compiles: two optimisers, one of tables."""
    compile_for(model, TrainingOptions(table_optimizer="adagrad", jit_compile=JIT), 20, 8)
    model.run_eagerly = EAGER


def numbers(variables: Any) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))) for variable in variables]


def train(model: Any, batches: list[Any], first: int, last: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    keras.utils.set_random_seed(first)  # torch draws dropout from its own generator
    model.run_eagerly = EAGER
    for x, y, weight in batches[first:last]:
        found = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)
    return found


def saved(model: Any, folder: Path) -> Any:
    model.save(folder / "model.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return keras.saving.load_model(folder / "model.keras")


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "save": saved,
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "deepcopy": lambda model, _: copy.deepcopy(model),
}


@pytest.mark.few(1)
@pytest.mark.parametrize(("way", "compiled"), [("save", trained), ("pickle", plain), ("deepcopy", trained)])
def test_training_goes_on_as_if_it_had_not_stopped(schema: Any, batches: list[Any], way: str, compiled: Any, tmp_path: Path) -> None:
    keras.utils.set_random_seed(3)
    model = kr.models.LiRank(schema, **SMALL)
    compiled(model)
    train(model, batches, 0, 2)
    again = WAYS[way](model, tmp_path)
    assert again.compiled and again.optimizer is not model.optimizer
    assert int(again.optimizer.iterations) == 2
    assert again._compile_loss._user_loss_weights == model._compile_loss._user_loss_weights
    for one, other in ((model.variables, again.variables), (model.optimizer.variables, again.optimizer.variables)):
        for a, b in zip(numbers(one), numbers(other), strict=True):
            np.testing.assert_array_equal(a, b)
    before = numbers(model.trainable_variables)
    whole, resumed = train(model, batches, 2, 4), train(again, batches, 2, 4)
    assert whole.keys() == resumed.keys()
    for a, b in zip(numbers(model.variables), numbers(again.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    # Control: with a new optimiser the same steps lead elsewhere.
    fresh = WAYS["deepcopy"](model, tmp_path)
    compiled(fresh)
    train(fresh, batches, 4, 6)
    train(model, batches, 4, 6)
    assert (
        max(np.abs(a - b).max() for a, b in zip(numbers(model.trainable_variables), numbers(fresh.trainable_variables), strict=True)) > 1e-6
    )
    assert any((a != b).any() for a, b in zip(before, numbers(model.trainable_variables), strict=True))


def test_a_model_that_was_not_compiled_stays_so(schema: Any, tmp_path: Path) -> None:
    model = kr.models.LiRank(schema, **SMALL)
    assert not saved(model, tmp_path).compiled
    plain(model)
    model.save(tmp_path / "compiled.keras")
    assert not kr.models.load(tmp_path / "compiled.keras").compiled  # as documented: it is for scores


def test_settings_that_depend_on_the_machine_are_saved_as_given(schema: Any, tmp_path: Path) -> None:
    model = kr.models.LiRank(schema, **SMALL, dtype="mixed_float16")
    model.compile("adam", model.losses_by_task(), auto_scale_loss=False)
    config = saved(model, tmp_path).get_compile_config()
    assert (config["jit_compile"], config["auto_scale_loss"]) == ("auto", False)
    model.compile("adam", model.losses_by_task(), jit_compile=False)
    again = saved(model, tmp_path)
    assert again.jit_compile is False
    assert isinstance(again.optimizer, keras.optimizers.LossScaleOptimizer) and not again.optimizer.built
    for one in (model, again):
        one.optimizer.build(one.trainable_variables)
    model.optimizer.dynamic_scale.assign(512.0)
    assert float(saved(model, tmp_path).optimizer.dynamic_scale) == 512


@pytest.mark.parametrize("count", [1, 99])
def test_seed_states_that_do_not_fit(schema: Any, count: int) -> None:
    model = kr.models.LiRank(schema, **SMALL)
    model.load_own_variables({})  # a file of an earlier version has none
    with pytest.raises(ValueError, match=f"the file has {count} seed states, and the model 'lirank' has"):
        model.load_own_variables({"seed_generators": np.zeros((count, 2), "uint32")})


def test_classes_of_this_package_are_found_by_name(schema: Any) -> None:
    model = kr.models.LiRank(schema, **SMALL)
    model.compile("adam", "InRequestPairwise", weighted_metrics=["GroupedAUC"])
    assert {task: type(loss) for task, loss in model.loss.items()} == dict.fromkeys(model.tasks, kr.losses.InRequestPairwise)
    assert all(loss.boundaries == model.boundaries for loss in model.loss.values())
    with pytest.raises(ValueError, match="must be for logits"):
        model.compile("adam", "binary_crossentropy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"class_weight": {0: 1.0}}, "event_weights"), ({"validation_split": 0.2}, "Give `fit` data for validation")],
)
def test_what_fit_cannot_say_of_packed_rows_is_refused(schema: Any, settings: dict[str, Any], message: str) -> None:
    model = kr.models.LiRank(schema, **SMALL)
    plain(model)
    with pytest.raises(ValueError, match=message):
        model.fit({}, {}, **settings)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the other backends export")
def test_export_on_torch_says_what_to_call(schema: Any, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="serving.export"):
        kr.models.LiRank(schema, **SMALL).export(tmp_path / "out")
