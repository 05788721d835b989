"""LiGR and AmortizedDLRM on EB-NeRD: gate, set-wise block, history, and fusion of history and candidates; 95 % intervals.

    python tools/benchmarks/ligr_quality.py FOLDER --json quality.jsonl [--seeds 0 1 2] [--only NAME ...] [--split validation]
    python tools/benchmarks/ligr_quality.py --table quality.jsonl

Trained on `train`, evaluated on `validation`. Settings are those of the presets for this log (`keras_ranking.training`), which were chosen
with the last training day held out (`--split held_out` trains and evaluates in this way). `concat` and `append_cross` have almost the
same number of parameters: the width of the appended tokens is chosen for it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from runs import add_line, held_out, mean_cell, read_lines

from keras_ranking import data, models, training
from keras_ranking.data import Log
from keras_ranking.training.options import split_options

HISTORY: dict[str, Any] = {"history_features": ("article_age",), "max_history": 30}
NONE: dict[str, Any] = {"history_features": ()}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "LiGR": ("ligr", {}),
    "LiGR, history of 30": ("ligr", HISTORY),
    "LiGR, best 10 alone see each other": ("ligr", {"top_k": 10}),
    "LiGR, logits added": ("ligr", {"merge": "add"}),
    "LiGR without gates": ("ligr", {"gate": False}),
    "LiGR without set-wise block": ("ligr", {"setwise_layers": 0}),
    "LiGR without set-wise block, without gates": ("ligr", {"setwise_layers": 0, "gate": False}),
    "LiGR without set-wise block, history of 30": ("ligr", {"setwise_layers": 0, **HISTORY}),
    "AmortizedDLRM, append_cross": ("amortized", HISTORY),
    "AmortizedDLRM, append_falcon": ("amortized", {**HISTORY, "fusion": "append_falcon"}),
    "AmortizedDLRM, concat": ("amortized", {**HISTORY, "fusion": "concat"}),
    "LiRank without history": ("lirank", {}),
}


def as_wide_as_concat(log: Log, options: dict[str, Any]) -> dict[str, Any]:
    """Options of an appended fusion with the width for which its number of parameters is closest to that of `concat`."""
    schema = log.schema.fit(log.events[log.events["split"] == "train"])

    def size(more: dict[str, Any]) -> int:
        wanted, _ = split_options("amortized", {**options, **more}, log.preset)
        return int(models.AmortizedDLRM(schema, **wanted).count_params())

    target = size({"fusion": "concat"})
    widths = {dim: abs(size({"dim": dim}) - target) for dim in range(8, 65, 4)}
    return {**options, "dim": min(widths, key=lambda dim: widths[dim])}


def run(name: str, log: Log, seed: int) -> dict[str, Any]:
    kind, options = PARTS[name]
    if kind == "amortized" and options.get("fusion") != "concat":
        options = as_wide_as_concat(log, options)
    begin = time.perf_counter()
    model, history = training.train(log, kind, seed=seed, options=options, verbose=False)
    return {
        "part": name,
        "seed": seed,
        **{key: float(value) for key, value in training.evaluate(model, log)["click"].items()},
        "parameters": history["parameters"],
        "seconds": time.perf_counter() - begin,
    }


def table(lines: list[dict[str, Any]]) -> str:
    names = ("impression_auc", "ndcg_at_10", "auc", "log_loss")
    out = ["| model | impression AUC | NDCG@10 | AUC | log loss | parameters | seeds |", "|---|---|---|---|---|---|---|"]
    for part in PARTS:
        found = [line for line in lines if line["part"] == part]
        if not found:
            continue
        cells = []
        for name in names:
            cells.append(mean_cell([line[name] for line in found]))
        out.append(f"| {part} | " + " | ".join(cells) + f" | {found[0]['parameters']:,} | {len(found)} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="parts of these names")
    parser.add_argument("--split", choices=["validation", "held_out"], default="validation")
    parser.add_argument("--table", type=Path, help="print the table of this file")
    args = parser.parse_args()
    if args.table:
        print(table(read_lines(args.table)))
        return
    if not args.folder or not args.json:
        parser.error("FOLDER and --json are needed, or --table")
    done = read_lines(args.json)
    log = data.read_ebnerd(args.folder)
    log = held_out(log) if args.split == "held_out" else log
    for seed in args.seeds:
        for name in args.only or PARTS:
            if any(line["part"] == name and line["seed"] == seed for line in done):
                continue
            line = run(name, log, seed)
            add_line(args.json, line)
            shown = {key: round(line[key], 4) for key in ("impression_auc", "ndcg_at_10", "log_loss")}
            print(f"{name}, seed {seed}: {shown}, {line['seconds']:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
