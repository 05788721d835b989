#!/usr/bin/env python
"""A tree of items found by spectral bisection as a feature, against genres, hashed ids and semantic ids, on rare items.

    python tools/benchmarks/label_tree.py LOG FOLDER --json label_tree.jsonl [--splits 0 1 2]
    python tools/benchmarks/label_tree.py --table label_tree.jsonl

LOG is `movielens-1m` (items: films; label: liked) or `kuairand-pure` (items: authors; label: long_view). A tree that is built from
the labels that its features are fitted on says again what it was told, so members are halved by hash, once for each split:

    half A   similarities of items, and what is made of them: the tree, and factors for semantic ids
    half B   the coefficients of the features

Judged are the rows of `validation` (all members, later than both halves) whose item has fewer than `RARE` rows in half B. Every
representation of the item goes into the same model, a logistic regression with numbers that know no item's label: how much the member has
rated, the member's rate, how often the item was met, and on KuaiRand tab, duration, hour and age of the video.

    none                     no item
    genres                   MovieLens: genres; KuaiRand: tag, types of video, upload and music
    hashed ids               one row of a hashed table
    semantic ids             codes of a `ResidualQuantizer` on factors of half A
    tree                     every node on the path of the item, by half A
    shuffled tree            the same tree, its items permuted: the control
    genres, both halves      fitted on the rows of A and B; likewise hashed ids. What is to be had without halving
    hashed ids + tree        both, with the options that each has by itself; likewise genres
    rate of half A           the item's smoothed rate in half A, as its logit

The tree is a `LabelTree`. Its similarities are shrunk correlations of residuals over members ("residual"), or `item_agreement`: who has met
both ("together"), who has given both the same label ("agreed"). Items that half A has not have no path.

Kind of similarity, depth, buckets and regularisation are chosen on the last fifth of the training rows, on rare items, with everything made
of earlier rows alone. On `validation` nothing is chosen. Trees, codes and what reads them are made with each of `SEEDS`; a log loss is the
mean over them. The choice is made with the first. `over_tree`: 95 % interval of log loss minus the tree's, by a bootstrap of items.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from peer_features import open_case
from runs import add_line, read_lines
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from keras_ranking import data, metrics
from keras_ranking.layers import ResidualQuantizer
from keras_ranking.ops.hashing import fingerprint64, hash_buckets

LOGS = {"movielens-1m": "item_id", "kuairand-pure": "author_id"}
FEATURES = (
    *("none", "genres", "hashed ids", "semantic ids", "tree", "shuffled tree"),
    *("hashed ids + genres", "hashed ids + tree", "genres, both halves", "hashed ids, both halves", "rate of half A"),
)
KINDS, DEPTHS, BUCKETS, STRENGTHS = ("residual", "together", "agreed"), (2, 4, 6, 8), (0.125, 1.0, 8.0), (0.01, 0.05, 0.25, 1.0, 4.0)
RARE, DIM, LEVELS, CODES = 20, 32, 3, 32
SEEDS = range(5)


@dataclass(frozen=True)
class Table:
    """A log as rows in order of time.

    Args:
        events: all rows, with `member`, `item` (numbers from 0), `time`, `label`.
        scored: rows that are fitted or judged on; others are known of members only (the history of the release).
        later: rows of `validation`.
        ids: the items' ids.
        numbers: (rows, numbers) that know no item's label, scaled; 0 in rows that are not scored.
        content: (rows, words) of 0 and 1.
    """

    events: pd.DataFrame
    scored: np.ndarray
    later: np.ndarray
    ids: np.ndarray
    numbers: np.ndarray
    content: sparse.csr_matrix


def opened(name: str, folder: str) -> Table:
    case = open_case(name, folder, holdout=0.0)
    rows, item = case.events, LOGS[name]
    keys = [item, case.member]
    counted = data.point_in_time_counts(rows, keys, [None], [case.label], delay=case.delay, prior=case.prior, counted=case.shown)
    rate = [column for column in map(str, counted) if column.startswith(case.member) and "_rate_" in column]
    views = [column for column in map(str, counted) if "_views_" in column]
    numbers = np.column_stack([np.log1p(counted[views].to_numpy(np.float64)), logit(counted[rate].to_numpy(np.float64))])
    if name == "movielens-1m":
        content = sparse.csr_matrix(np.stack(rows["genres"].to_list()))
    else:
        further = np.log1p(rows[["duration_seconds", "upload_age_days"]].clip(lower=0.0).fillna(0.0).to_numpy(np.float64))
        hour = 2 * np.pi * rows[["hour"]].fillna(0.0).to_numpy(np.float64) / 24
        tab = pd.get_dummies(rows["tab"].fillna(-1)).to_numpy(np.float64)
        numbers = np.column_stack([numbers, further, np.square(further), np.sin(hour), np.cos(hour), tab])
        tags = pd.Series(rows["tag"].astype(object).fillna("none").astype(str)).str.get_dummies(",")
        kinds = [pd.get_dummies(rows[column].astype(str)) for column in ("video_type", "upload_type", "music_type")]
        content = sparse.csr_matrix(np.column_stack([tags, *kinds]).astype(np.float64))
    train = case.shown & (rows["split"] == "train").to_numpy()
    numbers = (numbers - numbers[train].mean(axis=0)) / (numbers[train].std(axis=0) + 1e-9)
    code, ids = pd.factorize(rows[item])
    members, time, label = rows[case.member].to_numpy(), rows["time"].to_numpy(), rows[case.label].to_numpy()
    events = pd.DataFrame({"key": members, "member": pd.factorize(members)[0], "item": code, "time": time, "label": label})
    return Table(events, case.shown, (rows["split"] == "validation").to_numpy(), np.asarray(ids), numbers * case.shown[:, None], content)


def logit(rate: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(rate) - np.log1p(-rate))


def half_of(table: Table, split: int) -> np.ndarray:
    """Whether the row's member is in half A."""
    prints = fingerprint64([f"{split}:{key}" for key in table.events["key"].unique()])
    members = pd.Series(prints % np.uint64(2) == 0, index=table.events["key"].unique())
    return np.asarray(members.loc[table.events["key"]].to_numpy(dtype=bool))


def similarity(events: pd.DataFrame, kind: str) -> tuple[sparse.csr_matrix, list[int]]:
    """Similarities of items, and the items."""
    if kind != "residual":
        made: tuple[sparse.csr_matrix, list[int]] = data.item_agreement(
            events.assign(met=1.0), "member", "item", {"together": "met"}.get(kind, "label")
        )
        return made
    item, items = pd.factorize(events["item"])
    place, shape = (events["member"].to_numpy(), item), (int(events["member"].max()) + 1, len(items))
    values = sparse.csr_matrix((events["residual"].to_numpy(), place), shape=shape)
    marks = sparse.csr_matrix((np.ones(len(item)), place), shape=shape)
    marks.data[:] = 1.0
    squares, found = (values.multiply(values).T @ marks).tocsr(), (values.T @ values).tocoo()
    row, column, sums = found.row[found.data > 0], found.col[found.data > 0], found.data[found.data > 0]
    size = np.sqrt(np.asarray(squares[row, column]).ravel() * np.asarray(squares[column, row]).ravel()) + 1.0
    return sparse.csr_matrix((sums / size, (row, column)), shape=found.shape), items.tolist()


def nodes_of(paths: np.ndarray, depth: int) -> sparse.csr_matrix:
    """One column for each node above `depth`; items without a path have none."""
    item, level = np.nonzero(paths[:, :depth])
    return sparse.csr_matrix((np.ones(len(item)), (item, paths[item, level])), shape=(len(paths), 2 ** (depth + 1)))


def semantic_codes(factors: data.ItemFactors, ids: np.ndarray, seed: int) -> sparse.csr_matrix:
    """One column for each codeword of each level; items without factors have none."""
    keras.utils.set_random_seed(seed)
    vectors, known = factors.of_rows(pd.DataFrame({"item": ids}))
    vectors = (vectors / (vectors[known].std() + 1e-9)).astype(np.float32)
    layer = ResidualQuantizer(levels=LEVELS, codebook_size=CODES, seed=seed)
    inputs = keras.Input((vectors.shape[1],))
    model = keras.Model(inputs, layer(inputs))
    model.compile(optimizer="adam")
    model.fit(vectors[known], vectors[known], batch_size=256, epochs=40, verbose=0)
    codes = np.asarray(keras.ops.convert_to_numpy(layer.encode(vectors))) + np.arange(LEVELS) * CODES
    item, level = np.nonzero(np.repeat(known[:, None], LEVELS, axis=1))
    return sparse.csr_matrix((np.ones(len(item)), (item, codes[item, level])), shape=(len(ids), LEVELS * CODES))


@dataclass(frozen=True)
class Stage:
    """Rows that features are made and fitted on, and the rows that are compared.

    Args:
        table: the log.
        split: number of the halving.
        half: whether a row's member is in half A.
        past: rows that are known.
        scored: rows that are compared, before those with frequent items are left out.
        seed: of trees, codes and permutations.
        made: trees and codes.
    """

    table: Table
    split: int
    half: np.ndarray
    past: np.ndarray
    scored: np.ndarray
    seed: int = 0
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def fitted(self) -> np.ndarray:
        return np.flatnonzero(self.past & self.table.scored & ~self.half)

    @cached_property
    def judged(self) -> np.ndarray:
        """Rows whose item is rare in half B."""
        item = self.table.events["item"].to_numpy()
        count = np.bincount(item[self.fitted], minlength=len(self.table.ids))
        return np.flatnonzero(self.scored & (count[item] < RARE))

    @cached_property
    def half_a(self) -> pd.DataFrame:
        """The known rows of half A, with residuals: label minus what the rates of item and member said then."""
        rows: pd.DataFrame = self.table.events[self.past & self.half].reset_index(drop=True)
        expected = data.RunningExpectation(["item", "member"], "label").update(rows)
        rows["residual"] = np.nan_to_num(expected["label_residual"].to_numpy())
        return rows

    def paths(self, kind: str) -> np.ndarray:
        """Paths of all items in the tree of a kind of similarity."""
        return np.asarray(self.once(f"tree {kind}", lambda: self.paths_by(kind)))

    def codes(self, kind: str) -> sparse.csr_matrix:
        """Columns of all items for the codes of a kind of factors."""
        return self.once(f"codes {kind}", lambda: self.codes_by(kind))

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    def paths_by(self, kind: str) -> np.ndarray:
        tree = data.LabelTree.fit(*similarity(self.half_a, kind), depth=max(DEPTHS), seed=self.seed)
        return tree.paths(np.arange(len(self.table.ids)))

    def codes_by(self, kind: str) -> sparse.csr_matrix:
        form, value = {"residual": ("residual", "residual"), "together": ("taken", "met")}[kind]
        factors = data.item_factors(self.half_a.assign(met=1.0), "member", "item", value, dim=DIM, kind=form)
        return semantic_codes(factors, np.arange(len(self.table.ids)), self.seed)

    def by_item(self, feature: str, option: Any) -> sparse.csr_matrix:
        """The representation of items."""
        items = len(self.table.ids)
        if feature == "tree":
            return nodes_of(self.paths(option[0]), option[1])
        if feature == "shuffled tree":
            paths = self.paths(option[0]).copy()
            known = np.flatnonzero(paths[:, 0])
            paths[known] = paths[np.random.default_rng(self.seed).permutation(known)]
            return nodes_of(paths, option[1])
        if feature == "semantic ids":
            return self.codes(option)
        if feature.startswith("hashed ids"):
            buckets = max(2, int(option * items))
            return sparse.csr_matrix((np.ones(items), (np.arange(items), hash_buckets(self.table.ids, buckets))), shape=(items, buckets))
        grouped = self.half_a.groupby("item")["label"].agg(["sum", "count"]).reindex(range(items)).fillna(0.0)
        mean = float(self.half_a["label"].mean())
        rate = ((grouped["sum"] + 5 * mean) / (grouped["count"] + 5)).to_numpy()
        return sparse.csr_matrix((logit(rate) - logit(np.array(mean)))[:, None])

    def design(self, feature: str, option: Any, rows: np.ndarray) -> sparse.csr_matrix:
        parts = [sparse.csr_matrix(self.table.numbers[rows])]
        for name, value in zip(feature.split(" + "), option if " + " in feature else [option], strict=True):
            if name.startswith("genres"):
                parts.append(self.table.content[rows])
            elif name != "none":
                parts.append(self.by_item(name, value)[self.table.events["item"].to_numpy()[rows]])
        return sparse.hstack(parts, format="csr")

    def predicted(self, feature: str, option: Any, strengths: Sequence[float]) -> Iterator[np.ndarray]:
        """Probabilities of the judged rows, by strength."""
        fitted = np.flatnonzero(self.past & self.table.scored) if feature.endswith("both halves") else self.fitted
        x, later = self.design(feature, option, fitted), self.design(feature, option, self.judged)
        y = self.table.events["label"].to_numpy()[fitted]
        for strength in strengths:
            yield LogisticRegression(C=strength, max_iter=200).fit(x, y).predict_proba(later)[:, 1]

    @property
    def labels(self) -> np.ndarray:
        return np.asarray(self.table.events["label"].to_numpy(np.float64)[self.judged])


def options_of(feature: str, chosen: dict[str, tuple[Any, float]]) -> list[Any]:
    if feature == "tree":
        return [(kind, depth) for kind in KINDS for depth in DEPTHS]
    if feature == "shuffled tree":
        return [chosen["tree"][0]]
    if " + " in feature:
        return [tuple(chosen[name][0] for name in feature.split(" + "))]
    if feature == "semantic ids":
        return ["residual", "together"]
    return list(BUCKETS) if feature.startswith("hashed") else [None]


def run(name: str, table: Table, split: int) -> Iterator[dict[str, Any]]:
    half, time = half_of(table, split), table.events["time"].to_numpy()
    train = table.scored & ~table.later
    cut = np.quantile(time[train], 0.8, method="lower")
    choosing = Stage(table, split, half, ~table.later & (time < cut), train & (time >= cut))
    last = [Stage(table, split, half, ~table.later, table.later, seed) for seed in SEEDS]
    chosen: dict[str, tuple[Any, float]] = {}
    found: dict[str, list[np.ndarray]] = {}
    for feature in FEATURES:
        losses = {}
        for option in options_of(feature, chosen):
            for strength, p in zip(STRENGTHS, choosing.predicted(feature, option, STRENGTHS), strict=True):
                losses[option, strength] = float(metrics.log_loss(choosing.labels, p))
        chosen[feature] = min(losses, key=lambda key: losses[key])
        option, strength = chosen[feature]
        stages = last if any(word in feature for word in ("tree", "semantic")) else last[:1]
        found[feature] = [next(stage.predicted(feature, option, [strength])) for stage in stages]
        print(f"{name}, split {split}: {feature}, {option}, {strength}", file=sys.stderr, flush=True)
    y, item = last[0].labels, table.events["item"].to_numpy()[last[0].judged]
    for feature, seeds in found.items():
        low, high = over(y, seeds, found["tree"], item)
        by_seed = [float(metrics.log_loss(y, p)) for p in seeds]
        yield {
            "log": name,
            "split": split,
            "feature": feature,
            "log_loss": float(np.mean(by_seed)),
            "auc": float(np.mean([float(metrics.auc(y, p)) for p in seeds])),
            "seeds": by_seed,
            "over_tree": [low, high],
            "rows": len(y),
            "items": len(np.unique(item)),
            "option": chosen[feature][0],
            "strength": chosen[feature][1],
        }


def over(y: np.ndarray, found: list[np.ndarray], tree: list[np.ndarray], item: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """95 % interval of log loss minus the tree's, items drawn with replacement; of several seeds the mean."""
    loss = [np.stack([-(y * np.log(p) + (1 - y) * np.log1p(-p)) for p in seeds]).mean(axis=0) for seeds in (found, tree)]
    code = np.unique(item, return_inverse=True)[1]
    sums, count = np.bincount(code, loss[0] - loss[1]), np.bincount(code)
    drawn = np.random.default_rng(0).integers(0, len(count), (draws, len(count)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / count[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


def shown(lines: list[dict[str, Any]]) -> str:
    splits = sorted({line["split"] for line in lines})
    heads = " | ".join(f"log loss, split {split}" for split in splits)
    out = [f"| log | representation | {heads} | AUC | standard deviation over seeds | worse than the tree |"]
    out.append("|---" * (len(splits) + 5) + "|")
    for name in dict.fromkeys(line["log"] for line in lines):
        for feature in FEATURES:
            at = {line["split"]: line for line in lines if line["log"] == name and line["feature"] == feature}
            losses = " | ".join(f"{at[split]['log_loss']:.4f}" if split in at else "-" for split in splits)
            apart: Callable[[dict[str, Any]], bool] = lambda line: line["over_tree"][0] > 0
            auc = np.mean([line["auc"] for line in at.values()])
            spread = [np.std(line["seeds"], ddof=1) for line in at.values() if len(line["seeds"]) > 1]
            noise = f"{np.sqrt(np.mean(np.square(spread))):.4f}" if spread else "-"
            out.append(f"| {name} | {feature} | {losses} | {auc:.4f} | {noise} | {sum(map(apart, at.values()))} of {len(at)} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", nargs="?", metavar="LOG", choices=list(LOGS), help=", ".join(LOGS))
    parser.add_argument("folder", nargs="?", metavar="FOLDER")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file")
    args = parser.parse_args()
    if args.table:
        print(shown(read_lines(args.table)))
        return
    if not args.log or not args.folder or not args.json:
        parser.error("LOG, FOLDER and --json are needed, or --table")
    table = opened(args.log, args.folder)
    for split in args.splits:
        for line in run(args.log, table, split):
            add_line(args.json, line)
    print(shown(read_lines(args.json)))


if __name__ == "__main__":
    main()
