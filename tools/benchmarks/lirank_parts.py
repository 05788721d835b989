"""LiRank: the effect of each part on public logs, mean and half range of the seeds.

    python tools/benchmarks/lirank_parts.py FOLDER --json parts.jsonl [--seeds 0 1 2] [--only NAME ...]
    python tools/benchmarks/lirank_parts.py --table parts.jsonl

FOLDER holds the EB-NeRD, KuaiRand and MovieLens files. Each row of the table is one change to the base model of its log; all other
options are those of the base. Settings are fixed here; none was chosen on the rows that are scored. One JSON object per line: part,
log, task, seed, figures, parameters, seconds; parts that are already in the file are not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking import data, metrics, serving, training
from keras_ranking.columns import Id
from keras_ranking.data import Log, build_sequences
from keras_ranking.models import RankingModel
from keras_ranking.training.scoring.events import model_requests

# An MLP on numbers and categories, without ids; all others are changes of it.
BASE: dict[str, Any] = {
    "cross": "none",
    "gate": None,
    "calibration": False,
    "head": "shared_bottom",
    "history_features": [],
    "pairwise_weight": 0.0,
    "listwise_weight": 0.1,
    "batch_size": 16,
    "row_length": 256,
    "epochs": 5,
    "learning_rate": 2e-3,
}
BOTH = ("click", "long_dwell")


@dataclass(frozen=True)
class Part:
    """One row: a name, the log, the claim of the paper, and the change."""

    name: str
    log: str
    claim: str
    options: dict[str, Any] = field(default_factory=dict)
    ids: bool = False
    after: str = ""


RDCN = {"cross": "residual", "rank": 32, "gate": "dense"}
PARTS = [
    Part("base: MLP 4 x 100", "ebnerd", "base"),
    Part("list loss off", "ebnerd", "(ours)", {"listwise_weight": 0.0}),
    Part("embeddings of ids, 30 wide", "ebnerd", "+1.89 %", ids=True),
    Part("the same, tables by AdaGrad", "ebnerd", "large effect", {"table_optimizer": "adagrad"}, ids=True),
    Part("isotonic layer", "ebnerd", "+1.08 %", {"calibration": True}),
    Part(
        "isotonic layer, step 0.5, device",
        "ebnerd",
        "+1.08 %",
        {"calibration": True, "calibration_options": {"step": 0.5}, "calibration_features": ["device"]},
    ),
    Part("larger MLP, 4 x 512", "ebnerd", "+1.23 % (4 x 3500)", {"hidden": [512] * 4}),
    Part("dense gates", "ebnerd", "+1.00 %", {"gate": "dense"}),
    Part("low-rank DCNv2", "ebnerd", "+1.26 %", {"cross": "low_rank", "rank": 32}),
    Part("attention cross alone", "ebnerd", "", {"cross": "attention", "rank": 32}),
    Part("Residual DCN", "ebnerd", "+2.15 %", {"cross": "residual", "rank": 32}),
    Part("history, concat, 10 events", "ebnerd", "+1.66 % (100 events)", {"history_features": ["article_age"], "max_history": 10}),
    Part("no batch normalisation", "ebnerd", "needed", {"batch_norm": False}),
    Part("no warm-up", "ebnerd", "diverges", {"warmup": 0.0}),
    Part("preset feed", "ebnerd", "+3.62 %", {**RDCN, "calibration": True, "calibration_options": {"step": 0.5}, "head": "grouped"}),
    Part(
        "preset feed, int8 tables",
        "ebnerd",
        "parity",
        {**RDCN, "calibration": True, "calibration_options": {"step": 0.5}, "head": "grouped", "table_optimizer": "adagrad"},
        ids=True,
        after="int8",
    ),
    Part("Residual DCN, dense gates", "ebnerd", "", RDCN),
    Part(
        "Residual DCN, dense gates, random effects every 8 h",
        "ebnerd",
        "+0.17 % engaged DAU",
        {**RDCN, "random_effects": {"click": "article_id"}},
        after="effects",
    ),
    Part("two tasks: hard sharing", "ebnerd2", "base", {}),
    Part("two tasks: grouping", "ebnerd2", "+0.75 %", {"head": "grouped", "groups": {"a": ["click"], "b": ["long_dwell"]}}),
    Part("two tasks: MMoE", "ebnerd2", "+1.19 %", {"head": "mmoe"}),
    Part("two tasks: PLE", "ebnerd2", "+1.34 %", {"head": "ple"}),
    Part("two tasks: sparse MMoE", "ebnerd2", "+4.14 % (with RDCN ...)", {"head": "sparse_mmoe"}),
    *[
        Part(
            f"ids: {name}",
            log,
            claim,
            {"epochs": 3, "listwise_weight": 0.0, "row_length": 128, "id_dim": 16},
            ids=True,
            after=f"ids:{name}",
        )
        for log in ("kuairand", "movielens")
        for name, claim in (
            ("full table", "base"),
            ("quotient-remainder", "no loss"),
            ("hashed, a row for eight ids", ""),
            ("none", ""),
        )
    ],
]


def open_logs(folder: str) -> dict[str, Log]:
    """Each log with the tasks that its parts predict."""
    return {
        "ebnerd": data.read_ebnerd(folder),
        "ebnerd2": data.read_ebnerd(folder, tasks=BOTH),
        "kuairand": data.read_kuairand(folder),
        "movielens": data.read_movielens(folder),
    }


def with_ids(log: Log, how: str) -> tuple[Log, list[str]]:
    """The log with another embedding of its item id, and the columns that the model reads."""
    schema = log.schema
    item = next(feature for feature in schema.features if feature.kind == "id")
    count = int(log.events[item.name].nunique())
    member = Id(
        "member_of", buckets=None if how.startswith("quotient") else _rows(int(log.events[schema.member].nunique()), how), known="context"
    )
    events = log.events.assign(member_of=log.events[schema.member])
    changed = Id(item.name, buckets=None if how.startswith("quotient") else _rows(count, how), divisor=65536)
    features = tuple(changed if feature is item else feature for feature in schema.features)
    if how != "none":
        features = (*features, member)
    log = replace(log, events=events, schema=schema.model_copy(update={"features": features}))
    return log, [feature.name for feature in features if how != "none" or feature is not changed]


def _rows(count: int, how: str) -> int:
    # A full table: enough rows that few ids share one.
    return 16 * count if how.startswith("full") else max(2, count // 8)


def figures(log: Log, model: RankingModel) -> dict[str, dict[str, float]]:
    return training.evaluate(model, log)


def rolling_effects(log: Log, model: RankingModel, hours: int = 8) -> dict[str, dict[str, float]]:
    """Validation scored in windows, each with random effects fitted on the hours before it."""
    events = log.events
    seconds = events["time"].to_numpy()
    scored = (events["split"] == "validation").to_numpy()
    shown = events["split"].isin(["train", "validation"]).to_numpy()
    sequences = build_sequences(events, model.schema, target=scored)
    probability = np.full(sequences.num_events, np.nan)
    start, stop = seconds[scored].min(), seconds[scored].max()
    for at in range(start, stop + 1, hours * 3600):
        # Only known feedback is used for the fit: not that of the last ten minutes.
        past = shown & (seconds >= at - hours * 3600) & (seconds < at - 600)
        training.fit_random_effects(model, sequences.with_target(past), l2=5.0)
        window = sequences.with_target(scored & (seconds >= at) & (seconds < at + hours * 3600))
        if window.target.any():
            found = training.predict_events(model, model_requests(model, window))["click"][:, 0]
            probability = np.where(np.isnan(found), probability, found)
    evaluated = sequences.target
    return {"click": metrics.summary(sequences.labels["click"][evaluated], probability[evaluated], sequences.request[evaluated])}


def run(part: Part, log: Log, seed: int) -> dict[str, Any]:
    """Train and evaluate one part."""
    options = {**BASE, **part.options}
    if part.after.startswith("ids:"):
        log, options["features"] = with_ids(log, part.after.removeprefix("ids:"))
    else:
        options["features"] = [feature.name for feature in log.schema.features if part.ids or feature.kind != "id"]
    begin = time.perf_counter()
    model, history = training.train(log, model="lirank", seed=seed, options=options, verbose=False)
    extra = {}
    if part.after == "effects":
        results = rolling_effects(log, model)
    elif part.after == "int8":
        whole, results = figures(log, model), figures(log, serving.quantize_embeddings(model))
        extra = {"auc_change": results["click"]["auc"] - whole["click"]["auc"]}
    else:
        results = figures(log, model)
    tables = sum(int(np.prod(v.shape)) for v in model.trainable_variables if v.path.endswith("embeddings"))
    return {
        "part": part.name,
        "log": part.log,
        "claim": part.claim,
        "seed": seed,
        "results": results,
        "parameters": history["parameters"],
        "table_parameters": tables,
        "seconds": time.perf_counter() - begin,
        **extra,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown: one row per part and task, mean and half range over the seeds."""
    out = [
        "| part | log | task | paper | impression AUC | AUC | log loss | parameters (tables) | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        found = [line for line in lines if line["part"] == part.name and line["log"] == part.log]
        if not found:
            continue
        for task in found[0]["results"]:
            cells = []
            for name in ("impression_auc", "auc", "log_loss"):
                values = np.array([line["results"][task][name] for line in found])
                cells.append("-" if not np.isfinite(values).all() else f"{values.mean():.4f} ± {np.ptp(values) / 2:.4f}")
            size = f"{found[0]['parameters'] / 1e3:,.0f} k ({found[0]['table_parameters'] / 1e3:,.0f} k)"
            out.append(f"| {part.name} | {part.log} | {task} | {part.claim} | " + " | ".join(cells) + f" | {size} | {len(found)} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="parts whose name or log starts with one of these")
    parser.add_argument("--table", type=Path, help="print the table of this file")
    args = parser.parse_args()
    if args.table:
        print(table([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return
    if not args.folder or not args.json:
        parser.error("FOLDER and --json are needed, or --table")
    done = [json.loads(line) for line in args.json.read_text(encoding="utf-8").splitlines()] if args.json.exists() else []
    logs = open_logs(args.folder)
    for seed in args.seeds:
        for part in PARTS:
            if args.only and not any(part.name.startswith(name) or part.log == name for name in args.only):
                continue
            if any(line["part"] == part.name and line["log"] == part.log and line["seed"] == seed for line in done):
                continue
            line = run(part, logs[part.log], seed)
            with args.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            shown = {task: {k: round(v[k], 4) for k in ("impression_auc", "auc", "log_loss")} for task, v in line["results"].items()}
            print(f"{part.log} {part.name} seed {seed}: {shown} {line['seconds']:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
