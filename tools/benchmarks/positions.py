"""Position curves of public logs: the click rate compared with the effect of the position.

    python tools/benchmarks/positions.py FOLDER

Yandex (`yandex_serp.csv.gz`: one page per row with `page_view`, `query_id`, and `docs` and `clicked_by_rank` as lists separated by spaces;
made from Yandex's click logs): real results pages, on which rank and quality are related. The click rate by rank relative to the first
rank, and the examination probability of a click model (EM over query and document), which accounts for the documents.
Open Bandit (`obd_men.csv.gz`, `obd_women.csv.gz`: `item_id`, `position`, `click`, `policy`; the dataset's small release, both policies
in one file): three horizontal places, filled at random: click rate with 95 % intervals.
The simulator: the true curve compared with each method, with a policy that ranks well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from keras_ranking import Id, Schema, data
from keras_ranking.commands import table
from keras_ranking.training import position_propensities

SCHEMA = Schema(member="member", time="time", request="request", position="rank", features=[Id("item")], tasks=["click"])


def yandex(folder: Path) -> None:
    pages = pd.read_csv(folder / "yandex_serp.csv.gz")
    docs, clicks = (np.array([row.split() for row in pages[column]]) for column in ("docs", "clicked_by_rank"))
    width = docs.shape[1]
    events = pd.DataFrame(
        {"request": np.repeat(pages["page_view"].to_numpy(), width), "item": docs.ravel(), "click": clicks.ravel().astype(int)}
    )
    events = events.assign(member=1, time=1_700_000_000, rank=np.tile(np.arange(1, width + 1), len(pages)))
    events["query"] = np.repeat(pages["query_id"].to_numpy(), width)
    plain = position_propensities(events, SCHEMA, "ctr")["click"]
    model = position_propensities(events, SCHEMA, "em", items=["query", "item"])["click"]
    print(f"Yandex: {len(pages):,} pages; EM over {len(model.groups):,} pairs of query and document, {model.iterations} steps")
    rows = [
        [
            str(k + 1),
            f"{plain.rate[k]:.4f}",
            f"{plain.propensity[k]:.3f}",
            f"{plain.low[k]:.3f} {plain.high[k]:.3f}",
            f"{model.propensity[k]:.3f}",
        ]
        for k in range(width)
    ]
    print(table(["rank", "click rate", "ratio to first", "95 %", "examination (EM)"], rows))


def open_bandit(folder: Path) -> None:
    for campaign in ("men", "women"):
        rows = pd.read_csv(folder / f"obd_{campaign}.csv.gz").rename(columns={"position": "rank", "item_id": "item"})
        rows = rows.assign(member=1, time=1_700_000_000, request=np.arange(len(rows)))
        curve = position_propensities(rows, SCHEMA, "random", randomised=(rows["policy"] == "random").to_numpy())["click"]
        low, high = curve.interval()
        print(f"\nOpen Bandit, {campaign}: {curve.shown.sum():,} rows of the random policy, {curve.acted.sum()} clicks")
        cells = [
            [name, str(curve.acted[k]), f"{curve.rate[k]:.4f}", f"{low[k]:.4f} {high[k]:.4f}", f"{curve.propensity[k]:.2f}",
             f"{curve.low[k]:.2f} {curve.high[k]:.2f}"]
            for k, name in enumerate(("left", "centre", "right"))
        ]  # fmt: skip
        print(table(["place", "clicks", "click rate", "95 %", "ratio to left", "95 %"], cells))


def simulator() -> None:
    log = data.simulate(seed=0, random_share=0.3)
    events = log.events.assign(day=(log.events["age_hours"] // 24).astype(int))
    curves = {
        "planted": log.truth.position_ratio,
        "plain ratio": position_propensities(events, log.schema, "ctr", boundaries=(1, 4))["click"].propensity[[0, 1, 4]],
        "shuffled requests": position_propensities(events, log.schema, "random", randomised="shuffled", boundaries=(1, 4))[
            "click"
        ].propensity[[0, 1, 4]],
        "EM over item and day": position_propensities(events, log.schema, "em", items=["item_id", "day"], boundaries=(1, 4))[
            "click"
        ].propensity[[0, 1, 4]],
    }
    print(f"\nSimulator: {len(events):,} impressions, 30 % of the requests shuffled")
    print(table(["curve", "1", "2-4", "5+"], [[name, *(f"{value:.3f}" for value in values)] for name, values in curves.items()]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with yandex_serp.csv.gz and obd_*.csv.gz")
    args = parser.parse_args()
    yandex(args.folder)
    open_bandit(args.folder)
    simulator()


if __name__ == "__main__":
    main()
