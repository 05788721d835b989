"""`quantize("int8")` of a ranker: fully connected layers in int8 as Keras computes them, kept by what is saved."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import keras


class QuantizesLayers:
    """A model that is rebuilt from a configuration, with layers in int8 after `quantize`.

    The subclass gives `forget_graphs` and `compile_anew`.
    """

    def quantize(self, mode: str | None = None, config: Any = None, filters: Any = None, **settings: Any) -> None:
        """As `keras.Model.quantize` for mode 'int8': fully connected layers of Keras get int8 kernels, and activations are scaled by row.

        The model is for serving afterwards: int8 kernels are not trained, and the state of an optimiser is dropped. Saved and loaded, it
        gives the same scores. Tables of ids stay as they are; `keras_ranking.serving.quantize_embeddings` makes them int8.

        Args:
            mode: 'int8'.
            config: None: what a saved model is rebuilt with is the default of the mode.
            filters: as in Keras: a regular expression, several, or a function of a layer, for layers to quantise.
            settings: others of `keras.Model.quantize`.

        Raises:
            ValueError: another mode, a configuration, or no layer that can be quantised.
        """
        if mode != "int8":
            raise ValueError(f"`mode` must be 'int8': a saved ranker restores no other. Received: mode={mode!r}")
        if config is not None and config.get_config() != type(config)().get_config():  # Keras gives the default where none is given
            raise ValueError(f"`config` must be None: a saved ranker restores the default of 'int8'. Received: {config.get_config()}")
        with _quick_collections(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have a `quantize` method")
            super().quantize("int8", filters=filters, **settings)  # type: ignore[misc]
        if not int8_layers(self):
            raise ValueError("`filters` must leave a fully connected layer of Keras to quantise. Received: filters that leave none")
        self.forget_graphs()  # type: ignore[attr-defined]
        if self.compiled:  # type: ignore[attr-defined]
            self.compile_anew()  # type: ignore[attr-defined]


def int8_layers(model: Any) -> list[str]:
    """Paths of the layers that `quantize` has changed."""
    return [layer.path for layer in _layers(model) if getattr(layer, "quantization_mode", None) == "int8"]


def restore_int8(model: Any, paths: Collection[str]) -> None:
    """Quantise layers of a model that was just built, so that their saved weights fit.

    Raises:
        ValueError: a path that the model does not have.
    """
    by_path = {layer.path: layer for layer in _layers(model)}
    if unknown := sorted(set(paths) - by_path.keys()):
        raise ValueError(f"the file has layers in int8 that this model does not have: {unknown}")
    with _quick_collections():
        for path in paths:
            by_path[path].quantize("int8")
    if paths and keras.backend.backend() == "torch":
        model._post_quantize("int8")


def _layers(model: Any) -> list[Any]:
    return [layer for layer in model._flatten_layers(include_self=False) if isinstance(layer, keras.layers.Layer)]


@contextlib.contextmanager
def _quick_collections() -> Iterator[None]:
    """Keras collects garbage after each layer that it quantises, for half a second in a large process: here of new objects alone."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
