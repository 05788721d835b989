"""SetwiseAttention: the items of one request see each other, without order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.attention.ligr_block import LiGRBlock
from keras_ranking.layers.attention.self_gated_attention import GATED
from keras_ranking.layers.base import ReadsMask, WeightRules, WholeInputs, mask_of_all
from keras_ranking.layers.lists.slots import slots_of
from keras_ranking.ops import Spans
from keras_ranking.ops.integers import at_most
from keras_ranking.ops.masks import RealFirst


@keras.saving.register_keras_serializable(package="keras_ranking")
class SetwiseAttention(WholeInputs, ReadsMask, WeightRules, keras.layers.Layer):
    """Gated blocks in which every item of a set sees all items of its set, and none of another set.

        X_set <- LiGRBlock^num_layers(X_set),      softmax over the set, no positions: a permutation of the set permutes the output

    Source: LiGR (2502.03417; "in-session attention", second-hand). It follows point-wise blocks and adds to their state.
    With `top_k`, only the k items of each set with the highest scores see each other and are changed (notes on the paper mention about
    ten). The number of blocks, whether they are gated, and how the result is merged with point-wise scores are unknown.

    Args:
        num_layers, num_heads, head_dim, ffn_multiple, gate, gate_bias, dropout: of the `LiGRBlock`s; `head_dim=None`: D / num_heads.
        block_options: further arguments of the `LiGRBlock`s.
        top_k: k, or None for whole sets. Of equal scores the earlier item ranks first.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of all maps of the blocks.

    Call arguments:
        inputs: X (B, S, D).
        slot: int32 (B, S), the set of each item; the items of a set are neighbours; 0 = no item. None: each row is one set.
        score: (B, S), by which the best k are chosen; used only with `top_k`.
        whole: whether each row is one left-aligned set. With `top_k`, only k items then pass through the blocks; same results.
        mask: boolean (B, S), which items are there, next to the Keras mask of the inputs; the gaps may be anywhere.

    Output:
        X (B, S, D), in which the chosen items are changed; and int32 (B, S), 1 for the chosen items.

    Raises:
        ValueError: sizes below 1, or `top_k` without a `score`.

    Example:
        >>> layer = kr.layers.SetwiseAttention(num_heads=2, top_k=2)
        >>> x = np.ones((1, 4, 8), "float32")
        >>> out, chosen = layer(x, slot=np.array([[1, 1, 1, 0]], "int32"), score=np.array([[0.1, 0.3, 0.2, 0.9]], "float32"))
        >>> keras.ops.convert_to_numpy(chosen)
        array([[0, 1, 1, 0]], dtype=int32)
    """

    whole = ("slot",)
    weight_rules = GATED

    def __init__(
        self,
        num_layers: int = 1,
        num_heads: int = 4,
        head_dim: int | None = None,
        ffn_multiple: float = 4.0,
        gate: bool = True,
        gate_bias: float = 0.0,
        top_k: int | None = None,
        dropout: float = 0.0,
        block_options: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        for name, value in (("num_layers", num_layers), ("num_heads", num_heads), ("top_k", 1 if top_k is None else top_k)):
            if value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value}")
        self.num_layers, self.num_heads, self.head_dim, self.top_k = int(num_layers), int(num_heads), head_dim, top_k
        self.ffn_multiple, self.gate, self.gate_bias, self.dropout_rate = float(ffn_multiple), bool(gate), float(gate_bias), float(dropout)
        self.block_options = dict(block_options or {})

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        width = int(input_shape[-1] or 0)
        self.blocks = []
        for i in range(self.num_layers):
            options = {"ffn_multiple": self.ffn_multiple, "gate": self.gate, "gate_bias": self.gate_bias, "dropout": self.dropout_rate}
            own = {"rotary": None, **options, **self.rules(LiGRBlock), **self.block_options, "dtype": self.dtype_policy}
            block = LiGRBlock(self.num_heads, self.head_dim or max(1, width // self.num_heads), **own, name=f"block_{i}")
            block.build((None, None, width))
            self.blocks.append(block)
        self.built = True

    def call(
        self, inputs: Any, slot: Any = None, score: Any = None, whole: bool = False, mask: Any = None, training: bool | None = None
    ) -> tuple[Any, Any]:
        real = mask_of_all(inputs, mask=mask)
        if real is None:
            return self._of_sets(inputs, slots_of(inputs, slot, None), score, whole, training)
        first = RealFirst.of(real)  # items of a set are neighbours again
        sets = first.rows(slots_of(inputs, slot, real))
        out, chosen = self._of_sets(first.rows(inputs), sets, None if score is None else first.rows(score), whole, training)
        return first.back(out), first.back(chosen)

    def _of_sets(self, inputs: Any, slot: Any, score: Any, whole: bool, training: bool | None) -> tuple[Any, Any]:
        if self.top_k is None:
            spans = tuple(Spans.setwise(slot, slot))
            return self._blocks(inputs, spans, training), ops.cast(slot > 0, "int32")
        if score is None:
            raise ValueError(f"`score` must be given to choose the best {self.top_k} of each set.")
        target, chosen = self._ranked(slot, ops.cast(score, "float32"))
        order = ops.cast(ops.argsort(target, axis=1), "int32")  # target is a permutation, so there are no ties
        size = ops.shape(inputs)[1]
        if whole:
            size = min(size, self.top_k) if isinstance(size, int) else at_most(size, self.top_k)
            order = order[:, :size]
        x = ops.take_along_axis(inputs, order[:, :, None], axis=1)
        sets = ops.take_along_axis(slot * chosen, order, axis=1)
        x = self._blocks(x, tuple(Spans.setwise(sets, sets)), training)
        back = ops.take_along_axis(x, at_most(target, size - 1)[:, :, None], axis=1)
        return ops.where(chosen[:, :, None] > 0, back, inputs), chosen

    def _blocks(self, x: Any, spans: Any, training: bool | None) -> Any:
        for block in self.blocks:
            x = block(x, spans=spans, training=training)
        return x

    def _ranked(self, slot: Any, score: Any) -> tuple[Any, Any]:
        """Index of each item when its set is ordered by score, (B, S), and whether it is among the best k."""
        index = ops.arange(ops.shape(slot)[1], dtype="int32")
        same = slot[:, :, None] == slot[:, None, :]
        ahead = score[:, None, :] > score[:, :, None]
        tie = ops.logical_and(score[:, None, :] == score[:, :, None], (index[None, :] < index[:, None])[None])
        rank = ops.sum(ops.cast(ops.logical_and(same, ops.logical_or(ahead, tie)), "int32"), axis=2)
        first = ops.min(ops.where(same, index[None, None, :], ops.shape(slot)[1]), axis=2)
        real = slot > 0
        target = ops.where(real, first + rank, index[None, :])
        return target, ops.cast(ops.logical_and(real, rank < self.top_k), "int32")

    def compute_output_spec(
        self, inputs: Any, slot: Any = None, score: Any = None, whole: bool = False, mask: Any = None, training: bool | None = None
    ) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype), keras.KerasTensor(inputs.shape[:2], dtype="int32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "ffn_multiple": self.ffn_multiple,
            "gate": self.gate,
            "gate_bias": self.gate_bias,
            "top_k": self.top_k,
            "dropout": self.dropout_rate,
            "block_options": self.block_options,
        }
