"""Encoded histories that grow by later events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_ranking.models.graph import Graph, picked
from keras_ranking.models.wiring import Tensors, UntrackedGraphs, extension_of


class GrowsCaches:
    """A model whose caches may grow. The class has `_graphs`, `name` and `encoder`."""

    _graphs: UntrackedGraphs
    name: str

    def extend(self, cache: Mapping[str, Any], history: Mapping[str, Any]) -> Tensors:
        """Append later events to encoded histories: equal to encoding all of them, at the cost of the new ones.

        Args:
            cache: from `encode` or `extend`.
            history: the new events, as for `encode`: `history_length` counts these alone. None is earlier than what is kept.

        Returns:
            The longer cache.

        Raises:
            ValueError: the model's cache cannot grow: in its history events see later ones, a summary of all is kept, or there is none.
        """
        graph = self.extender
        return dict(graph(picked({f"cache_{name}": x for name, x in cache.items()} | dict(history), graph)))

    @property
    def extends(self) -> bool:
        """Whether a cache can grow by `extend`."""
        return getattr(self._graphs.wiring, "extend", None) is not None

    @property
    def extender(self) -> keras.Model:
        """Functional model: cache and `history_*` of later events -> the longer cache; an error as that of `extend`."""
        extend = extension_of(self._graphs.wiring, self.name)

        def build() -> keras.Model:
            held = self.encoder.output  # type: ignore[attr-defined]
            kept = {name: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=f"cache_{name}") for name, x in held.items()}
            new = self._graphs.wiring.history_inputs()
            named = {f"cache_{name}": x for name, x in kept.items()} | new
            return Graph(named, extend(kept, new), name=f"{self.name}_extender")

        return self._graphs.get("extender", build)
