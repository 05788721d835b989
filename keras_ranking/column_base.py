"""What the kinds of columns share: names that a model input may have, and when a value is known."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, field_validator, model_serializer

from keras_ranking.field_errors import PlainWords
from keras_ranking.ops.hashing import distinct_ids
from keras_ranking.values import Faults, numbers_of, plain_series, raise_first

Known = Literal["item", "context", "member", "after"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset({"time", "segment", "session", "length", "count", "request_time", "history_length", "candidate_count"})


class Column(BaseModel, metaclass=PlainWords):
    """What all kinds of features share. `name` is the name of the model input, and of the column of the log unless `column` is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    known: Known = "item"
    column: str | None = None

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

    @model_serializer(mode="wrap")
    def _as_dict(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """What is written where it is stated alone: other schemas keep their files and digests."""
        unstated = {*self._unstated(), *(() if self.column is not None else ("column",))}
        return {name: value for name, value in plain(self).items() if name not in unstated}

    def _unstated(self) -> tuple[str, ...]:
        """Fields that are not written."""
        return ()

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


def named_columns(schema: Any, events: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns that features and actions have under another name (`column=`) under their own as well.

    Raises:
        ValueError: a log that has both, with other values.
    """
    added = {}
    for feature in (*schema.features, *schema.actions):
        if feature.column is None or feature.column not in events:
            continue
        if feature.name not in events:
            added[feature.name] = events[feature.column]
        elif feature.name != feature.column and not events[feature.name].equals(events[feature.column]):
            raise ValueError(
                f"feature '{feature.name}' is read from column '{feature.column}', and the log has another column '{feature.name}': "
                "give the feature another name."
            )
    return events.assign(**added) if added else events


def column_hint(schema: Any, name: str) -> str:
    """For the message of a missing column: where it is read from, if it is from another one; else nothing."""
    found = [one.column for one in (*schema.features, *schema.actions) if one.name == name and one.column not in (None, name)]
    return f", nor is column '{found[0]}', from which it is read" if found else ""


def _rename(name: str, rule: str) -> str:
    """The error of a name that cannot be that of a model input, with the way to give it another one."""
    return f"`name` {rule}. Received: name={name!r}; the column may have any name: name={usable(name)!r}, column={name!r}"


def usable(name: str) -> str:
    usable = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"{usable}_value" if usable in _RESERVED else usable if NAME.fullmatch(usable) else f"_{usable}"
