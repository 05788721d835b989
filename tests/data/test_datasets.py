"""PackedDataset and RequestDataset: batches of one shape, in an order that can be repeated, with nothing in them that may not be."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, PackedRows, RequestDataset, build_sequences, pack, requests

START = 1_700_000_000
SCHEMA = kr.Schema(
    member="member",
    time="time",
    request="request",
    session="session",
    position="rank",
    features=[
        kr.Id("item", buckets=500),
        kr.Number("row_number"),
        kr.Vector("text", size=2),
        kr.Number("affinity", known="context"),
        kr.Number("page_dwell", known="after"),
    ],
    actions=["click", "like"],
    tasks=[kr.Task("click"), kr.Task("liked", label="like_label", missing="unknown")],
)
ALLOWED = ["item", "row_number", "text", "affinity", "click", "like", "time", "segment", "session"]


def make_log(seed: int = 0, members: int = 12, count: int = 90) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows, clock = [], START
    for request in range(count):
        clock += int(rng.integers(0, 4))
        member = f"m{int(rng.pareto(1.0)) % members}"
        rows += [(member, clock, f"r{request}", f"s{(clock - START) // 30}", rank + 1) for rank in range(int(rng.integers(1, 5)))]
    log = pd.DataFrame(rows, columns=["member", "time", "request", "session", "rank"])
    log["item"] = rng.integers(0, 10_000, len(log))
    log["row_number"] = np.arange(1.0, len(log) + 1)
    log["text"] = [[number, 1.0] for number in log["row_number"]]
    log["affinity"], log["page_dwell"] = -log["row_number"], 3.0
    log["click"], log["like"] = rng.integers(0, 2, len(log)), rng.integers(0, 2, len(log))
    log["like_label"] = rng.choice([0.0, 1.0, np.nan], len(log))
    return log


def packed(seed: int = 0, target: float = 0.7, row_length: int = 12, context: int = 4) -> tuple[pd.DataFrame, PackedRows]:
    log = make_log(seed)
    mask = np.random.default_rng(seed).random(len(log)) < target
    return log, pack(build_sequences(log, SCHEMA, target=mask), row_length, context)


def batches(dataset: Any) -> list[Any]:
    return [dataset[i] for i in range(len(dataset))]


def concatenated(dataset: PackedDataset) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray]]:
    found = batches(dataset)
    return tuple({name: np.concatenate([batch[part][name] for batch in found]) for name in found[0][part]} for part in range(3))  # type: ignore[return-value]


@pytest.mark.parametrize("batch_size", [1, 5, 7, 1000])
def test_one_shape_for_all_batches(batch_size: int) -> None:
    _, rows = packed()
    dataset = PackedDataset(rows, batch_size)
    assert len(dataset) == -(-len(rows.index) // batch_size)
    specs = {str(keras.tree.map_structure(lambda array: (array.shape, array.dtype), batch)) for batch in batches(dataset)}
    assert len(specs) == 1
    x, y, weights = dataset[0]
    assert x["time"].shape == (batch_size, 12)
    assert x["text"].shape == (batch_size, 12, 2)
    assert y["click"].shape == y["liked"].shape == (batch_size, 12, 3)
    assert weights["click"].shape == (batch_size, 12)
    types = {name: str(value.dtype) for name, value in x.items()}
    whole = ("item", "time", "segment", "session")
    assert types == {name: "int32" if name in whole else "float32" for name in ALLOWED}
    assert {str(value.dtype) for value in (*y.values(), *weights.values())} == {"float32"}


def test_content() -> None:
    log, rows = packed()
    sequences = rows.sequences
    x, y, weights = concatenated(PackedDataset(rows, batch_size=5, shuffle=False))
    count = len(rows.index)
    real = rows.index >= 0
    source = sequences.rows[np.maximum(rows.index, 0)]  # row of the log of each slot
    for name, column in {
        "row_number": log["row_number"],
        "affinity": log["affinity"],
        "click": log["click"],
        "time": log["time"] - SCHEMA.epoch,
        "item": pd.Series(kr.Id("item", buckets=500).encode(log["item"])),
    }.items():
        np.testing.assert_array_equal(x[name][:count], np.where(real, column.to_numpy()[source], 0))
    np.testing.assert_array_equal(x["segment"][:count], rows.segment)
    np.testing.assert_array_equal(x["text"][:count, :, 0], x["row_number"][:count])
    np.testing.assert_array_equal(y["click"][:count, :, 0], np.where(real, log["click"].to_numpy()[source], 0))
    np.testing.assert_array_equal(y["click"][:count, :, 1], np.where(real, log["rank"].to_numpy()[source], 0))
    labels = log["like_label"].to_numpy()[source]
    np.testing.assert_array_equal(y["liked"][:count, :, 0], np.where(real, np.nan_to_num(labels), 0))
    # Weights: one exactly for a target event in its own slot, with a label.
    np.testing.assert_array_equal(weights["click"][:count], rows.target)
    np.testing.assert_array_equal(weights["liked"][:count], rows.target & ~np.isnan(labels))
    assert weights["click"].sum() == sequences.target.sum()
    for zero in (~real, real & ~rows.target, rows.target & np.isnan(labels)):
        assert zero.any()  # there is padding; there are events that are history or context, and unknown labels
        assert not weights["liked"][:count][zero].any()
    # The rows that fill the last batch have weight 0 and no member.
    assert len(x["time"]) > count
    assert not any(value[count:].any() for value in (*x.values(), *weights.values()))
    assert all(np.isfinite(value).all() for value in (*x.values(), *y.values()) if value.dtype == np.float32)


def test_request_numbers_are_equal_exactly_within_a_request() -> None:
    log, rows = packed(seed=1)
    x, y, _ = concatenated(PackedDataset(rows, batch_size=4, shuffle=False, inputs=["segment", "request_slot"]))
    assert x["request_slot"].dtype == np.int32
    np.testing.assert_array_equal(x["request_slot"], np.where(x["segment"] > 0, y["click"][..., 2], 0))
    numbers = y["click"][: len(rows.index), :, 2]
    np.testing.assert_array_equal(numbers, np.round(numbers))
    assert numbers.min() >= 1
    assert numbers.max() <= rows.index.shape[1]  # small: exact in float32, which a code of 20 million is not
    source = log["request"].to_numpy()[rows.sequences.rows[np.maximum(rows.index, 0)]]
    for row in range(len(rows.index)):
        real = np.flatnonzero(rows.index[row] >= 0)
        same = source[row, real][:, None] == source[row, real][None]
        # A later piece of the same row may repeat a request as its context: that is another segment, and another number.
        same &= rows.segment[row, real][:, None] == rows.segment[row, real][None]
        np.testing.assert_array_equal(numbers[row, real][:, None] == numbers[row, real][None], same)
        assert not np.isin(numbers[row, rows.index[row] < 0], numbers[row, real]).any()


def test_sessions_are_equal_exactly_within_a_session() -> None:
    log, rows = packed(seed=2)
    x, _, _ = concatenated(PackedDataset(rows, batch_size=4, shuffle=False))
    names = (log["member"] + log["session"]).to_numpy()[rows.sequences.rows[np.maximum(rows.index, 0)]]
    for row in range(len(rows.index)):
        real = np.flatnonzero(rows.index[row] >= 0)
        codes, name = x["session"][row, real], names[row, real]
        np.testing.assert_array_equal(codes[:, None] == codes[None], name[:, None] == name[None])


def order(dataset: PackedDataset) -> list[float]:
    return concatenated(dataset)[0]["row_number"][:, 0].tolist()


def test_shuffling_can_be_repeated_and_resumed() -> None:
    _, rows = packed()
    one, two, other = PackedDataset(rows, 4, seed=3), PackedDataset(rows, 4, seed=3), PackedDataset(rows, 4, seed=4)
    epochs = []
    for epoch in range(3):
        epochs.append(order(one))
        assert order(two) == epochs[-1]
        assert sorted(epochs[-1]) == sorted(epochs[0])
        assert order(PackedDataset(rows, 4, seed=3, epoch=epoch)) == epochs[-1]
        one.on_epoch_end()
        two.on_epoch_end()
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert order(other) != epochs[0]
    still = PackedDataset(rows, 4, shuffle=False)
    before = order(still)
    still.on_epoch_end()
    assert order(still) == before == sorted(before, key=before.index)


def test_fit_sees_every_row_once_an_epoch_in_the_stated_order() -> None:
    """What the model receives during `fit(..., shuffle=False)` is the dataset's own order of each epoch."""
    _, rows = packed()

    def expected(*epochs: int) -> list[list[float]]:
        stated = [PackedDataset(rows, 4, inputs=["row_number"], seed=3, epoch=epoch) for epoch in epochs]
        return [dataset[i][0]["row_number"][:, 0].tolist() for dataset in stated for i in range(len(dataset))]

    seen: list[list[float]] = []

    class Watch(PackedDataset):
        def __getitem__(self, batch: int) -> Any:
            found = super().__getitem__(batch)
            seen.append(found[0]["row_number"][:, 0].tolist())
            return found

    inputs = keras.Input((None,), name="row_number")
    state = keras.layers.Dense(1)(keras.ops.expand_dims(inputs, -1) * 1e-3)
    model = keras.Model({"row_number": inputs}, {"click": state, "liked": state})

    def loss(y_true: Any, y_pred: Any) -> Any:
        return keras.ops.square(y_true[..., 0] - y_pred[..., 0])

    model.compile("sgd", loss={"click": loss, "liked": loss})
    watched = Watch(rows, 4, inputs=["row_number"], seed=3)
    model.fit(watched, epochs=2, shuffle=False, verbose=0)
    # tensorflow looks at the first batches to learn their shapes, torch and jax to build the metrics: that is no epoch.
    assert watched.epoch == 2
    want = expected(0, 1)
    assert seen[-len(want) :] == want
    model.fit(watched, epochs=1, shuffle=False, verbose=0)
    assert seen[-len(watched) :] == expected(2)
    # Control: by default, `fit` shuffles the batches once more, which no seed of the dataset governs.
    model.fit(watched, epochs=1, verbose=0)
    assert seen[-len(watched) :] != expected(3)
    assert sorted(seen[-len(watched) :]) == sorted(expected(3))


def test_an_epoch_that_was_not_finished_is_begun_again() -> None:
    _, rows = packed()
    dataset = PackedDataset(rows, 4, seed=3)
    first = order(PackedDataset(rows, 4, seed=3))
    dataset[0]
    dataset.on_epoch_end()
    assert dataset.epoch == 0
    assert order(dataset) == first
    dataset.on_epoch_end()
    assert dataset.epoch == 1
    assert order(dataset) != first


def test_inputs_wanted() -> None:
    _, rows = packed()
    assert list(PackedDataset(rows, 4)[0][0]) == ALLOWED
    assert list(PackedDataset(rows, 4, inputs=["segment", "item"])[0][0]) == ["segment", "item"]
    for name in ("page_dwell", "rank", "like_label", "member", "request", "nothing"):
        with pytest.raises(ValueError, match=f"`inputs` must be inputs that the schema allows, .* Received: '{name}'"):
            PackedDataset(rows, 4, inputs=["item", name])


def test_no_sessions() -> None:
    log = make_log()
    plain = SCHEMA.model_copy(update={"session": None, "position": None})
    rows = pack(build_sequences(log, plain), 12)
    x, y, _ = PackedDataset(rows, 4)[0]
    assert "session" not in x
    assert not y["click"][..., 1].any()
    with pytest.raises(ValueError, match="Received: 'session'"):
        PackedDataset(rows, 4, inputs=["session"])


def test_packed_errors() -> None:
    _, rows = packed()
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer. Received: batch_size=0"):
        PackedDataset(rows, 0)
    _, empty = packed(target=0.0)
    with pytest.raises(ValueError, match="`rows` must hold at least one row. Received: none"):
        PackedDataset(empty, 4)


NAMES = ["history_row_number", "history_click", "history_length", "request_time"]
NAMES += ["candidate_text", "candidate_row_number", "candidate_count"]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_request_batches(batch_size: int) -> None:
    found = requests(make_log(), SCHEMA, max_history=9)
    dataset = RequestDataset(found, batch_size, NAMES)
    assert len(dataset) == -(-len(found) // batch_size)
    assert {(batch["history_click"].shape[1:], batch["candidate_text"].shape[1:]) for (batch,) in batches(dataset)} == {((9,), (4, 2))}
    got = {name: np.concatenate([batch[name] for (batch,) in batches(dataset)]) for name in NAMES}
    want = found.tensors(range(len(found)), NAMES, history=9, candidates=4)
    for name in NAMES:
        np.testing.assert_array_equal(got[name], want[name])
    # Control: of the batch's own lengths alone, the first requests have no history and the shapes would differ.
    assert len({found.tensors([q], ["history_click"])["history_click"].shape for q in range(len(found))}) > 1


def test_predict_gives_one_row_a_request() -> None:
    found = requests(make_log(), SCHEMA, max_history=9)
    inputs = {
        "history_row_number": keras.Input((None,), name="history_row_number"),
        "candidate_row_number": keras.Input((None,), name="candidate_row_number"),
    }
    total = keras.ops.sum(inputs["history_row_number"], axis=1, keepdims=True)
    model = keras.Model(inputs, inputs["candidate_row_number"] + 0.0 * total)
    scores = model.predict(RequestDataset(found, 8, list(inputs)), verbose=0)
    np.testing.assert_array_equal(scores, found.tensors(range(len(found)), ["candidate_row_number"], candidates=4)["candidate_row_number"])


def test_request_errors() -> None:
    log = make_log()
    found = requests(log, SCHEMA, max_history=9)
    with pytest.raises(ValueError, match="`batch_size` must be a positive integer. Received: batch_size=-1"):
        RequestDataset(found, -1, NAMES)
    with pytest.raises(ValueError, match="Received: 'candidate_click'"):
        RequestDataset(found, 4, ["candidate_click"])
    with pytest.raises(ValueError, match="`history` must be at least the longest of all requests, 9. Received: history=8"):
        RequestDataset(found, 4, NAMES, history=8)
    assert RequestDataset(found, 4, NAMES, history=16, candidates=8)[0][0]["candidate_text"].shape == (4, 8, 2)
    with pytest.raises(ValueError, match="`requests` must hold at least one request. Received: none"):
        RequestDataset(requests(build_sequences(log, SCHEMA, target=np.zeros(len(log), bool))), 4, NAMES)
