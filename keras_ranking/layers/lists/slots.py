"""The list of each item of a row, where it is given or left to a mask."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_ranking.layers.base import mask_of_all


def slots_of(inputs: Any, slot: Any, mask: Any) -> Any:
    """int32 (B, S): `slot`, or 1 where there is none, and 0 where an explicit mask, or that of the inputs, hides the item."""
    slot = ops.ones_like(inputs[:, :, 0], dtype="int32") if slot is None else slot
    real = mask_of_all(inputs, mask=mask)
    return slot if real is None else ops.where(real, slot, ops.zeros_like(slot))
