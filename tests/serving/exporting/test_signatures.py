"""Every signature: names, dtypes and shapes as written, and what they compute in a fresh process.

Those of every kind of model: tests/invariants/test_processes.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from keras_ranking.serving.checking.sample_requests import random_requests
from keras_ranking.serving.protocol.model_folder import read_card
from tests.serving.exporting.test_export import python, ran

tf = pytest.importorskip("tensorflow")
pytestmark = [pytest.mark.one_backend, pytest.mark.slow]  # an export with all its checks

# Both ways in one process without this package: V1 load, Session.run.
RUN = """
import sys, numpy as np, tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    meta = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])

def run(name, feed):
    signature = meta.signature_def[name]
    fetch = {key: info.name for key, info in signature.outputs.items()}
    return session.run(fetch, {info.name: feed[key] for key, info in signature.inputs.items()})

for inputs_file, out_file in zip(sys.argv[2::2], sys.argv[3::2]):
    feed = dict(np.load(inputs_file))
    whole = run("serving_default", feed)
    cache = run("encode_history", feed)
    assert all(np.isfinite(value).all() for value in cache.values())
    composed = run("score_candidates", {**feed, **cache})
    # Values of the cache beyond its history must not change scores.
    spoilt = dict(cache)
    if "cache_key" in cache and "cache_length" in cache:
        slots = cache["cache_key"].shape[2]
        tokens = slots // max(1, cache["cache_time"].shape[1] if "cache_time" in cache else slots)
        beyond = np.arange(slots)[None, :] >= tokens * cache["cache_length"][:, None]
        for name in ("cache_key", "cache_value"):
            spoilt[name] = np.where(beyond[:, None, :, None, None], np.float32("nan"), cache[name])
    again = run("score_candidates", {**feed, **spoilt})
    ways = {"whole": whole, "composed": composed, "again": again}
    np.savez(out_file, **{f"{way}/{name}": value for way, scores in ways.items() for name, value in scores.items()})
"""


def same_three_ways(got):
    """Scores of `RUN`: of the history's cache and the candidates, and of a cache with NaN beyond its length, as of all in one."""
    names = [name.removeprefix("whole/") for name in got if name.startswith("whole/")]
    assert names
    for name in names:
        for way in ("composed", "again"):
            np.testing.assert_allclose(got[f"{way}/{name}"], got[f"whole/{name}"], rtol=0, atol=1e-5)


def composed_equals_whole(version, tmp_path):
    card = read_card(version)
    batch = random_requests(card.inputs, (0, 1, 29, 12), (1, 6, 3, 9), seed=11)
    assert np.isnan(batch["candidate_age_hours"]).any() and (batch["history_item_id"] < 0).any()
    np.savez(tmp_path / "in.npz", **batch)
    ran(RUN, version, tmp_path / "in.npz", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as got:
        for name in card.outputs:
            whole = got[f"whole/{name}"]
            beyond = np.arange(whole.shape[1]) >= batch["candidate_count"][:, None]
            assert np.isfinite(whole).all() and not whole[beyond].any() and whole[~beyond].all()
        same_three_ways(got)


def written(version):
    """signature -> side -> name -> (dtype, shape), read from the file."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    (meta,) = saved.meta_graphs
    assert list(meta.meta_info_def.tags) == ["serve"]

    def tensors(infos):
        return {
            k: (tf.dtypes.as_dtype(i.dtype).name, [None if d.size < 0 else d.size for d in i.tensor_shape.dim]) for k, i in infos.items()
        }

    predict = {k: d for k, d in meta.signature_def.items() if d.method_name == "tensorflow/serving/predict"}
    return {name: {"inputs": tensors(d.inputs), "outputs": tensors(d.outputs)} for name, d in predict.items()}


def check_names(version, model, towers):
    found = written(version)
    card = read_card(version)
    names = {"serving_default", "raw", "raw_features", "encode_history", "score_candidates"}
    names |= {"explore"} if model.explore_model is not None else set()
    assert set(found) == set(card.signatures) == names | ({"extend_history"} if model.extends else set())
    for name, sides in found.items():
        for side, tensors in sides.items():
            stated = card.signatures[name][side]
            assert {k: dtype for k, (dtype, _) in tensors.items()} == {k: spec["dtype"] for k, spec in stated.items()}
            for key, (_, shape) in tensors.items():
                assert shape[0] is None and len(shape) == len(stated[key]["shape"]), (name, key, shape)
    scores = dict.fromkeys(card.tasks, ("float32", 2)) | {f"{task}_by_position": ("float32", 3) for task in card.tasks if towers}
    for name in ("serving_default", "raw", "score_candidates"):
        assert {k: (dtype, len(shape)) for k, (dtype, shape) in found[name]["outputs"].items()} == scores
    raw = found["raw"]["inputs"]
    assert sorted(raw) == sorted(found["serving_default"]["inputs"]) == sorted(found["raw_features"]["outputs"])
    assert (raw["history_time"][0], raw["candidate_topic"][0], raw["candidate_age_hours"][0]) == ("int64", "string", "float64")
    assert found["raw_features"]["outputs"].keys() == found["serving_default"]["inputs"].keys()
    cache = {k for k in found["score_candidates"]["inputs"] if k.startswith("cache_")}
    assert cache == set(found["encode_history"]["outputs"]) and cache
    assert not [name for name in found["encode_history"]["inputs"] if name.startswith("candidate_")]


def test_of_a_small_model(small, tmp_path):
    check_names(small.version, small.model, towers=True)
    composed_equals_whole(small.version, tmp_path)
    assert small.card.signatures["raw"]["inputs"]["candidate_item_id"]["dtype"] == "int64"  # as in the log
    assert small.card.verified["largest_difference"] <= 1e-5


def test_a_plain_graph_holds_no_python_and_no_program(small):
    """The encoding of strings is outside the trunk: XLA could compile the rest."""
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((small.version / "saved_model.pb").read_bytes())
    library = {function.signature.name: function for function in saved.meta_graphs[0].graph_def.library.function}
    nodes = [node for function in library.values() for node in function.node_def]
    ops = {node.op for node in nodes}
    assert "MatMul" in ops or "BatchMatMulV2" in ops
    assert not ops & {"PyFunc", "EagerPyFunc", "PyFuncStateless", "XlaCallModule"}
    assert not any(function.attr["_XlaMustCompile"].b for function in library.values())
    strings = {"StringToHashBucketFast", "LookupTableFindV2", "AsString", "Assert"}
    holding = {name for name, function in library.items() if {node.op for node in function.node_def} & strings}
    assert holding and all("MatMul" not in {node.op for node in library[name].node_def} for name in holding)
    for name in holding:
        for node in library[name].node_def:
            assert node.op not in strings or not node.attr["_XlaCompile"].b


@pytest.mark.release
def test_scores_under_auto_clustering(small, tmp_path):
    """The flags of `tools/tf_serving`: clusters are compiled, the scores stay, the encoding of raw values to the bit."""
    card = small.card
    batch = random_requests(card.inputs, (0, 9), (4, 6), seed=3)
    np.savez(tmp_path / "in.npz", **batch)
    outputs = []
    for flags in ("", "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"):
        out = tmp_path / f"out{len(outputs)}.npz"
        process = python(RUN, small.version, tmp_path / "in.npz", out, TF_XLA_FLAGS=flags, TF_CPP_MIN_LOG_LEVEL="0")
        log = process.communicate(timeout=300)[0]
        assert process.returncode == 0, log[-2000:]
        assert ("Compiled cluster using XLA" in log) == bool(flags), log[-2000:]
        with np.load(out) as got:
            outputs.append(dict(got))
    for name in outputs[0]:
        np.testing.assert_allclose(outputs[1][name], outputs[0][name], rtol=0, atol=1e-5)
