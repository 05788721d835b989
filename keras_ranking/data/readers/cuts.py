"""The cut of a log by time, where it has no column `split`."""

from __future__ import annotations

import numpy as np
import pandas as pd

from keras_ranking.schema import Schema
from keras_ranking.values import native_series

TRAIN_SHARE = 0.8  # as the command line cuts


def cut_by_time(events: pd.DataFrame, schema: Schema, train_share: float) -> tuple[np.ndarray, str]:
    """The split of each row, "train" for this share of the requests by time and then "validation", and a note of it."""
    time, faults = schema.model_seconds(events[schema.time], round="floor")
    usable = ~np.any([rows for rows, _ in faults], axis=0) if faults else np.ones(len(events), dtype=bool)
    requests = native_series(events[schema.request])[usable]
    try:
        first = ~requests.duplicated().to_numpy()
    except TypeError:  # lists, which the checks of a log find
        first = ~requests.map(repr).duplicated().to_numpy()
    times = np.sort(time[usable][first]) if first.any() else np.zeros(1, dtype=np.int64)
    # One time per request, so cutting the requests in order of time keeps every list whole.
    edge = times[min(int(np.ceil(len(times) * train_share)), len(times) - 1)]
    stamp = pd.Timestamp(int(edge) + schema.epoch, unit="s")
    note = f"requests before {stamp} UTC ({train_share:.0%} of them) are 'train', the rest 'validation'"
    return np.where(usable & (time >= edge), "validation", "train"), note
