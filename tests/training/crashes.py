"""A training that ends in the middle, as a crash would end it."""

from __future__ import annotations

from typing import Any

import keras


class CrashAfter(keras.callbacks.Callback):
    """Raises a RuntimeError after so many steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.left -= 1
        if not self.left:
            raise RuntimeError("crash")
