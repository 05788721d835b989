"""What an event or candidate of a sequence model reads of the events it sees, next to the trunk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import ops

from keras_ranking import layers
from keras_ranking.models.configuration import Past
from keras_ranking.models.wiring import Tensors
from keras_ranking.schema import Schema

_ID = "past_id_"


class PastReader:
    """Layers of `Past`, used alike on a row of events and on candidates with a cache.

    Args:
        schema: the log's columns.
        past: with columns written out.
        item: `FeatureConcat` of the item tokens, whose tables make an item's vector.
        policy: dtype policy of layers.
    """

    def __init__(self, schema: Schema, past: Past, item: Any, policy: Mapping[str, Any]) -> None:
        self.past, self.item = past, item
        sizes: dict[str, Any] = {"key_dim": past.past_dim, "decay": past.past_decay, **policy}
        self.parts: dict[str, Any] = {}
        if past.past_heads:
            self.parts["attention"] = layers.HistoryAttention(past.past_heads, value_dim=past.past_dim, name="past_attention", **sizes)
        if past.past_linear:
            self.parts["linear"] = layers.LinearHistory(past.past_linear, name="past_linear", **sizes)
        if past.past_matches:
            self.parts["matches"] = layers.MatchingHistory(past.past_matches, name="past_matches", **policy)
        actions = {action.name: action for action in schema.actions}
        self.numbers = layers.FeatureConcat([actions[name] for name in past.past_numbers or ()], name="past_numbers", **policy)

    def events(self, columns: Tensors, action: Any) -> Tensors:
        """What is read of events: item vectors, values, numbers and ids, each (B, L, ...). `action` (B, L, D) is their action token."""
        found = {"past_numbers": self.numbers({name: columns[name] for name in self.past.past_numbers or ()})}
        if "attention" in self.parts or "linear" in self.parts:
            found["past_key"] = self._vector(columns)
        if "attention" in self.parts:
            found["past_value"] = ops.concatenate([found["past_key"], action], axis=-1)
        return {**found, **{_ID + name: columns[name] for name in self.past.past_matches}}

    def __call__(self, columns: Tensors, events: Tensors, **seen: Any) -> list[Any]:
        """What each of (B, N) items reads, (B, N, ...); `seen` are `start`, `end`, `times` and `key_times`, see `HistoryAttention`."""
        numbers, out = events["past_numbers"], []
        vector = self._vector(columns) if "past_key" in events else None
        if "attention" in self.parts:
            read = {"key": events["past_key"], "value": events["past_value"], "numbers": numbers}
            out.append(self.parts["attention"](vector, **read, **seen))
        if "linear" in self.parts:
            out.append(self.parts["linear"](vector, key=events["past_key"], numbers=numbers, **seen))
        if "matches" in self.parts:
            names = self.past.past_matches
            ids = {name: columns[name] for name in names}
            out.append(self.parts["matches"](ids, past={name: events[_ID + name] for name in names}, numbers=numbers, **seen))
        return out

    def _vector(self, columns: Tensors) -> Any:
        keys = list(self.past.past_keys or ())
        return self.item({name: columns[name] for name in keys}, only=keys)
