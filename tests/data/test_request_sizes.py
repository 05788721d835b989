"""Histories padded to a few sizes: the same scores in the same order, with less padding."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import RequestDataset, requests

NAMES = ["history_length", "history_item", "candidate_item"]


@pytest.fixture(scope="module")
def found() -> Any:
    """Requests of two items, of members with 1 to 20 requests and of one with 300."""
    counts = [300, *range(1, 21)]
    member = np.repeat(np.arange(len(counts)), counts)
    request = np.arange(len(member)).repeat(2)
    events = pd.DataFrame({"member": member.repeat(2), "request": request, "time": 1_700_000_000 + 9 * request, "click": request % 2})
    events["item"] = np.arange(len(events)) % 50
    schema = kr.Schema(member="member", time="time", request="request", features=[kr.Number("item")], tasks=["click"])
    return requests(events, schema)


@pytest.mark.few(1)
@pytest.mark.every_backend
@pytest.mark.parametrize("batch_size", [16, 300, 1000])
def test_predict_gives_the_scores_of_one_size_in_the_same_order(found: Any, batch_size: int) -> None:
    inputs = {name: keras.Input((None,) if name != "history_length" else (), name=name) for name in NAMES}
    total = keras.ops.sum(inputs["history_item"], axis=1, keepdims=True)
    length = keras.ops.cast(keras.ops.expand_dims(inputs["history_length"], 1), "float32")
    model = keras.Model(inputs, 1000 * length + total + inputs["candidate_item"])
    scores = model.predict(RequestDataset(found, batch_size, NAMES), verbose=0)
    np.testing.assert_array_equal(scores, model.predict(RequestDataset(found, batch_size, NAMES, history=598), verbose=0))
    assert scores.shape == (len(found), 2)


def test_a_batch_has_the_smallest_size_that_holds_its_histories(found: Any) -> None:
    dataset = RequestDataset(found, 16, NAMES)
    assert dataset.sizes == (75, 150, 299, 598) and dataset.history == 598
    dataset.on_epoch_begin()
    batches = [dataset[number][0] for number in range(len(dataset))]
    for batch in batches:
        longest = batch["history_length"].max()
        assert batch["history_item"].shape[1] == min(size for size in dataset.sizes if size >= longest)
        assert ((batch["history_item"] != 0).sum(axis=1) <= batch["history_length"]).all()
    assert np.concatenate([batch["history_length"] for batch in batches]).tolist() == (found.history_end - found.history_begin).tolist()
    slots = sum(batch["history_item"].size for batch in batches)
    assert slots < 0.75 * len(found) * 598  # control: one size
    assert RequestDataset(found, 16, NAMES, history=600).sizes == (600,)
    # Short histories have one size, and one compilation.
    assert RequestDataset(requests(found.sequences, max_history=100), 16, NAMES).sizes == (100,)


def test_the_first_two_batches_that_are_read_before_an_epoch_differ_in_size(found: Any) -> None:
    for batch_size in (1, 16, 310):
        dataset = RequestDataset(found, batch_size, NAMES)
        before = [dataset[number][0]["history_item"].shape[1] for number in (0, 1)]
        assert before[0] != before[1]
        dataset.on_epoch_begin()
        assert dataset[1][0]["history_item"].shape[1] == dataset.length(1) in dataset.sizes
