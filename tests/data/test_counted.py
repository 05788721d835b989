"""A log with the counts of its schema: which rows count, what is taken as it is, and states that go on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking import data

CLICKS = kr.Count("item_id", action="click", window=7200)
VIEWS = kr.Count(("member_id", "topic"), of="views")
NAMES = ["item_id_click_rate_2h", "member_id_topic_views_all"]


@pytest.fixture(scope="module")
def log() -> data.Log:
    made = data.simulate(members=30, days=3, seed=0)
    schema = made.schema.model_copy(update={"features": (*made.schema.features, CLICKS, VIEWS)})
    return data.Log(made.events.sort_values("time", kind="stable"), schema, "mine")


@pytest.fixture(scope="module")
def counted(log: data.Log) -> data.Log:
    return data.with_counts(log)


def test_the_columns_are_those_of_the_schema_with_its_delay(log: data.Log, counted: data.Log) -> None:
    plain = data.point_in_time_counts(log.events, ["item_id", ("member_id", "topic")], [7200, None], delay=log.schema.feedback_delay)
    np.testing.assert_array_equal(counted.events[NAMES], plain[NAMES])
    assert list(log.events.columns) == [name for name in counted.events if name not in NAMES]  # the log stays as it is
    assert counted.counts.rows == len(log.events) and counted.counts.last == log.events["time"].max()
    early = data.with_counts(replace(log, schema=log.schema.model_copy(update={"feedback_delay": 1})))
    assert (early.events[NAMES] != counted.events[NAMES]).to_numpy().any()  # control: the delay matters


def test_rows_of_every_split_count(log: data.Log, counted: data.Log) -> None:
    held = data.with_counts(data.hold_out_members(log, 0.3))
    pd.testing.assert_frame_equal(held.events[NAMES], counted.events[NAMES])
    assert (held.events["split"] == "history").any()


def test_a_log_that_has_the_columns_is_taken_as_it_is(log: data.Log, counted: data.Log) -> None:
    assert data.with_counts(counted) is counted
    few = replace(counted, events=counted.events.iloc[::3])  # drawn from a larger log, after counting
    assert data.with_counts(few) is few and few.counts is counted.counts
    assert data.with_counts(few, counted.counts) is few
    with pytest.raises(ValueError, match=r"all counts of its schema.*or none. It has \['item_id_click_rate_2h'\], not \['member"):
        data.with_counts(replace(counted, events=counted.events.drop(columns=NAMES[1]), counts=None))


@pytest.mark.parametrize("old_rows", [True, False])
def test_new_rows_continue_the_states_as_if_counted_from_the_start(log: data.Log, counted: data.Log, old_rows: bool) -> None:
    cut = int(log.events["time"].quantile(0.7))
    old = log.events["time"] < cut
    first = data.with_counts(replace(log, events=log.events[old])).counts
    digest = first.digest
    more = data.with_counts(log if old_rows else replace(log, events=log.events[~old]), first)
    wanted = counted.events if old_rows else counted.events[~old]
    np.testing.assert_array_equal(more.events[NAMES], wanted[NAMES])
    assert more.counts.digest == counted.counts.digest
    assert first.digest == digest  # the given states stay as they are
    anew = data.with_counts(replace(log, events=log.events[~old]))
    assert (anew.events[NAMES].to_numpy() != counted.events.loc[~old, NAMES].to_numpy()).any()  # control


def test_old_rows_without_their_past_are_told(log: data.Log, counted: data.Log) -> None:
    with pytest.warns(UserWarning, match=r"are counted from the first row of the log: it has [\d,]+ of the [\d,]+ rows that were read"):
        data.with_counts(replace(log, events=log.events.iloc[500:]), counted.counts)


def test_parts_without_counts_go_on_too(log: data.Log) -> None:
    """States of other kinds, that the log names as numbers, and counts of the schema, saved and continued as one."""
    states = data.PointInTime(
        [data.RunningPast(("member_id", "topic"), last=1, delay=60), data.ChoiceStrengths("item_id", "request_id", delay=60)],
        request="request_id",
        relative=["item_id_click_strength"],
    )
    richer = data.with_counts(states.added_to(log))
    assert set(NAMES) < set(richer.counts.columns) and set(richer.counts.columns) <= set(richer.events)
    cut = int(log.events["time"].quantile(0.7))
    old = (log.events["time"] < cut).to_numpy()
    first = data.with_counts(states.anew().added_to(replace(log, events=log.events[old]))).counts
    more = data.with_counts(replace(richer, events=log.events, counts=None), first)
    names = list(richer.counts.columns)
    np.testing.assert_array_equal(more.events[names], richer.events[names])
    assert more.counts.digest == richer.counts.digest


def test_bad_rows_stop_or_count_for_nothing(log: data.Log, counted: data.Log) -> None:
    events = log.events.assign(click=log.events["click"].astype(float), time=log.events["time"].astype(float))
    events.iloc[3, events.columns.get_loc("click")] = np.nan
    bad = replace(log, events=events)
    with pytest.raises(
        ValueError, match=r"column 'click' must hold finite numbers in every counted row. Received: nan at row 3; Count\(..., wh"
    ):
        data.with_counts(bad)
    got = data.with_counts(bad, on_error="drop").events
    assert got[NAMES].iloc[3].isna().all() and got[NAMES].drop(got.index[3]).notna().all().all()
    without = data.with_counts(replace(log, events=log.events.drop(log.events.index[3]))).events
    np.testing.assert_array_equal(got[NAMES].drop(got.index[3]), without[NAMES])
    late = replace(log, events=events.assign(click=0.0, time=events["time"].where(np.arange(len(events)) != 5)))
    with pytest.raises(ValueError, match="column 'time' .*at row 5"):
        data.with_counts(late)
    assert data.with_counts(late, on_error="drop").events[NAMES].iloc[5].isna().all()


def test_errors(log: data.Log) -> None:
    with pytest.raises(ValueError, match="column 'click' of count 'item_id_click_rate_2h' is not in the log"):
        data.with_counts(replace(log, events=log.events.drop(columns="click")))
    with pytest.raises(ValueError, match="column 'topic' of count 'member_id_topic_views_all' is not in the log"):
        data.with_counts(replace(log, events=log.events.drop(columns="topic")))
    with pytest.raises(TypeError, match="must be a keras_ranking.data.Log"):
        data.with_counts(log.events)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`counts` must be PointInTime"):
        data.with_counts(log, "runs/x/counts")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'drop'"):
        data.with_counts(log, on_error="ignore")
    with pytest.raises(
        ValueError, match=r"'item_id_click_rate_2h' of the schema is not in the log; `kr.data.with_counts\(log\)` counts it"
    ):
        data.build_sequences(log.events, log.schema)


class TestWithFeatures:
    def test_candidates_get_the_columns_of_their_keys(self, counted: data.Log) -> None:
        events, now = counted.events, int(counted.events["time"].max()) + 10
        candidates = events[["item_id", "topic"]].tail(4)
        got = counted.counts.with_features(candidates, now, member_id=3)
        wanted = counted.counts.features(candidates.assign(member_id=3), now)
        pd.testing.assert_frame_equal(got, pd.concat([candidates, wanted], axis=1))
        stamp = counted.counts.with_features(candidates, pd.Timestamp(now, unit="s"), member_id=3)
        pd.testing.assert_frame_equal(stamp, got)

    def test_errors(self, counted: data.Log) -> None:
        counts, now = counted.counts, int(counted.events["time"].max()) + 10
        candidates = counted.events[["item_id", "topic"]].tail(4)
        with pytest.raises(ValueError, match=r"given by name, with_features\(candidates, time, member_id=...\). Missing: \['member_id'\]"):
            counts.with_features(candidates, now)
        with pytest.raises(ValueError, match="`candidates` have the column 'topic' already"):
            counts.with_features(candidates, now, member_id=3, topic="a")
        with pytest.raises(ValueError, match="have columns of these names already"):
            counts.with_features(candidates.assign(**{NAMES[0]: 0.0}), now, member_id=3)
        with pytest.raises(ValueError, match="`time` must not be before the newest row"):
            counts.with_features(candidates, now - 10**6, member_id=3)
        with pytest.raises(TypeError, match="DataFrame"):
            counts.with_features(candidates.to_dict("list"), now, member_id=3)
