"""The state of a training run in one file, written whole or not at all, so that a run can go on where it was stopped.

What a step depends on: weights and other variables, states of seed generators among them; the optimiser's variables, its step
among them, which gives the place in the schedule; the epoch and the batch, which with the seed give the order of the data, the
shuffle and the delays. On torch, Keras draws dropout from torch's own generator: there, the seed of each step is set from the step.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking.data import Sequences

FILE = "checkpoint.npz"


@dataclass(frozen=True)
class Checkpoint:
    """What `checkpoint.npz` holds: `about` for a person and for checks, the arrays for the model and its optimiser."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_whole(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Call each file's function on a file beside it; when all are written, put them in their places.

    A reader never finds half of a file, and what stops the writing leaves all files as they were. They are put in place one after the
    other, in the order given: only in between, for as long as that takes, are some new and others old.
    """
    # The name of each stays the last part: Keras wants the ending .keras.
    beside = {path: path.with_name(f".{os.getpid()}.{path.name}") for path in files}
    try:
        for path, write in files.items():
            write(beside[path])
            with open(beside[path], "rb") as handle:
                os.fsync(handle.fileno())
        for path, written in beside.items():
            os.replace(written, path)
    finally:
        for written in beside.values():
            written.unlink(missing_ok=True)


def _named(model: Any) -> dict[str, Any]:
    # By number: paths hold names that count up with every model built in a process.
    named = {f"model/{number}": variable for number, variable in enumerate(model.variables)}
    return named | {f"optimizer/{number}": variable for number, variable in enumerate(model.optimizer.variables)}


def checkpoint_writer(model: Any, about: Mapping[str, Any]) -> Callable[[Path], None]:
    """What writes the state of a compiled model and its optimiser, as it is now, to a file."""
    arrays = {name: np.asarray(keras.ops.convert_to_numpy(variable.value)) for name, variable in _named(model).items()}
    # numpy's files do not know bfloat16, which float32 holds exactly.
    arrays = {name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()}
    text = json.dumps(dict(about))

    def write(path: Path) -> None:
        with open(path, "wb") as handle:
            named: dict[str, Any] = {"about": np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
            np.savez(handle, **named)

    return write


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the checkpoint of a training folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not one.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE} in '{folder}': `train` writes one, unless it was stopped before its first checkpoint.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes().decode())
            arrays = {name: stored[name] for name in stored.files if name != "about"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is not a checkpoint of this package: {error}") from error
    return Checkpoint(about, arrays)


def restore(checkpoint: Checkpoint, model: Any, weights: bool = True) -> None:
    """Give a compiled model the state of a checkpoint, or its optimiser alone.

    Raises:
        ValueError: variables of other names or shapes.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    for name, variable in _named(model).items():
        if not weights and name.startswith("model/"):
            continue
        array = checkpoint.arrays.get(name)
        if array is None or array.shape != tuple(variable.shape):
            found = "none" if array is None else f"shape {array.shape}"
            wanted = f"'{name}' ({variable.path}) must have shape {tuple(variable.shape)}"
            raise ValueError(f"the checkpoint does not fit the model: {wanted}. Received: {found}")
        variable.assign(array)


def fingerprint(sequences: Sequences, weights: Mapping[str, np.ndarray], delays: np.ndarray | None) -> str:
    """A digest of streams, of what is to be learned from and of its weights and delays: equal for equal data alone, in practice."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(sequences.schema.model_dump_json().encode())
    named = {"time": sequences.time, "request": sequences.request, "position": sequences.position, "target": sequences.target}
    named |= {"offsets": sequences.offsets} | ({} if sequences.session is None else {"session": sequences.session})
    named |= sequences.columns | {f"label {task}": label for task, label in sequences.labels.items()}
    named |= {f"weight {task}": weight for task, weight in weights.items()} | ({} if delays is None else {"delays": delays})
    for name, array in sorted(named.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_same(made_with: Mapping[str, Any], now: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to go on with other options or other data.

    Raises:
        ValueError: names every difference.
    """
    before, after = _flat(made_with), _flat(json.loads(json.dumps(dict(now))))
    names = sorted(before.keys() | after.keys())
    differ = [f"{name}: {before.get(name)} then, {after.get(name)} now" for name in names if before.get(name) != after.get(name)]
    if differ:
        raise ValueError(
            f"the checkpoint in '{path}' was made with other options or other data ({'; '.join(differ)}). Go on with the same."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


class Progress(keras.callbacks.Callback):
    """Counts what was done, writes it with the state every so many steps, and sets torch's seed for each.

    Args:
        path: file to write; None: only count.
        every: steps between checkpoints; None: at the ends of epochs only.
        about: what else the checkpoint says.
        seed: of the run.
        batches: an epoch's.
        resumed: `state()` of the run that is gone on with; None: from the beginning.
    """

    def __init__(
        self,
        path: Path | None,
        every: int | None,
        about: Mapping[str, Any],
        seed: int,
        batches: int,
        resumed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.path, self.every, self.about, self.seed, self.batches = path, every, dict(about), seed, batches
        state = resumed or {"epoch": 0, "batch": 0, "step": 0, "losses": {}, "epochs": {}}
        self.epoch, self.batch, self.step = state["epoch"], state["batch"], state["step"]
        self.before = dict(state["losses"])  # means over the first `begun` batches of the epoch
        self.begun = self.batch
        self.epochs = {name: list(values) for name, values in state["epochs"].items()}
        self.means: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """Where the run stands."""
        return {"epoch": self.epoch, "batch": self.batch, "step": self.step, "losses": self.means, "epochs": self.epochs}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if keras.backend.backend() == "torch":
            keras.utils.set_random_seed((self.seed * 1_000_003 + self.step) % 2**32)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batch, self.step = self.batch + 1, self.step + 1
        # One step before the end of an epoch, the end is near: on JAX and torch, `fit` takes a single batch that it reads to build
        # the losses for an epoch that has passed.
        if self.every is not None and self.step % self.every == 0 and self.batch < self.batches - 1:
            self.means = self._whole(logs)
            self._write()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in self._whole(logs).items():
            self.epochs.setdefault(name, []).append(value)
        self.epoch, self.batch, self.begun, self.before, self.means = self.epoch + 1, 0, 0, {}, {}
        self._write()

    def _whole(self, logs: Any) -> dict[str, float]:
        """Means over the whole epoch so far, of which Keras knows the part since the run was resumed."""
        now = {name: float(value) for name, value in (logs or {}).items()}
        if not self.begun:
            return now
        share = self.begun / max(self.batch, 1)
        return {name: share * self.before[name] + (1 - share) * value for name, value in now.items() if name in self.before}

    def _write(self) -> None:
        if self.path is not None and self.every is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write = checkpoint_writer(self.model, {**self.about, "finished": False, "progress": self.state()})
            write_whole({self.path: write})


class Rest(keras.utils.PyDataset):
    """The batches of an epoch from `first` on.

    `fit` reads one or two batches before an epoch begins, to learn shapes, and then ends an epoch that was none. So the data goes
    on to its next epoch only when one that had begun was read whole; which one batch alone could not tell (see `Progress`).
    """

    def __init__(self, dataset: Any, first: int) -> None:
        super().__init__()
        self.dataset, self.first = dataset, first
        self.begun, self.read = False, 0

    def __len__(self) -> int:
        return len(self.dataset) - self.first

    def __getitem__(self, batch: int) -> Any:
        self.read += 1
        return self.dataset[self.first + batch]

    def on_epoch_begin(self) -> None:
        self.begun, self.read = True, 0
        self.dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        if self.begun and self.read >= len(self):
            self.dataset.next_epoch()
        self.begun = False
