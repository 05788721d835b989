"""The report's metrics and figures in TensorBoard and MLflow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.reports import ReportOptions, RunReport, report_of
from tests.training.test_tracking import records

pytestmark = pytest.mark.quickest
SMALL = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=30, days=3, seed=0)


@pytest.fixture(scope="module")
def runs(log: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for seed, name in enumerate(("one", "two")):
        kr.training.train(log, "lirank", folder / name, epochs=1, seed=seed, options=SMALL, verbose=False)
    return [folder / "one", folder / "two"]


@pytest.fixture(scope="module")
def report(log: Any, runs: list[Path]) -> RunReport:
    return report_of(runs, log, options=ReportOptions(sample=20, draws=20))


def board(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("events.out.tfevents.*")
    return {value.tag: value for event in records(path) for value in event.summary.value}


def test_tensorboard_has_the_numbers_and_figures_of_the_page(report: RunReport, tmp_path: Path) -> None:
    assert report.to_tensorboard(tmp_path) == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "report"}
    for run in report.runs:
        found = board(tmp_path / run)
        for task in report.tasks:
            for metric, (value, low, _) in report.figures_by_task[task][run].items():
                assert found[f"{task}/{metric}"].simple_value == pytest.approx(value, rel=1e-6)
                assert (f"{task}/{metric}_low" in found) == (low == low), "NaN is left out"
        assert ("click/auc_difference" in found) == (run == "two")
    apart = board(tmp_path / "two")["click/auc_difference"].simple_value
    assert apart == pytest.approx(report.differences["click"]["two"]["auc"][0], rel=1e-5)
    pictures = board(tmp_path / "report")
    assert set(pictures) == set(report.plots())
    one = pictures["click: reliability"].image
    assert one.encoded_image_string.startswith(b"\x89PNG") and one.width > 300 and one.height > 200


def test_the_command_writes_them(log: Any, runs: list[Path], tmp_path: Path) -> None:
    log.events.to_parquet(tmp_path / "log.parquet")
    data = ["--data", f"parquet:{tmp_path / 'log.parquet'}"]
    command = ["report", str(runs[0]), *data, "--out", str(tmp_path / "report.html"), "--sample", "10"]
    assert main([*command, "--tensorboard", str(tmp_path / "board")]) == 0
    assert "click/auc" in board(tmp_path / "board" / "one") and "drift" in board(tmp_path / "board" / "report")


def test_mlflow_has_the_numbers_figures_and_the_page(report: RunReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("mlflow") is None:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'keras-ranking\[mlflow\]'"):
            report.to_mlflow(f"sqlite:///{tmp_path}/runs.db")
        return
    monkeypatch.chdir(tmp_path)  # files of a run beside the store
    from mlflow.tracking import MlflowClient

    run_id = report.to_mlflow("sqlite:///runs.db", experiment="feed")
    client = MlflowClient(tracking_uri="sqlite:///runs.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["one/click/auc"] == pytest.approx(report.figures_by_task["click"]["one"]["auc"][0])
    assert {file.path for file in client.list_artifacts(run_id)} == {"figures", "report.html", "report.json"}
    figures = {file.path for file in client.list_artifacts(run_id, "figures")}
    assert len(figures) == len(report.plots()) and "figures/click_ reliability.png" in figures


def test_without_mlflow_the_command_names_the_extra(
    log: Any, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    log.events.to_parquet(tmp_path / "log.parquet")
    command = ["report", str(runs[0]), "--data", f"parquet:{tmp_path / 'log.parquet'}", "--out", str(tmp_path / "report.html")]
    assert main([*command, "--mlflow", "sqlite:///runs.db"]) != 0
    assert "pip install 'keras-ranking[mlflow]'" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
