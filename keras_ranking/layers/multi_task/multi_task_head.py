"""One layer for all kinds of multi-task layers, selected by name in a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_ranking.layers.base import PassesMask
from keras_ranking.layers.multi_task.grouped_tasks import GroupedTasks
from keras_ranking.layers.multi_task.mmoe import MMoE
from keras_ranking.layers.multi_task.multi_task import MultiTask
from keras_ranking.layers.multi_task.ple import PLE
from keras_ranking.layers.multi_task.shared_bottom import SharedBottom
from keras_ranking.layers.multi_task.sparse_mmoe import SparseMMoE

KINDS: dict[str, type[MultiTask]] = {
    "shared_bottom": SharedBottom,
    "grouped": GroupedTasks,
    "mmoe": MMoE,
    "ple": PLE,
    "sparse_mmoe": SparseMMoE,
}


@keras.saving.register_keras_serializable(package="keras_ranking")
class MultiTaskHead(PassesMask, keras.layers.Layer):
    """The multi-task layer of a given kind: `SharedBottom`, `GroupedTasks`, `MMoE`, `PLE` or `SparseMMoE`.

        logits = body(x),   body = KINDS[kind](tasks, **options)

    LiRank (2402.06859) compares the first four, on contributions: grouping +0.75 %, MMoE +1.19 %, PLE +1.34 % over hard
    sharing (stated). With it a model can take the kind from its configuration.

    Args:
        kind: 'shared_bottom', 'grouped', 'mmoe', 'ple' or 'sparse_mmoe'.
        tasks: K names, each once.
        options: arguments of that layer, such as `num_experts=4`; `name`, `dtype` and `trainable` apply to the head.

    Call arguments:
        inputs: (B, ..., D).

    Output:
        dict, task -> float32 logit (B, ...); with `return_hidden=True`, a tuple of this and a dict of the inputs of the last maps.

    Raises:
        ValueError: an unknown kind, or errors of the chosen layer.

    Example:
        >>> kr.layers.MultiTaskHead("mmoe", ["click", "like"], num_experts=3)(np.ones((2, 5, 8), "float32"))["like"].shape
        (2, 5)
    """

    def __init__(
        self,
        kind: str,
        tasks: Sequence[str],
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(autocast=False, name=name, dtype=dtype, trainable=trainable)
        if kind not in KINDS:
            raise ValueError(f"`kind` must be one of {tuple(KINDS)}. Received: kind={kind!r}")
        self.kind = kind
        self.body = KINDS[kind](tasks, name="body", dtype=self.dtype_policy, trainable=trainable, **options)

    @property
    def tasks(self) -> tuple[str, ...]:
        return self.body.tasks

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.body.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, return_hidden: bool = False) -> Any:
        return self.body(inputs, training=training, return_hidden=return_hidden)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> dict[str, tuple[int | None, ...]]:
        return self.body.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, training: bool | None = None, return_hidden: bool = False) -> Any:
        return self.body.compute_output_spec(inputs, training=training, return_hidden=return_hidden)

    def get_config(self) -> dict[str, Any]:
        own = super().get_config()
        options = {key: value for key, value in self.body.get_config().items() if key not in own}
        return {**options, **own, "kind": self.kind}
