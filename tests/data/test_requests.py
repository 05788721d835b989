"""requests: the requests of serving, with the events known at their time."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

import keras_ranking as kr
from keras_ranking.data import Requests, build_sequences, requests

START = 1_700_000_000
SCHEMA = kr.Schema(
    member="member",
    time="time",
    request="request",
    position="rank",
    features=[
        kr.Number("row_number"),
        kr.Vector("text", size=2),
        kr.Number("affinity", known="context"),
        kr.Number("page_dwell", known="after"),
    ],
    actions=["click"],
    tasks=["click"],
)


def make_log(seed: int = 0, members: int = 4, count: int = 40, step: int = 3) -> pd.DataFrame:
    """Requests of 1 to 4 impressions; a step of 0 seconds is common, so that members have several requests in one second."""
    rng = np.random.default_rng(seed)
    rows, clock = [], START
    for request in range(count):
        clock += int(rng.integers(0, step))
        member = f"m{rng.integers(members)}"
        rows += [(member, clock, f"r{request}", rank + 1) for rank in range(int(rng.integers(1, 5)))]
    log = pd.DataFrame(rows, columns=["member", "time", "request", "rank"])
    log["row_number"] = np.arange(1.0, len(log) + 1)
    log["text"] = [[number, 0.5] for number in log["row_number"]]
    log["affinity"] = -log["row_number"]
    log["page_dwell"] = 1.0
    log["click"] = rng.integers(0, 2, len(log))
    return log


def parts(found: Requests, q: int) -> tuple[list[int], list[int]]:
    rows = found.sequences.rows
    return (
        rows[found.history_begin[q] : found.history_end[q]].tolist(),
        rows[found.candidate_begin[q] : found.candidate_end[q]].tolist(),
    )


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 5]), st.sampled_from([None, 0, 1, 3]), st.sampled_from([1.0, 0.3]))
def test_against_the_log(seed: int, step: int, max_history: int | None, share: float) -> None:
    """Every request with what the log says of it, by comparing every row with every other."""
    log = make_log(seed, members=2, count=12, step=step)
    target = np.random.default_rng(seed).random(len(log)) < share
    found = requests(build_sequences(log, SCHEMA, target=target), max_history=max_history)
    wanted = {request for request, row in zip(log["request"], target, strict=True) if row}
    assert len(found) == len(wanted)
    seen = set()
    for q in range(len(found)):
        history, candidates = parts(found, q)
        request = log["request"][candidates[0]]
        seen.add(request)
        member, now = log["member"][candidates[0]], log["time"][candidates[0]]
        assert candidates == log.index[log["request"] == request].tolist()
        assert found.time[q] == now - SCHEMA.epoch
        before = log.index[(log["member"] == member) & (log["time"] < now)].tolist()
        assert sorted(history) == (before if max_history is None else before[len(before) - min(max_history, len(before)) :])
    assert seen == wanted


def test_same_second_requests_do_not_see_each_other() -> None:
    log = make_log(0, members=1, count=3)
    log["time"] = START + np.where(log["request"] == "r0", 0, 5)
    found = requests(log, SCHEMA)
    first = (log["request"] == "r0").sum()
    assert [len(parts(found, q)[0]) for q in range(3)] == [0, first, first]
    # Control: one second later the third request does see the second.
    log["time"] += np.where(log["request"] == "r2", 1, 0)
    assert len(parts(requests(log, SCHEMA), 2)[0]) == first + (log["request"] == "r1").sum()


def test_tensors() -> None:
    log = make_log(1)
    found = requests(log, SCHEMA, max_history=6)
    names = [
        *("history_row_number", "history_text", "history_affinity", "history_click", "history_time", "history_length"),
        *("candidate_row_number", "candidate_text", "candidate_affinity", "candidate_count", "request_time"),
    ]
    which = [7, 0, 20]
    tensors = found.tensors(which, names)
    assert list(tensors) == names
    longest = max(len(parts(found, q)[0]) for q in which), max(len(parts(found, q)[1]) for q in which)
    assert {name: value.shape[1] for name, value in tensors.items() if value.ndim > 1} == {
        name: longest[0] if name.startswith("history") else longest[1] for name in names if tensors[name].ndim > 1
    }
    assert {name for name, value in tensors.items() if value.dtype == np.int32} == {
        "history_time", "history_length", "candidate_count", "request_time",
    }  # fmt: skip
    for b, q in enumerate(which):
        history, candidates = parts(found, q)
        for side, rows, length in (("history", history, "history_length"), ("candidate", candidates, "candidate_count")):
            size = tensors[length][b]
            assert size == len(rows)
            numbers = tensors[f"{side}_row_number"][b]
            np.testing.assert_array_equal(numbers[:size], np.asarray(rows) + 1.0)  # oldest first, left-aligned
            assert not numbers[size:].any()
            np.testing.assert_array_equal(tensors[f"{side}_affinity"][b], -numbers)
            np.testing.assert_array_equal(tensors[f"{side}_text"][b, :size], [[row + 1, 0.5] for row in rows] or np.zeros((0, 2)))
            assert not tensors[f"{side}_text"][b, size:].any()
        np.testing.assert_array_equal(tensors["history_click"][b, : len(history)], log["click"][history])
        np.testing.assert_array_equal(tensors["history_time"][b, : len(history)], log["time"][history] - SCHEMA.epoch)
        assert tensors["request_time"][b] == found.time[q]
        assert (tensors["history_time"][b, : len(history)] < found.time[q]).all()


def test_padding_to_a_size() -> None:
    found = requests(make_log(2), SCHEMA, max_history=5)
    names = ["history_text", "candidate_row_number"]
    small, wide = found.tensors(range(10), names), found.tensors(range(10), names, history=9, candidates=7)
    assert wide["history_text"].shape == (10, 9, 2)
    assert wide["candidate_row_number"].shape == (10, 7)
    np.testing.assert_array_equal(wide["history_text"][:, : small["history_text"].shape[1]], small["history_text"])
    index = found.candidate_index(range(10), candidates=7)
    np.testing.assert_array_equal(index >= 0, wide["candidate_row_number"] > 0)
    np.testing.assert_array_equal(found.sequences.rows[index[index >= 0]] + 1, wide["candidate_row_number"][index >= 0])
    with pytest.raises(ValueError, match="`history` must be at least the longest of the batch, 5. Received: history=4"):
        found.tensors(range(10), ["history_time"], history=4)
    with pytest.raises(ValueError, match="`candidates` must be at least the longest of the batch"):
        found.candidate_index(range(10), candidates=1)


def test_no_history_is_one_slot_of_padding() -> None:
    found = requests(make_log(3), SCHEMA, max_history=0)
    tensors = found.tensors([0, 1], ["history_row_number", "history_length"])
    np.testing.assert_array_equal(tensors["history_row_number"], np.zeros((2, 1)))
    np.testing.assert_array_equal(tensors["history_length"], [0, 0])


@pytest.mark.parametrize(
    "name", ["candidate_click", "candidate_page_dwell", "history_page_dwell", "history_rank", "candidate_time", "click", "x_y"]
)
def test_names_that_are_no_serving_tensors(name: str) -> None:
    """Above all: an action of a candidate is its label, and must not be had."""
    found = requests(make_log(0), SCHEMA)
    assert found.tensors([0], ["history_click", "candidate_affinity"])  # control
    with pytest.raises(ValueError, match=f"`names` must be .* Received: '{name}'"):
        found.tensors([0], [name])


def test_errors_and_empty_logs() -> None:
    log = make_log(0)
    with pytest.raises(ValueError, match="`schema` must be given with a log. Received: schema=None"):
        requests(log)
    for events in (log, log.head(0)):
        with pytest.raises(ValueError, match="`max_history` must be an integer of at least 0, or None. Received: max_history=-1"):
            requests(events, SCHEMA, max_history=-1)
    assert len(requests(log.head(0), SCHEMA, max_history=3)) == 0
    assert len(requests(build_sequences(log, SCHEMA, target=np.zeros(len(log), bool)))) == 0
