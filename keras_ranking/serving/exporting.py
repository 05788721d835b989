"""`export`: a Keras model becomes the next version of a served model, all of it or nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_ranking.schema import Schema
from keras_ranking.serving.layout import version_folders

_PREFIX = ".export-"
_LOCK = "lock"
_MODEL = "model"


class ExportError(RuntimeError):
    """The model was not exported; nothing was left under the folder."""


def export(
    model: Any,
    folder: str | Path,
    *,
    schema: Schema | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    quantize: str | None = None,
    imports: Sequence[str] = (),
) -> Path:
    """Write a model as the next version under `folder`, a plain TensorFlow graph that any TensorFlow Serving runs.

    The version is written into a hidden folder beside its place, checked, synced to disk and then renamed: whoever looks
    sees a whole version or none, also when this process is killed. What killed exports left is removed by the next one.

    The signature is `serving_default`, with the inputs and outputs of `model.serving_model` under their names and the batch
    first; for a model with exploration also `explore`, with the inputs and outputs of `model.explore_model`, which takes a `seed`
    int32 (B,) as well: the same seed gives the same scores. There is no XLA in the graph. A model on the JAX or torch backend is
    saved, and exported by a TensorFlow process.

    Args:
        model: a `RankingModel`; or the path of a saved one: a `.keras` file, or the folder of a training run.
        folder: the served model; made where there is none. Versions are its integer-named directories.
        schema: the Schema the model reads; None: `model.schema`.
        verify: run the written graph in a fresh process, as TensorFlow Serving does, on random requests with garbage beyond
            their lengths, and compare with the Keras model on each request alone without the garbage.
        tolerance: largest absolute difference of a probability that `verify` takes. None: 1e-5, and 2e-2 for a
            model that computes in a 16-bit type (both our choice).
        quantize: 'int8': embedding tables as `quantize_embeddings` makes them; `verify` then compares with the quantised Keras model.
            None: as they are.
        imports: modules that register custom layers, imported where the model is loaded by another process. Those of the
            model's own layers are found without being named.

    Returns:
        The version's directory, `folder/N` with N one more than the highest there.

    Raises:
        ValueError: not a ranking model, or no schema.
        ExportError: a graph that does not give the Keras scores, names lost, a disk full, a folder that cannot be written.
        FileNotFoundError: a path without a model.

    Example:
        >>> import keras_ranking as kr
        >>> version = kr.serving.export(model, "saved_models/cadet")
        >>> version.name
        '1'
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"`quantize` must be 'int8' or None. Received: quantize={quantize!r}")
    folder = Path(folder)
    if isinstance(model, (str, Path)):
        model = _saved_model_file(Path(model))
    try:
        with _workplace(folder) as work:
            target = work / _MODEL
            if _backend() == "tensorflow":
                from keras_ranking.serving._export_worker import load_model, write_version

                loaded = load_model(model, imports) if isinstance(model, Path) else model
                write_version(loaded, target, schema=schema, work=work, verify=verify, tolerance=tolerance, quantize=quantize)
            else:
                asked = {"verify": verify, "tolerance": tolerance, "quantize": quantize}
                _write_in_tensorflow(model, target, schema, work, imports, asked)
            _sync(target)
            return _publish(target, folder)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"cannot write a version under '{folder}': {reason}. Nothing was left there.") from error


def _saved_model_file(path: Path) -> Path:
    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no saved model at '{path}': expected a .keras file, or a folder with a model.keras in it")
    return file


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A locked, hidden directory in `folder`; removed at the end, together with those whose owners are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    work = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
    try:
        with open(work / _LOCK, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sweep(folder: Path) -> None:
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


def _sync(tree: Path) -> None:
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


def _publish(target: Path, folder: Path) -> Path:
    """Rename to the next free number; two exports at once get two numbers."""
    while True:
        version = folder / str(max(version_folders(folder), default=0) + 1)
        try:
            os.rename(target, version)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                continue
            raise
        _fsync(folder)
        return version


def _write_in_tensorflow(
    model: Any, target: Path, schema: Schema | None, work: Path, imports: Sequence[str], request: dict[str, Any]
) -> None:
    """The same in a process whose Keras backend is TensorFlow."""
    if isinstance(model, Path):
        source = model.resolve()
    else:
        source = work / "model.keras"
        _flat(model.save, source)
        imports = (*imports, *_custom_modules(model))
        schema = schema if schema is not None else getattr(model, "schema", None)
    if schema is not None:
        schema.save(work / "schema.json")
    (work / "request.json").write_text(json.dumps({"model": str(source), "target": str(target), "imports": list(imports), **request}))
    run_worker("_export_worker", [str(work / "request.json")], work, KERAS_BACKEND="tensorflow")


def _flat(save: Any, path: Path) -> None:
    try:
        save(path)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"the model cannot be saved: {' '.join(str(error).split())[:600]}") from error


def _custom_modules(model: Any) -> list[str]:
    """Modules of the model's own layers that a fresh process would not import by itself."""
    kinds = {type(layer) for layer in (model, *model._flatten_layers(include_self=False))}
    names = {kind.__module__ for kind in kinds}
    return sorted(name for name in names if name.split(".")[0] != "keras" and name != "__main__")


def run_worker(module: str, arguments: list[str], work: Path, **environment: str) -> None:
    """Run `python -m keras_ranking.serving.<module>` with this process's import path; its error, in one line, becomes ours.

    Raises:
        ExportError: the process failed; the message is its last line.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    # A worker checks and converts; it must not take memory on an accelerator that this process may have filled.
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-m", f"keras_ranking.serving.{module}", *arguments],
        env={**os.environ, **quiet, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    failure = work / "error.txt"
    if failure.exists():
        raise ExportError(failure.read_text(encoding="utf-8"))
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        what = f"was killed by signal {-done.returncode}" if done.returncode < 0 else (lines or ["no message"])[-1]
        raise ExportError(f"the TensorFlow process failed: {what}")
