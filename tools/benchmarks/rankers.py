"""The package's rankers on the logs, members and columns of `peers.py`: what counts, the past and factorised tables are worth.

    python tools/benchmarks/rankers.py LOG FOLDER --json rankers.jsonl [--runs "cadet factors" ...] [--seeds 0 1 2]
    python tools/benchmarks/rankers.py --table rankers.jsonl

LOG is ebnerd, movielens-1m, retail or kuairand-pure; rows, held-out members and sets of columns are those of `peers.py`.

| run of movielens-1m | what |
|---|---|
| `cadet trunk` | CADET on films, genres, years, and counts and expectations of film, member and decade: no personal columns |
| `cadet past` | and `Past`: target attention and a linear sum over the member's ratings: likes, stars, and residuals of both |
| `cadet factors`, `feedsr factors` | and the table of films starts from `item_factors` of the residuals of stars of the training rows |
| `cadet factors without history` | the same with `max_history=0` |
| `cadet personal` | `cadet factors` with the set `new` of the peers, which has personal columns |

| run of ebnerd, retail, kuairand-pure | what |
|---|---|
| `MODEL SET` | the columns of a set of `peers.py`; LiGR and LiRank without a history; kuairand-pure has no lists: nothing reads one |
| `cadet SET without history` | the same with `max_history=0` |
| `MODEL SET with forest` | and a LightGBM on the same columns in the same graph, half of the logit each (`kr.models.with_forest`) |
| `MODEL SET of three with forest` | the network is the mean of three, of the seeds 3 s to 3 s + 2 (`kr.models.ensemble`) |

Networks are kept in the folder of `--models`, and taken from there where a run needs the same one.

Options are chosen with `--tuning --change JSON`: fitted on the earlier training rows, compared on the last of them (ebnerd:
two days; else an eighth). `LISTS` was chosen on ebnerd, and retail and kuairand-pure have the same; those of movielens-1m on its own.
Nothing is chosen on `validation` or `new_members`. One JSON object per finished run.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_features import Case, open_case
from peer_models import forest_settings
from ranker_columns import earlier, of_movielens, with_columns
from runs import add_line, followed_log_loss, holdout_of, log_arguments, mean_cell, parsed, read_lines

from keras_ranking import data, layers, models, training
from keras_ranking.data import Log
from keras_ranking.training.scoring.events import logits_of_targets, metrics_of, rows_to_score

FIGURES = ("impression_auc", "auc", "ndcg_at_10", "log_loss", "calibration_error")
_PAST: dict[str, Any] = {
    "past_heads": 4,
    "past_linear": 1,
    "past_dim": 96,
    "past_keys": ("item_id", "genres"),
    "past_numbers": ("known_like", "residual", "known_stars", "stars_residual"),
}
_FILMS: dict[str, Any] = {
    "token_features": ("item_id", "genres", "release_year"),
    "id_dim": 96,
    "dim": 32,
    "num_layers": 1,
    "num_heads": 2,
    "row_length": 512,
    "batch_size": 8,
    "epochs": 5,
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "dropout": 0.1,
    "ema": 0.99,
    "table_optimizer": "adamw",
    "table_learning_rate": 1e-3,
    "table_weight_decay": 0.3,
    "pairwise_weight": 0.0,
}
LISTS: dict[str, Any] = {
    "pairwise_weight": 0.0,
    "listwise_weight": 0.1,
    "row_length": 256,
    "batch_size": 4,
    "epochs": 6,
    "dropout": 0.1,
    "weight_decay": 0.01,
    "ema": 0.998,
}
# What describes a past event of each log.
TOKENS = {
    "ebnerd": ("article_age", "views_6h", "ctr_6h", "ctr_24h_rank", "seen"),
    "retail": ("stock_code", "price"),
    "kuairand-pure": ("video_id", "duration_seconds"),
    "simulated": ("topic", "age_hours"),
}
_COLUMNS: dict[str, Any] = {"features": None}  # all but ids, the columns of the set among them
OF_MODEL: dict[str, dict[str, Any]] = {
    "ligr": {**_COLUMNS, "history_features": (), "top_k": None},
    "lirank": {**_COLUMNS, "history_features": (), "calibration_options": {"step": 0.5}},
    "amortized": {**_COLUMNS, "max_history": 30, "dim": 32, "num_heads": 2, "cross": "residual", "gate": "dense"},
    "cadet": {"num_heads": 2, "tower_hidden": (128, 64)},
    "feedsr": {"num_heads": 2, "head_options": {"hidden": (128, 64)}},
}
_HEADS: dict[str, dict[str, Any]] = {"cadet": {"tower_hidden": (64, 32)}, "feedsr": {"head_options": {"hidden": (64, 32)}}}
NAMES = {"cadet": "CADET", "feedsr": "Feed-SR", "ligr": "LiGR", "lirank": "LiRank", "amortized": "AmortizedDLRM"}
_CHOICE: dict[str, Any] = {"choice": ("click",), "choice_several": "split", "listwise_weight": 0.0}  # 99.7 % of lists have one click
# Of a log without lists nothing reads one; the second task of kuairand-pure took a little.
_ALONE: dict[str, Any] = {"listwise_weight": 0.0, "tasks": ("long_view",)}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "movielens-1m": {
        "cadet trunk": {},
        "cadet past": {"options": _PAST},
        "cadet factors": {"options": _PAST, "factors": 96},
        "cadet factors without history": {"options": {**_PAST, "max_history": 0}, "factors": 96},
        "feedsr factors": {"options": _PAST, "factors": 96},
        "cadet personal": {"options": _PAST, "factors": 96, "features": "new"},
    },
    "ebnerd": {
        **{f"{model} fold_in": {"features": "fold_in"} for model in OF_MODEL},
        **{name: {"features": name.split()[1], "options": _CHOICE} for name in ("cadet new", "cadet fold_in", "feedsr fold_in")},
        **{f"ligr {of}": {"features": of, "options": _CHOICE} for of in ("plain", "relative", "new", "fold_in")},
        "ligr fold_in without choice": {"features": "fold_in"},
        "lirank plain": {"features": "plain"},
        "lirank plain with list context": {"features": "plain", "options": {"list_context": True}},
        **{f"cadet {of} without history": {"features": of, "options": {**_CHOICE, "max_history": 0}} for of in ("new", "fold_in")},
    },
    "retail": {
        **{f"{model} fold_in": {"features": "fold_in"} for model in OF_MODEL},
        "ligr relative": {"features": "relative"},
        "cadet fold_in without history": {"features": "fold_in", "options": {"max_history": 0}},
    },
    "kuairand-pure": {
        **{f"{model} fold_in": {"features": "fold_in", "options": _ALONE} for model in OF_MODEL},
        "ligr fold_in": {"features": "fold_in", "options": {**_ALONE, "setwise_layers": 0}},
        "cadet fold_in without history": {"features": "fold_in", "options": {**_ALONE, "max_history": 0}},
    },
    "simulated": {  # to see that everything runs
        "cadet new": {"features": "new", "options": {"epochs": 1}},
        "ligr new": {"features": "new", "options": {"epochs": 1}},
    },
}
# LightGBM's best settings in `peers.py`, for `MODEL SET with forest`.
_FOREST = {"num_leaves": 31, "learning_rate": 0.05, "min_child_samples": 200, "colsample_bytree": 0.8}
FORESTS: dict[str, dict[str, Any]] = {
    "movielens-1m": {**_FOREST, "trees": 400},
    "ebnerd": {**_FOREST, "trees": 387},
    "retail": {**_FOREST, "trees": 287},
    "kuairand-pure": {**_FOREST, "num_leaves": 15, "min_child_samples": 500, "trees": 237},
    "simulated": {**_FOREST, "trees": 5},
}
_BEST = {
    "movielens-1m": ("cadet factors", "cadet personal"),
    "ebnerd": ("ligr fold_in",),
    "retail": ("ligr fold_in",),
    "kuairand-pure": ("lirank fold_in",),
    "simulated": ("ligr new",),
}
WITH, THREE = " with forest", " of three"
for _log, _names in _BEST.items():
    RUNS[_log] |= {_name + WITH: {**RUNS[_log][_name], "forest": FORESTS[_log]} for _name in _names}
RUNS["retail"]["ligr fold_in" + THREE + WITH] = {**RUNS["retail"]["ligr fold_in" + WITH], "networks": 3}
# Runs that are made once more with all members, and the peers' set of columns there.
WHOLE = {
    "ebnerd": ("ligr relative", "ligr new", "ligr fold_in", "ligr fold_in with forest", "cadet fold_in"),
    "movielens-1m": ("cadet factors", "cadet factors without history", "cadet personal", "cadet personal with forest"),
    "retail": ("ligr fold_in", "ligr fold_in with forest", "ligr fold_in of three with forest"),
    "kuairand-pure": ("lirank fold_in", "lirank fold_in with forest"),
}
WHOLE_SET = {"ebnerd": "fold_in", "movielens-1m": "personal", "retail": "fold_in", "kuairand-pure": "fold_in"}
# (what it is, a run with it, the same without it)
_HISTORY = ("history", "cadet fold_in", "cadet fold_in without history")
PARTS: dict[str, list[tuple[str, str, str]]] = {
    "ebnerd": [
        _HISTORY,
        ("history, no fold-in", "cadet new", "cadet new without history"),
        ("list context", "lirank plain with list context", "lirank plain"),
        ("probabilities by choice", "ligr fold_in", "ligr fold_in without choice"),
        ("counts that know the list", "ligr new", "ligr relative"),
        ("fold-in", "ligr fold_in", "ligr new"),
    ],
    "movielens-1m": [
        ("history", "cadet factors", "cadet factors without history"),
        ("factorised table", "cadet factors", "cadet past"),
        ("`Past`", "cadet past", "cadet trunk"),
    ],
    "retail": [_HISTORY, ("all counts", "ligr fold_in", "ligr relative")],
    "kuairand-pure": [_HISTORY],
}


def words_of(name: str) -> str:
    """A run as a table shows it: the model's name, and the columns or parts."""
    model, _, rest = name.partition(" ")
    of, _, more = rest.partition(" ")
    return f"{NAMES[model]}, `{of}`" + (f" {more}" if more else "")


def options_of(log: str, name: str, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that a run is made with, but the columns of `LISTS`: `features`, `factors`, `of`, and the options of `train`."""
    model, settings = name.split()[0], {"factors": None, "of": "stars_residual", "features": "counts", **RUNS[log][name]}
    changed = dict(changed or {})
    settings |= {key: changed.pop(key) for key in ("factors", "of") if key in changed}
    if log == "movielens-1m":
        base = {**_FILMS, **_HEADS[model]}
    else:
        base = {**LISTS, **OF_MODEL[model]}
        if model in ("cadet", "feedsr"):
            base["token_features"] = TOKENS[log]
        elif model == "amortized":
            base["history_features"] = TOKENS[log][:1]
    return {**settings, "options": {**base, **settings.get("options", {}), **changed}}


def made_with(log: str, name: str, changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The same as a line has it."""
    return dict(json.loads(json.dumps(options_of(log, name, changed))))


def is_current(line: Mapping[str, Any]) -> bool:
    """Whether a line is of a run as it is defined now."""
    return line["run"] in RUNS[line["log"]] and line["made_with"] == made_with(line["log"], line["run"])


def figures_of(case: Case, trained: Any, log: Log, split: str) -> dict[str, float]:
    """What `evaluate` gives, and the log loss with an offset that follows the base rate."""
    rows = rows_to_score(trained, log, log.is_split(split), f"row of split '{split}'")
    sequences, logits = rows.sequences, logits_of_targets(trained, rows)[case.label]
    label = sequences.labels[case.label]
    scored = sequences.target & ~np.isnan(label)
    followed = followed_log_loss(label[scored], logits[scored], sequences.time[scored], case.delay)
    return {**metrics_of(trained, rows)[case.label], "followed_log_loss": followed}


def with_forest(case: Case, network: Any, log: Log, setting: Mapping[str, Any], seed: int) -> Any:
    """The network, and LightGBM on the training rows of the log, in one model."""
    from lightgbm import LGBMClassifier

    label = log.events[case.label]
    rows = log.events[case.shown & (log.events["split"] == "train").to_numpy() & label.notna().to_numpy()]
    x = training.forest_rows(rows, network.schema)
    forest = LGBMClassifier(**forest_settings(dict(setting), seed)).fit(x, rows[case.label])
    return models.with_forest(network, layers.Forest.from_lightgbm(forest), case.label)


def network_of(
    case: Case,
    name: str,
    log: Log,
    seed: int,
    options: Mapping[str, Any],
    tuning: bool,
    changed: Mapping[str, Any] | None,
    callbacks: Sequence[Any],
    kept: Path | None,
) -> tuple[Any, dict[str, Any]]:
    """A trained network and its history: that of the folder, if it has one made with the same."""
    made = made_with(case.name, name, changed)
    digest = hashlib.sha256(json.dumps([case.name, case.holdout, tuning, seed, made], sort_keys=True).encode()).hexdigest()[:16]
    file = None if kept is None else kept / f"{name.replace(' ', '_')}_{digest}"
    if file is not None and (file / "history.json").exists():
        return models.load(file), json.loads((file / "history.json").read_text(encoding="utf-8"))
    trained, history = training.train(log, name.split()[0], seed=seed, options=options, callbacks=callbacks, verbose=False)
    if file is not None:
        file.mkdir(parents=True, exist_ok=True)
        trained.save(file / "model.keras")
        (file / "history.json").write_text(json.dumps(history), encoding="utf-8")
    return trained, history


def run(
    case: Case, name: str, seed: int, tuning: bool = False, changed: Mapping[str, Any] | None = None, kept: Path | None = None
) -> dict[str, Any]:
    """Train and score one run, with some options changed; `tuning`: on training rows alone; `kept`: the folder of networks."""
    settings = options_of(case.name, name, changed)
    callbacks: list[Any] = []
    log = of_movielens(case, settings["features"]) if case.name == "movielens-1m" else with_columns(case, settings["features"])
    log = earlier(log) if tuning else log
    options = dict(settings["options"])
    if settings["factors"]:
        factors = data.item_factors(log.split("train"), case.member, case.item, settings["of"], dim=settings["factors"], kind="both")
        callbacks.append(training.StartTables({case.item: factors}, deviation=0.2))
    if "features" in options and options["features"] is None:
        options["features"] = tuple(one.name for one in log.schema.features if one.kind != "id")
    base = name.removesuffix(WITH).removesuffix(THREE)
    many = settings.get("networks", 1)
    seeds = [seed] if many == 1 else range(many * seed, many * seed + many)
    made = [network_of(case, base, log, each, options, tuning, changed, callbacks, kept) for each in seeds]
    trained, history = made[0] if many == 1 else (models.ensemble([one for one, _ in made]), made[0][1])
    if "forest" in settings:
        trained = with_forest(case, trained, log, settings["forest"], seed)
    splits = ("validation",) if tuning else case.splits
    scored = {split: figures_of(case, trained, log, split) for split in splits}
    line = {"figures": scored, "parameters": history["parameters"], "loss": history["epochs"]["loss"]}
    if "forest" in settings and tuning:  # what the later training rows would weigh the two with
        line["stack"] = training.fit_stack(trained, rows_to_score(trained, log, log.is_split("validation"), "row").sequences)
    return line


def run_line(
    case: Case,
    name: str,
    seed: int,
    path: Path,
    tuning: bool = False,
    changed: Mapping[str, Any] | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """The line of a run: that of the file, if it has one with the same options, or of a new run, which is added to the file."""
    about = {"log": case.name, "holdout": case.holdout, "tuning": tuning, "run": name, "seed": seed}
    about |= {"made_with": made_with(case.name, name, changed)}
    for line in read_lines(path):
        if {key: line.get(key) for key in about} == about:
            return line
    begin = time.process_time()
    line = {**about, "changed": dict(changed or {}), **run(case, name, seed, tuning, changed, kept)}
    line["seconds"] = round(time.process_time() - begin, 1)
    add_line(path, line)
    print(case.name, name, seed, line["figures"], file=sys.stderr, flush=True)
    return line


def print_table(path: Path) -> None:
    """One table a log and split; seconds are processor time of training and scores."""
    lines = read_lines(path)
    for log, holdout, tuning, split in dict.fromkeys((*_rows(line), split) for line in lines for split in line["figures"]):
        own = [line for line in lines if _rows(line) == (log, holdout, tuning)]
        rows = "the last training rows" if tuning else split
        print(f"\n{log}, {holdout:.0%} of the members held out, {rows}\n")
        print(f"| run | impression AUC | AUC | NDCG@10 | log loss | ECE | seconds |\n|{'---|' * 7}")
        for name in dict.fromkeys(_named(line) for line in own):
            found = [line for line in own if _named(line) == name]
            no_lists = ("impression_auc", "ndcg_at_10") if log == "movielens-1m" else ()
            cells = ["-" if each in no_lists else mean_cell([line["figures"][split][each] for line in found]) for each in FIGURES]
            print(f"| {name} | {' | '.join(cells)} | {np.mean([line['seconds'] for line in found]):.0f} |")


def _rows(line: Mapping[str, Any]) -> tuple[str, float, bool]:
    return line["log"], holdout_of(line), line.get("tuning", False)


def _named(line: Mapping[str, Any]) -> str:
    changed = line.get("changed")
    return line["run"] + (f" {json.dumps(changed)}" if changed else "")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = log_arguments(__doc__, list(RUNS))
    parser.add_argument("--runs", nargs="+")
    parser.add_argument("--tuning", action="store_true", help="fit on the earlier training rows and score the last of them")
    parser.add_argument("--change", type=json.loads, default={}, metavar="JSON", help="options that differ from those of the runs")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="where trained networks are kept, for runs that share one")
    args = parsed(parser, arguments)
    if args.table:
        print_table(args.table)
        return
    names = args.runs or list(RUNS[args.log])
    if unknown := [name for name in names if name not in RUNS[args.log]]:
        parser.error(f"--runs of {args.log} are {list(RUNS[args.log])}. Received: {unknown}")
    case = open_case(args.log, args.folder, args.holdout)
    for seed in args.seeds:
        for name in names:
            run_line(case, name, seed, args.json, args.tuning, args.change, args.models)
    print_table(args.json)


if __name__ == "__main__":
    main()
