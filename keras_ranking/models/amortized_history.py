"""A `RequestRanker` whose history is read once, by `encode`, or within a row of many requests."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking import layers
from keras_ranking.models.request_ranker import RequestRanker
from keras_ranking.models.wiring import Tensors


class AmortizedHistory(RequestRanker):
    """Keys and values of the history in a cache, which any number of candidates read and, without look-ahead, later events extend."""

    steps: dict[str, Any]

    def make_steps(self) -> None:
        """Layers for the three uses of the history encoder outside a row."""
        steps = () if self.history is None else ("prefill", "score", "extend")
        self.steps = {step: layers.HistoryStep(self.history, step, name=f"history_{step}") for step in steps}

    @property
    def _of_one_moment(self) -> bool:
        """Whether what `encode` keeps depends on the time of the request."""
        return self.history is not None and self.history.amortises and self.history.looks_ahead

    @property
    def encodes_at_moment(self) -> bool:  # type: ignore[override]
        return self.history is not None and self.history.amortises

    def history_inputs(self) -> Tensors:
        inputs = super().history_inputs()
        if self._of_one_moment:
            inputs["request_time"] = keras.Input((), dtype="int32", name="request_time")
        return inputs

    def encode(self, history: Tensors) -> Tensors:
        if self.history is None or not self.history.amortises:
            return super().encode(history)
        events = {name: x for name, x in history.items() if name != "request_time"}
        length = history["history_length"]
        times = self.keep(history["history_time"], length=length)
        if "request_time" in history:
            length = self.visible(times, history_length=length, request_time=history["request_time"])
        clean = self._clean(events)
        token, past = self._events(clean)
        kept = dict(self.steps["prefill"]({"history": token, "visible": length, "times": times, **self._sessions(clean)}))
        return kept if self.reader is None else {**kept, **self.reader.latest(past, length)}

    def _read(self, cache: Tensors, candidates: Tensors, columns: Tensors) -> tuple[Any, list[Any]]:
        if not self.history.amortises:
            return super()._read(cache, candidates, columns)
        if not self._of_one_moment:
            visible = self.visible(cache["time"], history_length=cache["length"], request_time=candidates["request_time"])
            cache = {**cache, "length": visible}
        moment = candidates["request_time"]
        past = [] if self.reader is None else self.reader.of_cache(columns, cache, cache["length"], moment)
        return self.steps["score"]({"candidates": self._candidate_token(columns), "request_time": moment}, cache=cache), past

    def _extend(self, cache: Tensors, history: Tensors) -> Tensors:
        count = history["history_length"]
        times = self.keep(history["history_time"], length=count)
        clean = self._clean(history)
        token, past = self._events(clean)
        longer = dict(self.steps["extend"]({"history": token, "count": count, "times": times, **self._sessions(clean)}, cache=cache))
        return longer if self.reader is None else {**longer, **self.reader.extended(cache, past)}

    def _sessions(self, columns: Tensors) -> Tensors:
        """Ids of the sessions of events, where the mask reads them."""
        return {"sessions": columns["session"]} if self.history.session_ids else {}

    @property
    def extend(self) -> Any:
        """The function that appends later events to a cache; None where what is kept of an event depends on later ones."""
        grows = self.history is not None and self.history.amortises and not self.history.looks_ahead
        return self._extend if grows else None
