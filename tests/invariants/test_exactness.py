"""Invariants 1 to 5 and 8 of every sequence model on the active backend; each with a control that must fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from keras_ranking.ops.sequences import SLOTS_BY_LENGTH
from tests.invariants.conftest import Case, sigmoid, to_numpy

TOLERANCE = 1e-5
CLEARLY = 1e-3


def shown(case: Case, which: Any) -> tuple[np.ndarray, np.ndarray]:
    """Candidate slots of the requests and the events in them."""
    index = case.requests.candidate_index(which)
    return index >= 0, index


def long_requests(case: Case, count: int = 6) -> np.ndarray:
    """The requests with the longest histories, in member order, so that batches mix lengths."""
    length = case.requests.history_end - case.requests.history_begin
    chosen = np.argsort(-length, kind="stable")[: count - 1]
    return np.sort(np.append(chosen, np.argmin(length)))


def parts(case: Case, tensors: dict[str, np.ndarray], slots: Any) -> dict[str, np.ndarray]:
    """Candidate tensors of some slots, for `score`."""
    wanted = {name: x for name, x in tensors.items() if name.startswith(("candidate_", "request_", "member_"))}
    return {name: x[:, slots] if x.ndim > 1 and name.startswith("candidate_") else x for name, x in wanted.items()}


def score(case: Case, cache: Any, candidates: dict[str, np.ndarray]) -> np.ndarray:
    from tests.invariants.conftest import to_numpy

    return to_numpy(case.model.score(cache, candidates)[case.task])


# 1. joint = one at a time = chunks = cached = packed row ----------------------------------------------------------------


def test_joint_pass_equals_packed_row_chunks_singles_and_cache(case: Case) -> None:
    which = long_requests(case)
    real, index = shown(case, which)
    tensors = case.tensors(which)
    joint = case.serve(tensors)
    row = case.served(case.by_event()[index])
    np.testing.assert_allclose(joint[real], row[real], atol=TOLERANCE)

    cache = case.model.encode(tensors)
    slots = np.arange(real.shape[1])
    cached = case.served(score(case, cache, parts(case, tensors, slots)))
    np.testing.assert_allclose(cached[real], joint[real], atol=TOLERANCE)
    for size in (1, 5):
        pieces = [score(case, cache, parts(case, tensors, slots[i : i + size])) for i in range(0, len(slots), size)]
        np.testing.assert_allclose(case.served(np.concatenate(pieces, axis=1))[real], joint[real], atol=TOLERANCE)


def test_control_a_plain_causal_mask_breaks_joint_equals_single(leaky: Case) -> None:
    which = long_requests(leaky)
    real, index = shown(leaky, which)
    difference = np.abs(leaky.serve(leaky.tensors(which)) - sigmoid(leaky.by_event()[index]))[real]
    assert difference.max() > CLEARLY


# 2. candidates do not see each other ------------------------------------------------------------------------------------


def without(case: Case, event: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a row before and after the impression `event` gets other features, at the other candidates of its request."""
    sequences = case.sequences
    rng = np.random.default_rng(1)
    of_events = [name for name in sequences.columns if name not in sequences.schema.of_member]
    columns = {name: sequences.columns[name].copy() for name in of_events}
    for column in columns.values():
        column[event] = rng.integers(1, 3) if column.dtype == np.int32 else rng.normal(size=column[event].shape) + 3
    others = (sequences.request == sequences.request[event]) & (np.arange(sequences.num_events) != event)
    return case.by_event()[others], case.by_event(case.with_columns(**columns))[others]


def middle_request(case: Case) -> int:
    """First impression of the request in the middle of the longest stream: with a history, later events and neighbours."""
    sequences = case.sequences
    m = int(np.argmax(np.diff(sequences.offsets)))
    middle = (sequences.offsets[m] + sequences.offsets[m + 1]) // 2
    starts = sequences.request_starts
    return int(starts[np.searchsorted(starts, middle, side="right") - 1])


def test_candidates_do_not_see_each_other(case: Case) -> None:
    before, after = without(case, middle_request(case))
    np.testing.assert_array_equal(before, after)


def test_control_candidates_see_each_other_under_a_causal_mask(leaky: Case) -> None:
    before, after = without(leaky, middle_request(leaky))
    assert np.abs(before - after).max() > CLEARLY


def test_permuting_candidates_permutes_scores(case: Case) -> None:
    which = long_requests(case)
    real, _ = shown(case, which)
    tensors = case.tensors(which)
    full = real.all(axis=0)  # slots that are real in every request of the batch
    slots = np.flatnonzero(full)
    order = np.arange(len(full))  # the other slots stay, so that no backend compiles another length
    order[slots] = np.random.default_rng(0).permutation(slots)
    moved = {name: x[:, order] if name.startswith("candidate_") and x.ndim > 1 else x for name, x in tensors.items()}
    got, plain = case.serve(moved)[real], case.serve(tensors)
    np.testing.assert_allclose(got, plain[:, order][real], atol=1e-6)
    assert np.abs(got - plain[real]).max() > CLEARLY, "control: the order has an effect"


# 3. packing, padding, row length ------------------------------------------------------------------------------------------


def test_packing_and_row_length_change_nothing(case: Case) -> None:
    longest = int(np.diff(case.sequences.offsets).max())
    packed = case.by_event()
    assert len(case.rows()[case.segment]) < len(case.rows(longest)[case.segment]), "several members share a row"
    alone = case.by_event(row_length=longest)
    np.testing.assert_allclose(packed, alone, atol=TOLERANCE)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_changes_nothing(case: Case, side: str) -> None:
    inputs = case.rows()
    left, right = {"left": (7, 0), "right": (0, 7), "both": (3, 4)}[side]
    rng = np.random.default_rng(0)

    def padded(name: str, x: np.ndarray) -> np.ndarray:
        out = np.pad(x, ((0, 0), (left, right)) + ((0, 0),) * (x.ndim - 2))
        if name != case.segment:  # values of padding must not matter
            pad = np.ones(out.shape[1], dtype=bool)
            pad[left : out.shape[1] - right] = False
            out[:, pad] = rng.integers(0, 3, out[:, pad].shape) if out.dtype == np.int32 else rng.normal(size=out[:, pad].shape) * 9
        return out

    wide = {name: padded(name, x) if case.slotwise(name) else x for name, x in inputs.items() if name}
    for name in SLOTS_BY_LENGTH.keys() & wide.keys():  # numbers of slots, 0 = none
        wide[name] = np.where(wide[name] > 0, wide[name] + left, 0).astype(np.int32)
    plain = case.logits(inputs)
    real = inputs[case.segment] > 0
    got = case.logits(wide)[:, left : left + plain.shape[1]]
    np.testing.assert_allclose(got[real], plain[real], atol=TOLERANCE)


def test_control_one_segment_for_all_members_mixes_them(case: Case) -> None:
    inputs = case.rows()
    merged = {**inputs, case.segment: np.minimum(inputs[case.segment], 1)}
    real = inputs[case.segment] > 1
    assert np.abs(case.logits(merged)[real] - case.logits(inputs)[real]).max() > CLEARLY


def test_values_beyond_lengths_are_ignored(case: Case) -> None:
    which = long_requests(case)
    tensors = case.tensors(which)
    joint = case.serve(tensors)
    wide = case.tensors(which, history=tensors["history_time"].shape[1] + 5, candidates=joint.shape[1] + 3)
    past = np.arange(wide["history_time"].shape[1])[None, :] >= wide["history_length"][:, None]
    spare = np.arange(joint.shape[1] + 3)[None, :] >= wide["candidate_count"][:, None]
    for name, x in wide.items():
        if x.ndim > 1 and not name.startswith("member_"):
            x[past if name.startswith("history") else spare] = np.iinfo(np.int32).max if x.dtype == np.int32 else np.nan
    got = case.serve(wide)
    assert (got[spare] == 0).all()
    np.testing.assert_allclose(got[:, : joint.shape[1]], joint, atol=TOLERANCE)


# 4. no leak ---------------------------------------------------------------------------------------------------------------


def changed_actions(case: Case, events: np.ndarray) -> Any:
    rng = np.random.default_rng(2)
    columns = {}
    for action in case.sequences.schema.actions:
        column = case.sequences.columns[action.name].copy()
        column[events] += rng.normal(2.0, 1.0, size=column[events].shape).astype(column.dtype)
        columns[action.name] = column
    return case.with_columns(**columns)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_hidden_actions_change_no_score(case: Case, training: bool) -> None:
    sequences = case.sequences
    member = sequences.member
    delay = case.model.arguments["delay"]
    event = middle_request(case)
    hidden = (member == member[event]) & (sequences.time > sequences.time[event] - delay)
    before = case.by_event(training=training)
    after = case.by_event(changed_actions(case, hidden), training=training)
    # Events scored no later than the event see none of the hidden actions; nor do other members.
    unmoved = (member != member[event]) | (sequences.time <= sequences.time[event])
    np.testing.assert_array_equal(before[unmoved], after[unmoved])
    assert np.abs(before - after)[~unmoved].max() > CLEARLY, "control: visible actions change later scores"


def test_control_a_causal_mask_leaks_hidden_actions(leaky: Case) -> None:
    sequences = leaky.sequences
    event = middle_request(leaky)
    request = sequences.request == sequences.request[event]
    before, after = leaky.by_event(), leaky.by_event(changed_actions(leaky, request))
    assert np.abs(before - after)[request].max() > CLEARLY


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_labels_positions_and_after_scoring_values_are_not_inputs(case: Case, training: bool) -> None:
    sequences = case.sequences
    moved = replace(
        sequences,
        labels={task: 1 - label for task, label in sequences.labels.items()},
        position=sequences.position[::-1].copy(),
    )
    np.testing.assert_array_equal(case.by_event(training=training), case.by_event(moved, training=training))
    names = {*case.model.input_columns, *case.model.serving_model.input}
    after = {sequences.schema.position, "position", "candidate_click", "candidate_like", "candidate_dwell_seconds"}
    assert not names & after


# 5. time shift ------------------------------------------------------------------------------------------------------------


def test_the_score_is_the_sum_of_what_is_served(case: Case) -> None:
    model, weights = case.model, {"click": -1.5, "like": 4.0}
    weights = {task: weight for task, weight in weights.items() if task in model.tasks}
    tensors = case.tensors(long_requests(case))
    model.utility = weights
    try:
        found = {name: to_numpy(x) for name, x in model.serving_model(tensors).items()}
        cached = model.probabilities(model.score(model.encode(tensors), tensors), tensors["candidate_count"])
        assert model.get_config()["utility"] == weights
    finally:
        model.utility = None
    beyond = np.arange(found["score"].shape[1]) >= tensors["candidate_count"][:, None]
    assert not found["score"][beyond].any() and found["score"][~beyond].all()
    np.testing.assert_allclose(found["score"], sum(weight * found[task] for task, weight in weights.items()), rtol=0, atol=1e-6)
    np.testing.assert_allclose(to_numpy(cached["score"]), found["score"], rtol=0, atol=1e-5)
    assert "score" not in model.serving_model.output  # control: without a utility there is none


@pytest.mark.parametrize("shift", [1, 86_399, 500_000_000])
def test_shifting_all_times_changes_nothing(case: Case, shift: int) -> None:
    moved = replace(case.sequences, time=(case.sequences.time + shift).astype(np.int32))
    np.testing.assert_allclose(case.by_event(moved), case.by_event(), atol=5e-5)
    if case.model.arguments.get("rotary") is not None:
        which = long_requests(case)
        tensors = case.tensors(which)
        later = {**tensors, "request_time": tensors["request_time"] + np.int32(7200)}
        assert np.abs(case.serve(later) - case.serve(tensors)).max() > 1e-4, "control: shifting one side only changes scores"


# 8. the empty cases ---------------------------------------------------------------------------------------------------------


def test_empty_histories_rows_and_single_candidates_are_finite(case: Case) -> None:
    which = long_requests(case, 3)
    tensors = case.tensors(which)
    empty = {**tensors, "history_length": np.zeros(len(which), dtype=np.int32)}
    scores = case.serve(empty)
    assert np.isfinite(scores).all()
    # An empty history gives the same scores for every padded length.
    short = {name: x[:, :1] if name.startswith("history") and x.ndim > 1 else x for name, x in empty.items()}
    np.testing.assert_allclose(case.serve(short), scores, atol=1e-6)
    one = {name: x[:, :1] if name.startswith("candidate") and x.ndim > 1 else x for name, x in tensors.items()}
    one["candidate_count"] = np.ones(len(which), dtype=np.int32)
    np.testing.assert_allclose(case.serve(one), case.serve(tensors)[:, :1], atol=TOLERANCE)
    none = {**tensors, "candidate_count": np.zeros(len(which), dtype=np.int32)}
    assert (case.serve(none) == 0).all()
    inputs = case.rows()
    blank = {name: np.zeros_like(x) for name, x in inputs.items() if name}
    assert np.isfinite(case.logits(blank)).all()


def test_control_a_plain_softmax_over_nothing_is_not_finite() -> None:
    with np.errstate(invalid="ignore"):
        logits = np.full((1, 3), -np.inf)
        assert np.isnan(np.exp(logits - logits.max(axis=-1, keepdims=True))).all()
