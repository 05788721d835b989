"""The Keras mask of a tensor, such as that of `keras.layers.Embedding(..., mask_zero=True)`."""

from __future__ import annotations

from typing import Any

from keras.src.backend.common import masking


def mask_of(tensor: Any) -> Any:
    """The Keras mask of a tensor, or None. It is no attribute of the tensor in a compiled step of JAX."""
    return masking.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Give a tensor a Keras mask."""
    masking.set_keras_mask(tensor, mask)
