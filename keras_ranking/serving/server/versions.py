"""The loaded versions of a model: the highest valid one and those with a label. A swap loses no request."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from keras_ranking.serving.checking.sample_requests import random_requests
from keras_ranking.serving.checking.saved_model import SavedModel
from keras_ranking.serving.protocol.errors import invalid, not_found
from keras_ranking.serving.protocol.model_folder import SIGNATURE, version_folders
from keras_ranking.serving.server.batching import Batcher
from keras_ranking.serving.server.limits import Limits
from keras_ranking.serving.server.warmup_replay import run_warmup

log = logging.getLogger("keras_ranking.serving")

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass
class Servable:
    """A loaded version. `leases` is the number of calls that use it; a retired version is closed when it is 0."""

    version: int
    model: SavedModel
    batcher: Batcher
    leases: int = 0
    idle: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Status:
    """State of a version as named in `ModelService`; `message` = the error of a version that is not served."""

    version: int
    state: str
    message: str = ""


class Versions:
    """Loads and retires versions of one model.

    Args:
        folder: holds integer-named version directories.
        limits: for each version's queue.
        labels: label -> version, kept loaded in addition to the highest.
        poll_seconds: seconds between two looks for new versions.
        threads: TensorFlow threads per version; 0 = TensorFlow's choice.
        on_batch: called with the rows of every run.

    Raises:
        FileNotFoundError: no folder, or no version in it.
        ValueError: a label for a missing version.
        RuntimeError: no version that can be loaded.
    """

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        labels: Mapping[str, int] | None = None,
        poll_seconds: float = 1.0,
        threads: int = 0,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.folder = folder
        self.labels = dict(labels or {})
        self._limits, self._threads, self._on_batch = limits, threads, on_batch
        self._lock = threading.Lock()
        self._loaded: dict[int, Servable] = {}
        self._broken: dict[int, tuple[Fingerprint, str]] = {}
        self._states: dict[int, Status] = {}
        self._latest = 0
        self._stop = threading.Event()
        self._first_load()
        self._poller = threading.Thread(target=self._poll, args=(poll_seconds,), name="keras_ranking-versions", daemon=True)
        self._poller.start()

    @property
    def latest(self) -> int:
        """The version that scores calls without a version."""
        return self._latest

    @property
    def loaded(self) -> list[int]:
        """The loaded versions, ascending."""
        with self._lock:
            return sorted(self._loaded)

    @property
    def waiting(self) -> int:
        """Number of calls in all queues."""
        with self._lock:
            return sum(len(servable.batcher) for servable in self._loaded.values())

    @contextlib.contextmanager
    def lease(self, version: int | None = None, label: str | None = None) -> Iterator[Servable]:
        """Hold a version: it stays loaded until the end of the block, also if it is replaced in the meantime.

        Raises:
            ServingError: NOT_FOUND for a version, INVALID_ARGUMENT for a label, as in TensorFlow Serving.
        """
        with self._lock:
            if label is not None and label not in self.labels:
                raise invalid(f'label "{label}" not found. There are: {sorted(self.labels)}')
            wanted = self.labels[label] if label is not None else version if version is not None else self._latest
            servable = self._loaded.get(wanted)
            if servable is None:
                raise not_found(f"version {wanted} is not loaded. There are: {sorted(self._loaded)}")
            servable.leases += 1
            servable.idle.clear()
        try:
            yield servable
        finally:
            with self._lock:
                servable.leases -= 1
                if servable.leases == 0:
                    servable.idle.set()

    def statuses(self, version: int | None = None) -> list[Status]:
        """State of every version since the start, highest first.

        Raises:
            ServingError: NOT_FOUND.
        """
        with self._lock:
            states = [self._states[number] for number in sorted(self._states, reverse=True) if version in (None, number)]
        if not states:
            raise not_found(f"version {version} not found")
        return states

    def close(self) -> None:
        """Stop polling, finish every call, unload everything."""
        self._stop.set()
        self._poller.join()
        for version in list(self._loaded):
            self._retire(version)

    def refresh(self) -> None:
        """Load new versions, and retire those that are replaced or removed."""
        folders = version_folders(self.folder)
        if not folders:
            log.error("no versions under %s; version %d continues", self.folder, self._latest)
            return
        for number in [gone for gone in self._broken if gone not in folders]:
            self._broken.pop(number)
            self._set(number, "END")
        highest = next((number for number in sorted(folders, reverse=True) if self._ensure_loaded(number, folders[number])), None)
        wanted = {number for number in self.labels.values() if number in folders and self._ensure_loaded(number, folders[number])}
        if highest is not None:
            wanted.add(highest)
            with self._lock:
                self._latest = highest
        elif self._loaded:
            wanted.add(self._latest)
        for number in [number for number in self._loaded if number not in wanted]:
            self._retire(number)

    def _first_load(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"no such model folder: '{self.folder}'")
        folders = version_folders(self.folder)
        if not folders:
            raise FileNotFoundError(
                f"no versions in '{self.folder}': a served model has directories named 1, 2, ..., as `export` writes them"
            )
        absent = {label: number for label, number in self.labels.items() if number not in folders}
        if absent:
            raise ValueError(f"`labels` must name versions in '{self.folder}', which has {sorted(folders)}. Received: {absent}")
        self.refresh()
        if not self._loaded:
            number, (_, message) = max(self._broken.items())
            raise RuntimeError(f"no version in '{self.folder}' can be served. Version {number}: {message}")

    def _poll(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                self.refresh()
            except Exception:
                log.exception("looking for new versions under %s failed; version %d continues", self.folder, self._latest)

    def _ensure_loaded(self, number: int, folder: Path) -> bool:
        """Load a version unless it is loaded; whether it could be loaded. A broken one is tried again only if its files change."""
        if number in self._loaded:
            return True
        fingerprint = _fingerprint(folder)
        if number in self._broken and self._broken[number][0] == fingerprint:
            return False
        self._set(number, "LOADING")
        try:
            model = SavedModel(folder, self._threads)
            try:
                _probe(model)
                run_warmup(model, folder)
            except BaseException:
                model.close()
                raise
        except Exception as error:
            message = " ".join(str(error).split())[:500]
            self._broken[number] = (fingerprint, message)
            self._set(number, "END", message)
            log.error("version %d of %s is not served: %s", number, self.folder, message)
            return False
        self._broken.pop(number, None)
        servable = Servable(number, model, Batcher(model, self._limits, observe=self._on_batch))
        servable.idle.set()
        with self._lock:
            self._loaded[number] = servable
        self._set(number, "AVAILABLE")
        log.info("version %d of %s is served", number, self.folder)
        return True

    def _retire(self, number: int) -> None:
        with self._lock:
            servable = self._loaded.pop(number)
        self._set(number, "UNLOADING")
        servable.idle.wait()
        servable.batcher.close()
        servable.model.close()
        self._set(number, "END")
        log.info("version %d of %s is unloaded", number, self.folder)

    def _set(self, number: int, state: str, message: str = "") -> None:
        with self._lock:
            self._states[number] = Status(number, state, message)


def _fingerprint(folder: Path) -> Fingerprint:
    entries = []
    for path in sorted(folder.rglob("*")):
        stat = path.stat()
        entries.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))
    return tuple(entries)


def _probe(model: SavedModel) -> None:
    """Run an export of this package once before it takes traffic: a graph may load and then fail on every call."""
    if SIGNATURE not in model.signatures:
        raise ValueError(f"it has no signature '{SIGNATURE}'. It has: {sorted(model.signatures)}")
    if model.card is None:
        return
    inputs = random_requests(model.card.inputs, history=(2, 0), candidates=(3, 1), hostile=False)
    signature = model.signature(SIGNATURE)
    signature.check(inputs)
    for name, values in model.run(SIGNATURE, inputs).items():
        if not np.isfinite(values).all():
            raise ValueError(f"its output '{name}' is not finite")
