"""freeze: the trunk of any Keras model keeps its weights in training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from keras_ranking import models
from keras_ranking.models.wiring import check_still, freeze_parts
from keras_ranking.values import require_kind


def freeze(model: keras.Model, trunk: Iterable[Any] | str | keras.layers.Layer | None = None) -> list[str]:
    """Freeze the trunk of a model: what is in it keeps its weights, to the bit, through any number of training steps.

    The moving statistics of a frozen batch normalisation keep theirs too, and it normalises with them in training, as Keras has it. A
    frozen dropout still drops in training. `layer.trainable = True` trains a layer again.

    The model forgets how it was compiled, since an optimiser is made for the weights that it trains: compile it afterwards. A frozen
    `RankingModel` is saved and loaded as frozen.

    Args:
        model: any Keras model.
        trunk: layers, or their names; a layer inside another one as 'outer/inner'. One or several. None, for a model of this package:
            all layers but those of its tasks (`RankingModel.head_layers`).

    Returns:
        Paths of what was frozen.

    Raises:
        TypeError: `model` is not a Keras model.
        ValueError: a name that the model does not have, no `trunk` for a model of your own, or a `SpectralNormalization` in the trunk,
            which changes its weights whether it is frozen or not. A layer of yours that assigns weights in its call must look at
            `self.trainable` itself.

    Example:
        >>> inputs = keras.Input((4,))
        >>> x = keras.layers.BatchNormalization(name="norm")(keras.layers.Dense(8, name="body")(inputs))
        >>> model = keras.Model(inputs, keras.layers.Dense(1, name="head")(x))
        >>> kr.training.freeze(model, trunk=["body", "norm"])
        ['body', 'norm']
        >>> model.compile("adam", loss="mse")
        >>> before = model.get_layer("norm").get_weights() + model.get_layer("body").get_weights()
        >>> _ = model.fit(np.ones((8, 4)), np.zeros((8, 1)), verbose=0)
        >>> after = model.get_layer("norm").get_weights() + model.get_layer("body").get_weights()
        >>> all(np.array_equal(old, new) for old, new in zip(before, after))
        True
    """
    require_kind(model, keras.Model, "model", "a Keras model")
    if trunk is None:
        if not isinstance(model, models.RankingModel):
            raise ValueError("`trunk` must name the layers to freeze, where the model is not one of this package. Received: trunk=None")
        wanted = trunk_names(model)
    else:
        listed: list[Any] = [trunk] if isinstance(trunk, (str, keras.layers.Layer)) else list(trunk)
        wanted = [str(getattr(one, "name", one)) for one in listed]
    layers = [layer for layer in model.layers if layer.name in {path.split("/")[0] for path in wanted}]
    found = list(freeze_parts(layers, wanted))
    if missing := [path for path in wanted if path not in found]:
        for layer in layers:
            layer.trainable = True
        names = [layer.name for layer in model.layers if layer.weights]
        raise ValueError(f"`trunk` must name layers of the model, of {names}. Received: {missing}")
    check_still([layer for layer in layers if layer.name in found])
    model.compiled = False
    return found


def trunk_names(model: models.RankingModel) -> list[str]:
    """Names of the layers below those of the tasks."""
    heads = model.head_layers
    return [layer.name for layer in model.layers if layer.weights and layer.name not in heads]
