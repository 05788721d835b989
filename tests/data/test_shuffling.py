"""shuffle_sessions: whole events change places inside their session, requests stay together, times stay sorted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, Sequences, build_sequences, pack, shuffle_sessions, shuffling

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    log = kr.data.simulate(members=60, days=6, seed=3)
    return build_sequences(log.events, log.schema.fit(log.events), target=np.arange(len(log.events)) % 3 > 0)


def test_events_move_whole_and_stay_in_their_session(sequences: Sequences) -> None:
    moved = shuffle_sessions(sequences, seed=1)
    assert not np.array_equal(moved.rows, sequences.rows)
    of_row = np.argsort(sequences.rows)[moved.rows]  # where each moved event stood before
    for name in sequences.columns:  # item and action together
        np.testing.assert_array_equal(moved.columns[name], sequences.columns[name][of_row])
    for name in sequences.labels:
        np.testing.assert_array_equal(moved.labels[name], sequences.labels[name][of_row])
    np.testing.assert_array_equal(moved.target, sequences.target[of_row])
    np.testing.assert_array_equal(moved.position, sequences.position[of_row])
    # The multiset of events of each session is the same, and sessions follow each other as before.
    np.testing.assert_array_equal(moved.session, sequences.session)
    np.testing.assert_array_equal(moved.member, sequences.member)


def test_requests_stay_together_with_one_time_each_and_time_never_goes_back(sequences: Sequences) -> None:
    moved = shuffle_sessions(sequences, seed=1)
    assert len(moved.request_starts) == len(sequences.request_starts)  # no request is cut in two
    starts = moved.request_starts
    request = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    np.testing.assert_array_equal(moved.time, moved.time[starts[:-1]][request])
    same = moved.member[1:] == moved.member[:-1]
    assert (np.diff(moved.time.astype(np.int64))[same] >= 0).all()
    # The times of a session's places are those it had.
    np.testing.assert_array_equal(moved.time[starts[:-1]], sequences.time[sequences.request_starts[:-1]])
    # Control: times that moved with the events would go back.
    of_row = np.argsort(sequences.rows)[moved.rows]
    assert (np.diff(sequences.time[of_row].astype(np.int64))[same] < 0).any()


def test_both_orders_are_random(sequences: Sequences) -> None:
    """Over many seeds each request of a session comes first as often as any other, and so does each event of a request."""
    starts = sequences.request_starts
    session = sequences.session[starts[:-1]]
    longest = int(np.bincount(session).argmax())
    mine = np.flatnonzero(session == longest)
    begin, size = starts[mine[0]], len(mine)
    assert size >= 4
    requests, events = [], []
    for seed in range(400):
        order, _ = shuffling.session_order(sequences, seed)
        requests.append(int(np.searchsorted(starts, order[begin], side="right") - 1 - mine[0]))
        at = int(np.flatnonzero(np.isin(order, np.arange(starts[mine[0]], starts[mine[0] + 1])))[0])
        events.append(int(order[at] - starts[mine[0]]))
    for found, kinds in ((requests, size), (events, int(np.diff(starts)[mine[0]]))):
        counts = np.bincount(found, minlength=kinds)
        expected = 400 / kinds
        assert ((counts - expected) ** 2 / expected).sum() < 3 * kinds  # chi-square with kinds - 1 degrees of freedom


def test_a_seed_repeats_it(sequences: Sequences) -> None:
    first, again, other = (shuffle_sessions(sequences, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


def test_nothing_crosses_a_cut(sequences: Sequences) -> None:
    rows = pack(sequences, 48, context=16)
    moved = shuffle_sessions(sequences, 1, rows.cuts)
    of_row = np.argsort(sequences.rows)[moved.rows]
    block = np.searchsorted(rows.cuts, np.arange(sequences.num_events), side="right")
    np.testing.assert_array_equal(block[of_row], block)
    free = np.argsort(sequences.rows)[shuffle_sessions(sequences, 1).rows]
    assert (block[free] != block).any()  # control


@pytest.mark.parametrize("row_length", [48, 400])
@pytest.mark.parametrize("kind", ["fixed", "epoch"])
def test_batches_hold_each_target_once_in_a_new_order_each_epoch(sequences: Sequences, kind: str, row_length: int) -> None:
    numbered = replace(sequences, columns={**sequences.columns, "item_id": np.arange(1, sequences.num_events + 1, dtype=np.int32)})
    rows = pack(numbered, row_length, context=16)
    dataset = PackedDataset(rows, 4, inputs=["item_id", "time", "segment"], shuffle=False, shuffle_sessions=kind, seed=2)
    orders = []
    for _ in range(2):
        found = [dataset[batch] for batch in range(len(dataset))]
        items = np.concatenate([x["item_id"] for x, _, _ in found])
        weights = np.concatenate([w["click"] for _, _, w in found])
        learned = np.sort(items[weights > 0]) - 1
        np.testing.assert_array_equal(learned, np.flatnonzero(numbered.target))
        time = np.concatenate([x["time"] for x, _, _ in found])
        segment = np.concatenate([x["segment"] for x, _, _ in found])
        same = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        assert (np.diff(time, axis=1)[same] >= 0).all()
        # Labels are those of the item in the slot.
        label = np.concatenate([y["click"][..., 0] for _, y, _ in found])
        np.testing.assert_array_equal(label[items > 0], numbered.labels["click"][items[items > 0] - 1])
        orders.append(items)
        dataset.on_epoch_end()
    assert np.array_equal(orders[0], orders[1]) == (kind == "fixed")
    straight = PackedDataset(rows, 4, inputs=["item_id"], shuffle=False)
    assert not np.array_equal(np.concatenate([straight[b][0]["item_id"] for b in range(len(straight))]), orders[0])


def test_errors(sequences: Sequences) -> None:
    with pytest.raises(ValueError, match="needs a schema with a session: name its column, or give the option `shuffle_sessions=None`"):
        shuffle_sessions(replace(sequences, session=None))
    two = sequences.session.copy()
    two[1] = two.max() + 1
    with pytest.raises(ValueError, match="column 'session_id' must hold one session for all rows of a request"):
        shuffle_sessions(replace(sequences, session=two))
    with pytest.raises(ValueError, match="`shuffle_sessions` must be None, 'fixed' or 'epoch'. Received: shuffle_sessions=True"):
        PackedDataset(pack(sequences, 64), 4, shuffle_sessions=True)  # type: ignore[arg-type]
