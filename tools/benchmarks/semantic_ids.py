"""Semantic ids compared with tables by item: size, and AUC of a small ranker whose only input of an item is its representation.

    python tools/benchmarks/semantic_ids.py FOLDER --json semantic_ids.jsonl [--seeds 0 1 2]
    python tools/benchmarks/semantic_ids.py --table semantic_ids.jsonl

MovieLens (FOLDER holds what `read_movielens` reads, and `ml100k_items.csv.gz` with `item_id`, `movie_title`, `release_year` and
`genres`, which is `u.item` of the release): item content is genres, hashed title words and the year, known before the first rating; the
simulator: topic and editor score of the item. A `ResidualQuantizer` learns codes from the content only. The ranker is an MLP on the
representation of the item, the embedding of the member and the numbers of the log; representations have the same width:

    full table           one row per item
    hashed, 1/8          ids hashed into an eighth of the rows
    semantic, sum        `SemanticIdEmbedding`, a table of codewords per level
    semantic, prefixes   the same with prefixes of codes
    content              the content vector through a linear layer, for comparison
    none                 no item

Evaluated on `validation`, split by time, on all items and on items that are not in `train`. Three seeds, 95 % intervals; one JSON object
per line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from runs import mean_cell

from keras_ranking import data, metrics
from keras_ranking.data import Log
from keras_ranking.layers import ResidualQuantizer, SemanticIdEmbedding

FORMS = ("full table", "hashed, 1/8", "semantic, sum", "semantic, prefixes", "content", "none")
LEVELS, CODES, WIDTH = 3, 32, 16


def movielens(folder: str) -> tuple[Log, str, np.ndarray]:
    """The log, its label, and content by item id."""
    items = pd.read_csv(Path(folder) / "ml100k_items.csv.gz", keep_default_na=False)
    size = int(items["item_id"].max()) + 1
    genres = sorted({genre for row in items["genres"] for genre in str(row).split()})
    content = np.zeros((size, len(genres) + 32 + 2), dtype=np.float32)
    items["year"] = pd.to_numeric(items["release_year"], errors="coerce")  # unknown for a few items; a separate column marks these
    for item, title, year, row in items[["item_id", "movie_title", "year", "genres"]].itertuples(index=False):
        for genre in str(row).split():
            content[item, genres.index(genre)] = 1.0
        for word in str(title).lower().split():
            content[item, len(genres) + sum(word.encode()) % 32] += 0.3
        content[item, -2:] = (0.0, 1.0) if np.isnan(year) else ((year - 1990.0) / 10.0, 0.0)
    return data.read_movielens(folder), "liked", content


def simulated(seed: int) -> tuple[Log, str, np.ndarray]:
    log = data.simulate(members=300, days=8, seed=seed)
    events = log.events.drop_duplicates("item_id")
    topics = pd.get_dummies(events["topic"]).to_numpy(np.float32)
    codes, items = pd.factorize(log.events["item_id"])
    content = np.concatenate([topics, events[["editor_score"]].to_numpy(np.float32)], axis=1)
    order = pd.Index(events["item_id"]).get_indexer(items)
    log.events["item_number"] = codes
    return log, "click", content[order]


def codes_of(content: np.ndarray, seed: int) -> np.ndarray:
    """Semantic ids learned from content, (items, LEVELS)."""
    keras.utils.set_random_seed(seed)
    layer = ResidualQuantizer(levels=LEVELS, codebook_size=CODES, seed=seed)
    inputs = keras.Input((content.shape[1],))
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer="adam")
    model.fit(content, content, batch_size=256, epochs=60, verbose=0)
    return np.asarray(keras.ops.convert_to_numpy(layer.encode(content)))


def ranker(form: str, items: int, members: int, numbers: int, content: np.ndarray) -> tuple[keras.Model, int]:
    """The model, and the number of parameters of its item representation."""
    item = keras.Input((), dtype="int32", name="item")
    codes = keras.Input((LEVELS,), dtype="int32", name="codes")
    vector = keras.Input((content.shape[1],), name="content")
    member = keras.Input((), dtype="int32", name="member")
    number = keras.Input((numbers,), name="numbers")
    small = max(2, items // 8)
    layer: Any = {
        "full table": lambda: keras.layers.Embedding(items, WIDTH)(item),
        "hashed, 1/8": lambda: keras.layers.Embedding(small, WIDTH)(item * 40_503 % 65_537 % small),
        "semantic, sum": lambda: SemanticIdEmbedding(LEVELS, CODES, WIDTH)(codes),
        "semantic, prefixes": lambda: SemanticIdEmbedding(LEVELS, CODES, WIDTH, prefixes=True, buckets=4_099)(codes),
        "content": lambda: keras.layers.Dense(WIDTH)(vector),
        "none": lambda: None,
    }[form]()
    parts = [keras.layers.Embedding(members, WIDTH)(member), number]
    size = 0
    if layer is not None:
        size = keras.Model([item, codes, vector], layer).count_params()
        parts.append(layer)
    x = keras.layers.Concatenate()(parts)
    for width in (64, 32):
        x = keras.layers.Dense(width, activation="relu")(x)
    out = keras.layers.Dense(1, activation="sigmoid")(x)
    model = keras.Model({"item": item, "codes": codes, "content": vector, "member": member, "numbers": number}, out)
    model.compile(optimizer=keras.optimizers.Adam(2e-3), loss="binary_crossentropy")
    return model, size


def run(name: str, log: Log, label: str, content: np.ndarray, seed: int) -> list[dict[str, Any]]:
    events = log.events[log.events["split"] != "history"]
    train = (events["split"] == "train").to_numpy()
    evaluated = (events["split"] == "validation").to_numpy()
    item = events["item_number" if "item_number" in events else "item_id"].to_numpy(np.int32)
    member = pd.factorize(events[log.schema.member])[0].astype(np.int32)
    columns = [feature.name for feature in log.schema.features if feature.kind == "number"]
    if name == "simulated":  # the content is available only through the representation
        columns = [column for column in columns if column not in ("editor_score",)]
    numbers = events[columns].to_numpy(np.float32)
    numbers = np.sign(numbers) * np.log1p(np.abs(numbers))
    numbers = (numbers - numbers[train].mean(axis=0)) / (numbers[train].std(axis=0) + 1e-6)
    codes = codes_of(content, seed)
    known = np.isin(item, item[train])
    y = events[label].to_numpy(np.float32)
    x = {"item": item, "codes": codes[item], "content": content[item], "member": member, "numbers": numbers}
    lines = []
    for form in FORMS:
        keras.utils.set_random_seed(seed)
        model, size = ranker(form, len(content), int(member.max()) + 1, numbers.shape[1], content)
        model.fit({key: value[train] for key, value in x.items()}, y[train], batch_size=512, epochs=4, verbose=0)
        p = model.predict({key: value[evaluated] for key, value in x.items()}, batch_size=4096, verbose=0)[:, 0]
        new = ~known[evaluated]
        lines.append(
            {
                "log": name,
                "form": form,
                "seed": seed,
                "auc": float(metrics.auc(y[evaluated], p)),
                "auc_new_items": float(metrics.auc(y[evaluated][new], p[new])) if 0 < y[evaluated][new].mean() < 1 else None,
                "new_share": float(new.mean()),
                "log_loss": float(metrics.log_loss(y[evaluated], p)),
                "parameters": int(size),
                "distinct_codes": len(np.unique(codes[np.unique(item)], axis=0)),
                "items": len(np.unique(item)),
            }
        )
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    out = ["| log | representation | parameters | AUC | AUC, new items | log loss |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(line["log"] for line in lines):
        for form in FORMS:
            found = [line for line in lines if line["log"] == name and line["form"] == form]

            def cell(key: str, found: list[dict[str, Any]] = found) -> str:
                if any(line[key] is None for line in found):
                    return "-"
                return mean_cell([line[key] for line in found])

            size = np.mean([line["parameters"] for line in found])
            out.append(f"| {name} | {form} | {size:,.0f} | {cell('auc')} | {cell('auc_new_items')} | {cell('log_loss')} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", type=Path, help="print the table of this file")
    args = parser.parse_args()
    if args.table:
        print(table([json.loads(line) for line in args.table.read_text(encoding="utf-8").splitlines()]))
        return
    if not args.folder or not args.json:
        parser.error("FOLDER and --json are needed, or --table")
    for seed in args.seeds:
        for name, (log, label, content) in {"movielens": movielens(args.folder), "simulated": simulated(seed)}.items():
            for line in run(name, log, label, content, seed):
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            print(f"{name}, seed {seed} done", file=sys.stderr, flush=True)
    print(table([json.loads(line) for line in args.json.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
