"""The client's calls: retries, deadlines, the async form, whole logs, raw values, two phases, and what it imports."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from keras_ranking import data
from keras_ranking.serving import AsyncClient, Client, Request, Retry, ServingError, serve
from keras_ranking.serving.client.retry import Budget
from keras_ranking.serving.protocol.model_folder import EXTRA, SCHEMA_FILE, Card
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.signature import Signature, Tensor
from tests.serving import standin
from tests.serving.calling import connect, frames, requests

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.one_backend


def events(members=6, requests_each=3, shown=4, seed=0):
    """A log of the stand-in's schema, its rows in no order."""
    rng = np.random.default_rng(seed)
    rows = []
    for member in range(members):
        for request in range(requests_each):
            _, items, _ = frames(0, shown, seed=100 * member + request)
            items = items.assign(
                member_id=f"m{member}", request_id=f"r{member}-{request}", shown_at=1_790_000_000 + 5000 * request + member,
                rank=range(1, shown + 1),
                click=rng.integers(0, 2, shown), like=rng.integers(0, 2, shown), dwell_seconds=rng.exponential(9, shown),
            )  # fmt: skip
            rows.append(items)
    log = pd.concat(rows, ignore_index=True)
    return log.iloc[rng.permutation(len(log))].reset_index(drop=True).rename(index=lambda row: f"row {row}")


# -- retries and deadlines ------------------------------------------------------------------------------------------------


class Flaky:
    """A server that answers each call with the next of a list of errors, then with nothing (which fails later, as no metadata)."""

    def __init__(self, errors):
        from concurrent.futures import ThreadPoolExecutor

        self.errors, self.calls = list(errors), []
        self.server = grpc.server(ThreadPoolExecutor(4))
        handler = grpc.unary_unary_rpc_method_handler(self.answer)
        name = "tensorflow.serving.PredictionService"
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"GetModelMetadata": handler}),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def answer(self, message, context):
        self.calls.append((time.monotonic(), context.time_remaining()))
        if self.errors:
            code, details, *trailer = self.errors.pop(0)
            if trailer:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", trailer[0]),))
            context.abort(getattr(grpc.StatusCode, code), details)
        return b""

    def client(self, **settings):
        return Client(f"127.0.0.1:{self.port}", standin.SCHEMA, model="ranker", **settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.stop(0)


@pytest.mark.parametrize(
    ("errors", "calls"),
    [
        ([("UNAVAILABLE", "x")] * 2, 3),
        ([("RESOURCE_EXHAUSTED", "busy", "50")], 2),
        ([("RESOURCE_EXHAUSTED", "The batch queue is full")], 2),
        ([("RESOURCE_EXHAUSTED", "too large", "-1")], 1),
        ([("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)")], 1),
        ([("INVALID_ARGUMENT", "x")], 1),
        ([("INTERNAL", "x")], 1),
        ([("UNAVAILABLE", "x")] * 9, 4),
    ],
)
def test_what_is_sent_again(errors, calls):
    with Flaky(errors) as server, server.client() as client:
        if len(errors) < calls:
            assert client.signatures() == {}
        else:
            with pytest.raises(ServingError, match=errors[0][1].split("(")[0]) as caught:
                client.signatures()
            assert caught.value.code == errors[0][0]
        assert len(server.calls) == calls


def test_never_beyond_the_deadline():
    """The deadline is of all attempts together, and the server hears what is left of it."""
    with (
        Flaky([("UNAVAILABLE", "x")] * 50) as server,
        server.client(timeout=0.6, retry=Retry(attempts=50, burst=50, first_wait=0.1)) as client,
    ):
        begin = time.monotonic()
        with pytest.raises(ServingError, match="UNAVAILABLE"):
            client.signatures()
        assert time.monotonic() - begin < 0.7
        left = [remaining for _, remaining in server.calls]
        assert len(left) > 2 and left == sorted(left, reverse=True) and 0 < left[-1] < left[0] <= 0.6
    with Flaky([("RESOURCE_EXHAUSTED", "busy", "5000")]) as server, server.client(timeout=1.0) as client:
        begin = time.monotonic()
        with pytest.raises(ServingError, match="busy"):  # waiting as long as asked would be too late: said at once
            client.signatures()
        assert time.monotonic() - begin < 0.5 and len(server.calls) == 1


def test_budget():
    """A fleet whose server is down adds little: after the burst, one retry for every `1 / budget` calls."""
    budget = Budget(Retry(budget=0.25, burst=3))
    error = ServingError("UNAVAILABLE", "down")
    granted = 0
    for _ in range(100):
        budget.earn()
        granted += budget.wait(error, 1, time.monotonic() + 60) is not None
    assert 3 + 25 - 1 <= granted <= 3 + 25
    waits = [Budget(Retry()).wait(error, attempt, time.monotonic() + 60) for attempt in (1, 2, 3)]
    assert [0.05 <= waits[0] <= 0.1, 0.1 <= waits[1] <= 0.2, 0.2 <= waits[2] <= 0.4] == [True] * 3
    assert Budget(Retry()).wait(error, 4, time.monotonic() + 60) is None  # attempts are used up
    assert Budget(Retry(burst=0)).wait(error, 1, time.monotonic() + 60) is None
    for bad in ({"attempts": 0}, {"budget": -1}, {"first_wait": float("nan")}):
        with pytest.raises(ValueError, match=f"`{next(iter(bad))}` must"):
            Retry(**bad)


# -- async, whole logs ----------------------------------------------------------------------------------------------------


def test_async_client(server, first):
    asked = [frames(length, count, seed=length) for length, count in ((3, 2), (0, 5), (30, 1), (7, 7))]
    log = events()

    async def run():
        async with AsyncClient(f"127.0.0.1:{server.grpc_port}", standin.SCHEMA, model="ranker") as client:
            one = await asyncio.gather(*(client.score(*request) for request in asked))
            many = await client.score_many([Request(*asked[0]), *asked[1:]], batch=2)
            whole = await client.score_frame(log, batch=3)
            tensors = await client.predict(requests(first.card, (2,), (3,), hostile=False))
            with pytest.raises(ServingError, match="at most 16 requests") as caught:
                await client.predict(requests(first.card, [1] * 17, [1] * 17, hostile=False))
            assert caught.value.http_status == 413
            with pytest.raises(ServingError, match="at most 16 requests"):
                await client.score_frame(log, batch=17)
            with pytest.raises(ValueError, match="column 'topic' is missing in the candidates"):
                await client.score(asked[0][0], asked[0][1].drop(columns="topic"), asked[0][2])
            return one, many, whole, tensors

    one, many, whole, tensors = asyncio.run(run())
    with connect(server, "grpc") as client:
        for got, again, request in zip(one, many, asked, strict=True):
            pd.testing.assert_frame_equal(got, client.score(*request), atol=1e-6)
            pd.testing.assert_frame_equal(again, got, atol=1e-6)
        pd.testing.assert_frame_equal(whole, client.score_frame(log, batch=8), atol=1e-6)
    assert tensors["click"].shape == (1, 5)


def test_async_retries():
    async def run(port):
        async with AsyncClient(f"127.0.0.1:{port}", standin.SCHEMA, model="ranker") as client:
            return await client.signatures()

    with Flaky([("UNAVAILABLE", "x"), ("RESOURCE_EXHAUSTED", "busy", "10")]) as server:
        assert asyncio.run(run(server.port)) == {} and len(server.calls) == 3


@pytest.mark.parametrize("max_history", [None, 5])
def test_score_frame(client, first, max_history):
    """Scores at the rows they belong to: those of the Keras model on the pipeline's own tensors."""
    log = events()
    got = client.score_frame(log, max_history=max_history, batch=5, parallel=2)
    assert got.index.equals(log.index) and list(got.columns) == ["click", "like"] and not got.isna().any().any()
    found = data.requests(log.reset_index(drop=True), standin.SCHEMA, max_history=max_history)
    for number in range(len(found)):
        tensors = found.tensors([number], sorted(first.card.inputs))
        want = standin.scores(first.model, tensors)
        at = found.sequences.rows[found.candidate_index([number])[0]]
        for task in got:
            np.testing.assert_allclose(got[task].to_numpy()[at], want[task][0], rtol=0, atol=1e-5)
    assert got["click"].nunique() == len(log)  # control: a mixed-up row would show


def test_score_frame_of_some_rows(client):
    log = events()
    wanted = (log["shown_at"] > 1_790_004_000).to_numpy() & (log["rank"] < 3).to_numpy()
    got, whole = client.score_frame(log, target=wanted, batch=8), client.score_frame(log, batch=8)
    assert got[~wanted].isna().all().all()
    pd.testing.assert_frame_equal(got[wanted], whole[wanted], atol=1e-6)
    nothing = client.score_frame(log, target=np.zeros(len(log), dtype=bool))
    assert nothing.isna().all().all() and list(nothing.columns) == ["click", "like"]
    with pytest.raises(ValueError, match="topic"):
        client.score_frame(log.drop(columns="topic"))
    with pytest.raises(ValueError, match="`parallel` must be a positive integer"):
        client.score_frame(log, parallel=0)


# -- any signature --------------------------------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """A served graph with the signatures `raw`, `encode_history` and `score_candidates`, small enough to know its answers.

    score = (sum of the history's len(text) + seconds) + 1000 * candidate; the cache has two tokens an event, on its dimension 2.
    """
    import tensorflow as tf

    from keras_ranking import Id, Number, Schema

    schema = Schema(
        member="m", time="t", request="r", features=[Id("item"), Number("age")], actions=[Number("click")], tasks=["good"]
    )  # fmt: skip
    string, whole, number = tf.string, tf.int64, tf.float32

    def spec(dtype, *shape):
        return (None, *shape), dtype

    def named(**specs):
        return [{name: tf.TensorSpec(shape, dtype, name=name) for name, (shape, dtype) in specs.items()}]

    class Graph(tf.Module):
        @staticmethod
        def kept(values, length):
            counted = tf.range(tf.shape(values)[1])[None, :] < length[:, None]
            return tf.where(counted, values, tf.zeros_like(values))

        @tf.function(
            input_signature=named(
                history_item=spec(string, None), history_click=spec(number, None), history_length=spec(tf.int32),
                history_time=spec(whole, None), request_time=spec(whole), candidate_age=spec(number, None),
                candidate_item=spec(string, None), candidate_count=spec(tf.int32),
            )
        )  # fmt: skip
        def raw(self, x):
            sizes = self.kept(tf.cast(tf.strings.length(x["history_item"]), number) + x["history_click"], x["history_length"])
            since = tf.cast(x["request_time"] - tf.reduce_max(self.kept(x["history_time"], x["history_length"]), axis=1), number)
            total = tf.reduce_sum(sizes, axis=1) + since
            scores = total[:, None] + 1000.0 * (x["candidate_age"] + tf.cast(tf.strings.length(x["candidate_item"]), number))
            return {"good": self.kept(scores, x["candidate_count"]), "word": tf.strings.join([x["candidate_item"], "!"])}

        @tf.function(input_signature=named(history_click=spec(number, None), history_length=spec(tf.int32)))
        def encode(self, x):
            kept = self.kept(x["history_click"], x["history_length"])
            cache = tf.repeat(kept, 2, axis=1)[:, None, :, None] * tf.constant([1.0, 2.0])
            return {"cache_key": cache, "cache_length": x["history_length"]}

        @tf.function(
            input_signature=named(
                cache_key=spec(number, 1, None, 2), cache_length=spec(tf.int32), candidate_age=spec(number, None),
                candidate_count=spec(tf.int32), request_time=spec(tf.int32),
            )
        )  # fmt: skip
        def score(self, x):
            total = tf.reduce_sum(self.kept(x["cache_key"][:, 0, :, 1], 2 * x["cache_length"]), axis=1) / 4.0
            return {"good": self.kept(total[:, None] + 1000.0 * x["candidate_age"], x["candidate_count"])}

    graph = Graph()
    folder = tmp_path_factory.mktemp("phases") / "phases"
    calls = {"serving_default": graph.score, "raw": graph.raw, "encode_history": graph.encode, "score_candidates": graph.score}
    tf.saved_model.save(graph, str(folder / "1"), signatures=calls)
    (folder / "1" / EXTRA).mkdir()
    schema.save(folder / "1" / EXTRA / SCHEMA_FILE)
    card = Card("phases", schema.digest, ["good"], [], "float32", {}, {}, {})
    card.write(folder / "1")
    with pytest.MonkeyPatch.context() as patch:
        # The made-up request of the gate knows no cache; this graph has its own tests.
        patch.setattr("keras_ranking.serving.server.versions._probe", lambda model: None)
        with serve(folder, rest_port=0, grpc_port=0) as running:
            yield running, schema


def phase_frames(events=3, candidates=2, seed=0):
    rng = np.random.default_rng(seed)
    now = 1_790_000_000
    history = pd.DataFrame(
        {"t": now - 10 * np.arange(events, 0, -1), "item": ["ab" * (1 + k) for k in range(events)], "click": rng.integers(0, 9, events)}
    )
    return history, pd.DataFrame({"item": ["x", "xyz", None][:candidates], "age": rng.integers(1, 50, candidates).astype(float)}), now


def raw_want(history, candidates, now):
    total = (history["item"].str.len() + history["click"]).sum() + (now - (history["t"].max() if len(history) else 0))
    return total + 1000.0 * (candidates["age"] + candidates["item"].fillna("").str.len())


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_raw_values(phases, protocol):
    """Texts, 64-bit times and floats as the log has them, also those that need more than one byte a letter."""
    server, schema = phases
    with Client(f"127.0.0.1:{getattr(server, f'{protocol}_port')}", schema, "phases", protocol, signature="raw") as client:
        for length in (3, 0):
            request = phase_frames(length, 3)
            got = client.score(*request)
            want = (
                raw_want(*request) if length else 1_790_000_000.0 + 1000.0 * (request[1]["age"] + request[1]["item"].fillna("").str.len())
            )
            np.testing.assert_allclose(got["good"], want, rtol=1e-6)
        history, candidates, now = phase_frames(1, 2)
        tensors = raw_request_tensors(schema, history, candidates.assign(item=["ж", 17]), now, client.signatures()["raw"])
        outputs = client.predict({name: values[None] for name, values in tensors.items()})
        words = outputs["word"][0].tolist()
        assert [word.decode() if isinstance(word, bytes) else word for word in words] == ["ж!", "17!"]
        # Bytes of any kind; a missing number is sent as it is, by either protocol, and it is the server that knows of it.
        values = {name: values[None] for name, values in tensors.items()}
        outputs = client.predict(values | {"candidate_item": np.array([[b"ab", b"\xff\x00c"]], dtype=object)})
        lengths = (outputs["good"][0] - outputs["good"][0, 0]) / 1000.0 - (values["candidate_age"][0] - values["candidate_age"][0, 0])
        np.testing.assert_allclose(lengths, [0, 1])
        with pytest.raises(ServingError, match="input 'candidate_age' must hold finite numbers. Received: nan at"):
            client.predict(values | {"candidate_age": values["candidate_age"] * np.float32(np.nan)})
        with pytest.raises(ValueError, match="in the candidates: column 'age' must hold finite numbers. Received: nan at row 1"):
            client.score(history, candidates.assign(age=[1.0, np.nan]), now)


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
    assert got["candidate_item"].tolist() == [2**63 - 1, -5] and got["candidate_age"].tolist() == [0.1, 2.0]  # to the bit
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


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_two_phases(phases, protocol):
    """The history once, candidates as often as wanted; caches of different lengths share a run."""
    server, schema = phases
    port = getattr(server, f"{protocol}_port")
    with Client(f"127.0.0.1:{port}", schema, "phases", protocol) as client:
        asked = [phase_frames(length, count, seed=length) for length, count in ((1, 2), (7, 3), (3, 1), (0, 2))]
        caches = [client.encode(history, now) for history, _, now in asked]
        assert [cache["cache_key"].shape for cache in caches] == [(1, 1, 2, 2), (1, 1, 14, 2), (1, 1, 6, 2), (1, 1, 2, 2)]
        for _ in range(2):
            for cache, (history, candidates, now) in zip(caches, asked, strict=True):
                got = client.score_cached(cache, candidates, now)
                np.testing.assert_allclose(got["good"], history["click"].sum() + 1000.0 * candidates["age"], rtol=1e-6)
                assert got.index.equals(candidates.index)


def test_caches_and_texts_are_joined(phases):
    """What the batcher makes of different caches and texts: each call gets what it gets alone."""
    from keras_ranking.serving.server.batching import Job, join, split

    server, _ = phases
    model = server._service.versions._loaded[1].model
    rng = np.random.default_rng(0)

    def inputs(name, length, width, count):
        made = {}
        for key, tensor in model.signature(name).inputs.items():
            size = 2 * width if key == "cache_key" else width if key.startswith("history_") else count + 1
            shape = [1 if axis == 0 else size if cells is None else cells for axis, cells in enumerate(tensor.shape)]
            if tensor.dtype == object:
                made[key] = np.array(rng.choice([b"a", b"bcd", "ж".encode()], shape), dtype=object)
            else:
                made[key] = rng.integers(1, 9, shape).astype(tensor.dtype)
        lengths = {"history_length": length, "cache_length": length, "candidate_count": count}
        return made | {key: np.array([value], dtype=np.int32) for key, value in lengths.items() if key in made}

    for name in ("raw", "encode_history", "score_candidates"):
        signature = model.signature(name)
        assert signature.ragged, name
        calls = [inputs(name, *sizes) for sizes in ((3, 4, 2), (0, 1, 5), (6, 6, 1))]
        jobs = [Job(signature, call, signature.check(call), 0.0, signature.longest(call)) for call in calls]
        joined = join(jobs, signature)
        for call, got in zip(calls, split(jobs, signature, model.run(name, joined)), strict=True):
            want = model.run(name, call)
            for key, values in want.items():
                assert got[key].shape == values.shape, (name, key)
                counted = slice(None) if key != "word" else np.s_[:, : int(call["candidate_count"][0])]
                np.testing.assert_array_equal(got[key][counted], values[counted])


def test_imports_no_tensorflow(server):
    """A gRPC client scores in a process where TensorFlow, Keras and the server's packages do not exist."""
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
