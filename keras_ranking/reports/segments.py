"""Metrics by segment: history length, members new to the training, and any column of the log."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import require_column
from keras_ranking.metrics import summary_intervals
from keras_ranking.reports.scored import Scored

HISTORY, MEMBERS = "history length", "member's rows in train"
_PAST = (1, 10, 50, 200)
_SEEN = (1, 10, 100)
_MOST = 8  # segments of a column
_MEASURED = ("impression_auc", "observed_over_expected", "log_loss")


def segment_metrics(scored: Scored, columns: Sequence[str] | None, samples: int, seed: int) -> list[dict[str, Any]]:
    """One mapping for each task, column and segment.

    Args:
        scored: the rows.
        columns: of the log; None: history length, new members, the categories of the schema, and its first id.
        samples, seed: of the bootstrap.

    Raises:
        ValueError: a column that is not in the log.
    """
    found = []
    for column in _chosen(scored, columns):
        names, codes = segments_of(scored, column)
        for task in scored.labels:
            known = scored.known(task)
            for code, name in enumerate(names):
                rows = known & (codes == code)
                weights = scored.weight(task, rows)
                if rows.any() and (weights is None or weights.any()):
                    found.append({"task": task, "column": column, "segment": name, **_measured(scored, task, rows, samples, seed)})
    return found


def _measured(scored: Scored, task: str, rows: np.ndarray, samples: int, seed: int) -> dict[str, Any]:
    label, weights = scored.labels[task][rows], scored.weight(task, rows)
    runs = {}
    for run in scored.runs:
        given = (label, scored.logged[run.name][task][rows], scored.request[rows], scored.member[rows], scored.served[run.name][task][rows])
        runs[run.name] = {
            name: list(values)
            for name, values in summary_intervals(*given, names=_MEASURED, samples=samples, seed=seed, weights=weights).items()
        }
    requests = int(np.unique(scored.request[rows]).size)
    return {"rows": int(rows.sum()), "requests": requests, "rate": float(np.average(label, weights=weights)), "runs": runs}


def _chosen(scored: Scored, columns: Sequence[str] | None) -> list[str]:
    if columns is not None:
        for column in columns:
            if column not in (HISTORY, MEMBERS):
                require_column(scored.log.events, column)
        return list(dict.fromkeys((HISTORY, MEMBERS, *columns)))
    features = [feature for feature in scored.runs[0].ranker.schema.features if feature.name in scored.log.events]
    ids = [feature.name for feature in features if feature.kind == "id"][:1]
    return [HISTORY, MEMBERS, *ids, *[feature.name for feature in features if feature.kind == "category"][:4]]


def segments_of(scored: Scored, column: str) -> tuple[list[str], np.ndarray]:
    """Names of the segments, and the segment of each row."""
    if column == HISTORY:
        return _ranges(scored.past, _PAST, "event")
    events, schema = scored.log.events, scored.runs[0].ranker.schema
    train = (events["split"] == "train").to_numpy(dtype=bool)
    ids = {feature.name for feature in schema.features if feature.kind == "id"}
    if column == MEMBERS or column in ids:
        codes = pd.factorize(events[schema.member if column == MEMBERS else column], use_na_sentinel=False)[0]
        seen = np.bincount(codes[train], minlength=int(codes.max(initial=0)) + 1)
        return _ranges(seen[codes[scored.place]], _SEEN, "row")
    values = events[column].iloc[scored.place]
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype) and values.nunique() > _MOST:
        return _quarters(values.to_numpy(dtype=np.float64, na_value=np.nan))
    if pd.api.types.is_float_dtype(values.dtype) and (values.dropna() % 1 == 0).all():
        values = values.astype("Int64")  # 2, and not 2.0
    words = values.astype(object).where(values.notna(), "missing").map(str).to_numpy()
    names, codes, counts = np.unique(words, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    top = order[: _MOST if len(order) <= _MOST else _MOST - 1]
    rank = np.full(len(names), len(top))
    rank[top] = np.arange(len(top))
    return [str(name) for name in names[top]] + ([f"{len(order) - len(top)} others"] if len(order) > len(top) else []), rank[codes]


def _ranges(values: np.ndarray, edges: Sequence[int], unit: str) -> tuple[list[str], np.ndarray]:
    names = [f"no {unit}"]
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        names.append(f"{low:,} and more" if high is None else f"{low:,} to {high - 1:,}")
    return names, np.searchsorted(np.asarray(edges), values, side="right")


def _quarters(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    known = ~np.isnan(values)
    edges = np.unique(np.quantile(values[known], [0.25, 0.5, 0.75])) if known.any() else np.zeros(0)
    codes = np.searchsorted(edges, values, side="left")
    bounds = [f"{edge:.4g}" for edge in edges]
    names = [f"up to {bounds[0]}"] if bounds else ["all"]
    names += [f"{low} to {high}" for low, high in pairwise(bounds)] + ([f"above {bounds[-1]}"] if bounds else [])
    return [*names, "missing"], np.where(known, codes, len(names))
