"""Workers in this process, with functions for trainings: what fails, is cancelled or dies ends no study."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from keras_ranking.tuning.dashboard import HOST, Dashboard
from keras_ranking.tuning.places import ATTEMPTS, cancel, claim, latest, left, plan, told
from keras_ranking.tuning.running import Run, work
from keras_ranking.tuning.store import ENVIRONMENT, create, open_store, without_password
from keras_ranking.tuning.watch import TrialEnded, Watch
from tests.tuning.studies import SPACE, states, store_of, wait_for

pytestmark = pytest.mark.quickest


def test_trials_that_fail_end_no_study(tmp_path: Path) -> None:
    def objective(run: Run) -> float:
        number = int(run.folder.name)
        if number == 0:
            return float("nan")
        if number == 1:
            run.report(float("inf"), 0)
        if number == 2:
            raise MemoryError
        if number == 3:
            raise ValueError("`dim` must be a multiple of `num_heads`.\nReceived: dim=3")
        return number

    store = store_of(tmp_path, 5)
    assert work(store, objective, verbose=False) == 5
    assert states(store) == ["FAIL"] * 4 + ["COMPLETE"]
    study = store.study()
    words = [told(study, trial) for trial in study.get_trials()]
    assert words == [
        "failed: loss is nan",
        "failed: loss is inf after epoch 1",
        "failed: MemoryError",
        "failed: `dim` must be a multiple of `num_heads`. Received: dim=3",
        "finished, 4",
    ]


def test_the_median_ends_trials_early(tmp_path: Path) -> None:
    def objective(run: Run) -> float:
        for epoch in range(3):
            run.report(int(run.folder.name), epoch)  # of five finished trials the later ones are worse than the median
        return int(run.folder.name)

    store = store_of(tmp_path, 7, pruner="median")
    work(store, objective, verbose=False)
    assert states(store) == ["COMPLETE"] * 5 + ["PRUNED"] * 2


def test_a_grid_is_planned_value_by_value(tmp_path: Path) -> None:
    store = store_of(tmp_path, 9, {"x": [1, 2], "y": ["a", "b"]}, sampler="grid")
    work(store, lambda run: run.options["x"], verbose=False)
    assert sorted((trial.params["x"], trial.params["y"]) for trial in store.study().get_trials()) == [
        ("1", "a"),
        ("1", "b"),
        ("2", "a"),
        ("2", "b"),
    ]


def test_a_trial_has_one_worker_and_there_are_as_many_as_planned(tmp_path: Path) -> None:
    ran: list[str] = []

    def objective(run: Run) -> float:
        ran.append(run.folder.name)
        time.sleep(0.02)
        return 1.0

    store_of(tmp_path, 6)
    workers = [threading.Thread(target=lambda: work(open_store(tmp_path), objective, verbose=False)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(ran) == [f"{number:04d}" for number in range(6)]
    store = open_store(tmp_path)
    assert len(store.study().get_trials()) == 6
    assert plan(store, 8) == 8 and left(store, store.name) == (2, 0)


def busy(run: Run) -> float:
    """An evaluation: Python that calls no callback."""
    begin = time.monotonic()
    while time.monotonic() - begin < 20:
        time.sleep(0.001)
    raise AssertionError("not stopped")


def press(store: Any, board: Dashboard, number: int) -> None:
    """What the dashboard's button does."""
    identity = store.study().get_trials()[number]._trial_id
    request = urllib.request.Request(f"{board.url}api/trials/{identity}/tell", json.dumps({"state": "Fail"}).encode())
    request.add_header("Content-Type", "application/json")
    urllib.request.urlopen(request).close()


@pytest.mark.parametrize("side", ["command", "dashboard"])
def test_cancelling_stops_an_evaluation_and_the_worker_goes_on(side: str, tmp_path: Path) -> None:
    store, at = store_of(tmp_path, 2), {"cancelled": 0.0}
    board = Dashboard(store, 0)
    board.start()

    def objective(run: Run) -> float:
        return busy(run) if run.folder.name == "0000" else time.monotonic() - at["cancelled"]

    def stop() -> None:
        wait_for(lambda: store.study().get_trials()[0].state.name == "RUNNING")
        time.sleep(1.0)
        at["cancelled"] = time.monotonic()
        if side == "command":
            cancel(open_store(tmp_path), 0)
        else:
            press(store, board, 0)

    other = threading.Thread(target=stop)
    other.start()
    assert work(store, objective, verbose=False) == 2
    other.join()
    board.close()
    trials = store.study().get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"], "the cancelled one is not tried again"
    assert trials[1].value < 5, "seconds between the cancelling and the next trial"
    assert told(store.study(), trials[0]) == "cancelled"
    with pytest.raises(ValueError, match="trial 0 of the study .* has ended: cancelled"):
        cancel(store, 0)
    with pytest.raises(ValueError, match="no trial 7"):
        cancel(store, 7)


def test_control_optuna_alone_dies_of_a_trial_that_is_ended_from_outside(tmp_path: Path) -> None:
    import optuna

    study = optuna.create_study(storage=f"sqlite:///{tmp_path / 'alone.db'}")

    def objective(trial: Any) -> float:
        study._storage.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.FAIL)
        return 1.0

    with pytest.raises(BaseException):  # noqa: B017 - whatever it is
        study.optimize(objective, n_trials=1)


def test_a_watch_shields_writes_and_raises_after_them() -> None:
    begin = time.monotonic()
    wrote = False
    with pytest.raises(TrialEnded), Watch(lambda: None, lambda: True, 1.0) as watch:
        with watch.shield():
            time.sleep(1.2)
            wrote = True
        time.sleep(10)
    assert wrote and time.monotonic() - begin < 5


def test_a_database_that_cannot_be_reached_ends_no_trial() -> None:
    def unreachable() -> bool:
        raise OSError("no route")

    with Watch(unreachable, unreachable, 0.1):
        time.sleep(1.2)


def test_a_trial_whose_workers_die_is_begun_three_times(tmp_path: Path) -> None:
    store = store_of(tmp_path, 1)
    name = store.name
    for attempt in range(1, ATTEMPTS + 1):
        trial = claim(store, name)
        assert trial is not None and trial.user_attrs["attempt"] == attempt
        trial.suggest_float("x", 0.0, 1.0)
        assert claim(store, name) is None, "its worker is alive"
        _long_ago(store)
    assert claim(store, name) is None
    trials = store.study().get_trials()
    assert len(trials) == ATTEMPTS and len({trial.params["x"] for trial in trials}) == 1
    assert told(store.study(), latest(trials)[0]) == "its worker died, 3 times"


def _long_ago(store: Any) -> None:
    """As if the last sign of life were an hour old."""
    import sqlalchemy

    with store.storage.engine.begin() as connection:
        connection.execute(sqlalchemy.text("update trial_heartbeats set heartbeat = datetime('now', '-1 hour')"))


def test_ctrl_c_gives_the_trial_back(tmp_path: Path) -> None:
    def stopped(run: Run) -> float:
        raise KeyboardInterrupt

    store = store_of(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt):
        work(store, stopped, verbose=False)
    assert states(store) == ["WAITING"]
    assert work(store, lambda run: 1.0, verbose=False) == 1
    assert states(store) == ["COMPLETE"]


def test_the_dashboard_is_for_this_machine_alone(tmp_path: Path) -> None:
    board = Dashboard(store_of(tmp_path, 1), 0)
    board.start()
    assert board.url.startswith(f"http://{HOST}:") and HOST == "127.0.0.1"
    with urllib.request.urlopen(f"{board.url}api/studies") as answer:
        assert json.load(answer)["study_summaries"][0]["study_name"] == tmp_path.name
    foreign = urllib.request.Request(f"{board.url}api/studies", headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(foreign)
    board.close()


def test_a_folder_has_one_study_and_keeps_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(tmp_path / "first", 1)
    with pytest.raises(FileExistsError, match="`out` must be a folder without a study"):
        store_of(tmp_path / "first", 1)
    with pytest.raises(FileNotFoundError, match="no study in"):
        open_store(tmp_path / "none")
    with pytest.raises(ValueError, match="`storage` must be the URL of a database"):
        create(tmp_path / "second", store.settings, "nosuch://place")
    assert without_password("postgresql://me:secret@there/db") == "postgresql://me:***@there/db"
    # Another machine has the database, not the folder.
    monkeypatch.setenv(ENVIRONMENT, store.url)
    other = open_store(tmp_path / "there" / "first")
    assert other.settings.as_json() == store.settings.as_json() and other.settings.space.keys() == SPACE.keys()
    with pytest.raises(FileNotFoundError, match="no study 'other' in"):
        open_store(tmp_path / "there" / "other")
