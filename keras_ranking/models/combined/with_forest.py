"""A trained network and a forest as one model: a weighted sum of their logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.columns import Category, Number
from keras_ranking.models.combined.ensemble import OF_WIRING, run_graph
from keras_ranking.models.member_columns import MemberColumns
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.served_values import require_probabilities
from keras_ranking.models.wiring import BUILDERS, Tensors, builder, copied
from keras_ranking.schema import Schema

_OF_BASE = ("choice", "choice_several", "explore", "random_effects")  # what the base alone has


def with_forest(
    model: RankingModel,
    forest: layers.Forest,
    task: str | None = None,
    weights: tuple[float, float] = (0.5, 0.5),
    name: str = "with_forest",
) -> RankingModel:
    """A trained model and a forest of decision trees as one model, whose logit is a weighted sum of theirs.

        logit = bias + weights[0] logit of the model + weights[1] logit of the forest

    The result is a `RankingModel`: evaluated, saved, exported and served in the same way, as one graph, on the same requests. A network
    and a forest err on different rows, so that the two together order better than either; `kr.training.fit_stack` finds the weights on
    rows that neither was fitted on. Our choice.

    The forest reads columns of the model's schema as the model does, encoded: `kr.training.forest_rows` gives these columns of a log.

    Args:
        model: a trained model, an ensemble too. Its weights are copied. A task with `choice` becomes an independent probability, since
            the forest's do not sum to 1 over a request.
        forest: with one output and a logit or a score (`binary`, `lambdarank`, boosting of two classes); its `features` are names of
            columns of the schema: numbers and categories known when a candidate is scored.
        task: whose logit the forest adds to; None: the only one.
        weights: of the model and of the forest.
        name: of the model.

    Returns:
        A `RankingModel`, not compiled.

    Raises:
        ValueError: a forest of several outputs or with another link, a feature that is no such column, an unknown task, a model with
            int8 tables (quantise the result).

    Example:
        >>> import lightgbm
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> x = kr.training.forest_rows(log.events, schema, ["age_hours", "topic"])
        >>> options = {"objective": "binary", "verbose": -1, "num_threads": 1}
        >>> booster = lightgbm.train(options, lightgbm.Dataset(x, log.events["click"], categorical_feature=["topic"]), 5)
        >>> network = kr.models.LiRank(schema, history_features=(), hidden=(8,))
        >>> model = kr.models.with_forest(network, kr.layers.Forest.from_lightgbm(booster), task="click")
        >>> model.form, model.tasks == network.tasks
        ('requests', True)
    """
    if not isinstance(model, RankingModel):
        raise ValueError(f"`model` must be a ranking model. Received: {type(model).__name__}")
    if model.quantized:
        raise ValueError(f"`model` must have float tables: quantise the result. Received: int8 tables, '{model.name}'")
    if not isinstance(forest, layers.Forest):
        raise ValueError(f"`forest` must be a kr.layers.Forest. Received: {type(forest).__name__}")
    if task is None and len(model.tasks) > 1:
        raise ValueError(f"`task` must be one of {model.tasks}. Received: task=None")
    task = model.tasks[0] if task is None else task
    if task not in model.tasks:
        raise ValueError(f"`task` must be one of {model.tasks}. Received: task={task!r}")
    require_probabilities(model.schema, [task], "a forest")
    outputs, link = forest.sizes["shapes"]["base"][0], forest.sizes["link"]
    if outputs != 1 or link not in ("sigmoid", "identity"):
        raise ValueError(f"`forest` must have one output that is a logit or a score. Received: {outputs} outputs, link '{link}'")
    columns_of(model.schema, forest.features)
    base = model.get_config()
    own = {"base_builder": base["builder"], "base_arguments": base["arguments"], "forest": forest.sizes, "forest_task": task}
    made: RankingModel = WithForest(model.schema, **own, name=name)
    wiring: Any = made._graphs.wiring
    for target, source in zip(wiring.base.variables, model.variables, strict=True):
        target.assign(copied(source))
    for target, source in zip(wiring.forest.variables, forest.variables, strict=True):
        target.assign(copied(source))
    set_stack(made, weights, 0.0)
    made.utility = model.utility or None
    return made


@builder()
def WithForest(
    schema: Schema,
    *,
    base_builder: str,
    base_arguments: Mapping[str, Any],
    forest: Mapping[str, Any],
    forest_task: str,
    name: str = "with_forest",
    **of_base: Any,
) -> RankingModel:
    """The model with new weights, as a saved file rebuilds it: see `with_forest`."""
    base = BUILDERS[base_builder](schema, **base_arguments, name="base")
    lifted = {key: value for key, value in base.arguments.items() if key not in _OF_BASE}
    own = {"base_builder": base_builder, "base_arguments": base.arguments, "forest": forest, "forest_task": forest_task}
    wiring = ForestWiring(base, layers.Forest(forest, "raw", name="forest"), forest_task)
    return RankingModel(wiring, "WithForest", schema, {**lifted, **own}, name)


def stack_of(model: RankingModel) -> layers.StackedLogits | None:
    """The layer that joins the logits of network and forest; None for a model without a forest."""
    wiring = model._graphs.wiring
    return wiring.stack if isinstance(wiring, ForestWiring) else None


def task_of_forest(model: RankingModel) -> str:
    """The task that the forest adds to."""
    return str(model.arguments["forest_task"])


def set_stack(model: RankingModel, weights: Any, bias: float) -> None:
    """Set the weights of network and forest, and the bias."""
    stack = stack_of(model)
    if stack is None:
        raise ValueError("`model` must be made by `kr.models.with_forest`. Received: a model without a forest")
    stack.weight.assign([float(weight) for weight in weights])
    stack.bias.assign(float(bias))


def columns_of(schema: Schema, names: Sequence[str] | None = None) -> list[Number | Category]:
    """The columns that a forest reads: numbers and categories known when a candidate is scored; `names` None: all of them."""
    fit = {one.name: one for one in schema.features if isinstance(one, (Number, Category)) and one.known != "after"}
    for name in fit if names is None else names:
        if name not in fit:
            raise ValueError(f"each feature of a forest must be a number or category of the schema: {list(fit)}. Received: '{name}'")
    return [fit[name] for name in (fit if names is None else names)]


class ForestWiring:
    """The graphs of a model, with the forest's logit in that of one task.

    Args:
        base: the network.
        forest: with output 'raw'.
        task: of the forest.
    """

    def __init__(self, base: RankingModel, forest: layers.Forest, task: str) -> None:
        self.base, self.forest, self.task = base, forest, task
        self.inner: Any = base._graphs.wiring
        self.form = self.inner.form
        self.columns = columns_of(base.schema, forest.features)
        self.prefix, self.slot = ("candidate_", "request_slot") if self.form == "requests" else ("", "member_slot")
        self.members = MemberColumns(base.schema)
        self.stack = layers.StackedLogits(2, name="stacked_logits")
        for each in OF_WIRING:
            if hasattr(self.inner, each):
                setattr(self, each, getattr(self.inner, each))
        if hasattr(self.inner, "stream_inputs"):
            self.stream_inputs = self._stream_inputs
        if hasattr(self.inner, "extend"):
            self.extend = self.inner.extend

    def row_inputs(self) -> Tensors:
        return {**self._own_inputs(), **self.inner.row_inputs()}

    def _own_inputs(self) -> Tensors:
        found = self.members.row_inputs(self.columns, self.prefix)
        if any(column.known == "member" for column in self.columns):
            found[self.slot] = keras.Input((None,), dtype="int32", name=self.slot)
        return found

    def _stream_inputs(self) -> Tensors:
        found = self.inner.stream_inputs()
        return {**self._own_inputs(), **found} if found else {}

    def history_inputs(self) -> Tensors:
        return dict(self.inner.history_inputs())

    def candidate_inputs(self) -> Tensors:
        return {**self.members.inputs(self.columns), **self.inner.candidate_inputs()}

    def row(self, inputs: Tensors) -> Tensors:
        wanted = self.inner.stream_inputs() if "stream_time" in inputs else self.base.input
        logits = self.base({name: inputs[name] for name in wanted})
        return self._joined(logits, self.members.at_slots(inputs, self.slot, self.prefix), self.prefix)

    def encode(self, history: Tensors) -> Tensors:
        return dict(self.inner.encode(history))

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        named = {f"cache_{name}": x for name, x in cache.items()} | candidates
        return self._joined(run_graph(self.base.scorer, named), self.members.at_candidates(candidates), "candidate_")

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        return list(self.inner.attention(cache, candidates))

    def _joined(self, logits: Mapping[str, Any], columns: Tensors, prefix: str) -> Tensors:
        x = [ops.cast(columns[f"{prefix}{feature.name}"], "float32") for feature in self.columns]
        own = self.forest(ops.stack(x, axis=-1))
        if self.forest.sizes["slope"] != 1.0:
            own = self.forest.sizes["slope"] * own
        return {name: self.stack([x, own]) if name == self.task else x for name, x in logits.items()}
