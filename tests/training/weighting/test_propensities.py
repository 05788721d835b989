"""position_propensities: on data whose curve is known, on public logs, and what the weights then do to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.training import inverse_propensity_weights, position_propensities
from keras_ranking.training.weighting import propensities

pytestmark = pytest.mark.one_backend
PLACES = [0, 1, 4]  # one position of each range 1, 2-4, 5+
TRUE = np.array([1.0, 0.65, 0.45])


@pytest.fixture(scope="module", params=[0, 1])
def log(request: pytest.FixtureRequest) -> Any:
    return kr.data.simulate(seed=request.param, random_share=0.3, members=1200)


def with_day(log: Any) -> pd.DataFrame:
    return log.events.assign(day=(log.events["age_hours"] // 24).astype(int))


def test_the_simulators_curve(log: Any) -> None:
    """Planted 1, 0.65, 0.45, under a policy that shows what will be clicked first."""
    random = position_propensities(log.events, log.schema, "random", randomised="shuffled", boundaries=(1, 4))
    fitted = position_propensities(with_day(log), log.schema, "em", items=["item_id", "day"], boundaries=(1, 4))
    plain = position_propensities(log.events, log.schema, "ctr", boundaries=(1, 4))
    for task in ("click", "like"):
        curve = random[task]
        assert (curve.low[PLACES] <= TRUE).all() and (curve.high[PLACES] >= TRUE).all()
        atol = 0.03 if task == "click" else 0.06  # a fifth of the clicks are liked
        np.testing.assert_allclose(fitted[task].propensity[PLACES], TRUE, atol=atol)
        # Control: the plain ratio takes the policy's choice for the position's doing.
        assert (plain[task].propensity[PLACES][1:] < TRUE[1:] - atol).all()
    assert fitted["click"].iterations < 2000
    assert (
        random["click"].shown.sum()
        == np.bincount(np.searchsorted((1, 4), log.events["position"][log.events["shuffled"]]))[
            np.searchsorted((1, 4), np.arange(1, 13))
        ].sum()
    )


def test_em_gives_the_unbiased_order_of_items() -> None:
    """Where the policy never changes its mind, the rate of an item says little; its attractiveness does."""
    rng = np.random.default_rng(0)
    items, requests, width = 60, 6000, 10
    attractive = rng.uniform(0.05, 0.6, items)
    theta = 1 / np.arange(1, width + 1)
    shown = np.argsort(-(0.2 * rng.normal(size=items) + 0.8 * rng.normal(size=(requests, items))), axis=1)[:, :width]
    # The worst items go first: the order by rate is upside down.
    shown = np.take_along_axis(shown, np.argsort(attractive[shown] + 0.15 * rng.normal(size=shown.shape), axis=1), axis=1)
    click = rng.random(shown.shape) < theta * attractive[shown]
    events = pd.DataFrame({"request": np.repeat(np.arange(requests), width), "item": shown.ravel(), "click": click.ravel().astype(int)})
    events["member"], events["time"], events["rank"] = 1, 1_700_000_000, np.tile(np.arange(1, width + 1), requests)
    schema = kr.Schema(member="member", time="time", request="request", position="rank", features=[kr.Id("item")], tasks=["click"])
    curve = position_propensities(events, schema)["click"]
    np.testing.assert_allclose(curve.propensity, theta, atol=0.05)
    order = np.argsort(np.asarray(curve.groups))
    assert np.corrcoef(curve.attractiveness[order], attractive)[0, 1] > 0.95
    rate = events.groupby("item")["click"].mean().to_numpy()
    assert np.corrcoef(rate, attractive)[0, 1] < 0.6  # control
    plain = position_propensities(events, schema, "ctr")["click"].propensity
    assert np.abs(plain - theta).max() > 0.2


def ranker(x: np.ndarray, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted logistic regression by Newton's method: scores of all rows."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    w = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (weight * (p - label)) + 1e-3 * w
        w -= np.linalg.solve((x * (weight * p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(len(w)), gradient)
    return x @ w


def test_weights_bring_back_the_order_of_relevance() -> None:
    """A model of what the policy ranks by learns the position with it, unless positives weigh by their propensity."""
    log = kr.data.simulate(seed=3, random_share=0.0, members=800, taste_scale=0.5)
    events = log.events
    editor, age = events["editor_score"].to_numpy(), events["age_hours"].to_numpy() / 24
    x = np.stack([editor, age], axis=1)
    curve = position_propensities(with_day(log), log.schema, items=["item_id", "day"], boundaries=(1, 4), tasks=["click"])["click"]
    click, position = events["click"].to_numpy(dtype=float), events["position"].to_numpy()
    everything = np.ones(len(click))
    positives, clipped = inverse_propensity_weights(position, curve.propensity, label=click)
    by_place, _ = inverse_propensity_weights(position, curve.propensity)
    relevance = log.truth.relevance

    def slope(score: np.ndarray) -> np.ndarray:
        """What the scores say of editor score and age, in logits."""
        return np.linalg.lstsq(np.concatenate([x, np.ones((len(x), 1))], axis=1), score, rcond=None)[0][:2]

    unbiased = slope(ranker(x, relevance, everything))
    errors = {
        "none": np.abs(slope(ranker(x, click, everything)) - unbiased).sum(),
        "all": np.abs(slope(ranker(x, click, by_place)) - unbiased).sum(),
        "positives": np.abs(slope(ranker(x, click, positives)) - unbiased).sum(),
    }
    assert clipped == 0
    assert errors["positives"] < 0.35 * errors["none"], errors
    assert errors["positives"] < errors["all"], errors


def yandex(folder: Path) -> pd.DataFrame:
    file = folder / "yandex_serp.csv.gz"
    if not file.is_file():
        pytest.skip(f"no yandex_serp.csv.gz in {folder}")
    pages = pd.read_csv(file)
    clicked = np.array([row.split() for row in pages["clicked_by_rank"]], dtype=int)
    docs = np.array([row.split() for row in pages["docs"]])
    width = clicked.shape[1]
    return pd.DataFrame(
        {
            "member": 1,
            "time": 1_700_000_000,
            "request": np.repeat(pages["page_view"].to_numpy(), width),
            "query": np.repeat(pages["query_id"].to_numpy(), width),
            "doc": docs.ravel(),
            "rank": np.tile(np.arange(1, width + 1), len(pages)),
            "click": clicked.ravel(),
        }
    )


SERP = kr.Schema(member="member", time="time", request="request", position="rank", features=[kr.Id("doc")], tasks=["click"])


@pytest.mark.slow
def test_yandex(data_folder: Path) -> None:
    events = yandex(data_folder)
    plain = position_propensities(events, SERP, "ctr")["click"]
    np.testing.assert_allclose(plain.rate, [0.257, 0.249, 0.170, 0.154, 0.106, 0.073, 0.069, 0.047, 0.050, 0.045], atol=6e-4)
    fitted = position_propensities(events, SERP, items=["query", "doc"])["click"]
    # Held out pages: the click model says more of them than position alone, and than the item alone.
    held = events["request"].to_numpy() % 5 == 0
    train = position_propensities(events[~held], SERP, items=["query", "doc"])["click"]
    alpha = pd.Series(train.attractiveness, index=train.groups)
    pair = pd.MultiIndex.from_frame(events.loc[held, ["query", "doc"]])
    liked = alpha.reindex(pair).fillna(train.attractiveness.mean()).to_numpy()
    rank = events.loc[held, "rank"].to_numpy() - 1
    label = events.loc[held, "click"].to_numpy()

    def log_loss(p: np.ndarray) -> float:
        p = np.clip(p, 1e-6, 1 - 1e-6)
        return float(-(label * np.log(p) + (1 - label) * np.log(1 - p)).mean())

    model = log_loss(liked * train.propensity[rank])
    rates = events[~held].groupby("rank")["click"].mean().to_numpy()
    by_item = events[~held].groupby(["query", "doc"])["click"].mean().reindex(pair).fillna(rates.mean()).to_numpy()
    assert model < log_loss(rates[rank]) - 0.01
    assert model < log_loss(by_item)
    # Examination falls from the top on, and less steeply than the rates, since a search engine puts good pages first.
    assert (np.diff(fitted.propensity[:6]) < 0.02).all()
    assert (fitted.propensity[5:] > plain.propensity[5:]).all()


@pytest.mark.parametrize("campaign", ["men", "women"])
def test_open_bandit(data_folder: Path, campaign: str) -> None:
    """Three equivalent places and a random policy: the estimates do not differ, and the intervals contain 1."""
    file = data_folder / f"obd_{campaign}.csv.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name} in {data_folder}")
    rows = pd.read_csv(file)
    rows["member"], rows["request"], rows["time"] = 1, np.arange(len(rows)), 1_700_000_000
    schema = kr.Schema(member="member", time="time", request="request", position="position", features=[kr.Id("item_id")], tasks=["click"])
    curve = position_propensities(rows, schema, "random", randomised=(rows["policy"] == "random").to_numpy())["click"]
    assert curve.shown.sum() == 10_000 and len(curve.propensity) == 3
    random = rows[rows["policy"] == "random"]
    np.testing.assert_allclose(curve.rate, random.groupby("position")["click"].mean(), rtol=1e-12)
    low, high = curve.interval()
    assert (low < curve.rate).all() and (curve.rate < high).all() and (high - low < 0.01).all()
    assert low.max() < high.min()  # one rate would fit all three
    assert position_propensities(rows, schema, "em")["click"].shown.sum() == 20_000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "guess"}, "`method` must be one of"),
        ({"method": "random"}, "method 'random' needs `randomised`"),
        ({"method": "random", "randomised": "nothing"}, "column 'nothing' of `randomised` is not in the log"),
        ({"method": "random", "randomised": [True]}, r"`randomised` must have one bool per row. Received: shape \(1,\)"),
        ({"items": "nothing"}, "column 'nothing' of `items` is not in the log"),
        ({"boundaries": (4, 1)}, "`boundaries` must be increasing positions from 1 on"),
        ({"last": 0}, "`last` must be a positive integer"),
        ({"prior": -1.0}, "`prior` must be a finite number of at least 0"),
        ({"tasks": ["nothing"]}, "nothing"),
    ],
)
def test_errors(settings: dict, message: str) -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    with pytest.raises(ValueError, match=message):
        position_propensities(log.events, log.schema, **settings)


def test_a_log_without_information() -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    with pytest.raises(ValueError, match="task 'click' has no label 1 at position 1 to compare with"):
        position_propensities(log.events.assign(click=0), log.schema, tasks=["click"])
    with pytest.raises(ValueError, match="need a schema with a position"):
        position_propensities(log.events, log.schema.model_copy(update={"position": None}))
    with pytest.raises(ValueError, match="task 'click' has no row with a position and a label"):
        position_propensities(log.events.assign(position=np.nan), log.schema)


def test_the_methods() -> None:
    assert propensities.METHODS == ("em", "random", "ctr")


def test_rows_without_an_item_are_one_group() -> None:
    log = kr.data.simulate(members=60, days=4, seed=1)
    gone = np.arange(len(log.events)) % 50 == 0
    curve = position_propensities(log.events.assign(item_id=log.events["item_id"].mask(gone)), log.schema, "em", boundaries=(1, 4))["click"]
    same = position_propensities(log.events.assign(item_id=log.events["item_id"].mask(gone, -7)), log.schema, "em", boundaries=(1, 4))[
        "click"
    ]
    np.testing.assert_array_equal(curve.propensity, same.propensity)


def test_an_item_without_a_usable_row_is_as_good_as_the_mean() -> None:
    """Of which nothing is known; the others are what they are without it, and the fit ends, also without a prior."""
    log = kr.data.simulate(members=60, days=4, seed=1)
    item = log.events["item_id"].iloc[0]
    unknown = log.events.assign(position=log.events["position"].where(log.events["item_id"] != item))
    for prior in (0.0, 1.0):
        settings = {"method": "em", "tasks": ["click"], "boundaries": (1, 4), "prior": prior}
        curve = position_propensities(unknown, log.schema, **settings)["click"]
        rest = position_propensities(unknown[log.events["item_id"] != item], log.schema, **settings)["click"]
        np.testing.assert_allclose(curve.propensity, rest.propensity, rtol=1e-12)
        assert curve.iterations == rest.iterations and curve.groups is not None and curve.attractiveness is not None
        known = np.asarray(curve.groups) != item
        np.testing.assert_allclose(curve.attractiveness[known], rest.attractiveness, rtol=1e-12)
        assert 0 < curve.attractiveness[~known].item() < 1


def test_every_row_needs_a_value_of_randomised() -> None:
    log = kr.data.simulate(members=20, days=2, seed=0)
    marks = log.events["shuffled"].astype(object)
    with pytest.raises(ValueError, match=r"use False for unknown ones. Received: missing in 3 of"):
        position_propensities(log.events, log.schema, "random", randomised=marks.where(np.arange(len(marks)) > 2))
    with pytest.raises(ValueError, match="`randomised` must hold bools, or 0 and 1. Received: 'no'"):
        position_propensities(log.events, log.schema, "random", randomised=marks.where(np.arange(len(marks)) > 2, "no"))
    found = [
        position_propensities(log.events, log.schema, "random", tasks=["click"], randomised=kind, boundaries=(1, 4))["click"].acted
        for kind in ("shuffled", marks, marks.astype(int))
    ]
    np.testing.assert_array_equal(found, [found[0]] * 3)
