"""The other kinds of export: compiled by XLA for fixed lengths, through JAX, with products in bfloat16, with int8 tables."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from keras_ranking.serving import check_skew, export
from keras_ranking.serving.checking.sample_requests import random_requests
from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.checking.worker_process import ExportError
from keras_ranking.serving.exporting import bfloat16
from keras_ranking.serving.exporting.options import Options
from keras_ranking.serving.exporting.worker import _bound
from keras_ranking.serving.protocol.model_folder import read_card
from tests.serving import standin
from tests.serving.calling import expected
from tests.serving.exporting.test_export import ran
from tests.serving.exporting.test_signatures import written

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend


def functions(version):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].graph_def.library.function


def warmup_records(version):
    from tensorflow_serving.apis import prediction_log_pb2

    path = version / "assets.extra/tf_serving_warmup_requests"
    logs = [prediction_log_pb2.PredictionLog.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(path))]
    return [log.predict_log.request for log in logs]


XLA = ["one pair", pytest.param("every pair", marks=pytest.mark.release), pytest.param("attention", marks=pytest.mark.release)]


@pytest.fixture(scope="module", params=XLA)
def xla(request, first, small, tmp_path_factory):
    """Compiled exports: of the stand-in for one length and for two lengths on each axis, and of a CADET for one."""
    buckets = ((4, 12), (3, 8)) if request.param == "every pair" else ((12,), (8,))
    model = small.model if request.param == "attention" else first.model
    names = dict(zip(("history_buckets", "candidate_buckets"), buckets, strict=True))
    # All pairs are compiled and compared with Keras in `test_xla_scores_at_and_beyond_its_buckets`: by verification only where it is one.
    verify = request.param != "every pair"
    version = export(model, tmp_path_factory.mktemp("xla") / "ranker", xla=True, verify=verify, **names)
    return SimpleNamespace(model=model, version=version, card=read_card(version), history=buckets[0], candidates=buckets[1])


@pytest.mark.slow
def test_xla(xla):
    card, pairs = xla.card, len(xla.history) * len(xla.candidates)
    if pairs == 1:  # verification ran the pair of buckets, and one request beyond it, and compared with Keras
        assert card.verified["largest_difference"] <= 1e-5 and card.verified["requests"] == 2 * (pairs + 1)
    assert card.xla and (tuple(card.history_buckets), tuple(card.candidate_buckets)) == (xla.history, xla.candidates)
    must = [function for function in functions(xla.version) if function.attr["_XlaMustCompile"].b]
    assert len(must) >= pairs + len(xla.history) + pairs  # serving_default, encode_history, score_candidates
    strings = {"StringToHashBucketFast", "LookupTableFindV2", "AsString"}
    assert not any(strings & {node.op for node in function.node_def} for function in must)
    flags = (xla.version.parent / "tf_serving/server_flags.txt").read_text()
    assert "--xla_cpu_compilation_enabled=true\n--xla_gpu_compilation_enabled=true\n" in flags
    phases = {"encode_history", "score_candidates"} | ({"extend_history"} if getattr(xla.model, "extends", False) else set())
    assert set(written(xla.version)) == {"serving_default", "raw", "raw_features"} | phases


@pytest.mark.slow
def test_xla_has_a_warmup_record_a_bucket(xla):
    found = set()
    for request in warmup_records(xla.version):
        if request.model_spec.signature_name == "serving_default":
            shapes = {k: [d.size for d in v.tensor_shape.dim] for k, v in request.inputs.items()}
            found.add((shapes["history_item_id"][1], shapes["candidate_item_id"][1]))
    assert found == set(itertools.product(xla.history, xla.candidates))


@pytest.mark.slow
def test_xla_scores_at_and_beyond_its_buckets(xla):
    version, card = xla.version, xla.card
    model = SavedModel(version)
    for history, candidates in (
        *(((2, 0), (1, 1)), ((10, 3), (6, 2)), ((4, 1), (5, 8)), ((12, 5), (3, 1))),  # each pair of lengths
        *(((11, 1), (1, 9)), ((40,), (2,))),  # beyond
    ):
        batch = random_requests(card.inputs, history, candidates, seed=sum(history))
        want = expected(xla.model, card, batch)
        got = model.run("serving_default", batch)
        cache = model.run("encode_history", {name: batch[name] for name in card.signatures["encode_history"]["inputs"]})
        composed = model.run("score_candidates", {k: {**batch, **cache}[k] for k in card.signatures["score_candidates"]["inputs"]})
        for name, values in want.items():
            np.testing.assert_allclose(got[name], values, rtol=0, atol=1e-5)
            np.testing.assert_allclose(composed[name], values, rtol=0, atol=1e-5)
    model.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stand-in", pytest.param("attention", marks=pytest.mark.release)])
def test_bfloat16(first, small, logged, kind, tmp_path):
    bound = 6e-2 if bfloat16.truncates() else 3e-2
    whole, events = (first, None) if kind == "stand-in" else (small, logged.events)
    version = export(whole.model, tmp_path / "ranker", precision="bfloat16", events=events)  # skew within the bound of bfloat16
    if kind == "attention":
        assert check_skew(version, whole.model, events, sample=20, bound=1e-5).found, "control: the bound of float32"
    card = read_card(version)
    assert card.precision == "bfloat16" and 1e-6 < card.verified["largest_difference"] <= card.verified["bound"] == bound
    products = [n for f in functions(version) for n in f.node_def if n.op in ("MatMul", "BatchMatMulV2")]
    assert products and {n.attr["T"].type for n in products} == {tf.bfloat16.as_datatype_enum}
    assert set(written(version)) == set(written(whole.version))
    loaded = tf.saved_model.load(str(version)).signatures["serving_default"]
    batch = random_requests(card.inputs, (5, 2), (3, 4), seed=1)
    got = loaded(**{name: tf.constant(values) for name, values in batch.items()})
    assert got["click"].dtype == tf.float32
    np.testing.assert_allclose(got["click"], expected(whole.model, card, batch)["click"], rtol=0, atol=bound)


@pytest.mark.slow
def test_a_difference_beyond_the_tolerance_leaves_nothing(tmp_path):
    with pytest.raises(ExportError, match="differs from the Keras scores by"):
        export(standin.make(), tmp_path / "ranker", precision="bfloat16", tolerance=1e-6)
    assert list((tmp_path / "ranker").iterdir()) == []


@pytest.mark.parametrize("cuts", [False, True])
def test_only_products_that_float32_is_compared_with_have_the_wider_bound(cuts, monkeypatch):
    """A model in 16 bits is compared with itself: both sides are cut off alike."""
    monkeypatch.setattr(bfloat16, "truncates", lambda: cuts)

    def layers(dtype):
        return SimpleNamespace(_flatten_layers=lambda: [keras.layers.Dense(1, dtype=dtype)])

    assert _bound(Options(precision="bfloat16"), layers("float32")) == (6e-2 if cuts else 3e-2)
    assert [_bound(Options(), layers(dtype)) for dtype in ("float32", "mixed_bfloat16", "mixed_float16")] == [1e-5, 3e-2, 3e-2]
    assert _bound(Options(precision="bfloat16", tolerance=1e-3), layers("float32")) == 1e-3


def test_bfloat16_leaves_einsum_alone(tmp_path):
    """Its kernel for CPUs adds up in bfloat16 too."""
    module = tf.Module()
    y = tf.constant(np.random.default_rng(0).normal(size=(1024, 3)), tf.float32)
    spec = tf.TensorSpec((None, 1024), tf.float32, name="x")
    module.f = tf.function(lambda x: {"einsum": tf.einsum("ab,bc->ac", x, y), "matmul": tf.matmul(x, y)}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path), signatures=module.f)
    x = np.random.default_rng(1).normal(size=(5, 1024)).astype("float32")
    want = x.astype("float64") @ y.numpy()
    assert bfloat16.rewrite(tmp_path) == 1
    got = tf.saved_model.load(str(tmp_path)).signatures["serving_default"](x=tf.constant(x))
    error = {name: np.abs(value.numpy() - want).max() / np.abs(want).max() for name, value in got.items()}
    assert error["einsum"] < 1e-5 < 1e-4 < error["matmul"] < 2**-6, error


JAX = """
import sys, keras
from keras_ranking.models import load
from keras_ranking.serving import check_skew, export
model = load(sys.argv[1])
lengths = {"history_buckets": (12,), "candidate_buckets": (8,)}
version = export(model, sys.argv[2] + "/ranker", through="jax", quantize=sys.argv[3] or None, **lengths)
print(keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.release  # that a model of JAX is exported at all: test_export_from_another_backend
@pytest.mark.parametrize("quantize", ["", "int8"])
def test_through_jax(small, tmp_path, quantize):
    assert "jax" in ran(JAX, small.run, tmp_path, quantize, KERAS_BACKEND="jax")
    version = tmp_path / "ranker/1"
    card = read_card(version)
    assert card.verified["largest_difference"] <= 1e-5 and card.through == "jax" and card.xla
    calls = [node for function in functions(version) for node in function.node_def if node.op == "XlaCallModule"]
    assert calls
    assert {tuple(p.decode().lower() for p in node.attr["platforms"].list.s) for node in calls} == {("cpu", "cuda")}
    assert set(written(version)) == {"serving_default", "raw", "raw_features"}
    model = SavedModel(version)
    batch = random_requests(card.inputs, (3, 10), (2, 6), seed=2)
    got, want = model.run("serving_default", batch), expected(small.model, card, batch)
    np.testing.assert_allclose(got["click"], want["click"], rtol=0, atol=1e-5 if not quantize else 2e-2)
    longer = model.run("serving_default", random_requests(card.inputs, (20, 3), (2, 1), seed=2))["click"]
    assert (longer[0] == -1).all() and (longer[1] >= 0).all()
    model.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "float16"}, "`precision` must be 'bfloat16' or 'float32'. Received: precision='float16'"),
        ({"through": "torch"}, "`through` must be"),
        ({"quantize": "int4"}, "`quantize` must be 'int8' or None"),
        ({"through": "jax", "xla": True}, "takes neither `xla` nor `precision`"),
        ({"history_buckets": (4,)}, "`history_buckets` belong to a compiled export"),
        ({"xla": True, "candidate_buckets": (8, 4)}, "`candidate_buckets` must be increasing positive integers"),
        ({"allowed_batch_sizes": ()}, "`allowed_batch_sizes` must be increasing positive integers"),
        ({"raw_ids": {"age_hours": "int64"}}, "`raw_ids` must map ids and categories"),
    ],
)
def test_options(settings, message, tmp_path):
    if "raw_ids" in settings and keras.backend.backend() != "tensorflow":
        pytest.skip("found by the other process there")
    with pytest.raises(ValueError, match=message):
        export(standin.make(), tmp_path / "ranker", **settings)


def test_default_buckets_end_at_what_the_model_reads():
    class Reads:
        form = "requests"
        arguments = {"max_history": 200}

    class Rows(Reads):
        form = "rows"

    assert Options(xla=True).buckets(Reads()) == ([128, 200], [64, 512])
    # A model of rows reads so many in each block, of those that are visible: it is sent more.
    assert Options(xla=True).buckets(Rows()) == ([128, 512, 1024], [64, 512])
    assert Options(xla=True).buckets(object()) == ([128, 512, 1024], [64, 512])
    assert Options().buckets(Reads()) == ([], [])
