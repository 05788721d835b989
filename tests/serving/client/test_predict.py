"""Calls of any signature, types of raw tensors, and the imports of a client."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_ranking.serving.protocol.model_folder import EXTRA, SCHEMA_FILE
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.signature import Signature, Tensor
from tests.serving.calling import requests

pytestmark = pytest.mark.one_backend


def test_predict(client, first):
    batch = requests(first.card, (2, 0), (3, 1), hostile=False)
    got = client.predict(batch)
    assert got["click"].shape == (2, 5) and got["click"].dtype == np.float32
    for spoil, message in (
        (lambda b: {k: v for k, v in b.items() if k != "history_click"}, "missing input 'history_click'"),
        (lambda b: b | {"rank": b["request_time"]}, "unknown input 'rank'"),
        (lambda b: b | {"history_click": b["history_click"].astype(np.int64)}, "input 'history_click' must be float32. Received: int64"),
        (lambda b: b | {"history_click": b["history_click"][0]}, "input 'history_click' must have rank 2"),
    ):
        with pytest.raises(ValueError, match=message):
            client.predict(spoil(batch))


def test_raw_types():
    from keras_ranking import Id, Number, Schema, Vector

    schema = Schema(member="m", time="t", request="r", features=[Id("item"), Number("age"), Vector("text", size=2)], tasks=["good"])
    free = (None, None)
    inputs = {
        "candidate_item": Tensor(np.dtype(np.int64), free),
        "candidate_age": Tensor(np.dtype(np.float64), free),
        "candidate_text": Tensor(np.dtype(np.float32), (None, None, 2)),
        "request_time": Tensor(np.dtype(np.int64), (None,)),
        "history_item": Tensor(np.dtype(np.int64), free),
        "candidate_count": Tensor(np.dtype(np.int32), (None,)),
    }
    signature = Signature("raw", inputs, {})
    candidates = pd.DataFrame({"item": [2**63 - 1, -5], "age": [0.1, 2.0], "text": [[1.0, 2.0], [3.0, 4.0]]})
    got = raw_request_tensors(schema, None, candidates, 1_790_000_000, signature)
    assert got["candidate_item"].tolist() == [2**63 - 1, -5] and got["candidate_age"].tolist() == [0.1, 2.0]  # exact
    assert got["request_time"] == 1_790_000_000 and got["candidate_text"].shape == (2, 2) and got["history_item"].shape == (0,)
    for column, values, message in (
        ("item", ["a", 2], "column 'item' must hold whole numbers of int64. Received: 'a' at row 0"),
        ("item", [1, None], "column 'item' must hold whole numbers of int64. Received: .* at row 1"),
        ("age", [1.0, np.inf], "column 'age' must hold finite numbers. Received: .*inf.* at row 1"),
        ("text", [[1.0], [1.0]], r"column 'text' must hold vectors of 2. Received: shape \(1,\) at row 0"),
    ):
        with pytest.raises(ValueError, match=f"in the candidates: {message}"):
            raw_request_tensors(schema, None, candidates.assign(**{column: values}), 1_790_000_000, signature)
    with pytest.raises(ValueError, match="column 'age' is missing in the candidates"):
        raw_request_tensors(schema, None, candidates.drop(columns="age"), 1_790_000_000, signature)


def test_imports_no_tensorflow(server):
    """A gRPC client scores in a process without TensorFlow, Keras and the packages of the server."""
    code = f"""
import sys
for name in ("tensorflow", "tensorflow_serving", "keras", "jax", "torch", "aiohttp", "orjson", "prometheus_client", "grpc_health"):
    sys.modules[name] = None
import numpy as np, pandas as pd
import keras_ranking as kr
schema = kr.Schema.load(sys.argv[1])
with kr.serving.Client("127.0.0.1:{server.grpc_port}", schema, model="ranker") as client:
    row = dict(item_id=5, topic="news", age_hours=1.0, text=[0.0, 1.0, 2.0], affinity=0.5)
    print(client.score(None, pd.DataFrame([row]), 1_790_000_000).shape)
    print(sorted(name for name in ("tensorflow", "keras", "aiohttp") if sys.modules.get(name)))
"""
    path = Path(server._service.versions.folder) / "1" / EXTRA / SCHEMA_FILE
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["(1, 2)", "[]"]
