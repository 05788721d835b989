"""States of a log: equal to the formulas row by row, nothing from the future, going on equals starting anew, requests equal rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from keras_ranking import data
from keras_ranking.data.counts.state import State

DELAY = 40
T0 = 1_700_000_000


def make_log(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Lists of one to six items of nine members, many in one second, some with an unknown label or no author."""
    rng = np.random.default_rng(seed)
    lists = np.repeat(np.arange(rows), rng.integers(1, 7, rows))[:rows]
    times = T0 + np.sort(rng.integers(0, 900, lists.max() + 1))
    members = rng.integers(0, 9, lists.max() + 1)
    log = pd.DataFrame({"list": lists, "time": times[lists], "member": members[lists], "item": rng.integers(0, 15, rows)})
    log["author"] = pd.Series(rng.choice(["a", "b", "c"], rows)).where(rng.random(rows) > 0.05, None)
    log["click"] = (rng.random(rows) < 0.4).astype(float)
    log["share"] = rng.random(rows)
    return log.sample(frac=1.0, random_state=seed).set_index(np.arange(rows) + 700)


def factors() -> data.ItemFactors:
    rng = np.random.default_rng(3)
    return data.ItemFactors("item", list(range(10)), rng.normal(size=(10, 3)), np.array([0.5, 1.0, 2.0]), 5.0)  # items 10 to 14 are fresh


STATES: dict[str, Callable[[], State]] = {
    "counts": lambda: data.RunningCounts(
        ["item", ("member", "author")], [60, None], delay=DELAY, expected="list_size", request="list", prior=(1.0, 4.0)
    ),
    "counts by share": lambda: data.RunningCounts("item", [200], delay=DELAY, expected="share"),
    "past": lambda: data.RunningPast(("member", "author"), last=2, delay=7),
    "moments": lambda: data.RunningMoments("member", ["click", "share"], delay=7),
    "moments of pairs": lambda: data.RunningMoments(("member", "author"), ["click"], delay=3),
    "expectation": lambda: data.RunningExpectation(["item", "member"], delay=5),
    "fold-in": lambda: data.FoldIn(factors(), "member", request="list", delay=DELAY, own_delay=3, vectors=True),
}


@pytest.mark.parametrize("name", STATES)
class TestEveryState:
    def test_going_on_from_a_saved_state_equals_starting_anew(self, name: str, tmp_path: Path) -> None:
        log = make_log().sort_values("time", kind="stable")
        whole = STATES[name]().update(log)
        assert list(whole.columns) == list(STATES[name]().columns)
        parts, state = [], STATES[name]()
        cuts = [int(log["time"].iloc[place]) for place in (130, 131, 300)]
        for low, high in zip([0, *cuts], [*cuts, 2**40], strict=True):
            rows = log[(log["time"] >= low) & (log["time"] < high)]  # a list is never cut
            parts.append(state.update(rows))
            state.save(tmp_path / "state.npz")
            state = type(state).load(tmp_path / "state.npz")
        np.testing.assert_allclose(pd.concat(parts), whole, rtol=1e-12, atol=1e-12)

    def test_a_request_reads_what_a_row_would(self, name: str) -> None:
        log = make_log()
        moment = int(log["time"].max()) + 20  # some outcomes are known by then, some are not
        state = STATES[name]()
        state.update(log)
        request = make_log(5, seed=9).assign(time=moment, list=1000).set_index(np.arange(5) + 5000)
        got = state.features(request.drop(columns=["click"]), moment)
        row = STATES[name]().update(pd.concat([log, request])).loc[request.index]
        names = [column for column in got if not column.endswith("residual")]  # which needs the outcome
        np.testing.assert_allclose(got[names], row[names], rtol=1e-12, atol=1e-12)
        again = state.features(request.drop(columns=["click"]), moment)
        pd.testing.assert_frame_equal(got, again)  # nothing was taken in

    def test_outcomes_after_a_moment_change_no_bit_of_earlier_rows(self, name: str) -> None:
        log = make_log()
        moment = int(log["time"].quantile(0.6))
        flipped = log.assign(click=np.where(log["time"] > moment, 1 - log["click"], log["click"]))
        flipped["share"] = np.where(log["time"] > moment, 0.5, log["share"])
        first, second = STATES[name]().update(log), STATES[name]().update(flipped)
        before = (log["time"] <= moment).to_numpy()
        np.testing.assert_array_equal(first[before], second[before])
        assert (first[~before].fillna(-9).to_numpy() != second[~before].fillna(-9).to_numpy()).any()

    def test_the_order_of_the_rows_is_nothing(self, name: str) -> None:
        log = make_log()
        again = STATES[name]().update(log.sample(frac=1.0, random_state=4)).loc[log.index]
        np.testing.assert_allclose(again, STATES[name]().update(log), rtol=1e-12, atol=1e-12)

    def test_rows_that_do_not_count_change_nothing(self, name: str) -> None:
        log = make_log()
        counted = np.random.default_rng(1).random(len(log)) < 0.5
        got = STATES[name]().update(log, counted=counted)
        noise = np.where(counted, log["click"], 0.0 if name == "fold-in" else 1 - log["click"])  # own clicks count for the member's vector
        other = STATES[name]().update(log.assign(click=noise), counted=counted)
        if name == "fold-in":
            log = log.assign(click=np.where(counted, log["click"], 0.0))
            got, other = (STATES[name]().update(log.assign(share=share), counted=counted) for share in (0.1, 0.9))
        names = [column for column in got if not column.endswith("residual")]
        np.testing.assert_array_equal(got[names], other[names])
        assert (got.fillna(-9).to_numpy() != STATES[name]().update(log).fillna(-9).to_numpy()).any()

    def test_the_same_state_before_its_first_row(self, name: str) -> None:
        log, state = make_log(), STATES[name]()
        begin = state.digest
        first = state.update(log)
        anew = state.anew()
        assert anew.digest == begin != state.digest
        pd.testing.assert_frame_equal(anew.update(log), first)
        assert anew.digest == state.digest

    def test_no_rows(self, name: str) -> None:
        state = STATES[name]()
        assert state.update(make_log()[:0]).shape == (0, len(state.columns))
        assert len(state.features(make_log()[:2].drop(columns="click"), T0)) == 2

    def test_errors(self, name: str, tmp_path: Path) -> None:
        state = STATES[name]()
        log = make_log()
        state.update(log)
        with pytest.raises(ValueError, match="must not be earlier than the newest one before"):
            state.update(log)
        with pytest.raises(ValueError, match="`time` must not be before the newest row"):
            state.features(log, T0 - 1)
        with pytest.raises(ValueError, match="one boolean per row"):
            STATES[name]().update(log, counted=[True])
        with pytest.raises(ValueError, match="column 'time' is not in the log"):
            STATES[name]().update(log.drop(columns="time"))
        with pytest.raises(TypeError, match="DataFrame"):
            STATES[name]().update(log.to_dict())
        np.savez(tmp_path / "other.npz", x=1)
        with pytest.raises(ValueError, match="is not a state of"):
            type(state).load(tmp_path / "other.npz")


def test_counts_equal_the_functions() -> None:
    log = make_log()
    got = STATES["counts"]().update(log)
    keys: Any = ["item", ("member", "author")]
    plain = data.point_in_time_counts(log, keys, [60, None], ["click"], delay=DELAY, prior=(1.0, 4.0))
    rates = data.exposure_corrected_rates(log, keys, [60, None], request="list", delay=DELAY)
    np.testing.assert_allclose(got[plain.columns], plain, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got[rates.columns], rates, rtol=0, atol=1e-12)
    assert set(got) == {*plain, *rates}
    with pytest.raises(ValueError, match="would have one name"):
        data.RunningCounts(["item", "item"])
    with pytest.raises(ValueError, match="needs `request`"):
        data.RunningCounts("item", expected="list_size")


def test_past_equals_the_formula_written_out() -> None:
    log = make_log()
    got = STATES["past"]().update(log)
    seen = 0
    for place in range(0, len(log), 3):
        row = log.iloc[place]
        same = log[(log["member"] == row["member"]) & (log["author"] == row["author"]) & (log["time"] <= row["time"] - 7)]
        moments = same.groupby("time")["click"].mean().sort_index(ascending=False)
        lasts = [moments.iloc[k] if len(moments) > k else np.nan for k in range(2)]
        since = row["time"] - moments.index[0] if len(moments) else 365 * 86400.0
        np.testing.assert_allclose(got.iloc[place], [since, *lasts], rtol=0, atol=1e-12)
        seen += len(moments) > 1
    assert seen > 50


def test_moments_equal_the_formula_written_out() -> None:
    log = make_log()
    got, seen = STATES["moments"]().update(log), 0
    for place in range(0, len(log), 3):
        row = log.iloc[place]
        same = log[(log["member"] == row["member"]) & (log["time"] <= row["time"] - 7)]
        by_moment = same.groupby("time").agg(rows=("click", "size"), click=("click", "sum"), share=("share", "sum")).sort_index()
        times, n = by_moment.index.to_numpy(), len(by_moment)
        gaps = [times[-1] - times[-2], np.diff(times).mean(), (row["time"] - times[-1]) / np.diff(times).mean()] if n > 1 else [np.nan] * 3
        amounts = [value for name in by_moment for value in ((by_moment[name].iloc[-1], by_moment[name].mean()) if n else (np.nan, np.nan))]
        np.testing.assert_allclose(got.iloc[place], [n, *gaps, *amounts], rtol=1e-12, atol=1e-12)
        seen += n > 2
    assert seen > 50


def test_expectation_equals_the_formula_written_out() -> None:
    log = make_log()
    log.loc[log.index[::17], "click"] = np.nan
    got = STATES["expectation"]().update(log)

    def logit(rate: float) -> float:
        return math.log(rate / (1 - rate))

    for place in range(0, len(log), 5):
        row = log.iloc[place]
        past = log[(log["time"] <= row["time"] - 5) & log["click"].notna()]
        overall = (past["click"].sum() + 1) / (len(past) + 2)
        total = -logit(overall)
        for key in ("item", "member"):
            own = past[past[key] == row[key]]
            total += logit((own["click"].sum() + 5 * overall) / (len(own) + 5))
        expected = 1 / (1 + math.exp(-total))
        residual = 0.0 if math.isnan(row["click"]) else row["click"] - expected
        np.testing.assert_allclose(got.iloc[place], [expected, residual], rtol=0, atol=1e-12)


def test_fold_in_equals_the_formula_written_out() -> None:
    log = make_log()
    made = factors()
    got = STATES["fold-in"]().update(log)

    def member(who: int, time: int) -> np.ndarray:
        own = log[(log["member"] == who) & (log["time"] <= time - 3) & (log["item"] < 10)]
        total = sum((click * made.vectors[item] for click, item in zip(own["click"], own["item"], strict=True)), np.zeros(3))
        return np.asarray(total / math.sqrt(own["click"].sum() + 5.0) / made.scale)

    fresh = 0
    sizes = log.groupby("list")["item"].transform("size")
    for place in range(0, len(log), 9):
        row = log.iloc[place]
        past = log[(log["item"] == row["item"]) & (log["time"] <= row["time"] - DELAY)]
        taken, unlike, count = np.zeros(3), np.zeros(3), past["click"].sum()
        for label, other in past.iterrows():
            vector = member(int(other["member"]), int(other["time"]))
            taken += other["click"] * vector
            unlike += (other["click"] - 1 / sizes[label]) * vector
        own, mean = member(int(row["member"]), int(row["time"])), taken / (count + 5)
        numbers = [own @ mean, own @ unlike / math.sqrt(count + 3), *own, *mean]
        np.testing.assert_allclose(got.iloc[place], numbers, rtol=0, atol=1e-11)
        fresh += row["item"] >= 10 and abs(numbers[0]) > 1e-6
    assert fresh > 3  # an item without a vector of its own


def test_fold_in_orders_what_taste_decides() -> None:
    """Members of two tastes and items of two kinds: old items have vectors, fresh ones are told by their takers alone."""
    rng = np.random.default_rng(0)

    def rows(count: int, low: int, high: int, start: int) -> pd.DataFrame:
        frame = pd.DataFrame({"member": rng.integers(0, 200, count), "item": rng.integers(low, high, count)})
        same = frame["member"] % 2 == frame["item"] % 2
        frame["click"] = (rng.random(count) < np.where(same, 0.6, 0.1)).astype(float)
        return frame.assign(time=start + 10 * np.arange(count), half=0.35)

    past, today = rows(6000, 0, 60, T0), rows(3000, 60, 80, T0 + 100_000)
    made = data.item_factors(past, "member", "item", "click", dim=4)
    assert abs(np.corrcoef(made.vectors[:, 0], [key % 2 for key in made.numbers.as_json()])[0, 1]) > 0.9
    fold = data.FoldIn(made, "member", expected="half", delay=600)
    fold.update(past)
    got = fold.update(today)
    later = (today["time"] > T0 + 110_000).to_numpy()
    for column in got:
        means = got.loc[later, column].groupby(today.loc[later, "member"] % 2 == today.loc[later, "item"] % 2).mean()
        assert means[True] > means[False] + 0.5 * got.loc[later, column].std(), column
    control = data.FoldIn(made, "member", expected="half", delay=600)
    control.update(past.assign(click=rng.permutation(past["click"])))
    mixed = control.update(today.assign(click=rng.permutation(today["click"])))["member_item_similarity"]
    means = mixed[later].groupby(today.loc[later, "member"] % 2 == today.loc[later, "item"] % 2).mean()
    assert abs(means[True] - means[False]) < 0.4 * mixed[later].std()
