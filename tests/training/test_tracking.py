"""Curves of a training for TensorBoard and MLflow."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.training.tracking.event_file import EventFile, masked
from tests.training.small import quick

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 3, 2) + b"\x08\x02\x00\x00\x00"  # the part that says the size


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=20, days=3, seed=0)


def records(path: Path) -> list[Any]:
    """The events of a file, by TensorFlow, which checks the sums."""
    summary = pytest.importorskip("tensorflow", reason="reads the files of the test").compat.v1.train.summary_iterator
    return list(summary(str(path)))


def scalars(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    (path,) = folder.glob("events.out.tfevents.*")
    for event in records(path):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(value.simple_value)
            assert len(found[value.tag]) == event.step + 1
    return found


def test_epochs_are_curves(log: Any, tmp_path: Path) -> None:
    board = kr.training.TensorBoardLog(tmp_path)
    _, history = quick(log, epochs=2, options={"validation": "validation"}, callbacks=[board])
    trained, known = scalars(tmp_path / "train"), scalars(tmp_path / "validation")
    np.testing.assert_allclose(trained["epoch_loss"], history["epochs"]["loss"], rtol=1e-5)
    np.testing.assert_allclose(known["epoch_click_auc"], history["epochs"]["val_click_auc"], rtol=1e-6)
    assert trained["epoch_learning_rate"][0] > trained["epoch_learning_rate"][1] > 0


@pytest.mark.one_backend
def test_the_file_is_that_of_tensorflow(tmp_path: Path) -> None:
    assert masked(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF  # the check value of CRC-32C
    file = EventFile(tmp_path)
    file.scalars({"a/b": 1.5, "\u00e4": -2.0}, 300)
    file.image("picture", PNG, 2**40)
    first, second, third = records(file.path)
    assert first.file_version == "brain.Event:2" and second.step == 300 and third.step == 2**40
    assert [(value.tag, value.simple_value) for value in second.summary.value] == [("a/b", 1.5), ("\u00e4", -2.0)]
    (picture,) = third.summary.value
    assert picture.tag == "picture" and picture.image.encoded_image_string == PNG
    assert (picture.image.width, picture.image.height) == (3, 2)
    damaged = bytearray(file.path.read_bytes())
    damaged[-20] ^= 1
    file.path.write_bytes(bytes(damaged))
    with pytest.raises(Exception, match="corrupted record"):  # control: the sums are checked
        records(file.path)


@pytest.mark.quickest
def test_runs_of_mlflow(log: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras-ranking\[mlflow\]'"):
            kr.training.MLflowLog(str(tmp_path))
        return
    monkeypatch.chdir(tmp_path)  # files of a run beside the store
    board = kr.training.MLflowLog("sqlite:///runs.db", experiment="feed", run_name="first")
    _, history = quick(log, tmp_path / "out", epochs=2, options={"validation": "validation"}, callbacks=[board])
    board.add_folder(tmp_path / "out", {"best": 1.0})
    assert board.run_id is not None
    run = board.client.get_run(board.run_id)
    assert run.info.status == "FINISHED" and run.data.params["hidden"] == "[8]" and run.data.metrics["best"] == 1.0
    curve = [metric.value for metric in board.client.get_metric_history(board.run_id, "val_click_auc")]
    np.testing.assert_allclose(curve, history["epochs"]["val_click_auc"])
    assert {file.path for file in board.client.list_artifacts(board.run_id)} == {"history.json", "schema.json"}


@pytest.mark.quickest
def test_without_mlflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras-ranking\[mlflow\]'"):
        kr.training.MLflowLog()
