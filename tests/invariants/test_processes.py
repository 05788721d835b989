"""Invariants 6 and 7: the same scores on every backend from one `.keras` file, and from the exported graph in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import build_sequences, requests
from tests.invariants.conftest import MODELS, Case, make_case, randomise, to_numpy
from tests.invariants.test_exactness import CLEARLY, TOLERANCE, long_requests

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]

SCORE = """
import sys, numpy as np, keras, keras_ranking as kr
model_file, inputs_file, out_file = sys.argv[1:]
model = kr.models.load(model_file)
inputs = dict(np.load(inputs_file))
row = {name[4:]: x for name, x in inputs.items() if name.startswith("row_")}
request = {name[8:]: x for name, x in inputs.items() if name.startswith("request_") and name[8:]}
out = {f"row_{task}": keras.ops.convert_to_numpy(x) for task, x in model(row).items()}
out |= {f"request_{name}": keras.ops.convert_to_numpy(x) for name, x in model.serving_model(request).items()}
np.savez(out_file, backend=keras.backend.backend(), **out)
"""

# The server runs a SavedModel's graph through a V1 session: nothing of Keras, nothing of this package.
SESSION = """
import sys, numpy as np, tensorflow as tf
folder, inputs_file, out_file = sys.argv[1:]
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], folder)
    signature = meta.signature_def["serving_default"]
    inputs = dict(np.load(inputs_file))
    feed = {signature.inputs[name].name: x for name, x in inputs.items()}
    names = sorted(signature.outputs)
    values = session.run([signature.outputs[name].name for name in names], feed)
np.savez(out_file, **dict(zip(names, values)))
"""


def fresh_process(script: str, *arguments: Path, backend: str = "tensorflow") -> dict[str, np.ndarray]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(np.load(arguments[-1]))


def by_tower(case: Case, out: dict[str, np.ndarray], prefix: str = "") -> np.ndarray:
    """(B, N, K) scores of an output of the serving graph."""
    name = f"{prefix}click_by_position"
    return out[name] if case.model.boundaries else out[f"{prefix}click"][..., None]


@pytest.fixture(scope="module", params=["cadet", "cadet_value", "lirank", "amortized", "ligr"])
def case(request: Any, log: Any) -> Case:
    return make_case(log, **dict(MODELS[request.param]))


def test_every_backend_gives_the_same_scores(case: Case, tmp_path: Path) -> None:
    case.model.save(tmp_path / "model.keras")
    inputs = {f"row_{name}": x for name, x in case.rows().items() if name}
    tensors = case.tensors(long_requests(case))
    np.savez(tmp_path / "inputs.npz", **inputs, **{f"request_{name}": x for name, x in tensors.items()})
    scores = {
        backend: fresh_process(SCORE, tmp_path / "model.keras", tmp_path / "inputs.npz", tmp_path / f"{backend}.npz", backend=backend)
        for backend in ("tensorflow", "jax", "torch")
    }
    real = inputs[f"row_{case.segment}"] > 0
    for backend, out in scores.items():
        assert str(out.pop("backend")) == backend
    reference = scores["tensorflow"]
    for backend in ("jax", "torch"):
        assert scores[backend].keys() == reference.keys()
        for name, value in scores[backend].items():
            expected = reference[name]
            if name.startswith("row_"):
                value, expected = value[real], expected[real]
            np.testing.assert_allclose(value, expected, rtol=TOLERANCE, atol=2 * TOLERANCE, err_msg=f"{backend} {name}")
    weights = case.model.get_weights()
    case.model.set_weights([w * 1.01 for w in weights])
    moved = case.serve(tensors)
    case.model.set_weights(weights)
    assert np.abs(moved - by_tower(case, reference, "request_")).max() > CLEARLY, "control: another model has other scores"


def test_the_exported_graph_gives_the_keras_scores(case: Case, tmp_path: Path) -> None:
    from keras_ranking.serving import export

    version = export(case.model, tmp_path / "served")
    which = long_requests(case)
    exact = case.tensors(which)
    expected = case.serve(exact)
    for extra in (0, 1, 13):
        tensors = case.tensors(which, history=exact["history_time"].shape[1] + extra, candidates=expected.shape[1] + extra)
        past = np.arange(tensors["history_time"].shape[1])[None, :] >= tensors["history_length"][:, None]
        spare = np.arange(expected.shape[1] + extra)[None, :] >= tensors["candidate_count"][:, None]
        for name, x in tensors.items():
            if x.ndim > 1:
                x[past if name.startswith("history") else spare] = np.iinfo(np.int32).max if x.dtype == np.int32 else np.nan
        np.savez(tmp_path / "inputs.npz", **tensors)
        out = fresh_process(SESSION, version, tmp_path / "inputs.npz", tmp_path / "out.npz")
        got = by_tower(case, out)
        assert (got[spare] == 0).all()
        np.testing.assert_allclose(got[:, : expected.shape[1]], expected, atol=TOLERANCE)
        np.testing.assert_array_equal(out["click"], got[..., case.model.serving_tower])
    shorter = {**exact, "history_length": np.maximum(exact["history_length"] // 2, 0).astype(np.int32)}
    np.savez(tmp_path / "inputs.npz", **shorter)
    out = fresh_process(SESSION, version, tmp_path / "inputs.npz", tmp_path / "out.npz")
    assert np.abs(by_tower(case, out) - expected).max() > CLEARLY, "control: the length is read"
    np.testing.assert_allclose(by_tower(case, out), case.serve(shorter), atol=TOLERANCE)


def test_an_exported_lirank_with_int8_tables_and_three_calibrated_tasks(log: Any, tmp_path: Path) -> None:
    """The graph in int8 gives the scores of the Keras model in int8, to rounding; and those in float32 to what int8 costs."""
    from keras_ranking.serving import export, quantize_embeddings

    events = log.events.assign(long_dwell=(log.events["dwell_seconds"] > 30).astype(int))
    schema = kr.Schema(**{**log.schema.model_dump(), "tasks": ["click", "like", "long_dwell"]}).fit(events)
    small = {"hidden": (12, 12), "rank": 4, "id_dim": 8, "max_history": 8, "calibration_options": {"step": 0.5}}
    model = kr.models.LiRank(schema, preset="feed", groups={"click": ["click", "long_dwell"], "contribution": ["like"]}, **small)
    randomise(model, scale=0.1)
    assert model.tasks == ["click", "like", "long_dwell"] and model.arguments["calibration"]
    found = requests(build_sequences(events, schema), max_history=8)
    tensors = found.tensors(np.arange(min(32, len(found))), list(model.serving_model.input))
    np.savez(tmp_path / "inputs.npz", **tensors)
    version = export(model, tmp_path / "served", quantize="int8")
    out = fresh_process(SESSION, version, tmp_path / "inputs.npz", tmp_path / "out.npz")
    exact, rounded = ({task: to_numpy(x) for task, x in one.serving_model(tensors).items()} for one in (model, quantize_embeddings(model)))
    for task in model.tasks:
        np.testing.assert_allclose(out[task], rounded[task], atol=TOLERANCE)
        lost = np.abs(out[task] - exact[task]).max()
        assert TOLERANCE < lost < 5e-2, f"control: int8 is not float32, {lost}"
