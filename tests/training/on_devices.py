"""What the tests of several devices run in processes of their own: `python -m tests.training.on_devices JOBS.json FOUND.json`.

A job: `models` to train, the folder of `shards` to read in place of the log, the `distribution`, the folder `out` for each model's run, and
further settings. Each process writes as JSON, by model, the loss after each step, the metrics of `evaluate` by the model that was
returned and by the one reloaded, and what was printed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_ranking as kr

COMMON: dict[str, Any] = {"row_length": 48, "id_dim": 4, "clip_norm": 0.05, "position_half_life": 3, "age_half_life_days": 1.0}
COMMON |= {"learning_rate": 5e-3, "pairwise_weight": 0.1, "listwise_weight": 0.1}
SEQUENCE = {**COMMON, "dim": 8, "num_heads": 2, "num_layers": 1, "dropout": 0.0}
REQUESTS = {**COMMON, "max_history": 6}
MODELS: dict[str, dict[str, Any]] = {
    "cadet": {**SEQUENCE, "tower_hidden": (8,)},
    "feedsr": {**SEQUENCE, "head_options": {"hidden": (8,)}},
    "lirank": {**REQUESTS, "hidden": (8,), "rank": 2, "cross_layers": 1},
    "amortized": {**REQUESTS, "hidden": (8,), "rank": 2, "dim": 8},
    "ligr": {**REQUESTS, "dim": 8, "num_heads": 2, "num_layers": 1},
}


class Losses(keras.callbacks.Callback):
    """The loss after each step, and the end of a process by SIGKILL after so many."""

    def __init__(self, kill_after: int | None = None) -> None:
        super().__init__()
        self.found: list[float] = []
        self.kill_after = kill_after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.found.append(float(logs["loss"]))
        if len(self.found) == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def start_processes(job: dict[str, Any]) -> int:
    """Join the other processes; the number of this one."""
    if keras.backend.backend() == "jax" and job.get("processes", 1) > 1:
        keras.distribution.initialize()
        import jax

        return int(jax.process_index())
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * job.get("devices", 2))
    return int(os.environ.get("RANK", "0"))


def chosen(name: Any) -> Any:
    """The distribution that a job names."""
    if name == "small tables":
        from keras_ranking.training.distribution import jax_plan

        jax_plan.LEAST_ROWS = 2
        return "tables"
    if name == "two axes":
        mesh = keras.distribution.DeviceMesh((2, 2), ["rows", "tables"], keras.distribution.list_devices())
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[".*/embeddings"] = ("tables", None)
        return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="rows")
    if name == "two devices":
        return keras.distribution.DataParallel(devices=keras.distribution.list_devices()[:2])
    return name


def trained(log: Any, job: dict[str, Any], rank: int) -> dict[str, Any]:
    """What there is to compare of each model of a job."""
    found: dict[str, Any] = {}
    for name in job["models"]:
        losses = Losses(job.get("kill", {}).get(str(rank)))
        options = {**MODELS[name], **job.get("options", {}), **job.get("of", {}).get(name, {})}
        settings: dict[str, Any] = {
            "options": {**options, "batch_size": job.get("batch_size", 6)},
            "epochs": job.get("epochs", 5),
            "seed": 5,
        }
        settings["options"] |= {} if job.get("checkpoint_every") is None else {"checkpoint_every": job["checkpoint_every"]}
        settings["resume"] = job.get("resume", False)
        out = None if job.get("out") is None else Path(job["out"]) / name
        printed, distribution = io.StringIO(), chosen(job.get("distribution"))
        with contextlib.redirect_stdout(printed):
            verbose = bool(job.get("verbose"))
            model, history = kr.training.train(log, name, out, verbose=verbose, callbacks=[losses], distribution=distribution, **settings)
        found[name] = {"losses": losses.found, "printed": printed.getvalue(), "epochs": history["epochs"]}
        found[name]["weights"] = [float(np.abs(np.asarray(weight, dtype=np.float64)).sum()) for weight in model.get_weights()]
        if job.get("evaluate"):
            merged = distribution if job.get("processes", 1) > 1 else None
            found[name]["evaluated"] = kr.training.evaluate(model, log, "validation", distribution=merged)
            if out is not None:
                found[name]["reloaded"] = kr.training.evaluate(out, log, "validation")
    return found


def small_log() -> kr.data.Log:
    """The log that is trained on."""
    return kr.data.simulate(members=40, days=3, seed=3, feedback_delay=60)


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    rank = start_processes(jobs[0])
    log = small_log()
    found = [trained(kr.data.ShardedLog(job["shards"]) if "shards" in job else log, job, rank) for job in jobs]
    Path(sys.argv[2] + (f".{rank}" if rank else "")).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
