"""Parts of a model by the names of its layers: those of the tasks, those below them, and those that are frozen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

import keras

from keras_ranking.layers import Forest, RandomEffect

_HEADS = ("head", "set_head", "calibration_features")
_OF_TASKS = ("towers_", "offset_", "isotonic_", "logit_", "posterior_", "effect_", "choice_", "past_logit_")
_FITTED = (Forest, RandomEffect)  # never trained by gradients
WITH_HEADS = ("CADET", "FeedSR", "LiRank", "AmortizedDLRM", "LiGR")


def head_names(builder: str, shared_trunk: bool, names: Iterable[str]) -> list[str]:
    """Those layers of a model that belong to tasks: towers, logits, calibration, posteriors and random effects.

    Args:
        builder: of the model.
        shared_trunk: whether the groups of tasks have one cross net.
        names: of the model's layers with weights.

    Raises:
        ValueError: a model of another builder, such as an ensemble.
    """
    if builder not in WITH_HEADS:
        raise ValueError(f"heads are known of {', '.join(WITH_HEADS)}. Received: a model made by {builder}")
    begins = _OF_TASKS if shared_trunk else (*_OF_TASKS, "trunk_")
    return [name for name in names if name in _HEADS or name.startswith(begins)]


def inner(layer: Any) -> list[Any]:
    """The layers that a layer holds itself."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


def freeze_parts(layers: Iterable[Any], paths: Collection[str], above: str = "") -> Iterator[str]:
    """Freeze layers by their paths, such as 'block_0' or 'ids/table_topic'.

    Args:
        layers: of a model, or those that a layer holds.
        paths: what to freeze, with all that it holds.
        above: path of the layer that holds `layers`, with '/' behind it.

    Yields:
        The paths that were found.
    """
    for layer in layers:
        path = f"{above}{layer.name}"
        if path in paths:
            layer.trainable = False
            yield path
        elif any(other.startswith(f"{path}/") for other in paths):
            yield from freeze_parts(inner(layer), paths, f"{path}/")


def frozen_parts(layers: Iterable[Any], above: str = "") -> list[str]:
    """Paths of the layers with weights that are frozen, each with all that it holds."""
    found = []
    for layer in layers:
        if not layer.weights or isinstance(layer, _FITTED):
            continue
        path = f"{above}{layer.name}"
        found += frozen_parts(inner(layer), f"{path}/") if layer.trainable else [path]
    return found


def check_still(layers: Iterable[Any]) -> None:
    """Check that no layer changes its weights in training although it is frozen.

    Raises:
        ValueError: such a layer.
    """
    for layer in layers:
        for one in layer._flatten_layers():
            if isinstance(one, keras.layers.SpectralNormalization):
                raise ValueError(
                    f"layer '{one.name}' changes its weights in training, frozen or not: SpectralNormalization measures its kernel in each "
                    "step. Give its trained inner layer in its place."
                )
