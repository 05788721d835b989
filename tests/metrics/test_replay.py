"""Replay of shuffled sessions: worked examples, loops, and a log with known click probabilities."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from keras_ranking import metrics
from keras_ranking.losses import targets
from keras_ranking.metrics import ReplayContributionRate, replay_contribution_rate
from keras_ranking.ops.masks import set_mask
from tests.losses.helpers import random_batch

one_backend = pytest.mark.one_backend


def loop(label: Any, score: Any, request: Any, position: Any, shuffled: Any) -> tuple[float, float, int]:
    """One request at a time, in float64; a tied top item is a fraction of a match."""
    top = bottom = 0.0
    looked = 0
    for name in sorted(set(request)):
        rows = [i for i in range(len(label)) if request[i] == name]
        if not shuffled[rows[0]]:
            continue
        looked += 1
        best = [i for i in rows if score[i] == max(score[j] for j in rows)]
        for i in rows:
            if position[i] == 1 and i in best:
                bottom += 1 / len(best)
                top += float(label[i]) / len(best)
    return (top / bottom if bottom else math.nan), bottom, looked


def log_(seed: int, requests: int = 200, ties: bool = True) -> dict[str, np.ndarray]:
    """Requests of one to seven items, unordered, a tenth without a first position, half shuffled."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 8, requests)
    request = np.repeat(np.arange(requests), size)
    position = np.concatenate([1 + rng.permutation(n) for n in size])
    position = position + (rng.random(requests) < 0.1)[request]
    score = rng.normal(size=len(request))
    table = {
        "label": (rng.random(len(request)) < 0.4).astype(int),
        "score": np.round(score) if ties else score,
        "request": request,
        "position": position,
        "shuffled": (rng.random(requests) < 0.5)[request],
    }
    order = rng.permutation(len(request))
    return {name: values[order] for name, values in table.items()}


@one_backend
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_against_the_loop(seed: int, ties: bool) -> None:
    log = log_(seed, ties=ties)
    found = replay_contribution_rate(**log)
    assert found == pytest.approx(loop(**log), rel=1e-12)
    assert 0.1 < found.rate < 0.7 and found.matched > 15 and (found.matched % 1 == 0) != ties
    # for any order of the rows, names of the requests and scale of the scores
    order = np.random.default_rng(9).permutation(len(log["label"]))
    changed = {name: values[order] for name, values in log.items()}
    changed["request"] = np.array([f"r{name}" for name in changed["request"]])
    changed["score"] = 3 * changed["score"] - 5
    assert replay_contribution_rate(**changed) == pytest.approx(found, rel=1e-12)
    # controls: all sessions, the lowest score, another position
    for other in (
        {"shuffled": np.ones(len(order))},
        {"score": -log["score"]},
        {"position": np.where(log["position"] <= 2, 3 - log["position"], log["position"])},
    ):
        assert replay_contribution_rate(**{**log, **other}).rate != pytest.approx(found.rate, rel=1e-6)


@one_backend
def test_sessions_by_hand() -> None:
    #          matched, 1   not matched     tied, 1 of 2    not shuffled    shown without a first   alone, 0
    request = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"] * 2 + ["e"] * 2 + ["f"]
    position = [2, 1, 3] + [1, 2, 3] + [1, 2, 3] + [1, 2] + [2, 3] + [1]
    score = [0.1, 0.9, 0.2] + [0.3, 0.4, 0.1] + [0.7, 0.7, 0.1] + [0.9, 0.1] + [0.9, 0.1] + [-math.inf]
    label = [1, 1, 0] + [1, 1, 1] + [1, 0, 0] + [1, 1] + [1, 1] + [0]
    shuffled = [1] * 9 + [0] * 2 + [1] * 3
    found = replay_contribution_rate(label, score, request, position, shuffled)
    assert found == (pytest.approx((1 + 0.5) / 2.5), 2.5, 5)
    nothing = replay_contribution_rate(label, score, request, position, np.zeros(14))
    assert math.isnan(nothing.rate) and nothing[1:] == (0.0, 0)
    unmatched = replay_contribution_rate([1, 0], [0.1, 0.2], [0, 0], [1, 2], [True, True])
    assert math.isnan(unmatched.rate) and unmatched[1:] == (0.0, 1)


@one_backend
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [1, 2, 0]}, "`labels` must be 0 or 1. Received: 2.0 at row 1"),
        ({"score": [0.1, math.nan, 0]}, "`score` must not be NaN. Received: nan at row 1"),
        ({"score": [0.1, 0.2]}, "`score` must have as many rows as the others. Received: 2 and 3"),
        ({"position": [1, 1.5, 1]}, "`position` must hold whole numbers. Received: 1.5 at row 1"),
        ({"position": [1, -1, 1]}, "`position` must be at least 0. Received: -1.0 at row 1"),
        ({"position": [1, 1, 1]}, "`position` must be 1 once in a request. Received: another 1 at row 1"),
        ({"shuffled": [1, 0, 1]}, "`shuffled` must be the same in all rows of a request. Received: 0.0 at row 1"),
        ({"shuffled": [2, 2, 1]}, "`shuffled` must be 0 or 1. Received: 2.0 at row 0"),
        ({"request": ["a", "a"]}, "`groups` must be one-dimensional with 3 rows"),
    ],
)
def test_wrong_input_is_named(change: dict[str, Any], message: str) -> None:
    given = {"label": [1, 0, 1], "score": [0.9, 0.1, 0.3], "request": ["a", "a", "b"], "position": [1, 2, 1], "shuffled": [1, 1, 0]}
    with pytest.raises(ValueError, match=message):
        replay_contribution_rate(**{**given, **change})


@one_backend
def test_replay_gives_the_true_rate_only_on_shuffled_sessions() -> None:
    """A new policy (newest first), replayed on the shuffled half of the sessions, and on the other half, ranked by the old policy."""
    from keras_ranking.data.simulation.simulate import simulate

    off: dict[int, list[float]] = {1: [], 0: []}
    for seed in range(8):
        log = simulate(members=2000, seed=seed, random_share=0.0, shuffled_share=0.5)
        events, truth = log.events, log.truth
        score = -events["age_hours"].to_numpy()
        top = pd.Series(score).groupby(events["request_id"].to_numpy()).idxmax().to_numpy()
        true = truth.click_probability[top, 0].mean()  # click probability of the first items of the new policy at the first position
        for flag in off:
            chosen = events["is_shuffled"] == flag
            found = replay_contribution_rate(events["click"], score, events["request_id"], events["position"], chosen)
            off[flag].append((found.rate - true) / math.sqrt(found.rate * (1 - found.rate) / found.matched))
            if flag:  # one in N: 10 to 12 items
                assert found.matched / found.requests == pytest.approx(1 / 11, rel=0.15)
    inside = {flag: sum(abs(z) < 1.96 for z in values) for flag, values in off.items()}
    assert inside[1] >= 7 and abs(np.mean(off[1])) < 3 / math.sqrt(8)
    assert inside[0] == 0 and min(off[0]) > 4  # the control: more clicks where both policies agree than the new policy has


def stream(seed: int = 0, batches: int = 4, ties: bool = True) -> tuple[list[tuple[np.ndarray, ...]], dict[str, np.ndarray]]:
    """Packed batches with whole shuffled requests (weight 1) and others (weight 0, NaN there), and the same as columns."""
    rng = np.random.default_rng(seed)
    out, columns = [], []
    for batch in range(batches):
        y_true, logits, _, plain = random_batch(rng, 6, 40, longest=6)
        logits = np.round(logits) if ties else logits
        row = np.broadcast_to(np.arange(6)[:, None], plain.shape[:2])
        name = (plain[..., 2] + 1000 * row + 100_000 * batch).astype(np.int64)
        shuffled = np.isin(name, [one for one in np.unique(name) if rng.random() < 0.6])
        columns.append([plain[..., 0], logits[..., 1].copy(), name, plain[..., 1], shuffled])
        logits[~shuffled] = np.nan
        out.append((y_true, logits, shuffled.astype(np.float32)))
    joined = [np.concatenate([part[i].ravel() for part in columns]) for i in range(5)]
    return out, dict(zip(("label", "score", "request", "position", "shuffled"), joined))


@pytest.mark.parametrize("ties", [False, True])
def test_a_stream_of_batches_equals_the_whole(ties: bool) -> None:
    batches, columns = stream(ties=ties)
    wanted = replay_contribution_rate(**columns)
    assert wanted == pytest.approx(loop(**columns), rel=1e-12) and wanted.matched > 20
    metric = ReplayContributionRate(boundaries=(1, 4), tower=1)
    for _ in range(2):  # the second time after a reset
        metric.reset_state()
        assert math.isnan(float(metric.result())) and float(metric.matched()) == 0
        for batch in batches:
            metric.update_state(*batch)
        assert float(metric.result()) == pytest.approx(wanted.rate, rel=1e-6)
        assert float(metric.matched()) == pytest.approx(wanted.matched, rel=1e-6)
    # controls: another tower, or all sessions
    other = ReplayContributionRate(boundaries=(1, 4))
    everything = ReplayContributionRate(boundaries=(1, 4), tower=1)
    for y_true, logits, weight in batches:
        other.update_state(y_true, logits, weight)
        everything.update_state(y_true, np.nan_to_num(logits))
    for control in (other, everything):
        assert float(control.result()) != pytest.approx(wanted.rate, rel=1e-3)


def test_weights_nan_and_one_tower() -> None:
    y_true = targets([[1, 0, 0, 0, 1, 0]], position=[[1, 2, 1, 2, 2, 1]], request=[[1, 1, 2, 2, 3, 3]])
    logits = np.array([[0.9, 0.1, 0.8, 0.3, 0.2, 0.7]], dtype=np.float32)
    metric = ReplayContributionRate()
    metric.update_state(y_true, logits, [[2.0, 2.0, 1.0, 1.0, 1.0, 1.0]])
    assert float(metric.result()) == pytest.approx(2 / 4) and float(metric.matched()) == 4
    metric.update_state(y_true, logits[..., None], [[0.0, 0.0, 3.0, 3.0, 0.0, 0.0]])
    assert float(metric.result()) == pytest.approx(2 / 7)
    # -inf everywhere is a tie of two, and padding of weight 0 may have any value
    metric.reset_state()
    metric.update_state(y_true, np.where([[1, 1, 0, 0, 0, 0]], -np.inf, np.nan).astype("float32"), [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert (float(metric.result()), float(metric.matched())) == (1.0, 0.5)
    metric.update_state(y_true, np.where([[1, 0, 0, 0, 0, 0]], np.nan, logits).astype("float32"))
    assert math.isnan(float(metric.result()))


def test_a_mask_on_the_predictions_counts_as_weight_zero() -> None:
    y_true = targets([[0, 1, 1]], position=[[3, 1, 2]], request=[[1, 1, 1]])
    logits = keras.ops.convert_to_tensor(np.array([[[9.0], [2.0], [1.0]]], dtype=np.float32))
    metric = ReplayContributionRate()
    metric.update_state(y_true, logits)
    assert float(metric.matched()) == 0
    set_mask(logits, keras.ops.convert_to_tensor([[False, True, True]]))
    metric.update_state(y_true, logits)
    assert (float(metric.result()), float(metric.matched())) == (1.0, 1.0)


@pytest.mark.quickest
def test_config_and_errors() -> None:
    metric = ReplayContributionRate(boundaries=(1, 4), tower=2, name="replay")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(copy) is ReplayContributionRate and copy.get_config() == metric.get_config()
    assert copy.tower == 2 and copy.boundaries == (1, 4) and copy.name == "replay"
    packed = targets([[1, 0]], position=[[1, 2]])
    for build, message in (
        (lambda: ReplayContributionRate(tower=1), "`tower` must be an integer from 0 to 0. Received: tower=1"),
        (lambda: ReplayContributionRate(dtype="bfloat16"), "`dtype` must be float32 or float64"),
        (lambda: ReplayContributionRate().update_state([[1.0, 0.0]], [[0.1, 0.2]]), "`y_true` must be packed targets"),
        (lambda: metric.update_state(packed, np.zeros((1, 2, 2))), "`y_pred` must have one logit per position tower, K = 3. Received: K=2"),
        (lambda: metric.update_state(packed, np.zeros((1, 3, 3))), "must have the same tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("jit_compile", {"tensorflow": (True, False), "jax": (True,), "torch": (False,)}[keras.backend.backend()])
def test_in_compile(jit_compile: bool) -> None:
    batches, columns = stream(batches=1)
    y_true, logits, weight = batches[0]
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile(loss="mse", weighted_metrics=[ReplayContributionRate((1, 4), tower=1)], jit_compile=jit_compile)
    found = model.evaluate(np.nan_to_num(logits), y_true, sample_weight=weight, batch_size=4, verbose=0, return_dict=True)
    assert found["replay_contribution_rate"] == pytest.approx(replay_contribution_rate(**columns).rate, rel=1e-6)


def test_matches_are_counted_beyond_the_limit_of_float32() -> None:
    metric = ReplayContributionRate()
    y_true = targets([[1, 0]], position=[[1, 2]])
    metric.update_state(y_true, [[1.0, 0.0]], [[2.0**24, 1.0]])
    for _ in range(8):
        metric.update_state(y_true, [[1.0, 0.0]])
    assert float(metric.matched()) == 2**24 + 8


@one_backend
def test_fields_of_the_result() -> None:
    assert metrics.ReplayRate._fields == ("rate", "matched", "requests")
