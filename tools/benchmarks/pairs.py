"""Pairs of one position bucket alone, or of the whole request? CADET with towers by position on two logs with positions.

    python tools/benchmarks/pairs.py FOLDER [--seeds 3] [--json FILE]

* simulator: a policy that ranks well wrote the log, lower places are examined less; true relevance is known.
* Yandex: pages of a search engine (`yandex_serp.csv.gz`), each page a request of its own; relevance is the attractiveness that a click
  model (EM over query and document, with examination by position) finds on all pages.

One small model, trained with `pairwise_weight=0.1` (as CADET by default) and pairs of one bucket (`same_bucket=True`), of the whole request
(`same_bucket=False`), or without pairs. Of the test pages: `order`, the share of pairs that the served score puts in the order of
relevance; `lower`, of pairs whose more relevant item was shown lower; and log loss at the position shown. `share` is that of the pairs of
the training rows with a gradient, `positives` that of the positives (`kr.losses.PairCounts`). Means over seeds, 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from debias import orders
from runs import mean_cell

import keras_ranking as kr
from keras_ranking.commands import table
from keras_ranking.data import PackedDataset, build_sequences, pack
from keras_ranking.training import position_propensities

WAYS: dict[str, dict[str, Any]] = {
    "one bucket": {"pairwise_weight": 0.1, "same_bucket": True},
    "whole request": {"pairwise_weight": 0.1, "same_bucket": False},
    "no pairs": {"pairwise_weight": 0.0},
}
SMALL: dict[str, Any] = {
    "dim": 16,
    "num_layers": 1,
    "num_heads": 2,
    "id_dim": 8,
    "tower_hidden": (16,),
    "layout": "value",
    "tasks": ("click",),
}


def simulated(folder: Path, seed: int) -> tuple[pd.DataFrame, kr.Schema, np.ndarray]:
    """Events with a column `test`, their schema, and the relevance of each."""
    log = kr.data.simulate(members=400, days=14, seed=seed, random_share=0.0, shuffled_share=0.0)
    events = log.events.assign(test=(log.events["split"] != "train").to_numpy())
    return events, log.schema.fit(events[~events["test"]]), log.truth.relevance


def yandex(folder: Path, seed: int, count: int = 4500) -> tuple[pd.DataFrame, kr.Schema, np.ndarray]:
    """The same of `count` pages of Yandex, drawn by the seed; the last third are the test pages."""
    pages = pd.read_csv(folder / "yandex_serp.csv.gz")
    docs, clicks = (np.array([row.split() for row in pages[column]]) for column in ("docs", "clicked_by_rank"))
    width = docs.shape[1]
    events = pd.DataFrame({"page": np.repeat(pages["page_view"].to_numpy(), width), "item": docs.ravel()})
    events = events.assign(query=np.repeat(pages["query_id"].to_numpy(), width), click=clicks.ravel().astype(int))
    events = events.assign(member=events["page"], rank=np.tile(np.arange(1, width + 1), len(pages)))
    events["time"] = 1_700_000_000 + 100 * np.repeat(np.arange(len(pages)), width)
    plain = kr.Schema(member="member", time="time", request="page", position="rank", features=[kr.Id("item")], tasks=["click"])
    curve = position_propensities(events, plain, "em", items=["query", "item"])["click"].propensity
    examined = curve[np.minimum(events["rank"].to_numpy(), len(curve)) - 1]
    both = events.assign(examined=examined).groupby(["query", "item"], sort=False)[["click", "examined"]].transform("sum")
    relevance = (both["click"] / both["examined"]).to_numpy()
    drawn = np.sort(np.random.default_rng(seed).permutation(len(pages))[:count])
    rows = (drawn[:, None] * width + np.arange(width)).ravel()
    chosen = events.iloc[rows].reset_index(drop=True)
    chosen["test"] = np.arange(len(chosen)) >= len(chosen) // 3 * 2 // width * width
    chosen["pair"] = chosen["query"].astype(str) + " " + chosen["item"].astype(str)
    schema = kr.Schema(
        member="member",
        time="time",
        request="page",
        position="rank",
        features=[kr.Id("item", buckets=4096), kr.Id("pair", buckets=4096)],
        tasks=["click"],
    )
    return chosen, schema, relevance[rows]


LOGS: dict[str, Callable[[Path, int], tuple[pd.DataFrame, kr.Schema, np.ndarray]]] = {"simulator": simulated, "yandex": yandex}


def run(log: str, way: str, folder: Path, seed: int) -> dict[str, float]:
    """Train, and what the test pages say."""
    events, schema, relevance = LOGS[log](folder, seed)
    keras.utils.set_random_seed(seed)
    more = {"token_features": ("item", "pair")} if log == "yandex" else {}
    model = kr.models.CADET(schema, **SMALL, **more)
    sequences = build_sequences(events, schema, target=~events["test"].to_numpy())
    longest = int(np.diff(sequences.request_starts).max())
    rows = pack(sequences, 256)
    dataset = PackedDataset(rows, 4, inputs=model.input_columns, tasks=model.tasks, seed=seed, delays=model.arguments["delay"])
    losses = model.losses_by_task(**WAYS[way], window=longest)
    model.compile(optimizer=keras.optimizers.AdamW(3e-3, weight_decay=1e-4, global_clipnorm=1.0), loss=losses)
    model.fit(dataset, epochs=5, verbose=0, shuffle=False)
    learned = sequences.target
    counts = kr.losses.PairCounts.of(
        sequences.labels["click"][learned],
        sequences.request[learned],
        sequences.position[learned],
        model.boundaries,
        bool(WAYS[way].get("same_bucket", True)),
    )
    tested = sequences.with_target(events["test"].to_numpy())
    towers = kr.training.predict_events(model, pack(tested, 256), shown=False)["click"]
    chosen = tested.target
    score, position, label = model.served(towers)[chosen], tested.position[chosen], tested.labels["click"][chosen]
    bucket = np.searchsorted(np.asarray(model.boundaries), position, side="left")
    shown = np.clip(np.take_along_axis(towers[chosen], bucket[:, None], axis=1)[:, 0], 1e-7, 1 - 1e-7)
    found = orders(score, relevance[tested.rows][chosen], position, tested.request[chosen])
    found["log_loss"] = float(-np.mean(label * np.log(shown) + (1 - label) * np.log(1 - shown)))
    used = way != "no pairs"
    return {**found, "share": counts.share if used else 0.0, "positives": counts.positives_share if used else 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with yandex_serp.csv.gz")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--logs", nargs="+", choices=list(LOGS), default=list(LOGS))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--json", type=Path, help="append one JSON object per line to this file")
    args = parser.parse_args()
    for log in args.logs:
        cells = []
        for way in args.ways:
            found = []
            for seed in range(args.seeds):
                start = time.process_time()
                found.append(run(log, way, args.folder, seed))
                line = {"log": log, "way": way, "seed": seed, "backend": keras.backend.backend(), **found[-1]}
                line["cpu_seconds"] = round(time.process_time() - start, 1)
                print(json.dumps(line), flush=True)
                if args.json:
                    with args.json.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
            cells.append([way, *(mean_cell([one[name] for one in found]) for name in ("share", "positives", "order", "lower", "log_loss"))])
        print(f"\n{log}")
        print(table(["pairs", "share", "positives", "order", "lower", "log loss"], cells))


if __name__ == "__main__":
    main()
