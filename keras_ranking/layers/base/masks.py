"""What becomes of a Keras mask, such as that of `keras.layers.Embedding(..., mask_zero=True)`, in a layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base.frozen import FrozenWithParts
from keras_ranking.ops.integers import as_tensor
from keras_ranking.ops.masks import mask_of, set_mask


class PassesMask(FrozenWithParts):
    """A layer whose outputs have the leading axes of its inputs: a token of the outputs is real where it is real in all inputs.

    The layer computes each token from this token alone, or is told of padding by another argument (`slot`), so it does not need the
    mask itself. One that mixes tokens is a `ReadsMask`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().__call__(*args, **kwargs)  # type: ignore[misc]
        given = kwargs.get("mask")
        if given is not None or _mask_of_others(args, kwargs) is not None:  # Keras passes on the mask of the first argument only
            found = self.compute_mask(None, [given, *(mask_of(value) for value in keras.tree.flatten((args, kwargs)))])
            for output, mask in zip(keras.tree.flatten(outputs), found, strict=False):
                set_mask(output, mask)
        return outputs

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Keras's hook: the mask, for the outputs of each task where the layer has several; or None."""
        mask = masks(previous_mask)
        return None if mask is None else [mask] * max(1, 2 * len(getattr(self, "tasks", ())))


class ReadsMask(PassesMask):
    """A layer that mixes tokens: no token sees one that the mask hides, and a hidden token sees nothing.

    The mask is that of the inputs and, where its call has an argument `mask`, this one; a token is real where both say so.
    """


class ReadsKeyMask(FrozenWithParts):
    """A layer in which tokens read those of another argument: those hidden by the mask of that argument are read by none.

    The outputs have the mask of the first argument.
    """

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """Keras's hook: the mask of the first argument, or None."""
        return masks(previous_mask)


class RefusesMask(FrozenWithParts):
    """A layer that changes the axis of tokens, or reads several of them, and is told of padding by arguments instead of a mask."""

    mask_instead = "lengths or segments"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.compute_mask(None, _mask_of_others(args, kwargs))
        return super().__call__(*args, **kwargs)  # type: ignore[misc]

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
    found: list[Any] = []
    for mask in keras.tree.flatten(given):
        if mask is not None and not any(mask is other for other in found):
            found.append(mask)
    if not found:
        return None
    joined = ops.cast(as_tensor(found[0]), "bool")
    for mask in found[1:]:
        joined = ops.logical_and(joined, ops.cast(as_tensor(mask), "bool"))
    return joined


def mask_of_all(*given: Any, mask: Any = None) -> Any:
    """One mask of an explicit one and those of tensors, or None: inside a call."""
    return masks([mask, *(mask_of(x) for x in given if x is not None)])


def _mask_of_others(args: Any, kwargs: Any) -> Any:
    """One mask of all arguments but the first, or None."""
    return masks([mask_of(value) for value in keras.tree.flatten((args[1:], kwargs))])
