"""A shop's log as it comes out of a warehouse: text ids, times with a zone and milliseconds, gaps, lists, rows out of order and twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

KINDS = np.array(["tea", "coffee", "cups", "sweets"])
ITEMS = 60


def shop_log(customers: int = 60, lists: int = 400, seed: int = 0) -> pd.DataFrame:
    """Lists of six products; tea sells well, and each customer likes a kind. The last twentieth has no labels yet."""
    rng = np.random.default_rng(seed)
    taste, kind = rng.integers(0, 4, customers), rng.integers(0, 4, ITEMS)
    price = np.round(np.exp(rng.normal(2.3, 0.6, ITEMS)), 2)
    rows: list[dict[str, Any]] = []
    for number, second in enumerate(np.sort(rng.choice(1_000_000, lists, replace=False))):
        customer, device = int(rng.integers(customers)), str(rng.choice(["phone", "web"]))
        shown_at = pd.Timestamp("2026-03-01", tz="Europe/Berlin") + pd.Timedelta(milliseconds=int(second) * 1000 + int(rng.integers(1000)))
        for item in rng.choice(ITEMS, 6, replace=False):
            liked = 2.5 * (kind[item] == 0) + (kind[item] == taste[customer]) - 0.03 * price[item]
            bought = int(rng.random() < 1 / (1 + np.exp(2.0 - liked)))
            rows.append(
                {
                    "customer_id": f"c{customer:04d}",
                    "shown_at": shown_at,
                    "list_id": f"l{number:05d}",
                    "product_id": f"P-{item:03d}",
                    "price eur": np.nan if rng.random() < 0.05 else price[item],
                    "tags": [str(KINDS[kind[item]]), *(["sale"] if item % 7 == 0 else [])],
                    "device": device,
                    "bought": bought,
                    "seconds_viewed": round(float(rng.exponential(5 + 20 * bought)), 1),
                }
            )
    log = pd.DataFrame(rows).astype({"shown_at": "datetime64[ms, Europe/Berlin]", "bought": "float64"})
    log.loc[log["shown_at"] >= log["shown_at"].quantile(0.95), ["bought", "seconds_viewed"]] = np.nan
    return pd.concat([log, log.sample(20, random_state=1)]).sample(frac=1.0, random_state=2).reset_index(drop=True)


def write_request(log: pd.DataFrame, path: Path) -> None:
    """A request of a service: a customer's past, and candidates."""
    known = log.dropna(subset=["bought"]).drop_duplicates(subset=["list_id", "product_id"]).sort_values("shown_at", kind="stable")
    past = known[known["customer_id"] == known["customer_id"].iloc[-1]]
    past = past.assign(shown_at=[int(at.timestamp()) for at in past["shown_at"]])
    offered = known.drop_duplicates("product_id").head(10)[["product_id", "price eur", "tags"]].assign(device="web")
    columns = ["shown_at", "product_id", "price eur", "tags", "device", "seconds_viewed"]
    request = {
        "time": int(past["shown_at"].iloc[-1]) + 3600,
        "history": json.loads(past[columns].to_json(orient="records")),
        "candidates": json.loads(offered.to_json(orient="records")),
    }
    path.write_text(json.dumps(request), encoding="utf-8")
