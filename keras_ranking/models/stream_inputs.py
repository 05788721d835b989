"""A second training graph of a `RankingModel`, in which the requests of a row share the events of their histories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_ranking.models.graph import Graph
from keras_ranking.models.wiring import UntrackedGraphs


class RunsStreams:
    """Runs that graph for a batch with its inputs. The class has `_graphs`, `name`, and a Keras model as its base."""

    _graphs: UntrackedGraphs
    name: str

    @property
    def stream_columns(self) -> list[str]:
        """Names of the inputs of the training graph in which requests share the events of their histories.

        It has the same weights and outputs, and the model runs it for a batch with these inputs. For `PackedRequests(names=...)` over
        requests made with the model's `max_history` and `delay` (`kr.training.model_requests`). Empty for a model without it.
        """
        graph = self._stream_graph
        return [] if graph is None else list(graph.input)

    @property
    def _stream_graph(self) -> keras.Model | None:
        wiring: Any = self._graphs.wiring
        inputs = wiring.stream_inputs() if hasattr(wiring, "stream_inputs") and "streams" not in self._graphs.built else {}
        if not inputs and "streams" not in self._graphs.built:
            return None
        return self._graphs.get("streams", lambda: Graph(inputs, wiring.row(inputs), name=f"{self.name}_streams"))

    def predict_last_inputs(self, x: Mapping[str, Any]) -> Any:
        """What `last_inputs` gives for a batch with the inputs of `input_columns`, or with those of `stream_columns`."""
        if "stream_time" not in x:
            return self.last_inputs.predict_on_batch(x)  # type: ignore[attr-defined]
        wiring: Any = self._graphs.wiring

        def build() -> keras.Model:
            inputs = wiring.stream_inputs()
            return Graph(inputs, wiring.last_inputs(inputs), name=f"{self.name}_stream_last_inputs")

        return self._graphs.get("stream_last_inputs", build).predict_on_batch(x)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(inputs, Mapping) and "stream_time" in inputs and self._stream_graph is not None:
            return self._stream_graph(inputs, *args, **kwargs)
        return super().__call__(inputs, *args, **kwargs)  # type: ignore[misc]

    # What JAX's `fit` runs.
    def call(self, inputs: Any, training: bool | None = None, mask: Any = None, **settings: Any) -> Any:
        if isinstance(inputs, Mapping) and "stream_time" in inputs and self._stream_graph is not None:
            return self._stream_graph(inputs, training=training)
        return super().call(inputs, training=training, mask=mask, **settings)  # type: ignore[misc]
