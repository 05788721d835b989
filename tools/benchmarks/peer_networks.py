"""A plain causal transformer as a peer: SASRec with the outcome in its tokens, scored with the same numbers as the other peers.

One sequence a member: tokens are what the member did (item and outcome), causal self-attention over them. A row is scored from the
token of the last second before it, the item's vector, and the columns of the set: [state, item, state * item, columns] -> MLP -> logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from peer_features import Case
from peer_models import Rows, Setting, fit_network, sigmoid

TRANSFORMER: list[Setting] = [
    {"width": 64, "layers": layers, "heads": 2, "dropout": dropout, "rate": rate, "epochs": epochs, "decay": decay}
    for layers, dropout, rate, epochs, decay in [
        *[(2, 0.1, 1e-3, 3, 0.01), (2, 0.2, 1e-3, 4, 0.1), (2, 0.3, 1e-3, 6, 0.1), (1, 0.1, 1e-3, 3, 0.01), (1, 0.3, 2e-3, 4, 0.1)],
        *[(2, 0.1, 2e-3, 3, 0.1), (2, 0.3, 2e-3, 3, 0.3), (1, 0.5, 1e-3, 6, 0.3), (2, 0.5, 1e-3, 6, 0.3), (1, 0.2, 5e-4, 4, 0.1)],
    ]
]


@dataclass(frozen=True)
class Streams:
    """What members did, and the place of each shown row in it.

    Args:
        item: (E,) codes from 1, of all members one after another in order of time.
        outcome: (E,) 1 or 2.
        begin: (R,) first event of each row's member.
        end: (R,) one past the last event that was known at the row.
        target: (R,) code of each row's item.
    """

    item: np.ndarray
    outcome: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    target: np.ndarray
    items: int


def streams_of(case: Case) -> Streams:
    """Events and rows of a case; an event is known `own_delay` seconds later."""
    events = case.events
    member = np.unique(events[case.member].to_numpy(), return_inverse=True)[1]
    item = np.unique(events[case.item].to_numpy(), return_inverse=True)[1] + 1
    label, time = events[case.label].to_numpy(np.float64), events["time"].to_numpy(np.int64)
    done = np.flatnonzero((label == 1) if case.chosen else np.isfinite(label))
    done = done[np.lexsort((time[done], member[done]))]
    span = int(time.max() - time.min()) + 2
    place = member[done] * span + (time[done] - time.min())
    rows = np.flatnonzero(case.shown)
    first = member[rows] * span
    known = np.maximum(first, first + time[rows] - case.own_delay - time.min() + 1)
    begin, end = np.searchsorted(place, first), np.searchsorted(place, known)
    return Streams(item[done], label[done].astype(int) + 1, begin, np.maximum(begin, end), item[rows], int(item.max()) + 1)


def batches_of(streams: Streams, which: np.ndarray, length: int = 96, targets: int = 64) -> tuple[list[np.ndarray], np.ndarray]:
    """Windows of events with the rows that are scored from them.

    A row whose last known event is the q-th of its member is in a window that begins at a multiple of `length / 2` and has at least half
    a window before q, where the member has so many.

    Returns:
        [items (B, length + 1), outcomes (B, length + 1), targets (B, T), places (B, T)], the first token of a window being empty, and
        rows (B, T), -1 where there is none.
    """
    half = length // 2
    seen = streams.end[which] - streams.begin[which]
    start = streams.begin[which] + np.maximum(0, (seen - 1) // half - 1) * half
    order = np.lexsort((seen, start))
    starts, first, count = np.unique(start[order], return_index=True, return_counts=True)
    pieces = [
        (begin, order[at + k : at + min(k + targets, n)])
        for begin, at, n in zip(starts, first, count, strict=True)
        for k in range(0, n, targets)
    ]
    shape = (len(pieces), targets)
    items, outcomes = (np.zeros((len(pieces), length + 1), dtype=np.int32) for _ in range(2))
    target, place, rows = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1)
    for number, (begin, own) in enumerate(pieces):
        last = int(streams.end[which[own]].max())
        size = min(last - int(begin), length)
        items[number, 1 : size + 1] = streams.item[begin : begin + size]
        outcomes[number, 1 : size + 1] = streams.outcome[begin : begin + size]
        target[number, : len(own)] = streams.target[which[own]]
        place[number, : len(own)] = streams.end[which[own]] - begin
        rows[number, : len(own)] = which[own]
    return [items, outcomes, target, place], rows


def network(items: int, columns: int, length: int, setting: Setting) -> Any:
    """The model: items, outcomes, targets, places and columns of the targets -> logits (B, T)."""
    import keras
    from keras import layers

    width, dropout = setting["width"], setting["dropout"]
    item, outcome = keras.Input((length + 1,), dtype="int32"), keras.Input((length + 1,), dtype="int32")
    target, place, dense = keras.Input((None,), dtype="int32"), keras.Input((None,), dtype="int32"), keras.Input((None, columns))
    table = layers.Embedding(items, width, embeddings_initializer=keras.initializers.RandomNormal(stddev=0.05))
    place_of_token = keras.ops.cumsum(keras.ops.ones_like(item), axis=1) - 1
    x = table(item) + layers.Embedding(3, width)(outcome) + layers.Embedding(length + 1, width)(place_of_token)
    x = layers.Dropout(dropout)(x)
    for _ in range(setting["layers"]):
        y = layers.LayerNormalization()(x)
        y = layers.MultiHeadAttention(setting["heads"], width // setting["heads"], dropout=dropout)(y, y, use_causal_mask=True)
        x = x + layers.Dropout(dropout)(y)
        y = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dropout(dropout)(layers.Dense(width)(y))
    x = layers.LayerNormalization()(x)
    state = keras.ops.take_along_axis(x, keras.ops.repeat(place[..., None], width, axis=-1), axis=1)
    candidate = layers.Dropout(dropout)(table(target))
    joined = keras.ops.concatenate([state, candidate, state * candidate, dense], axis=-1)
    hidden = layers.Dropout(dropout)(layers.Dense(128, activation="gelu")(joined))
    logits = layers.Dense(1)(layers.Dense(64, activation="gelu")(hidden))
    return keras.Model([item, outcome, target, place, dense], logits)


def transformer(
    streams: Streams, rows: Rows, fitted: np.ndarray, others: list[np.ndarray], setting: Setting, seed: int
) -> list[np.ndarray]:
    """Probabilities of the rows of each of `others` (numbers of rows), fitted on the rows `fitted`."""
    import keras

    keras.utils.set_random_seed(seed)
    length, targets = setting.get("length", 96), setting.get("targets", 64)

    def inputs(which: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        made, at = batches_of(streams, which, length, targets)
        return [*made, np.where((at >= 0)[..., None], rows.dense[at], np.float32(0))], at

    x, at = inputs(fitted)
    model = network(streams.items, rows.dense.shape[1], length, setting)
    weight = (at >= 0).astype(np.float32)
    fit_network(model, x, rows.y[at][..., None], weight / weight.mean(), setting, setting.get("batch", 32))
    out = []
    for which in others:
        x, at = inputs(which)
        logits, score = model.predict(x, batch_size=128, verbose=0)[..., 0], np.zeros(len(rows.y))
        score[at[at >= 0]] = sigmoid(logits[at >= 0])
        out.append(score[which])
    return out
