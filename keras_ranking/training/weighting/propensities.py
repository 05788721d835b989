"""Propensities: the effect of the position shown on a label, estimated from a log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import key_faults, require_column, require_frame
from keras_ranking.schema import Schema
from keras_ranking.values import numbers_of, raise_first

METHODS = ("em", "random", "ctr")
_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class PositionCurve:
    """Propensities of the positions 1 to K for one task (the last one: K and beyond).

    Attributes:
        task, method: of the estimate.
        propensity: (K,) relative to position 1, which is 1.
        low, high: (K,) 95 % interval of the ratio to position 1 (delta method on its logarithm, rows assumed independent); NaN for
            'em', whose uncertainty does not follow from the counts alone.
        shown, acted: (K,) rows, and rows with label 1, of the estimate.
        groups, attractiveness: (G,) of 'em': the groups of rows, and their probability of a label at position 1.
        iterations: of 'em', until no value changed by more than 1e-6, or the maximum.

    Example:
        >>> log = kr.data.simulate(members=300, days=5, seed=0)
        >>> curve = kr.training.position_propensities(log.events, log.schema, "ctr", tasks=["click"], last=5)["click"]
        >>> curve.propensity.shape, float(curve.propensity[0]), bool(curve.rate[0] > curve.rate[4])
        ((5,), 1.0, True)
    """

    task: str
    method: str
    propensity: np.ndarray
    low: np.ndarray
    high: np.ndarray
    shown: np.ndarray
    acted: np.ndarray
    groups: pd.Index | None = field(default=None, repr=False)
    attractiveness: np.ndarray | None = field(default=None, repr=False)
    iterations: int = 0

    @property
    def rate(self) -> np.ndarray:
        """(K,) share of rows with label 1, by position."""
        return np.asarray(self.acted / np.maximum(self.shown, 1))

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % Wilson interval of `rate`."""
        n, p = np.maximum(self.shown, 1), self.rate
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z / (1 + _Z**2 / n) * np.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        return middle - half, middle + half

    def summary(self) -> dict[str, Any]:
        """The main numbers, for a JSON file."""
        return {
            "method": self.method,
            "propensity": self.propensity.tolist(),
            "shown": self.shown.tolist(),
            "acted": self.acted.tolist(),
            "iterations": self.iterations,
        }


def position_propensities(
    events: pd.DataFrame,
    schema: Schema,
    method: str = "em",
    tasks: Sequence[str] | None = None,
    items: str | Sequence[str] | None = None,
    randomised: str | Sequence[bool] | np.ndarray | None = None,
    boundaries: Sequence[int] | None = None,
    last: int = 60,
    prior: float = 1.0,
    iterations: int = 2000,
) -> dict[str, PositionCurve]:
    """Estimate, by task, how the probability of a label depends on the position alone.

    | method | estimate | right where |
    |---|---|---|
    | 'random' | label rate by position in the rows that `randomised` marks | items shown there do not depend on the position |
    | 'em' | click model P(label at k, item i) = theta_k gamma_i, both by EM; theta_1 = 1 | the same items are shown at several positions |
    | 'ctr' | label rate by position over all rows | biased if a policy shows better items first: a control |

    Feed-SR computes a propensity by position and action offline (stated), by an unknown method; the methods are *our choice*. 'em' is the
    position-based model of Richardson (2007) and Craswell (2008):

        label = seen * attractive,   P(seen | k) = theta_k,   P(attractive | i) = gamma_i
        theta_k = mean over rows at k of P(seen | row);   gamma_i = (a m + sum over rows of i of P(attractive | row)) / (a + rows of i)

    with m the mean attractiveness and `prior` = a: an item with few rows is shrunk to the mean, otherwise it would fit its own label.
    Rows without a position or without a label are left out; `PositionCurve.shown` has the number of rows used.

    Args:
        events: the log, one row an impression.
        schema: what the columns are.
        method: see the table.
        tasks: None: all of the schema.
        items: for 'em': the column, or columns, that identify the item of a row. None: the schema's first `Id`.
        randomised: for 'random': a column of the log, or one bool per row: whether the row's list was in random order.
        boundaries: upper bounds of ranges of positions that share one propensity, such as (1, 4). None: one propensity per position.
        last: higher positions count as this one. Feed-SR has offsets up to position 60.
        prior: a, for 'em'.
        iterations: maximum, for 'em'.

    Returns:
        The curve of each task.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: an unknown method, a schema without a position, a missing argument of the method, a position without rows below
            the last one, or no label 1 at position 1.

    Example:
        >>> log = kr.data.simulate(members=300, days=5, seed=0)
        >>> curves = kr.training.position_propensities(log.events, log.schema, "random", randomised="shuffled", boundaries=(1, 4))
        >>> bool(curves["click"].propensity[0] == 1.0 > curves["click"].propensity[4])
        True
    """
    if method not in METHODS:
        raise ValueError(f"`method` must be one of {METHODS}. Received: method={method!r}")
    if schema.position is None:
        raise ValueError("propensities by position need a schema with a position. Received: position=None")
    if last < 1:
        raise ValueError(f"`last` must be a positive integer. Received: last={last}")
    if not (np.isfinite(prior) and prior >= 0):
        raise ValueError(f"`prior` must be a finite number of at least 0. Received: prior={prior}")
    require_frame(events)
    require_column(events, schema.position)
    position, wrong = numbers_of(events[schema.position])
    raise_first(schema.position, events[schema.position], [(wrong, "must hold whole numbers, 1 = shown first (or be missing = not known)")])
    used = position >= 1
    if method == "random":
        used = used & _random_rows(events, randomised)
    place = np.where(used, np.minimum(np.nan_to_num(position, nan=1.0), last), 1).astype(np.int64)
    group, groups = _groups(events, schema, items) if method == "em" else (np.zeros(len(events), dtype=np.int64), None)
    curves = {}
    for task in [schema.task(name) for name in (tasks if tasks is not None else [task.name for task in schema.tasks])]:
        require_column(events, task.label, f"of task '{task.name}' is not in the log")
        label = task.encode(events[task.label])
        rows = used & ~np.isnan(label)
        if not rows.any():
            raise ValueError(
                f"task '{task.name}' has no row with a position and a label{' that is randomised' if method == 'random' else ''}."
            )
        cells = cells_of(group[rows], place[rows], label[rows])
        curves[task.name] = curve_of_cells(task.name, method, cells, boundaries, prior, iterations, groups)
    return curves


@dataclass(frozen=True)
class Cells:
    """Rows with a position and a label, counted by group and position.

    Attributes:
        group: (N,) int64 from 0 on, increasing.
        place: (N,) int64 from 1 on, increasing within a group.
        shown, acted: (N,) rows, and rows with label 1.
    """

    group: np.ndarray
    place: np.ndarray
    shown: np.ndarray
    acted: np.ndarray


def cells_of(group: np.ndarray, place: np.ndarray, label: np.ndarray, shown: np.ndarray | None = None) -> Cells:
    """The cells of rows, or of cells that are added up: then `label` and `shown` are those of the cells."""
    width = int(place.max(initial=1)) + 1
    cell, inverse = np.unique(group * width + place, return_inverse=True)
    count = np.bincount(inverse, weights=shown).astype(np.int64)
    return Cells(cell // width, cell % width, count, np.bincount(inverse, weights=label))


def curve_of_cells(
    task: str, method: str, cells: Cells, boundaries: Sequence[int] | None, prior: float, iterations: int, groups: pd.Index | None = None
) -> PositionCurve:
    """The curve of one task; see `position_propensities`.

    Raises:
        ValueError: a position without rows below the last one, or no label 1 at position 1.
    """
    pools = _pools(int(cells.place.max()), boundaries)
    pool = pools[cells.place - 1]
    shown = np.bincount(pool, weights=cells.shown, minlength=pools[-1] + 1).astype(np.int64)
    acted = np.bincount(pool, weights=cells.acted, minlength=pools[-1] + 1).astype(np.int64)
    if (shown == 0).any() or not acted[0]:
        what = f"no row at place {int(shown.argmin()) + 1}" if (shown == 0).any() else "no label 1 at position 1"
        raise ValueError(f"task '{task}' has {what} to compare with; pool positions with `boundaries`, or lower `last`.")
    extra: dict[str, Any] = {}
    low = high = np.full(len(shown), np.nan)
    if method == "em":
        pooled = cells_of(cells.group, pool + 1, cells.acted, cells.shown)
        theta, gamma, steps = _fit(pooled, len(groups) if groups is not None else int(cells.group.max()) + 1, prior, iterations)
        extra = {"groups": groups, "attractiveness": gamma, "iterations": steps}
    else:
        theta = (acted / shown) / (acted[0] / shown[0])
        low, high = _ratio_interval(theta, acted, shown)
    return PositionCurve(task, method, theta[pools], low[pools], high[pools], shown[pools], acted[pools], **extra)


def _random_rows(events: pd.DataFrame, randomised: Any) -> np.ndarray:
    if randomised is None:
        raise ValueError("method 'random' needs `randomised`: a column, or one bool per row. Received: randomised=None")
    if isinstance(randomised, str):
        require_column(events, randomised, "of `randomised` is not in the log")
        randomised = events[randomised]
    marks = np.asarray(randomised)
    if marks.shape != (len(events),):
        raise ValueError(f"`randomised` must have one bool per row. Received: shape {marks.shape} for {len(events)} rows")
    unknown = pd.isna(marks)
    if unknown.any():
        raise ValueError(
            f"`randomised` must have a value in every row; use False for unknown ones. Received: missing in {int(unknown.sum())} of "
            f"{len(marks)} rows"
        )
    if not np.isin(marks, [0, 1]).all():
        other = next(mark for mark in marks.tolist() if mark not in (0, 1))
        raise ValueError(f"`randomised` must hold bools, or 0 and 1. Received: {other!r}")
    return np.asarray(marks.astype(bool))


def _groups(events: pd.DataFrame, schema: Schema, items: str | Sequence[str] | None) -> tuple[np.ndarray, pd.Index]:
    if items is None:
        items = [feature.name for feature in schema.features if feature.kind == "id"][:1]
        if not items:
            raise ValueError("method 'em' needs `items`, since the schema has no Id feature. Received: items=None")
    columns = [items] if isinstance(items, str) else list(items)
    for column in columns:
        require_column(events, column, "of `items` is not in the log")
        raise_first(column, events[column], key_faults(events[column]))
    keys = pd.MultiIndex.from_frame(events[columns]) if len(columns) > 1 else pd.Index(events[columns[0]])
    codes, unique = pd.factorize(keys, use_na_sentinel=False)  # rows without an id are one group, as they are one row of an embedding table
    return codes.astype(np.int64), pd.Index(unique)


def _pools(positions: int, boundaries: Sequence[int] | None) -> np.ndarray:
    """(K,) the number of the range of each position, from 0."""
    place = np.arange(1, positions + 1)
    if boundaries is None:
        return place - 1
    bounds = np.asarray(boundaries, dtype=np.int64)
    if not len(bounds) or bounds[0] < 1 or (np.diff(bounds) <= 0).any():
        raise ValueError(f"`boundaries` must be increasing positions from 1 on. Received: boundaries={list(boundaries)}")
    return np.asarray(np.searchsorted(bounds, place, side="left"))


def _ratio_interval(theta: np.ndarray, acted: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = 1 / acted - 1 / shown + 1 / acted[0] - 1 / shown[0]
        half = _Z * np.sqrt(variance)
        low, high = theta * np.exp(-half), theta * np.exp(half)
    low[0] = high[0] = 1.0
    return np.where(acted > 0, low, 0.0), np.where(acted > 0, high, np.inf)


def _fit(cells: Cells, groups: int, prior: float, iterations: int) -> tuple[np.ndarray, np.ndarray, int]:
    """EM over cells of (group, position): the rows of a cell have one posterior."""
    of_group, of_pool = cells.group, cells.place - 1
    pools = int(of_pool.max()) + 1
    shown, acted = cells.shown.astype(np.float64), cells.acted
    rows, places = np.bincount(of_group, weights=shown, minlength=groups), np.bincount(of_pool, weights=shown, minlength=pools)
    theta = np.minimum(
        np.bincount(of_pool, weights=acted, minlength=pools) / places / max(acted[of_pool == 0].sum() / places[0], 1e-12), 1.0
    )
    theta = np.maximum(theta, 1e-3)
    mean = min(max(acted.sum() / (shown * theta[of_pool]).sum(), 1e-9), 1 - 1e-9)
    gamma = np.full(groups, mean)
    for step in range(1, iterations + 1):
        seen, liked = theta[of_pool], gamma[of_group]
        missed = np.maximum(1 - seen * liked, 1e-12)
        idle = shown - acted
        seen_total = np.bincount(of_pool, weights=acted + idle * seen * (1 - liked) / missed, minlength=pools)
        liked_total = np.bincount(of_group, weights=acted + idle * liked * (1 - seen) / missed, minlength=groups)
        moved = seen_total / places
        mean = liked_total.sum() / rows.sum()
        attractive = np.full(groups, mean)  # value of a group without rows
        np.divide(prior * mean + liked_total, prior + rows, out=attractive, where=prior + rows > 0)
        # The first step changes gamma alone: with equal gammas, theta is at its fixed point.
        change = max(float(np.abs(moved - theta).max()), float(np.abs(attractive - gamma).max()))
        theta, gamma = moved, attractive
        if change < 1e-6:
            return theta, gamma, step
    return theta, gamma, iterations
