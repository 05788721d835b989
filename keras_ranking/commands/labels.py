"""Labels of a served model: `promote` and `rollback`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from keras_ranking.commands.common import client_of

_POLL_SECONDS = 0.5


def promote(args: argparse.Namespace) -> int:
    """Move a label to a version."""
    from keras_ranking.serving.exporting.server_configs import CANARY, read_labels
    from keras_ranking.serving.protocol.model_folder import version_folders

    folder = Path(args.folder)
    found = version_folders(folder)
    version = args.version if args.version is not None else read_labels(folder).now.get(CANARY, max(found, default=0))
    return _move(args, folder, version, found)


def rollback(args: argparse.Namespace) -> int:
    """Move a label back to the version that it had before its last move."""
    from keras_ranking.serving.exporting.server_configs import read_labels
    from keras_ranking.serving.protocol.model_folder import version_folders

    folder = Path(args.folder)
    version = read_labels(folder).before.get(args.label)
    if version is None:
        raise ValueError(f"no earlier version of the label '{args.label}' is known: name one, `keras-ranking promote {folder} --version N`")
    return _move(args, folder, version, version_folders(folder))


def _move(args: argparse.Namespace, folder: Path, version: int, found: dict[int, Path]) -> int:
    """Edit the model config, in the order that a running server accepts."""
    from keras_ranking.serving.exporting.server_configs import read_labels, write_models

    if not found:
        raise FileNotFoundError(f"no versions in '{folder}': a served model has directories named 1, 2, ..., as `export` writes them")
    if version not in found:
        raise ValueError(f"no version {version} in '{folder}'. There are: {sorted(found)}")
    labels = read_labels(folder)
    wanted = labels.moved(args.label, version)
    if args.server:
        with _Server(args, found[version]) as server:
            if not server.available(version):
                # A label at a version that is not loaded would make the server refuse the config and load nothing.
                write_models(folder, type(labels)(server.labels(list(labels.now)), labels.before))
            server.wait(f"version {version} to be AVAILABLE", lambda: server.available(version))
            write_models(folder, wanted)
            server.wait(f"the label '{args.label}' to be version {version}", lambda: server.labels([args.label]).get(args.label) == version)
    else:
        write_models(folder, wanted)
    before = labels.now.get(args.label)
    print(f"{args.label}: version {version}" + (f", was {before}" if before not in (None, version) else ""))
    unused = sorted(set(found) - set(wanted.now.values()) - {wanted.before.get(args.label)})
    if unused:
        print(f"without a label, but loaded by a server: {', '.join(map(str, unused))}; move their folders away to unload them")
    return 0


class _Server:
    """A running server, asked for versions and labels until a deadline."""

    def __init__(self, args: argparse.Namespace, version: Path) -> None:
        from keras_ranking.serving.protocol.model_folder import EXTRA, SCHEMA_FILE

        self._end = time.monotonic() + args.timeout
        self._seconds = args.timeout
        named = {**vars(args), "name": args.name or version.resolve().parent.name, "version": None, "label": None}
        self._client = client_of(argparse.Namespace(**named), version / EXTRA / SCHEMA_FILE, timeout=min(10.0, args.timeout))

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def available(self, version: int) -> bool:
        """Whether a version can be called.

        Raises:
            RuntimeError: a version that the server could not load.
        """
        state, message = self._client.versions().get(version, ("", ""))
        if state == "END" and message:
            raise RuntimeError(f"the server could not load version {version}: {message}")
        return bool(state == "AVAILABLE")

    def labels(self, names: list[str]) -> dict[str, int]:
        """Label -> version, of those that the server knows."""
        found = {name: self._client.version_of(name) for name in names}
        return {name: version for name, version in found.items() if version is not None}

    def wait(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for a condition.

        Raises:
            TimeoutError: after the given seconds.
        """
        if condition():
            return
        print(f"waiting for {what} ...", file=sys.stderr, flush=True)
        while not condition():
            if time.monotonic() > self._end:
                raise TimeoutError(f"waited {self._seconds:g} s for {what}. Does the server read this folder's models.config?")
            time.sleep(_POLL_SECONDS)
