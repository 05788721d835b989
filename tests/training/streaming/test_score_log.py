"""`score_log` writes what `predict_events` gives, in whole files, and goes on after an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.training.streaming import score_log as module
from tests.data.shards.logs import mixed_log
from tests.member_columns import log_of

pytestmark = pytest.mark.quickest


@pytest.fixture(scope="module")
def log() -> kr.data.Log:
    return mixed_log(500)


@pytest.fixture(scope="module")
def shards(log: kr.data.Log, tmp_path_factory: pytest.TempPathFactory) -> kr.data.ShardedLog:
    return kr.data.prepare(log, tmp_path_factory.mktemp("log") / "shards", shards=3)


@pytest.fixture(scope="module")
def folder(shards: kr.data.ShardedLog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    kr.training.train(shards, "cadet", out, epochs=1, options={"dim": 8, "num_layers": 1, "num_heads": 2, "row_length": 64}, verbose=False)
    return out


def expected(folder: Path, log: kr.data.Log) -> pd.DataFrame:
    """Scores by `predict_events` of the whole log."""
    model = kr.models.load(folder)
    sequences = kr.data.build_sequences(log.events, model.schema)
    found = kr.training.predict_events(model, kr.data.pack(sequences, 512))
    columns = {task: np.asarray(model.served(towers)) for task, towers in found.items()}
    made = pd.DataFrame({"row": sequences.rows, **columns}).sort_values("row", ignore_index=True)
    return made.assign(request=log.events["request"].to_numpy(), member=log.events["member"].to_numpy())


def read(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out).sort_values("row", ignore_index=True)


def test_scores_are_those_of_predict_events(log: kr.data.Log, shards: kr.data.ShardedLog, folder: Path, tmp_path: Path) -> None:
    wanted = expected(folder, log)
    about = kr.training.score_log(folder, shards, tmp_path / "shards", row_length=512)
    kr.training.score_log(kr.models.load(folder), log, tmp_path / "frame", row_length=512)
    assert about["rows"] == len(log.events)
    assert len(about["files"]) == 3
    for out in (tmp_path / "shards", tmp_path / "frame"):
        found = read(out)
        for name in ("row", "request", "member"):
            assert found[name].tolist() == wanted[name].tolist(), name
        for task in ("click", "like"):
            np.testing.assert_allclose(found[task], wanted[task], rtol=1e-5)


@pytest.mark.parametrize("model", ["cadet", "lirank"])
def test_columns_of_the_member(model: str, tmp_path: Path) -> None:
    """Trained on one shard as on the log, and scored as `predict_events` scores; a control: other values, other scores."""
    log = log_of(kr.data.simulate(members=12, days=3, seed=0))
    options: dict[str, Any] = {"row_length": 64, "batch_size": 4, "id_dim": 4}
    options |= (
        {"dim": 8, "num_layers": 1, "num_heads": 2} if model == "cadet" else {"hidden": (8,), "cross": "none", "history_features": ()}
    )
    shards = kr.data.prepare(log, tmp_path / "one", shards=1)
    made = [kr.training.train(given, model, epochs=1, options=options, verbose=False)[0] for given in (log, shards)]
    for one, other in zip(made[0].get_weights(), made[1].get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    many = kr.data.prepare(log, tmp_path / "many", shards=3)
    kr.training.train(many, model, tmp_path / "run", epochs=1, options=options, verbose=False)
    moved = log.events.assign(tenure=log.events["tenure"].fillna(0.0) + 50.0)
    scores = []
    for name, given in (("shards", many), ("frame", log), ("moved", kr.data.Log(moved, log.schema))):
        kr.training.score_log(tmp_path / "run", given, tmp_path / name, row_length=512)
        scores.append(read(tmp_path / name)["click"].to_numpy())
    sequences = kr.data.build_sequences(log.events, log.schema)
    loaded = kr.models.load(tmp_path / "run")
    data = kr.training.model_requests(loaded, sequences) if loaded.form == "requests" else kr.data.pack(sequences, 512)
    wanted = np.asarray(loaded.served(kr.training.predict_events(loaded, data)["click"]))
    np.testing.assert_allclose(scores[0], wanted[np.argsort(sequences.rows)], rtol=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-5)
    assert np.abs(scores[2] - scores[0]).max() > 1e-4


def test_one_split_is_scored_without_labels(log: kr.data.Log, shards: kr.data.ShardedLog, folder: Path, tmp_path: Path) -> None:
    whole = read_after(kr.training.score_log(folder, log, tmp_path / "whole", row_length=512), tmp_path / "whole")
    without = kr.data.Log(log.events.drop(columns="like"), log.schema, log.name)
    kr.training.score_log(folder, without, tmp_path / "frame", split="validation", row_length=512)
    kr.training.score_log(folder, shards, tmp_path / "shards", split="validation", row_length=512)
    rows = np.flatnonzero(log.events["split"] == "validation")
    for out in (tmp_path / "frame", tmp_path / "shards"):
        found = read(out)
        assert found["row"].tolist() == rows.tolist()
        np.testing.assert_allclose(found["like"], whole["like"].to_numpy()[rows], rtol=1e-5)


def read_after(about: dict[str, Any], out: Path) -> pd.DataFrame:
    assert about["rows"] > 0
    return read(out)


def test_scoring_goes_on_where_it_was_stopped(shards: kr.data.ShardedLog, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    written: list[str] = []
    write = module._write_table

    def stopping(table: Any, path: Path) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write(table, path)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_table", stopping)
        with pytest.raises(KeyboardInterrupt):
            kr.training.score_log(folder, shards, tmp_path / "scores")
    assert not (tmp_path / "scores" / "_scores.json").exists()
    first = (tmp_path / "scores" / "part-00000.parquet").stat().st_mtime_ns
    kr.training.score_log(folder, shards, tmp_path / "scores")
    assert (tmp_path / "scores" / "part-00000.parquet").stat().st_mtime_ns == first
    whole = read_after(kr.training.score_log(folder, shards, tmp_path / "whole"), tmp_path / "whole")
    pd.testing.assert_frame_equal(read(tmp_path / "scores"), whole)
    with pytest.raises(FileExistsError, match="must be empty or hold scores of the same model and log"):
        kr.training.score_log(folder, shards, tmp_path / "scores", split="test")


_SCORE = """
import sys
import keras_ranking as kr
from keras_ranking.training.streaming import score_log as module
write = module._write_table
def slow(table, path):
    write(table, path)
    print(path.name, flush=True)
    import time; time.sleep(5)
module._write_table = slow
kr.training.score_log(sys.argv[1], kr.data.ShardedLog(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.release
def test_a_scoring_that_is_killed_gives_the_same(shards: kr.data.ShardedLog, folder: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _SCORE, str(folder), str(shards.folder), str(tmp_path / "scores")]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "part-00000.parquet"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in (tmp_path / "scores").glob("*.parquet")] == ["part-00000.parquet"]
    found = read_after(kr.training.score_log(folder, shards, tmp_path / "scores"), tmp_path / "scores")
    pd.testing.assert_frame_equal(found, read_after(kr.training.score_log(folder, shards, tmp_path / "whole"), tmp_path / "whole"))


def test_workers_score_shards(shards: kr.data.ShardedLog, folder: Path, tmp_path: Path) -> None:
    about = kr.training.score_log(folder, shards, tmp_path / "scores", run=lambda function, numbers: [function(n) for n in numbers])
    assert about["rows"] == shards.events
    pd.testing.assert_frame_equal(
        read(tmp_path / "scores"), read_after(kr.training.score_log(folder, shards, tmp_path / "w"), tmp_path / "w")
    )
    with pytest.raises(ValueError, match="`run` needs the folder of a model"):
        kr.training.score_log(kr.models.load(folder), shards, tmp_path / "other", run=map)
