"""Checks of the labels and weights of a batch: an error where the numbers are known, NaN inside a compiled step."""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

LARGEST_GRADE = float("inf")


def is_host(values: Any) -> bool:
    """Whether values are in numpy, pandas or lists: reading them does not wait for a device."""
    return isinstance(values, np.ndarray | np.generic | list | tuple | int | float) or type(values).__module__.startswith("pandas.")


def known(flag: Any) -> bool | None:
    """A boolean scalar; None inside a compiled or vectorised function, or where Keras learns shapes: it has no value there."""
    if in_symbolic_scope():
        return None
    try:
        return bool(flag)
    except (TypeError, RuntimeError, NotImplementedError):
        return None


def out_of_range(label: Any, weight: Any, largest: float, smallest: float = 0.0) -> tuple[Any, Any]:
    """(whether a label that counts is out of range, whether a weight is) as scalars, from tensors (B, T)."""
    good = ops.logical_and(_above(label, smallest), label < largest if largest == LARGEST_GRADE else label <= largest)
    counted = weight > 0
    labels = ops.any(ops.logical_and(counted, ops.logical_not(good)))
    weights = ops.logical_not(ops.all(ops.logical_and(weight >= 0, weight < float("inf"))))
    return labels, weights


def _above(label: Any, smallest: float) -> Any:
    return label > smallest if smallest == -LARGEST_GRADE else label >= smallest


def in_graph(value: Any, wrong_label: Any, wrong_weight: Any) -> Any:
    """`value`; a graph of TensorFlow stops before it if one of the scalars is True. XLA leaves that out, and no other backend has it."""
    tensorflow = sys.modules.get("tensorflow") if keras.backend.backend() == "tensorflow" else None
    if tensorflow is None or in_symbolic_scope() or known(wrong_label) is not None:
        return value
    label = "`y_true` must hold labels >= 0, and at most 1 for a cross-entropy; an unknown label has `sample_weight` 0."
    weight = "`sample_weight` must hold finite numbers >= 0."
    rules = [
        tensorflow.debugging.Assert(tensorflow.logical_not(wrong), [words])
        for wrong, words in ((wrong_label, label), (wrong_weight, weight))
    ]
    with tensorflow.control_dependencies(rules):
        return tensorflow.identity(value)


def check_labels(label: np.ndarray, weight: np.ndarray, largest: float, smallest: float = 0.0) -> None:
    """Raise an error for a label out of range at a weight above 0, and for a weight that is negative or not finite.

    Raises:
        ValueError: the value and its place.
    """
    wrong = ~((weight >= 0) & np.isfinite(weight))
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(f"`sample_weight` must hold finite numbers >= 0. Received: {weight[place]} at {place}")
    wrong = (weight > 0) & ~(_above(label, smallest) & (label < largest if largest == LARGEST_GRADE else label <= largest))
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        raise ValueError(f"`y_true` {label_rule(largest, smallest)} Received: label {label[place]} at {place}")


def label_rule(largest: float, smallest: float = 0.0) -> str:
    """What a label must be, and what to do with an unknown one."""
    if smallest == -LARGEST_GRADE:
        return "must hold finite numbers; an unknown label has `sample_weight` 0."
    wanted = "grades >= 0" if largest == LARGEST_GRADE else f"labels from 0 to {largest:g}"
    return f"must hold {wanted}; an unknown label has `sample_weight` 0."
