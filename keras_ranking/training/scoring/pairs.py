"""The pairs and positives that give a gradient in the in-request pairwise loss of a training, for `history.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_ranking import models
from keras_ranking.data import Sequences
from keras_ranking.losses import ObservedTowerLoss, PairCounts
from keras_ranking.training.options import TrainingOptions


def pair_counts(
    ranker: models.RankingModel, sequences: Sequences, training: TrainingOptions, weights: Mapping[str, np.ndarray]
) -> dict[str, PairCounts]:
    """Counts by task over the target events; none for tasks without a pairwise loss.

    Args:
        ranker: the model.
        sequences: its data.
        training: the options.
        weights: of events by task, see `weights_for`.
    """
    found = {}
    for task, loss in ranker.losses_by_task(pairwise_weight=training.pairwise_weight).items():
        if isinstance(loss, ObservedTowerLoss) and loss.pairwise_weight > 0:
            learned, shown = sequences.target, sequences.by_column(ranker.tower_by)
            weight = weights[task][learned] if task in weights else None
            labels, request, position = sequences.labels[task][learned], sequences.request[learned], shown.position[learned]
            found[task] = PairCounts.of(labels, request, position, loss.boundaries, loss.same_bucket, weight)
    return found


def plain(counts: Mapping[str, PairCounts]) -> dict[str, dict[str, Any]]:
    """For JSON."""
    return {task: one.plain() for task, one in counts.items()}
