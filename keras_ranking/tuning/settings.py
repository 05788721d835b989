"""How a study searches and judges: its options, checked, and as JSON in its folder and its database."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from keras_ranking.configuration import is_integer, is_real
from keras_ranking.data import Log, ShardedLog, open_log
from keras_ranking.tuning.samplers import check_search
from keras_ranking.tuning.spaces import as_json, grid_of, read_space

KEEP = ("best", "all")
LAST_DAY = "last_day"
FRESH = 1_000_000
"""Fresh seeds begin this far from the seed of a study, so that none of them has chosen anything."""


@dataclass(frozen=True)
class Search:
    """Options of a study, by name in `tune` and `tune_model` all the same.

    The defaults follow measurements (docs: What noise does to tuning).

    Attributes:
        sampler: which setting is tried next. 'tpe'; 'random'; 'gp', a Gaussian process of Optuna; 'gp-noisy', one of BoTorch with log noisy
            expected improvement (extra `tune-gp`); 'cmaes', for numbers alone; 'grid': all values of the space, in random order.
        pruner: which trials end early: 'none', 'median' or 'hyperband'. Not with 'gp' and 'gp-noisy', which ignore pruned trials.
        metric: what is judged, on validation rows inside the rows of training: 'log_loss', 'normalized_entropy', 'auc', 'impression_auc',
            as the mean over tasks or of one task (`click_log_loss`). For `tune_model` a name in Keras's logs, such as 'val_loss'.
        seeds: runs of a setting, whose mean is its value. More seeds at equal budget try fewer settings.
        validation: which training rows judge: 'last_day', or a share such as 0.1, the last tenth of the requests. Rows that figures are
            reported on, such as the split 'validation', cannot be chosen.
        heartbeat: seconds between signs of life of a worker. After six without one another worker takes its trial up.
        checkpoint_every: steps between checkpoints of a trial, from which it is taken up. None: after each epoch.
        keep: 'best': weights of the best trial alone stay on the disk; 'all': those of all trials.
        on_error: as in `train`.

    Raises:
        ValueError: a value out of range, or a pruner with a sampler that it harms.
        ModuleNotFoundError: a package for the sampler is missing.

    Example:
        >>> kr.tuning.Search(sampler="random").metric
        'log_loss'
    """

    sampler: str = "tpe"
    pruner: str = "none"
    metric: str = "log_loss"
    seeds: int = 1
    validation: str | float = LAST_DAY
    heartbeat: int = 10
    checkpoint_every: int | None = None
    keep: str = "best"
    on_error: str = "raise"

    def __post_init__(self) -> None:
        check_search(self.sampler, self.pruner)
        for name in ("seeds", "heartbeat"):
            if not (is_integer(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={getattr(self, name)!r}")
        if self.checkpoint_every is not None and not (is_integer(self.checkpoint_every) and self.checkpoint_every > 0):
            raise ValueError(f"`checkpoint_every` must be a positive integer. Received: checkpoint_every={self.checkpoint_every!r}")
        if not (self.validation == LAST_DAY or (is_real(self.validation) and 0 < float(self.validation) < 1)):
            raise ValueError(
                "`validation` must be 'last_day', or a share above 0 and below 1 of the training rows: a study that is judged on rows of "
                f"another split would choose by the rows that it is reported on. Received: validation={self.validation!r}"
            )
        if self.keep not in KEEP:
            raise ValueError(f"`keep` must be one of {KEEP}. Received: keep={self.keep!r}")
        if self.on_error not in ("raise", "drop"):
            raise ValueError(f"`on_error` must be 'raise' or 'drop'. Received: on_error={self.on_error!r}")


@dataclass(frozen=True)
class Settings:
    """All that a worker must know of a study.

    Attributes:
        model: name of a model; '' for a model of the user's own.
        search: how it searches.
        space: option -> range.
        trials: number of settings.
        seed: of the search, and of the first run of each setting.
        options: options of `train` that do not vary.
        data: arguments of `open_log`, or of a log in shards its source alone; None: the log is given in Python.
        direction: 'minimize' or 'maximize'.
    """

    model: str
    search: Search
    space: Mapping[str, Any]
    trials: int
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    direction: str = "minimize"

    def __post_init__(self) -> None:
        object.__setattr__(self, "space", read_space(self.space))
        if not (is_integer(self.trials) and self.trials > 0):
            raise ValueError(f"`trials` must be a positive integer. Received: trials={self.trials!r}")
        if not (is_integer(self.seed) and 0 <= self.seed < 2**32):
            raise ValueError(f"`seed` must be an integer from 0 to 2**32 - 1. Received: seed={self.seed!r}")
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(f"`direction` must be 'minimize' or 'maximize'. Received: direction={self.direction!r}")
        if self.search.sampler == "grid":
            grid_of(self.space)
        choices = [name for name, one in self.space.items() if hasattr(one, "labels")]
        if self.search.sampler == "cmaes" and choices:
            raise ValueError(
                f"`sampler` must not be 'cmaes' where values have no order, which it draws at random. Received: sampler='cmaes', {choices}"
            )

    def seeds(self) -> list[int]:
        """Seeds of the runs of a setting."""
        return [(self.seed + number) % 2**32 for number in range(self.search.seeds)]

    def as_json(self) -> dict[str, Any]:
        """For `study.json` and the database."""
        plain: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        plain |= {"search": asdict(self.search), "space": as_json(self.space)}
        made: dict[str, Any] = json.loads(json.dumps(plain, default=_plain))
        return made

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Settings:
        """The settings that `as_json` wrote."""
        return cls(**{**json.loads(json.dumps(dict(content))), "search": Search(**content["search"])})


def _plain(value: Any) -> Any:
    """For JSON: lists for arrays, ranges and sets, numbers for those of numpy.

    Raises:
        TypeError: an object, such as an optimiser of Keras, which another worker could not read.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (range, set, frozenset)):
        return list(value)
    raise TypeError(f"`options` of a study must be numbers, texts, lists and mappings, which other workers can read. Received: {value!r}")


def training_options(settings: Settings, tried: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `train` for a setting that was chosen: all training rows are learned, as many epochs as in its trial.

    With early stopping among the options that do not vary, the rows that judged are held out again, since the number of epochs is theirs.
    """
    options = {**settings.options, **tried}
    if options.get("early_stopping") is not None or options.get("best"):
        options |= {"validation": settings.search.validation, "monitor": settings.search.metric}
    return options


def fresh_seeds(settings: Settings, count: int) -> list[int]:
    """Seeds that no trial of a study has had."""
    return [(settings.seed + FRESH + number) % 2**32 for number in range(count)]


def opened_log(data: Mapping[str, Any]) -> Log | ShardedLog:
    """The log that a study was made with, by `Settings.data`."""
    source = str(data["source"])
    return ShardedLog(source.removeprefix("shards:")) if source.startswith("shards:") else open_log(**dict(data))
