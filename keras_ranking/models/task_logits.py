"""From the joined features of a candidate to a logit for each task: cross nets, heads, posteriors, calibration, random effects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking import layers
from keras_ranking.models.configuration import Calibration, Choice, Interaction, TaskHeads
from keras_ranking.models.wiring import Tensors
from keras_ranking.schema import Schema


class ListReader:
    """What a candidate reads of the others of its request, see `ListContext` and `ListPooling`.

    Args:
        context: whether numbers are set against those of the request.
        pooling: width of the states whose mean and maximum are read; 0: none.
        dropout: rate in the pooling.
        policy: dtype policy of layers.
    """

    def __init__(self, context: bool, pooling: int, dropout: float, policy: Mapping[str, Any]) -> None:
        self.context = layers.ListContext(name="list_context", **policy) if context else None
        self.pooling = None
        if pooling:
            self.state = keras.layers.Dense(pooling, name="pooled_state", **policy)
            self.pooling = layers.ListPooling(dropout=dropout, name="list_pooling", **policy)
            self.norm = keras.layers.LayerNormalization(epsilon=1e-6, name="pooling_norm", **policy)

    def pooled(self, x: Any, slot: Any) -> list[Any]:
        """[x], with what is pooled of x (B, N, C) behind it; `slot` int32 (B, N) is the request of each candidate."""
        return [x] if self.pooling is None else [x, self.norm(self.pooling(self.state(x), slot=slot))]


class Choices:
    """The log-odds of a choice for the tasks of `Choice`, in place of their logits; other tasks pass as they are."""

    def __init__(self, choice: Choice) -> None:
        self.tasks = list(choice.choice)
        settings: dict[str, Any] = {"no_choice": choice.choice_none, "logits": True, "dtype": "float32"}
        self.layers = {task: layers.ChoiceProbability(name=f"choice_{task}", **settings) for task in self.tasks}

    def __call__(self, logits: Tensors, slot: Any) -> Tensors:
        """Of logits (B, N) or (B, N, 1) by task; `slot` int32 (B, N) is the request of each candidate."""
        return {task: self._of(task, logit, slot) if task in self.layers else logit for task, logit in logits.items()}

    def _of(self, task: str, logit: Any, slot: Any) -> Any:
        if len(logit.shape) == 2:
            return self.layers[task](logit, slot=slot)
        return ops.expand_dims(self.layers[task](ops.squeeze(logit, -1), slot=slot), -1)


class TaskLogits:
    """Trunk, heads and what is added to a logit, of `LiRank` and `AmortizedDLRM`.

        h_k    = trunk_k(x)                          one trunk for all tasks, or one for each group of tasks
        s_k    = isotonic_k( head_k(h_k) ) + random effect_k[id]

    Args:
        schema: the log's columns.
        interaction, heads, calibration: with every choice made.
        tasks: names of the tasks.
        random_effects: task -> id column.
        explore: tasks whose last layer has a posterior.
        dropout: rate in trunks and heads.
        dtype: dtype policy.
    """

    def __init__(
        self,
        schema: Schema,
        interaction: Interaction,
        heads: TaskHeads,
        calibration: Calibration,
        tasks: Sequence[str],
        random_effects: Mapping[str, str],
        explore: Sequence[str],
        dropout: float,
        dtype: str,
    ) -> None:
        self.tasks, self.effect_columns = tasks, random_effects
        groups = dict(heads.groups or {})
        shared = bool(interaction.shared_trunk)
        self.owner = {task: "trunk" if shared else name for name, held in groups.items() for task in held}
        self.trunks = {name: _trunk(interaction, dropout, dtype, f"trunk_{name}") for name in (["trunk"] if shared else groups)}
        self.head: Any = None
        if heads.head is not None:
            options = {"dropout": dropout, **({"groups": groups} if heads.head == "grouped" else {}), **(heads.head_options or {})}
            self.head = layers.MultiTaskHead(heads.head, tasks, name="head", dtype=dtype, **options)
        plain = [] if self.head else [task for task in tasks if task not in explore]
        self.linear = {task: keras.layers.Dense(1, dtype="float32", name=f"logit_{task}") for task in plain}
        # The last layer of an explored task keeps a posterior of its own weights.
        self.posteriors = {task: layers.BayesianLinear(name=f"posterior_{task}") for task in explore}
        rows = {task: schema.inputs([column])[0].rows for task, column in random_effects.items()}
        self.effects = {task: layers.RandomEffect(count, trainable=False, name=f"effect_{task}") for task, count in rows.items()}
        self.calibrate: dict[str, Any] = {}
        self.calibration_features: Any = None
        self.calibration_columns: Sequence[Any] = ()
        if calibration.calibration:
            options = dict(calibration.calibration_options or {})
            chances = [task for task in tasks if schema.task(task).kind != "number"]
            self.calibrate = {task: layers.IsotonicCalibration(name=f"isotonic_{task}", **options) for task in chances}
            if calibration.calibration_features:
                self.calibration_columns = schema.inputs(calibration.calibration_features)
                self.calibration_features = layers.FeatureConcat(
                    self.calibration_columns, id_dim=8, name="calibration_features", dtype=dtype
                )

    def __call__(
        self, x: Any, columns: Tensors, seed: Any = None, plus: Callable[[Tensors], Tensors] | None = None
    ) -> tuple[Tensors, Tensors]:
        """Logits (B, N) by task, and what the last linear map of each reads, (B, N, H).

        Args:
            x: joined features, (B, N, C).
            columns: of the candidates, for calibration and random effects.
            seed: int32 (B,): the last weights of explored tasks are drawn from their posterior; None: their mean.
            plus: function that adds to the logits (B, N), before their calibration; None: nothing is added.
        """
        trunks = {name: trunk(x) for name, trunk in self.trunks.items()}
        if self.head is not None:
            logits, hidden = self.head(trunks["trunk"], return_hidden=True)
        else:
            hidden = {task: trunks[self.owner[task]] for task in self.tasks}
            logits = {task: ops.squeeze(self.linear[task](hidden[task]), -1) for task in self.linear}
        for task, posterior in self.posteriors.items():
            logits[task] = posterior(hidden[task]) if seed is None else posterior(hidden[task], seed=seed)
        logits = logits if plus is None else plus(logits)
        return {task: self._finished(task, logits[task], columns) for task in self.tasks}, hidden

    def _finished(self, task: str, logit: Any, columns: Tensors) -> Any:
        """Calibration and the random effect on top of a logit (B, N)."""
        if task in self.calibrate and self.calibration_features is None:
            logit = self.calibrate[task](logit)
        elif task in self.calibrate:
            read = {feature.name: columns[feature.name] for feature in self.calibration_features.features}
            logit = self.calibrate[task](logit, features=self.calibration_features(read))
        if task in self.effects:
            logit = self.effects[task](logit, ids=columns[self.effect_columns[task]])
        return logit


def _trunk(interaction: Interaction, dropout: float, dtype: str, name: str) -> Any:
    mlp: dict[str, Any] = {"gate": interaction.gate, "gate_rank": interaction.gate_rank, "dropout": dropout, "dtype": dtype, "name": name}
    if interaction.cross == "none":
        return layers.GatedMLP(interaction.hidden, **mlp)
    cross: dict[str, Any] = {"cross": interaction.cross, "cross_options": dict(interaction.cross_options or {})}
    return layers.ParallelDCN(interaction.rank, interaction.cross_layers, hidden=interaction.hidden, **cross, **mlp)
