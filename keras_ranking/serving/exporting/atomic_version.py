"""Atomic creation of a version: written in a hidden staging directory of the same folder, synced, renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from keras_ranking.serving.exporting import server_configs
from keras_ranking.serving.exporting.options import Options
from keras_ranking.serving.protocol.model_folder import version_folders

_PREFIX = ".export-"
_LOCK = "lock"


@contextlib.contextmanager
def staging_directory(folder: Path) -> Iterator[Path]:
    """A locked, hidden directory in `folder`, removed at the end, together with those of dead processes."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    try:
        with open(work / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the staging directories of killed exports: those without a held lock."""
    for leftover in folder.glob(f"{_PREFIX}*"):
        try:
            with open(leftover / _LOCK, "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
        except BlockingIOError:
            continue  # another export is running
        except OSError:
            shutil.rmtree(leftover, ignore_errors=True)


def sync(tree: Path) -> None:
    """Write everything under `tree` to the disk, so that a power failure after the rename loses nothing."""
    for directory, _, files in os.walk(tree):
        for path in [os.path.join(directory, name) for name in files] + [directory]:
            _fsync(path)


def _fsync(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(target: Path, folder: Path, work: Path, options: Options) -> Path:
    """Rename the version to the next free number, then install the config files. Concurrent exports get different numbers."""
    while True:
        number = max(version_folders(folder), default=0) + 1
        version = folder / str(number)
        # Written before the rename: the steps after it need no more space on the disk.
        files = server_configs.texts(folder, number, options.server_flags, options.allowed_batch_sizes, options.server_batching)
        staged = server_configs.stage(work, files)
        (folder / server_configs.CONFIG_FOLDER).mkdir(exist_ok=True)
        try:
            os.rename(target, version)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue
            raise
        server_configs.install(staged, folder)
        _fsync(folder)
        return version
