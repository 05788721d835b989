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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.data import Sequences
from keras_ranking.data.member_values import HeldOnce
from keras_ranking.ops.replicas import whole_array
from keras_ranking.ops.tables import rows_without_spare

FILE = "checkpoint.npz"
_BEST = "best/"


@dataclass(frozen=True)
class Checkpoint:
    """Content of `checkpoint.npz`.

    Attributes:
        about: model, options, log, progress and whether the training is finished; as JSON in the file.
        arrays: variables of the model and of its optimiser, by "model/N" and "optimizer/N"; in the middle of a training that keeps the
            best epoch, also those after that epoch, by "best/model/N" and "best/optimizer/N"; of one with a moving average of the weights,
        also this, by "average/N".

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


def arrays_of(model: Any) -> dict[str, np.ndarray]:
    """A copy of the current state of a compiled model and its optimiser, by "model/N" and "optimizer/N".

    It is the same whatever the devices: without spare rows of tables. Of tables that are shared out over processes the parts are gathered,
    so that all processes must call this.
    """
    rows = _rows_of_tables(model)
    arrays = {name: np.array(_cut(whole_array(variable.value), rows.get(name))) for name, variable in _named(model).items()}
    # numpy's files have no bfloat16; float32 represents it exactly.
    return {name: array.astype(np.float32) if array.dtype.name == "bfloat16" else array for name, array in arrays.items()}


def assign_arrays(arrays: Mapping[str, np.ndarray], model: Any) -> None:
    """Set a compiled model and its optimiser to a state of `arrays_of`."""
    rows = _rows_of_tables(model)
    for name, variable in _named(model).items():
        variable.assign(_filled_up(arrays[name], variable, rows.get(name)))


def set_weights(arrays: Sequence[np.ndarray], model: Any) -> None:
    """As `set_weights` of a model, of arrays without spare rows of tables."""
    for array, variable in zip(arrays, model.weights, strict=True):
        set_weight(array, variable)


def set_weight(array: np.ndarray, variable: Any) -> None:
    """Assign an array without spare rows of a table."""
    variable.assign(_filled_up(array, variable, rows_without_spare(variable)))


def _rows_of_tables(model: Any) -> dict[str, int]:
    """Number of rows without spare ones, by name, of tables that have such and of the optimiser's variables of their shape."""
    tables = {v.path.replace("/", "_"): (int(v.shape[0]), rows) for v in model.variables if (rows := rows_without_spare(v)) is not None}
    found = {}
    for name, variable in _named(model).items() if tables else ():
        for path, (whole, rows) in tables.items():
            if path in variable.path.replace("/", "_") and len(variable.shape) and int(variable.shape[0]) == whole:
                found[name] = rows
    return found


def _cut(array: np.ndarray, rows: int | None) -> np.ndarray:
    return array if rows is None else array[:rows]


def _filled_up(array: Any, variable: Any, rows: int | None) -> Any:
    """An array as long as the variable: spare rows have the variable's numbers."""
    return array if rows is None else np.concatenate([array, whole_array(variable.value)[rows:].astype(array.dtype)])


def checkpoint_writer(
    model: Any,
    about: Mapping[str, Any],
    best: Mapping[str, np.ndarray] | None = None,
    average: Mapping[str, np.ndarray] | None = None,
) -> Callable[[Path], None]:
    """A function that writes the current state of a compiled model and its optimiser to a file, that of the best epoch, and averages."""
    arrays = arrays_of(model) | {f"{_BEST}{name}": array for name, array in (best or {}).items()} | dict(average or {})
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


def best_of(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The state after the best epoch so far; {}: none."""
    return {name.removeprefix(_BEST): array for name, array in checkpoint.arrays.items() if name.startswith(_BEST)}


def restore(checkpoint: Checkpoint, model: Any, weights: bool = True, rates: bool = True) -> None:
    """Set a compiled model, or its optimiser alone, to the state of a checkpoint.

    Args:
        checkpoint, model: the state, and what it is set in.
        weights: False: the optimiser alone.
        rates: False: learning rates that are variables stay as they are.

    Raises:
        ValueError: variables with other names or shapes.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    rows = _rows_of_tables(model)
    for name, variable in _named(model).items():
        if not weights and name.startswith("model/"):
            continue
        array = checkpoint.arrays.get(name)
        shape = tuple(variable.shape)  # TensorFlow's own is true without axes
        shape = (rows.get(name, shape[0]), *shape[1:]) if shape else ()
        if array is None or array.shape != shape:
            found = "none" if array is None else f"shape {array.shape}"
            wanted = f"'{name}' ({variable.path}) must have shape {shape}"
            raise ValueError(f"the checkpoint does not fit the model: {wanted}. Received: {found}")
        if rates or not variable.path.endswith("learning_rate"):
            variable.assign(_filled_up(array, variable, rows.get(name)))


def fingerprint(sequences: Sequences, weights: Mapping[str, np.ndarray], delays: np.ndarray | None) -> str:
    """A digest of streams, targets, weights and delays, to compare the data of two runs."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(sequences.schema.model_dump_json().encode())
    named = {"time": sequences.time, "request": sequences.request, "position": sequences.position, "target": sequences.target}
    named |= {"offsets": sequences.offsets} | ({} if sequences.session is None else {"session": sequences.session})
    for name, column in sequences.columns.items():
        named |= {name: column.values, f"run {name}": column.run} if isinstance(column, HeldOnce) else {name: column}
    named |= {f"label {task}": label for task, label in sequences.labels.items()}
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
