"""Command line: the steps from a log to a served score."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.commands.shell import ROOT, SMALL, run

pytestmark = pytest.mark.one_backend

TRAIN = ("--epochs", "1", "--set", "row_length=128", "--set", "dim=16", "--set", "num_heads=2", "--set", "num_layers=1")
METRICS = {
    *("auc", "impression_auc", "ndcg_at_10", "mrr"),
    *("log_loss", "normalized_entropy", "calibration_error", "observed_over_expected"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small log, and a CADET trained on it for one epoch."""
    folder = tmp_path_factory.mktemp("steps")
    done = run("simulate", *SMALL, "--out", "log.parquet", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = run("train", *log_options(), "--out", "cadet", *TRAIN, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def log_options() -> tuple[str, ...]:
    return ("--data", "parquet:log.parquet", "--schema", "log.schema.json")


@pytest.fixture(scope="module")
def request_file(trained: Path) -> dict[str, Any]:
    """One validation request with the member's earlier events, as input of `score`."""
    events = pd.read_parquet(trained / "log.parquet")
    shown = events[events["split"] == "validation"]
    first = shown[shown["request_id"] == shown["request_id"].iloc[-1]]
    earlier = events[(events["member_id"] == first["member_id"].iloc[0]) & (events["time"] < first["time"].iloc[0])]
    drop = ["click", "like", "dwell_seconds", "position"]
    content = {
        "time": int(first["time"].iloc[0]),
        "history": json.loads(earlier.to_json(orient="records")),
        "candidates": json.loads(first.drop(columns=drop).to_json(orient="records")),
    }
    (trained / "request.json").write_text(json.dumps(content))
    earlier.to_parquet(trained / "history.parquet")
    first.drop(columns=drop).to_csv(trained / "candidates.csv", index=False)
    return content


@pytest.mark.slow
def test_train_leaves_three_files(trained: Path) -> None:
    assert {"model.keras", "schema.json", "history.json"} <= {path.name for path in (trained / "cadet").iterdir()}
    history = json.loads((trained / "cadet" / "history.json").read_text())
    assert history["seed"] == 0
    assert all(np.isfinite(values).all() for values in history["epochs"].values())


@pytest.mark.slow
def test_evaluate_writes_every_metric(trained: Path) -> None:
    arguments = ("evaluate", "cadet", *log_options(), "--split", "validation", "--json", "figures/validation.json")
    done = run(*arguments, backend="tensorflow", cwd=trained)
    assert done.returncode == 0, done.stderr
    figures = json.loads((trained / "figures" / "validation.json").read_text())
    assert set(figures) == {"click", "like"}
    assert all(set(figures[task]) == METRICS for task in figures)
    assert 0.3 < figures["click"]["auc"] < 1
    for name, value in figures["click"].items():
        assert re.search(rf"^{name} +{value:.4f}", done.stdout, flags=re.MULTILINE)
    assert "Traceback" not in done.stderr
    assert "oneDNN" not in done.stderr, "TensorFlow's log lines are suppressed"


@pytest.mark.slow
def test_evaluate_of_an_unknown_split_is_2(trained: Path) -> None:
    done = run("evaluate", "cadet", *log_options(), "--split", "monday", cwd=trained)
    assert done.returncode == 2
    assert "has no rows with split 'monday'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.release
def test_same_seed_same_model(trained: Path) -> None:
    for name, seed in (("again", "0"), ("other", "1")):
        done = run("train", *log_options(), "--out", name, *TRAIN, "--seed", seed, "--quiet", cwd=trained)
        assert done.returncode == 0, done.stderr
    losses = {name: json.loads((trained / name / "history.json").read_text())["epochs"]["loss"] for name in ("cadet", "again", "other")}
    assert losses["cadet"] == losses["again"]
    assert losses["cadet"] != losses["other"]


@pytest.mark.slow
def test_score_in_this_process(trained: Path, request_file: dict[str, Any]) -> None:
    done = run("score", "request.json", "--model", "cadet", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    ranked = json.loads(done.stdout)
    assert [row["rank"] for row in ranked] == list(range(1, len(request_file["candidates"]) + 1))
    assert [row["item_id"] for row in ranked] == [request_file["candidates"][row["candidate"]]["item_id"] for row in ranked]
    clicks = [row["click"] for row in ranked]
    assert clicks == sorted(clicks, reverse=True)
    tables = ("--candidates", "candidates.csv", "--history", "history.parquet", "--time", str(request_file["time"]))
    done = run("score", *tables, "--model", "cadet", "--json", cwd=trained)
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)  # from another process, with other alignment of buffers: equal to float rounding
    assert [row["candidate"] for row in again] == [row["candidate"] for row in ranked]
    for task in ("click", "like"):
        assert [row[task] for row in again] == pytest.approx([row[task] for row in ranked], rel=1e-6)
    done = run("score", "request.json", "--model", "cadet", "--task", "like", "--top", "3", cwd=trained)
    assert len(done.stdout.splitlines()) == 2 + 3


@pytest.mark.slow
def test_score_of_a_bad_request_is_2(trained: Path, request_file: dict[str, Any]) -> None:
    candidates = [{name: value for name, value in row.items() if name != "age_hours"} for row in request_file["candidates"]]
    (trained / "bad.json").write_text(json.dumps({**request_file, "candidates": candidates}))
    done = run("score", "bad.json", "--model", "cadet", cwd=trained)
    assert done.returncode == 2
    assert "age_hours" in done.stderr.splitlines()[-1]
    done = run("score", "request.json", "--model", "cadet", "--task", "clik", cwd=trained)
    assert done.returncode == 2
    assert "unknown task 'clik'" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_export_serve_score_stop(trained: Path, request_file: dict[str, Any]) -> None:
    done = run("export", "cadet", "--out", "served/cadet", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert (trained / "served" / "cadet" / "1" / "saved_model.pb").is_file()
    local = json.loads(run("score", "request.json", "--model", "cadet", "--json", cwd=trained).stdout)
    command = [sys.executable, "-m", "keras_ranking.cli", "serve", "served/cadet", "--rest-port", "0", "--grpc-port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=trained, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as server:
        try:
            lines = [server.stdout.readline() for _ in range(3)]
            assert "serving cadet version 1" in lines[0], server.stderr.read()
            rest = re.search(r"(http://[\d.:]+)/v1/models/cadet:predict", lines[1])[1]
            grpc = lines[2].split()[-1]
            for address in (grpc, rest):
                done = run("score", "request.json", "--server", address, "--schema", "cadet/schema.json", "--json", cwd=trained)
                assert done.returncode == 0, done.stderr
                remote = json.loads(done.stdout)
                assert [row["candidate"] for row in remote] == [row["candidate"] for row in local]
                np.testing.assert_allclose([row["click"] for row in remote], [row["click"] for row in local], atol=1e-5, rtol=0)
            wrong = run("score", "request.json", "--server", grpc, "--name", "cader", "--schema", "cadet/schema.json", cwd=trained)
            assert wrong.returncode == 2
            assert "cader" in wrong.stderr.splitlines()[-1]
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0
    gone = run("score", "request.json", "--server", grpc, "--schema", "cadet/schema.json", cwd=trained)
    assert gone.returncode == 1
    assert "Traceback" not in gone.stderr


@pytest.mark.slow
def test_serve_without_a_version_is_2(trained: Path) -> None:
    (trained / "empty").mkdir(exist_ok=True)
    for folder in ("empty", "nowhere"):
        done = run("serve", folder, "--rest-port", "0", "--grpc-port", "0", cwd=trained)
        assert done.returncode == 2
        assert folder in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
