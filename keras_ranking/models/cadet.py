"""CADET: a context-conditioned decoder-only transformer for click prediction (LinkedIn, 2602.11410)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from keras_ranking import layers
from keras_ranking.configuration import as_arguments, gather
from keras_ranking.models.causal_transformer import CausalTransformer
from keras_ranking.models.configuration import Attention, Choice, Numbers, Past, Tokens, Towers, Trunk, Visibility
from keras_ranking.models.configuration.sequence import GATES, OF_MODEL, check_together
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.wiring import Tensors, builder, policy_name, task_names
from keras_ranking.schema import Schema

_CONFIGURATION = (Tokens, Trunk, Attention, Visibility, Towers, Past, Numbers, Choice)


@builder(*_CONFIGURATION)
def CADET(
    schema: Schema,
    *configuration: Tokens | Trunk | Attention | Visibility | Towers | Past | Numbers | Choice,
    tasks: Sequence[str] | None = None,
    auxiliary_tasks: Mapping[str, float] | None = None,
    dtype: str | None = None,
    name: str = "cadet",
    **options: Any,
) -> RankingModel:
    """A causal transformer over a member's events that scores every item before its action, for every range of positions.

        token_i   = item token of event i, followed by its action token          (layout 'interleaved')
        h         = LN(DecoderBlock^num_layers(tokens; gates, timestamp rotation, delayed spans))   read at item tokens
        s_ik      = tower_k([h_i ; late context features_i]),   p_ik = sigmoid(s_ik)
        score_i   = p_ik at `serving_tower`, or sum_k prior_k p_ik;   all p_ik are returned as well

    Marks: *stated* = in the paper's abstract or a public summary of it; *choice* = the paper's value is not known.

    Args:
        schema: the log's columns. Inputs are named by it.
        configuration: objects of `Tokens`, `Trunk`, `Attention`, `Visibility`, `Towers`, `Past`, `Numbers` and `Choice`, each at most
            once.
        tasks: names of the tasks to predict; None: all that are not auxiliary.
        auxiliary_tasks: task -> weight of its loss: trained next to `tasks` (stated; which ones: unknown) but not scored.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.
        options: fields of these classes one by one: `dim=32` is `Trunk(dim=32)`.

    Returns:
        A `RankingModel` of form 'rows'.

    Raises:
        ValueError: an unknown task or column, an after-scoring column as an input, impossible sizes.
        TypeError: an unknown option, or one that is given twice.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.CADET(schema, kr.models.Trunk(dim=16, num_layers=1, num_heads=2), kr.models.Towers(tower_hidden=(8,)))
        >>> same = kr.models.CADET(schema, dim=16, num_layers=1, num_heads=2, tower_hidden=(8,))
        >>> same.arguments == model.arguments
        True
        >>> model.compile(optimizer="adam", loss=model.losses_by_task(pairwise_weight=0.1))
    """
    tokens, trunk, attention, visibility, towers, past, numbers, choice = gather(CADET, _CONFIGURATION, configuration, options)
    towers = towers.of(schema)
    auxiliary = {schema.task(task).name: float(weight) for task, weight in (auxiliary_tasks or {}).items()}
    scored = [task for task in task_names(schema, tasks) if tasks is not None or task not in auxiliary]
    if any(task in auxiliary for task in scored) or not scored or any(not 0 < weight < float("inf") for weight in auxiliary.values()):
        received = f"tasks={scored}, auxiliary_tasks={auxiliary}"
        raise ValueError(
            f"`auxiliary_tasks` must have positive weights, and no task of `tasks`, of which one is left. Received: {received}"
        )
    trained = [*scored, *auxiliary]
    if clash := [task for task in trained if any(task == f"{other}_by_{towers.tower_by}" for other in trained)]:
        raise ValueError(f"task '{clash[0]}' has the name of an output of towers by '{towers.tower_by}'. Received: tasks={trained}")
    choice = choice.of(trained, trained if towers.count > 1 else (), "a model with towers by position; `tower_boundaries=()` has one")
    trunk = replace(trunk, residual="plain") if trunk.residual == OF_MODEL else trunk
    attention = attention.of(gates=GATES["all"], rotate_by="time")
    check_together(tokens, attention)
    tokens, visibility = tokens.of(schema), visibility.of(schema)
    past = past.of(schema, tokens.token_features or ())
    numbers = numbers.of(schema, tokens.token_features, tokens.late_features, [action.name for action in schema.actions])
    dtype = policy_name(dtype)
    wiring = CadetWiring(schema, tokens, trunk, attention, visibility, towers, past, numbers, choice, trained, scored, dtype)
    arguments = as_arguments(tokens, trunk, attention, visibility, towers)
    arguments |= {"tasks": scored, "auxiliary_tasks": auxiliary, "dtype": dtype, **past.arguments(), **choice.arguments()}
    arguments |= as_arguments(numbers) if numbers.embeds else {}
    return RankingModel(wiring, "CADET", schema, arguments, name=name)


class CadetWiring(CausalTransformer):
    """The trunk, and on its states a set of towers by position for every task."""

    def __init__(
        self,
        schema: Schema,
        tokens: Tokens,
        trunk: Trunk,
        attention: Attention,
        visibility: Visibility,
        towers: Towers,
        past: Past,
        numbers: Numbers,
        choice: Choice,
        trained: Sequence[str],
        scored: Sequence[str],
        dtype: str,
    ) -> None:
        super().__init__(schema, tokens, trunk, attention, visibility, past, numbers, choice, dtype)
        self.scored = scored
        shared = towers.towers == "position_feature"
        sizes = {"hidden": towers.tower_hidden, "dropout": trunk.dropout, "shared": shared, **self.policy}
        self.towers = {task: layers.PositionTowers(towers.count, name=f"towers_{task}", **sizes) for task in trained}
        self.calibrate = {}
        if towers.calibration:
            made = {**(towers.calibration_options or {}), **self.policy}
            self.calibrate = {task: layers.TowerCalibration(name=f"isotonic_{task}", **made) for task in trained}

    def heads(self, hidden: Any, read: list[Any], serving: bool) -> Tensors:
        """[final state ; late features] (B, T, C) -> logits (B, T, K) by task; in serving, of the tasks that are scored."""
        logits = self.plus_past({task: self.towers[task](hidden) for task in (self.scored if serving else self.towers)}, read)
        return {task: self.calibrate[task](logit) if self.calibrate else logit for task, logit in logits.items()}
