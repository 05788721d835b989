"""Count: a number of the context that is counted from the log itself, point in time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from keras_ranking.column_base import NAME, Known
from keras_ranking.number_column import Number
from keras_ranking.ops.messages import shown
from keras_ranking.values import INT32_MAX

_PRIOR = (1.0, 20.0)


def window_name(window: int | None) -> str:
    """'all' for None, else the window in its largest whole unit up to hours: '1h', '24h', '15m', '90s'."""
    if window is None:
        return "all"
    for unit, seconds in (("h", 3600), ("m", 60)):
        if window % seconds == 0:
            return f"{window // seconds}{unit}"
    return f"{window}s"


class Count(Number):
    """A number of the context that the log does not hold: views, actions or the rate of a key, counted as known when a row was scored.

    For row i, with the key k, the window w in seconds and d = `Schema.feedback_delay`, over the rows j of the log with the same key and

        t_i - d - w < t_j <= t_i - d                    (w = None: t_j <= t_i - d)

        views = number of these rows
        sum   = sum of the action's column over them
        rate  = (sum + a) / (views + b)                 with prior = (a, b)

    Rows of every split count. `kr.training.train` counts, and saves the state with the run; `kr.data.with_counts` adds the columns to a
    log; `PointInTime.with_features` reads the state for a request. To a model it is a `Number` of the context. A row whose key is missing
    has 0 views and the rate a / b.

    Args:
        key: a column, or a tuple of columns (their combination): of the log and of a request, not known only after scoring.
        action: column that is summed, 0/1 or any finite amount; not for views.
        of: 'rate', 'sum' or 'views'.
        window: length in seconds, at least 1; None: all rows so far.
        prior: (a, b) of a rate, a >= 0 and b > 0. None: (1, 20), one action in 20 views (our choice).
        where: column of 0/1 or booleans: the rows that count. None: all.
        name: None: that of `point_in_time_counts`, such as 'item_id_click_rate_24h'.
        transform: as `Number`. None: 'standardise' for a rate, 'log1p_standardise' for views and sums.
        mean, std, missing, bins, edges: as `Number`.

    Example:
        >>> kr.Count("item_id", action="click", window=86_400).name
        'item_id_click_rate_24h'
        >>> kr.Count(("member_id", "topic"), of="views").name
        'member_id_topic_views_all'
    """

    kind: Literal["count"] = "count"  # type: ignore[assignment]
    name: str
    known: Known = "context"
    key: str | tuple[str, ...]
    action: str | None = None
    of: Literal["views", "sum", "rate"] = "rate"
    window: int | None = Field(default=None, ge=1, le=INT32_MAX)
    prior: tuple[float, float] | None = None
    where: str | None = None

    def __init__(self, key: str | Sequence[str] | None = None, **settings: Any) -> None:
        given: dict[str, Any] = {} if key is None else {"key": key}
        super().__init__(**given, **settings)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "key" not in data:
            return data
        key, of, action = data["key"], data.get("of", "rate"), data.get("action")
        columns = (key,) if isinstance(key, str) else tuple(key) if isinstance(key, (tuple, list)) else ()
        if not columns or not all(isinstance(column, str) and column for column in columns) or len(set(columns)) < len(columns):
            raise ValueError(f"`key` must be a column, or a tuple of different columns. Received: key={shown(key)}")
        data = {**data, "key": columns[0] if len(columns) == 1 else columns}
        if of == "views" and action is not None:
            raise ValueError(f"of='views' counts rows and has no `action`. Received: action={shown(action)}")
        if of in ("sum", "rate") and action is None:
            raise ValueError(f"of={of!r} needs `action`, the column that is summed. Received: action=None")
        if of != "rate" and data.get("prior") is not None:
            raise ValueError(f"`prior` is of a rate. Received: prior={shown(data['prior'])} with of={shown(of)}")
        if data.get("prior") is None:
            data["prior"] = _PRIOR if of == "rate" else None
        if data.get("transform") is None:
            data["transform"] = "standardise" if of == "rate" else "log1p_standardise"
        window = data.get("window")
        if data.get("name") is None and (window is None or (isinstance(window, int) and window >= 1)):
            what = {"views": "views", "sum": action, "rate": f"{action}_rate"}.get(of, of)
            data["name"] = f"{'_'.join(columns)}_{what}_{window_name(window)}"
        return data

    @field_validator("prior", mode="before")
    @classmethod
    def _check_prior(cls, prior: Any) -> Any:
        if prior is None:
            return None
        pair = tuple(prior) if isinstance(prior, (tuple, list)) else ()
        if (
            len(pair) != 2
            or not all(isinstance(part, (int, float)) and math.isfinite(part) for part in pair)
            or pair[0] < 0
            or pair[1] <= 0
        ):
            raise ValueError(f"`prior` must be (a, b) with a >= 0 and b > 0. Received: prior={shown(prior)}")
        return tuple(map(float, pair))

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            rule = "must be letters, digits and underscores, not starting with a digit"
            raise ValueError(f"`name` {rule}. Received: name={name!r}; give the count another one: Count(..., name='...')")
        return name

    @field_validator("known")
    @classmethod
    def _check_known(cls, known: str) -> str:
        if known != "context":
            raise ValueError(f"`known` of a count must be 'context': it is of the moment when a row is scored. Received: known={known!r}")
        return known

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns of the key."""
        return (self.key,) if isinstance(self.key, str) else self.key

    @property
    def sources(self) -> tuple[str, ...]:
        """The columns of the log that it is counted from."""
        return tuple(dict.fromkeys(name for name in (*self.key_columns, self.action, self.where) if name is not None))
