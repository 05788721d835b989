"""Which past events candidates attend to, over time."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.plots.figure import BLUE, GREY, RED, finish, new_figure


def attention_over_time(weights: Any, ages: Any, lengths: Any = None, samples: int = 6) -> Any:
    """Attention of candidates on the events of the history, by the age of the event.

    Above: mean weight of an event by its age, relative to equal weights on all events: at 1 the model takes no notice of the age. Below:
    the weights of single requests, one line a request; the larger a point, the larger its weight.

    Args:
        weights: (Q, L): weight of each event of the history of each request, mean over candidates, blocks and heads.
        ages: (Q, L): seconds from the event to the request.
        lengths: (Q,) number of events; None: L for all.
        samples: number of requests below.

    Returns:
        A figure of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: other shapes, or no event.

    Example:
        >>> figure = kr.plots.attention_over_time([[0.1, 0.2, 0.7]], [[7200, 3600, 600]])
        >>> len(figure.axes)
        2
    """
    weight, age = np.asarray(weights, dtype=np.float64), np.asarray(ages, dtype=np.float64)
    if weight.ndim != 2 or weight.shape != age.shape:
        raise ValueError(f"`weights` and `ages` must have one shape (Q, L). Received: {weight.shape} and {age.shape}")
    count = np.full(len(weight), weight.shape[1]) if lengths is None else np.asarray(lengths)
    real = np.arange(weight.shape[1])[None, :] < count[:, None]
    if not real.any():
        raise ValueError("`lengths` must leave an event. Received: none")
    total = np.where(real, weight, 0).sum(axis=1, keepdims=True)
    relative = weight / np.maximum(total, 1e-12) * np.maximum(count[:, None], 1)
    hours = np.maximum(age, 1) / 3600
    figure = new_figure(6.0, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.2, 1))
    values, found = hours[real], relative[real]
    low, high = np.log10(values.min()), np.log10(values.max())
    edges = np.logspace(low, max(high, low + 1e-6), 13)
    place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, 11)
    events = np.bincount(place, minlength=12)
    seen = np.flatnonzero(events > 0)
    mean = np.bincount(place, weights=found, minlength=12)[seen] / events[seen]
    above.axhline(1, color=GREY, linewidth=1)
    above.plot(np.sqrt(edges[:-1] * edges[1:])[seen], mean, "o-", color=BLUE, markersize=4)
    finish(above, [], ylabel="weight / equal weight", ylim=(0, None), xscale="log")
    order = np.argsort(-count, kind="stable")[: int((count > 0).sum())]
    chosen = order[np.unique(np.linspace(0, (len(order) - 1) // 2, samples).astype(int))]  # of the longer half, spread over it
    for line, request in enumerate(chosen):
        rows = real[request]
        size = 1 + 45 * weight[request][rows] / max(float(weight[request][rows].max()), 1e-12)
        below.scatter(hours[request][rows], np.full(int(rows.sum()), line + 1), s=size, color=RED, alpha=0.45, linewidths=0)
    finish(below, [], xlabel="hours before the request", ylabel="sample request", ylim=(0.4, len(chosen) + 0.6))
    below.yaxis.get_major_locator().set_params(integer=True)
    return figure
