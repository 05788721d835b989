"""The loss of packed rows is that of the members apart, for every weight; batching, chunking and new events change no event's share."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import keras
import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, Sequences, build_sequences, pack
from keras_ranking.losses import InRequestPairwise, InRequestSoftmax, ObservedTowerLoss
from keras_ranking.training import TrainingOptions, event_weights
from keras_ranking.training.setup import compile_for, training_data

pytestmark = pytest.mark.usefixtures("quick_calls")

SMALL: dict[str, Any] = {"dim": 8, "num_heads": 2, "num_layers": 1, "id_dim": 4, "tower_hidden": (8,)}
ROWS, TOKENS = 10, 48  # one shape for all batches: what a compiled step sees, and one compilation for the file
PROPENSITIES = {"click": np.array([1.0, 0.6, 0.3]), "like": np.array([1.0, 0.5, 0.2])}
WEIGHTS: dict[str, dict[str, Any]] = {
    "none": {},
    "place": {"position_half_life": "length"},
    "place fixed": {"position_half_life": 7},
    "age": {"age_half_life_days": 0.5},
    "all by propensity": {"propensities": PROPENSITIES},
    "positives by propensity": {"propensities": PROPENSITIES, "ipw": "positives", "ipw_clip": 2.0},
    "everything": {"position_half_life": "length", "age_half_life_days": 2.0, "propensities": PROPENSITIES, "ipw": "positives"},
}


@pytest.fixture(scope="module")
def streams() -> Sequences:
    log = kr.data.simulate(members=9, days=4, seed=2, list_size=(4, 6))
    new = (log.events["time"] > log.events["time"].quantile(0.4)).to_numpy()  # the first days are history alone
    return build_sequences(log.events, log.schema.fit(log.events), target=new)


@pytest.fixture(scope="module")
def model(streams: Sequences) -> kr.models.RankingModel:
    keras.utils.set_random_seed(0)
    return kr.models.CADET(streams.schema, **SMALL)


def batch_of(model: Any, rows: Any, weights: Any = None) -> Any:
    """All rows as one batch (ROWS, TOKENS)."""
    x, y, w = PackedDataset(rows, ROWS, inputs=model.input_columns, weights=weights, shuffle=False)[0]
    assert len(rows.index) <= ROWS

    def wide(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, 0), (0, TOKENS - values.shape[1]), *[(0, 0)] * (values.ndim - 2)])

    return keras.tree.map_structure(wide, (x, y, w))


def losses(model: Any, batch: Any) -> dict[tuple[str, str], float]:
    """By task, the mean of the cross-entropy, of the pairs and of the lists."""
    x, y, w = batch
    logits = model(x)
    parts = {"bce": ObservedTowerLoss, "pairs": InRequestPairwise, "lists": InRequestSoftmax}
    return {
        (task, part): float(loss(model.boundaries)(y[task], logits[task], sample_weight=w[task]))
        for part, loss in parts.items()
        for task in model.tasks
    }


def part_of(streams: Sequences, begin: int, end: int) -> Sequences:
    """Some of one member's events as a separate stream."""
    part = slice(begin, end)
    return replace(
        streams,
        members=streams.members[:1],
        offsets=np.array([0, end - begin]),
        time=streams.time[part],
        request=streams.request[part],
        session=streams.session[part],
        position=streams.position[part],
        columns={name: values[part] for name, values in streams.columns.items()},
        labels={name: values[part] for name, values in streams.labels.items()},
        target=streams.target[part],
        rows=streams.rows[part],
    )


def masses(y: np.ndarray, w: np.ndarray, boundaries: tuple[int, ...]) -> dict[str, float]:
    """What the three parts of a member's loss divide by, in float64: sums of weights, of pairs' weights, of lists' shares."""
    label, position, request = (y[0, :, column].astype(np.float64) for column in range(3))
    w = w[0].astype(np.float64)
    bucket = np.searchsorted(np.asarray(boundaries), position, side="left")
    pair = (label[:, None] > label[None]) & (request[:, None] == request[None]) & (bucket[:, None] == bucket[None])
    share = 0.0
    for number in np.unique(request[w > 0]):
        mine = (request == number) & (w > 0)
        if label[mine].sum() > 0:
            share += (w * label)[mine].sum() / label[mine].sum()
    return {"bce": w.sum(), "pairs": (pair * w[:, None] * w[None]).sum(), "lists": share}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.quickest
def test_packed_rows_are_the_mean_over_members(streams: Sequences, model: Any, name: str) -> None:
    weights = event_weights(streams, **WEIGHTS[name]).by_task
    rows = pack(streams, TOKENS)
    assert len(rows.index) < streams.num_members and rows.segment.max() > 1
    packed = losses(model, batch_of(model, rows, weights))
    sums = {key: np.zeros(2) for key in packed}
    for begin, end in pairwise(streams.offsets.tolist()):
        mine = part_of(streams, begin, end)
        if not mine.target.any():
            continue
        own = {task: values[begin:end] for task, values in weights.items()}
        batch = batch_of(model, pack(mine, TOKENS), own)
        found = losses(model, batch)
        for task in model.tasks:
            for part, mass in masses(batch[1][task], batch[2][task], model.boundaries).items():
                sums[task, part] += np.array([mass * found[task, part], mass])
    for key, (total, mass) in sums.items():
        assert mass > 0 and packed[key] == pytest.approx(total / mass, rel=1e-5), key
    # Control: without its weights the loss is another.
    if name != "none":
        assert losses(model, batch_of(model, rows))["click", "bce"] != pytest.approx(packed["click", "bce"], rel=1e-4)


@pytest.mark.parametrize("batching", ["padded", "bucketed"])
@pytest.mark.quickest
def test_results_do_not_depend_on_the_batching(streams: Sequences, model: Any, batching: str) -> None:
    """All of an epoch in one batch: one loss, however it is laid out."""
    training = TrainingOptions(batching=batching, batch_size=ROWS, row_length=TOKENS, position_half_life="length")
    weights = event_weights(streams, position_half_life="length").by_task
    dataset, _ = training_data(model, streams, training, 0, weights)
    assert len(dataset) == 1 and dataset.rows.segment.max() == 1
    want = losses(model, batch_of(model, pack(streams, TOKENS), weights))
    assert losses(model, dataset[0]) == pytest.approx(want, rel=1e-5)


def test_a_chunk_scores_as_the_events_that_it_holds(streams: Sequences, model: Any) -> None:
    """Each event is a target once, and is scored as if its member had begun with the first event of its chunk's context."""
    rows = pack(streams, 28, context=14)
    cut = np.setdiff1d(rows.cuts, streams.offsets)
    assert len(cut)
    np.testing.assert_array_equal(np.sort(rows.index[rows.target]), np.flatnonzero(streams.target))

    def logits(packed: Any) -> np.ndarray:
        found = keras.ops.convert_to_numpy(model(batch_of(model, packed)[0])["click"])
        return packed.scatter(found[: len(packed.index), : packed.index.shape[1]])

    chunked, whole = logits(rows), logits(pack(streams, TOKENS))
    for begin in cut[:2]:
        row, slot = np.argwhere((rows.index == begin) & rows.own)[0]
        events = rows.index[row, rows.segment[row] == rows.segment[row, slot]]
        alone = logits(pack(part_of(streams, events[0], events[-1] + 1), TOKENS))
        own = events[(events >= begin) & streams.target[events]]
        np.testing.assert_allclose(chunked[own], alone[own - events[0]], rtol=1e-4, atol=1e-6)
        assert np.abs(chunked[own] - whole[own]).max() > 1e-5  # control: what is beyond the context does count
    first = np.ones(streams.num_events, dtype=bool)
    for begin in cut:  # events before their member's first cut have all that there is
        first[begin : streams.offsets[np.searchsorted(streams.offsets, begin, side="right")]] = False
    kept = first & streams.target
    np.testing.assert_allclose(chunked[kept], whole[kept], rtol=1e-4, atol=1e-6)


def test_only_new_events_have_gradients(streams: Sequences, model: Any) -> None:
    """Full history in, loss on new events: an old label changes nothing, an old item does."""
    x, y, weights = batch_of(model, pack(streams, TOKENS))
    loss = model.losses_by_task(pairwise_weight=0.3, listwise_weight=0.2)["click"]

    def value(x: Any, labels: np.ndarray) -> float:
        packed = np.concatenate([labels[..., None], y["click"][..., 1:]], axis=-1)
        return float(loss(packed, model(x)["click"], sample_weight=weights["click"]))

    label = y["click"][..., 0]
    want, old, new = value(x, label), (weights["click"] == 0) & (x["segment"] > 0), weights["click"] > 0
    assert old.any() and new.any()
    assert value(x, np.where(old, 1 - label, label)) == want
    assert value(x, np.where(new, 1 - label, label)) != pytest.approx(want, rel=1e-3)  # control
    moved = {**x, "topic": np.where(old, (x["topic"] + 1) % 6, x["topic"]).astype("int32")}
    assert value(moved, label) != pytest.approx(want, rel=1e-6)


def test_task_weights_scale_each_task(streams: Sequences, model: Any) -> None:
    x, y, weights = batch_of(model, pack(streams, TOKENS))
    found = {}
    for name, scales in (("plain", None), ("scaled", {"like": 3.0})):
        compile_for(model, TrainingOptions(task_weights=scales, jit_compile=False), steps=1, window=8)
        found[name] = float(model.compute_loss(x, y, model(x), weights))
    parts = {task: loss(y[task], model(x)[task], sample_weight=weights[task]) for task, loss in model.loss.items()}
    assert found["plain"] == pytest.approx(float(parts["click"] + parts["like"]), rel=1e-5)
    assert found["scaled"] == pytest.approx(float(parts["click"] + 3 * parts["like"]), rel=1e-5)
    with pytest.raises(ValueError, match=r"`task_weights` must name tasks of the model, .* Received: \['nothing'\]"):
        compile_for(model, TrainingOptions(task_weights={"nothing": 1.0}), steps=1, window=8)
