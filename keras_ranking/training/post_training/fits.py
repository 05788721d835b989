"""Post-training fits, on their own schedule: posteriors for exploration, random effects of ids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_ranking.data import Sequences, pack
from keras_ranking.layers import RandomEffectFit, fit_base_rate, fit_random_effect
from keras_ranking.models import RankingModel
from keras_ranking.models.combined.ensemble import offsets_of
from keras_ranking.models.member_columns import values_of_slots
from keras_ranking.training.scoring.events import logits_of_targets, model_requests, scored_rows


def _batches(model: RankingModel, sequences: Sequences, batch_size: int, row_length: int) -> Iterator[Any]:
    if model.form != "requests":
        raise ValueError(f"`model` must be trained on requests. Received: form={model.form!r}")
    dataset = scored_rows(model, model_requests(model, sequences), batch_size, row_length)
    for batch in range(len(dataset)):
        yield dataset[batch]


def fit_exploration(
    model: RankingModel, sequences: Sequences, discount: float | None = None, batch_size: int = 8, row_length: int = 512
) -> dict[str, np.ndarray]:
    """Update the posterior of the last layer of every explored task with the target events of a log.

    LiRank (2402.06859): at the end of each training, on the inputs of the last layer (stated). Scores without a seed do not
    change; the spread of those of the `explore` signature decreases with the number of rows.

    Args:
        model: made with `explore=`.
        sequences: from `build_sequences` with the model's schema; its target events are the rows.
        discount: factor of earlier evidence, applied once; None: that of each layer.
        batch_size, row_length: rows per step, and candidates per row.

    Returns:
        By task, the standard deviation of a logit under the posterior, (E,); NaN for events that are not targets.

    Raises:
        ValueError: a model without explored tasks, or no target event.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=(), explore=["click"])
        >>> deviation = kr.training.fit_exploration(model, kr.data.build_sequences(log.events, schema))
        >>> deviation["click"].shape == (len(log.events),), bool((deviation["click"] > 0).all())
        (True, True)
    """
    posteriors = model.last_layers("posteriors")
    if not posteriors:
        raise ValueError("`model` must be made with `explore`. Received: a model that explores no task")
    first = dict.fromkeys(posteriors, True)
    for x, _, weights in _batches(model, sequences, batch_size, row_length):
        states = model.predict_last_inputs(x)
        for task, posterior in posteriors.items():
            posterior.update(states[task], sample_weight=weights[task], discount=discount if first[task] else 1.0)
            first[task] = False
    return _spread(model, sequences, batch_size, row_length)


def _spread(model: RankingModel, sequences: Sequences, batch_size: int, row_length: int) -> dict[str, np.ndarray]:
    dataset = scored_rows(model, model_requests(model, sequences), batch_size, row_length)
    covariance = {task: np.linalg.inv(posterior.precision) for task, posterior in model.last_layers("posteriors").items()}
    parts: dict[str, list[np.ndarray]] = {}
    for batch in range(len(dataset)):
        states = model.predict_last_inputs(dataset[batch][0])
        for task, cov in covariance.items():
            z = np.asarray(states[task], dtype=np.float64)
            z = np.concatenate([z, np.ones((*z.shape[:-1], cov.shape[0] - z.shape[-1]))], axis=-1)
            parts.setdefault(task, []).append(np.sqrt(np.einsum("bsi,ij,bsj->bs", z, cov, z)))
    rows = len(dataset.slots)
    return {task: np.where(sequences.target, dataset.scatter(np.concatenate(values)[:rows]), np.nan) for task, values in parts.items()}


def fit_random_effects(
    model: RankingModel, sequences: Sequences, l2: float = 1.0, batch_size: int = 8, row_length: int = 512
) -> dict[str, RandomEffectFit]:
    """Fit a random effect for each id on the residual of the model's logits, and store it in the model.

    LiRank (2402.06859): retrained every 8 hours on the newest data, on the residual of the model (stated). Earlier effects are
    replaced: ids without an event here get 0.

    Args:
        model: made with `random_effects=`.
        sequences: from `build_sequences` with the model's schema; its target events are the rows.
        l2: precision of the prior around 0. Our choice.
        batch_size, row_length: rows per step, and candidates per row.

    Returns:
        The fit by task, whose ids are rows of the id's table.

    Raises:
        ValueError: a model without random effects, no target event, or none with a known label and id for a task; the effects are
            then unchanged.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=(), random_effects={"click": "author_id"})
        >>> fits = kr.training.fit_random_effects(model, kr.data.build_sequences(log.events, schema))
        >>> 0 < len(fits["click"].ids) <= log.events["author_id"].nunique()
        True
    """
    effects = model.last_layers("effects")
    if not effects:
        raise ValueError("`model` must be made with `random_effects`. Received: a model that has none")
    before = {task: np.array(keras.ops.convert_to_numpy(layer.effects)) for task, layer in effects.items()}
    for layer in effects.values():
        layer.effects.assign(np.zeros(layer.rows, dtype=np.float32))
    columns: dict[str, list[tuple[np.ndarray, ...]]] = {task: [] for task in effects}
    for x, y, weights in _batches(model, sequences, batch_size, row_length):
        logits = model.predict_on_batch(x)
        for task, named in columns.items():
            ids = values_of_slots(x, model.arguments["random_effects"][task])
            counted = (weights[task] > 0) & (ids > 0)
            logit = np.asarray(keras.ops.convert_to_numpy(logits[task]))[..., 0]
            named.append((ids[counted], y[task][..., 0][counted], logit[counted]))
    fits = {}
    known = {task: sum(len(ids) for ids, _, _ in named) for task, named in columns.items()}
    if empty := [task for task, count in known.items() if not count]:
        for task, layer in effects.items():
            layer.effects.assign(before[task])
        raise ValueError(f"no event with a known label and a known id for task '{empty[0]}' among the target events. Received: {known}")
    for task, named in columns.items():
        ids, labels, offsets = (np.concatenate(parts) for parts in zip(*named, strict=True))
        fits[task] = fit_random_effect(ids, labels, offsets.astype(np.float64), l2=l2)
        table = np.zeros(effects[task].rows, dtype=np.float32)
        table[fits[task].ids] = fits[task].effects
        effects[task].effects.assign(table)
    return fits


def follow_base_rate(model: RankingModel, sequences: Sequences, prior: float = 100.0, row_length: int = 2048) -> dict[str, float]:
    """Set the offset of each task's logit to what the target events of a log say, and store it in the model.

    The offset starts from the model's own and is drawn to it: see `kr.layers.fit_base_rate`. The order of candidates does not change.
    To be repeated as outcomes arrive, each time with the newest ones as targets: after a day, an hour, or a number of rows. Our choice.

    Args:
        model: made by `kr.models.ensemble(..., base_rate=True)`.
        sequences: from `build_sequences` with the model's schema; its target events are the rows, each scored at the position shown.
        prior: rows that the earlier offset weighs as much as.
        row_length: events per packed row, for models trained on rows.

    Returns:
        The new offset by task. A task without a known label keeps its own.

    Raises:
        ValueError: a model without offsets, or a bad `prior`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.ensemble([kr.models.LiRank(schema, history_features=(), hidden=(8,))], base_rate=True)
        >>> offsets = kr.training.follow_base_rate(model, kr.data.build_sequences(log.events, schema))
        >>> bool(offsets["click"] < 0)  # the new model says 0.5, and fewer are clicked
        True
    """
    offsets = offsets_of(model)
    if not offsets:
        raise ValueError("`model` must be made by `kr.models.ensemble(..., base_rate=True)`. Received: a model without offsets")
    data: Any = (
        model_requests(model, sequences)
        if model.form == "requests"
        else pack(sequences, max(row_length, int(np.diff(sequences.request_starts).max(initial=1)) * 2))
    )
    logits = logits_of_targets(model, data)
    found = {}
    for task, layer in offsets.items():
        label, before = sequences.labels[task], float(keras.ops.convert_to_numpy(layer.offset))
        rows = sequences.target & ~np.isnan(label)
        found[task] = fit_base_rate(label[rows], logits[task][rows] - before, prior, before) if rows.any() else before
    for task, value in found.items():
        offsets[task].offset.assign(value)
    return found
