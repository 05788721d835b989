"""A graph marks the requests that it cannot score, and scores the others of the call as if those were absent."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_ranking import models
from keras_ranking.serving.checking.sample_requests import alone, random_raw, random_requests, spoilt
from keras_ranking.serving.protocol.marks import marked, refused_values
from tests.serving import standin

tf = pytest.importorskip("tensorflow")
of_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the graph is made in this process")
pytestmark = [pytest.mark.one_backend, of_tensorflow]

SCORES = ("serving_default", "raw", "score_candidates")


def endpoints(model, schema, guarded=True):
    from keras_ranking.serving.exporting import guard, signatures

    made = signatures.trunk_endpoints(model, schema)
    return signatures.with_raw(guard.guarded(made) if guarded else made, schema)


@pytest.fixture(scope="module")
def model():
    return standin.make(seed=1)


@pytest.fixture(scope="module")
def graph(model, tmp_path_factory):
    """The stand-in, written and loaded as a server loads it."""
    from keras_ranking.serving.checking.saved_model import SavedModel
    from keras_ranking.serving.exporting import signatures

    made = endpoints(model, model.schema)
    folder = tmp_path_factory.mktemp("guard") / "1"
    signatures.write(made, folder)
    loaded = SavedModel(folder)
    yield made, loaded
    loaded.close()


def called(graph, signature, batch):
    """The scores of a signature; those of `score_candidates` on the cache of the same batch."""
    made, loaded = graph
    have = dict(batch)
    if signature == "score_candidates":
        have |= loaded.run("encode_history", {name: batch[name] for name in made["encode_history"].inputs})
    return loaded.run(signature, {name: have[name] for name in made[signature].inputs})


@pytest.mark.parametrize("signature", SCORES)
def test_invalid_requests_are_marked_and_their_neighbours_are_not(graph, model, signature):
    specs = graph[0]["raw" if signature == "raw" else "serving_default"].inputs
    lengths = (3, 2, 2), (2, 4, 1)
    batch = random_raw(model.schema, specs, *lengths, wild=False) if signature == "raw" else random_requests(specs, *lengths, hostile=True)
    good = called(graph, signature, batch)
    cases = spoilt(batch, specs)
    assert len(cases) >= 7
    for invalid in cases:
        got = called(graph, signature, invalid)
        assert marked(got).tolist() == [False, False, True]
        for name, values in got.items():
            assert (values[2] == -1.0).all() and values.dtype == np.float32
            np.testing.assert_array_equal(values[:2], good[name][:2])
    assert not marked(good).any()
    assert all(((values >= 0) & (values <= 1)).all() for values in good.values())


def test_without_the_guard_such_a_call_fails_or_is_not_finite(model):
    """Control: what a server that batches would do to all calls of a batch."""
    made = endpoints(model, model.schema, guarded=False)["serving_default"]
    batch = random_requests(made.inputs, (3, 2), (2, 4), hostile=False)
    batch["candidate_item_id"][1, 0] = 500
    with pytest.raises(tf.errors.InvalidArgumentError):
        made.body({name: tf.constant(values) for name, values in batch.items()})


def test_every_value_at_the_edge_of_its_range_is_valid(graph):
    specs = graph[0]["serving_default"].inputs
    batch = random_requests(specs, (2, 2), (2, 2), hostile=False)
    for name, spec in specs.items():
        if spec["rows"] is not None:
            batch[name][0, 0], batch[name][1, 0] = 0, spec["rows"] - 1
    batch["candidate_affinity"][1] = 1e15
    batch["request_time"][:] = 0, 2**31 - 1
    batch["history_length"][:] = 0, batch["history_time"].shape[1]
    batch["candidate_count"][:] = 1, batch["candidate_affinity"].shape[1]
    assert not marked(called(graph, "serving_default", batch)).any()


def test_inputs_of_different_widths_are_cut_to_the_narrowest(graph):
    """A server that pads each input to the widest of a batch would otherwise fail the batch."""
    specs = graph[0]["serving_default"].inputs
    batch = random_requests(specs, (2, 2), (2, 3), hostile=False)
    wider = {**batch, "candidate_topic": np.pad(batch["candidate_topic"], [(0, 0), (0, 4)])}
    for name, values in called(graph, "serving_default", batch).items():
        np.testing.assert_array_equal(called(graph, "serving_default", wider)[name], values)
    narrow = {**batch, "candidate_topic": batch["candidate_topic"][:, :2]}
    assert marked(called(graph, "serving_default", narrow)).tolist() == [False, True]


@pytest.mark.parametrize("signature", SCORES)
def test_empty_batches_and_lists(graph, model, signature):
    specs = graph[0]["raw" if signature == "raw" else "serving_default"].inputs
    batch = random_raw(model.schema, specs, (1,), (1,)) if signature == "raw" else random_requests(specs, (1,), (1,))
    assert called(graph, signature, {name: values[:0] for name, values in batch.items()})["click"].shape == (0, 3)
    none = {name: values[:, :0] if specs[name]["axis"] == "candidate" else values for name, values in batch.items()}
    got = called(graph, signature, {**none, "candidate_count": np.zeros(1, np.int32)})["click"]
    assert got.shape == (1, 0)


def test_the_cache_of_an_invalid_history(graph):
    """Finite (JSON has no other numbers), and still marked after a trip through 16 bits."""
    made, loaded = graph
    specs = made["serving_default"].inputs
    batch = random_requests(specs, (2, 2), (2, 3), hostile=False)
    batch["history_item_id"][0, 0] = -5
    cache = loaded.run("encode_history", {name: batch[name] for name in made["encode_history"].inputs})
    assert np.isfinite(cache["cache_events"]).all() and (cache["cache_events"][0] == np.finfo(np.float32).min).all()
    assert marked(cache).tolist() == [True, False]
    with np.errstate(over="ignore"):
        stored = {**cache, "cache_events": cache["cache_events"].astype(np.float16).astype(np.float32)}
    for kept in (cache, stored):
        got = loaded.run("score_candidates", {name: {**batch, **kept}[name] for name in made["score_candidates"].inputs})
        assert marked(got).tolist() == [True, False]


def test_raw_features_tell_what_was_refused(graph, model):
    made, loaded = graph
    specs = made["raw"].inputs
    batch = random_raw(model.schema, specs, (2, 2), (2, 3), wild=False)
    batch["candidate_age_hours"][1, 0] = -0.5  # under a logarithm
    batch["history_time"][0, 1] = model.schema.epoch - 1
    assert refused_values(loaded.run("raw_features", batch)) == [(0, "history_time"), (1, "candidate_age_hours")]
    assert marked(loaded.run("raw", batch)).tolist() == [True, True]


@pytest.fixture(scope="module")
def plain(logged):
    """Endpoints of LiGR without guard."""
    from keras_ranking.serving.exporting import signatures

    keras.utils.set_random_seed(0)
    model = models.LiGR(logged.schema, dim=8, num_layers=1, num_heads=2, id_dim=4, max_history=30, action_dim=4)
    return signatures.trunk_endpoints(model, logged.schema)


def test_an_overflow_stays_in_its_request(plain):
    """Attention computes blocks of several requests, where 0 times infinity is NaN."""
    from keras_ranking.serving.exporting import guard

    found = {}
    for guarded, made in ((False, plain["serving_default"]), (True, guard.guarded(plain)["serving_default"])):
        batch = random_requests(made.inputs, (2, 2), (2, 1), hostile=False)
        first = made.body({name: tf.constant(values) for name, values in alone(batch, made.inputs, 0).items()})["click"].numpy()[0]
        batch["candidate_editor_score"][1, 0] = 3e38
        got = made.body({name: tf.constant(values) for name, values in batch.items()})["click"].numpy()
        found[guarded] = np.isfinite(got).all() and np.abs(got[0, :2] - first).max() < 1e-5 and (got[1] == -1).all()
    assert found == {False: False, True: True}


def test_a_number_in_a_cache_stays_in_its_request(plain):
    """A cache comes back from the caller. Cells beyond its length count for nothing, whatever they hold."""
    from keras_ranking.serving.exporting import guard

    made = guard.guarded(plain)["score_candidates"]
    batch = random_requests(plain["serving_default"].inputs, (2, 1), (2, 2), hostile=False)
    given = {name: tf.constant(values) for name, values in batch.items()}
    cache = plain["encode_history"].body({name: given[name] for name in plain["encode_history"].inputs})

    def scored(endpoint, cell, number):
        changed = cache["cache_key"].numpy()
        changed[(1, slice(None), cell)] = number
        have = {**given, **cache, "cache_key": tf.constant(changed)}
        return endpoint.body({name: have[name] for name in endpoint.inputs})["click"].numpy()

    good = scored(made, 1, 0.0)
    assert not np.allclose(scored(plain["score_candidates"], 0, np.nan)[0], good[0])  # control
    for number in (np.nan, np.inf, -np.inf, 3e38):
        bad = scored(made, 0, number)
        assert (bad[1] == -1.0).all()
        np.testing.assert_allclose(bad[0], good[0], atol=1e-6)
        np.testing.assert_allclose(scored(made, 1, number), good, atol=1e-6)


def test_beyond_the_longest_bucket():
    """A graph compiled for fixed lengths alone marks longer requests, and scores short ones in a wide batch."""
    from keras_ranking.serving.exporting.buckets import by_bucket
    from keras_ranking.serving.exporting.guard import guarded
    from keras_ranking.serving.exporting.signatures import Endpoint

    spec = {"dtype": "int32", "shape": [None, None], "axis": "candidate", "rows": 9}
    inputs = {"candidate_id": spec, "candidate_count": {"dtype": "int32", "shape": [None], "axis": None, "rows": None}}
    outputs = {"click": {"dtype": "float32", "shape": [None, None], "axis": "candidate", "rows": None}}
    widths = []

    def make(lengths):
        def score(tensors):
            widths.append(tensors["candidate_id"].shape[1])
            seen = tf.range(lengths["candidate"])[None, :] < tensors["candidate_count"][:, None]
            return {"click": tf.where(seen, tf.cast(tensors["candidate_id"], tf.float32) / 10.0, 0.0)}

        return score

    made = guarded({"x": by_bucket(Endpoint(dict, inputs, outputs, []), (), (2, 4), make, plain=False)})["x"].function()
    ids = np.arange(12, dtype=np.int32).reshape(2, 6) % 9
    got = made({"candidate_id": tf.constant(ids), "candidate_count": tf.constant([3, 5], tf.int32)})["click"].numpy()
    np.testing.assert_allclose(got, [[0.0, 0.1, 0.2, 0, 0, 0], [-1] * 6], rtol=1e-6)
    assert set(widths) == {2, 4}
    got = made({"candidate_id": tf.constant(ids[:, :2]), "candidate_count": tf.constant([1, 2], tf.int32)})["click"].numpy()
    np.testing.assert_allclose(got, [[0.0, 0], [0.6, 0.7]], rtol=1e-6)
