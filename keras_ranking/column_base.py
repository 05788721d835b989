"""What the kinds of columns share: names that a model input may have, and when a value is known."""

from __future__ import annotations

import re
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator

from keras_ranking.field_errors import PlainWords
from keras_ranking.ops.hashing import distinct_ids
from keras_ranking.values import Faults, numbers_of, plain_series, raise_first

Known = Literal["item", "context", "after"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset({"time", "segment", "session", "length", "count", "request_time", "history_length", "candidate_count"})


class Column(BaseModel, metaclass=PlainWords):
    """What all kinds of features share. `name` is the column of the log and the name of the model input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    known: Known = "item"

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(**({} if name is None else {"name": name}), **settings)  # pydantic raises the error of a missing name

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError(_rename(name, "must be letters, digits and underscores, not starting with a digit"))
        if name in _RESERVED:
            raise ValueError(_rename(name, "must not be a word that the model inputs use themselves"))
        return name

    @property
    def dtype(self) -> str:
        """Data type of the encoded column: 'int32' for ids, categories and sets of ids, 'float32' for numbers and vectors."""
        return "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded value: `()`; `(size,)` of a vector or a set of ids; one axis of 2 more for ids without buckets."""
        return ()

    def encode(self, values: Any) -> np.ndarray:
        """The numbers that a model reads for these values of the log. Errors name column, row and value."""
        raise NotImplementedError

    def faults(self, values: Any) -> Faults:
        """Every value that `encode` refuses: pairs of a mask of rows and the reason."""
        return [(rows, reason) for rows, reason, _ in distinct_ids(values).fault_rows()]

    def numbers(self, values: Any) -> np.ndarray:
        """The log's numbers as float64, a missing one as NaN: what the `raw` signature of an export takes."""
        series = plain_series(values)
        numbers, wrong = numbers_of(series)
        raise_first(self.name, series, [(wrong, "must hold numbers")])
        return numbers


def _rename(name: str, rule: str) -> str:
    """The error of a name that cannot be that of a model input, with the way to give the column another one."""
    return f"`name` {rule}. Received: name={name!r}; rename the column: `events.rename(columns={{{name!r}: {usable(name)!r}}})`"


def usable(name: str) -> str:
    usable = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"{usable}_value" if usable in _RESERVED else usable if NAME.fullmatch(usable) else f"_{usable}"
