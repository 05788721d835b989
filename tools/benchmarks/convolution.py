"""A convolution over a member's history next to attention: what it orders, and what a step costs.

    python tools/benchmarks/convolution.py LOG FOLDER --json convolution.jsonl [--members 0.5] [--seeds 0 1 2]
    python tools/benchmarks/convolution.py --table convolution.jsonl

LOG is movielens-1m, or simulated to see that everything runs. Every model reads the set `plain` of `peers.py`, which has no personal
columns, the candidate, and the `LENGTH` latest events of its member: the sum of a vector of the item, shared with the candidate, and one
of the outcome. All have the same head, an MLP on [history, candidate, history * candidate, columns], and the same training.

| encoder | history |
|---|---|
| none | nothing |
| pool | mean and maximum of the events, and their sum weighted by softmax(candidate . event) |
| convolution max, convolution mean | `HistoryEncoder("convolution")`, `FILTERS` filters of `WIDTHS`, maximum or mean over time |
| attention | `HistoryEncoder("append_cross")`, two layers of two heads, as in AmortizedDLRM |
| attention, one layer | the same with one layer |
| concat | `HistoryEncoder("concat")`, two layers of two heads, as in LiRank |

All have the same options, none of them chosen here. Seconds are processor time: of a training epoch after the first one, and of scoring,
both for 100,000 rows.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from peer_features import open_case
from peer_models import fit_network, sigmoid
from peer_networks import Streams
from peers import Data
from runs import add_line, half_interval, log_arguments, mean_cell, parsed, read_lines

import keras_ranking as kr
from keras_ranking.data.readers.splits import held_out

LENGTH, DIM, WIDTHS, FILTERS = 50, 32, (1, 3, 7), 48
SETTING = {"rate": 2e-3, "epochs": 3, "decay": 0.1}
DROPOUT, BATCH = 0.2, 512
Encoder = Callable[[Any, Any, Any], Any]


def weighted(candidate: Any, states: Any, real: Any) -> Any:
    """sum_j softmax_j(W c . y_j / sqrt(F)) y_j over the events and an empty slot, (B, F)."""
    width = states.shape[-1]
    logits = ops.sum(layers.Dense(width)(candidate)[:, None] * states, axis=-1) / width**0.5
    logits = ops.where(real, logits, -1e9)
    weights = ops.softmax(ops.concatenate([logits, ops.zeros_like(logits[:, :1])], axis=-1), axis=-1)[:, :-1]
    return ops.sum(weights[..., None] * states, axis=1)


def pooled(kind: str, states: Any, real: Any) -> Any:
    """Maximum or mean over the events, zero where there is none."""
    shown = ops.cast(real, "float32")[..., None]
    if kind == "mean":
        return ops.sum(states * shown, axis=1) / ops.maximum(ops.sum(shown, axis=1), 1.0)
    return ops.where(ops.any(real, axis=1)[:, None], ops.max(ops.where(real[..., None], states, -1e9), axis=1), 0.0)


def convolution(kind: str) -> Encoder:
    """`HistoryEncoder` with filters over time."""

    def encode(events: Any, candidate: Any, real: Any) -> Any:
        encoder = kr.layers.HistoryEncoder("convolution", LENGTH, dim=FILTERS, widths=WIDTHS, over_time=kind, activation="gelu")
        return encoder(inputs_of_encoder(events, candidate, real))[:, 0]

    return encode


def pool(events: Any, candidate: Any, real: Any) -> Any:
    return ops.concatenate([pooled("mean", events, real), pooled("max", events, real), weighted(candidate, events, real)], axis=-1)


def inputs_of_encoder(events: Any, candidate: Any, real: Any) -> dict[str, Any]:
    return {"history": events, "candidates": candidate[:, None], "visible": ops.sum(ops.cast(real, "int32"), axis=1)}


def attention(fusion: str, num_layers: int) -> Encoder:
    """`HistoryEncoder` with the index of an event in its rotation."""

    def encode(events: Any, candidate: Any, real: Any) -> Any:
        encoder = kr.layers.HistoryEncoder(
            fusion, LENGTH, num_layers, 2, projection=2 * DIM, rotary=(4, 200), rotate_by="index", dropout=DROPOUT
        )
        return encoder(inputs_of_encoder(events, candidate, real))[:, 0]

    return encode


ENCODERS: dict[str, Encoder | None] = {
    "none": None,
    "pool": pool,
    "convolution max": convolution("max"),
    "convolution mean": convolution("mean"),
    "attention": attention("append_cross", 2),
    "attention, one layer": attention("append_cross", 1),
    "concat": attention("concat", 2),
}


def network(items: int, columns: int, encoder: Encoder | None) -> Any:
    """Items (B, L), outcomes (B, L), candidate (B,) and columns (B, C) -> logits (B, 1). Empty slots come last."""
    item, outcome = keras.Input((LENGTH,), dtype="int32"), keras.Input((LENGTH,), dtype="int32")
    target, dense = keras.Input((), dtype="int32"), keras.Input((columns,))
    table = layers.Embedding(items, DIM, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.05))
    candidate = layers.Dropout(DROPOUT)(table(target))
    parts = [candidate, dense]
    if encoder is not None:
        real = ops.not_equal(item, 0)
        events = layers.Dropout(DROPOUT)(table(item) + layers.Embedding(3, DIM)(outcome))
        events = ops.where(real[..., None], events, 0.0)
        state = layers.Dense(DIM)(encoder(events, candidate, real))
        parts += [state, state * candidate]
    hidden = layers.Dropout(DROPOUT)(layers.Dense(128, activation="gelu")(ops.concatenate(parts, axis=-1)))
    logits = layers.Dense(1)(layers.Dense(64, activation="gelu")(hidden))
    return keras.Model([item, outcome, target, dense], logits)


def inputs_of(data: Data, which: np.ndarray) -> list[np.ndarray]:
    """What `network` reads of the rows: of the events that were known then, the latest, oldest first."""
    streams: Streams = data.streams
    begin = np.maximum(streams.begin[which], streams.end[which] - LENGTH)
    at = begin[:, None] + np.arange(LENGTH)
    real = at < streams.end[which][:, None]
    at = np.minimum(at, len(streams.item) - 1)
    items, outcomes = (np.where(real, each[at], 0).astype(np.int32) for each in (streams.item, streams.outcome))
    return [items, outcomes, streams.target[which].astype(np.int32), data.rows.dense[which]]


class Clock(keras.callbacks.Callback):
    """Processor time of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin = time.process_time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.process_time() - self._begin)


def run(data: Data, encoder: str, seed: int, members: float) -> dict[str, Any]:
    """Fit one model, and score it."""
    keras.utils.set_random_seed(seed)
    events = data.case.events[data.case.shown]
    own = held_out(events[data.case.member], members, 1)[0] if members < 1.0 else np.ones(len(events), bool)
    fitted = np.flatnonzero(data.trained & own)
    model = network(data.streams.items, data.rows.dense.shape[1], ENCODERS[encoder])
    clock = Clock()
    fit_network(model, inputs_of(data, fitted), data.rows.y[fitted][:, None], None, SETTING, BATCH, [clock])
    figures, rates = {}, []
    for split, rows in data.scored.items():
        rows = rows[own[rows]]
        x = inputs_of(data, rows)
        model.predict([each[:BATCH] for each in x], batch_size=BATCH, verbose=0)  # compiles
        begin = time.process_time()
        logits = model.predict(x, batch_size=BATCH, verbose=0)[:, 0]
        rates.append((time.process_time() - begin) / len(rows))
        figures[split] = data.figures(rows, sigmoid(logits))
    epoch = float(np.median(clock.seconds[1:])) / len(fitted)
    seconds = {"train": round(1e5 * epoch, 3), "score": round(1e5 * rates[0], 3)}
    return {"figures": figures, "parameters": model.count_params(), "seconds": seconds}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Means over seeds a split, and the differences of equal seeds from `attention`."""
    text = []
    for log, members, split in dict.fromkeys((line["log"], line["members"], split) for line in lines for split in line["figures"]):
        own = [line for line in lines if (line["log"], line["members"]) == (log, members) and split in line["figures"]]
        text += [
            f"\n{log}, {members:.0%} of the members, {split}\n",
            "| encoder | AUC | less that of attention | log loss | train s | score s |",
        ]
        text.append("|---|---|---|---|---|---|")
        auc = {(line["encoder"], line["seed"]): line["figures"][split]["auc"] for line in own}
        for encoder in dict.fromkeys(line["encoder"] for line in own):
            found = [line for line in own if line["encoder"] == encoder]
            less = [auc[encoder, line["seed"]] - auc["attention", line["seed"]] for line in found if ("attention", line["seed"]) in auc]
            cell = "" if encoder == "attention" or not less else f"{np.mean(less):+.4f}"
            cell += f" ± {half_interval(less):.4f}" if cell and len(less) > 2 else ""
            costs = [f"{np.mean([line['seconds'][what] for line in found]):.1f}" for what in ("train", "score")]
            figures = [mean_cell([line["figures"][split][name] for line in found]) for name in ("auc", "log_loss")]
            text.append(f"| {encoder} | {figures[0]} | {cell} | {figures[1]} | {' | '.join(costs)} |")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = log_arguments(__doc__, ("movielens-1m", "simulated"))
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--members", type=float, default=1.0, help="share of the members that are trained on and scored (default: 1)")
    args = parsed(parser, arguments)
    path: Path = args.table or args.json
    if not args.table:
        case = open_case(args.log, args.folder, args.holdout)
        data = Data(case, "plain")
        for seed in args.seeds:
            for encoder in args.encoders:
                about = {"log": case.name, "members": args.members, "encoder": encoder, "seed": seed}
                if any({name: line.get(name) for name in about} == about for line in read_lines(path)):
                    continue
                line = {**about, **run(data, encoder, seed, args.members)}
                add_line(path, line)
                print(json.dumps(line), file=sys.stderr, flush=True)
    print(table(read_lines(path)))


if __name__ == "__main__":
    main()
