"""`max_history` of CADET and FeedSR: a window over events, the same in rows of training and in serving."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, Sequences, build_sequences, pack, requests

pytestmark = pytest.mark.usefixtures("quick_calls")

SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tasks": ("click",)}


@pytest.fixture(scope="module")
def log() -> Any:
    return kr.data.simulate(members=6, days=6, seed=1, feedback_delay=60)


def array(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value), dtype=np.float64)


def randomise(model: Any) -> None:
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])


def by_event(model: Any, sequences: Sequences) -> np.ndarray:
    rows = pack(sequences, 1024)
    dataset = PackedDataset(rows, len(rows.index), inputs=model.input_columns, shuffle=False)
    return rows.scatter(array(model(dataset[0][0])["click"]))


@pytest.mark.parametrize(
    ("kind", "arguments", "window"),
    [
        ("CADET", {}, 5),
        ("CADET", {"layout": "value"}, 0),
        ("FeedSR", {}, 40),
        ("FeedSR", {"layout": "fused"}, 5),
    ],
)
@pytest.mark.quickest
def test_rows_and_requests_agree(log: Any, kind: str, arguments: dict[str, Any], window: int) -> None:
    keras.utils.set_random_seed(0)
    arguments = {**SMALL, **arguments, "num_layers": 2, "max_history": window}
    model = getattr(kr.models, kind)(log.schema.fit(log.events), **arguments)
    randomise(model)
    sequences = build_sequences(log.events, model.schema)
    expected = 1 / (1 + np.exp(-by_event(model, sequences)[:, model.serving_tower]))
    found = requests(sequences)
    which = np.argsort(found.history_begin - found.history_end)[:5]
    tensors = found.tensors(which, list(model.serving_model.input))
    assert tensors["history_length"].max() > window
    got = array(model.serving_model(tensors)["click"])
    index = found.candidate_index(which)
    real = np.arange(got.shape[1]) < tensors["candidate_count"][:, None]
    np.testing.assert_allclose(got[real], expected[index[real]], atol=1e-5)


@pytest.mark.quickest
def test_what_is_older_moves_nothing(log: Any) -> None:
    schema = log.schema.fit(log.events)
    keras.utils.set_random_seed(0)
    model = kr.models.FeedSR(schema, **SMALL, max_history=5)
    randomise(model)
    all_of_it = kr.models.FeedSR(schema, **SMALL)
    all_of_it.set_weights(model.get_weights())
    sequences = build_sequences(log.events, schema)
    longest = int(np.diff(sequences.offsets).argmax())
    first, last = sequences.offsets[longest], sequences.offsets[longest + 1] - 1
    clicks = sequences.columns["click"].copy()
    clicks[first : first + 5] = 1 - clicks[first : first + 5]
    moved = replace(sequences, columns={**sequences.columns, "click": clicks})
    assert last - first > 30
    np.testing.assert_array_equal(by_event(model, sequences)[last], by_event(model, moved)[last])
    assert np.abs(by_event(all_of_it, sequences)[last] - by_event(all_of_it, moved)[last]).max() > 1e-5, "control: without a window they do"


@pytest.mark.quickest
@pytest.mark.parametrize("window", [-1, 2.5, True])
def test_bad_windows_are_named(log: Any, window: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="`max_history` must be (a number of events|an integer or None)"):
        kr.models.CADET(log.schema, max_history=window)
