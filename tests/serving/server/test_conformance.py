"""Replies of any server with TensorFlow Serving's protocol, for the reference model of these tests.

By default against the embedded server. Against another one, which serves the reference under the name `ranker`:

    python tests/serving/server/test_conformance.py --write FOLDER     # FOLDER/ranker/1, with warm-up requests; FOLDER/model.keras
    tensorflow_model_server --port=8500 --rest_api_port=8501 --model_config_file=FOLDER/models.config \
        --allow_version_labels_for_unavailable_models=true --grpc_max_threads=64 \
        --enable_batching --batching_parameters_file=FOLDER/batching.config
    KR_SERVING_ADDRESS=127.0.0.1:8500 KR_SERVING_REST_ADDRESS=127.0.0.1:8501 KR_SERVING_REFERENCE=FOLDER \
        python -m pytest tests/serving/server/test_conformance.py tests/serving/server/test_conformance_codes.py

    KR_SERVING_ADDRESS        HOST:PORT of gRPC
    KR_SERVING_REST_ADDRESS   HOST:PORT of REST
    KR_SERVING_REFERENCE      the folder that --write made
    KR_SERVING_MODEL          name of the model there (default: ranker)
    KR_SERVING_LABEL          a label of version 1 (default: stable; that is what models.config says)

The messages are those of `tensorflow_serving.apis`, the client is none of ours: what passes here, others' clients can do.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

from keras_ranking.serving.checking.sample_requests import alone
from keras_ranking.serving.protocol.model_folder import read_card
from tests.serving import standin
from tests.serving.calling import expected, requests
from tests.serving.server.listening import write_warmup

grpc = pytest.importorskip("grpc")
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

pytestmark = pytest.mark.one_backend
CLOSE = {"rtol": 0, "atol": 1e-5}
THREADS = 4
CONFIG = """model_config_list { config {
  name: "ranker" base_path: "%s" model_platform: "tensorflow"
  model_version_policy { all {} }
  version_labels { key: "stable" value: 1 }
} }
"""
BATCHING = """max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 100 }
num_batch_threads { value: 2 }
pad_variable_length_inputs: true
"""


def warmup(version):
    card = read_card(version)
    write_warmup(version, [requests(card, [length], [count], hostile=False) for length, count in ((0, 1), (20, 10))])


@pytest.fixture(scope="module")
def target(request, tmp_path_factory):
    """Address of the server, and the expected replies."""
    settings_given = {name: os.environ.get(f"KR_SERVING_{name}") for name in ("ADDRESS", "REST_ADDRESS", "REFERENCE")}
    if any(settings_given.values()):
        absent = sorted(f"KR_SERVING_{name}" for name, value in settings_given.items() if not value)
        if absent:
            pytest.fail(f"set {absent} as well: an external server is tested by gRPC and REST with the reference that --write made")
        from keras_ranking import models

        folder = Path(settings_given["REFERENCE"])
        yield made(models.load(folder), read_card(folder / "ranker" / "1"), settings_given["ADDRESS"], settings_given["REST_ADDRESS"])
        return
    from keras_ranking.serving import serve

    first = request.getfixturevalue("first")
    folder = tmp_path_factory.mktemp("conformance") / "ranker"
    shutil.copytree(first.version, folder / "1")
    warmup(folder / "1")
    with serve(folder, rest_port=0, grpc_port=0, labels={"stable": 1}) as running:
        yield made(first.model, first.card, f"127.0.0.1:{running.grpc_port}", f"127.0.0.1:{running.rest_port}")


def made(model, card, address, rest_address):
    channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
    return SimpleNamespace(
        model=model,
        card=card,
        name=os.environ.get("KR_SERVING_MODEL", "ranker"),
        label=os.environ.get("KR_SERVING_LABEL", "stable"),
        predict=prediction_service_pb2_grpc.PredictionServiceStub(channel),
        status=model_service_pb2_grpc.ModelServiceStub(channel),
        rest_address=rest_address,
    )


def rest(target, path, content=None, raw=None, method=None):
    connection = http.client.HTTPConnection(target.rest_address, timeout=60)
    body = raw if raw is not None else None if content is None else json.dumps(content).encode()
    connection.request(method or ("GET" if body is None else "POST"), f"/v1/models/{target.name}{path}", body)
    reply = connection.getresponse()
    text = reply.read()
    connection.close()
    return reply.status, json.loads(text)


def call(target, batch, signature="serving_default", model=None, **spec):
    import tensorflow as tf

    request = predict_pb2.PredictRequest()
    request.model_spec.name = model or target.name
    request.model_spec.signature_name = signature
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    for name, values in batch.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values, dtype=tf.string if values.dtype == object else None))
    response = patiently(lambda: target.predict.Predict(request, timeout=60))
    return {name: tf.make_ndarray(values) for name, values in response.outputs.items()}, response.model_spec


def patiently(send, attempts=6):
    """Sent again while the server has no free thread: by default it has four a core."""
    for attempt in range(attempts):
        try:
            return send()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or attempt == attempts - 1:
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")


def refused(target, *args, **settings):
    with pytest.raises(grpc.RpcError) as caught:
        call(target, *args, **settings)
    return caught.value.code().name


def columns(batch):
    return {name: values.tolist() for name, values in batch.items()}


def rows(batch):
    return [{name: values[row].tolist() for name, values in batch.items()} for row in range(len(batch["request_time"]))]


@pytest.fixture(scope="module")
def batch(target):
    return requests(target.card, hostile=False)


@pytest.fixture(scope="module")
def want(target, batch):
    return expected(target.model, target.card, batch)


def equal(got, want):
    """Scores of every request; a server that pads to other widths fills what does not count with anything finite."""
    assert sorted(got) == sorted(want)
    for name, values in want.items():
        found = np.asarray(got[name], dtype=np.float32)
        np.testing.assert_allclose(found[:, : values.shape[1]], values, **CLOSE)


# -- status and metadata --------------------------------------------------------------------------------------------------


def test_status(target):
    """AVAILABLE; with a warm-up file in the version, which means that its requests were run."""
    status, reply = rest(target, "")
    first = next(entry for entry in reply["model_version_status"] if entry["version"] == "1")
    assert status == 200 and first["state"] == "AVAILABLE" and first["status"]["error_code"] == "OK"
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = target.name
    request.model_spec.version.value = 1
    (entry,) = target.status.GetModelStatus(request, timeout=10).model_version_status
    assert (entry.version, entry.state, entry.status.error_code) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE, 0)
    assert rest(target, "/versions/1")[1]["model_version_status"] == [first]


def metadata(target):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = target.name
    response = target.predict.GetModelMetadata(request, timeout=10)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    return dict(found.signature_def)


def test_metadata(target):
    signatures = metadata(target)
    status, reply = rest(target, "/metadata")
    assert status == 200 and reply["model_spec"]["name"] == target.name
    by_rest = reply["metadata"]["signature_def"]["signature_def"]
    assert by_rest.keys() == signatures.keys() and "serving_default" in signatures
    for name, signature in signatures.items():
        for side in ("inputs", "outputs"):
            infos = getattr(signature, side)
            assert infos.keys() == by_rest[name][side].keys()
            for key, info in infos.items():
                dims = [str(dim.size) for dim in info.tensor_shape.dim]
                assert [dim["size"] for dim in by_rest[name][side][key]["tensor_shape"]["dim"]] == dims
    assert signatures["serving_default"].inputs.keys() == target.card.inputs.keys()
    assert signatures["serving_default"].outputs.keys() == target.card.outputs.keys()


# -- scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [{}, {"version": 1}, {"label": None}])
def test_predict_by_grpc(target, batch, want, which):
    got, spec = call(target, batch, **({"label": target.label} if "label" in which else which))
    assert (spec.name, spec.version.value, spec.signature_name) == (target.name, 1, "serving_default")
    equal(got, want)


@pytest.mark.parametrize("which", ["", "/versions/1", "label"])
def test_predict_by_rest(target, batch, want, which):
    path = f"/labels/{target.label}" if which == "label" else which
    status, reply = rest(target, f"{path}:predict", {"inputs": columns(batch)})
    assert status == 200 and sorted(reply) == ["outputs"]
    equal(reply["outputs"], want)
    status, reply = rest(target, f"{path}:predict", {"instances": rows(batch), "signature_name": "serving_default"})
    assert status == 200 and sorted(reply) == ["predictions"]
    equal({name: [row[name] for row in reply["predictions"]] for name in want}, want)


def test_every_signature(target, batch, want):
    """Each signature of the metadata gives the same reply by gRPC and REST; signatures with the same weights give the same scores."""
    signatures = metadata(target)
    replies_by_signature = {}
    for name, signature in signatures.items():
        if signature.method_name != "tensorflow/serving/predict":
            continue
        given = dict(batch)
        if name in ("score_candidates", "extend_history"):
            given |= call(target, {k: v for k, v in batch.items() if k in signatures["encode_history"].inputs}, "encode_history")[0]
        elif name.startswith("raw"):
            given = in_words_of_the_log(target, signature)
        given.setdefault("seed", np.arange(3, dtype=np.int32))
        given = {key: given[key] for key in signature.inputs}
        got, _ = call(target, given, name)
        assert got.keys() == signature.outputs.keys()
        assert all(values.shape[0] == 3 and np.isfinite(values).all() for values in got.values()), name
        words = np.vectorize(bytes.decode, otypes=[object])
        by_rest = {key: (words(values) if values.dtype == object else values).tolist() for key, values in given.items()}
        status, reply = rest(target, ":predict", {"inputs": by_rest, "signature_name": name})
        assert status == 200, reply
        outputs = reply["outputs"] if isinstance(reply["outputs"], dict) else {next(iter(got)): reply["outputs"]}
        for key, values in got.items():
            np.testing.assert_allclose(np.asarray(outputs[key], dtype=values.dtype), values, rtol=1e-6, atol=1e-6)
        replies_by_signature[name] = got
    for name in {"serving_default", "score_candidates"} & replies_by_signature.keys():
        equal(replies_by_signature[name], want)


def in_words_of_the_log(target, signature):
    """Inputs of `raw`: values as a log has them, in the types of the signature."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    made = {}
    for name, info in signature.inputs.items():
        dtype = tf.dtypes.as_dtype(info.dtype)
        shape = [3 if axis == 0 else 4 if dim.size < 0 else dim.size for axis, dim in enumerate(info.tensor_shape.dim)]
        if name in ("history_length", "candidate_count"):
            made[name] = np.array([4, 1, 2], dtype=np.int32)
        elif name.endswith("_time"):
            made[name] = np.full(shape, 1_790_000_000 - (name == "history_time"), dtype=np.int64)
        elif dtype == tf.string:
            made[name] = rng.choice(np.array([b"news", b"sport", b"17", b""], dtype=object), shape)
        else:
            made[name] = rng.integers(0, 100, shape).astype(dtype.as_numpy_dtype)
    return made


def test_mixed_lengths_at_once(target):
    """Requests of different lengths, sent at once: whatever the server joins, each gets the scores that it has alone."""
    rng = np.random.default_rng(1)
    settings_given = [
        requests(target.card, [int(rng.integers(0, 40))], [int(rng.integers(1, 12))], seed=seed, hostile=True) for seed in range(24)
    ]
    scores = [expected(target.model, target.card, one) for one in settings_given]
    assert np.abs(scores[0]["click"][0, 0] - scores[1]["click"][0, 0]) > 1e-4  # control: mixing them up would show
    with ThreadPoolExecutor(THREADS) as pool:
        for (got, _), wanted in zip(pool.map(lambda one: call(target, one), settings_given * 2), scores * 2, strict=True):
            equal(got, wanted)


def test_hostile_padding(target):
    """Garbage beyond the lengths changes no score, and neither does the first element as padding, which is TensorFlow Serving's."""
    hostile = requests(target.card, (5, 0), (2, 6), seed=3, hostile=True)
    assert np.isnan(hostile["candidate_text"]).any()
    want = expected(target.model, target.card, hostile)
    equal(call(target, hostile)[0], want)
    first = {name: values.copy() for name, values in hostile.items()}
    for name, values in first.items():
        if values.ndim > 1:
            length = first["history_length" if name.startswith("history_") else "candidate_count"]
            for row, count in enumerate(length):
                values[row, count:] = values[0, 0]
    equal(call(target, first)[0], want)


@pytest.mark.parametrize("lengths", [((0,), (1,)), ((0, 0), (3, 1)), ((1,), (1,)), ((300,), (50,))])
def test_lengths_at_the_edges(target, lengths):
    one = requests(target.card, *lengths, seed=9)
    equal(call(target, one)[0], expected(target.model, target.card, one))


def test_a_request_is_alone(target, batch, want):
    for row in range(3):
        got, _ = call(target, alone(batch, target.card.inputs, row))
        for name in want:
            count = int(batch["candidate_count"][row])
            np.testing.assert_allclose(got[name][0, :count], want[name][row, :count], **CLOSE)


# -- what is wrong --------------------------------------------------------------------------------------------------------


def test_wrong_names(target, batch):
    assert refused(target, batch, model="other") == "NOT_FOUND"
    assert refused(target, batch, version=99) == "NOT_FOUND"
    assert refused(target, batch, label="no such label") == "INVALID_ARGUMENT"
    assert refused(target, batch, signature="no such signature") == "FAILED_PRECONDITION"
    assert rest(target, "/versions/99:predict", {"inputs": columns(batch)})[0] == 404
    assert rest(target, "/labels/none:predict", {"inputs": columns(batch)})[0] == 400
    status, reply = rest(target, ":predict", {"inputs": columns(batch), "signature_name": "no such signature"})
    assert status == 400 and "error" in reply


def test_wrong_inputs(target, batch):
    assert refused(target, {k: v for k, v in batch.items() if k != "history_click"}) == "INVALID_ARGUMENT"
    assert refused(target, batch | {"nothing": batch["request_time"]}) == "INVALID_ARGUMENT"
    assert refused(target, batch | {"history_click": batch["history_click"].astype(np.int64)}) == "INVALID_ARGUMENT"
    assert refused(target, batch | {"history_text": batch["history_text"][..., :2]}) == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"instances": []}', b'{"inputs": {"history_click": "x"}}', b'{"instances": [1]}']
)
def test_wrong_bodies(target, body):
    status, reply = rest(target, ":predict", raw=body)
    assert status == 400 and isinstance(reply["error"], str)


def test_it_lives(target, batch, want):
    equal(call(target, batch)[0], want)


def write(folder):
    """The reference for an outside server."""
    from keras_ranking.serving import export

    model = standin.make(seed=1)
    version = export(model, folder / "ranker")
    warmup(version)
    standin.save(model, folder)
    (folder / "models.config").write_text(CONFIG % (folder / "ranker").resolve())
    (folder / "batching.config").write_text(BATCHING)
    print(f"reference model: {version}\nserve it as 'ranker', then: KR_SERVING_REFERENCE={folder} (see the head of this file)")


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--write":
        sys.exit("usage: python tests/serving/server/test_conformance.py --write FOLDER")
    write(Path(sys.argv[2]))
