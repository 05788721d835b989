"""`export`: writes a Keras model as the next version of a served model, atomically."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_ranking.configuration import gather
from keras_ranking.schema import Schema
from keras_ranking.serving.checking.worker_process import ExportError, run_worker
from keras_ranking.serving.exporting import server_configs
from keras_ranking.serving.exporting.atomic_version import publish, staging_directory, sync
from keras_ranking.serving.exporting.options import GraphOptions, Options, Verification, together
from keras_ranking.serving.protocol.raw_values import id_types
from keras_ranking.utility import checked_utility

_MODEL = "model"


def export(
    model: Any,
    folder: str | Path,
    *configuration: GraphOptions | Verification,
    schema: Schema | None = None,
    events: Any = None,
    raw_ids: Mapping[str, str] | None = None,
    allowed_batch_sizes: Sequence[int] = (1, 8, 32),
    server_batching: str | None = None,
    run: str | Path | None = None,
    imports: Sequence[str] = (),
    utility: Mapping[str, float] | None = None,
    **options: Any,
) -> Path:
    """Write a model as the next version under `folder`, with all files that TensorFlow Serving reads.

    The version is written into a hidden staging directory in `folder`, verified, synced to disk and then renamed: other processes
    see a whole version or none, also if this process is killed. The next export removes the files of a killed one.

    Signatures, all with the batch first and float32 scores, zero beyond `candidate_count`:

    * `serving_default`: inputs and outputs of `model.serving_model`;
    * `raw`: the same for values of the log, which the graph encodes bit for bit as the schema does. `raw_features`: the encoded
      values, NaN (a time: -1) for a value that violates the schema;
    * `encode_history`, `score_candidates`: history -> `cache_*`; those with candidates -> scores. For models that read a history;
    * `extend_history`: `cache_*` and later events in `history_*` -> the longer `cache_*`. For models with `extends`;
    * `explore`: with a `seed` int32 (B,), for a model with exploration;
    * `weighted`, `raw_weighted`, `score_candidates_weighted`: for a model with a utility. As those without, with the weights of the
      request in `weight_<task>` float32 (B,) for all tasks, in the place of the exported ones.

    With a utility each signature that scores has an output `score` (B, N): the sum of what is served by task, each times its weight.

    A request with an id outside its table, a number that is not finite, a time before the epoch or a wrong count is no error: all its
    scores are -1, and the other requests of the call are scored.

    Each version has `assets.extra/` with schema, card, model card and warm-up requests. The folder has `tf_serving/` with the model
    config with the labels stable and canary, batching and monitoring config, and `server_flags.txt`.

    Args:
        model: a `RankingModel`; or the path of a saved one: a `.keras` file, or the folder of a training run.
        folder: the served model, made if missing. Versions are its integer-named directories.
        configuration: objects of `GraphOptions` and `Verification`, each at most once.
        schema: the Schema the model reads; None: `model.schema`.
        events: a log with the schema's columns. Some of its requests are replayed through the written graph, the Keras model and the
            data pipeline; a difference is an error. See `check_skew`.
        raw_ids: column -> 'string' or 'int64': type of an id or category in `raw`. None: the type in `events`, and 'string' without
            them.
        allowed_batch_sizes: sizes to which the server pads batches; for the batching config.
        server_batching: batching by TensorFlow Serving, in the written flags. None: off. 'equal_lengths': calls with equally long
            lists share a batch, and calls of different lengths that arrive together fail. 'padded': all calls share batches, and
            one call with an input of a wrong rank stops the server: only for trusted callers.
        run: folder of the training run, for the model card. None: the folder of `model`, if `model` is a path.
        imports: modules that register custom layers, imported if another process loads the model. The modules of the model's layers
            are found automatically.
        utility: task -> weight of the output `score` in this version, such as {"click": 1.0, "like": 4.0}; None: those of
            `model.utility`, where they live: set them there, or in `train(options={"utility": ...})`, to have them in every version and
            in evaluations.
        options: fields of these classes one by one: `xla=True` is `GraphOptions(xla=True)`.

    Returns:
        The version's directory, `folder/N` with N one more than the highest there.

    Raises:
        ValueError: not a ranking model, no schema, options that exclude each other, or a utility without a weight, with an unknown task
            or with a weight that is not finite.
        TypeError: an unknown option, or one that is given twice.
        ExportError: a graph with other scores than the Keras model, lost names, skew, a full disk, a folder that cannot be written.
        FileNotFoundError: a path without a model.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> schema = log.schema.fit(log.events)
        >>> model = kr.models.LiRank(schema, history_features=())
        >>> version = kr.serving.export(model, "saved_models/feed", verify=False)
        >>> version.name
        '1'
    """
    folder = Path(folder)
    if isinstance(model, (str, Path)):
        model = _saved_model_file(Path(model))
        run = model.parent if run is None else run
    if events is not None:
        known = schema if schema is not None else getattr(model, "schema", None)
        raw_ids = id_types(known or _saved_schema(model), events) if raw_ids is None else raw_ids
    graph, verification = gather(export, (GraphOptions, Verification), configuration, options)
    if utility is not None:
        known = schema if schema is not None else getattr(model, "schema", None)
        tasks = getattr(model, "arguments", {}).get("tasks") or [task.name for task in (known or _saved_schema(model)).tasks]
        utility = checked_utility(utility, tasks)
    of_run = None if run is None else str(Path(run).resolve())
    chosen = together(graph, verification, raw_ids, allowed_batch_sizes, of_run, folder.resolve().name, server_batching, utility)
    try:
        with staging_directory(folder) as work:
            target = work / _MODEL
            if _backend() == chosen.through:
                from keras_ranking.serving.exporting.worker import load_model, write_version

                loaded = load_model(model, imports) if isinstance(model, Path) else model
                write_version(loaded, target, schema=schema, work=work, options=chosen, events=events)
            else:
                _write_elsewhere(model, target, schema, work, imports, chosen, events)
            sync(target)
            version = publish(target, folder, work, chosen)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ExportError(f"cannot write a version under '{folder}': {reason}. Nothing was left in it.") from error
    if chosen.server_flags:
        flags = folder / server_configs.CONFIG_FOLDER / server_configs.FLAGS
        print(f"this version needs a server with {' '.join(chosen.server_flags)} (see {flags})")
    return version


def _saved_model_file(path: Path) -> Path:
    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no saved model at '{path}': expected a .keras file, or a folder with a model.keras")
    return file


def _saved_schema(file: Path) -> Schema:
    """The schema of a saved model, without building the model."""
    with zipfile.ZipFile(file) as archive:
        return Schema.model_validate(json.loads(archive.read("config.json"))["config"]["schema"])


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def _write_elsewhere(
    model: Any, target: Path, schema: Schema | None, work: Path, imports: Sequence[str], options: Options, events: Any
) -> None:
    """Write the version in a process with the Keras backend of the export."""
    if isinstance(model, Path):
        source = model.resolve()
    else:
        source = work / "model.keras"
        _save_model(model.save, source)
        imports = (*imports, *_custom_modules(model))
        schema = schema if schema is not None else getattr(model, "schema", None)
    if schema is not None:
        schema.save(work / "schema.json")
    if events is not None:
        events.to_pickle(work / "events.pkl")
    request = {"model": str(source), "target": str(target), "imports": list(imports), "options": options.to_json(), "origin": _backend()}
    (work / "request.json").write_text(json.dumps(request))
    run_worker("keras_ranking.serving.exporting.worker", [str(work / "request.json")], work, KERAS_BACKEND=options.through)


def _save_model(save: Any, path: Path) -> None:
    try:
        save(path)
    except OSError:
        raise
    except Exception as error:
        raise ExportError(f"the model cannot be saved: {' '.join(str(error).split())[:600]}") from error


def _custom_modules(model: Any) -> list[str]:
    """Modules of the model's layers that a fresh process has to import."""
    kinds = {type(layer) for layer in (model, *model._flatten_layers(include_self=False))}
    names = {kind.__module__ for kind in kinds}
    return sorted(name for name in names if name.split(".")[0] != "keras" and name != "__main__")
