"""The Keras mask of a tensor, such as that of `keras.layers.Embedding(..., mask_zero=True)`, and rows with their real tokens first.

Under a mask with gaps, what a token sees is not two intervals of its row. With the real tokens first it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops
from keras.src.backend.common import masking

from keras_ranking.ops.integers import as_tensor, at_least, at_most
from keras_ranking.ops.spans import Spans

Tensor = Any


def mask_of(tensor: Any) -> Any:
    """The Keras mask of a tensor, or None. It is no attribute of the tensor in a compiled step of JAX."""
    return masking.get_keras_mask(tensor)


def set_mask(tensor: Any, mask: Any) -> None:
    """Give a tensor a Keras mask."""
    masking.set_keras_mask(tensor, mask)


class RealFirst(NamedTuple):
    """The tokens of each row in another order: those that are real, in their own order, and then the others.

    Args:
        real: boolean (B, T).
        before: int32 (B, T + 1), how many real tokens come before each index.
        place: int32 (B, T), where each token goes.
        order: int32 (B, T), which token comes to each place.
    """

    real: Tensor
    before: Tensor
    place: Tensor
    order: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> RealFirst:
        """The order of a mask (B, T), true for real tokens."""
        real = ops.cast(as_tensor(mask), "bool")
        running = ops.cast(ops.cumsum(ops.cast(real, "int32"), axis=1), "int32")
        before = ops.concatenate([ops.zeros_like(running[:, :1]), running], axis=1)
        index = ops.zeros_like(running) + ops.arange(ops.shape(running)[1], dtype="int32")[None, :]
        place = ops.where(real, before[:, :-1], before[:, -1:] + index - before[:, :-1])
        return cls(real, before, place, ops.cast(ops.argsort(place, axis=1), "int32"))  # a permutation: no ties

    @property
    def count(self) -> Tensor:
        """int32 (B,): how many tokens of each row are real."""
        return self.before[:, -1]

    def rows(self, x: Tensor) -> Tensor:
        """(B, T, ...) in this order."""
        return _taken(x, self.order)

    def back(self, x: Tensor) -> Tensor:
        """(B, T, ...) from this order to that of the row."""
        return _taken(x, self.place)

    def spans(self, spans: Spans) -> Spans:
        """Spans of a row for its tokens in this order: each real token sees those real tokens that it sees in the row.

        Real tokens keep their order, so an interval of the row is an interval here. Tokens that are not real see nothing.
        """
        last = ops.shape(self.real)[1]
        start, end, own = (
            self.rows(ops.take_along_axis(self.before, at_most(at_least(ops.cast(part, "int32"), 0), last), axis=1)) for part in spans
        )
        index = ops.zeros_like(start) + ops.arange(last, dtype="int32")[None, :]
        hidden = index >= self.count[:, None]
        return Spans(ops.where(hidden, index, start), ops.where(hidden, index, end), ops.where(hidden, index + 1, own))


def _taken(x: Tensor, index: Tensor) -> Tensor:
    for _ in range(len(x.shape) - 2):
        index = ops.expand_dims(index, -1)
    return ops.take_along_axis(x, index, axis=1)
