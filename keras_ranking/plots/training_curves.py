"""Losses and metrics by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_ranking.plots.figure import COLORS, finish, new_figure


def training_curves(epochs: Mapping[str, Sequence[float]] | Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str] = ()) -> Any:
    """What `fit` measured after each epoch, one panel a name: the training value solid, its validation value dashed.

    Args:
        epochs: name -> value by epoch, as `history.json` has under `epochs`; or such mappings by run.
        names: which panels, without `val_`; (): all.

    Returns:
        A figure of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: a name that no run has.

    Example:
        >>> kr.plots.training_curves({"loss": [0.7, 0.5, 0.4], "val_loss": [0.7, 0.6, 0.6]}).axes[0].get_ylabel()
        'loss'
    """
    runs: dict[str, Any] = dict(epochs)
    if not all(isinstance(values, Mapping) for values in runs.values()):
        runs = {"": runs}
    known = list(dict.fromkeys(name.removeprefix("val_") for values in runs.values() for name in values))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"`names` must be among {known}. Received: {unknown}")
    panels = list(names) or known
    columns = min(2, len(panels))
    rows = -(-len(panels) // max(columns, 1))
    figure = new_figure(3.4 * max(columns, 1), 2.5 * max(rows, 1))
    places = figure.subplots(max(rows, 1), max(columns, 1), squeeze=False).ravel()
    for place, name in zip(places, panels, strict=False):
        labelled = False
        for color, (run, values) in zip(COLORS * len(runs), runs.items(), strict=False):
            for prefix, style in (("", "-"), ("val_", "--")):
                found = values.get(prefix + name)
                if found:
                    label = " ".join(word for word in (run, "validation" if prefix else "training") if word)
                    marker = "o" if len(found) < 25 else None
                    place.plot(range(1, len(found) + 1), found, style, color=color, label=label, marker=marker, markersize=3.5)
                    labelled = True
        finish(place, ["x"] if labelled and place is places[0] else [], xlabel="epoch", ylabel=name)
        place.xaxis.get_major_locator().set_params(integer=True)
    for place in places[len(panels) :]:
        place.set_visible(False)
    return figure
