"""One long list in a log of short ones: rows become longer, steps do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.training import TrainingOptions
from keras_ranking.training.setup import training_data

pytestmark = pytest.mark.one_backend


def test_a_long_list_keeps_the_slots_of_a_step() -> None:
    request = np.concatenate([np.repeat(np.arange(100), 8), np.full(200, 100)])
    events = pd.DataFrame({"member": request % 7, "time": 1_700_000_000 + 60 * request, "request": request, "x": np.arange(len(request))})
    events["click"] = np.arange(len(events)) % 2
    schema = kr.Schema(member="member", time="time", request="request", features=[kr.Number("x")], tasks=["click"])
    model = kr.models.LiRank(schema, history_features=(), hidden=(4,))
    sizes = {}
    for name, log in (("short", events[request < 100]), ("long", events)):
        dataset, longest = training_data(model, kr.data.build_sequences(log, schema), TrainingOptions(batch_size=8, row_length=64))
        weights = [dataset[batch][2]["click"] for batch in range(len(dataset))]
        assert sum(weight.sum() for weight in weights) == len(log)
        sizes[name] = (longest, weights[0].shape)
    assert sizes == {"short": (8, (8, 64)), "long": (200, (3, 200))}
