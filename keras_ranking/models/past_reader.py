"""What an event or candidate reads of the events it sees, next to the trunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.configuration import Past
from keras_ranking.models.wiring import Tensors
from keras_ranking.ops.integers import at_least, int32
from keras_ranking.schema import Schema

_ID = "past_id_"


class PastReader:
    """Layers of `Past`, used alike on a row of events and on candidates with a cache.

    Args:
        schema: the log's columns.
        past: with columns written out.
        vector: function of columns and the names of some that makes an item's vector (B, T, D) of these, by the tables of the trunk.
        policy: dtype policy of layers.
        max_history: of the events that it may see, a candidate reads the latest ones, so many; None: all.
    """

    def __init__(
        self,
        schema: Schema,
        past: Past,
        vector: Callable[[Tensors, Sequence[str]], Any],
        policy: Mapping[str, Any],
        max_history: int | None = None,
    ) -> None:
        self.past, self.vector, self.max_history = past, vector, max_history
        self.keep, self.request_times = layers.KeepFirst(name="past_seen"), layers.RequestTimes(name="past_times")
        sizes: dict[str, Any] = {"key_dim": past.past_dim, "decay": past.past_decay, **policy}
        self.parts: dict[str, Any] = {}
        self.logit_maps: dict[str, Any] = {}
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
            found["past_key"] = self._item(columns)
        if "attention" in self.parts:
            found["past_value"] = ops.concatenate([found["past_key"], action], axis=-1)
        return {**found, **{_ID + name: columns[name] for name in self.past.past_matches}}

    def __call__(self, columns: Tensors, events: Tensors, **seen: Any) -> list[Any]:
        """What each of (B, N) items reads, (B, N, ...); `seen` are `start`, `end`, `times`, `key_times`, `window` of `HistoryAttention`."""
        numbers, out = events["past_numbers"], []
        vector = self._item(columns) if "past_key" in events else None
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

    def plus(self, logits: Tensors, read: list[Any]) -> Tensors:
        """Logits (B, N) or (B, N, K) by task, with the linear sums of what was `read` added where `past_logit` says so."""
        if not self.past.past_logit:
            return logits
        sums = read[list(self.parts).index("linear")]
        return {task: logit + self._logit(task, sums, wide=len(logit.shape) == 3) for task, logit in logits.items()}

    def _logit(self, task: str, sums: Any, wide: bool) -> Any:
        if task not in self.logit_maps:
            settings: dict[str, Any] = {"use_bias": False, "kernel_initializer": "zeros", "dtype": "float32"}
            self.logit_maps[task] = keras.layers.Dense(1, name=f"past_logit_{task}", **settings)
        added = self.logit_maps[task](sums)
        return added if wide else ops.squeeze(added, -1)

    def of_cache(self, columns: Tensors, cache: Tensors, visible: Any, request_time: Any) -> list[Any]:
        """What candidates (B, N) read of cached events, of which the first `visible` (B,) may be seen."""
        first = ops.zeros_like(visible) if self.max_history is None else at_least(visible - int32(self.max_history), 0)
        like = columns[[*(self.past.past_keys or ()), *self.past.past_matches][0]]
        start, end, times = (self.request_times(like, request_time=each) for each in (first, visible, request_time))
        events = {name: self.keep(x, length=visible) for name, x in cache.items() if name.startswith("past_")}
        return self(columns, events, start=start, end=end, times=times, key_times=cache["time"])

    def _item(self, columns: Tensors) -> Any:
        keys = list(self.past.past_keys or ())
        return self.vector({name: columns[name] for name in keys}, keys)


class RequestPast(PastReader):
    """The same in a model of requests, also on rows of candidate slots. Arguments as `PastReader`, with a `max_history`."""

    max_history: int

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.latest_keys = layers.LatestKeys(self.max_history, name="past_latest")
        self.join, self.append = layers.JoinHistories(name="past_histories"), layers.AppendEvents(name="past_longer")

    def of_streams(self, columns: Tensors, events: Tensors, inputs: Tensors) -> list[Any]:
        """What the candidate in each slot of a row reads of events (B, T, ...) that requests share; `inputs` of the training graph."""
        seen = {name: inputs[f"stream_{name}"] for name in ("begin", "end", "time")}
        return self._of_slots(columns, {**events, **seen}, inputs)

    def of_rows(self, columns: Tensors, events: Tensors, visible: Any, times: Any, inputs: Tensors) -> list[Any]:
        """The same of the events (B Q, L, ...) of each request, of which the first `visible` (B Q,) may be seen."""
        return self._of_slots(columns, self.join({**events, "time": times}, visible=visible, like=inputs["history_length"]), inputs)

    def _of_slots(self, columns: Tensors, row: Tensors, inputs: Tensors) -> list[Any]:
        slot = inputs["request_slot"]
        owner = at_least(slot - 1, 0)
        begin, end, times = (ops.take_along_axis(x, owner, axis=1) for x in (row["begin"], row["end"], inputs["request_time"]))
        end = ops.where(slot > 0, end, begin)
        start = at_least(begin, end - int32(self.max_history))
        return self(columns, row, start=start, end=end, times=times, key_times=row["time"], window=self.max_history)

    def latest(self, events: Tensors, visible: Any) -> Tensors:
        """The latest of the `visible` (B,) events, as `HistoryEncoder.prefill` keeps them."""
        blocks = {name: self.latest_keys(ops.expand_dims(x, 1), length=visible) for name, x in events.items()}
        return {name: ops.squeeze(x, 1) for name, x in blocks.items()}

    def extended(self, cache: Tensors, events: Tensors) -> Tensors:
        """What a cache holds, with later events behind it."""
        return {name: self.append(cache[name], new=x, length=cache["length"]) for name, x in events.items()}
