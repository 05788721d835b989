"""Values in messages: as their owner would write them, and short."""

from __future__ import annotations

from typing import Any

import numpy as np

_LONGEST = 80


def shown(value: Any) -> str:
    """A value as text for a message: numpy's scalars as plain numbers, and at most 80 characters.

    Example:
        >>> from keras_ranking.ops.messages import shown
        >>> shown(np.int64(7)), shown("noon"), shown(np.ones(3))
        ('7', "'noon'", '[1.0, 1.0, 1.0]')
    """
    if isinstance(value, (np.datetime64, np.timedelta64)):
        text = str(value)
    elif isinstance(value, np.generic):
        text = repr(value.item())
    elif isinstance(value, np.ndarray):
        text = str(value.tolist() if value.size <= 100 else [*value.reshape(-1)[:10].tolist(), "..."])
    elif isinstance(value, tuple | list) and len(value) <= 100:
        inner = ", ".join(map(shown, value))
        text = f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    else:
        try:
            text = repr(value)
        except ValueError:  # an integer of more digits than Python writes
            text = f"a {type(value).__name__} of more than 4,300 digits"
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate cannot be printed
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
