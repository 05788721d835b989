"""What the papers state against what was tuned: the five models on four logs, each pair with the same rows, columns and sizes.

    python tools/benchmarks/paper_presets.py LOG FOLDER --json paper.jsonl [--models cadet ...] [--members 0.25] [--epochs 3]
    python tools/benchmarks/paper_presets.py --table paper.jsonl

LOG is ebnerd, movielens-1m, retail or kuairand-pure; columns are the largest set of `peers.py`. `tuned` has the options of `rankers.py`,
which were chosen on training days. `paper` has `preset="paper"` with the same columns, sizes and epochs (`KEPT`) and nothing else that was
chosen: its rate and weight decay are the defaults, since no paper gives them. --members trains and scores on a share of the members, by
hash; columns are of all; then nothing has the moving average of weights that `tuned` has, which needs more steps. One JSON object per
finished run; what is in the file is not run again.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peer_features import Case, open_case
from ranker_columns import of_movielens, with_columns
from rankers import LISTS, NAMES, OF_MODEL, TOKENS, figures_of, options_of
from runs import add_line, half_interval, log_arguments, mean_cell, parsed, read_lines

from keras_ranking import training
from keras_ranking.data import Log
from keras_ranking.data.readers.splits import held_out

KINDS = ("tuned", "paper")
LOGS = ("ebnerd", "movielens-1m", "retail", "kuairand-pure", "simulated")
# Columns, sizes and the length of a training: the same in both.
KEPT = (
    *("features", "token_features", "history_features", "max_history", "tasks", "id_dim", "dim", "num_layers", "num_heads"),
    *("tower_hidden", "head_options", "row_length", "batch_size", "epochs"),
)


def tuned(log: str, model: str) -> dict[str, Any]:
    """The options of `rankers.py`; a model that has none on a log has those of its lists, without losses of lists where there are none."""
    if log == "movielens-1m" and model in ("cadet", "feedsr"):
        return dict(options_of(log, f"{model} factors")["options"])
    if log in ("ebnerd", "retail", "kuairand-pure"):
        return dict(options_of(log, f"{model} fold_in")["options"])
    options = {**LISTS, **OF_MODEL[model]}
    if model in ("cadet", "feedsr"):
        options["token_features"] = TOKENS[log]
    elif model == "amortized":
        options["history_features"] = ("item_id",) if log == "movielens-1m" else TOKENS[log][:1]
    return options if log != "movielens-1m" else {**options, "listwise_weight": 0.0, **({"setwise_layers": 0} if model == "ligr" else {})}


def options_for(log: str, model: str, kind: str, members: float, epochs: int | None) -> dict[str, Any]:
    """What a run is trained with."""
    options = tuned(log, model)
    if members < 1.0:
        options["ema"] = None
    if kind == "paper":
        options = {**{name: options[name] for name in KEPT if name in options}, "preset": "paper"}
    return options if epochs is None else {**options, "epochs": epochs}


def log_of(case: Case, members: float) -> Log:
    """The log with its columns, of a share of the members."""
    log = of_movielens(case, "new") if case.name == "movielens-1m" else with_columns(case, "fold_in" if case.name != "simulated" else "new")
    if members == 1.0:
        return log
    chosen, _, _ = held_out(log.events[log.schema.member], members, 1)
    return replace(log, events=log.events[chosen].reset_index(drop=True))


def run_line(case: Case, log: Log, members: float, model: str, kind: str, seed: int, epochs: int | None, path: Path) -> None:
    """Train and score one run, if the file does not have it."""
    options = options_for(case.name, model, kind, members, epochs)
    about = {"log": case.name, "members": members, "model": model, "kind": kind, "seed": seed}
    about["options"] = json.loads(json.dumps(options))
    if any({name: line.get(name) for name in about} == about for line in read_lines(path)):
        return
    begin = time.process_time()
    given = dict(options)
    if "features" in given and given["features"] is None:
        given["features"] = tuple(one.name for one in log.schema.features if one.kind != "id")
    trained, history = training.train(log, model, seed=seed, options=given, verbose=False)
    figures = {split: figures_of(case, trained, log, split) for split in case.splits}
    seconds = round(time.process_time() - begin, 1)
    add_line(path, {**about, "parameters": history["parameters"], "figures": figures, "seconds": seconds})
    print(case.name, model, kind, seed, figures["validation"], file=sys.stderr, flush=True)


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """A table a log: both kinds, and the difference of the same seeds."""
    text = []
    for log, members in dict.fromkeys((line["log"], line["members"]) for line in lines):
        lists = log not in ("movielens-1m", "kuairand-pure")
        rank = "impression_auc" if lists else "auc"
        text += [
            f"{log}, {members:.0%} of the members:\n",
            f"| model | tuned: {rank} | log loss | paper: {rank} | log loss | paper - tuned: {rank} |",
        ]
        text.append("|---|---|---|---|---|---|")
        for model in dict.fromkeys(line["model"] for line in lines if line["log"] == log):
            of = {
                kind: {
                    line["seed"]: line["figures"]["validation"]
                    for line in lines
                    if (line["log"], line["members"], line["model"], line["kind"]) == (log, members, model, kind)
                }
                for kind in KINDS
            }
            cells = [
                mean_cell([each[name] for each in of[kind].values()]) if of[kind] else "-" for kind in KINDS for name in (rank, "log_loss")
            ]
            both = [of["paper"][seed][rank] - of["tuned"][seed][rank] for seed in of["tuned"] if seed in of["paper"]]
            cells.append("-" if not both else f"{np.mean(both):+.4f}" + (f" ± {half_interval(both):.4f}" if len(both) > 2 else ""))
            text.append(f"| {NAMES[model]} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = log_arguments(__doc__, LOGS)
    parser.add_argument("--models", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--members", type=float, default=1.0, help="share of the members that are trained on and scored (default: 1)")
    parser.add_argument("--epochs", type=int, help="of each training, in place of what was chosen")
    args = parsed(parser, arguments)
    if not args.table:
        case = open_case(args.log, args.folder, args.holdout)
        log = log_of(case, args.members)
        for seed in args.seeds:
            for model in args.models:
                for kind in KINDS:
                    run_line(case, log, args.members, model, kind, seed, args.epochs, args.json)
    print(tables(read_lines(args.table or args.json)))


if __name__ == "__main__":
    main()
