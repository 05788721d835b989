"""Several trained models of one kind as one: the mean of their probabilities, with an offset by task that follows the base rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_ranking import layers
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.wiring import BUILDERS, Tensors, builder, copied
from keras_ranking.schema import Schema

OF_WIRING = ("boundaries", "serving_tower", "loss_settings", "returns_towers", "encodes_at_moment", "cannot_extend")
_OWN = ("of", "members", "base_rate")


def ensemble(models: Sequence[RankingModel], base_rate: bool = False, name: str = "ensemble") -> RankingModel:
    """Trained models of one kind, such as of several seeds, as one model: the mean of their probabilities.

    The result is a `RankingModel` like its members: it is evaluated, saved, quantised, exported and served in the same way, as one
    graph. A request costs what all members cost. `train(..., options={"ensemble": 3})` trains members of several seeds and makes it.
    With one model and `base_rate=True` it is that model with an offset. Our choice.

    Args:
        models: with the same builder, schema and arguments. Their weights are copied.
        base_rate: whether each task's logit has an offset (`kr.layers.BaseRate`), which `kr.training.follow_base_rate` sets on newer
            outcomes.
        name: of the model.

    Returns:
        A `RankingModel`, not compiled.

    Raises:
        ValueError: no model, models that differ in more than their weights, a model with int8 tables (quantise the result), an
            ensemble, or `base_rate` for a model with `choice`.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> members = [kr.models.LiRank(schema, history_features=(), hidden=(8,)) for _ in range(2)]
        >>> model = kr.models.ensemble(members)
        >>> model.form, model.tasks == members[0].tasks
        ('requests', True)
    """
    if not models:
        raise ValueError("`models` must hold at least one model. Received: none")
    for model in models:
        if not isinstance(model, RankingModel):
            raise ValueError(f"`models` must hold ranking models. Received: {type(model).__name__}")
        if model.quantized or model.get_config()["builder"] == "Ensemble":
            kind = "one with int8 tables" if model.quantized else "an ensemble"
            raise ValueError(f"`models` must hold trained models themselves. Received: {kind}, '{model.name}'")
    configs = [{key: value for key, value in model.get_config().items() if key != "name"} for model in models]
    for config in configs[1:]:
        if different := [key for key in ("builder", "schema", "arguments") if config[key] != configs[0][key]]:
            raise ValueError(f"`models` must differ in their weights alone. Received: models that differ in {different}")
    if base_rate and models[0].choice:
        raise ValueError(f"`base_rate` is not for tasks that are choices: their probabilities sum to 1. Received: {models[0].choice}")
    settings: dict[str, Any] = {"of": configs[0]["builder"], "members": len(models), "base_rate": base_rate}
    made: RankingModel = Ensemble(models[0].schema, **settings, name=name, **models[0].arguments)
    for member, model in zip(members_of(made), models, strict=True):
        for target, source in zip(member.variables, model.variables, strict=True):
            target.assign(copied(source))
    utilities = [model.utility for model in models]
    if any(utility != utilities[0] for utility in utilities):
        raise ValueError(f"`models` must have the same `utility`. Received: {utilities}")
    made.utility = utilities[0] or None
    return made


@builder()
def Ensemble(schema: Schema, *, of: str, members: int, base_rate: bool = False, name: str = "ensemble", **arguments: Any) -> RankingModel:
    """The ensemble with new weights, as a saved file rebuilds it: see `ensemble`."""
    made = [BUILDERS[of](schema, **arguments, name=f"member_{number}") for number in range(members)]
    own: dict[str, Any] = dict(zip(_OWN, (of, members, base_rate), strict=True))
    return RankingModel(EnsembleWiring(made, base_rate), "Ensemble", schema, {**own, **made[0].arguments}, name=name)


def members_of(model: RankingModel) -> list[RankingModel]:
    """The members of an ensemble; of another model, the model itself."""
    wiring = model._graphs.wiring
    return list(wiring.models) if isinstance(wiring, EnsembleWiring) else [model]


def offsets_of(model: RankingModel) -> dict[str, layers.BaseRate]:
    """Offsets by task; empty for a model that has none."""
    wiring = model._graphs.wiring
    return dict(wiring.offsets) if isinstance(wiring, EnsembleWiring) else {}


class EnsembleWiring:
    """The graphs of each member, with their logits merged.

    Args:
        models: of one builder, schema and arguments.
        base_rate: whether tasks have an offset.
    """

    def __init__(self, models: Sequence[RankingModel], base_rate: bool) -> None:
        self.models, self.first = list(models), models[0]._graphs.wiring
        self.form = self.first.form
        for each in OF_WIRING:
            if hasattr(self.first, each):
                setattr(self, each, getattr(self.first, each))
        if hasattr(self.first, "stream_inputs"):
            self.stream_inputs = self.first.stream_inputs
        if getattr(self.first, "extend", None) is not None:
            self.extend = self._extend
        tasks = models[0].tasks
        numbers = [task for task in tasks if models[0].schema.task(task).kind == "number"]  # whose outputs have a mean themselves
        means = {True: keras.layers.Average, False: layers.MeanProbability}
        self.mean = {task: means[task in numbers](name=f"mean_{task}") for task in tasks}
        self.offsets = {task: layers.BaseRate(name=f"base_rate_{task}") for task in tasks if base_rate and task not in numbers}

    def row_inputs(self) -> Tensors:
        return dict(self.first.row_inputs())

    def history_inputs(self) -> Tensors:
        return dict(self.first.history_inputs())

    def candidate_inputs(self) -> Tensors:
        return dict(self.first.candidate_inputs())

    def row(self, inputs: Tensors) -> Tensors:
        return self._merged([model(inputs) for model in self.models])

    def encode(self, history: Tensors) -> Tensors:
        if not self.first.history_inputs():
            return {}
        return {f"{at}_{name}": x for at, model in enumerate(self.models) for name, x in run_graph(model.encoder, history).items()}

    def score(self, cache: Tensors, candidates: Tensors) -> Tensors:
        found = []
        for at, model in enumerate(self.models):
            own = {f"cache_{name}": x for name, x in self._of_member(at, cache).items()}
            found.append(run_graph(model.scorer, {**own, **candidates}))
        return self._merged(found)

    def attention(self, cache: Tensors, candidates: Tensors) -> list[Any]:
        raise ValueError("an ensemble has no attention weights of its own: ask one of the models that it was made of.")

    def _extend(self, cache: Tensors, history: Tensors) -> Tensors:
        longer: Tensors = {}
        for at, model in enumerate(self.models):
            named = {f"cache_{name}": x for name, x in self._of_member(at, cache).items()}
            longer |= {f"{at}_{name}": x for name, x in run_graph(model.extender, {**named, **history}).items()}
        return longer

    @staticmethod
    def _of_member(at: int, cache: Mapping[str, Any]) -> Tensors:
        return {name.removeprefix(f"{at}_"): x for name, x in cache.items() if name.startswith(f"{at}_")}

    def _merged(self, logits: Sequence[Mapping[str, Any]]) -> Tensors:
        merged = {task: mean([each[task] for each in logits]) for task, mean in self.mean.items() if task in logits[0]}
        return {task: self.offsets[task](x) if task in self.offsets else x for task, x in merged.items()}


def run_graph(graph: Any, tensors: Mapping[str, Any]) -> Tensors:
    """What a functional model makes of the tensors that it has inputs for."""
    return dict(graph({name: tensors[name] for name in graph.input}))
