"""A log with columns that describe the member, of each kind, and the same columns as known with the context."""

from __future__ import annotations

from typing import Any

import numpy as np

import keras_ranking as kr

WIDTH = 6
OF_MEMBER = ("profile", "country", "home", "tenure", "interests")


def columns(known: str, width: int = WIDTH) -> tuple[Any, ...]:
    """One column of each kind."""
    return (
        kr.Vector("profile", size=width, missing=0.0, known=known),
        kr.Category("country", vocabulary=("DK", "SE", "NO"), known=known),
        kr.Id("home", buckets=50, known=known),
        kr.Number("tenure", transform="log1p_standardise", missing=3.0, known=known),
        kr.Ids("interests", buckets=40, size=3, known=known),
    )


def with_members(log: Any, width: int = WIDTH) -> Any:
    """The log with the values of these columns: some missing, and of some members other ones in later requests."""
    events, rng = log.events, np.random.default_rng(0)
    request = events.groupby("request_id", sort=False)
    first = request["member_id"].first()
    named: dict[str, list[Any]] = {name: [] for name in OF_MEMBER}
    held: dict[Any, dict[str, Any]] = {}
    for member in first:
        if member not in held or rng.random() < 0.1:
            held[member] = {
                "profile": rng.normal(size=width).astype("float32").tolist() if rng.random() < 0.9 else None,
                "country": rng.choice(["DK", "SE", "NO", "FI"]),
                "home": int(rng.integers(0, 40)),
                "tenure": float(rng.integers(0, 90)) if rng.random() < 0.9 else None,
                "interests": rng.integers(0, 99, rng.integers(0, 4)).tolist(),
            }
        for name in OF_MEMBER:
            named[name].append(held[member][name])
    values = {name: events["request_id"].map(dict(zip(first.index, values, strict=True))) for name, values in named.items()}
    return events.assign(**values)


def log_of(log: Any, known: str = "member", width: int = WIDTH) -> Any:
    """The log with these columns, fitted."""
    events = with_members(log, width)
    schema = log.schema.model_copy(update={"features": (*log.schema.features, *columns(known, width))})
    return kr.data.Log(events, schema.fit(events), "with members")
