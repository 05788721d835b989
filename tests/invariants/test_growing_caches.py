"""A cache that later events extend equals one that is encoded anew: every layout and causal mask, and every model whose cache can grow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from tests.invariants.conftest import PAST, Case, before_a_release, make_case, to_numpy
from tests.invariants.test_exactness import CLEARLY, TOLERANCE, long_requests
from tests.invariants.test_layouts import TINY, overlapping

GROWING: dict[str, dict[str, Any]] = {
    "interleaved-session": {"builder": "FeedSR", "mask": "session", "rotate_by": "index", "shared_index": False, "position_offsets": 0},
    "interleaved-delay": {**PAST, "max_history": 5, "gates": ("representation", "query", "key", "output")},
    "interleaved-gap": {"mask": "session", "session_by": "gap", "session_gap": 900},
    "interleaved-causal": {"mask": "causal", "num_kv_heads": 1},
    "fused-delay": {"layout": "fused", "rotate_by": "split"},
    "fused-session": {"layout": "fused", "builder": "FeedSR", "mask": "session", "position_offsets": 0, "max_history": 4},
    "fused-causal": {"layout": "fused", "mask": "causal", "rotary": None},
    "value-delay": {"layout": "value", "builder": "FeedSR", "position_offsets": 0},
    "value-session": {"layout": "value", "mask": "session", **PAST},
    "value-causal": {"layout": "value", "mask": "causal", "rotate_by": "index"},
    "amortized-sessions": {
        "builder": "AmortizedDLRM",
        "history_mask": "sessions",
        "max_history": 1000,
        "dim": 8,
        "hidden": (8,),
        "delay": 120,
    },
    "ligr-sessions": {"builder": "LiGR", "setwise_layers": 0, "max_history": 1000, "dim": 8, "num_heads": 2, "delay": 120, **PAST},
}
CHOSEN: Any = tuple(GROWING)
if keras.backend.backend() != "torch":
    CHOSEN = ("fused-session", *map(before_a_release, ("interleaved-delay", "value-causal", "ligr-sessions")))


@pytest.fixture(scope="module", params=CHOSEN)
def case(request: Any, log: Any) -> Case:
    options = dict(GROWING[request.param])
    small = {} if options.get("builder") in ("AmortizedDLRM", "LiGR") else TINY
    if options.get("builder") == "FeedSR":
        small = {**small, "head_options": {"hidden": (4,)}}
    log = overlapping(log) if "session" in request.param else log
    return make_case(log, **{**small, **options})


def part(tensors: dict[str, Any], begin: np.ndarray, end: np.ndarray) -> dict[str, Any]:
    """Events `begin` to `end` of each history, left-aligned, with an event too many behind."""
    found: dict[str, Any] = {"history_length": (end - begin).astype(np.int32)}
    for name, x in tensors.items():
        if name.startswith("history_") and x.ndim > 1:
            index = np.minimum(begin[:, None] + np.arange(int((end - begin).max()) + 1), x.shape[1] - 1)
            found[name] = x[np.arange(len(x))[:, None], index]
    return found


def test_extending_equals_encoding_anew(case: Case) -> None:
    model, tensors = case.model, case.tensors(long_requests(case))
    length = tensors["history_length"]
    # None at first, then in two parts, of which one may be empty.
    bounds = [0 * length, length // 2, np.maximum(length - 1, length // 2), length]
    cache = model.encode(part(tensors, bounds[0], bounds[1]))
    for begin, end in pairwise(bounds[1:]):
        cache = model.extend(cache, part(tensors, begin, end))
    np.testing.assert_array_equal(to_numpy(cache["length"]), length)
    whole, shorter = (model.score(found, tensors) for found in (model.encode(tensors), model.encode(part(tensors, bounds[0], bounds[1]))))
    real = np.arange(whole[case.task].shape[1]) < tensors["candidate_count"][:, None]
    wanted, grown, begun = (to_numpy(found[case.task])[real] for found in (whole, model.score(cache, tensors), shorter))
    np.testing.assert_allclose(grown, wanted, rtol=TOLERANCE, atol=2 * TOLERANCE)
    assert np.abs(begun - wanted).max() > CLEARLY, "control: the later events have an effect"


@pytest.mark.quickest
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"builder": "AmortizedDLRM"}, "what is kept of an event depends on later ones. Make it with history_mask='causal'"),
        ({"builder": "AmortizedDLRM", "history_mask": "causal", "pool": True}, "Received: history_mask='causal', pool=True"),
        ({"builder": "AmortizedDLRM", "fusion": "convolution"}, "fusion='convolution' keeps what its filters found"),
        ({"builder": "LiRank", "rank": 4}, "fusion='concat' encodes the events again with each candidate"),
        ({"builder": "LiRank", "rank": 4, "history_features": ()}, "it reads no history"),
    ],
)
def test_where_a_cache_cannot_grow(log: Any, arguments: dict[str, Any], reason: str) -> None:
    model = make_case(log, hidden=(4,), **arguments).model
    assert not model.extends
    with pytest.raises(ValueError, match="cannot be extended: ") as error:
        model.extend({}, {})
    assert reason in str(error.value)


@pytest.mark.quickest
def test_an_ensemble_grows_like_its_members(log: Any) -> None:
    members = [make_case(log, **TINY, mask="session").model for _ in range(2)]
    members[1].set_weights([0.5 * w for w in members[1].get_weights()])
    case = make_case(log, **TINY, mask="session")
    case = replace(case, model=kr.models.ensemble(members))
    tensors = case.tensors(long_requests(case))
    half = tensors["history_length"] // 2
    cache = case.model.extend(case.model.encode(part(tensors, 0 * half, half)), part(tensors, half, tensors["history_length"]))
    wanted = case.model.score(case.model.encode(tensors), tensors)["click"]
    np.testing.assert_allclose(to_numpy(case.model.score(cache, tensors)["click"]), to_numpy(wanted), rtol=TOLERANCE, atol=2 * TOLERANCE)
