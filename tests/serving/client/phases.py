"""Requests for the graph with the signatures `raw`, `encode_history` and `score_candidates`."""

from __future__ import annotations

import numpy as np
import pandas as pd


def phase_frames(events=3, candidates=2, seed=0):
    rng = np.random.default_rng(seed)
    now = 1_790_000_000
    history = pd.DataFrame(
        {"t": now - 10 * np.arange(events, 0, -1), "item": ["ab" * (1 + k) for k in range(events)], "click": rng.integers(0, 9, events)}
    )
    return history, pd.DataFrame({"item": ["x", "xyz", None][:candidates], "age": rng.integers(1, 50, candidates).astype(float)}), now


def raw_want(history, candidates, now):
    total = (history["item"].str.len() + history["click"]).sum() + (now - (history["t"].max() if len(history) else 0))
    return total + 1000.0 * (candidates["age"] + candidates["item"].fillna("").str.len())
