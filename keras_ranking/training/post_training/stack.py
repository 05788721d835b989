"""A forest beside a network: the rows that it is fitted on, and the weights of the two."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_ranking.data import Sequences, pack
from keras_ranking.layers import fit_stack as fitted_stack
from keras_ranking.models import RankingModel
from keras_ranking.models.combined.with_forest import columns_of, set_stack, stack_of, task_of_forest
from keras_ranking.schema import Schema
from keras_ranking.training.scoring.events import logits_of_targets, model_requests


def forest_rows(events: pd.DataFrame, schema: Schema, columns: SequenceOf[str] | None = None) -> pd.DataFrame:
    """Columns of a log as a model of `kr.models.with_forest` gives them to its forest: encoded by the schema, float32.

    A forest that is fitted on these needs no other preparation, and training and serving cannot differ. The encoding keeps the order of
    values. What a schema replaces when it is missing (`Number(missing=...)`) is replaced here too.

    Args:
        events: rows of the log.
        schema: with fitted constants.
        columns: numbers and categories known when a candidate is scored; None: all of them.

    Returns:
        A frame with a column each, categories as their numbers, in the order of the rows.

    Raises:
        ValueError: another column, a column that the log lacks, a value that the schema refuses.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> kr.training.forest_rows(log.events, log.schema.fit(log.events), ["age_hours", "topic"]).dtypes.unique().tolist()
        [dtype('float32')]
    """
    found = columns_of(schema, columns)
    if missing := [column.name for column in found if column.name not in events]:
        raise ValueError(f"`events` must hold the columns of the forest. Missing: {missing}")
    return pd.DataFrame({column.name: column.encode(events[column.name]).astype(np.float32) for column in found}, index=events.index)


def fit_stack(model: RankingModel, sequences: Sequences, prior: float = 10.0, row_length: int = 2048) -> dict[str, float]:
    """Set the weights of network and forest to what rows say that neither was fitted on: see `kr.layers.fit_stack`.

    Fit both on the earlier training rows, this on the later ones; then fit both once more on all training rows and give the second
    pair these weights (`weights=` of `with_forest`). Weights fitted on rows that the forest knows would trust it too much. Our choice.

    Args:
        model: made by `kr.models.with_forest`.
        sequences: from `build_sequences` with the model's schema; its target events are the rows, each scored at the position shown.
        prior: strength of the prior at equal weights.
        row_length: events per packed row, for models trained on rows.

    Returns:
        `network`, `forest` and `bias`.

    Raises:
        ValueError: a model without a forest, no row with a known label, labels that are all equal.

    Example:
        >>> import lightgbm
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> x = kr.training.forest_rows(log.events, schema, ["age_hours"])
        >>> booster = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(x, log.events["click"]), 5)
        >>> network = kr.models.LiRank(schema, history_features=(), hidden=(8,))
        >>> model = kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(booster), task="click")
        >>> sorted(kr.training.fit_stack(model, kr.data.build_sequences(log.events, schema)))
        ['bias', 'forest', 'network']
    """
    stack = stack_of(model)
    if stack is None:
        raise ValueError("`model` must be made by `kr.models.with_forest`. Received: a model without a forest")
    task = task_of_forest(model)
    longest = int(np.diff(sequences.request_starts).max(initial=1))
    data: Any = model_requests(model, sequences) if model.form == "requests" else pack(sequences, max(row_length, longest * 2))
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in (stack.weight, stack.bias)]
    label = sequences.labels[task]
    rows = sequences.target & ~np.isnan(label)
    try:
        logits = []
        for alone in ((1.0, 0.0), (0.0, 1.0)):
            set_stack(model, alone, 0.0)
            logits.append(logits_of_targets(model, data)[task][rows])
        weight, bias = fitted_stack(label[rows], logits, prior)
    except BaseException:
        set_stack(model, before[0], float(before[1]))
        raise
    set_stack(model, weight, bias)
    return {"network": float(weight[0]), "forest": float(weight[1]), "bias": bias}
