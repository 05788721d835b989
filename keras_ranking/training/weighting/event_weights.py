"""Weights of events in the loss: by place in the stream, by age, by the position shown.

Weights multiply, and the losses of this package divide by their sum (`ObservedTowerLoss`): only ratios matter. So the loss of a
packed batch is the mean over its members, each weighted by the sum of its weights, independent of their rows.

    L = sum_k lambda_k sum_i m_i w_pos(i) w_age(i) w_ipw(i, k) BCE_ik / sum_i m_i w_pos(i) w_age(i) w_ipw(i, k)

m is 0 for padding, for events that are history or context, for unknown labels and, in an incremental step, for all but the new
events. The form is inferred from the parts that Feed-SR states. A pair of the pairwise loss has the product of its two weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_ranking.configuration import is_real
from keras_ranking.data import Sequences
from keras_ranking.data.sequences import require_sequences

DAY = 86400


def check_half_life(name: str, value: Any, words: tuple[str, ...] = ()) -> None:
    """Raises ValueError, naming the argument, unless the value is positive and finite or one of the words."""
    number = is_real(value) and math.isfinite(value) and value > 0
    if not number and not (isinstance(value, str) and value in words):
        allowed = " or ".join(["a positive number", *map(repr, words)])
        raise ValueError(f"`{name}` must be {allowed}. Received: {name}={value!r}")


def place_weights(sequences: Sequences, half_life: float | str = "length") -> np.ndarray:
    """w_t = 2^(-(T - t) / h) for the t-th of a member's T events, history included: (E,) float32.

    The place is the place in time: if the events of a session are shuffled for an epoch, each keeps its weight (*our choice*).

    Args:
        sequences: from `build_sequences`.
        half_life: h in events; 'length': h = T, the member's own length, which gives 2^(-1 + 1/T), about 0.5, for the first event
            and 1 for the last (Feed-SR states these two ends; T as the real length, not the longest allowed, is inferred).

    Returns:
        float32 (E,).

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> float(kr.training.place_weights(sequences)[sequences.offsets[1] - 1])
        1.0
    """
    require_sequences(sequences)
    check_half_life("half_life", half_life, words=("length",))
    length = np.diff(sequences.offsets)
    total = np.repeat(length, length)
    later = np.repeat(sequences.offsets[1:], length) - 1 - np.arange(sequences.num_events)
    half = total if isinstance(half_life, str) else float(half_life)
    return np.asarray(np.exp2(-later / half), dtype=np.float32)


def age_weights(sequences: Sequences, half_life_days: float = 60.0, now: int | None = None) -> np.ndarray:
    """w = 2^(-age in days / half_life_days): (E,) float32.

    Args:
        sequences: from `build_sequences`.
        half_life_days: Feed-SR states 60.
        now: model time from which age counts; None: that of the newest target event. Later events have weight 1. The paper weights whole
            sequences; weights by each event's own age are *our choice*, since a stream spans many days.

    Returns:
        float32 (E,).

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> weights = kr.training.age_weights(sequences, half_life_days=1.0)
        >>> float(weights.max()), bool(weights.min() > 0.25)
        (1.0, True)
    """
    require_sequences(sequences)
    check_half_life("half_life_days", half_life_days)
    if now is None:
        now = int(sequences.time[sequences.target].max(initial=0))
    age = np.maximum(now - sequences.time.astype(np.int64), 0) / DAY
    return np.asarray(np.exp2(-age / half_life_days), dtype=np.float32)


def inverse_propensity_weights(
    position: np.ndarray,
    propensity: np.ndarray,
    clip: float = 10.0,
    label: np.ndarray | None = None,
    counted: np.ndarray | None = None,
    mean: float | None = None,
) -> tuple[np.ndarray, int]:
    """min(1 / propensity(position), clip), scaled to mean 1; and how many were clipped.

    Two readings, which remove different biases:

    * all events weighted by the position shown (no `label`): Feed-SR's words. Low positions count as if they had been examined as
      often as high ones; the labels still depend on the position. An item that is shown at low positions only still gets low scores.
    * only the positives weighted (`label` given; others have weight 1): the click odds become
      relevance / (1 - propensity * relevance), whose order is that of relevance up to a small term, also if position depends on the
      item (Joachims et al., 2017).

    Args:
        position: (E,) rank shown, 1-based.
        propensity: (K,) of positions 1 to K; positions beyond K have that of K. Where it is 0 (no label 1 at this position), the
            weight is `clip`.
        clip: largest weight before scaling.
        label: (E,) 0 or 1, to weight the positives alone.
        counted: (E,) bool, over which events the mean is 1 and the clipped ones are counted; None: all.
        mean: of the weights before scaling, where these are some of the events of a log; None: theirs.

    Returns:
        (E,) float32 weights, and the number clipped.

    Raises:
        ValueError: a counted event without a position, a propensity outside [0, inf), a clip not above 0.

    Example:
        >>> weights, clipped = kr.training.inverse_propensity_weights(np.array([1, 2, 2]), np.array([1.0, 0.25]), clip=2.0)
        >>> weights.tolist(), clipped
        ([0.6000000238418579, 1.2000000476837158, 1.2000000476837158], 2)
    """
    position, propensity = np.asarray(position), np.asarray(propensity, dtype=np.float64)
    if propensity.ndim != 1 or not len(propensity) or not (np.isfinite(propensity) & (propensity >= 0)).all():
        raise ValueError(f"`propensity` must hold finite numbers of at least 0. Received: {propensity.tolist()}")
    if not clip > 0:
        raise ValueError(f"`clip` must be positive. Received: clip={clip}")
    chosen = np.ones(len(position), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
    unknown = chosen & (position < 1)
    if unknown.any():
        raise ValueError(
            "inverse-propensity weights need the position of every target event. Received: none at "
            f"{int(unknown.sum())} of {int(chosen.sum())} events"
        )
    with np.errstate(divide="ignore"):
        raw = 1.0 / propensity[np.clip(position, 1, len(propensity)) - 1]
    weight = np.minimum(raw, clip)
    weighted = np.ones(len(position), dtype=bool)
    if label is not None:
        weighted = np.asarray(label) > 0
        weight = np.where(weighted, weight, 1.0)
    clipped = int((weighted & chosen & (raw > clip)).sum())
    if mean is None:
        mean = weight[chosen].mean() if chosen.any() else 1.0
    return np.asarray(weight / mean, dtype=np.float32), clipped


@dataclass(frozen=True)
class EventWeights:
    """Weights (E,) by task, and a report of them.

    Attributes:
        by_task: for `PackedDataset(weights=...)`; empty if all are 1.
        report: by task, the number of clipped events and the largest weight.

    Example:
        >>> weights = kr.training.EventWeights({"click": np.array([1.0, 0.5], "float32")}, {})
        >>> weights.by_task["click"].tolist()
        [1.0, 0.5]
    """

    by_task: dict[str, np.ndarray]
    report: dict[str, Any]


def event_weights(
    sequences: Sequences,
    tasks: list[str] | None = None,
    position_half_life: float | str | None = None,
    age_half_life_days: float | None = None,
    propensities: Mapping[str, np.ndarray] | None = None,
    ipw: str = "all",
    ipw_clip: float = 10.0,
    now: int | None = None,
    means: Mapping[str, float] | None = None,
) -> EventWeights:
    """The product of the chosen weights and of those of the rows (`Task.weight`), by task.

    Args:
        sequences: from `build_sequences`.
        tasks: None: all of the schema.
        position_half_life, age_half_life_days: of `place_weights` and `age_weights`; None: none.
        propensities: (K,) by task, of positions 1 to K, such as `position_propensities` gives; None: none.
        ipw: 'all' or 'positives', see `inverse_propensity_weights`.
        ipw_clip: largest inverse propensity.
        now: of `age_weights`; None: the newest target event of these.
        means: by task, `mean` of `inverse_propensity_weights`; None: those of these events.

    Returns:
        `EventWeights`.

    Raises:
        ValueError: no propensities of a task, an unknown `ipw`, or as the functions it calls.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> weights = kr.training.event_weights(sequences, ["click"], position_half_life="length", age_half_life_days=60)
        >>> weights.by_task["click"].shape == (len(log.events),)
        True
    """
    if ipw not in ("all", "positives"):
        raise ValueError(f"`ipw` must be 'all' or 'positives'. Received: ipw={ipw!r}")
    require_sequences(sequences)
    names = list(sequences.labels) if tasks is None else list(tasks)
    common = np.ones(sequences.num_events, dtype=np.float32)
    if position_half_life is not None:
        common = common * place_weights(sequences, position_half_life)
    if age_half_life_days is not None:
        common = common * age_weights(sequences, age_half_life_days, now)
    by_task: dict[str, np.ndarray] = {}
    report: dict[str, Any] = {}
    for task in names:
        weight, label = common, sequences.labels[task]
        if task in sequences.weights:
            weight = weight * sequences.weights[task]
        if propensities is not None:
            if task not in propensities:
                raise ValueError(f"`propensities` must be given for each task. Received: none for '{task}', of {sorted(propensities)}")
            counted = sequences.target & ~np.isnan(label)
            positives = np.nan_to_num(label) if ipw == "positives" else None
            mean = (means or {}).get(task)
            inverse, clipped = inverse_propensity_weights(sequences.position, propensities[task], ipw_clip, positives, counted, mean)
            weight = weight * inverse
            report[task] = {"clipped": clipped, "of": int(counted.sum()), "largest": float(inverse[counted].max(initial=0.0))}
        by_task[task] = weight
    weighted = propensities is not None or position_half_life is not None or age_half_life_days is not None or bool(sequences.weights)
    return EventWeights(by_task if weighted else {}, report)
