"""AmortizedDLRM: a DLRM whose history encoder reads the history once for all candidates (LinkedIn, 2412.06924)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_ranking import layers
from keras_ranking.configuration import as_arguments, gather
from keras_ranking.models.amortized_history import AmortizedHistory
from keras_ranking.models.configuration import Calibration, Choice, Features, HistoryBlocks, Interaction, Numbers, Past, TaskHeads
from keras_ranking.models.configuration.presets import choose
from keras_ranking.models.lirank import LiRankWiring, ranker_arguments
from keras_ranking.models.ranking_model import RankingModel
from keras_ranking.models.wiring import builder, policy_name, task_names
from keras_ranking.schema import Schema

_CONFIGURATION = (HistoryBlocks, Features, Interaction, TaskHeads, Calibration, Past, Numbers, Choice)


@builder(*_CONFIGURATION)
def AmortizedDLRM(
    schema: Schema,
    *configuration: HistoryBlocks | Features | Interaction | TaskHeads | Calibration | Past | Numbers | Choice,
    preset: str = "feed",
    tasks: Sequence[str] | None = None,
    random_effects: Mapping[str, str] | None = None,
    explore: Sequence[str] = (),
    dropout: float = 0.0,
    dtype: str | None = None,
    name: str = "amortized_dlrm",
    **options: Any,
) -> RankingModel:
    """A DLRM (embeddings, normalised numbers, cross net next to an MLP, task heads) around an amortised history encoder.

        r_n = HistoryEncoder(history, candidate n)            the history's keys and values computed once, in every layer
        x_n = [BN(numbers) ; embeddings of ids ; r_n ; what `Past` reads, if anything],        from here on as `LiRank`

    *Stated* (abstract): candidates are appended to the history; with cross-attention this is on par with joining each to every event,
    and the history is read once a request. Second-hand: keys and values come from the history in every layer. Sizes, read-out,
    encoding of time, and whether past events see later ones are unknown. Defaults without a mark are ours.

    It is trained on requests (`PackedRequests`): a row holds histories and lists of several members, and one pass over spans
    gives each candidate its own request's history.

    Args:
        schema: the log's columns. Inputs are named by it.
        configuration: objects of `HistoryBlocks`, `Features`, `Interaction`, `TaskHeads`, `Calibration`, `Past`, `Numbers` and `Choice`,
            each at most once.
        preset: preset of `LiRank` for gates, heads and trunk. The cross net is 'low_rank', and there is no calibration, where nothing
            else is chosen.
        tasks, random_effects, explore, dropout, dtype: as `LiRank`.
        name: of the model.
        options: fields of these classes one by one: `dim=32` is `HistoryBlocks(dim=32)`.

    Returns:
        A `RankingModel` of form 'requests'; `encode`, `score` and, where the cache can grow, `extend`.

    Raises:
        ValueError: as `LiRank` and `HistoryEncoder`; a schema without actions or item columns.
        TypeError: an unknown option, or one that is given twice.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> blocks = kr.models.HistoryBlocks(dim=16, max_history=8)
        >>> model = kr.models.AmortizedDLRM(log.schema.fit(log.events), blocks, hidden=(16,), rank=4)
        >>> model.form
        'requests'
    """
    if "history_options" in options:
        raise ValueError("`history_options` are those of LiRank's own encoder; here they are arguments: dim, num_layers, rotary, ...")
    found = gather(AmortizedDLRM, _CONFIGURATION, configuration, options)
    blocks, features, interaction, heads, calibration, past, numbers, choice = found
    blocks = blocks.of(schema)
    encoder = {"max_history": blocks.max_history, "dropout": float(dropout), **blocks.encoder_options()}
    layers.HistoryEncoder(**encoder)  # its own errors, early
    names, dtype = task_names(schema, tasks), policy_name(dtype)
    defaults: dict[str, Any] = {"cross": "low_rank", "calibrated": False}
    chosen = choose(schema, preset, names, features, interaction, heads, calibration, random_effects, explore, choice, **defaults)
    if not chosen.features.history_features:
        raise ValueError("AmortizedDLRM reads a history: the schema needs actions, and `history_features` a column known='item'.")
    past = past.of(schema, chosen.features.history_features, "history_features")
    numbers = numbers.of(schema, *chosen.features.read(schema))
    direct: dict[str, Any] = {"preset": preset, "tasks": names, "dropout": float(dropout), "dtype": dtype}
    arguments = ranker_arguments(chosen, past, numbers, **direct) | as_arguments(blocks)
    wiring = AmortizedWiring(schema, chosen, numbers, encoder, blocks.delay or 0, past, names, float(dropout), dtype)
    return RankingModel(wiring, "AmortizedDLRM", schema, arguments, name=name)


class AmortizedWiring(AmortizedHistory, LiRankWiring):
    """`LiRankWiring` with a history that is read once for all candidates."""

    def __init__(self, schema: Schema, chosen: Any, *rest: Any) -> None:
        super().__init__(schema, chosen, *rest)
        self.make_steps()
