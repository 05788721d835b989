"""Training data, compiled model and event weights, from the options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd

from keras_ranking import metrics, models
from keras_ranking.data import PackedDataset, PackedRequests, Sequences, pack, pad
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.packed_requests import RequestSizes
from keras_ranking.metrics.observed_base import ObservedBase
from keras_ranking.optimizers import AdamW, TableOptimizer
from keras_ranking.schema import Schema
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.recipe import Recipe
from keras_ranking.training.schedules import chosen_rate, last_rate, rate_for
from keras_ranking.training.scoring.events import model_requests
from keras_ranking.training.weighting.event_weights import EventWeights, event_weights
from keras_ranking.training.weighting.propensities import position_propensities
from keras_ranking.values import INT32_MAX, numbers_of, raise_first

LARGE_TABLE = 100_000  # rows above which `table_optimizer='auto'` updates a table by rows
_TABLE_RATES = {"adagrad": 0.02, "rowwise_adagrad": 0.01}


def training_data(
    ranker: models.RankingModel,
    sequences: Sequences,
    training: TrainingOptions,
    seed: int = 0,
    weights: Mapping[str, np.ndarray] | None = None,
    delays: Any = None,
    epoch: int = 0,
    sizes: RequestSizes | None = None,
    checked: bool = False,
) -> tuple[PackedDataset | PackedRequests, int]:
    """The data for `ranker.fit`, packed rows or requests depending on the model's form; and the size of the largest request.

    Args:
        ranker, sequences, training, seed: the model, its data, the options.
        weights: of events by task, see `weights_for`.
        delays: logged delays for a model with an input `delay`. None: always the model's `delay`.
        epoch: number of the first epoch.
        sizes: of a model trained on requests, that several such datasets share; None: those of this one.
        checked: whether `check_targets` has checked these events.

    Raises:
        ValueError: as the datasets; targets without a position for a model that reads positions; requests with several positives of a task
            of which one candidate is chosen; delays for a model without the input;
            options for models trained on rows with a model trained on requests.
    """
    if not checked:
        check_targets(ranker, sequences)
    sequences = sequences.by_column(ranker.tower_by)
    if delays is not None and "delay" not in ranker.input_columns:
        raise ValueError(
            "`delay_column` is for a model that is trained on drawn delays, CADET or FeedSR with sampled_delay=True. "
            f"Received: a model '{ranker.name}' without"
        )
    common: dict[str, Any] = {"tasks": ranker.tasks, "seed": seed, "weights": weights, "epoch": epoch}
    if ranker.form == "requests":
        if training.shuffle_sessions is not None or training.batching != "packed":
            received = f"shuffle_sessions={training.shuffle_sessions!r}, batching={training.batching!r}"
            raise ValueError(f"`{ranker.name}` is trained on requests; these options are for models trained on rows. Received: {received}")
        found = model_requests(ranker, sequences)
        longest = int((found.candidate_end - found.candidate_begin).max(initial=1))
        size = max(training.row_length, longest) if sizes is None else sizes.row_length
        # One long list makes all rows longer: fewer of them keep the number of slots of a step.
        count = max(1, round(training.batch_size * training.row_length / size))
        common["row_requests"] = None if sizes is None else sizes.row_requests
        made = PackedRequests(found, size, count, names=ranker.stream_columns or ranker.input_columns, **common)
        if sizes is not None:
            made.widen(sizes)
        return made, longest
    make, length = {"packed": (pack, "row"), "padded": (pad, "longest"), "bucketed": (pad, "bucketed")}[training.batching]
    rows = make(sequences, training.row_length, context=training.context)
    delays = ranker.arguments["delay"] if delays is None else delays
    common |= {"length": length, "shuffle_sessions": training.shuffle_sessions, "delays": delays}
    return PackedDataset(rows, training.batch_size, inputs=ranker.input_columns, **common), rows.max_request


def weights_for(sequences: Sequences, training: TrainingOptions, events: pd.DataFrame, schema: Schema, tasks: list[str]) -> EventWeights:
    """The event weights of the options; propensities are estimated from `events`, the training rows."""
    propensities, report = None, {}
    if training.ipw is not None:
        if others := [task for task in tasks if schema.task(task).kind != "binary"]:
            raise ValueError(f"`ipw` is for binary tasks. Received: ipw={training.ipw!r}, with task '{others[0]}'")
        curves = position_propensities(events, schema, tasks=tasks, **(training.ipw_options or {}))
        propensities = {task: curve.propensity for task, curve in curves.items()}
        report = {task: curve.summary() for task, curve in curves.items()}
    found = event_weights(
        sequences,
        tasks,
        training.position_half_life,
        training.age_half_life_days,
        propensities,
        training.ipw or "all",
        training.ipw_clip,
    )
    return EventWeights(found.by_task, {task: report[task] | values for task, values in found.report.items()})


def delays_for(events: pd.DataFrame, training: TrainingOptions, places: np.ndarray | None = None) -> np.ndarray | None:
    """The values of the options' delay column in the training rows; `places` are those of the rows in the log, for messages."""
    if training.delay_column is None:
        return None
    require_column(events, training.delay_column, "of `delay_column` is not in the log")
    delays, _ = numbers_of(events[training.delay_column])
    bad = ~((delays >= 0) & (delays <= INT32_MAX))
    reason = f"must hold delays in seconds, 0 to {INT32_MAX}"
    raise_first(training.delay_column, events[training.delay_column], [(bad, reason)], places=places)
    return delays


def check_targets(ranker: models.RankingModel, sequences: Sequences) -> None:
    """Check that targets have what the model needs.

    Raises:
        ValueError: targets without a position for a model that reads positions; requests with several positives of a task of which one
            candidate is chosen.
    """
    _check_positions(ranker, sequences)
    _check_choices(ranker, sequences)


def _check_positions(ranker: models.RankingModel, sequences: Sequences) -> None:
    """Raise an error for a target without a position in a model with several towers: it would train the first one."""
    unknown = sequences.target & (sequences.by_column(ranker.tower_by).position == 0)
    if ranker.tower_by is not None and unknown.any():
        row = int(sequences.rows[unknown.argmax()])
        raise ValueError(
            f"column '{ranker.tower_by}', which the towers go by, has no known value at row {row} ({int(unknown.sum())} training rows). "
            "Leave out such rows."
        )
    if ranker.boundaries and unknown.any():
        what, off = ("offsets", "position_offsets=0") if "position_offsets" in ranker.arguments else ("towers", "tower_boundaries=()")
        raise ValueError(
            f"column '{sequences.schema.position}' has no position at row {int(sequences.rows[unknown.argmax()])} ({int(unknown.sum())} "
            f"training rows); {what} by position need one. Use {off} or leave out such rows."
        )


def _check_choices(ranker: models.RankingModel, sequences: Sequences) -> None:
    """Raise an error for requests with several positives of a task of which one candidate is chosen, unless they are shared out."""
    if ranker.arguments.get("choice_several", "refuse") != "refuse":
        return
    starts = sequences.request_starts
    for task in ranker.choice:
        label = np.where(sequences.target, np.nan_to_num(sequences.labels[task]), 0.0)
        positives = np.add.reduceat(label, starts[:-1]) if sequences.num_events else label
        several = np.flatnonzero(positives > 1 + 1e-5)
        if len(several):
            events = [np.arange(starts[request], starts[request + 1]) for request in several[:3]]
            examples = "; ".join(f"rows {sequences.rows[each[label[each] > 0]].tolist()} of the log" for each in events)
            raise ValueError(
                f"task '{task}' is a choice of one candidate of a request, or none. Received: {len(several)} of {len(positives)} requests "
                f"with several positives: {examples}. choice_several='split' shares them out; "
                "without `choice` each has a probability of its own"
            )


def compile_for(
    ranker: models.RankingModel,
    training: TrainingOptions,
    steps: int,
    window: int,
    recipe: Recipe | None = None,
    made: int | None = None,
    share: float | None = None,
) -> None:
    """Compile with the optimiser of the options, their rule for tables, their schedule over `steps`, their losses and metrics.

    Args:
        ranker, training: the model and the options.
        steps: of the whole training.
        window: impressions of the largest request.
        recipe: None: the default one.
        made: steps of a training that is continued: no warm-up and no decay, but always the rate at which it ended (Feed-SR's rule for a
            warm start, stated). None: a new training.
        share: of a training that is continued: its highest rates times this, at every step, in place of those at which it ended.

    Raises:
        ValueError: a task weight of a task that the model does not have, or an unknown metric.
    """
    recipe = recipe or Recipe()

    def rate(peak: float, schedule: Any = None) -> Any:
        schedule = recipe.schedule if schedule is None else schedule
        if made is None:
            return rate_for(schedule, peak, training.warmup, steps)
        return last_rate(schedule, peak, made) if share is None else chosen_rate(schedule, share * peak)

    if isinstance(recipe.optimizer, str):
        kind = _named(recipe.optimizer)
        settings = {"weight_decay": training.weight_decay, "global_clipnorm": training.clip_norm}
        optimizer: Any = kind(rate(training.learning_rate), **settings)
        if training.trunk_learning_rate is not None:
            of_heads = {f"{_of_heads(ranker)}/.*": optimizer}
            of_trunk = kind(rate(training.trunk_learning_rate), **settings)
            optimizer = keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(of_trunk, of_heads))
    else:
        optimizer = _given(recipe.optimizer, made)
    of_tables = rate if isinstance(recipe.schedule, str) else lambda peak: rate(peak, "constant")
    optimizer = _with_tables(optimizer, ranker, training, of_tables, whole=not isinstance(recipe.optimizer, str))
    losses = ranker.losses_by_task(
        pairwise_weight=training.pairwise_weight, listwise_weight=training.listwise_weight, window=max(2, window)
    )
    scales = None
    if training.task_weights is not None:
        unknown = sorted(set(training.task_weights) - set(ranker.tasks))
        if unknown:
            raise ValueError(f"`task_weights` must name tasks of the model, {ranker.tasks}. Received: {unknown}")
        given = {task: float(weight) for task, weight in training.task_weights.items()}
        scales = {**dict.fromkeys(ranker.tasks, 1.0), **ranker.auxiliary_tasks, **given}
    more = {"weighted_metrics": metrics_by_task(ranker, recipe.metrics)} if recipe.metrics else {}
    ranker.compile(optimizer=optimizer, loss=losses, loss_weights=scales, jit_compile=training.jit_compile, **more)


def _named(name: str) -> Any:
    """The class of an optimiser of Keras."""
    # On torch, Keras's AdamW updates all variables at once and evaluates the schedule once.
    kind = type(keras.optimizers.get(name))
    return AdamW if kind is keras.optimizers.AdamW and keras.backend.backend() != "torch" else kind


def _given(optimizer: Any, made: int | None) -> Any:
    """A new optimiser with the configuration of another one; with the rate at which its schedule ended, if it is continued."""
    config = keras.saving.serialize_keras_object(optimizer)
    schedule = getattr(optimizer, "_learning_rate", None)
    if made is not None and isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        config["config"]["learning_rate"] = keras.saving.serialize_keras_object(last_rate(schedule, 0.0, made))
    return keras.saving.deserialize_keras_object(config)


def metrics_by_task(ranker: models.RankingModel, names: Sequence[str]) -> dict[str, list[Any]]:
    """A metric of each name for each task, that reads packed targets.

    Raises:
        ValueError: a name that neither package has.
    """

    def made(name: str) -> Any:
        kind: Any = getattr(metrics, name, None)
        if isinstance(kind, type) and issubclass(kind, ObservedBase) and kind is not metrics.Observed:
            observed: Any = kind
            return observed(boundaries=ranker.boundaries)
        kind = getattr(keras.metrics, name, None)
        if not (isinstance(kind, type) and issubclass(kind, keras.metrics.Metric)):
            raise ValueError(f"`metrics` must be names of metrics of keras_ranking.metrics or keras.metrics. Received: {name!r}")
        inner = kind()
        return metrics.Observed(inner, boundaries=ranker.boundaries, name=re.sub(r"_\d+$", "", inner.name))  # Keras numbers them

    chances = [task for task in ranker.tasks if ranker.schema.task(task).kind != "number"]
    if not chances:
        raise ValueError(f"`metrics` are of probabilities, which a model of numbers does not have. Received: metrics={list(names)}")
    return {task: [made(name) for name in names] for task in chances}


def _of_heads(ranker: models.RankingModel) -> str:
    """A regular expression of the names of the layers of tasks."""
    return f"(?:{'|'.join(re.escape(name) for name in ranker.head_layers)})"


def _with_tables(
    optimizer: Any, ranker: models.RankingModel, training: TrainingOptions, rate: Callable[[float], Any], whole: bool = False
) -> Any:
    """The optimiser, with the options' rule for embedding tables where the model has such tables; `whole`: if it has no such parts."""
    rule, least = training.table_optimizer, 1
    if rule == "auto":
        rule, least = "rowwise_adagrad", LARGE_TABLE + 1
    sizes = [int(variable.shape[0]) for variable in ranker.trainable_variables if variable.path.endswith("/embeddings")]
    whole = whole and isinstance(optimizer, (TableOptimizer, keras.optimizers.MultiOptimizer))
    if rule == "same" or max(sizes, default=0) < least or whole:
        return optimizer
    default = _TABLE_RATES.get(rule, training.learning_rate)
    peak = default if training.table_learning_rate is None else training.table_learning_rate
    tables = ".*/embeddings"
    if training.trunk_learning_rate is not None:
        peak *= training.trunk_learning_rate / training.learning_rate
        tables = f"(?!{_of_heads(ranker)}/){tables}"
    if rule in ("adagrad", "adamw"):
        if rule == "adagrad":
            own: Any = keras.optimizers.Adagrad(rate(peak), global_clipnorm=training.clip_norm)
        else:
            decay = training.weight_decay if training.table_weight_decay is None else training.table_weight_decay
            own = _named("adamw")(rate(peak), weight_decay=decay, global_clipnorm=training.clip_norm)
        if isinstance(optimizer, keras.optimizers.MultiOptimizer):
            heads = {f"{_of_heads(ranker)}/.*": optimizer.optimizers[0], tables: own}
            return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer.optimizers[1], heads))
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(optimizer, {tables: own}))
    return TableOptimizer(optimizer, rule, rate(peak), tables=tables, min_rows=least, clip_norm=training.clip_norm)


def build_for(ranker: models.RankingModel, batch: Any) -> None:
    """Build what a compiled model builds at its first step: the states of losses and optimiser.

    TensorFlow traces a step a second time if the first one made variables, which doubles the time. The other backends do not.
    """
    x, y, sample_weight = batch
    ranker.compute_loss(x=x, y=y, y_pred=ranker(x, training=False), sample_weight=sample_weight, training=False)
    ranker.reset_metrics()
    if not ranker.optimizer.built:
        ranker.optimizer.build(ranker.trainable_variables)
