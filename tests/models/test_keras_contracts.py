"""What users of Keras do with any model, done with a ranker: quantise, plot, clone, back up and restore after a kill."""

from __future__ import annotations

import copy
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedRequests, build_sequences
from tests import preloaded

LIRANK: dict[str, Any] = {
    "history_features": (),
    "features": ("age_hours", "topic"),
    "hidden": (4,),
    "cross_layers": 1,
    "rank": 2,
    "id_dim": 4,
    "calibration": False,
}
CADET: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 2, "id_dim": 4, "tower_hidden": (4,)}
EAGER = keras.backend.backend() != "jax"  # JAX compiles each operation of an eager step
LOG = kr.data.simulate(members=6, days=2, seed=1)
SCHEMA = LOG.schema.fit(LOG.events)
MAKE: dict[str, Callable[[], Any]] = {
    "LiRank": lambda: kr.models.LiRank(SCHEMA, **LIRANK),
    "CADET": lambda: kr.models.CADET(SCHEMA, **CADET),
}
EPOCHS, STEPS = 3, 5


def compiled(name: str = "LiRank") -> Any:
    keras.utils.set_random_seed(3)
    model = MAKE[name]()
    model.compile(keras.optimizers.AdamW(1e-2), model.losses_by_task(), run_eagerly=EAGER)
    return model


def scores(model: Any) -> np.ndarray:
    found = kr.data.requests(LOG.events, SCHEMA, max_history=16)
    tensors = found.tensors([3, 4, 5], list(model.serving_model.input))
    return np.asarray(keras.ops.convert_to_numpy(model.serving_model(tensors)["click"]))


def test_a_clone_is_refused() -> None:
    model = compiled()
    with pytest.raises(ValueError, match="copies layers one by one, and would lose what serves the model 'lirank'"):
        keras.models.clone_model(model)
    with pytest.raises(ValueError, match="copies layers one by one"):
        keras.models.clone_model(model, clone_function=lambda layer: type(layer).from_config(layer.get_config()))
    # What the message names works.
    fresh, same = type(model).from_config(model.get_config()), copy.deepcopy(model)
    assert fresh.compiled is False and same.compiled
    np.testing.assert_array_equal(scores(same), scores(model))
    assert np.abs(scores(fresh) - scores(model)).max() > 1e-4


@pytest.mark.parametrize("name", list(MAKE))
def test_quantised_layers_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = compiled(name)
    model.optimizer.build(model.trainable_variables)
    before, kernels = scores(model), len(model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.quantize("int8")
        after = scores(model)
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
    layers = [layer for layer in model._flatten_layers() if type(layer) is keras.layers.Dense]
    assert layers and all(keras.backend.standardize_dtype(layer._kernel.dtype) == "int8" for layer in layers)
    assert len(model.trainable_variables) == kernels - len(layers)
    assert 0 < np.abs(after - before).max() < 0.05
    np.testing.assert_allclose(scores(again), after, atol=1e-6)
    assert again.compiled and not again.optimizer.built
    # Tables are another step, which keeps the layers.
    small = kr.serving.quantize_embeddings(again)
    assert small.quantized and np.abs(scores(small) - after).max() < 0.05
    with pytest.raises(ValueError, match="already quantized"):
        again.quantize("int8")


def test_what_a_saved_ranker_would_not_restore_is_refused() -> None:
    model = compiled()
    with pytest.raises(ValueError, match="`mode` must be 'int8'"):
        model.quantize("int4")
    config = keras.quantizers.Int8QuantizationConfig(weight_quantizer=keras.quantizers.AbsMaxQuantizer(axis=0, value_range=(-100, 100)))
    with pytest.raises(ValueError, match="`config` must be None"):
        model.quantize(config=config)
    with pytest.raises(ValueError, match="`filters` must leave"):
        model.quantize("int8", filters="no layer has this name")
    with pytest.raises(ValueError, match="layers in int8 that this model does not have: \\['other/kernel'\\]"):
        type(model).from_config({**model.get_config(), "int8": ["other/kernel"]})
    model.quantize("int8", filters="dense_0")
    assert len([layer for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]) == 1
    assert model.get_config()["int8"] == [layer.path for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]


@pytest.mark.one_backend
@pytest.mark.skipif(shutil.which("dot") is None, reason="the program `dot` of graphviz is not installed")
def test_plot_model(tmp_path: Path) -> None:
    model = compiled()
    keras.utils.plot_model(model, tmp_path / "model.png", show_shapes=True)
    assert (tmp_path / "model.png").stat().st_size > 10_000
    drawn = keras.utils.model_to_dot(model).to_string()
    assert all(layer.name in drawn for layer in model.layers) and drawn.count("->") >= len(model.layers) - 1


def fit(folder: Path, *callbacks: Any) -> Any:
    model = compiled()
    found = kr.training.model_requests(model, build_sequences(LOG.events, SCHEMA))
    batches = PackedRequests(found, 32, 2, names=model.input_columns, tasks=model.tasks, shuffle=False)
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    assert len(batches) == STEPS
    history = model.fit(batches, epochs=EPOCHS, verbose=0, callbacks=[*callbacks, backup], shuffle=False)
    return model, history


class Killed(keras.callbacks.Callback):
    """Ends the process as kill -9 does, in the third epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        import os

        if self.model.optimizer.iterations == 2 * STEPS + 1:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: str) -> None:
    """What the other process runs."""
    fit(Path(folder), Killed())


def test_backup_and_restore_after_a_kill(tmp_path: Path) -> None:
    code = "import sys; from tests.models.test_keras_contracts import killed; killed(sys.argv[1])"
    done = preloaded.run(["-c", code, str(tmp_path)], keras.backend.backend(), {"PYTHONPATH": str(preloaded.ROOT)})
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.stderr[-2000:]
    assert (tmp_path / "backup" / "training_metadata.json").is_file()
    restored, history = fit(tmp_path)
    assert history.epoch == [EPOCHS - 1]  # two epochs were in the backup
    whole, _ = fit(tmp_path / "other")
    for one, other in ((whole.variables, restored.variables), (whole.optimizer.variables, restored.optimizer.variables)):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(a.value), keras.ops.convert_to_numpy(b.value))
