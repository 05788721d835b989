"""Options of training, and the split of a mapping into options of the model and of training."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from keras_ranking import models
from keras_ranking.configuration import check_types, is_integer, is_real
from keras_ranking.models.wiring import option_types
from keras_ranking.number_edges import MOST_BINS
from keras_ranking.ops.messages import shown
from keras_ranking.training.presets import preset_options
from keras_ranking.training.recipe import Recipe
from keras_ranking.training.weighting.event_weights import check_half_life

MODELS: dict[str, Callable[..., models.RankingModel]] = {
    "cadet": models.CADET,
    "feedsr": models.FeedSR,
    "lirank": models.LiRank,
    "amortized": models.AmortizedDLRM,
    "ligr": models.LiGR,
}
NEWER = ("number_bins", "trunk_learning_rate")
"""Options that checkpoints of earlier versions do not have: written where they are chosen."""
_ON_REQUESTS = ("lirank", "amortized", "ligr")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "ipw": (None, "all", "positives"),
    "shuffle_sessions": (None, "fixed", "epoch"),
    "batching": ("packed", "padded", "bucketed"),
    "table_optimizer": ("auto", "same", "adamw", "adagrad", "rowwise_adagrad", "lazy_adam"),
}
# option -> the option without which it has no effect, and the values of that one
_WITHOUT_EFFECT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "ipw_options": ("ipw", ("all", "positives")),
    "ipw_clip": ("ipw", ("all", "positives")),
    "number_bins": ("number_embedding", ("piecewise_linear",)),
    "table_learning_rate": ("table_optimizer", ("adamw", "adagrad", "rowwise_adagrad", "lazy_adam")),
    "table_weight_decay": ("table_optimizer", ("adamw",)),
}


@dataclass(frozen=True)
class TrainingOptions:
    """Options of training. None of these is stated for CADET; what LiRank and Feed-SR state is marked.

    Attributes:
        epochs: passes over the packed rows.
        batch_size: rows per step.
        row_length: events per row; for a model trained on requests, candidates per row. A longer list makes its rows longer, and a
            batch then has fewer of them, so that a step keeps its number of slots.
        context: events of context before a later piece of a long member; None: half a row.
        learning_rate: highest rate, reached after the warm-up, then decayed by half a cosine period.
        trunk_learning_rate: highest rate of the layers below those of the tasks, with the same warm-up and decay, such as a tenth of
            `learning_rate` where they are trained already (see `transfer`); tables with a rule of their own keep the ratio, and gradients
            of trunk and heads are clipped separately. None: `learning_rate`.
        warmup: share of the steps in which the rate rises from 0 (LiRank states 5 to 50 %: without it DCNv2 diverges).
        weight_decay: of AdamW.
        clip_norm: bound of the global gradient norm; with a `table_optimizer`, of tables and other weights separately (clipping: stated).
        table_optimizer: of embedding tables. 'same' as for the other weights, which is AdamW; 'adamw' with a rate and a decay of its own;
            'adagrad' (LiRank states a large effect with
            many sparse features); 'rowwise_adagrad' or 'lazy_adam', see `TableOptimizer`: a step costs what the rows cost that it looks
            up. 'auto': 'rowwise_adagrad' for tables of more than 100,000 rows, 'same' for smaller ones.
        table_learning_rate: of the tables, with the same warm-up and decay; None: 0.02 for 'adagrad', 0.01 for
            'rowwise_adagrad', `learning_rate` for 'adamw' and 'lazy_adam'.
        table_weight_decay: of tables with 'adamw': ids memorise, and a decay far above that of other weights, such as 0.1, holds them
            back; None: `weight_decay`.
        pairwise_weight: weight of the in-request pairwise loss; BCE has weight 1 (stated for CADET; Feed-SR's loss is BCE alone, 0).
        listwise_weight: weight of the in-request softmax loss; BCE has weight 1.
        task_weights: weight of each task's loss in the sum; a task without an entry has 1, or its value in the model's `auxiliary_tasks`.
            Feed-SR has such weights, of unknown size.
        position_half_life: number of later events of the member after which an event's weight is halved; 'length': the member's number of
            events, which gives about 0.5 for the first and 1 for the last (Feed-SR, stated). None: equal weights.
        age_half_life_days: age in days, relative to the newest target event, at which an event's weight is halved (Feed-SR: 60, stated).
        ipw: inverse-propensity weights by the position shown: 'all' events (Feed-SR, stated) or the 'positives' alone, see
            `inverse_propensity_weights` for what each removes; None: none.
        ipw_options: arguments of `position_propensities`, which estimates them from the training rows.
        ipw_clip: largest weight before scaling; the training history has the number of clipped events.
        shuffle_sessions: None, 'fixed' or 'epoch': events inside a session in random order (Feed-SR, stated), see
            `keras_ranking.data.shuffle_sessions`. For models trained on rows.
        delay_column: column of the log with the seconds after which each event's actions were known. A model with `sampled_delay=True`
            gets draws from its values in the training rows, one per request and epoch. None: always the model's `delay`.
        batching: for models trained on rows. 'packed': several members per row. 'padded': one piece of a member per row, batches padded to
            their longest row. 'bucketed': the same with pieces of similar length in a batch.
        number_bins: with number_embedding='piecewise_linear', most bins of the features that are numbers and have none in the log's schema,
            see `Schema.binned`; None: numbers without bins stay as they are.
        jit_compile: 'auto' lets Keras decide.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> options = kr.training.TrainingOptions(epochs=1, learning_rate=1e-3)
        >>> options.batch_size, options.warmup
        (8, 0.1)
    """

    epochs: int = 3
    batch_size: int = 8
    row_length: int = 512
    context: int | None = None
    learning_rate: float = 2e-3
    warmup: float = 0.1
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    table_optimizer: str = "auto"
    table_learning_rate: float | None = None
    table_weight_decay: float | None = None
    pairwise_weight: float = 0.1
    listwise_weight: float = 0.0
    task_weights: Mapping[str, float] | None = None
    position_half_life: float | str | None = None
    age_half_life_days: float | None = None
    ipw: str | None = None
    ipw_options: Mapping[str, Any] | None = None
    ipw_clip: float = 10.0
    shuffle_sessions: str | None = None
    delay_column: str | None = None
    batching: str = "packed"
    number_bins: int | None = None
    jit_compile: bool | str = "auto"
    trunk_learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "row_length"):
            value = getattr(self, name)
            if not is_integer(value) or value < 1:
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if isinstance(value, np.generic):  # for the JSON files
                object.__setattr__(self, name, value.item())
        own_rules = ("position_half_life", "age_half_life_days", *_CHOICES)
        hints = {name: hint for name, hint in get_type_hints(type(self)).items() if name not in own_rules}
        check_types(hints, {name: getattr(self, name) for name in hints})
        if not self.learning_rate > 0 or not 0 <= self.warmup <= 1:
            received = f"learning_rate={self.learning_rate}, warmup={self.warmup}"
            raise ValueError(f"`learning_rate` must be positive and `warmup` from 0 to 1. Received: {received}")
        if self.trunk_learning_rate is not None and not 0 < self.trunk_learning_rate < math.inf:
            raise ValueError(f"`trunk_learning_rate` must be positive. Received: trunk_learning_rate={self.trunk_learning_rate}")
        if self.number_bins is not None and not 1 <= self.number_bins <= MOST_BINS:
            raise ValueError(f"`number_bins` must be from 1 to {MOST_BINS}. Received: number_bins={self.number_bins}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {choices}. Received: {name}={getattr(self, name)!r}")
        if self.position_half_life is not None:
            check_half_life("position_half_life", self.position_half_life, words=("length",))
        if self.age_half_life_days is not None:
            check_half_life("age_half_life_days", self.age_half_life_days)
        for task, weight in (self.task_weights or {}).items():
            if not (is_real(weight) and math.isfinite(weight) and weight >= 0):
                raise ValueError(f"`task_weights` must be finite numbers >= 0. Received: {weight!r} for task '{task}'")
        if self.table_weight_decay is not None and not 0 <= self.table_weight_decay < math.inf:
            raise ValueError(f"`table_weight_decay` must not be negative. Received: table_weight_decay={self.table_weight_decay}")
        if not self.ipw_clip > 1:
            raise ValueError(f"`ipw_clip` must be above 1, the weight of the first position. Received: ipw_clip={self.ipw_clip}")


def model_name(model: Any) -> str:
    """The name of a model in `MODELS`, from its name or its builder's in any case, or the builder.

    Raises:
        ValueError: none of these.
    """
    text = str(getattr(model, "__name__", model))
    word = text.lower().replace("-", "").replace("_", "")
    for name, builder in MODELS.items():
        if model is builder or (isinstance(model, str) and word in (name, builder.__name__.lower())):
            return name
    near = difflib.get_close_matches(text.lower(), MODELS, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"unknown model {shown(model)}. There is: {sorted(MODELS)}{hint}")


def split_options(model: str, options: Mapping[str, Any], preset: str | None = None) -> tuple[dict[str, Any], TrainingOptions]:
    """Options of the model's builder and options of training, separated by name; the log's preset fills in the rest.

    Raises:
        ValueError: an unknown model or preset, a name that neither takes, an option that has no effect.
        TypeError: an option of another type.
    """
    model = model_name(model)
    of_recipe = {field.name for field in fields(Recipe)}
    given = {**{name: value for name, value in preset_options(model, preset).items() if name not in of_recipe}, **options}
    builder = MODELS[model].__name__
    training_names = {field.name for field in fields(TrainingOptions)}
    model_names = set(models.model_options(builder))
    for name in given:
        if name not in training_names | model_names:
            of_training = sorted(training_names | of_recipe)
            near = difflib.get_close_matches(name, [*of_training, *model_names], n=1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            known = f"Of training: {of_training}; of the model: {sorted(model_names)}"
            raise ValueError(f"unknown option '{name}'{hint} {known}" if hint else f"unknown option '{name}'. {known}")
    check_types({**get_type_hints(TrainingOptions), **option_types(builder)}, options)
    if model in _ON_REQUESTS and options.get("context") is not None:
        raise ValueError(f"`context` has no effect on '{model}', which is trained on requests. Received: context={options['context']!r}")
    for name, (other, needed) in _WITHOUT_EFFECT.items():
        if name in options and given.get(other, getattr(TrainingOptions, other, None)) not in needed:
            raise ValueError(f"`{name}` has no effect without `{other}` of {needed}. Received: {name}={options[name]!r}")
    training = TrainingOptions(**{name: value for name, value in given.items() if name in training_names})
    return {name: value for name, value in given.items() if name in model_names}, training


@dataclass(frozen=True)
class Settings:
    """The arguments of `train` and `warm_start` beside log and model."""

    out: str | Path | None = None
    seed: int = 0
    epochs: int | None = None
    options: Mapping[str, Any] | None = None
    verbose: bool = True
    resume: bool = False
    callbacks: Any = ()
    distribution: Any = None
    learning_rate: float | None = None
