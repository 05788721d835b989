"""ListContext: numbers of an item next to those of the list that it is shown in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.layers.base import ReadsMask, WeightRules, WholeInputs
from keras_ranking.layers.lists.slots import slots_of
from keras_ranking.ops.lists import Lists
from keras_ranking.ops.rows import for_own_rows

_PARTS = ("minus_mean", "minus_max", "rank", "size")


@keras.saving.register_keras_serializable(package="keras_ranking")
class ListContext(WholeInputs, ReadsMask, keras.layers.Layer):
    """Each number of an item as it is, minus the mean and the maximum of its list, its rank in the list, and the size of the list.

        out_i = [x_i ; x_i - mean_R x ; x_i - max_R x ; rank_R(x_i) ; ln |R|]        R: the list of i
        rank  = (place - 1/2) / |R|, place 1 for the highest; equal numbers share the mean of their places

    A permutation of the list permutes the output, other lists and padding change nothing. The numbers are those of
    `kr.data.list_relative`, made inside the model, so that a request need not send them. The rank has no gradient.

    Args:
        parts: which of 'minus_mean', 'minus_max', 'rank' and 'size' join the numbers.

    Call arguments:
        inputs: X (B, S, F).
        slot: int32 (B, S), the list of each item; 0 = no item. None: each row is one list.
        mask: boolean (B, S), which slots have an item, next to the Keras mask of the inputs.

    Output:
        (B, S, F * (1 + parts but 'size') + 1 with 'size'); zero where there is no item.

    Raises:
        ValueError: an unknown part.

    Example:
        >>> layer = kr.layers.ListContext(parts=("minus_max", "rank"))
        >>> out = layer(np.array([[[4.0], [8.0], [6.0]]], "float32"), slot=np.array([[1, 1, 0]], "int32"))
        >>> keras.ops.convert_to_numpy(out)[0].tolist()
        [[4.0, -4.0, 0.75], [8.0, 0.0, 0.25], [0.0, 0.0, 0.0]]
    """

    whole = ("slot",)

    def __init__(self, parts: Sequence[str] = _PARTS, **settings: Any) -> None:
        super().__init__(**settings)
        if unknown := [part for part in parts if part not in _PARTS]:
            raise ValueError(f"`parts` must be among {_PARTS}. Received: {unknown}")
        self.parts = list(parts)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, inputs: Any, slot: Any = None, mask: Any = None) -> Any:
        return for_own_rows(self._of_rows, inputs, slots_of(inputs, slot, mask))

    def _of_rows(self, x: Any, slot: Any) -> Any:
        lists = Lists.of(slot)
        clean = lists.clean(x)
        wide = ops.cast(clean, "float32")  # sums over a long list in half precision would round
        made = [clean]
        if "minus_mean" in self.parts:
            made.append(lists.clean(wide - lists.mean(wide)))
        if "minus_max" in self.parts:
            made.append(lists.clean(wide - lists.max(wide)))
        if "rank" in self.parts:
            made.append(lists.rank(wide))
        if "size" in self.parts:
            made.append(ops.log(lists.size)[:, :, None])
        return ops.concatenate([ops.cast(part, self.compute_dtype) for part in made], axis=-1)

    def compute_output_spec(self, inputs: Any, slot: Any = None, mask: Any = None) -> Any:
        return keras.KerasTensor((*inputs.shape[:2], self.width(int(inputs.shape[-1]))), dtype=self.compute_dtype)

    def width(self, features: int) -> int:
        """Size of the last axis of the output for so many numbers."""
        return features * (1 + sum(part != "size" for part in self.parts)) + ("size" in self.parts)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parts": self.parts}


@keras.saving.register_keras_serializable(package="keras_ranking")
class ListPooling(WholeInputs, ReadsMask, WeightRules, keras.layers.Layer):
    """A block in which an item's state reads the mean and the maximum of its list.

        out = x + W_2 gelu(W_1 [n ; mean_R n ; max_R n] + b_1) + b_2,     n = LayerNorm(x)

    What a list says of an item, at the cost of two dense layers. Our choice, after Deep Sets (1703.06114).

    Args:
        hidden: width of W_1; None: that of x.
        dropout: rate after the activation, in training.
        kernel_initializer, kernel_regularizer, kernel_constraint, bias_initializer, bias_regularizer, bias_constraint: of the two dense
            layers.

    Call arguments:
        inputs: X (B, S, D).
        slot: int32 (B, S), the list of each item; 0 = no item. None: each row is one list.
        mask: boolean (B, S), which slots have an item, next to the Keras mask of the inputs.

    Output:
        (B, S, D); as it was where there is no item.

    Raises:
        ValueError: a width below 1.

    Example:
        >>> layer = kr.layers.ListPooling()
        >>> layer(np.ones((1, 3, 4), "float32"), slot=np.array([[1, 1, 0]], "int32")).shape
        (1, 3, 4)
    """

    whole = ("slot",)

    def __init__(self, hidden: int | None = None, dropout: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        if hidden is not None and hidden < 1:
            raise ValueError(f"`hidden` must be a positive integer or None. Received: hidden={hidden}")
        self.hidden, self.dropout_rate = hidden, float(dropout)
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, name="norm", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(self.dropout_rate, name="dropout", dtype=self.dtype_policy)

    def build(self, input_shape: Any) -> None:
        width = int(input_shape[-1])
        self.inner = self.dense(self.hidden or width, activation="gelu", name="inner")
        self.outer = self.dense(width, name="outer")
        self.norm.build(input_shape)
        self.inner.build((*input_shape[:-1], 3 * width))
        self.outer.build((*input_shape[:-1], self.hidden or width))
        self.built = True

    def call(self, inputs: Any, slot: Any = None, mask: Any = None, training: bool | None = None) -> Any:
        slot = slots_of(inputs, slot, mask)
        normed = self.norm(inputs)
        read = for_own_rows(self._of_rows, normed, slot)
        change = self.outer(self.dropout(self.inner(read), training=training))
        return inputs + ops.where((slot > 0)[:, :, None], change, ops.zeros_like(change))

    def _of_rows(self, x: Any, slot: Any) -> Any:
        lists = Lists.of(slot)
        wide = ops.cast(lists.clean(x), "float32")
        return ops.concatenate([ops.cast(part, x.dtype) for part in (wide, lists.mean(wide), lists.max(wide))], axis=-1)

    def compute_output_spec(self, inputs: Any, slot: Any = None, mask: Any = None, training: bool | None = None) -> Any:
        return keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "hidden": self.hidden, "dropout": self.dropout_rate}
