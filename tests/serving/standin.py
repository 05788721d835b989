"""A small ranking model with the interface of `kr.models`, so that serving is tested without any one architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_ranking import Category, Id, Number, Schema, Task, Vector

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


@keras.saving.register_keras_serializable("keras_ranking_tests")
class StandIn(keras.Model):
    """Time-weighted mean of the history against each candidate; one tower per bucket of positions."""

    def __init__(self, schema: Any = None, width: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schema = schema if isinstance(schema, Schema) else Schema.model_validate(schema)
        self.width = width
        self.boundaries = (1, 4)
        self.serving_model = build(self.schema, width, len(self.boundaries) + 1)

    def call(self, inputs: Any) -> Any:
        return self.serving_model(inputs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "schema": self.schema.model_dump(mode="json"), "width": self.width}


def build(schema: Schema, width: int, towers: int) -> keras.Model:
    inputs: dict[str, Any] = {}

    def tensor(name: str, shape: tuple[int | None, ...], dtype: str) -> Any:
        inputs[name] = keras.Input(shape, name=name, dtype=dtype)
        return inputs[name]

    length, count = tensor("history_length", (), "int32"), tensor("candidate_count", (), "int32")
    request_time, history_time = tensor("request_time", (), "int32"), tensor("history_time", (None,), "int32")
    tables = {f.name: keras.layers.Embedding(f.rows, width) for f in schema.features if f.dtype == "int32"}
    mixers = {side: keras.layers.Dense(width, name=f"{side}_mix") for side in ("history", "candidate")}

    def tokens(side: str, columns: Any, mask: Any) -> Any:
        parts = []
        for column in columns:
            value = tensor(f"{side}_{column.name}", (None, *column.shape), column.dtype)
            if column.dtype == "int32":
                parts.append(tables[column.name](ops.where(mask, value, 0)))
                continue
            value = value if column.shape else ops.expand_dims(value, -1)
            parts.append(ops.where(ops.expand_dims(mask, -1), value, 0.0))
        return mixers[side](ops.concatenate(parts, axis=-1))

    def within(like: Any, upto: Any) -> Any:
        return ops.cumsum(ops.ones_like(like), axis=1) <= ops.expand_dims(upto, 1)

    seen = within(history_time, length)
    past = tokens("history", (*schema.features, *schema.actions), seen)
    first = tensor("candidate_item_id", (None,), "int32")
    shown = within(first, count)
    rest = [f for f in schema.features if f.name != "item_id"]
    now = tokens("candidate", rest, shown) + tables["item_id"](ops.where(shown, first, 0))
    age = ops.cast(ops.where(seen, ops.expand_dims(request_time, 1) - history_time, 0), "float32")
    weight = ops.where(seen, ops.exp(-age / 1e6), 0.0)
    summary = ops.sum(ops.expand_dims(weight, -1) * ops.tanh(past), axis=1) / (1.0 + ops.expand_dims(ops.sum(weight, axis=1), -1))
    state = keras.layers.Dense(width, activation="silu")(now * ops.expand_dims(summary, 1) + now)
    outputs = {}
    for task in schema.tasks:
        by_position = ops.sigmoid(keras.layers.Dense(towers, name=f"{task.name}_towers")(state))
        by_position = ops.where(ops.expand_dims(shown, -1), by_position, 0.0)
        outputs[f"{task.name}_by_position"] = by_position
        outputs[task.name] = ops.mean(by_position, axis=-1)
    return keras.Model(inputs, outputs)


def make(seed: int = 1) -> StandIn:
    keras.utils.set_random_seed(seed)
    return StandIn(SCHEMA)


def scores(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: ops.convert_to_numpy(value) for name, value in model.serving_model(inputs, training=False).items()}


def save(model: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder / "model.keras")
    model.schema.save(folder / "schema.json")
    return folder
