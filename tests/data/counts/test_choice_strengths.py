"""ChoiceStrengths against the formula written out row by row, and nothing from the future."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from keras_ranking import data
from keras_ranking.data import ChoiceStrengths

DELAY = 300


def make_log(lists: int = 120, seed: int = 0) -> pd.DataFrame:
    """Lists of one to five of eight items, several in one second, some without a click, some with two, some with an unknown label."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(lists):
        time, size = 1_700_000_000 + 10 * int(rng.integers(0, 150)), int(rng.integers(1, 6))
        clicks = (rng.random(size) < 0.35).astype(float)
        if number % 11 == 0:
            clicks[0] = np.nan
        rows += [(time, number, item, click) for item, click in zip(rng.choice(8, size, replace=False), clicks, strict=True)]
    log = pd.DataFrame(rows, columns=["time", "list", "item", "click"])
    return log.sample(frac=1.0, random_state=seed).set_index(np.arange(len(log)) + 500)


def by_hand(log: pd.DataFrame, moment: int) -> dict[int, float]:
    """Strengths at a moment, from all lists whose outcomes are known by then, second by second."""
    strength, seen = dict.fromkeys(range(8), 0.0), dict.fromkeys(range(8), 0)
    known = log[log["time"] + DELAY <= moment]
    for _, second in known.groupby("time"):
        moves, counts = dict.fromkeys(range(8), 0.0), dict.fromkeys(range(8), 0)
        for _, rows in second.groupby("list"):
            total = sum(rows["click"])
            if not total > 0:
                continue
            below = sum(math.exp(strength[item]) for item in rows["item"])
            for item, click in zip(rows["item"], rows["click"], strict=True):
                moves[item] += click - total * math.exp(strength[item]) / below
                counts[item] += 1
        for item in strength:
            if counts[item]:
                strength[item] = (1 - 0.002) * strength[item] + 0.6 / math.sqrt(1 + 0.02 * seen[item]) * moves[item]
                seen[item] += counts[item]
    return strength


def made(log: pd.DataFrame) -> pd.DataFrame:
    return ChoiceStrengths("item", "list", delay=DELAY).update(log)


def test_equals_the_formula_written_out() -> None:
    log = make_log()
    got = made(log)
    assert got.index.equals(log.index)
    for row in range(0, len(log), 3):
        strength = by_hand(log, int(log["time"].iloc[row]))
        same = log[log["list"] == log["list"].iloc[row]]
        share = math.exp(strength[log["item"].iloc[row]]) / sum(math.exp(strength[item]) for item in same["item"])
        np.testing.assert_allclose(got.iloc[row], [strength[log["item"].iloc[row]], share], rtol=0, atol=1e-12)
    assert got["item_click_strength"].abs().max() > 0.3  # the case is not empty


def test_the_order_of_the_rows_is_nothing() -> None:
    log = make_log()
    again = made(log.sample(frac=1.0, random_state=9)).loc[log.index]
    np.testing.assert_allclose(again, made(log), rtol=0, atol=1e-12)


def test_outcomes_after_a_moment_change_no_row_before_they_are_known() -> None:
    log = make_log()
    moment = int(log["time"].quantile(0.6))
    flipped = log.assign(click=np.where(log["time"] > moment, 1 - log["click"], log["click"]))
    before = (log["time"] <= moment + DELAY).to_numpy()
    first, second = made(log).to_numpy(), made(flipped).to_numpy()
    np.testing.assert_array_equal(first[before], second[before])
    assert (first[~before] != second[~before]).any()  # control


@pytest.mark.parametrize("cuts", [(0.5,), (0.2, 0.21, 0.7)])
def test_going_on_from_a_saved_state_equals_starting_anew(tmp_path, cuts) -> None:
    log = make_log()
    parts, edges = [], [-1, *(int(log["time"].quantile(cut)) for cut in cuts), int(log["time"].max())]
    state = ChoiceStrengths("item", "list", delay=DELAY)
    for low, high in itertools.pairwise(edges):
        parts.append(state.update(log[(log["time"] > low) & (log["time"] <= high)]))
        state.save(tmp_path / "state.json")
        state = ChoiceStrengths.load(tmp_path / "state.json")
    np.testing.assert_allclose(pd.concat(parts).loc[log.index], made(log), rtol=0, atol=1e-12)


def test_a_request_reads_what_training_would() -> None:
    log = make_log()
    moment = int(log["time"].max()) + 120  # some lists are known by then that were not at the newest row
    state = ChoiceStrengths("item", "list", delay=DELAY)
    state.update(log)
    held = state._strengths.copy()
    served = state.features([3, 5, 99], moment)
    np.testing.assert_array_equal(state._strengths, held)
    row = pd.DataFrame({"time": moment, "list": -1, "item": [3, 5, 99], "click": np.nan})
    np.testing.assert_array_equal(served, state.update(row))
    strength = by_hand(log, moment)
    np.testing.assert_allclose(served["item_click_strength"], [strength[3], strength[5], 0.0], atol=1e-12)


def test_keys_of_several_columns_and_missing_ones(tmp_path) -> None:
    log = pd.DataFrame({"time": [0, 0, 900], "list": [1, 1, 2], "item": ["a", None, "a"], "place": [1, 1, 1], "click": [1, 0, 0]})
    state = ChoiceStrengths(("item", "place"), "list")
    got = state.update(log)
    assert got["item_place_click_strength"].tolist() == [0.0, 0.0, pytest.approx(0.3)]
    state.save(tmp_path / "state.json")
    assert ChoiceStrengths.load(tmp_path / "state.json").features([("a", 1)], 900)["item_place_click_strength"].tolist() == [
        pytest.approx(0.3)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"click": [-1, 0]}, "'click' must hold finite numbers, 0 or more"),
        ({"click": ["a", 0]}, "'click' must hold finite numbers"),
        ({"time": [0, 5]}, "'time' must be the same in all rows of a list"),
        ({"list": [1, None]}, "'list' must name the list of each row"),
        ({"time": [0.5, 0.5]}, "fraction"),
    ],
)
def test_bad_rows(change, message) -> None:
    log = pd.DataFrame({"time": [0, 0], "list": [1, 1], "item": [1, 2], "click": [1, 0]}).assign(**change)
    with pytest.raises(ValueError, match=message):
        ChoiceStrengths("item", "list").update(log)


def test_other_errors(tmp_path) -> None:
    with pytest.raises(ValueError, match="`delay` must be whole seconds"):
        ChoiceStrengths("item", "list", delay=0)
    with pytest.raises(ValueError, match="`step` must be positive"):
        ChoiceStrengths("item", "list", forget=1.0)
    state = ChoiceStrengths("item", "list")
    state.update(make_log())
    with pytest.raises(ValueError, match="must not be earlier than the newest one"):
        state.update(make_log())
    with pytest.raises(ValueError, match="`time` must not be before the newest row"):
        state.features([1], 0)
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a state of ChoiceStrengths"):
        ChoiceStrengths.load(tmp_path / "other.json")


def test_rates_over_expected_outcomes_by_hand() -> None:
    log = make_log().dropna(subset=["click"])
    log["share"] = made(log)["item_click_share"]
    sizes = log.groupby("list")["item"].transform("size")
    for expected, amount in (("list_size", 1 / sizes), ("share", log["share"])):
        got = data.exposure_corrected_rates(log, "item", [400, None], expected=expected, request="list", delay=DELAY, prior=2.0)
        for row in range(0, len(log), 5):
            age = log["time"].iloc[row] - log["time"]
            for window, name in ((400, "400s"), (None, "all")):
                used = (log["item"] == log["item"].iloc[row]) & (age >= DELAY) & (True if window is None else age < DELAY + window)
                rate = (log["click"][used].sum() + 2) / (amount[used].sum() + 2)
                assert got[f"item_click_per_{expected}_{name}"].iloc[row] == pytest.approx(rate, rel=1e-12)
    with pytest.raises(ValueError, match="needs `request`"):
        data.exposure_corrected_rates(log, "item", [None])
    with pytest.raises(ValueError, match="'share' must hold finite numbers, 0 or more"):
        data.exposure_corrected_rates(log.assign(share=-1.0), "item", [None], expected="share")


def test_numbers_relative_to_the_list_by_hand() -> None:
    log = make_log()
    log["views"] = np.random.default_rng(1).integers(0, 4, len(log)).astype(float)
    log.iloc[::7, log.columns.get_loc("views")] = np.nan
    got = data.list_relative(log, ["views"], "list")
    for row in range(len(log)):
        values, x = log["views"][log["list"] == log["list"].iloc[row]].dropna(), log["views"].iloc[row]
        if math.isnan(x):
            assert got.iloc[row].isna().all()
            continue
        place = (values > x).sum() + ((values == x).sum() + 1) / 2
        np.testing.assert_allclose(got.iloc[row], [x - values.mean(), x - values.max(), (place - 0.5) / len(values)], atol=1e-12)
    with pytest.raises(ValueError, match="`kinds` must be among"):
        data.list_relative(log, ["views"], "list", ["median"])
    with pytest.raises(ValueError, match="'views' must be finite"):
        data.list_relative(log.assign(views=np.inf), ["views"], "list")
