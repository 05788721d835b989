"""Studies: made, joined, looked at, cancelled and confirmed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from keras_ranking.configuration import gather, is_integer
from keras_ranking.data import Log, ShardedLog
from keras_ranking.data.shards.log import log_or_shards
from keras_ranking.schema import Schema
from keras_ranking.training.options import model_name
from keras_ranking.tuning.choosing import best as best_of, ranked
from keras_ranking.tuning.own_models import own_objective
from keras_ranking.tuning.places import SEED, cancel, latest, plan, plan_fresh, slot_of, told
from keras_ranking.tuning.rankers import check_ranker, ranker_objective, with_its_counts, with_metric
from keras_ranking.tuning.reporting import Report, report_of
from keras_ranking.tuning.running import Objective, work
from keras_ranking.tuning.settings import Search, Settings, fresh_seeds, opened_log
from keras_ranking.tuning.spaces import default_space, options_of, read_space
from keras_ranking.tuning.store import Store, create, open_store


class Study:
    """A study that was made by `tune`, `tune_model` or the command line.

    Args:
        folder: of the study.
        storage: URL of its database, where it has a password, or on another machine. None: as it was made, or that of the environment
            variable KERAS_RANKING_STORAGE.
        name: of the study in the database; None: as it was made.

    Attributes:
        store: its folder and database.

    Raises:
        FileNotFoundError: there is none.

    Example:
        >>> def build(options):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(options["units"])])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> def fit(model, callbacks):  # returns the value itself
        ...     return float(model.count_params())
        >>> study = kr.tuning.tune_model(build, fit, "runs/study", {"units": [1, 2]}, trials=2, verbose=False)
        >>> kr.tuning.Study("runs/study").trials["state"].tolist()
        ['COMPLETE', 'COMPLETE']
    """

    def __init__(self, folder: str | Path, storage: str | None = None, name: str | None = None) -> None:
        self.store: Store = open_store(folder, storage, name)
        self._objective: Objective | None = None

    @classmethod
    def _of(cls, store: Store, objective: Objective) -> Study:
        made = cls.__new__(cls)
        made.store, made._objective = store, objective
        return made

    @property
    def folder(self) -> Path:
        """Folder of the study."""
        return self.store.folder

    @property
    def settings(self) -> Settings:
        """How it searches and judges."""
        return self.store.settings

    def _rows(self, name: str) -> pd.DataFrame:
        study = self.store.study(name)
        rows = []
        for slot, trial in sorted(latest(study.get_trials(deepcopy=False)).items()):
            row = {"trial": slot, "state": trial.state.name, "value": trial.value, "told": told(study, trial), **trial.params}
            row |= {key: trial.user_attrs.get(key) for key in ("seconds", "worker", "attempt", "of", SEED) if key in trial.user_attrs}
            rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else ["trial", "state", "value", "told"])

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each planned trial, in its last attempt: state, value, what became of it in words, and what it tried."""
        return self._rows(self.store.name)

    @property
    def fresh(self) -> pd.DataFrame:
        """A row for each run of `confirm`; `of` is the number of its trial."""
        return self._rows(self.store.confirmed) if self.store.has(self.store.confirmed) else pd.DataFrame()

    def best(self) -> dict[str, Any]:
        """The setting to train with: that of the best mean of fresh seeds after `confirm`, else that of the best trial.

        Returns:
            `trial`, its number; `value`, its single value; `options`, what it tried; `training`, the options of `train`.

        Raises:
            ValueError: no trial has finished.
        """
        return best_of(self.store)

    def cancel(self, trial: int) -> None:
        """End a waiting or running trial: its worker stops within seconds and goes on with the next one; it is not tried again.

        Args:
            trial: its number.

        Raises:
            ValueError: no such trial, or one that has ended.
        """
        cancel(self.store, trial)

    def extend(self, trials: int) -> int:
        """Plan more trials, until there are as many; returns how many there are.

        Args:
            trials: number of all.
        """
        return plan(self.store, trials)

    def plan_fresh(self, best: int = 5, seeds: int = 3) -> None:
        """Plan the runs of `confirm`; workers run them.

        Args:
            best: number of settings, those with the best trials.
            seeds: of each.

        Raises:
            ValueError: too few, or no finished trial.
        """
        for name, value, least in (("best", best, 1), ("seeds", seeds, 2)):
            if not (is_integer(value) and value >= least):
                raise ValueError(f"`{name}` must be an integer of at least {least}. Received: {name}={value!r}")
        settings = [(slot_of(one), options_of(self.settings.space, one.params)) for one in ranked(self.store)[:best]]
        plan_fresh(self.store, settings, fresh_seeds(self.settings, seeds))

    def confirm(
        self,
        best: int = 5,
        seeds: int = 3,
        verbose: bool = True,
        log: Log | ShardedLog | pd.DataFrame | None = None,
        schema: Schema | None = None,
    ) -> Report:
        """Run the best settings with fresh seeds, which have chosen nothing, and report on these alone.

        Args:
            best, seeds: see `plan_fresh`.
            verbose: print a line for each run.
            log: of the study, where it was not made in this process.
            schema: of a log that is a DataFrame.

        Returns:
            `Report`.

        Raises:
            ValueError: no finished trial, or a log that is not known here.
        """
        self.plan_fresh(best, seeds)
        work(self.store, self._ready(log, schema), self.store.confirmed, verbose)
        return self.report()

    def join(self, log: Log | ShardedLog | pd.DataFrame | None = None, verbose: bool = True, schema: Schema | None = None) -> int:
        """Work on the study in this process until no trial is left, next to other workers; returns how many trials this one ran.

        Args:
            log: of the study, where it was made in Python; None: the study's source is opened.
            verbose: print a line for each trial.
            schema: of a log that is a DataFrame.

        Raises:
            ValueError: the log is not known here.
        """
        ran = work(self.store, self._ready(log, schema), verbose=verbose)
        if self.store.has(self.store.confirmed):
            ran += work(self.store, self._ready(log, schema), self.store.confirmed, verbose)
        return ran

    def report(self) -> Report:
        """What was found, and how sure that is; see `Report`."""
        return report_of(self.store)

    def _ready(self, log: Log | ShardedLog | pd.DataFrame | None, schema: Schema | None) -> Objective:
        if self._objective is None:
            self._objective = objective_of(self.store, log, schema)
        return self._objective


def objective_of(store: Store, log: Log | ShardedLog | pd.DataFrame | None = None, schema: Schema | None = None) -> Objective:
    """The objective of a study of a ranker, with its log opened.

    Raises:
        ValueError: the study is of a user's own model, or its log was given in Python and is not given here.
    """
    settings = store.settings
    if not settings.model:
        raise ValueError("a study of a model of your own runs where `tune_model` was called, which has its functions")
    if log is None:
        if settings.data is None:
            raise ValueError("`log` must be given: the study was made in Python, with a log that is not stored with it")
        log = opened_log(settings.data)
    return ranker_objective(with_its_counts(log_or_shards(log, schema), settings), settings)


def make(
    log: Log | ShardedLog, model: Any, out: str | Path, settings: Mapping[str, Any], storage: str | None = None, name: str | None = None
) -> tuple[Store, Objective]:
    """Check a study of a ranker and make it, with its planned trials; `settings` are fields of `Settings`."""
    model = model_name(model)
    given = {**settings, "space": default_space(model) if settings.get("space") is None else read_space(settings["space"])}
    if settings.get("space") is None:  # what is fixed is not varied
        fixed = settings.get("options") or {}
        given["space"] = {key: one for key, one in given["space"].items() if key not in fixed}
    made = with_metric(Settings(model=model, **given))
    log = check_ranker(log, made)
    store = create(out, made, storage, name)
    plan(store, made.trials)
    return store, ranker_objective(log, made)


def tune(
    log: Log | ShardedLog | pd.DataFrame,
    model: Any = "cadet",
    out: str | Path | None = None,
    space: Any = None,
    *objects: Any,
    trials: int = 40,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    storage: str | None = None,
    name: str | None = None,
    verbose: bool = True,
    **search: Any,
) -> Study:
    """Find options of a ranker: train it with many settings, judged on held-out training rows.

    Each trial is a training, as `train` makes it, on the training rows but the last ones, and is judged on these. Rows of other splits are
    not read, so that figures on them stay honest. A trial that fails ends no study. Further workers, `Study.join` or
    `keras-ranking tune --join`, share the trials; one that dies is replaced from the trial's checkpoint.

    The value of the best trial flatters itself: of many runs the luckiest was taken. `Study.confirm` says by how much.

    Args:
        log: as in `train`, also in shards; with a DataFrame, `schema=` says what its columns are.
        model: 'cadet', 'lirank', 'amortized', 'ligr' or 'feedsr', or the function that builds it.
        out: folder of the study, without one so far; None: a temporary folder.
        space: option -> `Float`, `Int`, `Choice` or a list of values; or the path of a JSON file. Options are those of `train`. None:
            `default_space`, without what `options` fix.
        *objects: a `Search`.
        trials: number of settings.
        options: of `train`, for all trials.
        seed: of the search, and of each training.
        storage: URL of a database for workers on several machines, such as 'postgresql://...'; None: SQLite in the folder.
        name: of the study in the database; None: that of the folder.
        verbose: print a line for each trial.
        **search: fields of `Search`, one by one; and `schema`, of a DataFrame.

    Returns:
        `Study`.

    Raises:
        TypeError, ValueError: a space that does not fit the options, naming the option; before the first trial.
        ModuleNotFoundError: Optuna is not installed: the extra `tune`.
        FileExistsError: `out` has a study.

    Example:
        >>> log = kr.data.simulate(members=20, days=3, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1, "epochs": 1}
        >>> space = {"learning_rate": kr.tuning.Float(1e-3, 1e-2, log=True)}
        >>> study = kr.tuning.tune(log, "lirank", None, space, trials=1, options=options, sampler="random", verbose=False)
        >>> sorted(study.best()["options"])
        ['learning_rate']
    """
    schema = search.pop("schema", None)
    known = log_or_shards(log, schema, verbose)
    chosen = gather(tune, (Search,), objects, search)[0]
    settings = {"search": chosen, "space": space, "trials": trials, "seed": seed, "options": dict(options or {})}
    store, objective = make(known, model, out or Path(tempfile.mkdtemp()) / "study", settings, storage, name)
    study = Study._of(store, objective)
    work(store, objective, verbose=verbose)
    return study


def tune_model(
    build: Callable[[Mapping[str, Any]], Any],
    fit: Callable[..., Any],
    out: str | Path | None = None,
    space: Any = None,
    *objects: Any,
    trials: int = 40,
    direction: str = "minimize",
    seed: int = 0,
    storage: str | None = None,
    name: str | None = None,
    verbose: bool = True,
    **search: Any,
) -> Study:
    """Find settings of any Keras model.

    Args:
        build: build(options) makes a compiled model.
        fit: fit(model, callbacks=...) trains it and passes `callbacks` to `model.fit`; it may also take `options`, and `initial_epoch`,
            with which a trial whose worker died is taken up after its last epoch. What it returns is the trial's value where it is a
            number; otherwise that is the last value of `metric` in the logs.
        out, space, trials, seed, storage, name, verbose: as `tune`; names of the space are yours.
        *objects, **search: as `tune`; `metric` is 'val_loss' by default.
        direction: 'minimize' or 'maximize' `metric`.

    Returns:
        `Study`.

    Raises:
        TypeError, ValueError: as `tune`. What `build` and `fit` raise makes a failed trial.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(64, 3))
        >>> def build(options):
        ...     model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(options["units"], "relu"), keras.layers.Dense(1)])
        ...     model.compile(keras.optimizers.Adam(options["rate"]), "mse")
        ...     return model
        >>> def fit(model, callbacks, initial_epoch):
        ...     y = x.sum(axis=1)
        ...     model.fit(x, y, validation_split=0.5, epochs=2, initial_epoch=initial_epoch, callbacks=callbacks, verbose=0)
        >>> space = {"units": [4, 8], "rate": kr.tuning.Float(1e-3, 1e-1, log=True)}
        >>> study = kr.tuning.tune_model(build, fit, space=space, trials=2, verbose=False)
        >>> len(study.trials)
        2
    """
    for argument, value in (("build", build), ("fit", fit)):
        if not callable(value):
            raise TypeError(f"`{argument}` must be a function. Received: {type(value).__name__}")
    given = search if objects else {"metric": "val_loss", **search}
    chosen = gather(tune_model, (Search,), objects, given)[0]
    settings = Settings("", chosen, read_space(space), trials, seed, direction=direction)
    store = create(out or Path(tempfile.mkdtemp()) / "study", settings, storage, name)
    plan(store, trials)
    objective = own_objective(build, fit, settings)
    study = Study._of(store, objective)
    work(store, objective, verbose=verbose)
    return study
