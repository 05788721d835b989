#!/usr/bin/env python
"""FeedSR and CADET on EB-NeRD: the effect of history, rotation, gates, masks, layouts, heads and fusion; 95 % intervals.

    python tools/benchmarks/sequence_quality.py FOLDER --out runs/sequence [--seeds 0 1 2] [--only NAME ...] [--split validation]
    python tools/benchmarks/sequence_quality.py FOLDER --out runs/quarter --share 0.25
    python tools/benchmarks/sequence_quality.py --table runs/sequence

Trained on `train`, evaluated on `validation`. Settings of the two base models are the presets for this log (`keras_ranking.training`),
which were chosen with the last training day held out (`--split held_out` trains and evaluates in this way). Every other row is one
change to a base. OUT gets one line per run in `runs.jsonl`, and the AUC of every request; existing runs are not run again.

The table gives means and half of the 95 % interval over seeds; the last columns compare with the base of the same model: the difference of
impression AUC, each request's AUC averaged over seeds, with the interval of a paired bootstrap over members.

`--share` trains on a share of the members, the same for every row and seed; all members are evaluated.

History: a row with `history N` reads only the latest N events (`max_history`), in training and in evaluation; 0 is the same model without
a history.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from runs import add_line, held_out, mean_cell, read_lines

from keras_ranking import data, metrics, training
from keras_ranking.data import Log, build_sequences, pack

EARLY: dict[str, Any] = {"token_features": "all", "late_features": ()}
BASES = ("FeedSR", "CADET")


def history(events: int) -> dict[str, Any]:
    """Options to read `N` events, in rows of sufficient length, with the same number of events per step."""
    rows = max(256, 1 << (2 * events - 1).bit_length()) if events else 256
    return {"max_history": events, "row_length": rows, "batch_size": max(1, 4096 // rows)}


PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "FeedSR": ("feedsr", {}),
    "FeedSR, BCE alone": ("feedsr", {"pairwise_weight": 0.0}),
    "FeedSR, history 0": ("feedsr", history(0)),
    "FeedSR, history 50": ("feedsr", history(50)),
    "FeedSR, history 200": ("feedsr", history(200)),
    "FeedSR, history 1000": ("feedsr", history(1000)),
    "FeedSR, rotated by time": ("feedsr", {"rotate_by": "time"}),
    "FeedSR, rotated by both": ("feedsr", {"rotate_by": "split"}),
    "FeedSR, not rotated": ("feedsr", {"rotate_by": None}),
    "FeedSR, residual plain": ("feedsr", {"residual": "plain"}),
    "FeedSR, residual LayerScale": ("feedsr", {"residual": "layer_scale"}),
    "FeedSR, residual ReZero": ("feedsr", {"residual": "rezero"}),
    "FeedSR, residual dense gate": ("feedsr", {"residual": "dense_gate"}),
    "FeedSR, mask session": ("feedsr", {"mask": "session"}),
    "FeedSR, layout fused": ("feedsr", {"layout": "fused"}),
    "FeedSR, layout value": ("feedsr", {"layout": "value"}),
    "FeedSR, head MMoE": ("feedsr", {"head": "mmoe"}),
    "FeedSR, head stacked DCN": ("feedsr", {"head": "stacked_dcn"}),
    "FeedSR, head MLP": ("feedsr", {"head": "mlp"}),
    "FeedSR, head linear": ("feedsr", {"head": "linear"}),
    "FeedSR, all features early": ("feedsr", EARLY),
    "CADET": ("cadet", {}),
    "CADET, history 0": ("cadet", history(0)),
    "CADET, history 50": ("cadet", history(50)),
    "CADET, history 200": ("cadet", history(200)),
    "CADET, history 1000": ("cadet", history(1000)),
    "CADET, rotated by index": ("cadet", {"rotate_by": "index"}),
    "CADET, not rotated": ("cadet", {"rotate_by": None}),
    "CADET, gates none": ("cadet", {"gates": "none"}),
    "CADET, gates representation": ("cadet", {"gates": "representation"}),
    "CADET, gates query and key": ("cadet", {"gates": "qk"}),
    "CADET, gate on the output": ("cadet", {"gates": "output"}),
    "CADET, mask session": ("cadet", {"mask": "session"}),
    "CADET, layout fused": ("cadet", {"layout": "fused"}),
    "CADET, layout value": ("cadet", {"layout": "value"}),
}


def of_some(log: Log, share: float) -> Log:
    """Training rows of a share of the members; all rows for evaluation, with the history of their members."""
    if share >= 1:
        return log
    members = np.unique(log.events[log.schema.member])
    kept = np.random.default_rng(0).permutation(members)[: max(1, round(share * len(members)))]
    out = (log.events["split"] == "train") & ~log.events[log.schema.member].isin(kept)
    # Read but not trained on: the history of members in the evaluation is unchanged.
    return replace(log, events=log.events.assign(split=log.events["split"].mask(out, "history")))


def resolved(log: Log, options: dict[str, Any]) -> dict[str, Any]:
    """Options with "all" features spelled out: every column that is not an id; ids of this log do not occur again."""
    if options.get("token_features") == "all":
        return {**options, "token_features": tuple(feature.name for feature in log.schema.features if feature.kind != "id")}
    return options


def run(name: str, log: Log, seed: int, out: Path) -> dict[str, Any]:
    kind, options = PARTS[name]
    begin = time.perf_counter()
    model, trained = training.train(log, kind, seed=seed, options=resolved(log, options), verbose=False)
    seconds = time.perf_counter() - begin
    wanted = (log.events["split"] == "validation").to_numpy()
    sequences = build_sequences(log.events, model.schema, target=wanted)
    longest = int(np.diff(sequences.request_starts).max(initial=1))
    rows = pack(sequences, max(2048, 2 * longest, options.get("row_length", 0)))
    score = training.predict_events(model, rows)["click"][:, model.serving_tower]
    evaluated = sequences.target
    label, request = sequences.labels["click"][evaluated], sequences.request[evaluated]
    found = metrics.per_request_auc(label, score[evaluated], request)
    file = out / f"{name.replace(' ', '_').replace(',', '')}_{seed}.npz"
    np.savez_compressed(file, auc=found.auc, member=sequences.member[evaluated][found.row])
    return {
        "part": name,
        "seed": seed,
        **{key: float(value) for key, value in metrics.summary(label, score[evaluated], request).items()},
        "parameters": trained["parameters"],
        "seconds": seconds,
        "requests": file.name,
    }


def table(folder: Path) -> str:
    lines = read_lines(folder / "runs.jsonl")
    names = ("impression_auc", "ndcg_at_10", "auc", "log_loss")
    out = [
        "| model | impression AUC | NDCG@10 | AUC | log loss | parameters | seeds | against the base | interval |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def requests(part: str, seeds: set[int]) -> tuple[np.ndarray, np.ndarray]:
        files = [np.load(folder / line["requests"]) for line in lines if line["part"] == part and line["seed"] in seeds]
        return np.mean([file["auc"] for file in files], axis=0), files[0]["member"]

    for part in PARTS:
        found = [line for line in lines if line["part"] == part]
        if not found:
            continue
        cells = []
        for name in names:
            cells.append(mean_cell([line[name] for line in found]))
        base = part.split(",")[0]
        against = "| - | - |"
        seeds = {line["seed"] for line in found} & {line["seed"] for line in lines if line["part"] == base}
        if part != base and seeds:
            (first, member), (second, _) = requests(base, seeds), requests(part, seeds)
            interval = metrics.paired_bootstrap(first, second, clusters=member)
            against = f"| {interval.difference:+.4f} | [{interval.low:+.4f}, {interval.high:+.4f}] |"
        out.append(f"| {part} | " + " | ".join(cells) + f" | {found[0]['parameters']:,} | {len(found)} {against}")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="parts of these names")
    parser.add_argument("--split", choices=["validation", "held_out"], default="validation")
    parser.add_argument("--share", type=float, default=1.0, help="of the members to train on")
    parser.add_argument("--table", type=Path, help="print the table of this folder")
    args = parser.parse_args()
    if args.table:
        print(table(args.table))
        return
    if not args.folder or not args.out:
        parser.error("FOLDER and --out are needed, or --table")
    unknown = sorted(set(args.only or ()) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}; there is {list(PARTS)}")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "runs.jsonl"
    log = data.read_ebnerd(args.folder)
    log = of_some(held_out(log) if args.split == "held_out" else log, args.share)
    for seed in args.seeds:
        for name in args.only or PARTS:
            # Read each time: another process may run other parts in the same folder.
            if any(line["part"] == name and line["seed"] == seed for line in read_lines(path)):
                continue
            line = run(name, log, seed, args.out)
            add_line(path, line)
            shown = {key: round(line[key], 4) for key in ("impression_auc", "ndcg_at_10", "log_loss")}
            print(f"{name}, seed {seed}: {shown}, {line['seconds']:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
