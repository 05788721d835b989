"""Hard sharing: one bottom for all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ranking.layers.multi_task.multi_task import MultiTask


@keras.saving.register_keras_serializable(package="keras_ranking")
class SharedBottom(MultiTask):
    """Hard sharing: `logit_k = tower_k(bottom(x))`, k = 1..K.

    The baseline of LiRank's table 1 (2402.06859). Widths and activation are our choice.

    Args:
        tasks, tower, activation, dropout: K task names; hidden widths of each tower; activation and dropout of all MLPs.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of all MLPs and, of
            kernels, the gates.
        bottom: widths of the MLP that all tasks share.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        dict, task -> float32 logit (B, ...).

    Raises:
        ValueError: no task, a task given twice, a width below 1, or D unknown.

    Example:
        >>> kr.layers.SharedBottom(["click", "like"])(np.ones((2, 5, 8), "float32"))["like"].shape
        (2, 5)
    """

    def __init__(self, tasks: Sequence[str], bottom: Sequence[int] = (128,), **settings: Any) -> None:
        super().__init__(tasks, **settings)
        self.bottom = self._bank(1, bottom, "bottom")

    def _build_states(self, width: int) -> tuple[int | None, ...]:
        self.bottom.build((None, width))
        return (None, self.bottom.widths[-1])

    def _states(self, x: Any, training: bool | None) -> Any:
        return self.bottom(x, training=training)[:, 0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "bottom": list(self.bottom.widths)}
