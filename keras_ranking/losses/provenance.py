"""Whether a tensor is the output of a sigmoid or a softmax, as far as a backend remembers how a tensor was made.

A loss of logits squashes such a tensor a second time: training runs, and every probability lies between 0.5 and 0.73.
"""

from __future__ import annotations

from typing import Any

_SQUASHING = {"sigmoid", "logistic", "softmax", "logsoftmax"}
# Operations that change the shape or the dtype of a tensor and no number.
_SAME_NUMBERS = {
    *("identity", "stopgradient", "reshape", "squeeze", "expanddims", "cast", "transpose"),  # TensorFlow
    *("broadcastindim", "convertelementtype", "copy"),  # JAX
    *("view", "unsafeview", "unsqueeze", "permute", "tocopy", "clone", "alias", "reshapealias"),  # torch
}


def is_probability(tensor: Any) -> bool:
    """Whether a tensor is known to come from a sigmoid or a softmax. False if its origin is not known."""
    for _ in range(8):
        if getattr(tensor, "_keras_logits", None) is not None:
            return True
        name, sources = _made_by(tensor)
        if name in _SQUASHING or (name == "div" and _made_by(sources[0])[0] == "exp" and _sums(sources[1])):
            return True
        if name not in _SAME_NUMBERS or not sources:
            return False
        tensor = sources[0]
    return False


def _sums(tensor: Any) -> bool:
    """Whether a divisor is a sum: JAX has no softmax, but exp(x) / sum(exp(x))."""
    for _ in range(8):
        name, sources = _made_by(tensor)
        if name not in _SAME_NUMBERS or not sources:
            return name == "reducesum"
        tensor = sources[0]
    return False


def _made_by(tensor: Any) -> tuple[str, Any]:
    """Name of the operation that made a tensor, without punctuation, and what it read."""
    while hasattr(tensor, "primal"):  # JAX: a tensor that is differentiated
        tensor = tensor.primal
    equation = getattr(tensor, "parent", None)  # JAX
    if equation is not None:
        return _plain(getattr(getattr(equation, "primitive", None), "name", "")), getattr(equation, "in_tracers", ())
    node = tensor if hasattr(tensor, "next_functions") else getattr(tensor, "grad_fn", None)  # torch
    if node is not None:
        return _plain(type(node).__name__.split("Backward")[0]), [source for source, _ in node.next_functions if source is not None]
    # An eager tensor of TensorFlow has no operation: it raises where one is asked for.
    try:
        operation = tensor.op
        return _plain(operation.type), list(operation.inputs)
    except (AttributeError, TypeError, ValueError):
        return "", ()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()
