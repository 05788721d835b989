"""Moving averages in torch: one call for all tensors of a kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from keras import ops


class Store:
    """See `keras_ranking.ops.averages.Averages`."""

    def __init__(self, starts: list[np.ndarray]) -> None:
        self.values = [ops.convert_to_tensor(start, dtype="float32").detach().clone() for start in starts]

    def move(self, weights: list[Any], share: float) -> None:
        with torch.no_grad():
            torch._foreach_lerp_(self.values, [weight.detach().to(torch.float32) for weight in weights], share)

    def numpy(self) -> list[np.ndarray]:
        return [ops.convert_to_numpy(value) for value in self.values]
