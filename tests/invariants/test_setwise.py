"""Set-wise models: scores depend on the list, but only on values known before it is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

from tests.invariants.conftest import Case, before_a_release, make_case, to_numpy
from tests.invariants.test_exactness import CLEARLY, TOLERANCE, changed_actions, long_requests, middle_request, shown, sigmoid

SETS: dict[str, dict[str, Any]] = {
    "whole": {"top_k": None},
    "best": {"top_k": 4, "merge": "add"},
    "no_history": {"top_k": 4, "history_features": ()},
    "choice": {"top_k": None, "choice": ("click",)},
    "cadet": {
        "builder": "CADET",
        "num_heads": 2,
        "tower_boundaries": (),
        "list_context": True,
        "list_pooling": 8,
        "choice": ("click",),
    },
}

CASES = {
    "torch": [before_a_release(name) if name == "choice" else name for name in SETS],
    "tensorflow": ["best", before_a_release("cadet")],
    "jax": ["best", before_a_release("cadet")],
}[keras.backend.backend()]


@pytest.fixture(scope="module", params=CASES)
def case(request: Any, log: Any) -> Case:
    plain = {"builder": "LiGR", "dim": 16, "num_heads": 2, "id_dim": 4, "max_history": 1000, "delay": 120, "tasks": ("click",)}
    return make_case(log, **(SETS[request.param] if "builder" in SETS[request.param] else {**plain, **SETS[request.param]}))


def test_served_cached_and_packed_scores_are_the_same(case: Case) -> None:
    which = long_requests(case)
    real, index = shown(case, which)
    tensors = case.tensors(which)
    joint = case.serve(tensors)
    np.testing.assert_allclose(joint[real], sigmoid(case.by_event()[index])[real], atol=TOLERANCE)
    cached = sigmoid(to_numpy(case.model.score(case.model.encode(tensors), tensors)[case.task]))
    np.testing.assert_allclose(cached[real], joint[real], atol=TOLERANCE)


def test_labels_actions_and_positions_of_a_request_change_no_score_of_it(case: Case) -> None:
    sequences = case.sequences
    event = middle_request(case)
    request = sequences.request == sequences.request[event]
    before = case.by_event()
    changed = replace(
        changed_actions(case, request),
        labels={task: np.where(request, 1 - label, label) for task, label in sequences.labels.items()},
        position=np.where(request, sequences.position[::-1], sequences.position),
    )
    np.testing.assert_array_equal(case.by_event(changed)[request], before[request])
    for training in (False, True):
        np.testing.assert_array_equal(case.by_event(changed, training=training)[request], case.by_event(training=training)[request])


def test_only_the_request_of_a_list_depends_on_it(case: Case) -> None:
    sequences = case.sequences
    event = middle_request(case)
    column = sequences.columns["age_hours"].copy()
    column[event] += 3.0
    before, after = case.by_event(), case.by_event(case.with_columns(age_hours=column))
    request = sequences.request == sequences.request[event]
    # The changed item is an event of the history of later requests of its member; all other scores do not change.
    others = ~request & ((sequences.member != sequences.member[event]) | (sequences.time <= sequences.time[event]))
    np.testing.assert_array_equal(before[others], after[others])
    rest = request & (np.arange(sequences.num_events) != event)
    if case.model.arguments.get("top_k") is None:
        assert np.abs(before - after)[rest].max() > CLEARLY, "control: the other scores of its list change"


def test_permuting_candidates_permutes_scores(case: Case) -> None:
    which = long_requests(case)
    real, _ = shown(case, which)
    tensors = case.tensors(which)
    order = np.flatnonzero(real.all(axis=0))

    def taken(slots: np.ndarray) -> dict[str, np.ndarray]:
        chosen = {name: x[:, slots] if name.startswith("candidate_") and x.ndim > 1 else x for name, x in tensors.items()}
        return {**chosen, "candidate_count": np.full(len(which), len(slots), dtype=np.int32)}

    mixed = np.random.default_rng(0).permutation(len(order))
    kept, moved = taken(order), taken(order[mixed])
    np.testing.assert_allclose(case.serve(moved)[:, np.argsort(mixed)], case.serve(kept), atol=1e-6)


def test_padding_of_the_list_changes_nothing(case: Case) -> None:
    which = long_requests(case)
    tensors = case.tensors(which)
    joint = case.serve(tensors)
    wide = case.tensors(which, candidates=joint.shape[1] + 5)
    spare = np.arange(joint.shape[1] + 5)[None, :] >= wide["candidate_count"][:, None]
    for name, x in wide.items():
        if name.startswith("candidate_") and x.ndim > 1:
            x[spare] = np.iinfo(np.int32).max if x.dtype == np.int32 else np.nan
    got = case.serve(wide)
    assert (got[spare] == 0).all()
    np.testing.assert_allclose(got[:, : joint.shape[1]], joint, atol=TOLERANCE)
    none = {**tensors, "candidate_count": np.zeros(len(which), dtype=np.int32)}
    assert (case.serve(none) == 0).all()


def test_point_wise_outputs_do_not_depend_on_the_list(case: Case) -> None:
    sequences = case.sequences
    event = middle_request(case)
    column = sequences.columns["age_hours"].copy()
    column[event] += 3.0
    rest = (sequences.request == sequences.request[event]) & (np.arange(sequences.num_events) != event)
    output = f"{case.task}_pointwise"
    if case.model.choice:
        pytest.skip("of a choice, every output depends on the list")
    assert set(case.model.auxiliary) == {output}
    scores = []
    for changed in (sequences, case.with_columns(age_hours=column)):
        inputs = case.rows(sequences=changed)
        value = to_numpy(case.model({name: x for name, x in inputs.items() if name})[output])
        scores.append(inputs[""].scatter(value)[rest])
    np.testing.assert_array_equal(*scores)
