"""Columns that describe the member (known='member'): one input a request, repeated inside the graph for its candidates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_ranking import layers
from keras_ranking.models.wiring import Tensors, input_columns
from keras_ranking.schema import Schema

PREFIX = "member_"


class MemberColumns:
    """The inputs of columns of candidates, with those of the member once a request, and the way back to one for each candidate.

    | form       | inputs of training                                                       | inputs of `score`        |
    |------------|--------------------------------------------------------------------------|--------------------------|
    | 'requests' | `member_<name>` (B, Q[, size]), the requests of a row, by `request_slot` | `member_<name>` (B[, size]) |
    | 'rows'     | `member_<name>` (B, M[, size]), M values in a row, by `member_slot`      | the same                 |
    """

    def __init__(self, schema: Schema) -> None:
        self._names = {f"{PREFIX}{name}": name for name in schema.of_member}
        self._to_candidates, self._to_slots = layers.AtCandidates(name="at_candidates"), layers.AtSlots(name="at_slots")

    def inputs(self, features: Iterable[Any]) -> Tensors:
        """Symbolic inputs of `score` for these columns of candidates."""
        own, of_member = _apart(features)
        return {**input_columns(own, "candidate_", None), **input_columns(of_member, PREFIX)}

    def row_inputs(self, features: Iterable[Any], prefix: str) -> Tensors:
        """Symbolic inputs of training, those of slots with a prefix; without the input that says which value a slot has."""
        own, of_member = _apart(features)
        return {**input_columns(own, prefix, None), **input_columns(of_member, PREFIX, None)}

    def at_candidates(self, tensors: Mapping[str, Any]) -> Tensors:
        """Inputs of `score` with `candidate_<name>` (B, N, ...) in the place of `member_<name>`."""
        made = {name: x for name, x in tensors.items() if name not in self._names}
        if len(made) == len(tensors):
            return made
        like = next(x for name, x in made.items() if name.startswith("candidate_") and len(x.shape) > 1)
        held = {self._names[name]: x for name, x in tensors.items() if name in self._names}
        return {**made, **{f"candidate_{name}": self._to_candidates(x, like=like) for name, x in held.items()}}

    def at_slots(self, tensors: Mapping[str, Any], slot: str, prefix: str) -> Tensors:
        """Inputs of training with a value (B, T, ...) for each slot in the place of `member_<name>`, under its name with the prefix.

        Args:
            tensors: of training.
            slot: name of the input that says which value a slot has.
            prefix: of columns of slots.
        """
        held = {self._names[name]: x for name, x in tensors.items() if name in self._names}
        made = {f"{prefix}{name}": self._to_slots(x, slot=tensors[slot]) for name, x in held.items()}
        return {**{name: x for name, x in tensors.items() if name not in self._names}, **made}


def values_of_slots(x: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """A column of the candidates in a batch of `PackedRequests`, (B, S, ...), also where a request has it once."""
    if f"candidate_{name}" in x:
        return np.asarray(x[f"candidate_{name}"])
    held, slot = x[f"{PREFIX}{name}"], x["request_slot"]
    found: np.ndarray = held[np.arange(len(held))[:, None], np.maximum(slot - 1, 0)]
    found[slot == 0] = 0
    return found


def _apart(features: Iterable[Any]) -> tuple[list[Any], list[Any]]:
    listed = list(features)
    return [one for one in listed if one.known != "member"], [one for one in listed if one.known == "member"]
