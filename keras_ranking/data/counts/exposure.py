"""Rates over what could be expected of the exposure, not over views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.count_column import window_name
from keras_ranking.data.counts.windowed import Key, point_in_time_counts
from keras_ranking.data.log_columns import key_codes, require_column, require_frame
from keras_ranking.values import numbers_of, raise_first

_EXPECTED = "expected outcome of a row"


def exposure_corrected_rates(
    events: pd.DataFrame,
    keys: Key | Sequence[Key],
    windows: Sequence[int | None],
    outcome: str = "click",
    expected: str = "list_size",
    request: str | None = None,
    time: str = "time",
    delay: int = 600,
    prior: float = 1.0,
    counted: Any = None,
    round: str | None = None,
) -> pd.DataFrame:
    """Outcomes of each row's key over the sum of what was expected of its exposures, point in time.

    Over the rows of `point_in_time_counts` (same key, and t_i - delay - w < t_j <= t_i - delay):

        rate = (sum_j outcome_j + prior) / (sum_j expected_j + prior)

    1 is what any item would have had in the same places; a rate over views mistakes a short list, or a high position, for merit.

    | `expected` | expected_j |
    |---|---|
    | 'list_size' | 1 / number of rows of the list: one outcome a list, by chance |
    | the name of a column | its values, such as the share that `ChoiceStrengths` gives, or a rate by position |

    Args:
        events: one row per impression.
        keys, windows, time, delay, counted, round: as `point_in_time_counts`.
        outcome: column of the outcome, 0/1 or any finite amount.
        expected: see the table. A column must hold what was known when its row was shown.
        request: column of the list, for 'list_size'.
        prior: outcomes and expected outcomes added, above 0. Our choice: 1.

    Returns:
        DataFrame with the index of `events`: float64 `{key}_{outcome}_per_{expected}_{window}`.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: as `point_in_time_counts`; no `request` for 'list_size'; expected outcomes that are negative or not finite.

    Example:
        >>> log = pd.DataFrame({"time": [0, 0, 900, 900, 900], "list": [1, 1, 2, 2, 2], "item": [7, 8, 7, 8, 9], "click": [1, 0, 0, 0, 1]})
        >>> rates = kr.data.exposure_corrected_rates(log, "item", [None], request="list")
        >>> rates["item_click_per_list_size_all"].round(3).tolist()
        [1.0, 1.0, 1.333, 0.667, 1.0]
    """
    require_frame(events)
    if not 0 < prior < np.inf:
        raise ValueError(f"`prior` must be a finite number above 0. Received: prior={prior}")
    amounts = expected_outcomes(events, expected, request)
    frame = events.assign(**{_EXPECTED: amounts})
    counts = point_in_time_counts(frame, keys, windows, [outcome, _EXPECTED], time, delay, (0.0, 1.0), counted, round)
    out = {}
    for key in [keys] if isinstance(keys, (str, tuple)) else keys:
        label = key if isinstance(key, str) else "_".join(key)
        for window in map(window_name, windows):
            got, hoped = counts[f"{label}_{outcome}_{window}"], counts[f"{label}_{_EXPECTED}_{window}"]
            out[f"{label}_{outcome}_per_{expected}_{window}"] = (got + prior) / (hoped + prior)
    return pd.DataFrame(out, index=events.index)


def expected_outcomes(events: pd.DataFrame, expected: str, request: str | None, counted: np.ndarray | None = None) -> np.ndarray:
    """What was expected of each row; a column may lack it in rows that do not count."""
    mask = np.ones(len(events), dtype=bool) if counted is None else counted
    if expected != "list_size":
        require_column(events, expected)
        values, _ = numbers_of(events[expected])
        raise_first(expected, events[expected], [(mask & ~((values >= 0) & (values < np.inf)), "must hold finite numbers, 0 or more")])
        return np.where(mask, values, 0.0)
    if request is None:
        raise ValueError("expected='list_size' needs `request`, the column of the list. Received: request=None")
    require_column(events, request)
    codes = key_codes(events, (request,))
    raise_first(request, events[request], [(mask & (codes < 0), "must name the list of each row")])
    sizes = np.bincount(codes + 1) if len(codes) else np.zeros(0)
    return np.asarray(1.0 / sizes[codes + 1], dtype=np.float64)
