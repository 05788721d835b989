"""What models in common use reach on a log: logistic regression, LightGBM, an MLP and a causal transformer, on the same rows and inputs.

    python tools/benchmarks/peers.py LOG FOLDER --json peers.jsonl [--models "LightGBM binary" ...] [--features plain personal ...]
    python tools/benchmarks/peers.py --table peers.jsonl
    python tools/benchmarks/peers.py simulated --json quick.jsonl --quick

LOG is ebnerd, movielens-1m, retail or kuairand-pure, FOLDER holds its files.

| features | inputs |
|---|---|
| plain | the reader's columns, and counts and rates of item and member |
| relative | and each number relative to its list, where the log has lists |
| personal | and the member's own past: rates with this item, its author, genre, ..., last outcomes, times, residuals of similar items |
| new | and the package's counts that know the list: `ChoiceStrengths`, `exposure_corrected_rates`; without lists `RunningExpectation` |
| fold_in | and how member and item fit by vectors, `FoldIn` of `item_factors` that were fitted on earlier rows |

Sets are made in `peer_features.py`: every column is of earlier seconds. A quarter of the members, by hash, is never trained on
(`--holdout-members`).

1. Each model and set is tried with ten settings (LightGBM stops at its best number of trees): fitted on the training rows before their
   last fifth (EB-NeRD: last day), compared on the rest by log loss, LambdaRank by impression AUC.
   The transformer takes minutes a fit: its settings are compared on the rows of a quarter of the members, by hash.
2. The best setting is fitted on all training rows, once a seed, and scored on `validation` and on `new_members`.

FILE gets one JSON object per finished fit; what is in it is not run again. The table has means over seeds, with the 95 % interval.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_features import LOGS, SETS, Case, open_case, sets_of
from peer_models import FOREST, LOGISTIC, MLP, Rows, Setting, fit_forest, forest_scores, forest_settings, logistic, mlp, rows_of, take
from peer_networks import TRANSFORMER, Streams, streams_of, transformer
from runs import add_line, followed_log_loss, holdout_of, log_arguments, mean_cell, parsed, read_lines

from keras_ranking import metrics
from keras_ranking.data.readers.splits import held_out

MOST_TREES = 800
SETTINGS = {
    "logistic regression": LOGISTIC,
    "LightGBM binary": FOREST,
    "LightGBM LambdaRank": FOREST,
    "MLP": MLP,
    "transformer": TRANSFORMER,
}
COMPARED_ON = {"transformer": 0.25}  # the share of the members whose rows compare settings, 1 where nothing is said
QUICK: dict[str, list[Setting]] = {
    "logistic regression": LOGISTIC[:2],
    "LightGBM binary": FOREST[:2],
    "LightGBM LambdaRank": FOREST[:1],
    "MLP": [{"width": 8, "layers": 1, "dropout": 0.0, "rate": 0.01, "epochs": 1}],
    "transformer": [{"width": 8, "layers": 1, "heads": 2, "dropout": 0.0, "rate": 0.01, "epochs": 1, "length": 8, "targets": 8}],
}
FIGURES = ("impression_auc", "auc", "ndcg_at_10", "log_loss", "calibration_error")


class Data:
    """The rows of a case with the columns of one set, and which of them are fitted, compared and scored."""

    def __init__(self, case: Case, features: str) -> None:
        events = case.events[case.shown]
        split, moment = events["split"].to_numpy(), events["time"].to_numpy()
        known = events[case.label].notna().to_numpy()
        trained = (split == "train") & known
        if case.name == "ebnerd":  # from the second day on, when the counts cover a day; the last day compares settings
            first, last = moment[trained].min(), moment[trained].max()
            trained &= moment >= first + 86_400
            edge = first + (last - first) // 86_400 * 86_400
        else:
            edge = np.quantile(moment[trained], 0.8)
        self.time = moment
        self.trained, self._later = trained, moment >= edge
        self.scored = {name: np.flatnonzero((split == name) & known) for name in case.splits}
        request = np.unique(events[case.request].to_numpy(), return_inverse=True)[1]
        self.rows: Rows = rows_of(case.columns(features), events[case.label].to_numpy(), request, trained)
        self.lists = case.lists
        self.case, self._streams = case, None

    def compared(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """The earlier and the later training rows of a share of the members."""
        members = self.case.events[self.case.member][self.case.shown]
        own = self.trained & held_out(members, share, 1)[0] if share < 1.0 else self.trained
        return np.flatnonzero(own & ~self._later), np.flatnonzero(own & self._later)

    @property
    def streams(self) -> Streams:
        self._streams = self._streams or streams_of(self.case)
        return self._streams

    def figures(self, which: np.ndarray, score: np.ndarray, probabilities: bool = True) -> dict[str, float | None]:
        found = metrics.summary(self.rows.y[which], score, self.rows.request[which])
        ranking, lists = ("impression_auc", "ndcg_at_10", "mrr"), self.lists
        kept = [name for name in found if (lists or name not in ranking) and (probabilities or name in ranking)]
        if probabilities:
            clipped = np.clip(score.astype(np.float64), 1e-9, 1 - 1e-9)
            logit = np.log(clipped) - np.log1p(-clipped)
            found["followed_log_loss"] = followed_log_loss(self.rows.y[which], logit, self.time[which], self.case.delay)
            kept.append("followed_log_loss")
        return {name: float(found[name]) if math.isfinite(found[name]) else None for name in kept}


def scores(data: Data, model: str, setting: Setting, seed: int, fitted: np.ndarray, others: list[np.ndarray]) -> list[np.ndarray]:
    """The scores of the rows of each of `others`, by a model fitted on the rows `fitted`."""
    if model == "transformer":
        return transformer(data.streams, data.rows, fitted, others, setting, seed)
    parts = [take(data.rows, which) for which in (fitted, *others)]
    if model.startswith("LightGBM"):
        forest = fit_forest(parts[0], model.endswith("LambdaRank"), forest_settings(setting, seed))
        return [forest_scores(forest, part.x) for part in parts[1:]]
    fit: Callable[..., list[np.ndarray]] = {"logistic regression": logistic, "MLP": mlp}[model]
    return fit(parts[0], parts[1:], setting, seed)


def compared(data: Data, model: str, setting: Setting, trees: int) -> tuple[Setting, dict[str, float | None]]:
    """The setting, of LightGBM with the number of trees at which it stopped, and its figures on the later training rows."""
    fitted, later = data.compared(COMPARED_ON.get(model, 1.0))
    if not model.startswith("LightGBM"):
        return setting, data.figures(later, scores(data, model, setting, 0, fitted, [later])[0])
    ranker = model.endswith("LambdaRank")
    settings = forest_settings({**setting, "trees": trees}, 0)
    forest = fit_forest(take(data.rows, fitted), ranker, settings, take(data.rows, later))
    return {**setting, "trees": int(forest.best_iteration_)}, data.figures(later, forest_scores(forest, data.rows.x[later]), not ranker)


def worth(model: str, figures: dict[str, float | None]) -> float:
    """What settings are compared by: higher is better."""
    value = figures["impression_auc"] if model.endswith("LambdaRank") else figures["log_loss"]
    return -math.inf if value is None else value if model.endswith("LambdaRank") else -value


def run(
    case: Case,
    models: Sequence[str],
    features: Sequence[str],
    seeds: Sequence[int],
    path: Path,
    quick: bool = False,
    most_settings: int | None = None,
) -> None:
    """Every model on every set: settings compared, then the best one scored; lines that the file has are kept."""
    done: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in read_lines(path):
        key = (line["log"], holdout_of(line), line["stage"], line["model"], line["features"])
        tried = line["tried"] if line["stage"] == "compared" else line["setting"]
        done[(*key, line.get("seed"), line.get("members", 1.0), json.dumps(tried, sort_keys=True))] = line
    settings, trees = (QUICK, 10) if quick else (SETTINGS, MOST_TREES)

    def step(stage: str, model: str, of: str, seed: int | None, setting: Setting, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        share = COMPARED_ON.get(model, 1.0) if stage == "compared" else 1.0
        key = (case.name, case.holdout, stage, model, of, seed, share, json.dumps(setting, sort_keys=True))
        if key not in done:
            begin = time.process_time()
            line = {"log": case.name, "holdout": case.holdout, "stage": stage, "model": model, "features": of, **make()}
            line |= {"members": share} if share < 1.0 else {}
            done[key] = {**line, "seconds": round(time.process_time() - begin, 1)}
            add_line(path, done[key])
            print(json.dumps(done[key]), file=sys.stderr, flush=True)
        return done[key]

    for of in features:
        data = None
        for model in models:
            if model.endswith("LambdaRank") and not case.lists:
                continue
            data = data or Data(case, of)
            lines = []
            for setting in settings[model][:most_settings]:

                def compare(setting: Setting = setting, data: Data = data, model: str = model) -> dict[str, Any]:
                    best, figures = compared(data, model, setting, trees)
                    return {"tried": setting, "setting": best, "figures": figures}

                lines.append(step("compared", model, of, None, setting, compare))
            best = max(lines, key=lambda line: worth(model, line["figures"]))["setting"]
            for seed in seeds[:1] if model == "logistic regression" else seeds:

                def score(seed: int = seed, data: Data = data, model: str = model, best: Setting = best) -> dict[str, Any]:
                    found = scores(data, model, best, seed, np.flatnonzero(data.trained), list(data.scored.values()))
                    pairs = zip(data.scored.items(), found, strict=True)
                    figures = {split: data.figures(which, got, not model.endswith("LambdaRank")) for (split, which), got in pairs}
                    return {"seed": seed, "setting": best, "figures": figures}

                step("scored", model, of, seed, best, score)


def print_table(path: Path) -> None:
    """One table a log and split; `ECE` is `calibration_error`, and seconds are processor time of one fit with its scores."""
    lines = read_lines(path)
    scored = [line for line in lines if line["stage"] == "scored"]
    for log, holdout, split in dict.fromkeys((line["log"], holdout_of(line), split) for line in scored for split in line["figures"]):
        own_lines = [line for line in scored if (line["log"], holdout_of(line)) == (log, holdout)]
        print(f"\n{log}, {holdout:.0%} of the members held out, {split}\n")
        print(f"| model | features | impression AUC | AUC | NDCG@10 | log loss | ECE | seconds |\n|{'---|' * 8}")
        for model, of in dict.fromkeys((line["model"], line["features"]) for line in own_lines):
            found = [line for line in own_lines if (line["model"], line["features"]) == (model, of)]
            found = [line for line in found if line["setting"] == found[-1]["setting"]]  # of the last run, which compared most
            values = [[line["figures"][split].get(name) for line in found] for name in FIGURES]
            cells = ["-" if None in own else mean_cell(own) for own in values]
            print(f"| {model} | {of} | {' | '.join(cells)} | {np.mean([line['seconds'] for line in found]):.0f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = log_arguments(__doc__, LOGS)
    parser.add_argument("--models", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--features", nargs="+", choices=list(SETS))
    parser.add_argument("--settings", type=int, metavar="N", help="compare the first N settings alone (default: all, ten)")
    parser.add_argument("--quick", action="store_true", help="few settings and small models, to see that everything runs")
    args = parsed(parser, arguments)
    if args.table:
        print_table(args.table)
        return
    case = open_case(args.log, args.folder, args.holdout)
    seeds = args.seeds[:1] if args.quick else args.seeds
    run(case, args.models, args.features or sets_of(case), seeds, args.json, args.quick, args.settings)
    print_table(args.json)


if __name__ == "__main__":
    main()
