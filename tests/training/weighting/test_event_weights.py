"""What each event counts, written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import Sequences, build_sequences
from keras_ranking.training import TrainingOptions, age_weights, event_weights, inverse_propensity_weights, place_weights
from keras_ranking.training.setup import compile_for

pytestmark = pytest.mark.one_backend


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    log = kr.data.simulate(members=30, days=5, seed=3)
    return build_sequences(log.events, log.schema.fit(log.events), target=np.arange(len(log.events)) % 4 > 0)


def test_place_halves_over_the_members_own_length(sequences: Sequences) -> None:
    found = place_weights(sequences)
    for begin, end in zip(sequences.offsets[:-1], sequences.offsets[1:], strict=True):
        length = end - begin
        t = np.arange(1, length + 1)
        np.testing.assert_allclose(found[begin:end], 2.0 ** (-(length - t) / length), rtol=1e-6)
        assert found[end - 1] == 1.0
        assert found[begin] == pytest.approx(0.5 * 2 ** (1 / length), rel=1e-6)  # about a half
    fixed = place_weights(sequences, 10)
    assert fixed[sequences.offsets[1] - 11] == pytest.approx(0.5)


def test_age_halves_in_days(sequences: Sequences) -> None:
    found = age_weights(sequences, half_life_days=2.0)
    newest = sequences.time[sequences.target].max()
    age = np.maximum(newest - sequences.time, 0) / 86400
    np.testing.assert_allclose(found, 0.5 ** (age / 2.0), rtol=1e-6)
    assert found.max() == 1.0 and age.max() > 3
    assert age_weights(sequences, 60.0, now=int(newest) + 60 * 86400)[sequences.time.argmax()] == pytest.approx(0.5, rel=1e-3)


def test_inverse_propensities_are_clipped_counted_and_of_mean_one() -> None:
    position = np.array([1, 2, 3, 3, 9, 0])
    counted = np.array([True, True, True, True, True, False])
    found, clipped = inverse_propensity_weights(position, np.array([1.0, 0.5, 0.05]), clip=8.0, counted=counted)
    raw = np.array([1.0, 2.0, 8.0, 8.0, 8.0])  # positions beyond the last have its propensity
    np.testing.assert_allclose(found[:5], raw / raw.mean(), rtol=1e-6)
    assert clipped == 3
    assert inverse_propensity_weights(position[:5], np.array([1.0, 0.5, 0.05]), clip=20.0)[1] == 0  # exactly at the clip: not clipped
    label = np.array([0, 1, 0, 1, 1])
    found, clipped = inverse_propensity_weights(position[:5], np.array([1.0, 0.5, 0.05]), clip=8.0, label=label)
    raw = np.array([1.0, 2.0, 1.0, 8.0, 8.0])
    np.testing.assert_allclose(found, raw / raw.mean(), rtol=1e-6)
    assert clipped == 2


def test_the_product_by_task(sequences: Sequences) -> None:
    propensities = {"click": np.array([1.0, 0.5]), "like": np.array([1.0, 0.02])}
    found = event_weights(sequences, None, "length", 3.0, propensities, "positives", 10.0)
    for task, curve in propensities.items():
        label = sequences.labels[task]
        inverse, clipped = inverse_propensity_weights(sequences.position, curve, 10.0, label, sequences.target)
        want = place_weights(sequences) * age_weights(sequences, 3.0) * inverse
        np.testing.assert_allclose(found.by_task[task], want, rtol=1e-6)
        assert (
            found.report[task]["clipped"]
            == clipped
            == (0 if task == "click" else int((label * sequences.target)[sequences.position > 1].sum()))
        )
        assert inverse[sequences.target].mean() == pytest.approx(1.0, rel=1e-5)
    assert found.report["like"]["clipped"] > 0
    assert event_weights(sequences).by_task == {}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: place_weights(s, 0), "`half_life` must be a positive number or 'length'. Received: half_life=0"),
        (lambda s: place_weights(s, "long"), "Received: half_life='long'"),
        (lambda s: age_weights(s, -1.0), "`half_life_days` must be a positive number"),
        (lambda s: inverse_propensity_weights(np.array([0, 1]), np.array([1.0])), "Received: none at 1 of 2 events"),
        (lambda s: inverse_propensity_weights(np.array([1]), np.array([1.0, -0.1])), "`propensity` must hold finite numbers of at least 0"),
        (lambda s: event_weights(s, propensities={"click": np.ones(3)}), "Received: none for 'like', of"),
        (lambda s: event_weights(s, ipw="positive"), "`ipw` must be 'all' or 'positives'. Received: ipw='positive'"),
        (lambda s: TrainingOptions(position_half_life="all"), "`position_half_life` must be a positive number or 'length'"),
        (lambda s: TrainingOptions(age_half_life_days=0), "`age_half_life_days` must be a positive number"),
        (lambda s: TrainingOptions(ipw="some"), "`ipw` must be one of"),
        (lambda s: TrainingOptions(ipw_clip=1.0), "`ipw_clip` must be above 1"),
        (lambda s: TrainingOptions(batching="rows"), "`batching` must be one of"),
        (lambda s: TrainingOptions(shuffle_sessions=True), "`shuffle_sessions` must be one of"),  # type: ignore[arg-type]
        (
            lambda s: TrainingOptions(task_weights={"click": -1.0}),
            "`task_weights` must be finite numbers >= 0. Received: -1.0 for task 'click'",
        ),
    ],
)
def test_errors(sequences: Sequences, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(sequences)


def test_positions_are_needed_for_target_events_only(sequences: Sequences) -> None:
    propensities = dict.fromkeys(("click", "like"), np.array([1.0, 0.5]))
    hidden = replace(sequences, position=np.where(sequences.target, sequences.position, 0))
    assert event_weights(hidden, propensities=propensities).by_task
    with pytest.raises(ValueError, match="need the position of every target event"):
        event_weights(replace(sequences, position=sequences.position * 0), propensities=propensities)


def test_a_position_without_any_positive_is_clipped() -> None:
    weights, clipped = inverse_propensity_weights(np.array([1, 2, 2, 1]), np.array([1.0, 0.0]), clip=3.0)
    np.testing.assert_allclose(weights, [0.5, 1.5, 1.5, 0.5])
    assert clipped == 2


def test_task_weights_leave_those_of_auxiliary_tasks() -> None:
    log = kr.data.simulate(members=10, days=2, seed=0)
    model = kr.models.CADET(log.schema.fit(log.events), dim=8, num_heads=2, num_layers=1, auxiliary_tasks={"like": 0.1})
    found = []
    for given in (None, {"click": 2.0}, {"click": 2.0, "like": 0.5}):
        compile_for(model, TrainingOptions(task_weights=given), steps=10, window=5)
        found.append({task: float(weight) for task, weight in model._compile_loss._user_loss_weights.items()})
    assert found == [{"click": 1.0, "like": 0.1}, {"click": 2.0, "like": 0.1}, {"click": 2.0, "like": 0.5}]
