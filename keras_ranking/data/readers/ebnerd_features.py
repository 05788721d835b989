"""Features and actions of EB-NeRD as they were known at a point in time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.counts import point_in_time_counts

HOUR = 3600
RANKED = ("ctr_1h", "ctr_24h", "views_1h", "views_24h", "article_age")
CLICK_PRIOR = (1.0, 12.0)  # of the click rates: lists have 11.5 articles and one click


def known_actions(events: pd.DataFrame, feedback: int) -> pd.DataFrame:
    """What was known of each row's actions `feedback` seconds after the impression.

    The click happens when the member leaves the page that showed the list (`click_after`, its read time). Dwell and scroll grow
    from then on; scroll is measured at the end only. The full values would leak the future into requests in between.
    """
    left = feedback - events["click_after"].to_numpy()
    click = (events["click"].to_numpy() == 1) & (left >= 0)
    dwell, scroll = events["dwell"].to_numpy(), events["scroll"].to_numpy()
    done = ~(dwell > left)  # also where the dwell was not measured
    return pd.DataFrame(
        {
            "known_click": click.astype(np.int8),
            "known_dwell": np.where(click, np.minimum(dwell, np.maximum(left, 0)), 0.0),
            "known_scroll": np.where(click, np.where(done, scroll, np.nan), 0.0),
        },
        index=events.index,
    )


def in_list_rank(values: pd.Series, request: pd.Series) -> pd.Series:
    """Rank inside the list, 0 = highest, 1 = lowest; ties share their mean rank, a list of one gets 0.5."""
    place = values.groupby(request).rank(ascending=False)
    size = values.groupby(request).transform("size")
    return ((place - 0.5) / size).astype(np.float64)


def context_features(impressions: pd.DataFrame, clicks: pd.DataFrame, delay: int) -> pd.DataFrame:
    """The point-in-time features of every impression; `impressions` and `clicks` sorted by time."""
    out: dict[str, Any] = {}
    windows = [HOUR, 6 * HOUR, 24 * HOUR, None]
    # A click of another member counts `delay` seconds after its impression, and only if it had happened by then.
    known = impressions.assign(click=known_actions(impressions, delay)["known_click"])
    counts = point_in_time_counts(known, "article_id", windows, ["click"], delay=delay, prior=CLICK_PRIOR)
    for window in ("1h", "6h", "24h", "all"):
        out[f"views_{window}"] = counts[f"article_id_views_{window}"]
        out[f"ctr_{window}"] = 100.0 * counts[f"article_id_click_rate_{window}"]
    for name in RANKED:
        out[f"{name}_rank"] = in_list_rank(out[name] if name in out else impressions[name], impressions["request"])

    # Clicks of the split's histories: one frame with impressions and clicks, of which only the clicks are counted.
    shown = impressions[["split", "member", "article_id", "time"]]
    both = pd.concat([shown, clicks[shown.columns]], ignore_index=True)
    is_click = np.arange(len(both)) >= len(shown)
    older = point_in_time_counts(both, [("split", "article_id")], [None], (), delay=delay, counted=is_click)
    own = point_in_time_counts(both, [("split", "member", "article_id"), ("split", "member")], [None], (), delay=1, counted=is_click)
    out["history_clicks"] = older["split_article_id_views_all"].to_numpy()[: len(shown)]
    out["in_history"] = own["split_member_article_id_views_all"].to_numpy()[: len(shown)]
    out["history_size"] = own["split_member_views_all"].to_numpy()[: len(shown)]
    seen = point_in_time_counts(impressions, [("member", "article_id")], [None], (), delay=1)
    out["seen"] = seen["member_article_id_views_all"]
    # The member's own clicks have the second in which they happened, which can be after the next list was shown.
    happened = impressions[impressions["click"] == 1]
    happened = happened.assign(time=happened["time"] + happened["click_after"].astype(np.int64))
    pair = ["member", "article_id", "time"]
    both = pd.concat([impressions[pair], happened[pair]], ignore_index=True)
    is_click = np.arange(len(both)) >= len(impressions)
    own = point_in_time_counts(both, [("member", "article_id")], [None], (), delay=1, counted=is_click)
    out["clicked"] = own["member_article_id_views_all"].to_numpy()[: len(impressions)]

    # One row per list, for the features of the list.
    lists = impressions.drop_duplicates("request")[["request", "member", "time"]]
    so_far = point_in_time_counts(lists, "member", [None], (), delay=1)["member_views_all"]
    moments = lists.drop_duplicates(["member", "time"])
    gap = moments["time"] - moments.groupby("member")["time"].shift()
    by_moment = pd.Series(gap.to_numpy(), index=pd.MultiIndex.from_frame(moments[["member", "time"]]))
    lists = lists.assign(impressions_so_far=so_far, gap=by_moment.reindex(pd.MultiIndex.from_frame(lists[["member", "time"]])).to_numpy())
    per_list = lists.set_index("request")[["impressions_so_far", "gap"]].reindex(impressions["request"])
    out["impressions_so_far"] = per_list["impressions_so_far"].to_numpy()
    out["gap"] = per_list["gap"].to_numpy()
    out["hour"] = (impressions["time"] // HOUR % 24).astype(np.float64)
    return pd.DataFrame(out, index=impressions.index)


def article_age_hours(events: pd.DataFrame, first_seen: pd.Series, delay: int) -> np.ndarray:
    """Hours since the article was first shown or read, if that was known `delay` seconds before the event; else 0.

    The first appearance over the whole log is at or before every event that shows the article, so nothing later is used.
    """
    age = events["time"].to_numpy() - first_seen.reindex(events["article_id"]).to_numpy()
    return np.where(age >= delay, age, 0) / HOUR
