"""An interrupted training reaches the weights of an uninterrupted one; a finished one is trained further on new events."""

from __future__ import annotations

import json
import shutil
import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training import read_checkpoint, train, warm_start
from keras_ranking.training.checkpoint import checkpoint_writer, fingerprint, restore
from tests import preloaded
from tests.compiling import JIT
from tests.training.crashes import CrashAfter

ROOT = Path(__file__).resolve().parents[2]
OPTIONS: dict[str, Any] = {
    "dim": 8,
    "num_heads": 2,
    "num_layers": 1,
    "id_dim": 4,
    "tower_hidden": (8,),
    "dropout": 0.3,
    "row_length": 64,
    "batch_size": 5,
    "learning_rate": 2e-3,
    "jit_compile": JIT,
    "position_half_life": "length",
    "shuffle_sessions": "epoch",
}
SETTINGS: dict[str, Any] = {"options": {**OPTIONS, "checkpoint_every": 2}, "epochs": 2, "verbose": False, "seed": 7}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=50, days=3, seed=1)


@pytest.fixture(scope="module")
def whole(log: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    model, history = train(log, out=folder, **SETTINGS)
    return folder, model, history


@pytest.fixture(scope="module")
def broken(log: Any, whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended in its second epoch, after a checkpoint in the middle of it and one step that is lost."""
    folder = tmp_path_factory.mktemp("runs") / "broken"
    steps = read_checkpoint(whole[0]).about["progress"]["step"]
    assert steps >= 10 and steps % 2 == 0
    with pytest.raises(RuntimeError, match="crash"):
        train(log, out=folder, callbacks=[CrashAfter(steps // 2 + 3)], **SETTINGS)
    assert not (folder / "model.keras").exists()
    about = read_checkpoint(folder).about
    assert not about["finished"]
    assert about["progress"]["step"] == (steps // 2 + 3) // 2 * 2 != steps // 2
    return folder


def differ(model: Any, other: Any) -> bool:
    return any(not np.array_equal(a, b) for a, b in zip(model.get_weights(), other.get_weights(), strict=True))


@pytest.mark.release("tensorflow", "jax")  # there a plain run takes those of test_recipe.py and test_weight_average.py
@pytest.mark.slow
def test_an_interrupted_run_reaches_the_same_weights(log: Any, whole: Any, broken: Path, tmp_path: Path) -> None:
    """Bit for bit: same kernels, same order of sums, dropout and the shuffle included."""
    _, model, history = whole
    folder = Path(shutil.copytree(broken, tmp_path / "copy"))
    resumed, again = train(log, out=folder, resume=True, **SETTINGS)
    assert not differ(model, resumed)
    for one, other in zip(model.optimizer.variables, resumed.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one.value), keras.ops.convert_to_numpy(other.value))
    for name, values in history["epochs"].items():
        assert again["epochs"][name] == pytest.approx(values, rel=1e-6)  # means of two parts of an epoch
    assert read_checkpoint(folder).about["finished"]
    # Control: the weights of the checkpoint differ from the final ones.
    before = read_checkpoint(broken).arrays
    assert any(not np.array_equal(array, read_checkpoint(folder).arrays[name]) for name, array in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["padded", "bucketed"])
@pytest.mark.quickest
def test_batches_of_several_lengths_are_resumed(log: Any, batching: str, tmp_path: Path) -> None:
    # numpy's numbers and ranges are valid options, and are in the checkpoint.
    changed = {"batching": batching, "row_length": 192, "batch_size": 8, "session_gap": np.int64(1800), "tower_boundaries": range(1, 3)}
    settings = {**SETTINGS, "options": {**SETTINGS["options"], **changed}, "epochs": 1}
    model, _ = train(log, out=tmp_path / "whole", **settings)
    assert read_checkpoint(tmp_path / "whole").about["progress"]["step"] >= 5
    with pytest.raises(RuntimeError, match="crash"):
        train(log, out=tmp_path / "broken", callbacks=[CrashAfter(3)], **settings)
    resumed, _ = train(log, out=tmp_path / "broken", resume=True, **settings)
    assert not differ(model, resumed)


@pytest.mark.quickest
def test_a_checkpoint_of_another_run(log: Any, whole: Any, broken: Path) -> None:
    for change, message in (
        ({"seed": 8}, "seed: 7 in the checkpoint, 8 here"),
        ({"epochs": 3}, "training.epochs: 2 in the checkpoint, 3 here"),
        ({"options": {**OPTIONS, "learning_rate": 1e-3}}, "training.learning_rate: 0.002 in the checkpoint, 0.001 here"),
        ({"options": {**OPTIONS, "dropout": 0.1}}, "arguments.dropout: 0.3 in the checkpoint, 0.1 here"),
    ):
        with pytest.raises(ValueError, match=message):
            train(log, out=broken, resume=True, **{**SETTINGS, **change})
    other = kr.data.simulate(members=50, days=3, seed=2)
    with pytest.raises(
        ValueError, match=r"made with other options or other data \(data: \w+ in the checkpoint, \w+ here\). Resume with the same."
    ):
        train(other, out=broken, resume=True, **SETTINGS)
    # Weights and delays come from columns that are not in a stream.
    sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
    ones, delays = {"click": np.ones(sequences.num_events, "float32")}, np.array([3.0, 9.0])
    prints = [fingerprint(sequences, ones, delays), fingerprint(sequences, {"click": 2 * ones["click"]}, delays)]
    prints += [fingerprint(sequences, {}, delays), fingerprint(sequences, ones, delays[::-1]), fingerprint(sequences, ones, None)]
    assert len(set(prints)) == 5 and fingerprint(sequences, dict(ones), delays.copy()) == prints[0]
    with pytest.raises(ValueError, match="is finished and cannot be resumed"):
        train(log, out=whole[0], resume=True, **SETTINGS)
    with pytest.raises(ValueError, match="is not finished: resume it first"):
        warm_start(log, broken, np.ones(len(log.events), dtype=bool))


@pytest.mark.one_backend
def test_no_checkpoint(log: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint.npz in .*: `train` writes it"):
        train(log, out=tmp_path, resume=True, **SETTINGS)
    with pytest.raises(ValueError, match="`resume` needs `out`"):
        train(log, resume=True)
    with pytest.raises(ValueError, match="`checkpoint_every` must be a positive integer"):
        train(log, options={"checkpoint_every": 0})
    (tmp_path / "checkpoint.npz").write_bytes(b"half of a file")
    with pytest.raises(ValueError, match="is not a checkpoint of this package"):
        read_checkpoint(tmp_path)


@pytest.mark.one_backend
def test_files_are_written_atomically(tmp_path: Path) -> None:
    from keras_ranking.training.checkpoint import write_whole

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space left")

    one, other = tmp_path / "one", tmp_path / "other"
    write_whole({one: lambda path: path.write_text("first"), other: lambda path: path.write_text("first")})
    # The first of two is written when the second fails: neither is changed, and no temporary file is left.
    with pytest.raises(OSError, match="no space left"):
        write_whole({one: lambda path: path.write_text("second"), other: fails})
    assert one.read_text() == other.read_text() == "first"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["one", "other"]
    write_whole({one: lambda path: path.write_text("second")})
    assert one.read_text() == "second"


@pytest.mark.slow
@pytest.mark.quickest
def test_the_daily_step(log: Any, whole: Any, tmp_path: Path) -> None:
    """Loss on new events alone, at the rate at which the cold start ended, with its optimiser's state."""
    folder, model, _ = whole
    new = (log.events["split"] == "validation").to_numpy()
    seen: dict[str, Any] = {}

    class Watch(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            seen["step"] = int(self.model.optimizer.iterations)
            seen["state"] = [keras.ops.convert_to_numpy(v.value).copy() for v in self.model.optimizer.variables]

        def on_train_end(self, logs: Any = None) -> None:
            seen["rate"] = float(self.model.optimizer.learning_rate)

    warmed, history = warm_start(log, folder, new, out=tmp_path, verbose=False, callbacks=[Watch()])
    assert history["train_events"] == new.sum()
    at, read = log.events["time"].to_numpy(), new | log.events["split"].isin(["train", "history"]).to_numpy()
    spans = {name: [datetime.fromisoformat(text).timestamp() for text in span] for name, span in history["data_span"].items()}
    assert spans == {"learned": [at[new].min(), at[new].max()], "read": [at[read].min(), at[read].max()]}
    steps = read_checkpoint(folder).about["progress"]["step"]
    assert seen["step"] == steps
    for kept, variable in zip(seen["state"], model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(kept, keras.ops.convert_to_numpy(variable.value))
    assert seen["rate"] == pytest.approx(0.01 * 2e-3)
    assert seen["rate"] == pytest.approx(float(model.optimizer.learning_rate), rel=0.05)  # where the decay had come to
    assert differ(model, warmed)
    largest = max(float(np.abs(a - b).max()) for a, b in zip(model.get_weights(), warmed.get_weights(), strict=True))
    assert largest < 50 * 0.01 * 2e-3  # small steps: no new warm-up to the full rate
    about = read_checkpoint(tmp_path).about
    assert about["finished"] and about["warm"] == 1 and about["progress"]["step"] > steps
    # The step has another seed; a simulated log keeps the seed of the cold start.
    assert history["log_seed"] == about["log_seed"] == read_checkpoint(folder).about["seed"] != about["seed"]
    # The next day continues from this step.
    again, _ = warm_start(log, tmp_path, new, verbose=False)
    assert differ(warmed, again)
    for marks, message in ((new[:-1], "`new` must have one bool for each row"), (new & False, "`new` must be True for at least one row")):
        with pytest.raises(ValueError, match=message):
            warm_start(log, folder, marks)


@pytest.mark.slow
@pytest.mark.quickest
def test_a_small_day_with_propensities(log: Any, tmp_path: Path) -> None:
    """A day of one request is too small for an estimate of propensities: earlier training rows are included."""
    ipw = {"ipw": "all", "ipw_options": {"method": "random", "randomised": "shuffled", "boundaries": (1, 4)}}
    train(log, out=tmp_path, **{**SETTINGS, "options": {**OPTIONS, **ipw}, "epochs": 1})
    late = log.events[log.events["split"] == "validation"]
    quiet = late.groupby("request_id")["click"].transform("sum") == 0
    new = (log.events["request_id"] == late["request_id"][quiet].iloc[0]).to_numpy()
    _, history = warm_start(log, tmp_path, new, verbose=False)
    assert history["train_events"] == new.sum() and history["propensities"]["click"]["of"] == new.sum()


PROGRAM = """
import sys
import keras_ranking as kr
from tests.training.test_resume import SETTINGS
log = kr.data.simulate(members=50, days=3, seed=1)
kr.training.train(log, out=sys.argv[1], **{**SETTINGS, "epochs": 8}, resume=len(sys.argv) > 2)
"""


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.quickest
def test_a_process_that_was_killed(tmp_path: Path) -> None:
    """SIGKILL at some step; the resumed process ends with the weights of one that ran through."""

    def start(folder: Path, *more: str) -> preloaded.Process:
        command = ["-c", PROGRAM, str(folder), *more]
        return preloaded.Process(command, keras.backend.backend(), {"PYTHONPATH": str(ROOT)}, ROOT, tmp_path / "out", tmp_path / "err")

    assert start(tmp_path / "whole").wait() == 0
    killed = start(tmp_path / "killed")
    limit = time.monotonic() + 240
    while not (tmp_path / "killed" / "checkpoint.npz").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(0.05)
    killed.kill()
    assert killed.wait(60) == -signal.SIGKILL
    about = read_checkpoint(tmp_path / "killed").about
    assert not about["finished"] and not (tmp_path / "killed" / "model.keras").exists()
    assert start(tmp_path / "killed", "resume").wait() == 0
    one, other = (read_checkpoint(tmp_path / name) for name in ("whole", "killed"))
    assert one.about["progress"]["step"] == other.about["progress"]["step"] > about["progress"]["step"]
    for name, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[name])
    losses = [json.loads((tmp_path / name / "history.json").read_text())["epochs"]["loss"] for name in ("whole", "killed")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_checkpoint_of_bfloat16_is_exact(tmp_path: Path) -> None:
    def made(seed: int) -> Any:
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, dtype="bfloat16")])
        model.compile(keras.optimizers.Adam(), "mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)
        return model

    one, other = made(0), made(1)
    checkpoint_writer(one, {"finished": True})(tmp_path / "checkpoint.npz")
    restore(read_checkpoint(tmp_path), other)
    for a, b in zip(one.variables, other.variables, strict=True):
        assert keras.backend.standardize_dtype(b.dtype) == keras.backend.standardize_dtype(a.dtype)
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(keras.ops.cast(v.value, "float32")) for v in (a, b)))
