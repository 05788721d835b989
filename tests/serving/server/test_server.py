"""The embedded server: the same answers by every door, new versions, bad input, load."""

from __future__ import annotations

import json
import logging
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from keras_ranking.serving import Limits, Retry, ServingError, serve
from tests.serving.calling import connect, copy_version, expected, frames, requests, until

grpc = pytest.importorskip("grpc")
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_ranking.serving.protocol import codec  # noqa: E402

pytestmark = pytest.mark.one_backend
CLOSE = {"rtol": 0, "atol": 1e-5}


def rest(server, path, content=None, raw=None):
    """Status and JSON of a call to the REST door."""
    data = raw if raw is not None else None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_port}{path}", data=data)
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def columns(batch):
    return {"inputs": {name: values.tolist() for name, values in batch.items()}}


def rows(batch):
    count = len(batch["request_time"])
    return {"instances": [{name: values[row].tolist() for name, values in batch.items()} for row in range(count)]}


def predict(channel, batch, model="ranker", signature="", **spec):
    request = codec.predict_request(model, signature, batch)
    for key, value in spec.items():
        if key == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, key, value)
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


@pytest.fixture(scope="module")
def batch(first):
    made = requests(first.card, hostile=False)
    made["want"] = expected(first.model, first.card, made)
    return made


@pytest.fixture
def want(batch):
    return batch["want"]


@pytest.fixture
def inputs(batch):
    return {name: values for name, values in batch.items() if name != "want"}


# -- the same answers by every door ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["", "/versions/1", "/labels/stable"])
def test_rest_columns(server, inputs, want, which):
    status, reply = rest(server, f"/v1/models/ranker{which}:predict", columns(inputs) | {"signature_name": "serving_default"})
    assert status == 200 and sorted(reply) == ["outputs"] and sorted(reply["outputs"]) == sorted(want)
    for name, values in want.items():
        np.testing.assert_allclose(reply["outputs"][name], values, **CLOSE)


def test_rest_rows(server, inputs, want):
    status, reply = rest(server, "/v1/models/ranker:predict", rows(inputs))
    assert status == 200 and sorted(reply) == ["predictions"] and len(reply["predictions"]) == 3
    for name, values in want.items():
        np.testing.assert_allclose([row[name] for row in reply["predictions"]], values, **CLOSE)


@pytest.mark.parametrize("spec", [{}, {"signature": "serving_default"}, {"version": 1}, {"version_label": "stable"}])
def test_grpc(channel, inputs, want, spec):
    response = predict(channel, inputs, **spec)
    assert (response.model_spec.name, response.model_spec.version.value) == ("ranker", 1)
    assert response.model_spec.signature_name == "serving_default"
    got = codec.read_tensors(response.outputs)
    assert sorted(got) == sorted(want)
    for name, values in want.items():
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], values, **CLOSE)


def test_hostile_padding_over_grpc(channel, first):
    """NaN, infinities and ids outside every table, beyond the lengths."""
    batch = requests(first.card, (9, 0), (2, 7), seed=3, hostile=True)
    assert np.isnan(batch["candidate_text"]).any() and (batch["history_item_id"] < 0).any()
    got = codec.read_tensors(predict(channel, batch).outputs)
    for name, values in expected(first.model, first.card, batch).items():
        np.testing.assert_allclose(got[name], values, **CLOSE)


def test_values_listed_instead_of_packed(channel, inputs, want):
    """Clients in other languages fill `float_val`, `int_val`; one value may stand for all."""
    request = codec.predict_request("ranker", "", inputs)
    for name, values in inputs.items():
        proto = request.inputs[name]
        proto.ClearField("tensor_content")
        (proto.float_val if values.dtype == np.float32 else proto.int_val).extend(values.reshape(-1).tolist())
    del request.inputs["request_time"].int_val[:]
    request.inputs["request_time"].int_val.append(int(inputs["request_time"][0]))
    request.output_filter.append("click")
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
    assert list(response.outputs) == ["click"]
    np.testing.assert_allclose(codec.read_tensors(response.outputs)["click"][0], want["click"][0], **CLOSE)


def test_status_and_metadata(server, channel, first):
    available = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("", "/versions/1", "/labels/stable"):
        assert rest(server, f"/v1/models/ranker{path}") == (200, {"model_version_status": [available]})
    status, reply = rest(server, "/v1/models/ranker/metadata")
    assert status == 200 and reply["model_spec"] == {"name": "ranker", "signature_name": "", "version": "1"}
    signature = reply["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert sorted(signature["inputs"]) == sorted(first.card.inputs) and sorted(signature["outputs"]) == sorted(first.card.outputs)
    text = signature["inputs"]["history_text"]
    assert text["dtype"] == "DT_FLOAT" and [dim["size"] for dim in text["tensor_shape"]["dim"]] == ["-1", "-1", "3"]
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    response = stub.GetModelMetadata(codec.metadata_request("ranker"), timeout=60)
    found = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(found)
    assert sorted(found.signature_def["serving_default"].inputs) == sorted(first.card.inputs)
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "ranker"
    state = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(asked, timeout=60).model_version_status[0]
    assert (state.version, state.state, state.status.error_code) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE, 0)


def test_health_and_metrics(server, inputs):
    assert rest(server, "/healthz") == (200, {"model": "ranker", "version": 1})
    rest(server, "/v1/models/ranker:predict", columns(inputs))
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest_port}/monitoring/prometheus/metrics") as reply:
        text = reply.read().decode()
    for line in (
        'keras_ranking_calls_total{code="OK",protocol="rest",signature="serving_default"}',
        'keras_ranking_call_seconds_bucket{le="0.004",protocol="rest",signature="serving_default"}',
        "keras_ranking_batch_rows_bucket",
        "keras_ranking_waiting_calls 0.0",
        "keras_ranking_running_calls 0.0",
        'keras_ranking_version_state{state="AVAILABLE",version="1"} 1.0',
        "process_resident_memory_bytes",
    ):
        assert line in text, line


# -- bad input: a clear error and a living process ------------------------------------------------------------------------


def changed(name, values):
    return lambda batch: batch | {name: values(batch[name].copy())}


def put(value, *where):
    def write(array):
        array[where] = value
        return array

    return write


BAD = {
    "wrong dtype": (changed("history_item_id", lambda a: a + 0.5), "'history_item_id' must be int32"),
    "wrong rank": (changed("candidate_topic", lambda a: a[..., None]), r"'candidate_topic' must have rank 2 and shape \(\?, \?\)"),
    "wrong size": (changed("history_text", lambda a: a[..., :2]), r"'history_text' must have rank 3 and shape \(\?, \?, 3\)"),
    "scalar": (changed("request_time", lambda a: a[0]), "'request_time' must have rank 1"),
    "missing": (lambda batch: {k: v for k, v in batch.items() if k != "history_click"}, "missing input 'history_click'"),
    "unknown": (lambda batch: batch | {"rank": batch["request_time"]}, "unknown input 'rank'"),
    "rows differ": (changed("request_time", lambda a: a[:2]), "different numbers of rows"),
    "lists differ": (changed("history_click", lambda a: a[:, :-1]), "history inputs must be equally long"),
    "nan": (changed("candidate_affinity", put(np.nan, 1, 0)), r"'candidate_affinity' must hold finite numbers. Received: nan at \[1, 0\]"),
    "infinity": (changed("history_text", put(-np.inf, 2, 1, 0)), "'history_text' must hold finite numbers. Received: -inf"),
    "id outside its table": (changed("candidate_item_id", put(500, 0, 0)), r"'candidate_item_id' must hold integers in 0 .. 499"),
    "no candidate": (changed("candidate_count", put(0, 1)), "'candidate_count' must be at least 1.*Received: 0 in row 1"),
    "too many candidates": (changed("candidate_count", put(99, 2)), "'candidate_count' is 99 in row 2, but the candidate inputs hold 7"),
    "length too long": (changed("history_length", put(11, 0)), "'history_length' is 11 in row 0, but the history inputs hold 10"),
    "length below 0": (changed("history_length", put(-1, 0)), "'history_length' must be 0 or more"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(server, channel, inputs, want, case):
    spoil, message = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, spoil(inputs))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert re.search(message, caught.value.details())
    bodies = [columns(spoil(inputs))]
    if case not in ("rows differ", "scalar"):  # cannot be said in rows
        bodies.append(rows(spoil(inputs)))
    for body in bodies:
        status, reply = rest(server, "/v1/models/ranker:predict", body)
        assert status == 400 and sorted(reply) == ["error"]
        assert re.search(message, reply["error"])
    still_good(server, channel, inputs, want)


def still_good(server, channel, inputs, want):
    np.testing.assert_allclose(codec.read_tensors(predict(channel, inputs).outputs)["click"], want["click"], **CLOSE)
    status, reply = rest(server, "/v1/models/ranker:predict", columns(inputs))
    assert status == 200
    np.testing.assert_allclose(reply["outputs"]["click"], want["click"], **CLOSE)


BAD_BODIES = {
    "no json": (b"{", "JSON parse error"),
    "truncated": (b'{"inputs": {"request_time": [1,', "JSON parse error"),
    "empty": (b"", "JSON parse error"),
    "deep": (b"[" * 100_000 + b"NaN", "JSON parse error"),
    "a list": (b"[]", "must be a JSON object"),
    "neither form": (b"{}", "must have 'instances' or 'inputs'"),
    "both forms": (b'{"instances": [], "inputs": {}}', "must have 'instances' or 'inputs'"),
    "no rows": (b'{"instances": []}', "at least one request"),
    "rows that are none": (b'{"instances": [1]}', "must hold objects"),
    "columns that are none": (b'{"inputs": 3}', "must be an object"),
    "ragged": (b'{"inputs": {"history_click": [[1.0], [1.0, 2.0]]}}', "'history_click' must be a full array"),
    "nulls": (b'{"inputs": {"history_click": [[null]]}}', "'history_click' must be float32. Received: nulls"),
    "text": (b'{"inputs": {"history_time": [["1"]]}}', "'history_time' must be int32. Received: text"),
    "true": (b'{"inputs": {"history_time": [[true]]}}', "'history_time' must be int32. Received: true and false"),
    "64 bits": (b'{"inputs": {"history_time": [[3000000000]]}}', "'history_time' must be int32. Received a number out of its range"),
    "signature": (b'{"signature_name": 3, "inputs": {}}', "'signature_name' must be text"),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_body(server, case):
    body, message = BAD_BODIES[case]
    status, reply = rest(server, "/v1/models/ranker:predict", raw=body)
    assert status == 400 and message in reply["error"]


def test_bad_tensors(server, channel, inputs, want):
    """Protobufs that lie about their size or type."""

    def refused(fill):
        request = codec.predict_request("ranker", "", inputs)
        fill(request.inputs["history_click"])
        with pytest.raises(grpc.RpcError) as caught:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)
        return caught.value.code().name, caught.value.details()

    def huge(proto):
        proto.Clear()
        proto.dtype = 1
        for _ in range(2):
            proto.tensor_shape.dim.add().size = 2**40
        proto.float_val.append(1.0)

    def negative(proto):
        proto.tensor_shape.dim[0].size = -1

    def short(proto):
        proto.tensor_content = proto.tensor_content[:-1]

    def text(proto):
        proto.Clear()
        proto.dtype = 7
        proto.string_val.append(b"x")

    assert refused(huge)[0] == "RESOURCE_EXHAUSTED" and "limit of 4194304 bytes" in refused(huge)[1]
    assert refused(negative) == ("INVALID_ARGUMENT", "input 'history_click' must have a known shape. Received: [-1, 10]")
    assert refused(short)[0] == "INVALID_ARGUMENT" and "must have 120 bytes. Received: 119" in refused(short)[1]
    assert refused(text) == ("INVALID_ARGUMENT", "input 'history_click' must be float32. Received: text")
    still_good(server, channel, inputs, want)


@pytest.mark.parametrize(
    ("path", "spec", "http", "code", "message"),
    [
        ("/v1/models/other:predict", {"model": "other"}, 404, "NOT_FOUND", 'model "other" not found'),
        ("/v1/models/ranker/versions/9:predict", {"version": 9}, 404, "NOT_FOUND", "version 9 is not loaded"),
        ("/v1/models/ranker/labels/canary:predict", {"version_label": "canary"}, 400, "INVALID_ARGUMENT", 'label "canary" not found'),
    ],
)
def test_unknown_model_version_label(server, channel, inputs, path, spec, http, code, message):
    """With the codes of TensorFlow Serving."""
    status, reply = rest(server, path, columns(inputs))
    assert status == http and message in reply["error"]
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, inputs, **spec)
    assert caught.value.code().name == code and message in caught.value.details()


def test_unknown_signature_and_output(server, channel, inputs):
    status, reply = rest(server, "/v1/models/ranker:predict", columns(inputs) | {"signature_name": "guess"})
    assert status == 400 and 'signature "guess" not found' in reply["error"]
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, inputs, signature="guess")
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    request = codec.predict_request("ranker", "", inputs)
    request.output_filter.append("follow")
    with pytest.raises(grpc.RpcError, match="unknown output 'follow'"):
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


def test_paths_that_are_none(server):
    assert rest(server, "/v1/models/ranker:guess", {}) == (400, {"error": "Malformed request: POST /v1/models/ranker:guess"})
    assert rest(server, "/elsewhere")[0] == 404
    status, reply = rest(server, "/v1/models/ranker:predict")
    assert status == 405 and "Malformed request" in reply["error"]


def test_body_of_100_mb(server, channel, inputs, want):
    status, reply = rest(server, "/v1/models/ranker:predict", raw=b" " * 100_000_000)
    assert (status, reply) == (413, {"error": "the body is larger than the limit of 4194304 bytes"})
    huge = inputs | {"history_text": np.zeros((3, 2_800_000, 3), np.float32)}
    with pytest.raises(grpc.RpcError) as caught:
        predict(channel, huge)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "4194304" in caught.value.details()
    still_good(server, channel, inputs, want)


def test_body_of_unknown_length(server):
    """Sent in chunks, with no Content-Length to look at."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    connection.request("POST", "/v1/models/ranker:predict", (b" " * 65_536 for _ in range(100)), encode_chunked=True)
    reply = connection.getresponse()
    assert reply.status == 413 and b"limit of 4194304" in reply.read()


def test_too_many_rows(server, channel, first):
    many = requests(first.card, [1] * 17, [1] * 17, hostile=False)
    for form in (columns, rows):
        status, reply = rest(server, "/v1/models/ranker:predict", form(many))
        assert status == 413 and "at most 16 requests" in reply["error"]
    with pytest.raises(grpc.RpcError, match="at most 16 requests"):
        predict(channel, many)


def test_deadline(server, channel, inputs):
    with pytest.raises(grpc.RpcError) as caught:
        request = codec.predict_request("ranker", "", inputs)
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=1e-6)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


# -- starting, versions, stopping -----------------------------------------------------------------------------------------


def open_server(folder, **settings):
    return serve(folder, rest_port=0, grpc_port=0, poll_seconds=0.1, **settings)


def test_folder_without_a_served_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such model folder"):
        serve(tmp_path / "nothing")
    (tmp_path / "ranker").mkdir()
    (tmp_path / "ranker" / "latest").mkdir()
    with pytest.raises(FileNotFoundError, match="no versions in .*ranker"):
        serve(tmp_path / "ranker")
    (tmp_path / "ranker" / "1").mkdir()
    with pytest.raises(RuntimeError, match="no version in .* can be served. Version 1: .*saved_model.pb"):
        serve(tmp_path / "ranker")


@pytest.mark.parametrize("settings", [{"labels": {"canary": 4}}, {"poll_seconds": 0}, {"threads": -1}, {"name": "a/b"}])
def test_settings_out_of_range(first, settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` must"):
        serve(first.version.parent, **settings)
    with pytest.raises(ValueError, match="`queue` must be a positive number. Received: queue=0"):
        Limits(queue=0)


def test_port_that_is_taken(first, server):
    with pytest.raises(OSError, match=rf"REST server cannot listen on 127.0.0.1:{server.rest_port}"):
        serve(first.version.parent, rest_port=server.rest_port, grpc_port=0)
    with pytest.raises(OSError, match=rf"gRPC server cannot listen on 127.0.0.1:{server.grpc_port}"):
        serve(first.version.parent, rest_port=0, grpc_port=server.grpc_port)


def test_new_version_under_load(first, second, tmp_path):
    """Every call gets the scores of the version it names; none fails; the new version takes over; the old one goes."""
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    request = frames(6, 4)
    failures, replies, stop = [], [], threading.Event()

    def load(protocol):
        with connect(running, protocol) as client:
            while not stop.is_set():
                try:
                    replies.append((time.monotonic(), client.score(*request)["click"].to_numpy()))
                except Exception as error:
                    failures.append(error)

    with open_server(folder) as running:
        with connect(running, "grpc") as client:
            old = client.score(*request)["click"].to_numpy()
        threads = [threading.Thread(target=load, args=(protocol,)) for protocol in ("grpc", "rest")]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(replies) > 5)
            copy_version(second.version, folder, 2)
            until(lambda: running.version == 2)
            swapped = time.monotonic()
            count = len(replies)
            until(lambda: len(replies) > count + 5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        with connect(running, "rest") as client:
            new = client.score(*request)["click"].to_numpy()
        until(lambda: [s["state"] for s in rest(running, "/v1/models/ranker")[1]["model_version_status"]] == ["AVAILABLE", "END"])
        assert rest(running, "/v1/models/ranker/versions/1:predict", {"inputs": {}})[0] == 404
        shutil.rmtree(folder / "2")  # taking a version back
        until(lambda: running.version == 1)
    assert not failures
    assert np.abs(old - new).max() > 1e-2
    assert all(np.allclose(scores, old, **CLOSE) or np.allclose(scores, new, **CLOSE) for _, scores in replies)
    assert all(np.allclose(scores, new, **CLOSE) for when, scores in replies if when > swapped + 5.0)


def test_broken_new_version(first, second, tmp_path, caplog):
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    request = frames(3, 5)
    with open_server(folder) as running, connect(running, "grpc") as client, caplog.at_level(logging.ERROR, "keras_ranking.serving"):
        old = client.score(*request)
        shutil.copytree(second.version, folder / ".2")
        weights = folder / ".2/variables/variables.data-00000-of-00001"
        weights.write_bytes(weights.read_bytes()[:100])
        (folder / ".2").rename(folder / "2")
        (folder / "3").mkdir()
        until(lambda: {"version 2", "version 3"} <= {" ".join(record.getMessage().split()[:2]) for record in caplog.records})
        np.testing.assert_array_equal(client.score(*request), old)
        assert running.version == 1
        states = rest(running, "/v1/models/ranker")[1]["model_version_status"]
        assert [(s["version"], s["state"], s["status"]["error_code"]) for s in states] == [
            ("3", "END", "UNKNOWN"),
            ("2", "END", "UNKNOWN"),
            ("1", "AVAILABLE", "OK"),
        ]
        errors = len(caplog.records)
        time.sleep(0.5)
        assert len(caplog.records) == errors  # said once, not at every look
        shutil.rmtree(folder / "2")
        copy_version(second.version, folder, 2)  # mended
        until(lambda: running.version == 2)
        assert np.abs(client.score(*request) - old).to_numpy().max() > 1e-2


def test_start_with_a_broken_highest_version(first, tmp_path):
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    (folder / "2").mkdir()
    with open_server(folder) as running:
        assert running.version == 1


def test_stop_answers_what_is_under_way(first, tmp_path):
    """Calls under way when the server stops get their scores; later ones find nobody. Nothing in between."""
    folder = tmp_path / "ranker"
    folder.mkdir()
    copy_version(first.version, folder, 1)
    outcomes = []

    def load(protocol):
        with connect(running, protocol) as client:
            while True:
                try:
                    outcomes.append(client.score(*request))
                except ServingError as error:
                    outcomes.append(error)
                    return

    request = frames(5, 3)
    running = open_server(folder)
    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, protocol) for protocol in ("grpc", "rest", "grpc", "rest")]
        until(lambda: len(outcomes) > 20)
        running.stop()
        running.stop()
        for future in loads:
            future.result(timeout=60)
    errors = [outcome for outcome in outcomes if isinstance(outcome, ServingError)]
    assert {error.code for error in errors} == {"UNAVAILABLE"} and len(errors) == 4, errors
    with pytest.raises(OSError):
        rest(running, "/healthz")


def test_full_queue_is_refused(first, tmp_path):
    """Back-pressure by both doors: stated, and gone when the load is."""
    limits = Limits(queue=1, batch=1)
    with serve(first.version.parent, rest_port=0, grpc_port=0, limits=limits) as running:
        outcomes = []

        def load(protocol):
            with connect(running, protocol, retry=Retry(attempts=1)) as client:
                for _ in range(15):
                    try:
                        outcomes.append((protocol, client.score(*frames(300, 200)).shape))
                    except ServingError as error:
                        outcomes.append((protocol, error.code, error.message))

        threads = [threading.Thread(target=load, args=(protocol,)) for protocol in ("grpc", "rest") * 6]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [outcome for outcome in outcomes if len(outcome) == 3]
        assert all(code == "RESOURCE_EXHAUSTED" and "1 calls are waiting already" in message for _, code, message in refused)
        assert {outcome[1] for outcome in outcomes if len(outcome) == 2} == {(200, 2)}
        assert {"grpc", "rest"} == {outcome[0] for outcome in refused}
        with connect(running, "grpc") as client:
            assert client.score(*frames(3, 2)).shape == (2, 2)


def test_many_threads(server, first):
    """8 threads x 25 requests of mixed lengths, by both doors: each reply is that of its own request."""
    rng = np.random.default_rng(0)
    asked = [frames(int(rng.integers(0, 40)), int(rng.integers(1, 20)), seed=seed) for seed in range(25)]
    with connect(server, "grpc") as client:
        alone = [client.score(*request) for request in asked]
    assert np.abs(alone[0].to_numpy()[0] - alone[1].to_numpy()[0]).max() > 1e-4  # control: mixing them up would show

    def load(number):
        with connect(server, "grpc" if number % 2 else "rest") as client:
            order = np.random.default_rng(number).permutation(len(asked))
            return [(index, client.score(*asked[index])) for index in order]

    with ThreadPoolExecutor(8) as pool:
        results = [pair for replies in pool.map(load, range(8)) for pair in replies]
    assert len(results) == 200
    for index, got in results:
        assert got.index.equals(asked[index][1].index)
        np.testing.assert_allclose(got, alone[index], **CLOSE)


def test_requests_are_untouched(inputs):
    """The predict request of the helper above is what the API says, so that these tests speak for other clients."""
    request = predict_pb2.PredictRequest.FromString(codec.predict_request("ranker", "", inputs).SerializeToString())
    tf = pytest.importorskip("tensorflow")
    for name, values in inputs.items():
        np.testing.assert_array_equal(tf.make_ndarray(request.inputs[name]), values)
