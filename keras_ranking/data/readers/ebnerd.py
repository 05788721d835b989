"""EB-NeRD: news impressions with the clicked and the not clicked articles of each list (Kruse et al., arXiv:2410.03432)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking.column_base import Known
from keras_ranking.columns import Category, Feature, Id, Number, Task
from keras_ranking.data.readers.ebnerd_features import CLICK_PRIOR, HOUR, RANKED, article_age_hours, context_features, known_actions
from keras_ranking.data.readers.ebnerd_rows import history_clicks, history_rows, impression_rows, read_files
from keras_ranking.data.readers.log import Log
from keras_ranking.schema import Schema

_MEDIAN_DWELL, _MEDIAN_SCROLL = 20.0, 100.0  # replace the missing values of the few clicks without a measurement


def ebnerd_schema(tasks: tuple[str, ...] = ("click",), feedback: int = 120) -> Schema:
    """The schema of `read_ebnerd`: article id and age describe the item, everything else is context of the request."""
    known: Known = "context"
    prior = 100 * CLICK_PRIOR[0] / CLICK_PRIOR[1]
    features: list[Feature] = [
        Id(name="article_id", buckets=16384),
        Number(name="article_age", transform="log1p_standardise"),
        *(Number(name=f"views_{window}", transform="log1p_standardise", missing=0.0, known=known) for window in ("1h", "6h", "24h", "all")),
        *(Number(name=f"ctr_{window}", transform="log1p_standardise", missing=prior, known=known) for window in ("1h", "6h", "24h", "all")),
        *(Number(name=f"{name}_rank", transform="standardise", missing=0.5, known=known) for name in RANKED),
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

    No feature of a row uses anything later than the row. The features are counts over earlier rows: other members'
    views and clicks enter `delay` seconds late; the member's own are those of earlier seconds. Times carry no zone and
    are read as UTC. Order inside a list is shuffled in the release, so there is no position. `next_read_time` and
    `next_scroll_percentage` are `dwell` (seconds) and `scroll` (percent) of the clicked article, 0 where it was not clicked.
    Click, dwell and scroll happen over minutes, so the actions of the schema are what was known of them `feedback` seconds after
    the impression: `known_click` (the page that showed the list was left by then; `read_time` is used for the time of the click
    only), `known_dwell` so far, and `known_scroll` if the reading had ended. Labels use the full values.

    | feature | meaning |
    |---|---|
    | `article_age` | hours since the article was first shown or read by anyone |
    | `views_W`, `ctr_W` | views and percent clicked of the article, W = 1h, 6h, 24h, all; ctr = 100 (clicks + 1) / (views + 12) |
    | `ctr_1h_rank`, `ctr_24h_rank`, `views_1h_rank`, `views_24h_rank`, `article_age_rank` | rank inside the list, 0 highest to 1 |
    | `history_clicks` | clicks on the article in the histories of the row's split |
    | `seen`, `clicked`, `in_history` | how often the member was shown the article, clicked it, has it in the history |
    | `history_size`, `impressions_so_far`, `gap` | clicks in the history, lists seen before, seconds since the last list |
    | `list_size`, `hour`, `device`, `subscriber`, `signed_in`, `front_page` | the request |

    A history click has click = 1, its dwell and scroll, its own request id (negative) and a session id (negative, a new one
    after half an hour); its context is missing. History clicks in both splits' histories are kept once; those that are clicks of
    an impression in the log are left out; `Log.notes` has the numbers.

    Args:
        folder: where the files are.
        tasks: "click" and optionally "long_dwell" (dwell >= `long_dwell_seconds`, unknown if not clicked or not measured).
        delay: seconds after which other members' views and clicks are counted.
        feedback: seconds after an impression at which the member's own actions are taken; the schema's `feedback_delay`.
            Our choice: 120, when 93 % of the clicks have happened.
        max_history: keep only this number of the latest history clicks of each member. None: all.
        long_dwell_seconds: shortest dwell that is long.

    Returns:
        `Log` with the name "ebnerd".

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: a missing column, a bad value.

    Example:
        >>> lists = pd.DataFrame(
        ...     {
        ...         "split": ["train"],
        ...         "impression_id": 1,
        ...         "article_id": None,
        ...         "impression_time": "2023-05-20 07:00:00",
        ...         "read_time": 9.0,
        ...         "device_type": 2,
        ...         "article_ids_inview": "31 32",
        ...         "article_ids_clicked": "32",
        ...         "user_id": 7,
        ...         "is_sso_user": False,
        ...         "is_subscriber": True,
        ...         "session_id": 4,
        ...         "next_read_time": 45.0,
        ...         "next_scroll_percentage": 80.0,
        ...     }
        ... )
        >>> clicks = pd.DataFrame(
        ...     {
        ...         "split": ["train"],
        ...         "user_id": 7,
        ...         "impression_time_fixed": "2023-05-18T07:00:00",
        ...         "scroll_percentage_fixed": "60.0",
        ...         "article_id_fixed": "30",
        ...         "read_time_fixed": "12.0",
        ...     }
        ... )
        >>> lists.to_csv("ebnerd_behaviors.csv.gz", index=False)
        >>> clicks.to_csv("ebnerd_history.csv.gz", index=False)
        >>> log = kr.data.read_ebnerd(".")
        >>> log.events[["split", "article_id", "click", "known_dwell"]].values.tolist()
        [['history', 30, 1, 12.0], ['train', 31, 0, 0.0], ['train', 32, 1, 45.0]]
    """
    if feedback < 1:
        raise ValueError(f"`feedback` must be at least 1 second. Received: feedback={feedback}")
    schema = ebnerd_schema(tasks, feedback)
    notes: list[str] = []
    behaviors, history = read_files(folder)
    impressions = impression_rows(behaviors, notes)
    clicks = history_clicks(history).sort_values("time", kind="stable", ignore_index=True)
    rows = history_rows(clicks, impressions, max_history, notes)
    sights = pd.concat([impressions[["article_id", "time"]], clicks[["article_id", "time"]]])
    first_seen = sights.groupby("article_id")["time"].min()
    impressions["article_age"] = article_age_hours(impressions, first_seen, delay)
    impressions = pd.concat([impressions, context_features(impressions, clicks, delay)], axis=1)
    rows = rows.assign(article_age=article_age_hours(rows, first_seen, delay), hour=(rows["time"] // HOUR % 24).astype(np.float64))
    events = pd.concat([rows, impressions], ignore_index=True).sort_values("time", kind="stable", ignore_index=True)
    events = pd.concat([events, known_actions(events, feedback)], axis=1)
    read = events["dwell"].where(events["click"] == 1)
    events["long_dwell"] = (read >= long_dwell_seconds).astype(np.float64).where(read.notna())
    return Log(events=events, schema=schema, name="ebnerd", notes=tuple(notes), preset="ebnerd")
