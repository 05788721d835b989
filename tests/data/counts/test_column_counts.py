"""ColumnCounts against counting by hand, nothing from the future, and going on equal to starting anew to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking import data
from keras_ranking.data.counts.running_sums import RunningSums

DELAY = 40
T0 = 1_700_000_000
COUNTS = (
    kr.Count("item", of="views"),
    kr.Count("item", action="click", window=90, prior=(1, 4)),
    kr.Count(("member", "author"), action="dwell", of="sum", window=200),
    kr.Count("item", action="click", of="sum", window=90, where="shown", name="shown_clicks"),
    kr.Count("member", action="click"),
)


def make_log(rows: int = 300, seed: int = 0) -> pd.DataFrame:
    """Rows in order of time, many in one second, some without an author or an item."""
    rng = np.random.default_rng(seed)
    log = pd.DataFrame({"time": T0 + np.sort(rng.integers(0, 900, rows)), "item": rng.integers(0, 9, rows)})
    log["member"] = rng.integers(0, 5, rows)
    log["author"] = pd.Series(rng.choice(["a", "b", "c"], rows)).where(rng.random(rows) > 0.1, None)
    log["item"] = log["item"].astype("Int64").mask(pd.Series(rng.random(rows) < 0.05))
    log["click"], log["dwell"] = rng.integers(0, 2, rows), rng.exponential(10, rows)
    log["shown"] = rng.random(rows) < 0.7
    return log.set_index(rng.permutation(rows) + 500)


def state() -> data.ColumnCounts:
    return data.ColumnCounts(COUNTS, "time", DELAY)


def by_hand(log: pd.DataFrame, count: kr.Count, row: int) -> float:
    views, total, moment = 0, 0.0, log["time"].iloc[row] - DELAY
    own = [log[column].iloc[row] for column in count.key_columns]
    for other in range(len(log)):
        theirs = [log[column].iloc[other] for column in count.key_columns]
        if any(pd.isna(value) for value in (*own, *theirs)) or own != theirs:
            continue
        time = log["time"].iloc[other]
        if time > moment or (count.window is not None and time <= moment - count.window):
            continue
        if count.where is not None and not log[count.where].iloc[other]:
            continue
        views += 1
        total += 0.0 if count.action is None else log[count.action].iloc[other]
    if count.of == "views":
        return views
    return total if count.prior is None else (total + count.prior[0]) / (views + count.prior[1])


def test_equals_counting_by_hand() -> None:
    log = make_log()
    got = state().update(log.sample(frac=1.0, random_state=1)).loc[log.index]
    assert list(got.columns) == [count.name for count in COUNTS]
    for row in range(0, len(log), 13):
        np.testing.assert_allclose(got.iloc[row], [by_hand(log, count, row) for count in COUNTS], rtol=1e-12, atol=1e-9)
    assert (got > 0).to_numpy().any(axis=0).all()  # the case is not empty


def test_equals_point_in_time_counts_to_the_bit() -> None:
    log = make_log()
    plain = data.point_in_time_counts(log, ["item", ("member", "author")], [90, 200, None], ["click", "dwell"], delay=DELAY, prior=(1, 4))
    got = state().update(log)
    for name in ("item_views_all", "item_click_rate_90s", "member_author_dwell_200s"):
        np.testing.assert_array_equal(got[name], plain[name])


def test_what_comes_later_changes_no_bit_and_the_control_sees_what_comes_before() -> None:
    log = make_log()
    moment = int(log["time"].quantile(0.6))
    later = log["time"] > moment - DELAY  # not visible to rows up to `moment`
    other = log.assign(click=log["click"].mask(later, 1 - log["click"]), dwell=log["dwell"].mask(later, 0.3))
    first, second = state().update(log), state().update(other)
    before = (log["time"] <= moment).to_numpy()
    np.testing.assert_array_equal(first[before], second[before])
    seen = log.assign(click=1 - log["click"])
    assert (state().update(seen)[before] != first[before]).to_numpy().any()


def test_going_on_equals_starting_anew_to_the_bit(tmp_path: Path) -> None:
    log = make_log(600)
    whole = state()
    columns = whole.update(log)
    parts, part = [], state()
    cuts = [T0, *(int(log["time"].iloc[place]) for place in (130, 131, 400)), T0 + 10**6]
    for low, high in itertools.pairwise(cuts):
        rows = log[(log["time"] >= low) & (log["time"] < high)]
        parts.append(part.update(rows))
        part.save(tmp_path / "state.npz")
        part = data.ColumnCounts.load(tmp_path / "state.npz")
    np.testing.assert_array_equal(pd.concat(parts).to_numpy(), columns.to_numpy())
    assert part.digest == whole.digest
    assert state().digest == whole.anew().digest != whole.digest


def test_a_request_reads_what_a_row_would_at_its_time() -> None:
    log = make_log()
    moment = int(log["time"].max()) + 20  # some outcomes are known by then, some are not
    counts = state()
    counts.update(log)
    request = make_log(5, seed=9).assign(time=moment).set_index(np.arange(5) + 5000)
    row = state().update(pd.concat([log, request])).loc[request.index]
    got = counts.features(request[["item", "member", "author"]], moment)
    np.testing.assert_array_equal(got, row)


def test_rows_that_do_not_count_may_lack_the_action() -> None:
    log = make_log()
    log["dwell"] = log["dwell"].where(log["shown"])
    own = data.ColumnCounts([kr.Count("item", action="dwell", of="sum", where="shown")], delay=DELAY)
    assert np.isfinite(own.update(log)).to_numpy().all()
    with pytest.raises(
        ValueError, match=r"column 'dwell' must hold finite numbers in every counted row. Received: nan .*; Count\(..., where="
    ):
        data.ColumnCounts([kr.Count("item", action="dwell", of="sum")], delay=DELAY).update(log)


def test_errors() -> None:
    log = make_log()
    with pytest.raises(ValueError, match="different names"):
        data.ColumnCounts([])
    with pytest.raises(ValueError, match="different names"):
        data.ColumnCounts([COUNTS[0], COUNTS[0]])
    with pytest.raises(ValueError, match="`delay` must be whole seconds, at least 1. Received: delay=0"):
        data.ColumnCounts(COUNTS, delay=0)
    with pytest.raises(ValueError, match="column 'author' is not in the log"):
        state().update(log.drop(columns="author"))
    with pytest.raises(ValueError, match="column 'dwell' of count 'member_author_dwell_200s' is not in the log"):
        state().update(log.drop(columns="dwell"))
    with pytest.raises(ValueError, match="column 'shown' must hold 0 or 1, or booleans: which rows count. Received: 7"):
        state().update(log.assign(shown=7))


@pytest.mark.parametrize("whole", [True, False])
def test_sums_are_those_of_adding_up_row_by_row(whole: bool) -> None:
    """Of short and long groups, of whole numbers and of others, in one call and in many."""
    rng = np.random.default_rng(2)
    codes = np.concatenate([np.zeros(400, dtype=np.int64), rng.integers(1, 60, 800)])
    times = np.sort(rng.integers(0, 3000, len(codes)))
    amounts = np.column_stack([np.ones(len(codes)), rng.integers(0, 9, len(codes)) if whole else rng.exponential(1, len(codes)) * 1e-3])
    once, often = RunningSums(2, 100), RunningSums(2, 100)
    once.add(codes, times, amounts, 60)
    for part in np.array_split(np.arange(len(codes)), 7):
        often.add(codes[part], times[part], amounts[part], 60)
        often.forget(int(times[part[-1]]))
    keys, moments = np.arange(60), np.full(60, 3000)
    wanted = np.zeros((60, 2))
    for code, row in zip(codes, amounts, strict=True):
        wanted[code] = wanted[code] + row
    for sums in (once, often):
        np.testing.assert_array_equal(sums.until(keys, moments), wanted)
    assert len(often.codes) < 200 < len(once.codes)
