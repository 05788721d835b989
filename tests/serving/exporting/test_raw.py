"""The encoding in the graph, bit for bit that of the data pipeline, per kind of feature, hostile values among them."""

from __future__ import annotations

import farmhash
import numpy as np
import pandas as pd
import pytest

from keras_ranking import Category, Id, Ids, Number, Schema, Task, Vector
from keras_ranking.ops.logarithm import log1p
from keras_ranking.serving.protocol.raw_requests import raw_request_tensors
from keras_ranking.serving.protocol.raw_values import encode_raw, id_types, raw_specs
from keras_ranking.serving.protocol.signature import Signature, Tensor

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.one_backend

SCHEMA = Schema(
    member="member",
    time="at",
    request="request",
    features=[
        Id("item", buckets=1000),
        Id("two", buckets=2),
        Id("whole", buckets=None),
        Category("topic", vocabulary=("news", "ж", "7", "a b")),
        Category("hashed", buckets=17),
        Number("plain"),
        Number("filled", transform="log1p", missing=3.5),
        Number("logged", transform="log1p"),
        Number("standard", transform="standardise", mean=1.25, std=0.37),
        Number("both", transform="log1p_standardise", mean=2.1, std=1.9, bins=3, edges=(-0.5, 0.25, 1.0)),
        Vector("text", size=3),
        Ids("tags", buckets=1000, size=4),
        Ids("words", vocabulary=("news", "ж", "7", "a b"), size=3),
        Ids("whole_tags", buckets=None, size=2),
    ],
    actions=["click"],
    tasks=[Task("click")],
)
TEXTS = ["", "7", "-1", "007", "news", "News", "ж", "é\U0001f600", "a b", "x" * 5000, " ", "nan", "NULL", "a\tb", "0", "1.0"]
INTS = [0, 1, -1, 7, 2**63 - 1, -(2**63), 2**53 + 1, 10**15]
NUMBERS = [0.0, -0.0, 1.0, 0.1, 1e-8, 0.41421356237309503, 1.4142135623730951, 2.0**-126, 2.0**-127, 2.0**-149, 2.0**-150, 1.5 * 2.0**-149]
NUMBERS += [1e-40, 1e-300, 16777217.0, 1e15, 3.4028234663852886e38, np.float64(np.float32(1 / 3)), 1 / 3]
SERVING = {
    "candidate_count": {"dtype": "int32", "shape": [None], "axis": None, "rows": None},
    "history_length": {"dtype": "int32", "shape": [None], "axis": None, "rows": None},
    "request_time": {"dtype": "int32", "shape": [None], "axis": None, "rows": None},
    "history_time": {"dtype": "int32", "shape": [None, None], "axis": "history", "rows": None},
    "history_click": {"dtype": "float32", "shape": [None, None], "axis": "history", "rows": None},
} | {f"candidate_{c.name}": {"dtype": c.dtype, "shape": [None, None, *c.shape], "axis": "candidate", "rows": None} for c in SCHEMA.features}


@pytest.fixture(scope="module", params=["string", "int64"])
def graph(request, tmp_path_factory):
    """The encoder alone, saved and loaded as a server loads it: (specs of its inputs, how to run it)."""
    from keras_ranking.serving.checking.saved_model import SavedModel
    from keras_ranking.serving.exporting.raw_graph import RawEncoder
    from keras_ranking.serving.exporting.signatures import Endpoint, write

    kinds = (Id, Category)
    specs = raw_specs(SCHEMA, SERVING, {c.name: request.param for c in SCHEMA.features if isinstance(c, kinds)})
    encoder = RawEncoder(SCHEMA, specs)
    folder = tmp_path_factory.mktemp("raw") / "1"
    write({"serving_default": Endpoint(encoder, specs, SERVING, list(encoder.tables.values()))}, folder)
    model = SavedModel(folder)
    yield specs, lambda batch: model.run("serving_default", batch)
    model.close()


def batch_of(specs, seed=0, count=400):
    """Two requests of `count` and `count` - 7 candidates, hostile values where they count, worse ones beyond."""
    rng = np.random.default_rng(seed)
    texts = np.array([text.encode() for text in TEXTS], dtype=object)
    some = np.append(texts, [b""] * 10)
    out = {}
    for name, spec in specs.items():
        column = {c.name: c for c in SCHEMA.features}.get(name.removeprefix("candidate_"))
        if spec["dtype"] == "string":
            sets = isinstance(column, Ids)
            out[name] = rng.choice(some if sets else texts, (2, count, column.size) if sets else (2, count))
            out[name][1, count - 7 :] = b"\xff\x00"
        elif spec["dtype"] == "int64" and column is not None:
            out[name] = rng.choice(np.array(INTS + list(range(30)), dtype=np.int64), (2, count))
        elif isinstance(column, Number):
            wide = np.abs(rng.standard_normal((2, count))) * 10.0 ** rng.integers(-12, 12, (2, count))
            values = np.where(rng.random((2, count)) < 0.4, rng.choice(NUMBERS, (2, count)), wide)
            if not column.transform.startswith("log1p"):
                values *= rng.choice([-1, 1], values.shape)
            values[:, :20] = np.nan if column.missing is not None else values[:, :20]
            values[1, count - 7 :] = [np.nan, np.inf, -np.inf, -5.0, 1e300, -1e300, np.nan]
            out[name] = values if column.name != "standard" else np.clip(values, -1e37, 1e37)
        elif isinstance(column, Vector):
            out[name] = rng.standard_normal((2, count, 3)).astype(np.float32)
            out[name][0, 0] = [1e-40, -0.0, 3e38]
            out[name][1, count - 1] = np.nan
    out["candidate_count"] = np.array([count, count - 7], np.int32)
    out["history_length"] = np.array([3, 0], np.int32)
    out["request_time"] = np.array([SCHEMA.epoch, SCHEMA.epoch + 2**31 - 1], np.int64)
    out["history_time"] = np.array([[SCHEMA.epoch, SCHEMA.epoch + 5, 1_800_000_000], [-1, 0, 2**62]], np.int64)
    out["history_click"] = np.array([[0.0, 1.0, 0.5], [np.nan, -1, 7]])
    return out


def test_bit_for_bit(graph):
    specs, run = graph
    for seed in range(5):
        batch = batch_of(specs, seed)
        got, want = run(batch), encode_raw(SCHEMA, specs, batch)
        assert sorted(got) == sorted(want)
        for name, values in want.items():
            assert got[name].dtype == values.dtype and got[name].shape == values.shape, name
            differ = got[name].view(np.int32) != values.view(np.int32)
            assert not differ.any(), (name, batch[name][differ][:5], got[name][differ][:5], values[differ][:5])
            assert np.isfinite(got[name]).all()


def test_what_it_is_equal_to(graph):
    """The reference above, by hand: FarmHash of the text, the vocabulary's order, zero for missing and unknown."""
    specs, run = graph
    batch = batch_of(specs)
    got = run(batch)
    strings = specs["candidate_item"]["dtype"] == "string"
    text = batch["candidate_item"][0, 3]
    text = text.decode() if strings else str(text)
    assert got["candidate_item"][0, 3] == (1 + farmhash.fingerprint64(text) % 999 if text else 0)
    for cell in range(50):
        word = batch["candidate_topic"][0, cell]
        word = word.decode() if strings else str(word)
        assert got["candidate_topic"][0, cell] == {"news": 1, "ж": 2, "7": 3, "a b": 4}.get(word, 0)
        word = batch["candidate_whole"][0, cell]
        whole = farmhash.fingerprint64(word.decode() if strings else str(word)) if not strings or word else 0
        assert got["candidate_whole"][0, cell].astype(np.uint32).astype(np.uint64) @ np.array([1, 2**32], np.uint64) == whole
    assert got["candidate_filled"][0, 0] == np.float32(np.log1p(3.5))
    assert set(np.unique(got["candidate_two"])) <= {0, 1}
    assert not got["candidate_both"][1, -7:].any() and not got["history_time"][1].any()


def test_another_vocabulary(graph):
    """Control: the comparison above finds two words that changed places."""
    specs, run = graph
    batch = batch_of(specs)
    words = ("7", "ж", "news", "a b")
    other = SCHEMA.model_copy(
        update={"features": tuple(c.model_copy(update={"vocabulary": words}) if c.name == "topic" else c for c in SCHEMA.features)}
    )
    got, want = run(batch), encode_raw(other, specs, batch)
    assert (got["candidate_topic"] != want["candidate_topic"]).any()
    assert (got["candidate_hashed"] == want["candidate_hashed"]).all()


@pytest.mark.parametrize(
    ("name", "value", "encoded"),
    [
        ("candidate_plain", np.nan, np.nan),
        ("candidate_filled", np.inf, np.nan),
        ("candidate_logged", -0.5, np.nan),
        ("candidate_plain", 3.5e38, np.nan),
        ("candidate_text", np.inf, np.nan),
        ("request_time", SCHEMA.epoch - 1, -1),
        ("history_time", SCHEMA.epoch + 2**31, -1),
    ],
)
def test_refused_values_in_counted_cells(graph, name, value, encoded):
    """They are marked, and no other request is changed."""
    specs, run = graph
    good, batch = run(batch_of(specs)), batch_of(specs)
    batch[name][0] = value
    got = run(batch)
    length = {"history_time": 3, "request_time": None}.get(name, len(batch["candidate_plain"][0]))
    np.testing.assert_array_equal(got[name][0] if length is None else got[name][0, :length], encoded)
    for key, values in good.items():
        np.testing.assert_array_equal(got[key] if key != name else got[key][1:], values if key != name else values[1:])


def test_empty_lists(graph):
    specs, run = graph
    batch = {k: v[:, :0] if specs[k]["axis"] == "candidate" else v for k, v in batch_of(specs).items()}
    batch["candidate_count"] = np.zeros(2, np.int32)
    assert run(batch)["candidate_whole"].shape == (2, 0, 2)


def test_logarithm():
    """Within 4 units in the last place of libm's, and the float32 of nearly all values the same."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.exponential(30, 50_000), 10 ** rng.uniform(-300, 300, 50_000), [0.0, 1.0, 1.7e308, 2.0**53]])
    want = np.log1p(x)
    assert (np.abs(log1p(x) - want) <= 4 * np.spacing(np.maximum(want, 1e-300))).all()
    assert (log1p(x).astype(np.float32) != want.astype(np.float32)).mean() < 1e-4


def test_types_of_ids():
    events = pd.DataFrame({"item": [1, 2], "two": ["a", None], "whole": [1.0, np.nan], "topic": [True, False], "plain": [1, 2]})
    assert id_types(SCHEMA, events) == {"item": "int64", "two": "string", "whole": "string", "topic": "int64"}
    with pytest.raises(ValueError, match="`raw_ids` must map ids and categories .* Received: 'plain': 'int64'"):
        raw_specs(SCHEMA, SERVING, {"plain": "int64"})
    signature = Signature("raw", {"candidate_item": Tensor(np.dtype("int64"), (None, None), "candidate")}, {})
    for bad in (["007"], [None], ["a"], [2**63]):
        with pytest.raises((ValueError, TypeError), match="column 'item' must hold whole numbers of int64"):
            raw_request_tensors(SCHEMA, None, pd.DataFrame({"item": pd.Series(bad, dtype=object)}), SCHEMA.epoch, signature)
