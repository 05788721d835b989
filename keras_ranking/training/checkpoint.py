"""The state of a training run in one file, written atomically, so that an interrupted run can be resumed.

A step depends on: weights and other variables, with the states of seed generators; the optimiser's variables, with its step, which
gives the learning rate; the epoch and the batch, which with the seed give the order of the data, the shuffle and the delays. On
torch, Keras draws dropout from torch's own generator: there, the seed of each step is computed from the number of the step.
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
    """Content of `checkpoint.npz`.

    Attributes:
        about: model, options, log, progress and whether the training is finished; as JSON in the file.
        arrays: variables of the model and of its optimiser, by "model/N" and "optimizer/N".

    Example:
        >>> checkpoint = kr.training.Checkpoint({"model": "lirank", "finished": True}, {"model/0": np.zeros(3)})
        >>> checkpoint.about["finished"]
        True
    """

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_whole(files: Mapping[Path, Callable[[Path], Any]]) -> None:
    """Write each file under a temporary name in its folder; when all are written, rename them to their names.

    A reader never finds half of a file, and an interruption while writing leaves all files unchanged. The files are renamed one after
    the other, in the order given: only during this step are some new and others old.
    """
    # The temporary name ends like the name: Keras requires the ending .keras.
    temporary = {path: path.with_name(f".{os.getpid()}.{path.name}") for path in files}
    try:
        for path, write in files.items():
            write(temporary[path])
            with open(temporary[path], "rb") as handle:
                os.fsync(handle.fileno())
        for path, written in temporary.items():
            os.replace(written, path)
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def _named(model: Any) -> dict[str, Any]:
    # By number: names in paths are numbered over all models built in a process.
    named = {f"model/{number}": variable for number, variable in enumerate(model.variables)}
    return named | {f"optimizer/{number}": variable for number, variable in enumerate(model.optimizer.variables)}


def checkpoint_writer(model: Any, about: Mapping[str, Any]) -> Callable[[Path], None]:
    """A function that writes the current state of a compiled model and its optimiser to a file."""
    arrays = {name: np.asarray(keras.ops.convert_to_numpy(variable.value)) for name, variable in _named(model).items()}
    # numpy's files have no bfloat16; float32 represents it exactly.
    arrays = {name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()}
    text = json.dumps(dict(about))

    def write(path: Path) -> None:
        with open(path, "wb") as handle:
            named: dict[str, Any] = {"about": np.frombuffer(text.encode(), dtype=np.uint8), **arrays}
            np.savez(handle, **named)

    return write


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read the checkpoint of a training folder.

    Args:
        folder: written by `train` or `warm_start`.

    Returns:
        `Checkpoint`.

    Raises:
        FileNotFoundError: no checkpoint in the folder.
        ValueError: a file that is not a checkpoint.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> options = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}
        >>> model, history = kr.training.train(log, "lirank", "runs/lirank", epochs=1, options=options, verbose=False)
        >>> checkpoint = kr.training.read_checkpoint("runs/lirank")
        >>> checkpoint.about["model"], checkpoint.about["finished"]
        ('lirank', True)
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"no {FILE} in '{folder}': `train` writes it at the end, and earlier with `checkpoint_every`.")
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes().decode())
            arrays = {name: stored[name] for name in stored.files if name != "about"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"'{path}' is not a checkpoint of this package: {error}") from error
    return Checkpoint(about, arrays)


def restore(checkpoint: Checkpoint, model: Any, weights: bool = True) -> None:
    """Set a compiled model, or its optimiser alone, to the state of a checkpoint.

    Raises:
        ValueError: variables with other names or shapes.
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
    """A digest of streams, targets, weights and delays, to compare the data of two runs."""
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
    """Raise an error if options or data differ from those of the checkpoint.

    Raises:
        ValueError: naming every difference.
    """
    before, after = _flat(made_with), _flat(json.loads(json.dumps(dict(now))))
    names = sorted(before.keys() | after.keys())
    differ = [
        f"{name}: {before.get(name)} in the checkpoint, {after.get(name)} here" for name in names if before.get(name) != after.get(name)
    ]
    if differ:
        raise ValueError(
            f"the checkpoint in '{path}' was made with other options or other data ({'; '.join(differ)}). Resume with the same."
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


class Progress(keras.callbacks.Callback):
    """Counts steps, writes a checkpoint at intervals, and on torch sets the seed of each step.

    Args:
        path: file to write; None: none.
        every: steps between checkpoints; None: at the ends of epochs only.
        about: further entries of the checkpoint.
        seed: of the run.
        batches: number of batches in an epoch.
        resumed: `state()` of the run to resume; None: a new run.
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
        """Progress of the run, for the checkpoint."""
        return {"epoch": self.epoch, "batch": self.batch, "step": self.step, "losses": self.means, "epochs": self.epochs}

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if keras.backend.backend() == "torch":
            keras.utils.set_random_seed((self.seed * 1_000_003 + self.step) % 2**32)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batch, self.step = self.batch + 1, self.step + 1
        # Not before the last step of an epoch: with one batch left, `fit` on JAX and torch would take the batch that it reads to build
        # the losses for a whole epoch.
        if self.every is not None and self.step % self.every == 0 and self.batch < self.batches - 1:
            self.means = self._whole(logs)
            self._write()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in self._whole(logs).items():
            self.epochs.setdefault(name, []).append(value)
        self.epoch, self.batch, self.begun, self.before, self.means = self.epoch + 1, 0, 0, {}, {}
        self._write()

    def _whole(self, logs: Any) -> dict[str, float]:
        """Means over the epoch so far; Keras has those since the run was resumed."""
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

    `fit` reads one or two batches before the first epoch, to learn shapes, and then calls on_epoch_end. So the data moves to its next
    epoch only after an epoch that was begun and read to its end. With one batch the two cases look the same (see `Progress`).
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
