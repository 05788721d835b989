"""Worker processes with real trainings: killed, cancelled and taken up."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.training import read_checkpoint, train
from keras_ranking.tuning import Float, Search, Study
from keras_ranking.tuning.dashboard import Dashboard
from keras_ranking.tuning.rankers import trial_options
from keras_ranking.tuning.store import open_store
from keras_ranking.tuning.studies import make
from keras_ranking.tuning.supervising import supervise
from tests import preloaded
from tests.training.small import SMALL
from tests.tuning.studies import states, store_of, wait_for
from tests.tuning.test_running import press

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.quickest, pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A log that other processes can open."""
    folder = tmp_path_factory.mktemp("log")
    log = kr.data.simulate(members=40, days=4, seed=0)
    log.events.to_parquet(folder / "log.parquet")
    log.schema.save(folder / "schema.json")
    return {"source": f"parquet:{folder / 'log.parquet'}", "schema": str(folder / "schema.json")}


def study(folder: Path, data: dict[str, Any], trials: int, epochs: int, **search: Any) -> Any:
    search = {"heartbeat": 1, "keep": "all", "checkpoint_every": 2, **search}
    settings = {"search": Search(**search), "space": {"learning_rate": Float(1e-3, 1e-2, log=True)}, "trials": trials, "data": data}
    return make(kr.data.open_log(**data), "lirank", folder, {**settings, "options": {**SMALL, "epochs": epochs}})[0]


def worker(folder: Path, logs: Path) -> preloaded.Process:
    command = ["-m", "keras_ranking.cli", "tune", "--join", str(folder), "--worker"]
    return preloaded.Process(command, "torch", {"PYTHONPATH": str(ROOT)}, ROOT, logs / "out", logs / "err")


def test_a_killed_workers_trial_reaches_the_weights_of_an_uninterrupted_one(data: Any, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    study(folder, data, trials=2, epochs=4)
    first = worker(folder, tmp_path)
    checkpoint = folder / "trials" / "0000" / "seed_0" / "checkpoint.npz"
    wait_for(checkpoint.is_file)
    first.kill()
    first.wait()
    about = read_checkpoint(checkpoint.parent).about
    assert not about["finished"] and about["progress"]["step"] > 0, "it was in the middle"
    second = Study(folder)
    assert second.join(verbose=False) == 2
    rows = second.trials
    assert rows["state"].tolist() == ["COMPLETE", "COMPLETE"] and rows["attempt"].tolist() == [2, 1]
    store = open_store(folder)
    killed, again = (one for one in store.study().get_trials() if one.user_attrs["slot"] == 0)
    assert killed.user_attrs["worker"] != again.user_attrs["worker"] and killed.params == again.params
    options = trial_options(store.settings, again.params)
    whole, history = train(kr.data.open_log(**data), "lirank", options=options, seed=0, verbose=False)
    assert again.value == history["epochs"]["val_log_loss"][-1]
    for mine, theirs in zip(kr.models.load(checkpoint.parent).get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_cancelling_stops_a_training_and_the_worker_goes_on(data: Any, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    store = study(folder, data, trials=3, epochs=100_000)
    process = worker(folder, tmp_path)
    board = Dashboard(store, 0)
    board.start()

    def trains(number: int) -> bool:
        trial = store.study().get_trials()[number]
        return trial.state.name == "RUNNING" and len(trial.intermediate_values) > 1

    try:
        wait_for(lambda: trains(0), 120)
        shown = len(store.study().get_trials()[0].intermediate_values)
        assert shown > 1, "epochs are visible while it runs"
        assert main(["tune", "--study", str(folder), "--cancel", "0"]) == 0
        seconds = {"command": wait_for(lambda: store.study().get_trials()[1].state.name == "RUNNING")}
        wait_for(lambda: trains(1), 120)
        press(store, board, 1)
        seconds["dashboard"] = wait_for(lambda: store.study().get_trials()[2].state.name == "RUNNING")
        wait_for(lambda: trains(2), 120)
        assert process.poll() is None, "the same worker goes on"
        main(["tune", "--study", str(folder), "--cancel", "2"])
        assert process.wait() == 0
    finally:
        board.close()
        process.kill()
    assert max(seconds.values()) < 5, seconds
    assert len(store.study().get_trials()) == 3, "none is tried again"
    assert Study(folder).trials["told"].tolist() == ["cancelled"] * 3


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    """Without trainings: the first worker kills itself in its trial, as a machine without memory would."""
    store = store_of(tmp_path / "study", 2)
    code = """
import os, signal, sys
from pathlib import Path
from keras_ranking.tuning.running import work
from keras_ranking.tuning.store import open_store
def objective(run):
    mark = Path(sys.argv[1], "killed")
    if not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0
work(open_store(sys.argv[1]), objective, verbose=False)
"""
    begun: list[Any] = []

    def start(command: Any, env: Any) -> Any:
        process = preloaded.Process(command, "torch", {"PYTHONPATH": str(ROOT)}, ROOT, tmp_path / "out", tmp_path / "err")
        process.terminate = process.kill  # type: ignore[attr-defined]
        begun.append(process)
        return process

    assert supervise(store, ["-c", code, str(store.folder)], 1, start=start) == 0
    assert states(store) == ["COMPLETE", "COMPLETE"]
    assert [process.returncode for process in begun] == [-signal.SIGKILL, 0]


def test_a_worker_that_cannot_work_is_not_started_again_and_again(tmp_path: Path) -> None:
    store, begun = store_of(tmp_path / "study", 1), []

    class Fails:
        returncode = 2

        def __init__(self, command: Any, env: Any) -> None:
            begun.append(command)

        def poll(self) -> int:
            return 2

        terminate = wait = poll

    assert supervise(store, [sys.executable], 2, start=Fails) == 2
    assert len(begun) == 2


def test_a_cluster_shares_a_database(tmp_path: Path) -> None:
    """PostgreSQL, where KR_POSTGRESQL names a database to use: trials of two workers in folders of their own."""
    import os
    import threading

    url = os.environ.get("KR_POSTGRESQL")
    if not url:
        pytest.skip("KR_POSTGRESQL names no database")
    from keras_ranking.tuning.places import plan
    from keras_ranking.tuning.running import work
    from keras_ranking.tuning.settings import Settings
    from keras_ranking.tuning.store import create

    name = f"test {time.time()}"
    settings = Settings("", Search(heartbeat=1), {"x": Float(0.0, 1.0)}, 6)
    plan(create(tmp_path / "one", settings, url, name), 6)
    ran: list[str] = []

    def objective(run: Any) -> float:
        time.sleep(0.05)
        ran.append(run.folder.name)
        return 1.0

    places = [open_store(tmp_path / place, url, name) for place in ("one", "two")]
    threads = [threading.Thread(target=work, args=(place, objective), kwargs={"verbose": False}) for place in places]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ran) == [f"{number:04d}" for number in range(6)]
