"""LiRank: large point-wise ranking models for feed, ads and jobs (LinkedIn, KDD 2024, 2402.06859)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_ranking.configuration import as_arguments, gather
from keras_ranking.models.configuration import Calibration, Choice, Features, History, Interaction, Numbers, Past, TaskHeads
from keras_ranking.models.configuration.presets import RankerChoices, choose
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.request_ranker import RequestRanker
from keras_ranking.models.task_logits import TaskLogits
from keras_ranking.models.wiring import builder, distinct, policy_name, task_names
from keras_ranking.schema import Schema

_CONFIGURATION = (Features, Interaction, TaskHeads, Calibration, History, Past, Numbers, Choice)


@builder(*_CONFIGURATION)
def LiRank(
    schema: Schema,
    *configuration: Features | Interaction | TaskHeads | Calibration | History | Past | Numbers | Choice,
    preset: str = "feed",
    tasks: Sequence[str] | None = None,
    random_effects: Mapping[str, str] | None = None,
    explore: Sequence[str] = (),
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "lirank",
    **options: Any,
) -> RankingModel:
    """A point-wise ranker: embeddings and normalised numbers into cross nets in parallel with a gated MLP, task heads, calibration.

        x      = [BN(numbers) ; embeddings of ids ; HistoryEncoder(history, candidate) ; what `Past` reads, if anything]
        h      = [cross net(x) ; gated MLP(x)]                                     one for all tasks, or one a group of tasks
        s_k    = isotonic_k( head_k(h) ) + random effect_k[id]                     logit of task k

    | preset | trunk | heads | calibration | history |
    |---|---|---|---|---|
    | `feed` | Residual DCN next to a gated MLP, shared | a click tower and a contribution tower (`GroupedTasks`) | isotonic | yes |
    | `ads`  | low-rank DCNv2 and an MLP for each group of tasks | linear | isotonic | yes |
    | `jobs` | two-layer low-rank DCNv2 and an MLP for each task | linear | none | no |

    Marks: the parts of each preset are *stated*, except two: the low rank of the DCNv2 of jobs, and that the towers of feed share cross
    net and MLP (stated: two towers, with the same normalised dense features). That cross net and MLP are parallel, and that
    calibration follows the logit, is our reading (figure 8 of the paper is not available). Defaults without a mark are ours.

    It is trained on requests (`PackedRequests`), histories and their shown lists, and scores every candidate alone, unless
    `list_context`, `list_pooling` or `choice` let candidates of a request see each other.

    Args:
        schema: the log's columns. Inputs are named by it.
        configuration: objects of `Features`, `Interaction`, `TaskHeads`, `Calibration`, `History`, `Past`, `Numbers` and `Choice`, each at
            most once.
        preset: 'feed', 'ads' or 'jobs': the choices of the table, where no other is made.
        tasks: names of the tasks to predict; None: all.
        random_effects: task -> id column whose popularity is added to its logit, 0 until `kr.training.fit_random_effects`.
        explore: tasks with a posterior of the last layer, for the `explore` signature; see `kr.training.fit_exploration`.
        dropout: rate in the MLP and the heads.
        dtype: dtype policy, such as 'mixed_bfloat16'; None: Keras's global one.
        name: of the model.
        options: fields of these classes one by one: `rank=8` is `Interaction(rank=8)`.

    Returns:
        A `RankingModel` of form 'requests'.

    Raises:
        ValueError: an unknown preset, task or column, an after-scoring column as an input, groups that do not hold each task once,
            a `delay` below the schema's.
        TypeError: an unknown option, or one that is given twice.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> interaction = kr.models.Interaction(cross="residual", rank=4, hidden=(16,))
        >>> model = kr.models.LiRank(log.schema.fit(log.events), interaction, max_history=8)
        >>> model.form
        'requests'
    """
    features, interaction, heads, calibration, history, past, numbers, choice = gather(LiRank, _CONFIGURATION, configuration, options)
    names, dtype = task_names(schema, tasks), policy_name(dtype)
    history = history.of(schema)
    chosen = choose(schema, preset, names, features, interaction, heads, calibration, random_effects, explore, choice)
    past = past.of(schema, chosen.features.history_features or (), "history_features")
    numbers = numbers.of(schema, *chosen.features.read(schema))
    direct: dict[str, Any] = {"preset": preset, "tasks": names, "dropout": float(dropout), "dtype": dtype}
    arguments = ranker_arguments(chosen, past, numbers, **direct) | as_arguments(history)
    encoder = {"fusion": "concat", "max_history": history.max_history, "dropout": float(dropout), **(history.history_options or {})}
    wiring = LiRankWiring(schema, chosen, numbers, encoder, history.delay or 0, past, names, float(dropout), dtype)
    return RankingModel(wiring, "LiRank", schema, arguments, name=name)


def ranker_arguments(chosen: RankerChoices, past: Past, numbers: Numbers, **direct: Any) -> dict[str, Any]:
    """The arguments of a ranker as a saved file holds them."""
    parts = as_arguments(chosen.features, chosen.interaction, chosen.heads, chosen.calibration)
    parts |= past.arguments() | chosen.choice.arguments() | (as_arguments(numbers) if numbers.embeds else {})
    return {**parts, "random_effects": chosen.random_effects, "explore": chosen.explore, **direct}


class LiRankWiring(RequestRanker):
    """Features and history of a `RequestRanker`, and `TaskLogits` on them."""

    def __init__(
        self,
        schema: Schema,
        chosen: RankerChoices,
        numbers: Numbers,
        encoder: Mapping[str, Any],
        delay: int,
        past: Past,
        tasks: Sequence[str],
        dropout: float,
        dtype: str,
    ) -> None:
        effects = chosen.random_effects
        super().__init__(schema, chosen.features, numbers, encoder, delay, list(effects.values()), past, chosen.choice, dtype)
        self.logits = TaskLogits(
            schema, chosen.interaction, chosen.heads, chosen.calibration, tasks, effects, chosen.explore, dropout, dtype
        )
        self.candidate_columns = distinct([*self.candidate_columns, *self.logits.calibration_columns])
