"""pack: streams in rows of one length. Checked by brute force on random logs."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, strategies as st

import keras_ranking as kr
from keras_ranking.data import PackedRows, Sequences, build_sequences, pack

START = 1_700_000_000
SCHEMA = kr.Schema(member="member", time="time", request="request", features=[kr.Number("age")], actions=["click"], tasks=["click"])


def from_sizes(sizes: list[list[int]], target: float | np.ndarray = 1.0, seed: int = 0) -> Sequences:
    """Streams of members with requests of the given sizes; `target`: share of target events, or the mask."""
    rows = [(m, START + 10 * r, f"{m}-{r}") for m, member in enumerate(sizes) for r, size in enumerate(member) for _ in range(size)]
    log = pd.DataFrame(rows, columns=["member", "time", "request"])
    log["age"] = np.arange(len(log), dtype=float)
    log["click"] = 0
    mask = target if isinstance(target, np.ndarray) else np.random.default_rng(seed).random(len(log)) < target
    return build_sequences(log, SCHEMA, target=mask)


def brute_pieces(sequences: Sequences, row_length: int, context: int) -> list[tuple[int, int, int]]:
    """Pieces by the plainest reading: take requests one by one until the next does not fit."""
    pieces = []
    starts = sequences.request_starts.tolist()
    requests = list(pairwise(starts))
    for start, stop in pairwise(sequences.offsets.tolist()):
        mine = [(a, b) for a, b in requests if start <= a < stop]
        if stop - start <= row_length:
            pieces.append((start, start, stop))
            continue
        while mine:
            first = mine[0][0]
            begin = max(start, first - context)
            end = first
            while mine and mine[0][1] - begin <= row_length:
                end = mine.pop(0)[1]
            if end == first:
                raise ValueError("does not fit")
            pieces.append((begin, first, end))
    return pieces


def pieces_of(packed: PackedRows) -> list[tuple[int, int]]:
    out = []
    for row in range(len(packed.index)):
        for piece in range(1, int(packed.segment[row].max(initial=0)) + 1):
            events = packed.index[row, packed.segment[row] == piece]
            out.append((int(events[0]), int(events[-1]) + 1))
    return sorted(out)


LOGS = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=12), max_size=8)


@given(LOGS, st.integers(1, 20), st.integers(0, 19), st.sampled_from([0.0, 0.2, 1.0]), st.booleans(), st.integers(0, 99))
@example([[4, 4, 4]], 8, 4, 1.0, True, 0)
@example([[1]], 1, 0, 1.0, True, 0)
def test_random_logs(sizes: list[list[int]], row_length: int, context: int, share: float, skip: bool, seed: int) -> None:
    context = min(context, row_length - 1)
    sequences = from_sizes(sizes, share, seed)
    try:
        want = brute_pieces(sequences, row_length, context)
    except ValueError:
        with pytest.raises(ValueError, match="`row_length` must leave space for the largest request after its context"):
            pack(sequences, row_length, context, skip)
        return
    packed = pack(sequences, row_length, context, skip)
    kept = [piece for piece in want if not skip or sequences.target[piece[1] : piece[2]].any()]
    assert packed.skipped == len(want) - len(kept)
    assert pieces_of(packed) == sorted((begin, end) for begin, _, end in kept)
    lengths = [end - begin for begin, _, end in kept]
    # Never worse than one piece a row, never better than the events allow, and no two rows that would fit in one.
    assert -(-sum(lengths) // row_length) <= len(packed.index) <= len(lengths)
    room = np.sort((packed.index < 0).sum(axis=1))[::-1]
    if len(room) > 1:
        assert room[0] + room[1] < row_length
    if kept:
        assert packed.efficiency == pytest.approx(sum(lengths) / (len(packed.index) * row_length))
    # The promises again, event by event.
    np.testing.assert_array_equal(np.sort(packed.index[packed.target]), np.flatnonzero(sequences.target))
    own = {(begin, end): first for begin, first, end in kept}
    for row in range(len(packed.index)):
        for piece in range(1, int(packed.segment[row].max()) + 1):
            slots = np.flatnonzero(packed.segment[row] == piece)
            assert (np.diff(slots) == 1).all()
            events = packed.index[row, slots]
            assert (np.diff(events) == 1).all()
            assert len(set(sequences.member[events])) == 1
            first = own[int(events[0]), int(events[-1]) + 1]
            np.testing.assert_array_equal(packed.target[row, slots], sequences.target[events] & (events >= first))
    np.testing.assert_array_equal(packed.segment == 0, packed.index < 0)
    assert not packed.target[packed.index < 0].any()
    # No request is split: its target events are in one row and one piece.
    where = {int(packed.index[row, slot]): (row, int(packed.segment[row, slot])) for row, slot in np.argwhere(packed.target)}
    for a, b in pairwise(sequences.request_starts):
        assert len({where[event] for event in range(a, b) if event in where}) <= 1


def test_a_long_member() -> None:
    sequences = from_sizes([[2] * 10])
    packed = pack(sequences, row_length=8, context=4)
    assert pieces_of(packed) == [(0, 8), (4, 12), (8, 16), (12, 20)]
    learned = sorted((int(row[0]), row[mask].tolist()) for row, mask in zip(packed.index, packed.target, strict=True))
    assert learned == [
        (0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, [8, 9, 10, 11]),
        (8, [12, 13, 14, 15]),
        (12, [16, 17, 18, 19]),
    ]
    assert packed.efficiency == 1.0
    assert packed.max_request == 2
    assert pack(sequences, row_length=8).target.sum() == 20  # half a row of context where nothing is said
    assert len(pack(sequences, row_length=8).index) == 4
    assert len(pack(sequences, row_length=8, context=0).index) == 3


def test_best_fit_fills_rows() -> None:
    """6 + 2, 5 + 3, 4 + 4 fill three rows of 8; first fit in the order of the log needs four."""
    packed = pack(from_sizes([[4], [2], [3], [6], [5], [4]]), row_length=8)
    assert len(packed.index) == 3
    assert packed.efficiency == 1.0
    rows, room = 0, []
    for length in (4, 2, 3, 6, 5, 4):
        fitting = [i for i, left in enumerate(room) if left >= length]
        if not fitting:
            room.append(8)
            fitting = [rows]
            rows += 1
        room[fitting[0]] -= length
    assert rows == 4  # control


def test_a_request_that_does_not_fit() -> None:
    sequences = from_sizes([[1, 2, 7, 1], [1]])
    assert pack(sequences, row_length=9, context=2).target.sum() == 12
    with pytest.raises(ValueError, match=r"Received: row_length=9, context=3, a request of 7 impressions \(row 3 of the log\)"):
        pack(sequences, row_length=9, context=3)
    # A member that fits a row whole is never cut, however large its requests.
    assert len(pack(from_sizes([[7, 2]]), row_length=9, context=8).index) == 1


def test_skipped_pieces() -> None:
    mask = np.zeros(16, dtype=bool)
    mask[[9, 15]] = True
    sequences = from_sizes([[2] * 5, [3], [3]], mask)
    packed = pack(sequences, row_length=6, context=2)
    assert packed.skipped == 3 - 1
    assert sorted(packed.index[packed.target].tolist()) == [9, 15]
    everything = pack(sequences, row_length=6, context=2, skip_targetless=False)
    assert everything.skipped == 0
    assert set(everything.index[everything.index >= 0].tolist()) == set(range(16))  # control: nothing left out
    assert set(packed.index[packed.index >= 0].tolist()) < set(range(16))


def test_nothing_to_learn_from() -> None:
    for sequences in (from_sizes([[2, 2]], 0.0), from_sizes([])):
        packed = pack(sequences, row_length=4)
        assert packed.index.shape == (0, 4)
        assert packed.efficiency == 0.0
        assert packed.scatter(np.zeros((0, 4))).shape == (sequences.num_events,)


def test_scatter() -> None:
    sequences = from_sizes([[2] * 10, [3, 1], [1]], 0.6)
    packed = pack(sequences, row_length=8, context=4)
    values = np.stack([packed.index, packed.index * 2], axis=-1).astype("float32")
    back = packed.scatter(values)
    want = np.where(sequences.target, np.arange(sequences.num_events), np.nan)
    np.testing.assert_array_equal(back, np.stack([want, 2 * want], axis=-1).astype("float32"))
    # A value in a slot of context is not taken.
    values[~packed.target] = 1e9
    np.testing.assert_array_equal(packed.scatter(values), back)
    np.testing.assert_array_equal(packed.scatter(np.ones(packed.index.shape, int), fill=-1), np.where(sequences.target, 1, -1))
    with pytest.raises(ValueError, match="`values` must begin with shape"):
        packed.scatter(values[1:])
    with pytest.raises(ValueError, match="`fill` must be a value of the type of `values`"):
        packed.scatter(np.ones(packed.index.shape, int))


def test_errors() -> None:
    sequences = from_sizes([[1]])
    with pytest.raises(ValueError, match="`row_length` must be a positive integer. Received: row_length=0"):
        pack(sequences, row_length=0)
    for context in (-1, 4):
        with pytest.raises(ValueError, match=f"`context` must be at least 0 and below `row_length`. Received: context={context}"):
            pack(sequences, row_length=4, context=context)


@pytest.mark.slow
def test_a_million_events() -> None:
    """Sequences and rows of a million events, shuffled, with long members among them, in less than ten seconds."""
    rng = np.random.default_rng(0)
    requests = 200_000
    member = np.minimum(rng.pareto(1.0, requests) * 100, 30_000).astype("int64")
    log = pd.DataFrame({"member": np.repeat(member, 5), "request": np.repeat(np.arange(requests), 5)})
    log["time"] = START + np.repeat(np.sort(rng.integers(0, 30 * 86400, requests)), 5)
    log["item"] = rng.integers(0, 100_000, len(log))
    log["age"] = rng.random(len(log))
    log["click"] = rng.integers(0, 2, len(log))
    log = log.iloc[np.repeat(rng.permutation(requests) * 5, 5) + np.tile(np.arange(5), requests)].reset_index(drop=True)
    schema = SCHEMA.model_copy(update={"features": (kr.Number("age"), kr.Id("item"))})
    begin = time.process_time()
    packed = pack(build_sequences(log, schema), row_length=256)
    seconds = time.process_time() - begin
    assert packed.target.sum() == len(log) == 1_000_000
    assert packed.efficiency > 0.98
    assert seconds < 10
