"""Every layout under every mask, for CADET and FeedSR: a training row equals serving, and events hidden by the mask have no effect."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest

from tests.invariants.conftest import Case, before_a_release, make_case
from tests.invariants.test_exactness import CLEARLY, TOLERANCE, changed_actions, long_requests, middle_request, shown

LAYOUTS = ("interleaved", "fused", "value")
MASKS = ("delay", "session", "causal", "gap")  # 'gap': the session mask by pauses
TINY: dict[str, Any] = {"dim": 8, "num_layers": 2, "session_gap": 900}
VARIANTS: list[dict[str, Any]] = [
    {"builder": "FeedSR", "rotate_by": "index", "head_options": {"hidden": (4,)}, "position_offsets": 3, "serving_position": 1},
    {"builder": "FeedSR", "rotate_by": "split", "head": "linear", "head_options": {}, "position_offsets": 0},
    {"builder": "CADET", "rotate_by": "index", "tower_hidden": (4,), "serving": "mixture", "tower_prior": (0.2, 0.3, 0.5)},
]


# On torch all pairs; on the other backends each layout and each mask once, of which a plain run takes one.
PAIRS: list[Any] = [(layout, mask) for layout in LAYOUTS for mask in MASKS[:3]] + [("interleaved", "gap")]
if keras.backend.backend() != "torch":
    PAIRS = [pair if pair[0] == "fused" else before_a_release(pair) for pair in zip(LAYOUTS, MASKS[:3], strict=True)]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def case(request: Any, log: Any) -> Case:
    layout, mask = request.param
    at = LAYOUTS.index(layout) + MASKS.index(mask)  # a Latin square: each variant with each layout and each mask
    variant = {**VARIANTS[at % 3]}
    if layout == "interleaved" and variant["rotate_by"] == "index":
        variant["shared_index"] = mask not in ("session", "gap")
    masked = {"mask": "session", "session_by": "gap"} if mask == "gap" else {"mask": mask}
    return make_case(log if mask != "session" else overlapping(log), **{**TINY, **variant, "layout": layout, **masked})


def overlapping(log: Any) -> Any:
    """The log with sessions of a member that overlap: every third request is of the session before its own."""
    events = log.events.sort_values(["member_id", "time"], kind="stable")
    first = events.drop_duplicates(["member_id", "session_id"])
    before = first.groupby("member_id")["session_id"].shift().fillna(first["session_id"]).astype("int64")
    earlier = events["session_id"].map(dict(zip(first["session_id"], before, strict=True)))
    number = events["request_id"].ne(events["request_id"].shift()).cumsum()
    return replace(log, events=log.events.assign(session_id=events["session_id"].where(number % 3 != 1, earlier).loc[log.events.index]))


def visible(case: Case, event: int) -> np.ndarray:
    """Which events of the log an event sees, by the description of the mask."""
    s, a = case.sequences, case.model.arguments
    member, time = s.member, s.time.astype(np.int64)
    older = (member == member[event]) & (time < time[event])
    if a["mask"] == "delay":
        return older & (time <= time[event] - a["delay"])
    if a["mask"] == "causal":
        return older
    stream = np.flatnonzero(member == member[event])
    if a["session_by"] == "column":
        first = stream[s.session[stream] == s.session[event]][0]
        return older & (np.arange(s.num_events) < first) & (time <= time[event] - a["delay"])
    begin = event
    while begin > stream[0] and time[begin] - time[begin - 1] < a["session_gap"]:
        begin -= 1
    return older & (np.arange(s.num_events) < begin)


def test_a_packed_row_equals_serving(case: Case) -> None:
    which = long_requests(case)
    real, index = shown(case, which)
    tensors = case.tensors(which)
    joint = case.serve(tensors)
    np.testing.assert_allclose(joint[real], case.served(case.by_event()[index])[real], atol=TOLERANCE)
    single = {name: x[:, :1] if name.startswith("candidate_") and x.ndim > 1 else x for name, x in tensors.items()}
    single["candidate_count"] = np.ones(len(which), dtype=np.int32)
    np.testing.assert_allclose(case.serve(single)[:, 0], joint[:, 0], atol=TOLERANCE)
    half = {**tensors, "history_length": tensors["history_length"] // 2}
    assert np.abs(case.serve(half) - joint)[real].max() > CLEARLY, "control: the history has an effect"


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_hidden_events_change_no_score(case: Case, training: bool) -> None:
    event = middle_request(case)
    seen = visible(case, event)
    assert seen.any()
    before = case.by_event(training=training)
    hidden = ~seen
    after = case.by_event(changed_actions(case, hidden), training=training)
    np.testing.assert_array_equal(before[event], after[event])
    # Control: visible events change the score.
    after = case.by_event(changed_actions(case, seen), training=training)
    assert np.abs(before[event] - after[event]).max() > 1e-5


def test_packing_changes_nothing(case: Case) -> None:
    longest = int(np.diff(case.sequences.offsets).max())
    np.testing.assert_allclose(case.by_event(row_length=longest * 3), case.by_event(row_length=longest), atol=TOLERANCE)


def test_left_padding_changes_nothing(case: Case) -> None:
    inputs = case.rows()
    rng = np.random.default_rng(0)

    def padded(name: str, x: np.ndarray) -> np.ndarray:
        out = np.pad(x, ((0, 0), (5, 2)) + ((0, 0),) * (x.ndim - 2))
        if name != "segment":
            for where in (slice(0, 5), slice(out.shape[1] - 2, None)):
                out[:, where] = rng.integers(0, 3, out[:, where].shape)
        return out

    plain, real = case.logits(inputs), inputs["segment"] > 0
    wide = case.logits({name: padded(name, x) for name, x in inputs.items() if name})[:, 5:-2]
    np.testing.assert_allclose(wide[real], plain[real], atol=TOLERANCE)
    merged = case.logits({**inputs, "segment": np.minimum(inputs["segment"], 1)})
    assert np.abs(merged - plain)[inputs["segment"] > 1].max() > CLEARLY, "control: members in one segment see each other"


def test_the_order_inside_a_request_changes_no_score(case: Case) -> None:
    """The order of events of one second is the position shown: its score and those of later events do not depend on it."""
    s = case.sequences
    starts = s.request_starts
    order = np.concatenate([np.arange(a, b)[::-1] for a, b in pairwise(starts)])
    turned = replace(s, columns={name: x[order] for name, x in s.columns.items()})
    np.testing.assert_allclose(case.by_event(turned), case.by_event()[order], atol=TOLERANCE)
