"""EB-NeRD with counts that know the list: LightGBM and LiGR on the same features, mean and 95 % interval of the seeds.

    python tools/benchmarks/list_counts.py FOLDER --json list_counts.jsonl [--seeds 0 1 2] [--models ligr "LightGBM LambdaRank"]
    python tools/benchmarks/list_counts.py --table list_counts.jsonl

| features | what |
|---|---|
| plain | the 27 features of `read_ebnerd` |
| relative | and each number relative to its list (`list_relative`) |
| counts | and views, rates, exposure-corrected rates and choice strengths of the article, and these relative to their lists |

Counts are of the rows of lists, with the delay of `read_ebnerd`. Settings are fixed: LightGBM with 400 trees, rate 0.03, 31 leaves, 200
rows a leaf, fitted from the second training day on; LiGR with its EB-NeRD preset. Nothing is chosen on the rows that are scored, those
of `validation`. One JSON object per line: model, features, seed, figures, seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from peer_features import choice_counts
from peer_models import Rows, fit_forest, forest_scores
from runs import add_line, mean_cell, read_lines

from keras_ranking import data, metrics, training
from keras_ranking.columns import Number
from keras_ranking.data import Log
from keras_ranking.data.readers.ebnerd_features import CLICK_PRIOR, known_actions
from keras_ranking.training.presets import preset_options

DELAY = 600
SETS = ("plain", "relative", "counts")
MODELS = ("LightGBM binary", "LightGBM LambdaRank", "ligr")


def list_counts(shown: pd.DataFrame) -> pd.DataFrame:
    """Point-in-time columns of the article, of the rows of lists."""
    known = shown.assign(click=known_actions(shown, DELAY)["known_click"])
    return choice_counts(known, "article_id", "request", "click", DELAY, CLICK_PRIOR)


def with_columns(log: Log, columns: pd.DataFrame) -> Log:
    """The log with further numbers of the context, missing in rows that are no lists."""
    columns = columns[[name for name in columns if name not in log.events]]  # `read_ebnerd` has some ranks already
    features = [Number(name, transform="standardise", missing=float(columns[name].mean()), known="context") for name in columns]
    schema = log.schema.model_copy(update={"features": (*log.schema.features, *features)})
    return replace(log, events=pd.concat([log.events, columns.reindex(log.events.index)], axis=1), schema=schema)


def logs(folder: str) -> dict[str, Log]:
    """The log by set of features."""
    plain = data.read_ebnerd(folder)
    shown = plain.events[plain.events["split"] != "history"]
    numbers = [feature.name for feature in plain.schema.features if feature.kind == "number"]
    relative = with_columns(plain, data.list_relative(shown, numbers, "request"))
    counts = list_counts(shown)
    counts = pd.concat([counts, data.list_relative(counts.assign(request=shown["request"]), list(counts), "request")], axis=1)
    logged = {name: np.log1p(counts[name]) for name in counts if "_views_" in name and not name.endswith(("mean", "max", "rank"))}
    return {"plain": plain, "relative": relative, "counts": with_columns(relative, counts.assign(**logged))}


def forest(log: Log, model: str, seed: int) -> dict[str, float]:
    events = log.events
    train = (events["split"] == "train").to_numpy()
    fitted = train & (events["time"] >= events.loc[train, "time"].min() + 86400).to_numpy()
    scored = (events["split"] == "validation").to_numpy()
    schema = log.schema.fit(events[train])
    features = [feature for feature in schema.inputs() if feature.kind != "id"]
    order = np.argsort(events["request"].to_numpy()[fitted], kind="stable")

    def matrix(which: np.ndarray) -> np.ndarray:
        return np.column_stack([feature.encode(events.loc[which, feature.name]) for feature in features]).astype(np.float32)

    y, request = events["click"].to_numpy(), events["request"].to_numpy()
    settings: dict[str, Any] = {"n_estimators": 400, "learning_rate": 0.03, "num_leaves": 31, "min_child_samples": 200, "n_jobs": 1}
    settings |= {"random_state": seed, "verbose": -1, "subsample": 0.8, "subsample_freq": 1, "colsample_bytree": 0.8}
    x = matrix(fitted)[order]
    forest = fit_forest(Rows(x, y[fitted][order], request[fitted][order], x), model.endswith("LambdaRank"), settings)
    found = metrics.summary(y[scored], forest_scores(forest, matrix(scored)), request[scored])
    ranking = ("impression_auc", "ndcg_at_10", "mrr")  # all that scores of LambdaRank say: they are no probabilities
    return {name: found[name] for name in (ranking if model.endswith("LambdaRank") else found)}


def run(log: Log, model: str, seed: int) -> dict[str, float]:
    if model.startswith("LightGBM"):
        return forest(log, model, seed)
    names = tuple(feature.name for feature in log.schema.features if feature.kind != "id")
    options = {**preset_options(model, "ebnerd"), "features": names}
    trained, _ = training.train(replace(log, preset=None), model, seed=seed, options=options, verbose=False)
    return training.evaluate(trained, log)["click"]


def print_table(path: Path) -> None:
    lines = read_lines(path)
    print("| model | features | impression AUC | NDCG@10 | log loss | seconds |\n|---|---|---|---|---|---|")
    for key in dict.fromkeys((line["model"], line["features"]) for line in lines):
        found = [line for line in lines if (line["model"], line["features"]) == key]
        cells = [mean_cell([line["figures"].get(name, np.nan) for line in found]) for name in ("impression_auc", "ndcg_at_10", "log_loss")]
        print(
            f"| {key[0]} | {key[1]} | {' | '.join(cells)} | {sum(line['seconds'] for line in found) / len(found):.0f} |".replace(
                "nan ± nan", ""
            )
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--table", type=Path, help="print the table of a file")
    args = parser.parse_args()
    if args.table:
        print_table(args.table)
        return
    if not args.folder or not args.json:
        parser.error("FOLDER and --json are needed, or --table")
    done = {(line["model"], line["features"], line["seed"]) for line in read_lines(args.json)}
    by_set = logs(args.folder)
    for seed in args.seeds:
        for model in args.models:
            for features in SETS:
                if (model, features, seed) in done:
                    continue
                begin = time.perf_counter()
                figures = run(by_set[features], model, seed)
                line = {
                    "model": model,
                    "features": features,
                    "seed": seed,
                    "seconds": round(time.perf_counter() - begin, 1),
                    "figures": figures,
                }
                add_line(args.json, line)
                print({name: line[name] for name in ("model", "features", "seed", "seconds")}, figures, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
