"""sample_delays, and the inputs `delay` and `position` of packed rows."""

from __future__ import annotations

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.data import PackedDataset, build_sequences, pack, sample_delays
from tests.data.test_datasets import batches, packed

pytestmark = pytest.mark.one_backend


def test_draws_have_the_distribution_of_the_log() -> None:
    logged = np.array([0.0, 0.2, 5.0, 5.0, 60.5])
    drawn = sample_delays(logged, 20_000, seed=1)
    assert drawn.dtype == np.int32 and drawn.min() == 1  # never 0, never below what was logged
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [1, 5, 61]
    np.testing.assert_allclose(counts / 20_000, [0.4, 0.4, 0.2], atol=0.015)  # five standard deviations: 0.017
    np.testing.assert_array_equal(drawn, sample_delays(logged, 20_000, seed=1))
    assert not np.array_equal(drawn, sample_delays(logged, 20_000, seed=2))
    assert sample_delays(30, 3).tolist() == [30, 30, 30]


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ([], "must hold at least one delay"),
        ([[1.0]], r"must hold at least one delay. Received: shape \(1, 1\)"),
        ([3.0, -1.0], "Received: -1.0 at 1"),
        ([np.nan], "Received: nan at 0"),
        ([2.0**31], "must be a number of seconds from 0"),
    ],
)
def test_bad_delays(distribution: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_delays(distribution, 2)
    with pytest.raises(ValueError, match="`n` must not be negative"):
        sample_delays([1.0], -1)


def test_the_input_is_one_draw_per_request_and_epoch() -> None:
    _, rows = packed()
    dataset = PackedDataset(rows, 5, inputs=["delay"], shuffle=False, delays=np.arange(1.0, 1000.0), seed=4)
    epochs = []
    for _ in range(2):
        found = np.concatenate([x["delay"] for x, _, _ in batches(dataset)])[: len(rows.index)]
        assert found.dtype == np.int32 and found.min() >= 1
        real = rows.index >= 0
        request = rows.sequences.request[rows.index[real]]
        for name in np.unique(request):  # in all rows and pieces of the request
            assert len(np.unique(found[real][request == name])) == 1
        assert len(np.unique(found[real])) > 20
        epochs.append(found)
        dataset.on_epoch_end()
    assert not np.array_equal(*epochs)
    again = PackedDataset(rows, 5, inputs=["delay"], shuffle=False, delays=np.arange(1.0, 1000.0), seed=4, epoch=1)
    np.testing.assert_array_equal(np.concatenate([x["delay"] for x, _, _ in batches(again)])[: len(rows.index)], epochs[1])


def test_without_a_distribution_it_is_the_delay_of_the_schema() -> None:
    _, rows = packed()
    (x, _, _) = PackedDataset(rows, 5, inputs=["delay", "position"], shuffle=False)[0]
    assert set(x["delay"].ravel()) == {rows.sequences.schema.feedback_delay}
    np.testing.assert_array_equal(x["position"], np.where(rows.index[:5] < 0, 0, rows.sequences.position[rows.index[:5]]))
    assert x["position"].dtype == np.int32
    # Neither is an input by default: the position is not a feature.
    assert not {"delay", "position"} & set(PackedDataset(rows, 5)[0][0])


def test_a_training_run_draws_from_the_column_of_the_log() -> None:
    log = kr.data.simulate(members=40, days=3, seed=1)
    options = kr.training.TrainingOptions(delay_column="feedback_seconds")
    delays = kr.training.setup.delays_for(log.events, options)
    rows = pack(build_sequences(log.events, log.schema.fit(log.events)), 64)
    x, _, _ = PackedDataset(rows, 8, inputs=["delay", "segment"], delays=delays)[0]
    assert set(x["delay"][x["segment"] > 0]) <= set(log.events["feedback_seconds"])
    with pytest.raises(ValueError, match="column 'nothing' of `delay_column` is not in the log"):
        kr.training.setup.delays_for(log.events, kr.training.TrainingOptions(delay_column="nothing"))
