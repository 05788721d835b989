"""Does a Feed-SR with position offsets rank by relevance? On a simulated feed with known relevance.

    python tools/benchmarks/debias.py [--seeds 3] [--members 1200] [--json FILE]

The policy that wrote the log shows fresh items with a high editor score first, and lower places are examined less (0.65 and 0.45 of
the first place): a model of clicks without positions attributes part of the effect of the position to freshness and editor score. Ways
to train the same model (preset for the simulated log):

* plain: no positions;
* offsets: learned offsets of the top positions (`position_offsets=60`), all items scored at the same position;
* positives, all: inverse-propensity weights of clicked impressions, or of all (Feed-SR's), propensities by `position_propensities`;
* plain, shuffled log: the same model on a log in which every request was shuffled, without position bias: the reference.

Evaluated on the `test` split of the policy's log, on pairs of impressions of one request: `order` is the share of pairs that the score
puts in the order of true relevance; `lower` is the same among pairs whose more relevant impression was shown lower; `gap` is `order` among
the pairs shown in the order of relevance minus `lower`. The inputs of the policy are related to relevance, so even the reference has a
gap; a larger gap is the effect of the position. Means over seeds and 95 % t-intervals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
from runs import mean_cell

from keras_ranking import data, training
from keras_ranking.commands import table
from keras_ranking.data import build_sequences, pack

WAYS: dict[str, dict[str, Any]] = {
    "plain": {"position_offsets": 0},
    "offsets": {"position_offsets": 60},
    "positives": {"position_offsets": 0, "ipw": "positives"},
    "all": {"position_offsets": 0, "ipw": "all"},
    "plain, shuffled log": {"position_offsets": 0},
}
PROPENSITIES = {"method": "em", "items": ["item_id", "day"], "boundaries": (1, 4)}


def orders(score: np.ndarray, relevance: np.ndarray, position: np.ndarray, request: np.ndarray) -> dict[str, float]:
    """Shares of pairs inside a request that the score puts in the order of relevance."""
    right: list[np.ndarray] = []
    above: list[np.ndarray] = []
    for rows in np.split(np.arange(len(request)), np.flatnonzero(np.diff(request)) + 1):
        one, other = np.triu_indices(len(rows), 1)
        better, worse = rows[one], rows[other]
        turn = relevance[better] < relevance[worse]
        better, worse = np.where(turn, worse, better), np.where(turn, better, worse)
        kept = np.abs(relevance[better] - relevance[worse]) > 1e-9
        right.append((score[better] > score[worse])[kept])
        above.append((position[better] < position[worse])[kept])
    r, a = np.concatenate(right), np.concatenate(above)
    return {"order": float(r.mean()), "lower": float(r[~a].mean()), "gap": float(r[a].mean() - r[~a].mean())}


def run(way: str, members: int, seed: int) -> dict[str, float]:
    share = 1.0 if "shuffled" in way else 0.0
    log = data.simulate(members=members, seed=seed, random_share=share, shuffled_share=0.0)
    log.events["day"] = (log.events["age_hours"] // 24).astype(int)
    options = dict(WAYS[way])
    if "ipw" in options:
        options["ipw_options"] = PROPENSITIES
    model, _ = training.train(log, "feedsr", seed=seed, options=options, verbose=False)
    # Evaluated on pages of the policy for every training log.
    evaluated = data.simulate(members=members, seed=seed, random_share=0.0, shuffled_share=0.0)
    events, wanted = evaluated.events, (evaluated.events["split"] == "test").to_numpy()
    sequences = build_sequences(events, model.schema, target=wanted)
    rows = pack(sequences, max(512, 2 * int(np.diff(sequences.request_starts).max())))
    score = model.served(training.predict_events(model, rows, shown=False)["click"])
    chosen = sequences.target
    relevance = evaluated.truth.relevance[sequences.rows]
    return orders(score[chosen], relevance[chosen], sequences.position[chosen], sequences.request[chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--members", type=int, default=1200)
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--json", type=Path, help="write one JSON object per line to this file")
    args = parser.parse_args()
    cells, lines = [], []
    for way in args.only:
        found = []
        for seed in range(args.seeds):
            found.append(run(way, args.members, seed))
            lines.append({"way": way, "seed": seed, "backend": keras.backend.backend(), **found[-1]})
            print(json.dumps(lines[-1]), flush=True)
        cells.append([way, *(mean_cell([run[name] for run in found]) for name in ("order", "lower", "gap"))])
    print(table(["way", "order", "lower", "gap"], cells))
    if args.json:
        args.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
