"""StartTables: embedding tables of ids that start from item factors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_ranking.data import ItemFactors


class StartTables(keras.callbacks.Callback):
    """A callback: embedding tables begin training from `ItemFactors` instead of random numbers.

    It acts before the first step and never again: a training that is resumed or continued keeps its tables. Digests are in the history of
    `train`, and a run is resumed with the same ones only. Factors of training rows have seen these rows' labels: fit them on earlier rows,
    or let later rows say when to stop.

    Args:
        factors: column of an `Id`, `Category` or `Ids` -> `ItemFactors`.
        deviation: standard deviation of the table's numbers. Our choice: 0.1; 0.2 for tables of 64 columns or more.
        seed: of rows without a factor.

    Raises:
        TypeError: factors of another type.
        ValueError: no factors; at the start: a column that the model does not embed, or a table narrower than the factors.

    Example:
        >>> log = kr.data.simulate(members=30, days=2, seed=0)
        >>> clicks = log.split("train")
        >>> factors = kr.data.item_factors(clicks, "member_id", "item_id", "click", dim=8)
        >>> start = kr.training.StartTables({"item_id": factors})
        >>> options = {"features": ("item_id",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> model, history = kr.training.train(log, "lirank", epochs=1, options=options, callbacks=[start], verbose=False)
        >>> history["started_tables"] == {"item_id": factors.digest}
        True
    """

    def __init__(self, factors: Mapping[str, ItemFactors], deviation: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        if not factors:
            raise ValueError("`factors` must name at least one column. Received: none")
        for column, value in factors.items():
            if not isinstance(value, ItemFactors):
                raise TypeError(f"`factors` must be ItemFactors by column. Received: {type(value).__name__} for '{column}'")
        if not 0 < deviation < np.inf:
            raise ValueError(f"`deviation` must be positive. Received: deviation={deviation}")
        self.factors, self.deviation, self.seed = dict(factors), float(deviation), int(seed)

    @property
    def digests(self) -> dict[str, str]:
        """Digest of the factors by column."""
        return {column: factors.digest for column, factors in self.factors.items()}

    def on_train_begin(self, logs: Any = None) -> None:
        """Keras's hook: set the tables, if no step was made before."""
        ranker = self.model
        if int(ranker.optimizer.iterations) > 0:
            return
        features = {feature.name: feature for feature in ranker.schema.features}
        for column, factors in self.factors.items():
            feature = features.get(column)
            name = None if feature is None or feature.dtype != "int32" else f"table_{feature.table or column}/embeddings"
            tables = [variable for variable in ranker.trainable_variables if name and f"/{variable.path}".endswith(f"/{name}")]
            if not tables:
                raise ValueError(f"`factors` must name ids or categories that the model embeds. Received: '{column}'")
            for table in tables:
                table.assign(factors.table(feature, self.deviation, self.seed, dim=int(table.shape[1])))
