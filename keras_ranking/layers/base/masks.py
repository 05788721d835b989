"""What becomes of a Keras mask, such as that of `keras.layers.Embedding(..., mask_zero=True)`, in a layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class PassesMask:
    """A layer whose outputs have the leading axes of its first input: the mask of the input is that of the outputs.

    The layer computes each token from this token alone, or is told of padding by another argument (`spans`, `slot`), so it does not
    need the mask itself.
    """

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Keras's hook: the mask, for the outputs of each task where the layer has several; or None."""
        mask = masks(previous_mask)
        return None if mask is None else [mask] * max(1, 2 * len(getattr(self, "tasks", ())))


class RefusesMask:
    """A layer that changes the axis of tokens, or reads several of them, and is told of padding by arguments instead of a mask."""

    mask_instead = "lengths or segments"

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        """Keras's hook.

        Raises:
            ValueError: an input has a mask.
        """
        if masks(previous_mask) is not None:
            raise ValueError(
                f"{type(self).__name__} does not read a Keras mask: it takes {self.mask_instead} instead, see its docstring. Make the "
                "input without mask (Embedding without mask_zero=True, no Masking layer). Received: an input with a mask."
            )


def masks(given: Any) -> Any:
    """One mask of a mask or of a nested structure of them: a token is real where all say so. None: there is none."""
    found = [mask for mask in keras.tree.flatten(given) if mask is not None]
    if not found:
        return None
    joined = found[0]
    for mask in found[1:]:
        joined = ops.logical_and(joined, mask)
    return joined


def mask_of(inputs: Any) -> Any:
    """The Keras mask attached to a tensor, or None."""
    return getattr(inputs, "_keras_mask", None)
