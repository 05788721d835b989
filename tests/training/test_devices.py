"""Several devices and processes against one: the same losses, weights and metrics; one writer; restarts on other devices; refusals."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data.epochs import shared_out
from keras_ranking.training.distribution import plan_for
from keras_ranking.training.distribution.plan import ByTurns, Plan
from tests import preloaded
from tests.training import on_devices

CLOSE = 1e-6  # relative, of the mean loss after each step
ALL = ["cadet", "feedsr", "lirank", "amortized", "ligr"]


def start(jobs: list[dict[str, Any]], folder: Path, backend: str, rank: int = 0, port: int = 0) -> preloaded.Process:
    """A process of the jobs."""
    processes = jobs[0].get("processes", 1)
    settings = {"PYTHONPATH": str(preloaded.ROOT), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}
    settings["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={jobs[0].get('devices', 1)}"
    if processes > 1:
        settings |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        settings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        settings |= {"KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}", "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes)}
        settings |= {"KERAS_DISTRIBUTION_PROCESS_ID": str(rank)}
    (folder / "job.json").write_text(json.dumps(jobs))
    command = ["-m", "tests.training.on_devices", str(folder / "job.json"), str(folder / "found.json")]
    return preloaded.Process(command, backend, settings, preloaded.ROOT, folder / f"out{rank}", folder / f"err{rank}")


def started(jobs: list[dict[str, Any]], folder: Path, backend: str) -> list[preloaded.Process]:
    """All processes of the jobs."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(jobs, folder, backend, rank, port) for rank in range(jobs[0].get("processes", 1))]


def found(folder: Path, backend: str, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """What process 0 found for each job."""
    for rank, process in enumerate(started(list(jobs), folder, backend)):
        assert process.wait() == 0, (folder / f"err{rank}").read_text()[-3000:]
    result: list[dict[str, Any]] = json.loads((folder / "found.json").read_text())
    return result


def away(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest relative difference of losses."""
    assert len(one["losses"]) == len(other["losses"])
    return float(np.abs(np.array(other["losses"]) / np.array(one["losses"]) - 1).max())


def metrics_away(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[task][name] - other[task][name]) for task in one for name in one[task])


# -- whole trainings -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.one_backend
def test_two_processes_of_torch(tmp_path: Path) -> None:
    """Batches of 5 rows in two parts, clipped gradients, batch moments, uneven weights, tables by rows; validation in both processes.

    The same from shards.
    """
    shards = str(kr.data.prepare(on_devices.small_log(), tmp_path / "shards", shards=2).folder)
    options = {"validation": "last_day", "table_optimizer": "rowwise_adagrad"}
    job: dict[str, Any] = {"models": ["lirank"], "batch_size": 5, "epochs": 2, "options": options, "evaluate": True}
    two = {**job, "distribution": "data", "processes": 2, "verbose": True, "checkpoint_every": 3}
    ones = found(tmp_path / "one", "torch", job, {**job, "shards": shards})
    jobs = {**two, "out": str(tmp_path / "run")}, {**two, "shards": shards, "out": str(tmp_path / "of shards")}
    boths = found(tmp_path / "two", "torch", *jobs)
    others = json.loads((tmp_path / "two" / "found.json.1").read_text())
    for one, both, other in ((each["lirank"] for each in way) for way in zip(ones, boths, others, strict=True)):
        assert away(one, both) < CLOSE
        assert both["epochs"]["val_log_loss"] == pytest.approx(one["epochs"]["val_log_loss"], rel=CLOSE)
        np.testing.assert_allclose(both["weights"], one["weights"], rtol=1e-4)
        assert metrics_away(both["evaluated"], one["evaluated"]) < CLOSE
        assert both["evaluated"] == both["reloaded"]
        assert "2 processes of torch on cpu: batches of 5 rows in 2 parts of 3, 1 of them empty" in both["printed"]
        assert other["printed"] == "" and other["weights"] == both["weights"]  # one process prints
    assert ones[0]["lirank"]["losses"] != ones[1]["lirank"]["losses"], "control: two shards are read in another order"
    assert not list((tmp_path / "run").rglob(".*")), "nothing half written"


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("backend", "settings"),
    [
        ("torch", {"processes": 2}),
        ("jax", {"devices": 4}),
        ("jax", {"devices": 2, "processes": 2}),
        ("tensorflow", {"devices": 2}),
    ],
    ids=["torch-2-processes", "jax-4-devices", "jax-2-processes", "tensorflow-2-devices"],
)
def test_all_models(backend: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """20 steps and more of each model, with clipping, batch normalisation and uneven weights; and of two models from shards."""
    shards = str(kr.data.prepare(on_devices.small_log(), tmp_path / "shards", shards=2).folder)
    job: dict[str, Any] = {"models": ALL, "evaluate": True}
    jobs = job, {**job, "models": ["cadet", "lirank"], "shards": shards}
    ones = found(tmp_path / "one", backend, *({**each, "devices": settings.get("devices", 1)} for each in jobs))
    more = {**settings, "distribution": "data"}
    manys = found(tmp_path / "many", backend, *({**each, **more, "out": str(tmp_path / f"run{at}")} for at, each in enumerate(jobs)))
    for each, one, many in zip(jobs, ones, manys, strict=True):
        for name in each["models"]:
            assert len(one[name]["losses"]) >= 20
            assert away(one[name], many[name]) < CLOSE, name
            assert metrics_away(many[name]["evaluated"], one[name]["evaluated"]) < 1e-5, name
            assert metrics_away(many[name]["evaluated"], many[name]["reloaded"]) < CLOSE, name
    assert ones[0]["lirank"]["losses"] != ones[1]["lirank"]["losses"], "control: two shards are read in another order"


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("backend", "settings"), [("torch", {"processes": 2}), ("tensorflow", {"devices": 2})], ids=["torch", "tensorflow"]
)
def test_a_restart_on_one_device(backend: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Two were killed; one alone goes on, and ends with the weights of an uninterrupted training on one."""
    job: dict[str, Any] = {"models": ["lirank"], "epochs": 3}
    one = found(tmp_path / "one", backend, {**job, "devices": 1})[0]["lirank"]
    job |= {"out": str(tmp_path / "killed"), "checkpoint_every": 2}
    for process in started([{**job, **settings, "distribution": "data", "kill": {"0": 7, "1": 7}}], tmp_path / "kill", backend):
        assert process.wait() == -signal.SIGKILL
    again = found(tmp_path / "again", backend, {**job, "devices": 1, "resume": True})[0]["lirank"]
    assert 0 < len(again["losses"]) < len(one["losses"]), "control: it goes on, and does not begin anew"
    np.testing.assert_allclose(again["epochs"]["loss"], one["epochs"]["loss"], rtol=CLOSE)
    np.testing.assert_allclose(again["weights"], one["weights"], rtol=1e-5)


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.one_backend
def test_devices_of_jax(tmp_path: Path) -> None:
    """Rows of tables over devices, with spare ones, on one axis and on two; and restarts on other numbers of devices."""
    job: dict[str, Any] = {"models": ["cadet"], "epochs": 2, "devices": 4}
    one, data, tables, two = (
        out["cadet"]
        for out in found(
            tmp_path / "many",
            "jax",
            job,
            {**job, "distribution": "data", "verbose": True},
            {**job, "distribution": "small tables", "verbose": True, "out": str(tmp_path / "run"), "evaluate": True},
            {**job, "distribution": "two axes", "verbose": True},
        )
    )
    assert max(away(one, other) for other in (data, tables, two)) < CLOSE
    assert "4 cpu devices: batches of 6 rows in 4 parts of 2, 2 of them empty" in data["printed"]
    assert "tables by rows over devices: table_" in tables["printed"] and "tables by rows" not in data["printed"]
    assert metrics_away(tables["evaluated"], tables["reloaded"]) < CLOSE
    killed = {**job, "distribution": "small tables", "out": str(tmp_path / "killed"), "checkpoint_every": 2, "kill": {"0": 5}}
    (process,) = started([killed], tmp_path / "kill", "jax")
    assert process.wait() == -signal.SIGKILL
    again = {**job, "resume": True, "out": str(tmp_path / "killed"), "checkpoint_every": 2, "distribution": "two devices"}
    resumed = found(tmp_path / "again", "jax", again)[0]["cadet"]
    np.testing.assert_allclose(resumed["epochs"]["loss"], one["epochs"]["loss"], rtol=CLOSE)
    np.testing.assert_allclose(resumed["weights"], one["weights"], rtol=1e-5)


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_two_that_is_killed(rank: int, tmp_path: Path) -> None:
    """SIGKILL of one of two; both started again, and one alone, end with the weights of an uninterrupted training."""
    job: dict[str, Any] = {"models": ["lirank"], "epochs": 3, "checkpoint_every": 2, "distribution": "data", "processes": 2}
    whole = found(tmp_path / "whole", "torch", {**job, "out": str(tmp_path / "run")})[0]["lirank"]
    job |= {"out": str(tmp_path / "killed")}
    processes = started([{**job, "kill": {str(rank): 7}}], tmp_path / "kill", "torch")
    assert processes[rank].wait() == -signal.SIGKILL
    assert processes[1 - rank].wait(60) != 0  # it finds the other gone
    files = sorted(path.name for path in (tmp_path / "killed" / "lirank").iterdir())
    assert files == ["checkpoint.npz"] and not kr.training.read_checkpoint(tmp_path / "killed" / "lirank").about["finished"]
    resumed = found(tmp_path / "again", "torch", {**job, "resume": True})[0]["lirank"]
    np.testing.assert_allclose(resumed["weights"], whole["weights"], rtol=1e-7)
    np.testing.assert_allclose(resumed["epochs"]["loss"], whole["epochs"]["loss"], rtol=CLOSE)


# -- parts ---------------------------------------------------------------------------------------------------------------


@pytest.mark.one_backend
def test_parts_of_a_batch_and_empty_rows() -> None:
    batch = {"a": np.arange(1, 6), "b": np.arange(10).reshape(5, 2) + 1}, (np.ones(5),)
    parts = [shared_out(batch, 4, (number, number + 1)) for number in range(4)]
    np.testing.assert_array_equal(np.concatenate([x["a"] for x, _ in parts]), [1, 2, 3, 4, 5, 0, 0, 0])
    np.testing.assert_array_equal(np.concatenate([w for _, (w,) in parts]), [1, 1, 1, 1, 1, 0, 0, 0])
    assert parts[3][0]["b"].shape == (2, 2)
    np.testing.assert_array_equal(shared_out(batch, 4, (1, 3))[0]["a"], [3, 4, 5, 0])


@pytest.mark.one_backend
def test_scores_of_all_processes() -> None:
    """Each has NaN where another scored."""
    values = {"click": np.array([0.1, np.nan, np.nan]), "like": np.array([np.nan, np.nan, 0.3])}
    other = {"click": np.array([np.nan, 0.2, np.nan]), "like": np.array([0.4, np.nan, np.nan])}
    sent = iter([[values[name], other[name]] for name in ("click", "like")])
    merged = ByTurns(0, 2, lambda _: next(sent)).merged(values)
    np.testing.assert_array_equal(merged["click"], [0.1, 0.2, np.nan])
    np.testing.assert_array_equal(merged["like"], [0.4, np.nan, 0.3])
    assert [list(ByTurns(rank, 2, list).turns(5)) for rank in range(2)] == [[0, 2, 4], [1, 3]]


@pytest.mark.one_backend
def test_processes_that_train_something_else() -> None:
    class Two(Plan):
        def gathered(self, array: np.ndarray) -> list[np.ndarray]:
            other = array.copy()
            other[1] += 1
            return [array, other]

    Plan().agree({"a": 1, "seed": 2})
    with pytest.raises(ValueError, match=r"process 1 differs from process 0 in \['seed'\]"):
        Two().agree({"a": 1, "seed": 2})


@pytest.mark.parametrize("given", ["rows", 4])
def test_an_unknown_distribution(given: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ValueError if given == "rows" or keras.backend.backend() == "jax" else NotImplementedError
    with pytest.raises(error, match="`distribution`"):
        plan_for(given)
    assert plan_for(None).ranks == 1


def test_what_keras_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, with the way that works."""
    backend = keras.backend.backend()
    if backend == "jax":
        monkeypatch.setenv("KERAS_DISTRIBUTION_NUM_PROCESSES", "2")
        with pytest.raises(ValueError, match="is 2, and this process is alone. Call `keras.distribution.initialize\\(\\)` before"):
            plan_for("data")
        return
    with pytest.raises(NotImplementedError, match="distribution='tables' does not work with Keras on .*KERAS_BACKEND=jax"):
        plan_for("tables")
    if backend == "torch":
        for name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(ValueError, match="Start it with `torchrun --nproc-per-node=N`"):
            plan_for("data")
        return
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}))
    with pytest.raises(
        NotImplementedError, match="several machines .*MultiWorkerMirroredStrategy.* does not work with Keras on TensorFlow. On"
    ):
        plan_for("data")
    monkeypatch.delenv("TF_CONFIG")
    import tensorflow as tf

    with pytest.raises(NotImplementedError, match="OneDeviceStrategy does not work with Keras on TensorFlow"):
        plan_for(tf.distribute.OneDeviceStrategy("/cpu:0"))


@pytest.mark.quickest
def test_a_group_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, also those of tables by rows, go through the group; the numbers are those of no group."""
    import torch
    from torch import distributed

    from keras_ranking.ops.replicas import torch as of_torch

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        plan = plan_for("data")
        assert (plan.ranks, plan.parts, plan.own, plan.writes) == (1, 1, (0, 1), True)
        sparse = torch.sparse_coo_tensor(torch.tensor([[2, 0, 2]]), torch.arange(6.0).reshape(3, 2), (4, 2))
        dense, none = torch.arange(6.0).reshape(2, 3), None
        monkeypatch.setattr(of_torch, "_AT_ONCE", 4)  # each in a message of its own
        out = of_torch.sum_gradients([dense, none, sparse, dense + 1])
        torch.testing.assert_close(out[0], dense)
        torch.testing.assert_close(out[3], dense + 1)
        assert out[1] is None and out[2].is_sparse
        torch.testing.assert_close(out[2].to_dense(), sparse.to_dense())
        values = torch.tensor([1.0, 2.0], requires_grad=True)
        (of_torch.total(values) * torch.tensor([3.0, 4.0])).sum().backward()
        torch.testing.assert_close(values.grad, torch.tensor([3.0, 4.0]))
        assert plan.describe(SimpleNamespace(batch_size=4), None) is not None
    finally:
        distributed.destroy_process_group()
