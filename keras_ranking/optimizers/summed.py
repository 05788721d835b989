"""An optimiser that applies the sums of the gradients of all replicas."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.ops.replicas import sum_gradients, together

_DONE = "_applies_sums"


def apply_sums(optimizer: Any) -> None:
    """Let an optimiser add up gradients over replicas before it clips and applies them, wherever replicas are added up.

    Keras's optimisers on TensorFlow clip the gradients of each replica before they add them up, and those on torch know no replicas.
    """
    if getattr(optimizer, _DONE, False):
        return
    apply = optimizer.apply

    def summed(grads: Any, trainable_variables: Any = None) -> Any:
        return apply(sum_gradients(list(grads)), trainable_variables)

    object.__setattr__(optimizer, _DONE, True)
    object.__setattr__(optimizer, "apply", summed)
    if keras.backend.backend() == "tensorflow":
        for part in _parts(optimizer):
            object.__setattr__(part, "_all_reduce_sum_gradients", _kept_where_summed(part._all_reduce_sum_gradients))


def _parts(optimizer: Any) -> list[Any]:
    """An optimiser and those inside it."""
    inner = [getattr(optimizer, name, None) for name in ("optimizer", "inner_optimizer", "rows")]
    inner += list(getattr(optimizer, "_inner_optimizers", ()) or ())
    return [optimizer, *(part for one in inner if one is not None for part in _parts(one))]


def _kept_where_summed(reduce: Any) -> Any:
    return lambda pairs: list(pairs) if together() > 1 else reduce(pairs)
