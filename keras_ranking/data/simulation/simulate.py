"""A feed simulator with planted effects, so that a test can check whether a model recovers them.

The click probability of an impression is the product of two probabilities, examined and relevant (the examination hypothesis):

    P(click | position p) = examination[bucket(p)] * relevance
    relevance = sigmoid(base + member + taste[member, day, topic] + quality[item] + author[author]
                        - freshness * age in days + mood[session] + device + hour)
    P(like | click)  = sigmoid(like_base + like_taste * taste)
    dwell | click    = exp(dwell_base + dwell_taste * taste + noise) seconds

| planted effect | where it is |
|---|---|
| taste | N(0, taste_scale^2) per member and topic, in no column: only the member's history reveals it |
| drift | every day a share `drift` of a taste's variance is renewed: taste' = sqrt(1 - drift) taste + sqrt(drift) new |
| recency | relevance falls by `freshness` logits for each day of an item's age |
| item quality | in no column; `editor_score` is a noisy measurement of it, and so are the click counts |
| position bias | `examination` per position bucket, the same for all positions of a bucket |
| session mood | N(0, mood_scale^2) shared by all impressions of a session: labels of one session are correlated |
| late feedback | an impression's actions reach the log `feedback_seconds` after it, at most `feedback_delay` |
| confounding | the policy shows fresh items with a high editor score first; a share `random_share` of the requests is shuffled |
| replay | a share `shuffled_share` of the sessions is shuffled in all their requests, for `ReplayContributionRate` |

For every row P(click | bucket k) / P(click | bucket 0) is exactly examination[k] / examination[0].
The policy reads logged columns and noise alone, so position is independent of relevance given the features: CTR by position is
confounded, a model of features and position is not, and in the shuffled requests CTR by position is unbiased too.
All of this is our design; the size of every effect is an argument or in `_EFFECTS`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.configuration import gather_named
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.simulation.options import SimulatedItems, SimulatedLists, SimulatedTastes, positive
from keras_ranking.data.simulation.simulated_log import DEVICES, SimulatedLog, Truth, simulated_schema

START = 1_767_225_600  # 2026-01-01 00:00:00 UTC, a Thursday
_EFFECTS = {
    "base": -1.5,
    "member": 0.5,
    "quality": 0.7,
    "editor_noise": 0.7,
    "author": 0.3,
    "hour": 0.25,
    "like_base": -1.2,
    "like_taste": 0.8,
    "dwell_base": 3.0,
    "dwell_taste": 0.4,
    "dwell_noise": 0.6,
}
_DEVICE_EFFECT = np.array([0.0, 0.2, -0.2])
_SLOT = 7200  # a session starts in the first half of a two-hour slot of its member and lasts at most 50 minutes: none overlap
_MAX_REQUESTS, _MAX_GAP = 6, 600
_LIFETIME = 3 * 86400  # an item can be a candidate for three days
_BLOCK = 20_000  # requests whose candidates are drawn at once; bounds the memory


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def _requests(members: int, days: int, sessions_per_day: float, rng: np.random.Generator) -> pd.DataFrame:
    """One row per request, sorted by time: member, session, time, device."""
    slots = days * 86400 // _SLOT
    hours = (np.arange(slots) * _SLOT // 3600 + 1) % 24
    evening = np.log(1.0 + 0.8 * np.cos(2 * np.pi * (hours - 20) / 24))
    activity = rng.gamma(3.0, 1 / 3.0, size=members)
    count = np.clip(rng.poisson(sessions_per_day * days * activity), 1, max(slots // 2, 1))
    # The `count` largest of weight + Gumbel noise are a draw without replacement with those weights.
    place = np.argsort(-(evening + rng.gumbel(size=(members, slots))), axis=1)
    chosen = np.arange(slots) < count[:, None]
    member = np.repeat(np.arange(members), count)
    start = place[chosen] * _SLOT + rng.integers(0, _SLOT // 2, size=len(member))
    favourite = rng.choice(len(DEVICES), size=members, p=[0.6, 0.3, 0.1])
    device = np.where(rng.random(len(member)) < 0.85, favourite[member], rng.choice(len(DEVICES), size=len(member)))
    length = 1 + np.minimum(rng.poisson(1.5, size=len(member)), _MAX_REQUESTS - 1)
    session = np.repeat(np.arange(len(member)), length)
    gap = np.ceil(np.minimum(30 + rng.exponential(240, size=len(session)), _MAX_GAP)).astype(np.int64)
    first = np.concatenate(([0], np.cumsum(length)[:-1]))
    gap[first] = 0
    elapsed = np.cumsum(gap)
    time = start[session] + elapsed - elapsed[first][session]
    frame = pd.DataFrame({"member": member[session], "session": session, "time": time, "device": device[session]})
    return frame.sort_values(["time", "member"], ignore_index=True)


def _draw_candidates(time: np.ndarray, born: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """(requests, width) distinct items, uniform over those born at most `_LIFETIME` before the request. `born` is sorted."""
    stop = np.searchsorted(born, time, side="right")
    start = np.searchsorted(born, time - _LIFETIME, side="left")
    out = np.empty((len(time), width), dtype=np.int64)
    for begin in range(0, len(time), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        low, alive = start[rows], (stop - start)[rows]
        if alive.min() < width:
            raise ValueError(f"`items_per_day` must leave {width} items to show at any time. Received: {int(alive.min())} at one time")
        keys = rng.random((len(low), int(alive.max())), dtype=np.float32)
        keys[np.arange(keys.shape[1]) >= alive[:, None]] = 2.0
        out[rows] = low[:, None] + np.argpartition(keys, width - 1, axis=1)[:, :width]
    return out


def _tastes(members: int, days: int, topics: int, scale: float, drift: float, rng: np.random.Generator) -> np.ndarray:
    """(members, days, topics); every day has the same spread, and correlation sqrt(1 - drift) with the day before."""
    taste = rng.normal(0, scale, size=(members, days, topics)).astype(np.float32)
    for day in range(1, days):
        taste[:, day] = np.sqrt(1 - drift) * taste[:, day - 1] + np.sqrt(drift) * taste[:, day]
    return taste


def simulate(
    members: int = 1200,
    days: int = 14,
    seed: int = 0,
    *,
    items: SimulatedItems | None = None,
    lists: SimulatedLists | None = None,
    tastes: SimulatedTastes | None = None,
    sessions_per_day: float = 0.33,
    feedback_delay: int = 600,
    split: tuple[float, float] = (0.7, 0.85),
    **options: Any,
) -> SimulatedLog:
    """Simulate a feed: members, sessions, requests of shown items, and what the members did.

    The module's docstring has the formulas and the list of planted effects.

    Args:
        members, days: size of the log.
        seed: the same seed gives the same log.
        items: the items; see `SimulatedItems`.
        lists: the lists that are shown; see `SimulatedLists`.
        tastes: what members like; see `SimulatedTastes`.
        sessions_per_day: mean per member; a session has 2.5 requests on average, half a minute to ten minutes apart.
        feedback_delay: seconds after which every action of an impression is in the log; counts are delayed by the same time.
        split: shares of the period at which validation and test begin.
        options: fields of these classes one by one: `drift=0.1` is `tastes=SimulatedTastes(drift=0.1)`.

    Returns:
        `SimulatedLog`: events sorted by time, with the columns of `simulated_schema`, `split`, `feedback_seconds` (delay of the
        row's actions), `shuffled` (whether the request was shuffled, by itself or with its session) and, with
        `shuffled_share` above 0, `is_shuffled` (whether the session was); the schema; the planted parameters as `truth`.

    Raises:
        ValueError: an argument outside its range.
        TypeError: an unknown option, or one that is given twice.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=1)
        >>> bool(log.events["click"].mean() < log.truth.relevance.mean())
        True
    """
    given: dict[str, Any] = {"items": (SimulatedItems, items), "lists": (SimulatedLists, lists), "tastes": (SimulatedTastes, tastes)}
    items, lists, tastes = gather_named(simulate, given, options)
    for name, value in (("members", members), ("days", days), ("feedback_delay", feedback_delay)):
        positive(name, value)
    if items.items_per_day * 2 < lists.list_size[1]:
        received = f"items_per_day={items.items_per_day}"
        raise ValueError(f"`items_per_day` must leave a choice for lists of {lists.list_size[1]}. Received: {received}")
    if not 0 < split[0] <= split[1] <= 1:
        raise ValueError(f"`split` must be (validation begins, test begins), 0 < first <= second <= 1. Received: split={split}")
    topics, authors, list_size = items.topics, items.authors, lists.list_size
    exam = np.asarray(lists.examination, dtype=np.float64)
    parts = np.random.default_rng(seed).spawn(6)
    requests = _requests(members, days, sessions_per_day, parts[0])

    # Items are created evenly from three days before the start on, so that the first request has enough candidates.
    rng = parts[1]
    width = list_size[1]
    total = items.items_per_day * (days + 3)
    born = np.sort(rng.integers(-_LIFETIME, days * 86400, size=total))
    author = rng.integers(0, authors, size=total)
    topic = (np.arange(authors) % topics)[author]
    quality = rng.normal(0, _EFFECTS["quality"], size=total)
    editor = np.round(quality + rng.normal(0, _EFFECTS["editor_noise"], size=total), 3)
    author_effect = rng.normal(0, _EFFECTS["author"], size=authors)

    rng = parts[2]
    taste = _tastes(members, days, topics, tastes.taste_scale, tastes.drift, rng)
    member_effect = rng.normal(0, _EFFECTS["member"], size=members)
    mood = rng.normal(0, tastes.mood_scale, size=int(requests["session"].max()) + 1)

    # The lists, as (requests, width) tables with the unused places of short lists masked out.
    rng = parts[3]
    time = requests["time"].to_numpy()
    drawn = _draw_candidates(time, born, width, rng)
    size = rng.integers(list_size[0], list_size[1] + 1, size=len(time))
    age_days = (time[:, None] - born[drawn]) / 86400
    shuffled = rng.random(len(time)) < lists.random_share
    policy = editor[drawn] - 0.5 * age_days + rng.normal(0, 0.3, size=drawn.shape)
    policy = np.where(shuffled[:, None], rng.random(drawn.shape), policy)
    if lists.shuffled_share > 0:  # a separate generator: no other session changes
        replay = (parts[5].random(len(mood)) < lists.shuffled_share)[requests["session"].to_numpy()]
        policy = np.where(replay[:, None], parts[5].random(drawn.shape), policy)
        shuffled = shuffled | replay
    policy[np.arange(width) >= size[:, None]] = -np.inf
    drawn = np.take_along_axis(drawn, np.argsort(-policy, axis=1), axis=1)
    used = np.arange(width) < size[:, None]
    request, place = np.nonzero(used)
    item = drawn[used]
    row = requests.iloc[request]
    member, session, device = row["member"].to_numpy(), row["session"].to_numpy(), row["device"].to_numpy()
    seconds = time[request]
    hour = seconds // 3600 % 24

    rng = parts[4]
    liking = taste[member, seconds // 86400, topic[item]].astype(np.float64)
    logit = _EFFECTS["base"] + member_effect[member] + liking + quality[item] + author_effect[author[item]]
    logit += mood[session] + _DEVICE_EFFECT[device] + _EFFECTS["hour"] * np.cos(2 * np.pi * (hour - 21) / 24)
    relevance = _sigmoid(logit - tastes.freshness * (seconds - born[item]) / 86400)
    bucket = np.searchsorted(np.asarray(lists.boundaries), place + 1, side="left")
    like_given_click = _sigmoid(_EFFECTS["like_base"] + _EFFECTS["like_taste"] * liking)
    click = rng.random(len(item)) < exam[bucket] * relevance
    like = click & (rng.random(len(item)) < like_given_click)
    noise = rng.normal(0, _EFFECTS["dwell_noise"], size=len(item))
    dwell = np.where(click, np.exp(_EFFECTS["dwell_base"] + _EFFECTS["dwell_taste"] * liking + noise), 0.0)
    feedback = np.ceil(np.minimum(rng.exponential(feedback_delay / 4, size=len(item)) + 1e-9, feedback_delay)).astype(np.int64)

    events = pd.DataFrame(
        {
            "member_id": member,
            "time": START + seconds,
            "session_id": session,
            "request_id": request,
            "position": place + 1,
            "item_id": item,
            "author_id": author[item],
            "topic": np.asarray([f"topic_{index}" for index in range(topics)], dtype=object)[topic[item]],
            "age_hours": np.round((seconds - born[item]) / 3600, 3),
            "editor_score": editor[item],
            "device": np.asarray(DEVICES, dtype=object)[device],
            "hour": hour,
            "click": click.astype(np.int8),
            "like": like.astype(np.int8),
            "dwell_seconds": np.round(dwell, 1),
            "feedback_seconds": feedback,
            "shuffled": shuffled[request],
        }
    )
    if lists.shuffled_share > 0:
        events["is_shuffled"] = replay[request].astype(np.int8)
    counts = point_in_time_counts(events, "item_id", [86400, None], actions=["click"], delay=feedback_delay)
    for column, source in (("views_24h", "views_24h"), ("click_rate_24h", "click_rate_24h"), ("click_rate_all", "click_rate_all")):
        events[f"item_{column}"] = counts[f"item_id_{source}"]
    edges = np.floor(np.asarray(split) * days * 86400)
    events["split"] = np.asarray(["train", "validation", "test"], dtype=object)[np.searchsorted(edges, seconds, side="right")]
    truth = Truth(
        examination=exam,
        boundaries=tuple(lists.boundaries),
        relevance=relevance,
        click_probability=relevance[:, None] * exam,
        like_given_click=like_given_click,
        bucket=bucket,
        shuffled=shuffled[request],
        mood=mood[session],
        taste=taste,
        item_quality=quality,
    )
    return SimulatedLog(
        events=events,
        schema=simulated_schema(topics, feedback_delay, lists.shuffled_share > 0),
        name="simulated",
        preset="simulated",
        truth=truth,
    )
