"""Raw values, and the two phases of history and candidates, on a small graph."""

from __future__ import annotations

import numpy as np
import pytest

from keras_ranking.serving import Client, ServingError, serve
from keras_ranking.serving.protocol.model_folder import EXTRA, SCHEMA_FILE, Card
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from tests.serving.client.phases import phase_frames, raw_want

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """A served graph with the signatures `raw`, `encode_history` and `score_candidates`, with known results.

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
        # The random request of the check at loading has no cache; this graph has its own tests.
        patch.setattr("keras_ranking.serving.server.versions._probe", lambda model: None)
        with serve(folder, rest_port=0, grpc_port=0) as running:
            yield running, schema


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_raw_values(phases, protocol):
    """Texts, 64-bit times and floats as in the log, also letters of more than one byte."""
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
        # Arbitrary bytes; a missing number is sent unchanged by both protocols, and the server raises the error.
        values = {name: values[None] for name, values in tensors.items()}
        outputs = client.predict(values | {"candidate_item": np.array([[b"ab", b"\xff\x00c"]], dtype=object)})
        lengths = (outputs["good"][0] - outputs["good"][0, 0]) / 1000.0 - (values["candidate_age"][0] - values["candidate_age"][0, 0])
        np.testing.assert_allclose(lengths, [0, 1])
        with pytest.raises(ServingError, match="input 'candidate_age' must hold finite numbers. Received: nan at"):
            client.predict(values | {"candidate_age": values["candidate_age"] * np.float32(np.nan)})
        with pytest.raises(ValueError, match="in the candidates: column 'age' must hold finite numbers. Received: nan at row 1"):
            client.score(history, candidates.assign(age=[1.0, np.nan]), now)


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_two_phases(phases, protocol):
    """One history, several calls with candidates; caches of different lengths share a run."""
    server, schema = phases
    port = getattr(server, f"{protocol}_port")
    with Client(f"127.0.0.1:{port}", schema, "phases", protocol) as client:
        wanted = [phase_frames(length, count, seed=length) for length, count in ((1, 2), (7, 3), (3, 1), (0, 2))]
        caches = [client.encode(history, now) for history, _, now in wanted]
        assert [cache["cache_key"].shape for cache in caches] == [(1, 1, 2, 2), (1, 1, 14, 2), (1, 1, 6, 2), (1, 1, 2, 2)]
        for _ in range(2):
            for cache, (history, candidates, now) in zip(caches, wanted, strict=True):
                got = client.score_cached(cache, candidates, now)
                np.testing.assert_allclose(got["good"], history["click"].sum() + 1000.0 * candidates["age"], rtol=1e-6)
                assert got.index.equals(candidates.index)


def test_caches_and_texts_are_concatenated(phases):
    """A batch of different caches and texts gives each call the same result as alone."""
    from keras_ranking.serving.server.batching import Job, concatenate, split

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
        batch = concatenate(jobs, signature)
        for call, got in zip(calls, split(jobs, signature, model.run(name, batch)), strict=True):
            want = model.run(name, call)
            for key, values in want.items():
                assert got[key].shape == values.shape, (name, key)
                counted = slice(None) if key != "word" else np.s_[:, : int(call["candidate_count"][0])]
                np.testing.assert_array_equal(got[key][counted], values[counted])
