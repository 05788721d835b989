"""EB-NeRD: news impressions with the clicked and the not clicked articles of each list (Kruse et al., arXiv:2410.03432)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Feature, Id, Known, Number, Task
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.readers.log import Log, find_file, require_columns
from keras_ranking.schema import Schema

SPLITS = ("train", "validation")
HOUR = 3600
_BEHAVIORS = (
    "impression_id",
    "article_id",
    "impression_time",
    "read_time",
    "device_type",
    "article_ids_inview",
    "article_ids_clicked",
    "user_id",
    "is_sso_user",
    "is_subscriber",
    "session_id",
    "next_read_time",
    "next_scroll_percentage",
)
_HISTORY = ("user_id", "impression_time_fixed", "scroll_percentage_fixed", "article_id_fixed", "read_time_fixed")
_LISTS = ("article_ids_inview", "article_ids_clicked", *_HISTORY[1:])
_RANKED = ("ctr_1h", "ctr_24h", "views_1h", "views_24h", "article_age")
_PRIOR = (1.0, 12.0)  # of the click rates: lists have 11.5 articles and one click
_CLOCKS = 5  # seconds by which the clocks of impressions and of openings differ at most (seen in the release)
_SESSION_GAP = 1800  # history clicks carry no session: a pause of half an hour starts a new one (our choice)
_MEDIAN_DWELL, _MEDIAN_SCROLL = 20.0, 100.0  # stand for the few clicks whose reading was not measured


def _lists(column: pd.Series, what: str) -> tuple[np.ndarray, list[Any]]:
    """A column of lists -> the length of each, and all values in one flat list. Texts are split at spaces."""
    if not len(column):
        return np.zeros(0, dtype=np.int64), []
    missing = column.isna().to_numpy()
    if missing.any():
        row = int(missing.argmax())
        raise ValueError(f"column '{what}' must hold a list in every row. Received: {column.iloc[row]!r} at row {row}")
    if isinstance(column.iloc[0], str):
        return column.str.count(" ").to_numpy(dtype=np.int64) + 1, " ".join(column).split(" ")
    return column.map(len).to_numpy(dtype=np.int64), list(np.concatenate([np.asarray(value) for value in column]))


def _unix(values: Any) -> np.ndarray:
    """Times without a zone, read as UTC, in whole seconds."""
    stamps = pd.to_datetime(pd.Series(values))
    return np.asarray(stamps.to_numpy().astype("datetime64[s]").astype(np.int64))


def _read(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Behaviours and history as one frame each, with a `split` column; from gzip CSV files or the published folders."""
    root = Path(folder).expanduser()
    if (root / "ebnerd_behaviors.csv.gz").exists() or not any((root / split).is_dir() for split in SPLITS):
        what = "EB-NeRD behaviours (or the folders train/ and validation/ of the release)"
        behaviors_at = find_file(root, ["ebnerd_behaviors.csv.gz"], what)
        history_at = find_file(root, ["ebnerd_history.csv.gz"], "EB-NeRD history")
        # A list of one unmeasured scroll is the text "nan", not a missing list: only an empty field is missing.
        # A list of one number must not become a number.
        settings: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "dtype": dict.fromkeys(_LISTS, str)}
        behaviors, history = (pd.read_csv(path, **settings) for path in (behaviors_at, history_at))
        require_columns(behaviors, ("split", *_BEHAVIORS), behaviors_at)
        require_columns(history, ("split", *_HISTORY), history_at)
        return behaviors, history
    frames: dict[str, list[pd.DataFrame]] = {"behaviors": [], "history": []}
    for split in SPLITS:
        for name, columns in (("behaviors", _BEHAVIORS), ("history", _HISTORY)):
            path = find_file(root, [f"{split}/{name}.parquet"], f"EB-NeRD {name} of the {split} split")
            frame = pd.read_parquet(path)
            require_columns(frame, columns, path)
            frames[name].append(frame[list(columns)].assign(split=split))
    return pd.concat(frames["behaviors"], ignore_index=True), pd.concat(frames["history"], ignore_index=True)


def _impressions(behaviors: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """One row per (impression, article in view), sorted by time; inside a list in the list's order."""
    behaviors = behaviors.assign(time=_unix(behaviors["impression_time"])).sort_values("time", kind="stable", ignore_index=True)
    for column in ("impression_id", "user_id", "session_id"):
        missing = int(behaviors[column].isna().sum())
        if missing:
            raise ValueError(f"column '{column}' must hold a value in every row of the behaviours; {missing} have none.")
    if (behaviors["impression_id"] < 0).any():
        raise ValueError("column 'impression_id' must not be negative: negative requests are those of the history.")
    repeated = behaviors["impression_id"].duplicated()
    if repeated.any():
        raise ValueError(f"column 'impression_id' must not repeat. Received: {behaviors['impression_id'][repeated].iloc[0]} twice")
    size, shown = _lists(behaviors["article_ids_inview"], "article_ids_inview")
    clicks, clicked = _lists(behaviors["article_ids_clicked"], "article_ids_clicked")
    row = np.repeat(np.arange(len(behaviors)), size)
    article = np.asarray(shown, dtype=np.int64)
    shown_pairs = pd.MultiIndex.from_arrays([row, article])
    clicked_pairs = pd.MultiIndex.from_arrays([np.repeat(np.arange(len(behaviors)), clicks), np.asarray(clicked, dtype=np.int64)])
    again = clicked_pairs.duplicated()
    if again.any():
        notes.append(f"{int(again.sum())} clicks on an article that is clicked already in its list count once")
        clicked_pairs = clicked_pairs[~again]
    clicks = np.bincount(clicked_pairs.get_level_values(0), minlength=len(behaviors))
    outside = ~clicked_pairs.isin(shown_pairs)
    if outside.any():
        notes.append(f"{int(outside.sum())} clicks on an article outside the list shown are left out")
    click = shown_pairs.isin(clicked_pairs)
    take = behaviors.iloc[row]
    # The page read next belongs to the one click of a list; where there are several, whose it is was not recorded.
    single = click & (clicks == 1)[row]
    if int(click.sum() - single.sum()):
        notes.append(f"{int(click.sum() - single.sum())} clicks in lists with several clicks have no known dwell and scroll")
    frame = pd.DataFrame(
        {
            "split": take["split"].to_numpy(),
            "member": take["user_id"].to_numpy(dtype=np.int64),
            "time": take["time"].to_numpy(),
            "request": take["impression_id"].to_numpy(dtype=np.int64),
            "session": take["session_id"].to_numpy(dtype=np.int64),
            "article_id": article,
            "click": click.astype(np.int8),
            "click_after": take["read_time"].to_numpy(dtype=np.float64),
            "dwell": np.where(single, take["next_read_time"].to_numpy(dtype=np.float64), np.where(click, np.nan, 0.0)),
            "scroll": np.where(single, take["next_scroll_percentage"].to_numpy(dtype=np.float64), np.where(click, np.nan, 0.0)),
            "list_size": size[row].astype(np.float64),
            "front_page": take["article_id"].isna().to_numpy().astype(np.float64),
            "device": take["device_type"].to_numpy(dtype=np.float64),
            "subscriber": take["is_subscriber"].to_numpy(dtype=np.float64),
            "signed_in": take["is_sso_user"].to_numpy(dtype=np.float64),
        }
    )
    doubled = frame.duplicated(["request", "article_id"]).to_numpy()
    if doubled.any():
        notes.append(f"{int(doubled.sum())} repetitions of an article inside its list are left out")
        frame = frame[~doubled].reset_index(drop=True)
    return frame


def _clicks(history: pd.DataFrame) -> pd.DataFrame:
    """One row per click of the histories, as given: split, member, time, article_id, dwell, scroll."""
    size, articles = _lists(history["article_id_fixed"], "article_id_fixed")
    row = np.repeat(np.arange(len(history)), size)
    values: dict[str, list[Any]] = {}
    for name in ("impression_time_fixed", "read_time_fixed", "scroll_percentage_fixed"):
        length, values[name] = _lists(history[name], name)
        if (length != size).any():
            bad = int((length != size).argmax())
            raise ValueError(f"column '{name}' must have one value per article. Received: {length[bad]} for {size[bad]} at row {bad}")
    return pd.DataFrame(
        {
            "split": history["split"].to_numpy()[row],
            "member": history["user_id"].to_numpy(dtype=np.int64)[row],
            "time": _unix(values["impression_time_fixed"]),
            "article_id": np.asarray(articles, dtype=np.int64),
            "dwell": np.asarray(values["read_time_fixed"], dtype=np.float64),
            "scroll": np.asarray(values["scroll_percentage_fixed"], dtype=np.float64),
        }
    )


def _history_rows(clicks: pd.DataFrame, impressions: pd.DataFrame, max_history: int | None, notes: list[str]) -> pd.DataFrame:
    """The history clicks that are not in the log already, each a request of its own with a negative id.

    The two splits' histories overlap, and that of `validation` covers the days whose impressions are in `train`.
    """
    rows = clicks.sort_values(["time", "member"], kind="stable")
    repeated = rows.duplicated(["member", "time", "article_id"]).to_numpy()
    notes.append(f"{int(repeated.sum())} of {len(rows)} history clicks stand twice and are kept once")
    rows = rows[~repeated]
    known = impressions.loc[impressions["click"] == 1, ["time", "member", "article_id"]].sort_values("time", kind="stable")
    # A history click is the opening of the article: seconds to minutes after the impression it came from. Of an impression that
    # comes later nothing may be known here: whether it is clicked must not decide which rows there are.
    opened = rows[["time", "member", "article_id"]].assign(time=rows["time"] + _CLOCKS)
    shown = pd.merge_asof(opened, known.assign(shown=True), on="time", by=["member", "article_id"], direction="backward")["shown"]
    logged = shown.notna().to_numpy()
    notes.append(f"{int(logged.sum())} history clicks are clicks of an impression in the log and are left out")
    rows = rows[~logged]
    if max_history is not None:
        recent = rows.groupby("member").cumcount(ascending=False).to_numpy() < max_history
        notes.append(f"{int((~recent).sum())} history clicks beyond the latest {max_history} of their member are left out")
        rows = rows[recent]
    rows = rows.assign(split="history", click=np.int8(1), click_after=0.0, request=-1 - np.arange(len(rows), dtype=np.int64))
    ordered = rows.sort_values(["member", "time"], kind="stable")
    breaks = (ordered["member"].diff() != 0) | (ordered["time"].diff() > _SESSION_GAP)
    return rows.assign(session=-breaks.cumsum().reindex(rows.index))


def _known_actions(events: pd.DataFrame, feedback: int) -> pd.DataFrame:
    """What was known of each row's actions `feedback` seconds after it.

    The click comes when the member leaves the page that showed the list (`click_after`, its read time), and dwell and scroll
    grow from then on; scroll is only measured at the end. The full values would tell a request in between its own future.
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


def _in_list_rank(values: pd.Series, request: pd.Series) -> pd.Series:
    """Place inside the list, 0 = highest, 1 = lowest; ties share their mean place, a list of one gets 0.5."""
    place = values.groupby(request).rank(ascending=False)
    size = values.groupby(request).transform("size")
    return ((place - 0.5) / size).astype(np.float64)


def _context(impressions: pd.DataFrame, clicks: pd.DataFrame, delay: int) -> pd.DataFrame:
    """The point-in-time features of every impression; `impressions` and `clicks` sorted by time."""
    out: dict[str, Any] = {}
    windows = [HOUR, 6 * HOUR, 24 * HOUR, None]
    # A click of another member counts `delay` seconds after its impression, and only if it had happened by then.
    known = impressions.assign(click=_known_actions(impressions, delay)["known_click"])
    counts = point_in_time_counts(known, "article_id", windows, ["click"], delay=delay, prior=_PRIOR)
    for window in ("1h", "6h", "24h", "all"):
        out[f"views_{window}"] = counts[f"article_id_views_{window}"]
        out[f"ctr_{window}"] = 100.0 * counts[f"article_id_click_rate_{window}"]
    for name in _RANKED:
        out[f"{name}_rank"] = _in_list_rank(out[name] if name in out else impressions[name], impressions["request"])

    # Clicks of the split's histories: both kinds of rows in one frame, of which only the clicks are counted.
    asked = impressions[["split", "member", "article_id", "time"]]
    both = pd.concat([asked, clicks[asked.columns]], ignore_index=True)
    is_click = np.arange(len(both)) >= len(asked)
    older = point_in_time_counts(both, [("split", "article_id")], [None], (), delay=delay, counted=is_click)
    own = point_in_time_counts(both, [("split", "member", "article_id"), ("split", "member")], [None], (), delay=1, counted=is_click)
    out["history_clicks"] = older["split_article_id_views_all"].to_numpy()[: len(asked)]
    out["in_history"] = own["split_member_article_id_views_all"].to_numpy()[: len(asked)]
    out["history_size"] = own["split_member_views_all"].to_numpy()[: len(asked)]
    seen = point_in_time_counts(impressions, [("member", "article_id")], [None], (), delay=1)
    out["seen"] = seen["member_article_id_views_all"]
    # Own clicks stand at the second they happened, which can be after the member's next list was shown.
    happened = impressions[impressions["click"] == 1]
    happened = happened.assign(time=happened["time"] + happened["click_after"].astype(np.int64))
    pair = ["member", "article_id", "time"]
    both = pd.concat([impressions[pair], happened[pair]], ignore_index=True)
    is_click = np.arange(len(both)) >= len(impressions)
    own = point_in_time_counts(both, [("member", "article_id")], [None], (), delay=1, counted=is_click)
    out["clicked"] = own["member_article_id_views_all"].to_numpy()[: len(impressions)]

    # One row per impression list for what belongs to the list.
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


def _article_age(events: pd.DataFrame, first_seen: pd.Series, delay: int) -> np.ndarray:
    """Hours since the article was first shown or read, as far as that was known `delay` seconds before the event; 0 if not.

    The first sight over the whole log is at or before every event that shows the article, so it holds nothing later.
    """
    age = events["time"].to_numpy() - first_seen.reindex(events["article_id"]).to_numpy()
    return np.where(age >= delay, age, 0) / HOUR


def ebnerd_schema(tasks: tuple[str, ...] = ("click",), feedback: int = 120) -> Schema:
    """The schema of `read_ebnerd`: article id and age describe the item, everything else is context of the request."""
    known: Known = "context"
    prior = 100 * _PRIOR[0] / _PRIOR[1]
    features: list[Feature] = [
        Id(name="article_id", buckets=16384),
        Number(name="article_age", transform="log1p_standardise"),
        *(Number(name=f"views_{window}", transform="log1p_standardise", missing=0.0, known=known) for window in ("1h", "6h", "24h", "all")),
        *(Number(name=f"ctr_{window}", transform="log1p_standardise", missing=prior, known=known) for window in ("1h", "6h", "24h", "all")),
        *(Number(name=f"{name}_rank", transform="standardise", missing=0.5, known=known) for name in _RANKED),
        *(
            Number(name=name, transform="log1p_standardise", missing=0.0, known=known)
            for name in ("history_clicks", "in_history", "history_size", "seen", "clicked", "list_size", "impressions_so_far")
        ),
        Number(name="gap", transform="log1p_standardise", missing=30.0 * 86400, known=known),
        Category(name="hour", vocabulary=tuple(map(str, range(24))), known=known),
        Category(name="device", vocabulary=("1", "2", "3"), known=known),
        *(Category(name=name, vocabulary=("0", "1"), known=known) for name in ("subscriber", "signed_in", "front_page")),
    ]
    makers = {"click": Task(name="click"), "long_dwell": Task(name="long_dwell", missing="unknown")}
    for task in tasks:
        if task not in makers:
            raise ValueError(f"`tasks` must be among {sorted(makers)}. Received: tasks={tasks}")
    return Schema(
        member="member",
        time="time",
        request="request",
        session="session",
        features=tuple(features),
        actions=(
            Number(name="known_click"),
            Number(name="known_dwell", transform="log1p_standardise", missing=_MEDIAN_DWELL),
            Number(name="known_scroll", transform="standardise", missing=_MEDIAN_SCROLL),
        ),
        tasks=tuple(makers[task] for task in tasks),
        feedback_delay=feedback,
    )


def read_ebnerd(
    folder: str | Path,
    tasks: tuple[str, ...] = ("click",),
    delay: int = 600,
    feedback: int = 120,
    max_history: int | None = None,
    long_dwell_seconds: float = 60.0,
) -> Log:
    """Read EB-NeRD: one row per article in view, and the click histories as rows with split "history".

    Reads either `ebnerd_behaviors.csv.gz` and `ebnerd_history.csv.gz` (a `split` column, lists separated by spaces), or the
    published folders `train/` and `validation/` with `behaviors.parquet` and `history.parquet` (needs pyarrow).

    No column of a row holds anything from that row's future. The features are counts over earlier rows: other members'
    views and clicks enter `delay` seconds late; the member's own are those of earlier seconds. Times carry no zone and
    are read as UTC. Order inside a list is shuffled in the release, so there is no position. `next_read_time` and
    `next_scroll_percentage` are `dwell` (seconds) and `scroll` (percent) of the clicked article, 0 where it was not clicked.
    They and the click itself happen over minutes, so the actions of the schema are what was known of them `feedback` seconds
    after the impression: `known_click` (the page that showed the list was left by then; `read_time` dates the click and serves
    for nothing else), `known_dwell` so far, and `known_scroll` if the reading had ended. Labels are not cut.

    | feature | meaning |
    |---|---|
    | `article_age` | hours since the article was first shown or read by anyone |
    | `views_W`, `ctr_W` | views and percent clicked of the article, W = 1h, 6h, 24h, all; ctr = 100 (clicks + 1) / (views + 12) |
    | `ctr_1h_rank`, `ctr_24h_rank`, `views_1h_rank`, `views_24h_rank`, `article_age_rank` | place inside the list, 0 highest to 1 |
    | `history_clicks` | clicks on the article in the histories of the row's split |
    | `seen`, `clicked`, `in_history` | how often this member was shown it, clicked it, has it in the history |
    | `history_size`, `impressions_so_far`, `gap` | clicks in the history, lists seen before, seconds since the last list |
    | `list_size`, `hour`, `device`, `subscriber`, `signed_in`, `front_page` | the request |

    A history click has click = 1, its dwell and scroll, a request id of its own (negative) and a session id (negative, a
    new one after half an hour); its context is missing. History clicks that stand in both splits' histories are kept once,
    those that are clicks of an impression in the log are left out; `Log.notes` has the numbers.

    Args:
        folder: where the files are.
        tasks: "click" and, if wanted, "long_dwell" (dwell >= `long_dwell_seconds`, unknown where not clicked or not measured).
        delay: seconds after which other members' views and clicks are counted.
        feedback: seconds after an impression as of which the member's own actions are stated; the schema's `feedback_delay`.
            Our choice: 120, by when 93 % of the clicks have happened.
        max_history: keep only so many of the latest history clicks of each member. None: all.
        long_dwell_seconds: what counts as a long dwell.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a missing column, a bad value.

    Example:
        >>> log = read_ebnerd("data/ebnerd_demo")  # doctest: +SKIP
        >>> log.split("validation")["click"].mean()  # doctest: +SKIP
    """
    if feedback < 1:
        raise ValueError(f"`feedback` must be at least 1 second. Received: feedback={feedback}")
    schema = ebnerd_schema(tasks, feedback)
    notes: list[str] = []
    behaviors, history = _read(folder)
    impressions = _impressions(behaviors, notes)
    clicks = _clicks(history).sort_values("time", kind="stable", ignore_index=True)
    rows = _history_rows(clicks, impressions, max_history, notes)
    sights = pd.concat([impressions[["article_id", "time"]], clicks[["article_id", "time"]]])
    first_seen = sights.groupby("article_id")["time"].min()
    impressions["article_age"] = _article_age(impressions, first_seen, delay)
    impressions = pd.concat([impressions, _context(impressions, clicks, delay)], axis=1)
    rows = rows.assign(article_age=_article_age(rows, first_seen, delay), hour=(rows["time"] // HOUR % 24).astype(np.float64))
    events = pd.concat([rows, impressions], ignore_index=True).sort_values("time", kind="stable", ignore_index=True)
    events = pd.concat([events, _known_actions(events, feedback)], axis=1)
    read = events["dwell"].where(events["click"] == 1)
    events["long_dwell"] = (read >= long_dwell_seconds).astype(np.float64).where(read.notna())
    return Log(events=events, schema=schema, name="ebnerd", notes=tuple(notes))
