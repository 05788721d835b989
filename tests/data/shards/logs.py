"""A log with what makes shards differ if something is wrong: ties, text ids, missing values, several splits, one hot member."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

import keras_ranking as kr


def mixed_log(rows: int = 600, seed: int = 0) -> kr.data.Log:
    """Rows of 40 members, one of whom has 5 % of all; times repeat, texts and numbers are missing here and there."""
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 5, size=rows)
    request = np.repeat(np.arange(rows), size)[:rows]
    requests = int(request[-1]) + 1
    member = np.where(rng.random(requests) < 0.05, 0, rng.integers(1, 40, size=requests))
    time = np.sort(1_700_000_000 + rng.integers(0, 300, size=requests) * 60)
    frame = pd.DataFrame(
        {
            "member": np.array([f"m{number:02d}é" for number in member[request]], dtype=object),
            "at": time[request],
            "request": np.array([f"r{number * 7919 % 10007}" for number in request], dtype=object),
            "rank": pd.Series(request).groupby(request).cumcount().to_numpy() + 1,
            "item": rng.integers(0, 30, size=rows),
            "topic": rng.choice(np.array(["a", "b", None], dtype=object), size=rows),
            "age": rng.exponential(10, size=rows).astype(np.float32).astype(np.float64),
            "price": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(size=rows)),
            "click": rng.integers(0, 2, size=rows),
            "like": np.where(rng.random(rows) < 0.3, np.nan, rng.integers(0, 2, size=rows)),
            "seen_after": rng.integers(0, 90, size=rows),
            "unused": "x",
        }
    )
    edges = np.quantile(time, [0.05, 0.7, 0.85])
    split = np.array(["history", "train", "validation", "test"], dtype=object)[np.searchsorted(edges, time, side="right")]
    schema = kr.Schema(
        member="member",
        time="at",
        request="request",
        position="rank",
        features=[
            kr.Id("item", buckets=64),
            kr.Id("topic", buckets=16),
            kr.Number("age", transform="log1p_standardise"),
            kr.Number("price", transform="standardise", missing=0.0),
        ],
        actions=[kr.Number("click")],
        tasks=["click", kr.Task("like", missing="unknown")],
    )
    return kr.data.Log(frame.assign(split=split[request]), schema, "mixed")


def shuffled(log: kr.data.Log) -> kr.data.Log:
    """The same rows in another order."""
    return kr.data.Log(log.events.sample(frac=1, random_state=3).reset_index(drop=True), log.schema, log.name)


def with_two_members(log: kr.data.Log) -> kr.data.Log:
    """The log with one request whose rows are of two members, who are in different shards of three."""
    from keras_ranking.data.shards.ids import shard_of

    events = log.events.copy()
    sizes = events.groupby("request", sort=False).size()
    first = events.index[events["request"] == sizes.index[sizes >= 3][5]]
    place = shard_of(events["member"], 3)
    other = events["member"][place != place[first[0]]].iloc[0]
    events.loc[first[1], "member"] = other
    return kr.data.Log(events, log.schema, log.name)


def as_files(log: kr.data.Log, folder: Path, files: int = 3) -> Path:
    """The log as parquet files with small row groups."""
    folder.mkdir()
    bounds = np.linspace(0, len(log.events), files + 1).astype(int)
    for number in range(files):
        part = log.events.iloc[bounds[number] : bounds[number + 1]]
        part.to_parquet(folder / f"{number:03d}.parquet", index=False, row_group_size=70)
    return folder
