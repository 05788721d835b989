"""pad, and batches as long as their longest row: the same pieces as packed rows, in other batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack, pad
from tests.data.test_datasets import SCHEMA, batches, make_log
from tests.data.test_packing import pieces_of


def sequences() -> Any:
    log = make_log(count=200)
    return build_sequences(log, SCHEMA, target=np.random.default_rng(0).random(len(log)) < 0.7)


def test_pad_has_the_pieces_of_pack_one_a_row() -> None:
    streams = sequences()
    packed, padded = pack(streams, 24, 8), pad(streams, 24, 8)
    assert pieces_of(padded) == pieces_of(packed)
    assert padded.segment.max() == 1 and len(padded.index) == len(pieces_of(packed)) > len(packed.index)
    np.testing.assert_array_equal(np.sort(padded.index[padded.target]), np.sort(packed.index[packed.target]))
    assert packed.efficiency > 0.9 > padded.efficiency
    np.testing.assert_array_equal(packed.cuts, padded.cuts)


@pytest.mark.parametrize("length", ["longest", "bucketed"])
def test_batches_are_as_long_as_their_longest_row(length: str) -> None:
    rows = pad(sequences(), 24, 8)
    dataset = PackedDataset(rows, 3, inputs=["segment", "row_number"], length=length, length_multiple=4, seed=1)
    epochs = []
    for _ in range(2):
        dataset.on_epoch_begin()
        found = batches(dataset)
        dataset.on_epoch_end()
        real = [(x["segment"] > 0).sum(axis=1).max() for x, _, _ in found]
        assert [x["segment"].shape for x, _, _ in found] == [(3, min(24, -(-int(most) // 4) * 4)) for most in real]
        learned = np.concatenate([x["row_number"][w["click"] > 0] for x, _, w in found])
        assert len(learned) == rows.target.sum() and len(np.unique(learned)) == len(learned)
        epochs.append([x["row_number"][:, 0].tolist() for x, _, _ in found])
    assert epochs[0] != epochs[1]  # other rows share a batch, or batches have another order


def test_buckets_waste_less_than_random_batches_and_packing_least() -> None:
    streams = sequences()

    def filled(length: str, rows: Any) -> float:
        dataset = PackedDataset(rows, 4, inputs=["segment"], length=length, length_multiple=1)
        dataset.on_epoch_begin()
        found = [x["segment"] > 0 for x, _, _ in batches(dataset)]
        return sum(part.sum() for part in found) / sum(part.size for part in found)

    assert filled("longest", pad(streams, 60)) < filled("bucketed", pad(streams, 60))
    assert pack(streams, 60).efficiency > filled("longest", pad(streams, 60)) + 0.2


@pytest.mark.parametrize("first", ["short", "full"])
def test_fit_takes_lengths_that_vary(first: str) -> None:
    """TensorFlow learns from two batches which sizes vary: they must, even where the first batches happen to be of one length."""
    rows = pad(sequences(), 24, 8)
    seen: list[tuple[int, ...]] = []

    class Watch(PackedDataset):
        def __getitem__(self, batch: int) -> Any:
            found = super().__getitem__(batch)
            if self._in_epoch:
                seen.append(found[0]["row_number"].shape)
            return found

    inputs = keras.Input((None,), name="row_number")
    state = keras.layers.Dense(1)(keras.ops.expand_dims(inputs, -1) * 1e-3)
    model = keras.Model({"row_number": inputs}, {"click": state, "liked": state})

    def loss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.square(y_true[..., 0] - y_pred[..., 0])

    model.compile("sgd", loss={"click": loss, "liked": loss})
    settings = {"inputs": ["row_number"], "length_multiple": 4, "length": "bucketed" if first == "short" else "longest"}
    made = (Watch(rows, 3 if first == "short" else 1, shuffle=first == "full", seed=seed, **settings) for seed in range(100))
    dataset = next(found for found in made if (found[0][0]["row_number"].shape[1] == 24) == (first == "full"))
    assert dataset[0][0]["row_number"].shape != dataset[1][0]["row_number"].shape
    model.fit(dataset, epochs=2, shuffle=False, verbose=0)
    assert len({shape[1] for shape in seen}) > 2


def test_errors() -> None:
    rows = pad(sequences(), 24, 8)
    with pytest.raises(ValueError, match=r"`length` must be one of .* Received: length='short'"):
        PackedDataset(rows, 4, length="short")
    with pytest.raises(ValueError, match="`length_multiple` must be a positive integer. Received: length_multiple=0"):
        PackedDataset(rows, 4, length_multiple=0)
    for weights, message in (
        ({"nothing": np.ones(5)}, "`weights` must be by task"),
        ({"click": np.ones(5)}, r"Received: shape \(5,\)"),
        ({"click": np.full(rows.sequences.num_events, -1.0)}, "Received: -1.0"),
        ({"click": np.full(rows.sequences.num_events, np.nan)}, "Received: nan"),
    ):
        with pytest.raises(ValueError, match=message):
            PackedDataset(rows, 4, weights=weights)


@pytest.mark.slow
@pytest.mark.one_backend
def test_ebnerd_rows_are_more_than_95_percent_full(data_folder: Path) -> None:
    log = kr.data.read_ebnerd(data_folder)
    events = log.events[log.events["split"].isin(["train", "history"])]
    learned = (events["split"] == "train").to_numpy()
    streams = build_sequences(events, log.schema.fit(events[learned]), target=learned)
    for row_length, full in ((256, 0.94), (512, 0.98), (1024, 0.99), (2048, 0.99)):  # lists of up to 100 leave gaps in short rows
        rows = pack(streams, row_length)
        assert rows.efficiency > full, row_length
        assert rows.target.sum() == learned.sum()
    assert pad(streams, 1024).efficiency < 0.5  # control: what is saved
