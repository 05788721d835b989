"""What `trainable=False` means for a layer with layers in it."""

from __future__ import annotations

from typing import Any


class FrozenWithParts:
    """A layer whose parts are frozen where it is built with `trainable=False`, as by loading a saved model in which it was frozen.

    Keras freezes the parts that there are when `layer.trainable = False` is set, but not those that a frozen layer makes later: its own
    `trainable_weights` are then none, and those of a model around it are all.
    """

    trainable: bool

    def _post_build(self) -> Any:
        made = super()._post_build()  # type: ignore[misc]
        if not self.trainable:
            # Each by itself: TensorFlow leaves out the assignment of a value that an attribute has.
            for part in self._flatten_layers(include_self=False):  # type: ignore[attr-defined]
                part.trainable = False
        return made
