"""A version appears whole or not at all: written in a hidden folder beside its place, synced, renamed."""

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
    """A locked, hidden directory in `folder`; removed at the end, together with those whose owners are gone."""
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
    """Remove the leftovers of killed exports: hidden directories whose lock nobody holds."""
    for leftover in folder.glob(f"{_PREFIX}*"):
        try:
            with open(leftover / _LOCK, "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
        except BlockingIOError:
            continue  # somebody exports at this moment
        except OSError:
            shutil.rmtree(leftover, ignore_errors=True)


def sync(tree: Path) -> None:
    """Everything under `tree` on the disk itself, so that a power cut after the rename cannot hollow it out."""
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
    """Rename to the next free number, then the config files into place; two exports at once get two numbers."""
    while True:
        number = max(version_folders(folder), default=0) + 1
        version = folder / str(number)
        # Written beforehand: what follows the rename takes no more room on the disk.
        staged = server_configs.stage(work, server_configs.texts(folder, number, options.server_flags, options.allowed_batch_sizes))
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
