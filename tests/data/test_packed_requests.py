"""PackedRequests: whole requests in rows of slots, each event in one slot, with its request's history."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedRequests, Requests, build_sequences, requests
from keras_ranking.data.histories import even_order

NAMES = ["request_slot", "candidate_item_id", "candidate_age_hours", "history_item_id", "history_time", "history_length", "request_time"]


@pytest.fixture(scope="module")
def found() -> Requests:
    log = kr.data.simulate(members=12, days=2, seed=1)
    schema = log.schema.fit(log.events)
    target = np.arange(len(log.events)) % 7 != 0
    return requests(build_sequences(log.events, schema, target=target), max_history=9, delay=schema.feedback_delay)


def make(found: Requests, **settings: Any) -> PackedRequests:
    return PackedRequests(found, **{"row_length": 48, "batch_size": 3, "names": NAMES, **settings})


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_candidate_stands_in_one_slot_with_its_request(found: Requests, shuffle: bool) -> None:
    dataset, sequences = make(found, shuffle=shuffle), found.sequences
    seen: list[int] = []
    for batch in range(len(dataset)):
        x, y, weights = dataset[batch]
        order = dataset._order[batch * 3 : batch * 3 + 3]
        assert {name: values.shape[0] for name, values in x.items()} == dict.fromkeys(NAMES, 3)
        for b, row in enumerate(order):
            for s, event in enumerate(dataset.slots[row]):
                slot = x["request_slot"][b, s]
                if event < 0:
                    assert slot == 0 and weights["click"][b, s] == 0 and x["candidate_item_id"][b, s] == 0
                    continue
                seen.append(event)
                at = int(np.flatnonzero((found.candidate_begin <= event) & (event < found.candidate_end))[0])
                assert x["candidate_item_id"][b, s] == sequences.columns["item_id"][event]
                assert x["request_time"][b, slot - 1] == found.time[at] == sequences.time[event]
                length = x["history_length"][b, slot - 1]
                assert length == found.history_end[at] - found.history_begin[at]
                history = sequences.columns["item_id"][found.history_begin[at] : found.history_end[at]]
                np.testing.assert_array_equal(x["history_item_id"][b, slot - 1, :length], history)
                assert weights["click"][b, s] == sequences.target[event] and y["click"][b, s, 2] == slot
                assert y["click"][b, s, 0] == sequences.labels["click"][event] and y["click"][b, s, 1] == sequences.position[event]
    wanted = np.concatenate([np.arange(a, b) for a, b in zip(found.candidate_begin, found.candidate_end, strict=True)])
    assert sorted(seen) == sorted(wanted)
    assert dataset.efficiency == pytest.approx(len(wanted) / dataset.slots.size) and dataset.efficiency > 0.7


def test_history_is_what_the_delay_shows(found: Requests) -> None:
    sequences, delay = found.sequences, found.sequences.schema.feedback_delay
    member = sequences.member
    everything = requests(sequences)
    for at in range(len(found)):
        event = found.candidate_begin[at]
        visible = np.flatnonzero((member == member[event]) & (sequences.time <= found.time[at] - delay))
        assert found.history_end[at] - found.history_begin[at] == min(9, len(visible))
        if len(visible):
            np.testing.assert_array_equal(np.arange(found.history_begin[at], found.history_end[at]), visible[-9:])
    assert (everything.history_end > found.history_end).any(), "control: without a delay more is there"
    with pytest.raises(ValueError, match="`delay` must be at least 1 second. Received: delay=0"):
        requests(sequences, delay=0)


def test_order_and_epochs(found: Requests) -> None:
    dataset = make(found)
    first = [dataset[i][0]["candidate_item_id"] for i in range(len(dataset))]
    dataset.on_epoch_end()
    second = [dataset[i][0]["candidate_item_id"] for i in range(len(dataset))]
    assert any((a != b).any() for a, b in zip(first, second, strict=True))
    again = make(found, epoch=1)
    for i in range(len(again)):
        np.testing.assert_array_equal(again[i][0]["candidate_item_id"], second[i])
    assert (make(found, seed=4).slots[:2] != dataset.slots[:2]).any()


def test_scatter(found: Requests) -> None:
    dataset = make(found)
    values = np.where(dataset.slots >= 0, dataset.slots, -5)[..., None].astype(float)
    out = dataset.scatter(values)[:, 0]
    there = np.isfinite(out)
    np.testing.assert_array_equal(out[there], np.flatnonzero(there))


def test_few_requests_a_row(found: Requests) -> None:
    dataset = make(found, row_requests=2)
    assert dataset.members.shape[1] == 2 and dataset[0][0]["history_item_id"].shape == (3, 2, 9)


def test_errors(found: Requests) -> None:
    longest = int((found.candidate_end - found.candidate_begin).max())
    with pytest.raises(ValueError, match=f"`row_length` must be at least the longest list, {longest}. Received: row_length=2"):
        make(found, row_length=2)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer. Received: batch_size=0"):
        make(found, batch_size=0)
    with pytest.raises(ValueError, match="candidate_click"):
        make(found, names=["candidate_click"])
    with pytest.raises(ValueError, match="unknown task 'purchase'"):
        make(found, tasks=["purchase"])
    empty = requests(build_sequences(kr.data.simulate(members=2, days=1, seed=1).events.iloc[:0], found.sequences.schema))
    with pytest.raises(ValueError, match="`requests` must hold at least one request"):
        make(empty)


def test_one_event_a_row(found: Requests) -> None:
    dataset, sequences = make(found, single=True, batch_size=5), found.sequences
    whole = make(found)
    assert sorted(dataset.slots[:, 0]) == sorted(event for event in whole.slots[whole.slots >= 0] if sequences.target[event])
    x, y, weights = dataset[0]
    assert x["history_item_id"].shape == (5, 1, 9) and weights["click"].tolist() == [[1.0]] * 5
    for b, row in enumerate(dataset._order[:5]):
        event = dataset.slots[row, 0]
        assert (
            x["candidate_item_id"][b, 0] == sequences.columns["item_id"][event] and y["click"][b, 0, 0] == sequences.labels["click"][event]
        )
        assert x["request_time"][b, 0] == sequences.time[event]


@pytest.mark.one_backend
@pytest.mark.parametrize("shuffle", [False, True])
def test_slots_stand_in_the_input_of_the_length_of_their_history(found: Requests, shuffle: bool) -> None:
    parts = ["slots_whole", "slots_half", "slots_quarter"]
    dataset = make(found, names=[*NAMES, *parts], shuffle=shuffle)
    assert sorted(dataset.slots[dataset.slots >= 0]) == sorted(make(found).slots[make(found).slots >= 0])
    for batch in range(len(dataset)):
        x = dataset[batch][0]
        assert all(x[name].shape == dataset[0][0][name].shape for name in parts)
        for b in range(3):
            slot = x["request_slot"][b]
            length = np.where(slot > 0, x["history_length"][b][np.maximum(slot - 1, 0)], 0)
            for name, least, most in zip(parts, (5, 3, 0), (9, 5, 3), strict=True):
                held = x[name][b]
                np.testing.assert_array_equal(held[held > 0] - 1, np.flatnonzero((length > least) & (length <= most)))


@pytest.mark.one_backend
def test_even_order_has_all_lengths_in_each_block() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.integers(0, 90, 1003), 50)
    for order in (even_order(lengths, 20, rng), even_order(lengths, 20)):
        np.testing.assert_array_equal(np.sort(order), np.arange(1003))
        means = [block.mean() for block in np.array_split(lengths[order], 20)]
        assert np.ptp(means) < 2.5
    assert np.ptp([block.mean() for block in np.array_split(lengths[rng.permutation(1003)], 20)]) > 5, "control: a random order"
    assert even_order(lengths, 20, np.random.default_rng(1)).tolist() != even_order(lengths, 20, np.random.default_rng(2)).tolist()
    assert even_order(np.array([3, 1]), 5).tolist() in ([0, 1], [1, 0])


STREAMED = ["request_slot", "candidate_item_id", "request_time", "stream_item_id", "stream_time", "stream_begin", "stream_end"]


@pytest.mark.one_backend
@pytest.mark.parametrize("kind", ["stream_prefix", "stream_window"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_requests_read_their_history_among_the_tokens_of_the_row(found: Requests, kind: str, shuffle: bool) -> None:
    found = requests(found.sequences, max_history=60, delay=found.sequences.schema.feedback_delay)
    dataset, items = make(found, names=[*STREAMED, kind], row_length=160, shuffle=shuffle), found.sequences.columns["item_id"]
    assert sorted(dataset.slots[dataset.slots >= 0]) == sorted(make(found).slots[make(found).slots >= 0])
    held = 0
    for batch in range(len(dataset)):
        x = dataset[batch][0]
        assert {name: values.shape for name, values in x.items()} == {name: values.shape for name, values in dataset[0][0].items()}
        held += int((x[kind] > 0).sum())
        for b, row in enumerate(dataset._order[batch * 3 : batch * 3 + 3]):
            for q, request in enumerate(dataset.members[row]):
                tokens = slice(x["stream_begin"][b, q], x["stream_end"][b, q])
                events = slice(found.history_begin[request], found.history_end[request]) if request >= 0 else slice(0, 0)
                np.testing.assert_array_equal(x["stream_item_id"][b, tokens], items[events])
                np.testing.assert_array_equal(x["stream_time"][b, tokens], found.sequences.time[events])
                number = x[kind][b, tokens]
                assert len(set(number.tolist())) <= 1 and (number > 0).all()
                if len(number):
                    whole = np.flatnonzero(x[kind][b] == number[0])
                    assert whole[0] == tokens.start, "a request begins with the first token of its stream"
                    assert kind == "stream_prefix" or whole[-1] == tokens.stop - 1, "and ends with the last of its window"
    copies = int((found.history_end - found.history_begin).sum())
    assert held < 0.8 * copies if kind == "stream_prefix" else held <= copies


@pytest.mark.one_backend
def test_streams_that_are_not_named_in_full(found: Requests) -> None:
    with pytest.raises(ValueError, match="streams need one of"):
        make(found, names=STREAMED)
    with pytest.raises(ValueError, match="streams need one of .* Received: single=True"):
        make(found, names=[*STREAMED, "stream_prefix"], single=True)
    with pytest.raises(ValueError, match="history_nothing"):
        make(found, names=[*STREAMED, "stream_prefix", "stream_nothing"])
