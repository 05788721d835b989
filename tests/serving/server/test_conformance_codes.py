# ruff: noqa: F811 (fixtures of another module)
"""What both servers ignore and refuse alike, and invalid requests; against another server as `test_conformance.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest

grpc = pytest.importorskip("grpc")
from tests.serving.server.test_conformance import CLOSE, batch, call, columns, equal, rest, rows, target, want  # noqa: E402, F401

pytestmark = pytest.mark.one_backend


def test_what_rest_ignores(target, batch, want):
    """Inputs that the signature does not have, other keys, text after the JSON value."""
    content = {"inputs": columns(batch) | {"nothing": [1, 2, 3]}, "comment": "other keys"}
    replies = [rest(target, ":predict", content), rest(target, ":predict", raw=json.dumps(content).encode() + b" and more")]
    for status, reply in replies:
        assert status == 200
        equal(reply["outputs"], want)
    more = [row | {"nothing": 1} for row in rows(batch)]
    status, reply = rest(target, ":predict", {"instances": more})
    assert status == 200
    equal({name: [row[name] for row in reply["predictions"]] for name in want}, want)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ":predict"), ("PUT", ":predict"), ("DELETE", ""), ("POST", ":predict?x=1"), ("GET", "?x=1"), ("GET", "/metadata?x=1")],
)
def test_wrong_methods_and_queries(target, batch, method, path):
    body = {"inputs": columns(batch)} if method in ("POST", "PUT") else None
    status, reply = rest(target, path, body, method=method)
    assert status == 400 and "Malformed request" in reply["error"]


def test_the_status_by_a_label_is_that_of_all_versions(target):
    assert rest(target, f"/labels/{target.label}") == rest(target, "/labels/none") == rest(target, "")


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
@pytest.mark.parametrize(
    ("name", "value"), [("candidate_item_id", 500), ("candidate_item_id", -1), ("candidate_count", 99), ("candidate_affinity", np.nan)]
)
def test_an_invalid_request_is_refused_or_marked(target, batch, want, protocol, name, value):
    """The embedded server refuses the call and names the input; another one replies, with -1 as every score of the request."""
    values = batch[name].copy()
    values[(1, *[0] * (values.ndim - 1))] = value
    spoilt = batch | {name: values}
    if protocol == "grpc":
        try:
            got, _ = call(target, spoilt)
        except grpc.RpcError as error:
            assert error.code().name == "INVALID_ARGUMENT" and f"'{name}'" in error.details()
            return
    else:
        status, reply = rest(target, ":predict", {"inputs": columns(spoilt)})
        if status != 200:
            assert status == 400 and f"'{name}'" in reply["error"]
            return
        got = {key: np.asarray(values) for key, values in reply["outputs"].items()}
    for key, values in got.items():
        assert (values[1] == -1).all()
        np.testing.assert_allclose(values[[0, 2], : want[key].shape[1]], want[key][[0, 2]], **CLOSE)
