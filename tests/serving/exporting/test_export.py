"""Exports: parity in a fresh process, verification and its controls, atomicity, every backend."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_ranking import Schema
from keras_ranking.serving import export
from keras_ranking.serving.checking.verification_worker import check
from keras_ranking.serving.checking.worker_process import ExportError
from keras_ranking.serving.exporting import atomic_version, export as exporting, worker
from keras_ranking.serving.exporting.options import Options
from keras_ranking.serving.protocol.model_folder import read_card
from tests import preloaded
from tests.serving import standin
from tests.serving.calling import expected, requests

pytestmark = pytest.mark.one_backend
ROOT = Path(__file__).parents[3]


def python(code, *arguments, **environment):
    """Run code in a fresh process that can import the package and the stand-in model."""
    path = str(ROOT)
    env = {**os.environ, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ran(code, *arguments, **environment):
    """What code printed in a process of its own, on the backend of these tests or on another one."""
    env = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    done = preloaded.run(["-c", code, *map(str, arguments)], env.get("KERAS_BACKEND", "tensorflow"), env)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


RUN = """
import sys, numpy as np, tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    meta = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
signature = meta.signature_def["serving_default"]
for case in sys.argv[2:]:
    feed = np.load(case)
    fetch = {name: info.name for name, info in signature.outputs.items()}
    got = session.run(fetch, {signature.inputs[name].name: feed[name] for name in feed.files})
    np.savez(case + ".out.npz", **got)
"""


def test_scores_in_a_fresh_process(first, tmp_path):
    """V1 load and Session.run, written here once more: several lengths, NaN, infinities and wild ids beyond them."""
    shapes = [((5, 0, 17), (3, 1, 8)), ((1,), (1,)), ((0,), (6,)), ((100, 2), (1, 50))]
    cases = []
    for number, (history, candidates) in enumerate(shapes):
        batch = requests(first.card, history, candidates, seed=100 + number)
        assert np.isnan(batch["history_text"]).any() and (batch["candidate_item_id"] < 0).any()
        np.savez(tmp_path / f"{number}.npz", **batch)
        cases.append(batch)
    ran(RUN, first.version, *[tmp_path / f"{number}.npz" for number in range(len(cases))])
    for number, batch in enumerate(cases):
        want = expected(first.model, first.card, batch)
        with np.load(tmp_path / f"{number}.npz.out.npz") as got:
            assert sorted(got.files) == sorted(want) == ["click", "click_by_position", "like", "like_by_position"]
            for name, values in want.items():
                np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-5)
                beyond = np.arange(values.shape[1]) >= batch["candidate_count"][:, None]
                assert not got[name][beyond].any()


def test_scores_depend_on_the_weights(first, second):
    """Control: differences between models and between candidates are larger than the tolerance above."""
    batch = requests(first.card, (5, 9), (4, 4))
    a, b = (expected(version.model, version.card, batch)["click"] for version in (first, second))
    assert np.abs(a - b).max() > 1e-2
    assert np.abs(np.diff(a[:, :4], axis=1)).min() > 1e-4


def test_what_is_written(first):
    assert first.version.name == "1"
    assert sorted(entry.name for entry in first.version.parent.iterdir()) == ["1", "tf_serving"]
    card = first.card
    assert Schema.load(first.version / "assets.extra/schema.json") == standin.SCHEMA
    assert (card.schema_digest, card.tasks, card.boundaries) == (standin.SCHEMA.digest, ["click", "like"], [1, 4])
    assert card.inputs["history_text"] == {"dtype": "float32", "shape": [None, None, 3], "axis": "history", "rows": None}
    assert card.inputs["candidate_topic"]["rows"] == 4
    assert card.verified["largest_difference"] <= 1e-5 and card.verified["requests"] > 5
    assert {"keras", "tensorflow"} <= card.packages.keys()


class _Leaky(keras.layers.Layer):
    """Adds something of every cell of a list, those beyond the length too."""

    def call(self, scores, cells):
        return scores + 1e-3 * ops.max(ops.cast(cells != 0, "float32"), axis=1, keepdims=True)


class _LeakyModel:
    """A ranking model by its interface alone, whose clicks depend on the garbage."""

    schema = standin.SCHEMA
    name = "leaky"
    boundaries = ()

    def __init__(self):
        clean = standin.make().serving_model
        outputs = dict(clean.output)
        outputs["click"] = _Leaky()(outputs["click"], clean.input["history_click"])
        self.serving_model = keras.Model(clean.input, outputs)

    def _flatten_layers(self, **_):
        return self.serving_model._flatten_layers()


def test_verification_finds_a_model_that_reads_beyond_the_lengths(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("written in this process, which needs the TensorFlow backend")
    with pytest.raises(ExportError, match="'(raw )?click' differs from the Keras scores by"):
        export(_LeakyModel(), tmp_path / "ranker")
    assert list((tmp_path / "ranker").iterdir()) == []


def test_verification_finds_untracked_variables(tmp_path):
    """The trap: TensorFlow's own loader runs it, a server cannot."""
    tf = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("needs variables of the TensorFlow backend")

    class Holder(tf.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
        def score(self, x):
            return {"y": self.model(x)}

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    holder = Holder(model)
    tf.saved_model.save(holder, str(tmp_path / "1"), signatures={"serving_default": holder.score})
    x = np.ones((1, 2), np.float32)
    loaded = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"](x=tf.constant(x))
    np.testing.assert_allclose(loaded["y"], model(x), atol=1e-5)
    np.savez(tmp_path / "in-serving_default-0.npz", x=x)
    np.savez(tmp_path / "out-serving_default-0.npz", y=np.asarray(model(x)))
    with pytest.raises(tf.errors.OpError, match="(?i)could not find variable"):
        check(tmp_path / "1", tmp_path)


def test_next_version_and_leftovers(first, tmp_path):
    folder = tmp_path / "ranker"
    for name in ("3", "notes", ".export-left"):
        (folder / name).mkdir(parents=True)
    (folder / ".export-left" / "lock").touch()
    (folder / "7").touch()  # a file is no version
    version = export(first.model, folder, verify=False)
    assert version == folder / "4"
    assert sorted(entry.name for entry in folder.iterdir()) == ["3", "4", "7", "notes", "tf_serving"]


def test_leftover_of_a_living_export_stays(tmp_path):
    folder = tmp_path / "ranker"
    with atomic_version.staging_directory(folder) as work:
        atomic_version.sweep(folder)
        assert work.exists()
    assert not work.exists()


def test_two_exports_at_once_get_two_numbers(tmp_path):
    """The second to arrive finds its number taken at the rename."""
    folder = tmp_path / "ranker"
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "saved_model.pb").touch()
    target = tmp_path / "new"
    target.mkdir()
    seen = iter([{}, {1: folder / "1"}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic_version, "version_folders", lambda _: next(seen))  # the first look is before the other's rename
        assert atomic_version.publish(target, folder, tmp_path, Options()) == folder / "2"
    assert 'key: "canary" value: 2' in (folder / "tf_serving/models.config").read_text()


def test_folder_that_cannot_be_written(first, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ExportError, match="cannot write a version under .*file"):
        export(first.model, tmp_path / "file")


@pytest.mark.parametrize("model", ["nothing/here", "empty"])
def test_path_without_a_model(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no saved model at"):
        export(tmp_path / model, tmp_path / "ranker")
    assert not (tmp_path / "ranker").exists()


def test_not_a_ranking_model(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("says so in one line of another process")
    with pytest.raises(ValueError, match="must be a RankingModel"):
        export(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), tmp_path / "ranker")


EXPORT = (
    "import sys; from tests.serving import standin; from keras_ranking.serving import export; print(export(standin.make(), sys.argv[1]))"
)


@pytest.mark.slow
def test_killed_export_leaves_no_version(tmp_path):
    """SIGKILL during verification, when the graph is on disk."""
    folder = tmp_path / "ranker"
    process = python(EXPORT, folder, KERAS_BACKEND="tensorflow")
    end = time.monotonic() + 120
    while not list(folder.glob(".export-*/model/saved_model.pb")):
        assert process.poll() is None and time.monotonic() < end, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")] == []
    assert len(list(folder.glob(".export-*"))) == 1
    assert export(standin.make(), folder, verify=False).name == "1"
    assert sorted(entry.name for entry in folder.iterdir()) == ["1", "tf_serving"]


def test_no_room_for_the_configs(first, tmp_path, monkeypatch):
    """The disk fills after the graph is written and checked: still no version."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target, folder = tmp_path / "work/model", tmp_path / "ranker"
    folder.mkdir()
    shutil.copytree(first.version, target)
    monkeypatch.setattr(atomic_version.server_configs, "stage", full)
    monkeypatch.setattr(worker, "write_version", lambda *_, **__: None)
    monkeypatch.setattr(exporting, "sync", lambda _: None)
    if keras.backend.backend() != "tensorflow":
        monkeypatch.setattr(exporting, "_write_elsewhere", lambda *_: None)
    with pytest.raises(ExportError, match="No space left on device. Nothing was left in it"):
        export(first.model, folder)
    assert list(folder.iterdir()) == []


FULL = """
import sys, subprocess, pathlib
from tests.serving import standin
from keras_ranking.serving import export
model = standin.make()
if sys.argv[2] == "disk":
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", sys.argv[1]], check=True)
else:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    print(export(model, sys.argv[1], verify=False))
except Exception as error:
    print(type(error).__name__, error)
print("left:", sorted(entry.name for entry in pathlib.Path(sys.argv[1]).iterdir()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("disk", marks=pytest.mark.release), "file size"])
def test_full_disk(kind, tmp_path):
    if kind == "disk":  # in a mount namespace, which only a new process can have
        if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
            pytest.skip("this user may not mount a small disk")
        command = ["unshare", "-rm", sys.executable, "-c", FULL, str(tmp_path), kind]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
        output = subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout
    else:
        output = ran(FULL, tmp_path, kind)
    assert "ExportError cannot write a version under" in output and "left: []" in output, output[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "quantize"), [("jax", ""), ("torch", "int8")])
def test_export_from_another_backend(backend, quantize, tmp_path):
    """The user calls the same function; the graph gives the scores that JAX and torch gave, with tables of int8 as well."""
    code = """
import sys, numpy as np, keras
from tests.serving import standin
from tests.serving.calling import expected, requests
from keras_ranking.serving import export, quantize_embeddings
from keras_ranking.serving.protocol.model_folder import read_card
from keras_ranking.serving.exporting.options import Options
model = standin.make(seed=5)
version = export(model, sys.argv[1] + "/ranker", quantize=sys.argv[2] or None)
batch = requests(read_card(version))
np.savez(sys.argv[1] + "/in.npz", **batch)
model = quantize_embeddings(model) if sys.argv[2] else model
np.savez(sys.argv[1] + "/want.npz", **expected(model, read_card(version), batch))
print(keras.backend.backend())
"""
    output = ran(code, tmp_path, quantize, KERAS_BACKEND=backend)
    assert backend in output
    ran(RUN, tmp_path / "ranker/1", tmp_path / "in.npz")
    with np.load(tmp_path / "want.npz") as want, np.load(tmp_path / "in.npz.out.npz") as got:
        for name in want.files:
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)
    card = read_card(tmp_path / "ranker/1")
    assert card.verified["largest_difference"] <= 1e-5 and card.quantized == bool(quantize)
    content = json.loads((tmp_path / "ranker/1/assets.extra/model_card.json").read_text())
    assert content["backend"]["exported_from"] == backend


@pytest.mark.slow
def test_export_of_a_saved_folder_and_its_failure_in_one_line(tmp_path):
    folder = standin.save(standin.make(), tmp_path / "trained")
    version = export(folder, tmp_path / "ranker", verify=False, imports=["tests.serving.standin"])
    assert json.loads((version / "assets.extra/keras_ranking.json").read_text())["tasks"] == ["click", "like"]
    code = """
import sys
from keras_ranking.serving import export
try:
    export(sys.argv[1], sys.argv[2])
except Exception as error:
    print(type(error).__name__, "|", error)
"""
    (tmp_path / "trained/model.keras").write_bytes(b"not a model")
    for backend in ("tensorflow", "jax"):
        line = ran(code, folder, tmp_path / "other", KERAS_BACKEND=backend).strip().splitlines()[-1]
        assert line.startswith("ExportError | the model '") and "does not load" in line
        assert list((tmp_path / "other").iterdir()) == []
