"""What seeds do to tuning: settings chosen by some seeds, and judged by others.

    python tools/benchmarks/tuning_seeds.py run ebnerd:FOLDER --json seeds.jsonl [--model lirank] [--settings 12] [--members 0.2]
    python tools/benchmarks/tuning_seeds.py run simulated:300 --model cadet --settings 24 --json seeds.jsonl
    python tools/benchmarks/tuning_seeds.py table seeds.jsonl

Of EB-NeRD, FOLDER holds the files, and a share of the members is taken, by hash; the simulator has as many members as are said. Settings
are drawn from the model's default space, each trained with the same seeds on the training rows but those of the last day, which judge.
One JSON object per finished run; those in the file are kept.

The table takes every choice of k seeds of the S: the setting with the best mean over the k is chosen, and judged by the other S - k.

    flattery      how much better the k seeds showed the chosen setting than the others do
    regret        mean of the others: chosen setting less the setting that is best by them
    rank          Spearman's correlation, over settings, of the mean of the k with the mean of the others
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from runs import add_line, held_out as last_day, read_lines
from scipy.stats import spearmanr

import keras_ranking as kr
from keras_ranking.data import Log
from keras_ranking.data.readers.splits import held_out
from keras_ranking.tuning.spaces import default_space

FIGURES = {"log_loss": 1, "impression_auc": -1}


def drawn(model: str, number: int) -> dict[str, Any]:
    """One setting of the default space."""
    random, setting = np.random.default_rng((number, 7)), {}
    for name, of in default_space(model).items():
        if isinstance(of, kr.tuning.Float):
            ends = np.log([of.low, of.high]) if of.log else np.array([of.low, of.high])
            value = random.uniform(*ends)
            setting[name] = float(np.exp(value) if of.log else value)
        elif isinstance(of, kr.tuning.Int):
            setting[name] = int(random.integers(of.low, of.high + 1))
        else:
            setting[name] = list(of.values)[int(random.integers(len(of.values)))]
    return setting


def opened(source: str, members: float) -> Log:
    """The log, whose `validation` is the last training day."""
    name, _, rest = source.partition(":")
    if name == "simulated":
        return last_day(kr.data.simulate(members=int(rest)))
    log = last_day(kr.data.read_ebnerd(rest))
    own = held_out(log.events[log.schema.member], members, 1)[0]
    return Log(log.events[own].reset_index(drop=True), log.schema, log.name, preset=log.preset)


def run(source: str, model: str, path: Path, settings: int, seeds: int, members: float) -> None:
    """Every setting with every seed, seed by seed."""
    log, name = opened(source, members), source.partition(":")[0]
    size = {"members": members if name == "ebnerd" else int(source.partition(":")[2])}
    for seed in range(seeds):
        for number in range(settings):
            about = {"log": name, "model": model, **size, "setting": number, "seed": seed}
            if any({key: line[key] for key in about} == about for line in read_lines(path)):
                continue
            begin = time.process_time()
            ranker, _ = kr.training.train(log, model, seed=seed, options=drawn(model, number), verbose=False)
            found = kr.training.evaluate(ranker, log, "validation")["click"]
            line = {**about, "options": drawn(model, number), **{key: float(found[key]) for key in FIGURES}}
            add_line(path, {**line, "seconds": round(time.process_time() - begin, 1)})
            print(json.dumps(line), file=sys.stderr, flush=True)


def table(lines: list[dict[str, Any]]) -> str:
    """Spread, and what is chosen by k seeds."""
    settings, seeds = sorted({line["setting"] for line in lines}), sorted({line["seed"] for line in lines})
    at = {(line["setting"], line["seed"]): line for line in lines}
    seeds = [seed for seed in seeds if all((setting, seed) in at for setting in settings)]
    log, model, members = _kind(lines[0])
    about = f"{log}, {model}, members {members}: {len(settings)} settings, {len(seeds)} seeds each"
    text = [f"{about}\n", f"| | {' | '.join(FIGURES)} |", "|---|---|---|"]
    values = {name: np.array([[at[setting, seed][name] for seed in seeds] for setting in settings]) for name in FIGURES}
    text.append("| standard deviation over seeds | " + " | ".join(f"{x.std(axis=1, ddof=1).mean():.5f}" for x in values.values()) + " |")
    text.append("| over settings | " + " | ".join(f"{x.mean(axis=1).std(ddof=1):.5f}" for x in values.values()) + " |")
    for k in range(1, len(seeds) - 1):
        cells: dict[str, list[str]] = {what: [] for what in ("flattery", "regret", "rank")}
        for name, sign in FIGURES.items():
            found = []
            for chosen in combinations(range(len(seeds)), k):
                others = [seed for seed in range(len(seeds)) if seed not in chosen]
                seen, judged = (sign * values[name][:, list(which)].mean(axis=1) for which in (chosen, others))
                best = int(seen.argmin())
                found.append((judged[best] - seen[best], judged[best] - judged.min(), spearmanr(seen, judged)[0]))
            for what, value in zip(cells, np.mean(found, axis=0), strict=True):
                cells[what].append(f"{value:.3f}" if what == "rank" else f"{value:.5f}")
        text += [f"| {what}, chosen by {k} seed{'s' * (k > 1)} | {' | '.join(cell)} |" for what, cell in cells.items()]
    return "\n".join(text)


def _kind(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["log"], line["model"], line["members"]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    made = parts.add_parser("run")
    made.add_argument("source", metavar="LOG", help="ebnerd:FOLDER or simulated:MEMBERS")
    made.add_argument("--model", default="lirank", metavar="NAME")
    made.add_argument("--json", type=Path, required=True, metavar="FILE")
    made.add_argument("--settings", type=int, default=12, metavar="N")
    made.add_argument("--seeds", type=int, default=5, metavar="N")
    made.add_argument("--members", type=float, default=0.2, metavar="SHARE")
    shown = parts.add_parser("table")
    shown.add_argument("json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.part == "run":
        if not re.fullmatch(r"ebnerd:.+|simulated:[1-9]\d*", args.source):
            parser.error(f"LOG must be ebnerd:FOLDER or simulated:MEMBERS. Received: {args.source}")
        run(args.source, args.model, args.json, args.settings, args.seeds, args.members)
    lines = read_lines(args.json)
    for about in dict.fromkeys(map(_kind, lines)):
        print(table([line for line in lines if _kind(line) == about]), end="\n\n")


if __name__ == "__main__":
    main()
