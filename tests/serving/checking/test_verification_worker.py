"""The process that verifies a version: each fault of a graph becomes one message that names the output."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from keras_ranking.serving.checking import verification_worker
from keras_ranking.serving.checking.worker_process import ExportError, run_worker

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend


def result(monkeypatch: pytest.MonkeyPatch, folder: Path, signature: str, got: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What the worker writes where a graph gives `got` and Keras `expected`."""

    class Graph:
        def __init__(self, version: Path) -> None:
            self.signature = lambda name: SimpleNamespace(inputs={"x": None})
            self.run = lambda name, inputs: got

    monkeypatch.setattr("keras_ranking.serving.checking.saved_model.SavedModel", Graph)
    np.savez(folder / f"in-{signature}-0.npz", x=np.zeros(1, "float32"))
    np.savez(folder / f"out-{signature}-0.npz", **expected)
    assert verification_worker.main([str(folder), str(folder)]) == 0
    return dict(json.loads((folder / "result.json").read_text()))


ONE, TWO = np.ones(2, "float32"), np.full(2, 2.0, "float32")


@pytest.mark.parametrize(
    ("signature", "got", "expected", "message"),
    [
        ("raw", {"click": ONE}, {"like": ONE}, "outputs are ['click'], expected ['like']"),
        ("raw", {"click": ONE}, {"click": np.ones(3, "float32")}, "output 'raw click' is float32(2,), expected float32(3,)"),
        ("serving_default", {"click": ONE}, {"click": ONE.astype("float64")}, "output 'click' is float32(2,), expected float64(2,)"),
        ("raw", {"click": ONE * np.nan}, {"click": ONE}, "the graph does not run: output 'click' of 'raw' is not finite"),
        ("raw_features", {"age": ONE}, {"age": TWO}, "'age' is not encoded as the schema does: 2 of 2 values differ"),
    ],
)
def test_a_fault_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signature: str, got: dict[str, Any], expected: dict[str, Any], message: str
) -> None:
    assert result(monkeypatch, tmp_path, signature, got, expected)["problems"] == [message]


def test_the_largest_difference_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a probability as it is; of a number above 1 as a share of it."""
    for got, expected, worst in ((0.75 * ONE, 0.25 * ONE, 0.5), (0.25 * ONE, ONE, 0.75), (ONE, TWO, 0.5), (TWO, ONE, 1.0)):
        found = result(monkeypatch, tmp_path, "serving_default", {"click": got}, {"click": expected})
        assert found == {"worst": {"click": worst}, "problems": []}


def test_a_worker_that_dies_is_an_error_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the process that writes the graph failed: .*No module named keras_ranking.no_such_module"):
        run_worker("keras_ranking.no_such_module", [], tmp_path)
    (tmp_path / "error.txt").write_text("a disk is full")
    with pytest.raises(ExportError, match="^a disk is full$"):
        run_worker("keras_ranking.no_such_module", [], tmp_path)
