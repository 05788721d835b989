"""Sums, maxima and ranks over the items of one list, by the number of the list at each slot."""

from __future__ import annotations

from typing import Any, NamedTuple

from keras import ops

from keras_ranking.ops.maxima import share_of


class Lists(NamedTuple):
    """The lists of a batch: items of a list are neighbours in their row, or at least have one number of their own.

    Args:
        segment: int32 (B * S,), one number a list of the batch.
        count: how many numbers there are.
        real: bool (B, S), slots with an item.
        size: float32 (B, S), items in the slot's list; 1 where there is none.
    """

    segment: Any
    count: Any
    real: Any
    size: Any

    @classmethod
    def of(cls, slot: Any) -> Lists:
        """From list numbers int32 (B, S), from 0 (no item) to S."""
        rows, width = ops.shape(slot)[0], ops.shape(slot)[1]
        first = ops.arange(rows, dtype="int32")[:, None] * (width + 1)
        segment = ops.reshape(slot + first, (-1,))
        real = slot > 0
        count = rows * (width + 1) + 1  # never 0, for which Keras looks at the numbers itself
        ones = ops.reshape(ops.cast(real, "float32"), (-1,))
        size = ops.reshape(ops.take(ops.segment_sum(ones, segment, count), segment, axis=0), ops.shape(slot))
        return cls(segment, count, real, ops.where(real, size, ops.ones_like(size)))

    def sum(self, values: Any) -> Any:
        """Sum over the items of each slot's list, (B, S, F); items alone count."""
        shape = ops.shape(values)
        flat = ops.reshape(self.clean(values), (-1, values.shape[-1]))
        return ops.reshape(ops.take(ops.segment_sum(flat, self.segment, self.count), self.segment, axis=0), shape)

    def mean(self, values: Any) -> Any:
        """Mean over the items of each slot's list, (B, S, F)."""
        return self.sum(values) / ops.cast(self.size, values.dtype)[:, :, None]

    def max(self, values: Any) -> Any:
        """Maximum over the items of each slot's list, (B, S, F); items that have it, up to rounding, share the gradient."""
        values = self.clean(values)
        held = ops.where(self.real[:, :, None], ops.stop_gradient(values), ops.full_like(values, -1e30))
        peak = ops.where(self.real[:, :, None], self._largest(held), ops.zeros_like(values))
        have = share_of(values, peak, self._largest(ops.abs(ops.stop_gradient(values))), self.real[:, :, None])
        total = self.sum(have)
        # The first term has the value, the second the gradient.
        change = self.sum(have * (values - ops.stop_gradient(values)))
        return peak + change / ops.where(total > 0, total, ops.ones_like(total))

    def _largest(self, values: Any) -> Any:
        """Of values (B, S, F) over each slot's list."""
        flat = ops.segment_max(ops.reshape(values, (-1, values.shape[-1])), self.segment, self.count)
        return ops.reshape(ops.take(flat, self.segment, axis=0), ops.shape(values))

    def rank(self, values: Any) -> Any:
        """(place - 1/2) / size in the slot's list, place 1 for the highest, equal values sharing the mean of their places; no gradient."""
        values = ops.stop_gradient(self.clean(values))
        rows, width = ops.shape(values)[0], ops.shape(values)[1]
        key = ops.reshape(self.segment, (rows, width, 1)) + ops.zeros_like(values, dtype="int32")
        by_value = ops.argsort(-values, axis=1)
        by_list = ops.argsort(ops.take_along_axis(key, by_value, axis=1), axis=1)  # stable: keeps the order by value
        order = ops.cast(ops.take_along_axis(by_value, by_list, axis=1), "int32")
        key, ordered = ops.take_along_axis(key, order, axis=1), ops.take_along_axis(values, order, axis=1)
        new_list = ops.not_equal(key[:, 1:], key[:, :-1])
        new_value = ops.logical_or(new_list, ops.not_equal(ordered[:, 1:], ordered[:, :-1]))
        place = ops.arange(width, dtype="int32")[None, :, None] + ops.zeros_like(key)
        first, after = _run(new_value, place)
        begin, end = _run(new_list, place)
        share = ops.cast(first + after - 2 * begin, "float32") / ops.cast(2 * (end - begin), "float32")
        back = ops.argsort(order, axis=1)
        rank = ops.take_along_axis(share, back, axis=1)
        return ops.cast(ops.where(self.real[:, :, None], rank, ops.zeros_like(rank)), values.dtype)

    def choice(self, values: Any) -> tuple[Any, Any]:
        """Log-odds of exp(v_i) / (1 + sum_j exp(v_j)) of each item, and 1 / (1 + sum_j exp(v_j)) of its list, from v (B, S).

        The log-odds are v_i - log(1 + sum of exp(v_j) over the others of the list): exact also where an item has nearly all of the mass.
        0 where there is no item; 1 where a list has none.
        """
        shape = ops.shape(values)
        held = ops.where(self.real, values, ops.full_like(values, -1e30))
        # What is subtracted against overflow cancels, so it has no gradient.
        top = ops.segment_max(ops.reshape(ops.stop_gradient(held), (-1,)), self.segment, self.count)
        top = ops.reshape(ops.take(top, self.segment, axis=0), shape)
        top = ops.where(self.real, ops.maximum(top, ops.zeros_like(top)), ops.zeros_like(top))
        nothing = ops.zeros_like(values)
        shifted = ops.where(self.real, values - top, nothing)
        mass, none = ops.where(self.real, ops.exp(shifted), nothing), ops.exp(-top)
        # The largest terms are 1: apart from the others, so that a difference leaves no small number to rounding.
        largest = ops.equal(ops.stop_gradient(held), top)
        large, small = ops.where(largest, mass, nothing), ops.where(largest, nothing, mass)
        of_none = ops.equal(top, nothing)
        many = self._summed(large) + ops.where(of_none, none, nothing)
        few = self._summed(small) + ops.where(of_none, nothing, none)
        others = few + (many - large) - small
        odds = shifted - ops.log(ops.maximum(others, ops.full_like(others, 1e-30)))
        return ops.where(self.real, odds, nothing), none / (few + many)

    def _summed(self, values: Any) -> Any:
        """Sum over each slot's list of values (B, S), 0 in slots without an item."""
        flat = ops.segment_sum(ops.reshape(values, (-1,)), self.segment, self.count)
        return ops.reshape(ops.take(flat, self.segment, axis=0), ops.shape(values))

    def clean(self, values: Any) -> Any:
        """The values, 0 in slots without an item."""
        return ops.where(self.real[:, :, None], values, ops.zeros_like(values))


def _run(change: Any, place: Any) -> tuple[Any, Any]:
    """First place of the run that a place is in, and the place after its last; runs along axis 1 begin at `change` (B, S - 1, F)."""
    begins = ops.pad(ops.cast(change, "int32"), [[0, 0], [1, 0], [0, 0]], constant_values=1)
    columns = ops.transpose(begins, (0, 2, 1))
    run = ops.reshape(ops.cumsum(ops.reshape(columns, (-1,))) - 1, ops.shape(columns))
    flat = ops.reshape(run, (-1,))
    length = ops.take(ops.segment_sum(ops.ones_like(flat), flat, ops.shape(flat)[0]), flat, axis=0)
    start = ops.segment_max(-ops.reshape(ops.transpose(place, (0, 2, 1)), (-1,)), flat, ops.shape(flat)[0])
    start = -ops.take(start, flat, axis=0)
    first, after = (ops.transpose(ops.reshape(part, ops.shape(columns)), (0, 2, 1)) for part in (start, start + length))
    return first, after
