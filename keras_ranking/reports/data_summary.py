"""What is in the log: rows by split, columns, and how far the scored rows have moved from the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.plots.shares import stability_index
from keras_ranking.reports.scored import Scored
from keras_ranking.values import numbers_of

_BINS, _VALUES = 10, 9
_SPLITS = ("history", "train", "validation", "test", "new_members")


def split_table(scored: Scored) -> list[dict[str, Any]]:
    """One mapping for each split: rows, requests, members, first and last time, share of label 1 by task."""
    events, schema = scored.log.events, scored.runs[0].ranker.schema
    times, _ = schema.model_seconds(events[schema.time], scored.log.round)
    found = []
    for name in _SPLITS:
        rows = (events["split"] == name).to_numpy(dtype=bool)
        if not rows.any():
            continue
        part = events[rows]
        ends = [pd.Timestamp(schema.epoch + int(at), unit="s").strftime("%Y-%m-%d %H:%M") for at in (times[rows].min(), times[rows].max())]
        labels = {task: numbers_of(part[schema.task(task).label])[0] for task in scored.labels}
        found.append(
            {
                "split": name,
                "rows": int(rows.sum()),
                "requests": int(part[schema.request].nunique()),
                "members": int(part[schema.member].nunique()),
                "first": ends[0],
                "last": ends[1],
                "rates": {task: float(np.nanmean(values)) if np.isfinite(values).any() else None for task, values in labels.items()},
            }
        )
    return found


def column_table(scored: Scored) -> list[dict[str, Any]]:
    """One mapping for each column that a run reads: kind, missing values, distinct values, means, and the drift from train to scored rows.

    `psi` is the population stability index over tenths of the training rows of a number, or over the nine most frequent values and the rest
    of any other column; `unseen` the share of scored rows whose value no training row has.
    """
    events, found = scored.log.events, []
    train, rows = events[(events["split"] == "train").to_numpy(dtype=bool)], events.iloc[scored.place]
    read = {name.partition("_")[2] for run in scored.runs for name in run.ranker.serving_model.input}
    for feature in scored.runs[0].ranker.schema.features:
        if feature.name not in events or feature.name not in read:
            continue
        before, after = train[feature.name], rows[feature.name]
        about: dict[str, Any] = {"column": feature.name, "kind": feature.kind, "known": feature.known}
        about["missing"] = [float(values.isna().mean()) for values in (before, after)]
        if feature.kind == "number" or feature.kind == "count":
            about |= _number(before, after)
        elif feature.kind in ("id", "category"):
            about |= _values(before, after)
        found.append(about)
    return found


def _number(before: pd.Series, after: pd.Series) -> dict[str, Any]:
    first, second = (numbers_of(values)[0] for values in (before, after))
    first, second = first[np.isfinite(first)], second[np.isfinite(second)]
    if not first.size or not second.size:
        return {}
    edges = np.unique(np.quantile(first, np.linspace(0, 1, _BINS + 1)[1:-1]))
    shares = [
        np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1) / values.size for values in (first, second)
    ]
    bins = [f"≤ {edge:.3g}" for edge in edges] + [f"> {edges[-1]:.3g}"]
    return {
        "distinct": int(np.unique(first).size),
        "mean": [float(first.mean()), float(second.mean())],
        "psi": stability_index(*shares),
        "bins": bins,
        "shares": [share.tolist() for share in shares],
    }


def _values(before: pd.Series, after: pd.Series) -> dict[str, Any]:
    codes, values = pd.factorize(pd.concat([before, after], ignore_index=True))
    first, second = (part[part >= 0] for part in (codes[: len(before)], codes[len(before) :]))
    if not first.size or not second.size:
        return {}
    counts = np.bincount(first, minlength=len(values))
    top = np.argsort(-counts, kind="stable")[: min(_VALUES, len(values))]
    rank = np.full(len(values), len(top))
    rank[top] = np.arange(len(top))
    shares = [np.bincount(rank[part], minlength=len(top) + 1) / part.size for part in (first, second)]
    return {
        "distinct": int((counts > 0).sum()),
        "unseen": float((counts[second] == 0).mean()),
        "psi": stability_index(*shares),
        "bins": [str(values[code]) for code in top] + ["others"],
        "shares": [share.tolist() for share in shares],
    }
