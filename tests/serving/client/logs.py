"""A log of the stand-in's schema, for the tests of clients."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tests.serving.calling import frames


def events(members=6, requests_each=3, shown=4, seed=0):
    """A log of the stand-in's schema, with its rows in random order."""
    rng = np.random.default_rng(seed)
    rows = []
    for member in range(members):
        for request in range(requests_each):
            _, items, _ = frames(0, shown, seed=100 * member + request)
            items = items.assign(
                member_id=f"m{member}", request_id=f"r{member}-{request}", shown_at=1_790_000_000 + 5000 * request + member,
                rank=range(1, shown + 1),
                click=rng.integers(0, 2, shown), like=rng.integers(0, 2, shown), dwell_seconds=rng.exponential(9, shown),
            )  # fmt: skip
            rows.append(items)
    log = pd.concat(rows, ignore_index=True)
    return log.iloc[rng.permutation(len(log))].reset_index(drop=True).rename(index=lambda row: f"row {row}")
