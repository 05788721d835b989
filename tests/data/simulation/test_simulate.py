"""The simulator: every planted effect is in the log, at the planted size."""

from __future__ import annotations

import hashlib
import time

import numpy as np
import pandas as pd
import pytest

from keras_ranking.data.checks import check_events
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.simulation.simulate import simulate
from keras_ranking.data.simulation.simulated_log import SimulatedLog
from keras_ranking.schema import Schema


@pytest.fixture(scope="module")
def log() -> SimulatedLog:
    """Default settings, shuffled throughout: every effect can be read off without a model."""
    return simulate(random_share=1.0, seed=3)


def ratio(events: pd.DataFrame, bucket: np.ndarray) -> np.ndarray:
    rates = events["click"].groupby(bucket).mean().to_numpy()
    return rates / rates[0]


def auc(label: np.ndarray, score: np.ndarray) -> float:
    place = pd.Series(score).rank().to_numpy()
    ones = label.sum()
    return float((place[label == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(label) - ones)))


def test_the_log_obeys_its_schema(log):
    rows, report = check_events(log.events, log.schema)
    assert report.kept == len(log.events) and log.name == "simulated" and rows["time"].is_monotonic_increasing
    assert Schema.model_validate_json(log.schema.model_dump_json()) == log.schema
    fitted = log.schema.fit(log.split("train"))
    for column in (*fitted.features, *fitted.actions):
        assert np.isfinite(column.encode(log.events[column.name])).all()
    topic = next(feature for feature in fitted.features if feature.name == "topic")
    assert set(topic.encode(log.events["topic"])) == set(range(1, 7))


def test_shape_of_the_log(log):
    events = log.events
    lists = events.groupby("request_id")
    assert lists.size().between(10, 12).all() and lists["item_id"].nunique().equals(lists.size())
    assert (lists["position"].max() == lists.size()).all() and (lists["position"].min() == 1).all()
    assert not events.drop_duplicates("request_id").duplicated(["member_id", "time"]).any()  # a member has one request at a time
    sessions = events.groupby("session_id")
    assert sessions["member_id"].nunique().max() == 1 and sessions["request_id"].nunique().mean() > 2
    assert (sessions["time"].max() - sessions["time"].min()).max() <= 3000
    spans = sessions["time"].agg(["min", "max"]).assign(member=sessions["member_id"].first()).sort_values(["member", "min"])
    after = (spans["min"] > spans["max"].shift()) | (spans["member"] != spans["member"].shift())
    assert after.all()  # sessions of a member do not overlap
    assert events["age_hours"].between(0, 72).all() and (events["hour"] == events["time"] // 3600 % 24).all()
    assert 120_000 < len(events) < 180_000 and 0.1 < events["click"].mean() < 0.3
    assert (events["like"] <= events["click"]).all() and ((events["dwell_seconds"] > 0) == (events["click"] == 1)).all()


def test_split_is_by_time(log):
    edges = log.events.groupby("split")["time"].agg(["min", "max"])
    assert edges.loc["train", "max"] < edges.loc["validation", "min"] and edges.loc["validation", "max"] < edges.loc["test", "min"]


def test_same_seed_same_log():
    one, two, other = (simulate(members=40, days=3, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one.events, two.events)
    np.testing.assert_array_equal(one.truth.click_probability, two.truth.click_probability)
    assert not one.events.equals(other.events)


def test_clicks_follow_the_true_probability(log):
    events, truth = log.events, log.truth
    deciles = pd.qcut(truth.click, 10, labels=False)
    seen = events["click"].groupby(deciles).agg(["mean", "size"])
    expected = pd.Series(truth.click).groupby(deciles).mean()
    sigma = np.sqrt(expected * (1 - expected) / seen["size"])
    assert (abs(seen["mean"] - expected) < 4 * sigma).all()
    clicked = events["click"] == 1
    assert events["like"][clicked].mean() == pytest.approx(truth.like_given_click[clicked].mean(), abs=0.01)
    np.testing.assert_allclose(truth.click_probability, truth.relevance[:, None] * truth.examination)


def test_position_curve_is_the_planted_one(log):
    np.testing.assert_allclose(log.truth.position_ratio, [1.0, 0.65, 0.45])
    np.testing.assert_allclose(ratio(log.events, log.truth.bucket), log.truth.position_ratio, rtol=0.05)
    position = log.events["position"].to_numpy()
    np.testing.assert_array_equal(log.truth.bucket, (position > 1).astype(int) + (position > 4))


def test_policy_confounds_position_and_features_undo_it():
    mixed = simulate(random_share=0.5, seed=3)
    events, truth = mixed.events, mixed.truth
    assert truth.shuffled.mean() == pytest.approx(0.5, abs=0.03) and (truth.shuffled == events["shuffled"]).all()
    ranked = ~truth.shuffled
    assert (ratio(events[ranked], truth.bucket[ranked]) < truth.position_ratio * [1, 0.9, 0.8] + [1, 0, 0]).all()  # biased: too steep
    np.testing.assert_allclose(ratio(events[truth.shuffled], truth.bucket[truth.shuffled]), truth.position_ratio, rtol=0.08)
    # Within a cell of what the policy reads, position says nothing more about relevance than the examination.
    policy = events["editor_score"] - 0.5 * events["age_hours"] / 24
    cell = pd.qcut(policy, 50, labels=False)
    left = truth.relevance - pd.Series(truth.relevance).groupby(cell).transform("mean")
    per_bucket = left.groupby(truth.bucket).mean()
    plain = pd.Series(truth.relevance).groupby(truth.bucket).mean()
    assert per_bucket.max() - per_bucket.min() < 0.1 * (plain.max() - plain.min())


def test_taste_shows_in_a_members_own_history_alone(log):
    events = log.events
    click, late = events["click"].to_numpy(), (events["split"] == "test").to_numpy()
    counts = point_in_time_counts(events, ("member_id", "topic"), [None])
    own = auc(click[late], counts["member_id_topic_click_rate_all"].to_numpy()[late])
    topic = auc(click[late], point_in_time_counts(events, "topic", [None])["topic_click_rate_all"].to_numpy()[late])
    popular = auc(click[late], events["item_click_rate_all"].to_numpy()[late])
    best = auc(click[late], log.truth.click[late])
    assert best > own + 0.05 and own > popular + 0.08 and own > topic + 0.15


def test_taste_drifts(log):
    taste = log.truth.taste
    flat = [taste[:, day].ravel() for day in (0, 1, 13)]
    assert np.corrcoef(flat[0], flat[1])[0, 1] == pytest.approx(np.sqrt(0.97), abs=0.01)
    assert np.corrcoef(flat[0], flat[2])[0, 1] == pytest.approx(0.97**6.5, abs=0.04)
    assert flat[2].std() == pytest.approx(2.0, abs=0.06)


def test_freshness_decays():
    strong = simulate(random_share=1.0, freshness=1.0, taste_scale=0.0, seed=0)
    young = strong.events["click"][strong.events["age_hours"] < 12].mean()
    old = strong.events["click"][strong.events["age_hours"] > 60].mean()
    assert young > 2.5 * old


def within_session(log: SimulatedLog) -> float:
    """Correlation of what is left of a label after its true chance without mood, between two halves of a session."""
    mood = log.truth.mood
    logit = np.log(log.truth.relevance / (1 - log.truth.relevance)) - mood
    expected = log.truth.examination[log.truth.bucket] / (1 + np.exp(-logit))
    left = log.events["click"] - expected
    half = log.events["request_id"] % 2
    halves = left.groupby([log.events["session_id"], half]).mean().unstack().dropna()
    return float(halves.corr().iloc[0, 1])


def test_labels_of_a_session_are_correlated():
    assert within_session(simulate(mood_scale=1.0, seed=0)) > 0.15
    assert abs(within_session(simulate(mood_scale=0.0, seed=0))) < 0.05  # control: no mood, no correlation


def test_feedback_is_late_and_counts_wait_for_it(log):
    delay = log.events["feedback_seconds"]
    assert delay.between(1, 600).all() and 130 < delay.mean() < 170
    again = point_in_time_counts(log.events, "item_id", [86400, None], delay=600)
    np.testing.assert_array_equal(again["item_id_views_24h"], log.events["item_views_24h"])
    np.testing.assert_array_equal(again["item_id_click_rate_all"], log.events["item_click_rate_all"])


def digest(log: SimulatedLog) -> str:
    return hashlib.sha256((log.events.to_csv(index=False) + log.schema.model_dump_json()).encode()).hexdigest()[:16]


def test_without_shuffled_sessions_nothing_has_changed():
    """Digests of what `simulate` gave before it could shuffle sessions."""
    settings = {"members": 30, "days": 4, "random_share": 0.2, "list_size": (3, 5)}
    assert digest(simulate(members=40, days=3, seed=1)) == "35f93c5a9c414843"
    assert digest(simulate(seed=7, **settings)) == digest(simulate(seed=7, shuffled_share=0.0, **settings)) == "af7921322dad4f67"
    assert digest(simulate(seed=7, shuffled_share=1e-9, **settings)) != "af7921322dad4f67"  # control: the column is there
    assert digest(simulate(seed=8, **settings)) != "af7921322dad4f67"


def test_shuffled_sessions():
    plain, log = (simulate(members=400, seed=5, random_share=0.0, shuffled_share=share) for share in (0.0, 0.4))
    events, flag = log.events, log.events["is_shuffled"]
    assert events.groupby("session_id")["is_shuffled"].nunique().eq(1).all()  # whole sessions
    sessions = events.groupby("session_id")["is_shuffled"].first()
    assert sessions.mean() == pytest.approx(0.4, abs=4 * np.sqrt(0.24 / len(sessions)))
    assert (events["shuffled"] == (flag == 1)).all() and (log.truth.shuffled == (flag == 1)).all()
    # The others are those of the log without shuffling, row by row; only the counts see the clicks of the shuffled ones.
    counts = [column for column in events.columns if column.startswith("item_") and column != "item_id"]
    same = [column for column in plain.events.columns if column not in counts]
    pd.testing.assert_frame_equal(events.loc[flag == 0, same], plain.events.loc[flag == 0, same])
    # The shuffled ones show the same items in another order, one that does not know the policy; the control's order does.
    shown = [frame[flag == 1].sort_values(["request_id", "item_id"]) for frame in (events, plain.events)]
    np.testing.assert_array_equal(shown[0]["item_id"], shown[1]["item_id"])
    policy = shown[0]["editor_score"] - 0.5 * shown[0]["age_hours"] / 24
    expected = 4 / np.sqrt(len(policy))
    assert abs(np.corrcoef(policy, shown[0]["position"])[0, 1]) < expected < -np.corrcoef(policy, shown[1]["position"])[0, 1]
    first = shown[0].groupby("request_id")["position"].agg(["first", "size"])  # the place of the smallest item id: any, with equal chance
    chance = (1 / first["size"]).sum()
    assert (first["first"] == 1).sum() == pytest.approx(chance, abs=4 * np.sqrt(chance))


def test_shuffling_is_known_after_scoring_and_never_an_input():
    log = simulate(members=20, days=2, shuffled_share=0.5)
    check_events(log.events, log.schema)
    assert next(feature for feature in log.schema.features if feature.name == "is_shuffled").known == "after"
    assert "is_shuffled" not in {feature.name for feature in log.schema.inputs()}
    with pytest.raises(ValueError, match="column 'is_shuffled' is known only after scoring"):
        log.schema.inputs(["is_shuffled"])
    assert "is_shuffled" in log.schema.columns and "is_shuffled" not in simulate(members=20, days=2).schema.columns


def test_tiny_and_odd_settings():
    small = simulate(members=2, days=1, seed=0, list_size=(1, 3), examination=(1.0,), boundaries=(), topics=2, authors=3)
    assert small.truth.click_probability.shape == (len(small.events), 1) and small.events["position"].max() <= 3
    check_events(small.events, small.schema)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": 0}, "`members` must be a positive integer. Received: members=0"),
        ({"days": 1.5}, "`days` must be a positive integer"),
        ({"list_size": (5, 4)}, "`list_size` must be"),
        ({"examination": (1.0, 0.5)}, "`examination` must hold one chance in"),
        ({"examination": (1.0, 0.5, 0.0)}, "`examination` must hold one chance in"),
        ({"boundaries": (4, 1)}, "`boundaries` must be increasing"),
        ({"random_share": 1.2}, "`random_share` must be between 0 and 1"),
        ({"shuffled_share": -0.1}, "`shuffled_share` must be between 0 and 1. Received: shuffled_share=-0.1"),
        ({"items_per_day": 1}, "`items_per_day` must leave a choice"),
        ({"feedback_delay": 0}, "`feedback_delay` must be a positive integer"),
        ({"topics": 0}, "`topics` must be a positive integer"),
        ({"authors": 3}, "`authors` must be at least `topics`"),
        ({"split": (0.9, 0.8)}, "`split` must be"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        simulate(**{"members": 3, "days": 1, **settings})


def test_the_default_takes_seconds():
    start = time.process_time()
    simulate()
    assert time.process_time() - start < 10


def test_no_item_is_shown_before_it_is_born() -> None:
    from keras_ranking.data.simulation.simulate import _draw_candidates

    rng = np.random.default_rng(0)
    assert set(_draw_candidates(np.array([100]), np.array([0, 50, 90, 101]), 3, rng)[0]) == {0, 1, 2}
    with pytest.raises(ValueError, match="`items_per_day` must leave 4 items to show at any time. Received: 3 at one time"):
        _draw_candidates(np.array([100]), np.array([0, 50, 90, 101]), 4, rng)
