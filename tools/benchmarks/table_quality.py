"""Quality by the optimiser of large id tables: `table_optimizer` of training, mean and 95 % interval of the seeds.

    python tools/benchmarks/table_quality.py FOLDER --json choice.jsonl --choose      # rates, on the last training day
    python tools/benchmarks/table_quality.py FOLDER --json table_quality.jsonl        # the rows that are judged
    python tools/benchmarks/table_quality.py --table table_quality.jsonl

FOLDER holds the EB-NeRD and MovieLens files. Item and member ids are hashed to 131,072 rows each, so that the default, 'auto', is
'rowwise_adagrad'. LiRank without a history on both logs, CADET on MovieLens. One JSON object per line: case, rule, rate, seed, figures,
seconds; runs that are already in the file are not run again. The `validation` rows are the later ones of each log.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runs import add_line, held_out, mean_cell, read_lines

from keras_ranking import data, training
from keras_ranking.columns import Id
from keras_ranking.data import Log

ROWS = 131_072
OPTIONS: dict[str, dict[str, Any]] = {
    "lirank ebnerd": {
        "history_features": [],
        "batch_size": 16,
        "row_length": 256,
        "epochs": 3,
        "pairwise_weight": 0.0,
        "listwise_weight": 0.1,
    },
    "lirank movielens": {"history_features": [], "batch_size": 16, "row_length": 128, "epochs": 3, "pairwise_weight": 0.0},
    "cadet movielens": {
        "num_layers": 1,
        "dim": 32,
        "num_heads": 2,
        "batch_size": 8,
        "row_length": 256,
        "epochs": 3,
        "pairwise_weight": 0.0,
    },
}
RATES = {"same": (None,), "rowwise_adagrad": (0.01, 0.02, 0.05), "lazy_adam": (1e-3, 2e-3, 5e-3)}
CHOSEN = {"same": None, "rowwise_adagrad": 0.01, "lazy_adam": 2e-3}


def with_large_tables(log: Log) -> tuple[Log, list[str]]:
    """The log with hashed item and member ids, and the names of all features."""
    schema, events = log.schema, log.events.assign(member_of=log.events[log.schema.member])
    features = [Id(f.name, buckets=ROWS, known=f.known) if f.kind == "id" else f for f in schema.features]
    features.append(Id("member_of", buckets=ROWS, known="context"))
    return replace(log, events=events, schema=schema.model_copy(update={"features": tuple(features)})), [f.name for f in features]


def cases(choose: bool) -> Iterator[tuple[str, str, float | None]]:
    for case in OPTIONS:
        for rule, chosen in CHOSEN.items():
            for rate in RATES[rule] if choose else (chosen,):
                yield case, rule, rate


def run(log: Log, case: str, rule: str, rate: float | None, seed: int) -> dict[str, Any]:
    log, names = with_large_tables(log)
    model_name = case.split()[0]
    options = {**OPTIONS[case], "table_optimizer": rule, "features" if model_name == "lirank" else "token_features": names}
    if rate is not None:
        options["table_learning_rate"] = rate
    begin = time.perf_counter()
    model, _ = training.train(replace(log, preset=None), model_name, seed=seed, options=options, verbose=False)
    seconds = round(time.perf_counter() - begin, 1)
    found = next(iter(training.evaluate(model, log).values()))
    return {"case": case, "rule": rule, "rate": rate, "seed": seed, "seconds": seconds, "figures": found}


def print_table(path: Path) -> None:
    lines = read_lines(path)
    print("| case | table_optimizer | rate | impression AUC | AUC | log loss | seconds |\n|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((line["case"], line["rule"], line["rate"]) for line in lines):
        found = [line for line in lines if (line["case"], line["rule"], line["rate"]) == key]
        cells = [mean_cell([line["figures"][name] for line in found]) for name in ("impression_auc", "auc", "log_loss")]
        seconds = sum(line["seconds"] for line in found) / len(found)
        print(
            f"| {key[0]} | `{key[1]}` | {'' if key[2] is None else key[2]} | {' | '.join(cells)} | {seconds:.0f} |".replace("nan ± nan", "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--choose", action="store_true", help="all rates, scored on the last training day")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="print the table of a file")
    args = parser.parse_args()
    if args.table:
        print_table(args.table)
        return
    if not args.folder or not args.json:
        parser.error("FOLDER and --json are needed, or --table")
    logs: dict[str, Log] = {}
    done = {(line["case"], line["rule"], line["rate"], line["seed"]) for line in read_lines(args.json)}
    for case, rule, rate in cases(args.choose):
        for seed in args.seeds:
            if (case, rule, rate, seed) in done:
                continue
            name = case.split()[1]
            if name not in logs:
                read = {"ebnerd": data.read_ebnerd, "movielens": data.read_movielens}[name]
                logs[name] = held_out(read(args.folder)) if args.choose else read(args.folder)
            line = run(logs[name], case, rule, rate, seed)
            add_line(args.json, line)
            print({name: line[name] for name in ("case", "rule", "rate", "seed", "seconds")}, line["figures"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
