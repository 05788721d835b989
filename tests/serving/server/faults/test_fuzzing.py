"""Random bodies and messages: never an internal error, and the memory is released."""

from __future__ import annotations

import contextlib
import http.client
import json
import re

import pytest
from hypothesis import HealthCheck, given, seed, settings, strategies as st

from tests.serving.calling import requests, until
from tests.serving.server.faults.faulty_calls import MEMORY, crowd

grpc = pytest.importorskip("grpc")
from keras_ranking.serving.protocol import codec, protos  # noqa: E402

pytestmark = [pytest.mark.one_backend, pytest.mark.slow]

FUZZ = settings(max_examples=500, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
KEYS = st.sampled_from(
    ["inputs", "instances", "signature_name", "history_click", "history_length", "candidate_count", "request_time", "b64"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([0, 1, -1, 2**31, 2**63, 1e308, "raw"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def good_body(first):
    return {"inputs": {name: values.tolist() for name, values in requests(first.card, hostile=False).items()}}


def test_500_fuzzed_json_bodies(server, first):
    """Never 500, never a broken reply: 200 if the body is valid by chance, else 400 or 413."""
    good = good_body(first)
    names = sorted(good["inputs"])
    text = json.dumps(good).encode()
    seen = set()
    connection = http.client.HTTPConnection("127.0.0.1", server.rest, timeout=30)

    def spoiled(change):
        kind, name, value, where, byte = change
        if kind == "any":
            return json.dumps(value).encode()
        if kind == "field":
            return json.dumps({"inputs": good["inputs"] | {name: value}}).encode()
        if kind == "row":
            rows = [{key: values[row] for key, values in good["inputs"].items()} for row in range(3)]
            rows[where % 3][name] = value
            return json.dumps({"instances": rows}).encode()
        at = where * 2_654_435_761 % len(text)  # any place: small numbers are drawn more often
        return text[:at] + bytes([byte]) + text[at + (kind == "byte") :]

    changes = st.tuples(
        st.sampled_from(["any", "field", "row", "byte", "insert"]),
        st.sampled_from(names),
        VALUES,
        st.integers(0, 10**6),
        st.integers(0, 255) | st.sampled_from(b"0123456789"),  # another digit leaves the body valid
    )

    @seed(7)
    @FUZZ
    @given(changes)
    def send(change):
        connection.request("POST", "/v1/models/ranker:predict", spoiled(change))
        reply = connection.getresponse()
        content = json.loads(reply.read())
        seen.add(reply.status)
        assert reply.status in (200, 400, 413), content
        assert ("error" in content) == (reply.status != 200)

    with contextlib.closing(connection):
        send()
    assert {200, 400} <= seen


def test_500_fuzzed_protobufs(server, first):
    """Never INTERNAL or UNKNOWN: the error says what is wrong with the bytes."""
    good = codec.predict_request("ranker", "", requests(first.card, (3,), (2,))).SerializeToString()
    names = sorted(first.card.inputs)
    allowed = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"}
    seen = set()

    def spoiled(change):
        kind, name, number, numbers, where, raw = change
        if kind == "bytes":
            return raw
        if kind == "splice":
            at = where % len(good)
            return good[:at] + raw + good[at + number % 9 :]
        request = protos.PredictRequest.FromString(good)
        tensor = request.inputs[name]
        if kind == "dtype":
            tensor.dtype = number % 200 - 50
        elif kind == "shape":
            del tensor.tensor_shape.dim[:]
            for size in numbers:
                tensor.tensor_shape.dim.add().size = size
        elif kind == "content":
            tensor.tensor_content = raw
        elif kind == "values":
            tensor.ClearField("tensor_content")
            tensor.int_val.extend(max(-(2**31), min(2**31 - 1, size)) for size in numbers)
            tensor.float_val.extend(map(float, numbers))
        elif kind == "spec":
            request.model_spec.version_label = raw.decode("latin-1")
            request.model_spec.signature_name = name
        else:
            tensor.tensor_shape.unknown_rank = True
        return request.SerializeToString()

    kinds = st.sampled_from(["bytes", "splice", "splice", "dtype", "shape", "content", "values", "spec", "rank"])
    sizes = st.integers(-(2**40), 2**62) | st.integers(-2, 9)
    changes = st.tuples(
        kinds, st.sampled_from(names), st.integers(0, 10**6), st.lists(sizes, max_size=5), st.integers(0, 10**6), st.binary(max_size=40)
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
        predict = channel.unary_unary(protos.PREDICT)
        others = [channel.unary_unary(path) for path in (protos.METADATA, protos.STATUS)]

        @seed(7)
        @FUZZ
        @given(changes)
        def send(change):
            message = spoiled(change)
            for call in (predict, *(others if change[0] == "bytes" else ())):
                try:
                    call(message, timeout=30)
                    code = details = "OK"
                except grpc.RpcError as error:
                    code, details = error.code().name, error.details()
                seen.add(code)
                assert code in allowed, (code, details)

        send()
    assert {"INVALID_ARGUMENT", "OK"} <= seen


def test_memory_is_released(server, memory_before):
    """The last test of the file: after all faults above and concurrent bodies just below the limit."""
    for _ in range(4):
        crowd(server)
    until(lambda: not server.connections)
    until(lambda: server.memory - memory_before < MEMORY, 20)
    log = server.errors.read_text()
    assert "Traceback" not in re.sub(r"version \d+ of .* is not served: .*", "", log), log[-2000:]
