"""The files of EB-NeRD as rows: one per impression and article in view, and one per click of the histories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.readers.log import find_file, require_columns
from keras_ranking.values import raise_first, seconds_of

SPLITS = ("train", "validation")
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
_CLOCK_SKEW = 5  # largest difference in seconds between the clocks of impressions and of openings (measured on the release)
_SESSION_GAP = 1800  # history clicks have no session: a pause of half an hour starts a new one (our choice)


def _lists(column: pd.Series, what: str) -> tuple[np.ndarray, list[Any]]:
    """The length of each list of a column, and all values in one flat list. Texts are split at spaces."""
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
    """Times without a zone, read as UTC, in seconds, rounded down."""
    stamps = pd.to_datetime(pd.Series(values))
    seconds, faults = seconds_of(stamps, round="floor")
    raise_first("impression_time", stamps, faults)
    return seconds


def read_files(folder: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Behaviours and history as one frame each, with a `split` column; from gzip CSV files or the published folders."""
    root = Path(folder).expanduser()
    if (root / "ebnerd_behaviors.csv.gz").exists() or not any((root / split).is_dir() for split in SPLITS):
        what = "EB-NeRD behaviours (or the folders train/ and validation/ of the release)"
        behaviors_at = find_file(root, ["ebnerd_behaviors.csv.gz"], what)
        history_at = find_file(root, ["ebnerd_history.csv.gz"], "EB-NeRD history")
        # A list of one unmeasured scroll is the text "nan", which is not a missing list: only an empty field is missing.
        # The dtype `str` keeps a list of one number from becoming a number.
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


def impression_rows(behaviors: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """One row per (impression, article in view), sorted by time; inside a list in the list's order."""
    behaviors = behaviors.assign(time=_unix(behaviors["impression_time"])).sort_values("time", kind="stable", ignore_index=True)
    for column in ("impression_id", "user_id", "session_id"):
        missing = int(behaviors[column].isna().sum())
        if missing:
            raise ValueError(f"column '{column}' must hold a value in every row of the behaviours; {missing} have none.")
    if (behaviors["impression_id"] < 0).any():
        raise ValueError("column 'impression_id' must not be negative: negative ids are used for the clicks of the history.")
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
        notes.append(f"{int(again.sum())} repeated clicks on an article of one list count once")
        clicked_pairs = clicked_pairs[~again]
    clicks = np.bincount(clicked_pairs.get_level_values(0), minlength=len(behaviors))
    outside = ~clicked_pairs.isin(shown_pairs)
    if outside.any():
        notes.append(f"{int(outside.sum())} clicks on an article outside the list shown are left out")
    click = shown_pairs.isin(clicked_pairs)
    take = behaviors.iloc[row]
    # The next page belongs to the click of its list; of a list with several clicks the release does not say to which.
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


def history_clicks(history: pd.DataFrame) -> pd.DataFrame:
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


def history_rows(clicks: pd.DataFrame, impressions: pd.DataFrame, max_history: int | None, notes: list[str]) -> pd.DataFrame:
    """The history clicks that are not clicks of the log, each as its own request with a negative id.

    The two splits' histories overlap, and that of `validation` covers the days whose impressions are in `train`.
    """
    rows = clicks.sort_values(["time", "member"], kind="stable")
    repeated = rows.duplicated(["member", "time", "article_id"]).to_numpy()
    notes.append(f"{int(repeated.sum())} of {len(rows)} history clicks are repetitions and are left out")
    rows = rows[~repeated]
    known = impressions.loc[impressions["click"] == 1, ["time", "member", "article_id"]].sort_values("time", kind="stable")
    # A history click is the opening of the article, seconds to minutes after its impression. Impressions after the opening are not
    # compared: which rows exist must not depend on later clicks.
    opened = rows[["time", "member", "article_id"]].assign(time=rows["time"] + _CLOCK_SKEW)
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
