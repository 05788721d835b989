"""The access log on disk: which requests, hashed cells, its size, and what cannot be written."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keras_ranking.serving import AccessLog
from keras_ranking.serving.protocol.logged_requests import cell_hashes, joined_ids, read_requests, request_hash, sampled, split_ids
from keras_ranking.serving.protocol.signature import Signature, Tensor
from keras_ranking.serving.server.access_log import RequestWriter

pytestmark = pytest.mark.one_backend

KEY = b"a-long-secret-key"
SIGNATURE = Signature(
    "serving_default",
    {
        "candidate_item": Tensor(np.dtype("int32"), (None, None), "candidate", rows=100),
        "candidate_word": Tensor(np.dtype("O"), (None, None), "candidate"),
        "candidate_age": Tensor(np.dtype("float32"), (None, None), "candidate"),
        "candidate_count": Tensor(np.dtype("int32"), (None,)),
        "request_time": Tensor(np.dtype("int32"), (None,)),
    },
    {"click": Tensor(np.dtype("float32"), (None, None))},
)


def call(rows: int = 2) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    words = np.empty((rows, 3), dtype=object)
    words[:] = b"private"
    inputs = {
        "candidate_item": np.arange(rows * 3, dtype="int32").reshape(rows, 3),
        "candidate_word": words,
        "candidate_age": np.full((rows, 3), 41.5, "float32"),
        "candidate_count": np.array([2, 3] * rows, "int32")[:rows],
        "request_time": np.arange(rows, dtype="int32"),
    }
    return inputs, {"click": np.full((rows, 3), 0.25, "float32")}


def written(path: Path, ids: list[str], times: int = 1, **settings: Any) -> RequestWriter:
    writer = RequestWriter(AccessLog(path=path, key=KEY, **{"share": 1.0, **settings}))
    for _ in range(times):
        writer.offer(ids, 7, SIGNATURE, *call(2), 2)
    writer.close()
    return writer


def test_lines_without_personal_values(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    assert written(path, ["r 1", "r,2"]).written == 2
    text = path.read_text()
    assert "private" not in text and "r 1" not in text and "r,2" not in text and stat.S_IMODE(path.stat().st_mode) == 0o600
    first, second = read_requests(path)
    assert first is not None and second is not None
    assert (first.request, first.version, first.signature) == (request_hash(KEY, "r 1"), 7, "serving_default")
    assert first.outputs == {"click": [0.25, 0.25]} and len(second.outputs["click"]) == 3, "without padding"
    assert first.inputs["candidate_item"]["hashed"] == cell_hashes(KEY, "item", np.array([0, 1], "int32"))
    assert first.inputs["candidate_age"]["values"] == [41.5, 41.5] and first.inputs["request_time"]["values"] == [0]
    assert len(set(first.inputs["candidate_word"]["hashed"])) == 1
    assert cell_hashes(b"another long key", "item", np.array([0], "int32")) != cell_hashes(KEY, "item", np.array([0], "int32"))
    written(path, ["a", "b"], hashed=("age",))
    assert "hashed" in list(read_requests(path))[-1].inputs["candidate_age"], "appended, and a further column is hashed"
    with path.open("a") as file:
        file.write('{"format": 1, "at"')
    assert list(read_requests(path))[-1] is None, "a line that is not whole"


def test_share_and_size(tmp_path: Path) -> None:
    ids = [f"r{number}" for number in range(2000)]
    kept = [one for one in ids if sampled(request_hash(KEY, one), 0.1)]
    assert 140 < len(kept) < 260 and set(kept) <= {one for one in ids if sampled(request_hash(KEY, one), 0.2)}
    path = tmp_path / "requests.jsonl"
    writer = written(path, ["a", "b"], times=60, max_bytes=8192)
    files = [path, path.with_name("requests.jsonl.1")]
    assert sum(file.stat().st_size for file in files) <= 8192 and writer.written + writer.dropped == 120
    assert all(file.exists() for file in files)


def test_what_is_not_kept(tmp_path: Path) -> None:
    assert written(tmp_path / "a", ["one"]).without_id == 1 and (tmp_path / "a").read_text() == ""
    writer = RequestWriter(AccessLog(path=tmp_path / "b", key=KEY, share=1.0, max_bytes=4096))
    inputs, outputs = call()
    wide = {name: np.repeat(values, 200, axis=1) if values.ndim == 2 else values * 200 for name, values in inputs.items()}
    writer.offer(["x", "y"], 1, SIGNATURE, wide, outputs, 2)
    writer.offer(["x", "y"], 1, Signature("encode_history", {}, {}), {}, {}, 2)
    writer.close()
    assert (writer.written, writer.dropped) == (0, 2), "larger than the log; and other signatures"
    assert split_ids(joined_ids(["a b", "c,d", 7])) == ("a b", "c,d", "7") and split_ids(None) == ()
    for settings, message in (
        ({"key": "short"}, "`key` must have at least 16 bytes. Received: 5 bytes"),
        ({"share": 0.0}, "`share` must be above 0 and at most 1"),
        ({"max_bytes": 10}, "`max_bytes` must be at least 4096"),
    ):
        with pytest.raises(ValueError, match=message):
            AccessLog(**{"path": tmp_path / "c", "key": KEY, **settings})
    (tmp_path / "d").write_text('{"format": 9}\n')
    with pytest.raises(ValueError, match="must be an access log of `keras-ranking serve` of format 1"):
        list(read_requests(tmp_path / "d"))
    with pytest.raises(FileNotFoundError, match="no access log at"):
        list(read_requests(tmp_path / "none"))
