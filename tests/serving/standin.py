"""A ranking model that is not one of `kr.models`: serving must not depend on an architecture of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_ranking import Category, Id, Number, Schema, Task, Vector
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.wiring import builder

SCHEMA = Schema(
    member="member_id",
    time="shown_at",
    request="request_id",
    position="rank",
    features=[
        Id("item_id", buckets=500),
        Category("topic", vocabulary=("news", "sport", "jobs")),
        Number("age_hours", transform="log1p"),
        Vector("text", size=3),
        Number("affinity", known="context"),
    ],
    actions=["click", Number("dwell_seconds", transform="log1p")],
    tasks=[Task("click"), Task("like")],
)


@builder()
def TimeWeightedMean(schema: Schema, width: int = 8, tower_boundaries: Any = (1, 4), name: str = "stand_in") -> RankingModel:
    """Time-weighted mean of the history against each candidate; one tower per range of positions."""
    arguments = {"width": width, "tower_boundaries": list(tower_boundaries)}
    wiring = _Wiring(schema, width, len(tower_boundaries) + 1)
    return _StandIn(wiring, "TimeWeightedMean", schema, arguments, name=name)


@keras.saving.register_keras_serializable("keras_ranking_tests")
class _StandIn(RankingModel):
    @property
    def serving_tower(self) -> int:
        return 0


class _Wiring:
    form = "rows"

    def __init__(self, schema: Schema, width: int, towers: int) -> None:
        self.schema, self.columns = schema, schema.features_known("item", "context")
        self.tables = {f.name: keras.layers.Embedding(f.rows, width) for f in self.columns if f.dtype == "int32"}
        self.item = keras.layers.Dense(width, name="item")
        self.action = keras.layers.Dense(width, name="action")
        self.mix = keras.layers.Dense(width, activation="silu", name="mix")
        self.towers = {task.name: keras.layers.Dense(towers, name=f"towers_{task.name}") for task in schema.tasks}

    def _inputs(self, columns: Any, prefix: str = "") -> dict[str, Any]:
        return {prefix + c.name: keras.Input((None, *c.shape), dtype=c.dtype, name=prefix + c.name) for c in columns}

    def row_inputs(self) -> dict[str, Any]:
        times = {name: keras.Input((None,), dtype="int32", name=name) for name in ("time", "segment")}
        return {**times, **self._inputs((*self.columns, *self.schema.actions))}

    def history_inputs(self) -> dict[str, Any]:
        time = keras.Input((None,), dtype="int32", name="history_time")
        length = keras.Input((), dtype="int32", name="history_length")
        return {"history_time": time, "history_length": length, **self._inputs((*self.columns, *self.schema.actions), "history_")}

    def candidate_inputs(self) -> dict[str, Any]:
        return {"request_time": keras.Input((), dtype="int32", name="request_time"), **self._inputs(self.columns, "candidate_")}

    def _tokens(self, values: dict[str, Any], columns: Any, dense: Any, mask: Any = None) -> Any:
        def part(column: Any) -> Any:
            value = values[column.name]
            if column.dtype == "int32":
                return self.tables[column.name](value if mask is None else ops.where(mask, value, 0))
            value = ops.tanh(value if column.shape else ops.expand_dims(value, -1))  # every float has a finite score
            return value if mask is None else ops.where(ops.expand_dims(mask, -1), value, 0.0)

        return dense(ops.concatenate([part(column) for column in columns], axis=-1))

    def row(self, inputs: dict[str, Any]) -> dict[str, Any]:
        events = self._tokens(inputs, self.columns, self.item) + self._tokens(inputs, self.schema.actions, self.action)
        return self._heads(self._tokens(inputs, self.columns, self.item), ops.mean(ops.tanh(events), axis=1))

    def encode(self, history: dict[str, Any]) -> dict[str, Any]:
        values = {name.removeprefix("history_"): value for name, value in history.items()}
        seen = ops.cumsum(ops.ones_like(values["time"]), axis=1) <= ops.expand_dims(values["length"], 1)
        events = self._tokens(values, self.columns, self.item, seen) + self._tokens(values, self.schema.actions, self.action, seen)
        return {"events": ops.tanh(events), "time": ops.where(seen, values["time"], 0), "seen": seen}

    def score(self, cache: dict[str, Any], candidates: dict[str, Any]) -> dict[str, Any]:
        age = ops.cast(ops.expand_dims(candidates["request_time"], 1) - cache["time"], "float32")
        weight = ops.where(cache["seen"], ops.exp(-ops.abs(age) / 1e6), 0.0)
        total = ops.sum(ops.expand_dims(weight, -1) * cache["events"], axis=1) / (1.0 + ops.expand_dims(ops.sum(weight, axis=1), -1))
        values = {name.removeprefix("candidate_"): value for name, value in candidates.items()}
        return self._heads(self._tokens(values, self.columns, self.item), total)

    def _heads(self, items: Any, member: Any) -> dict[str, Any]:
        state = self.mix(items + 3.0 * items * ops.expand_dims(member, 1))
        return {task: tower(state) for task, tower in self.towers.items()}


def make(seed: int = 1) -> RankingModel:
    keras.utils.set_random_seed(seed)
    return TimeWeightedMean(SCHEMA)


def scores(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: ops.convert_to_numpy(value) for name, value in model.serving_model(inputs, training=False).items()}


def save(model: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    model.schema.save(folder / "schema.json")
    return folder
