"""Where a study is: a folder with `study.json` and the trials' checkpoints, and a database with what was tried and found."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keras_ranking.tuning.files import write_text
from keras_ranking.tuning.samplers import pruner_for, sampler_for
from keras_ranking.tuning.settings import Settings

FILE, DATABASE, TRIALS = "study.json", "study.db", "trials"
ENVIRONMENT = "KERAS_RANKING_STORAGE"
_DEFINITION = "definition"
GRACE = 6
"""Heartbeats without a sign of life after which a worker is taken for dead."""


def import_optuna() -> Any:
    """Optuna, which says little.

    Raises:
        ModuleNotFoundError: it is not installed, naming the extra.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tuning needs the package '{error.name}', which is not installed: pip install 'keras-ranking[tune]'", name=error.name
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Store:
    """A study's folder and database.

    Args:
        folder: of the study.
        settings: of the study.
        url: of the database.
        name: of the study in it.
    """

    def __init__(self, folder: Path, settings: Settings, url: str, name: str) -> None:
        self.folder, self.settings, self.url, self.name = folder, settings, url, name
        self.on_stale: Callable[[Any, Any], None] | None = None
        self._storage: Any = None

    @property
    def storage(self) -> Any:
        """The database, opened at the first use."""
        if self._storage is None:
            self._storage = _opened(self.url, self.settings.search.heartbeat, lambda study, trial: self._stale(study, trial))
        return self._storage

    def _stale(self, study: Any, trial: Any) -> None:
        if self.on_stale is not None:
            self.on_stale(study, trial)

    def study(self, name: str | None = None, number: int = 0) -> Any:
        """The study of this name, with the sampler for the trial of this number.

        Raises:
            KeyError: there is none.
        """
        optuna = import_optuna()
        search = self.settings.search
        sampler = sampler_for("random" if search.sampler == "grid" else search.sampler, self.settings.seed, number)
        return optuna.load_study(study_name=name or self.name, storage=self.storage, sampler=sampler, pruner=pruner_for(search.pruner))

    def made(self, name: str) -> Any:
        """The study of this name, made if there is none."""
        optuna = import_optuna()
        optuna.create_study(study_name=name, storage=self.storage, direction=self.settings.direction, load_if_exists=True)
        return self.study(name)

    def has(self, name: str) -> bool:
        """Whether there is a study of this name."""
        return name in import_optuna().get_all_study_names(self.storage)

    @property
    def confirmed(self) -> str:
        """Name of the study of fresh seeds."""
        return f"{self.name}, fresh seeds"

    def trial_folder(self, name: str, slot: int) -> Path:
        """Folder of a trial's checkpoints and files."""
        return self.folder / ("confirmed" if name == self.confirmed else TRIALS) / f"{slot:04d}"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Inside, no other worker that shares the folder takes a trial or ends a dead one's: SQLite would give one trial to two workers."""
        import fcntl

        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)


def _opened(url: str, heartbeat: int, on_stale: Any) -> Any:
    optuna = import_optuna()
    arguments: dict[str, Any] = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return optuna.storages.RDBStorage(
                url,
                engine_kwargs=arguments,
                heartbeat_interval=heartbeat,
                grace_period=GRACE * heartbeat,
                heartbeat_stale_trial_callback=on_stale,
            )
        except Exception as error:
            kind = type(error).__name__
            if kind not in ("ArgumentError", "OperationalError", "NoSuchModuleError", "ImportError"):
                raise
            text = "; ".join(str(error).split("\n")[:1])
            shown = f"{without_password(url)} ({text})"
            raise ValueError(f"`storage` must be the URL of a database that can be opened. Received: {shown}") from error


def without_password(url: str) -> str:
    """A URL for messages."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "a text that is no URL"


def create(folder: str | Path, settings: Settings, url: str | None = None, name: str | None = None) -> Store:
    """Make a study.

    Raises:
        FileExistsError: the folder has one.
        ValueError: a database that cannot be opened, or that has a study of the name.
    """
    optuna = import_optuna()
    folder = Path(folder)
    if any((folder / one).exists() for one in (FILE, DATABASE, TRIALS)):
        raise FileExistsError(f"`out` must be a folder without a study. Received: '{folder}', whose study more workers may join")
    name = name or folder.resolve().name
    given = url or os.environ.get(ENVIRONMENT)
    store = Store(folder, settings, given or _default(folder), name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        optuna.create_study(study_name=name, storage=store.storage, direction=settings.direction)
    except optuna.exceptions.DuplicatedStudyError:
        text = f"`name` must be that of no other study in the database. Received: name={name!r}"
        raise ValueError(text) from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        store.study().set_metric_names([settings.search.metric])
    store.study().set_user_attr(_DEFINITION, settings.as_json())
    _write(folder, settings, name, given)
    return store


def open_store(folder: str | Path, url: str | None = None, name: str | None = None) -> Store:
    """Open a study that was made.

    Raises:
        FileNotFoundError: no study in the folder, nor of its name in the database.
        ValueError: a database with a password, which is not stored, was not given.
    """
    import_optuna()
    folder = Path(folder)
    url = url or os.environ.get(ENVIRONMENT)
    path = folder / FILE
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["storage"] is None and url is None:
            raise ValueError(f"`storage` must be given, or {ENVIRONMENT} be set: the URL of the study in '{folder}' has a password")
        settings = Settings.from_json(stored["definition"])
        return Store(folder, settings, url or stored["storage"] or _default(folder), name or stored["name"])
    if url is None:
        raise FileNotFoundError(f"no study in '{folder}': `tune` makes one")
    name = name or folder.resolve().name
    found = _definition(url, name)
    store = Store(folder, Settings.from_json(found), url, name)
    _write(folder, store.settings, name, url)
    return store


def _definition(url: str, name: str) -> Any:
    optuna = import_optuna()
    try:
        return optuna.load_study(study_name=name, storage=_opened(url, 10, None)).user_attrs[_DEFINITION]
    except KeyError:
        raise FileNotFoundError(f"no study {name!r} in {without_password(url)}; `name` may be another one") from None


def _default(folder: Path) -> str:
    return f"sqlite:///{folder.resolve() / DATABASE}"


def _write(folder: Path, settings: Settings, name: str, url: str | None) -> None:
    from sqlalchemy.engine import make_url

    folder.mkdir(parents=True, exist_ok=True)
    # '' stands for the database in the folder, which may be moved with it; a URL with a password is not written.
    shown = "" if url is None else (None if make_url(url).password else url)
    text = json.dumps({"name": name, "storage": shown, "definition": settings.as_json()}, indent=2) + "\n"
    write_text(folder / FILE, text)
