"""Numbers of an item relative to the list in which it was shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import key_codes, require_column, require_frame
from keras_ranking.values import numbers_of, raise_first

KINDS = ("minus_mean", "minus_max", "rank")


def list_relative(events: pd.DataFrame, columns: Sequence[str], request: str, kinds: Sequence[str] = KINDS) -> pd.DataFrame:
    """Each number minus the mean and minus the maximum of its list, and its rank in it.

    For row i of a list R, over the rows of R whose number is known:

        minus_mean = x_i - mean_R x         minus_max = x_i - max_R x         rank = (place of x_i - 0.5) / size of R

    Place 1 is the highest; equal numbers share the mean of their places. So `rank` is above 0 and below 1, and 0.5 in a list of one. All
    are known when the list is scored, if the columns are.

    Args:
        events: one row per impression.
        columns: numbers; NaN is unknown.
        request: column of the list.
        kinds: which of 'minus_mean', 'minus_max', 'rank'.

    Returns:
        DataFrame with the index of `events`: float64 `{column}_{kind}`, NaN where the number is unknown.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: an unknown column or kind, a column that is no number, infinity, a row without a request.

    Example:
        >>> log = pd.DataFrame({"list": [1, 1, 1, 2], "views": [4.0, 8.0, 6.0, 3.0]})
        >>> kr.data.list_relative(log, ["views"], "list")["views_minus_max"].tolist()
        [-4.0, 0.0, -2.0, 0.0]
    """
    require_frame(events)
    columns, kinds = [columns] if isinstance(columns, str) else list(columns), [kinds] if isinstance(kinds, str) else list(kinds)
    for column in (*columns, request):
        require_column(events, column)
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"`kinds` must be among {KINDS}. Received: {unknown}")
    codes = key_codes(events, (request,))
    raise_first(request, events[request], [(codes < 0, "must name the list of each row")])
    out: dict[str, np.ndarray] = {}
    for column in columns:
        values, no_number = numbers_of(events[column])
        raise_first(column, events[column], [(no_number, "must hold numbers"), (np.isinf(values), "must be finite")])
        found = _of_lists(values, codes)
        out |= {f"{column}_{kind}": found[kind] for kind in kinds}
    return pd.DataFrame(out, index=events.index)


def _of_lists(values: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    grouped = pd.Series(values).groupby(codes)
    place, size = grouped.rank(ascending=False), grouped.transform("count")
    return {
        "minus_mean": values - grouped.transform("mean").to_numpy(),
        "minus_max": values - grouped.transform("max").to_numpy(),
        "rank": ((place - 0.5) / size).to_numpy(dtype=np.float64),
    }
