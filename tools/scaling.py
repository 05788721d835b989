#!/usr/bin/env python
"""How a metric changes with training compute: several sizes, a fitted line, and its confidence interval.

    python tools/scaling.py --json scaling.jsonl --plot scaling.png [--data simulated | ebnerd:FOLDER] [--model ligr] [--seeds 0 1 2]
    python tools/scaling.py --table scaling.jsonl --plot scaling.png

Each run changes one axis of a base model (layers, width, context: events of history that are read, data: share of the training
members) and is trained for the same number of passes. The metric is computed on `validation`. Fit: ordinary least squares of the metric on
log10 of training FLOPs, over all runs and for each axis alone; the 95 % interval resamples sizes, not runs, since runs of
one size differ by the seed alone. A slope whose interval holds 0 is reported as that.

FLOPs: three times the forward pass (one forward, two backward), which is 2 a parameter and token in the layers that see it, and
4 D a visible pair and layer in attention. Embedding look-ups count nothing. Tokens: events read and candidates scored.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking import data, training
from keras_ranking.commands import table
from keras_ranking.data import Log, build_sequences
from keras_ranking.training.scoring.events import model_requests

BASE: dict[str, Any] = {"dim": 32, "num_layers": 2, "max_history": 32, "share": 1.0}
LADDER: dict[str, dict[str, list[Any]]] = {
    "small": {"dim": [16, 64], "num_layers": [1, 4], "max_history": [8, 96], "share": [0.25, 0.5]},
    "tiny": {"dim": [8], "num_layers": [1], "max_history": [4], "share": [0.5]},
}
AXES = ("base", "num_layers", "dim", "max_history", "share")


def sizes(ladder: str) -> list[tuple[str, dict[str, Any]]]:
    """(axis, size) of each run; the base is on every axis."""
    return [("base", BASE)] + [(axis, {**BASE, axis: value}) for axis, values in LADDER[ladder].items() for value in values]


def part_of(log: Log, share: float, seed: int) -> Log:
    """The training rows of a share of the members, and all rows of the evaluation."""
    if share >= 1:
        return log
    members = np.unique(log.events[log.schema.member])
    kept = np.random.default_rng(seed).permutation(members)[: max(1, round(share * len(members)))]
    rows = log.events["split"].isin(["validation", "test"]) | log.events[log.schema.member].isin(kept)
    return replace(log, events=log.events[rows].reset_index(drop=True))


def training_flops(model: Any, log: Log, epochs: int) -> float:
    """FLOPs of training, see above."""
    a = model.arguments
    learned = log.events[log.events["split"].isin(["train", "history"])]
    found = model_requests(model, build_sequences(learned, model.schema, target=(learned["split"] == "train").to_numpy()))
    history = np.minimum(found.history_end - found.history_begin, a["max_history"]).astype(np.float64)
    candidates = (found.candidate_end - found.candidate_begin).astype(np.float64)

    def parameters(*words: str) -> float:
        chosen = [v for v in model.trainable_variables if any(word in v.path for word in words) and "embeddings" not in v.path]
        return float(sum(np.prod(v.shape) for v in chosen))

    blocks = parameters("history/block", "/block_")
    total = float(sum(np.prod(v.shape) for v in model.trainable_variables if "embeddings" not in v.path))
    tokens, pairs = history + candidates, history * (history + candidates)
    forward = 2 * blocks * tokens.sum() + 2 * (total - blocks) * candidates.sum() + 4 * a["dim"] * a["num_layers"] * pairs.sum()
    return float(3 * forward * epochs)


def run(log: Log, name: str, axis: str, size: dict[str, Any], seed: int, options: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    part = part_of(log, size["share"], seed)
    own = {key: value for key, value in size.items() if key != "share"}
    model, history = training.train(part, name, seed=seed, options={**options, **own}, verbose=False)
    found = training.evaluate(model, log, split="validation")["click"]
    flops = training_flops(model, part, history["training"]["epochs"])
    return {
        "axis": axis,
        "size": size,
        "seed": seed,
        "flops": flops,
        **{key: float(found[key]) for key in ("auc", "impression_auc", "log_loss")},
        "parameters": history["parameters"],
        "seconds": time.perf_counter() - begin,
    }


def fit(lines: Sequence[dict[str, Any]], metric: str, draws: int = 2000) -> dict[str, float]:
    """Slope of the metric per decade of FLOPs, its 95 % interval, and the intercept."""
    by_size: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_size.setdefault(json.dumps(line["size"], sort_keys=True), []).append(line)
    x = [np.log10([line["flops"] for line in group]) for group in by_size.values()]
    y = [np.array([line[metric] for line in group]) for group in by_size.values()]

    def slope(which: np.ndarray) -> tuple[float, float]:
        a, b = np.concatenate([x[i] for i in which]), np.concatenate([y[i] for i in which])
        if np.ptp(a) < 1e-9:
            return np.nan, np.nan
        found = np.polyfit(a, b, 1)
        return float(found[0]), float(found[1])

    rng = np.random.default_rng(0)
    drawn = np.array([slope(rng.integers(0, len(x), len(x)))[0] for _ in range(draws)])
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    middle = slope(np.arange(len(x)))
    return {"slope": middle[0], "low": float(low), "high": float(high), "intercept": middle[1], "sizes": len(x)}


def report(lines: list[dict[str, Any]], metric: str) -> str:
    rows = []
    for axis in ("all", *AXES[1:]):
        chosen = lines if axis == "all" else [line for line in lines if line["axis"] in ("base", axis)]
        if len({line["flops"] for line in chosen}) < 2:
            continue
        f = fit(chosen, metric)
        verdict = "flat: 0 is inside" if f["low"] <= 0 <= f["high"] else ("rises" if f["slope"] > 0 else "falls")
        verdict = "too few sizes" if f["sizes"] < 3 else verdict
        rows.append([axis, f"{f['slope']:+.4f}", f"[{f['low']:+.4f}, {f['high']:+.4f}]", str(f["sizes"]), verdict])
    return table(["axis", f"{metric} a decade", "95 % interval", "sizes", ""], rows)


def plot(lines: list[dict[str, Any]], metric: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for axis in AXES:
        chosen = [line for line in lines if line["axis"] == axis]
        axes.scatter([line["flops"] for line in chosen], [line[metric] for line in chosen], label=axis.replace("_", " "), s=18)
    f = fit(lines, metric)
    x = np.geomspace(min(line["flops"] for line in lines), max(line["flops"] for line in lines), 20)
    middle = np.mean([line[metric] for line in lines])
    centre = np.mean(np.log10([line["flops"] for line in lines]))
    axes.plot(x, f["intercept"] + f["slope"] * np.log10(x), color="black", linewidth=1)
    bounds = [middle + f[end] * (np.log10(x) - centre) for end in ("low", "high")]
    axes.fill_between(x, np.minimum(*bounds), np.maximum(*bounds), color="grey", alpha=0.2)
    axes.set(xscale="log", xlabel="training FLOPs", ylabel=metric.replace("_", " "))
    axes.set_title(f"{f['slope']:+.4f} a decade, 95 % [{f['low']:+.4f}, {f['high']:+.4f}]")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="simulated", help="simulated, or what `keras-ranking train --data` takes")
    parser.add_argument("--model", default="ligr", choices=["ligr", "amortized"])
    parser.add_argument("--ladder", default="small", choices=sorted(LADDER))
    parser.add_argument("--members", type=int, default=400, help="of the simulator")
    parser.add_argument("--days", type=int, default=10, help="of the simulator")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--metric", default="auc", choices=["auc", "impression_auc", "log_loss"])
    parser.add_argument("--json", type=Path, help="append a line a run; runs that are there are not run again")
    parser.add_argument("--table", type=Path, help="report this file, without a run")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    path = args.table or args.json
    if path is None:
        parser.error("--json or --table is needed")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    if not args.table:
        simulated = args.data == "simulated"
        log = data.simulate(members=args.members, days=args.days, seed=100) if simulated else data.open_log(args.data)
        # Models overfit ids at this scale: the tastes of a member must come from the history.
        options: dict[str, Any] = {"epochs": args.epochs, "batch_size": 8, "row_length": 128, "num_heads": 2}
        options |= {"pairwise_weight": 0.0, "listwise_weight": 0.1, "learning_rate": 2e-3, "tasks": ("click",)}
        options |= {"setwise_layers": 0} if args.model == "ligr" else {}
        if simulated:
            known = ("topic", "age_hours", "editor_score")
            options |= {"features": known, "history_features": known}
        for seed in args.seeds:
            for axis, size in sizes(args.ladder):
                if any(line["seed"] == seed and line["size"] == size for line in lines):
                    continue
                lines.append(run(log, args.model, axis, size, seed, options))
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                last = lines[-1]
                shown = (
                    f"{axis} {size} seed {seed}: {args.metric} {last[args.metric]:.4f}, {last['flops']:.2e} FLOPs, {last['seconds']:.0f} s"
                )
                print(shown, file=sys.stderr, flush=True)
    print(report(lines, args.metric))
    if args.plot:
        plot(lines, args.metric, args.plot)


if __name__ == "__main__":
    main()
