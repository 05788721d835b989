"""Peers of the EB-NeRD results: LightGBM and logistic regression on the same context features as CADET.

    python tools/benchmarks/ebnerd_peers.py FOLDER [--json FILE]

FOLDER holds the EB-NeRD files. Settings are fixed and nothing is tuned: LightGBM with 400 trees, rate 0.03, 31 leaves, 200 rows per
leaf. They are fitted on `train` from the second day on, when the counts cover a day, and scored on `validation`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from keras_ranking import data, metrics
from keras_ranking.commands import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from lightgbm import LGBMClassifier
    from sklearn.linear_model import LogisticRegression

    log = data.read_ebnerd(args.folder)
    events = log.events
    train = (events["split"] == "train").to_numpy()
    fitted = train & (events["time"] >= events.loc[train, "time"].min() + 86400).to_numpy()
    scored = (events["split"] == "validation").to_numpy()
    schema = log.schema.fit(events[train])
    features = [feature for feature in schema.inputs() if feature.kind != "id"]
    used = fitted | scored
    x = np.column_stack([feature.encode(events.loc[used, feature.name]) for feature in features]).astype(np.float32)
    y, request = events["click"].to_numpy(), events["request"].to_numpy()
    x_fit, x_scored = x[fitted[used]], x[scored[used]]
    results: dict[str, dict[str, float]] = {}
    for name, model in {
        "LightGBM": LGBMClassifier(n_estimators=400, learning_rate=0.03, num_leaves=31, min_child_samples=200, verbose=-1, random_state=0),
        "logistic regression": LogisticRegression(max_iter=1000),
    }.items():
        score = model.fit(x_fit, y[fitted]).predict_proba(x_scored)[:, 1]
        results[name] = metrics.summary(y[scored], score, request[scored])
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    names = list(results["LightGBM"])
    print(f"{len(features)} features, {int(fitted.sum()):,} rows fitted, {int(scored.sum()):,} scored")
    print(table(["EB-NeRD validation", *names], [[model, *(f"{values[name]:.4f}" for name in names)] for model, values in results.items()]))


if __name__ == "__main__":
    main()
