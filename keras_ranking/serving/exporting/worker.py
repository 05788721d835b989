"""The TensorFlow part of `export`: writes one version and checks it. Runs in a separate process if the caller has another
backend.

    KERAS_BACKEND=tensorflow python -m keras_ranking.serving.exporting.worker REQUEST.json
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from keras_ranking.models.quantization import quantize_embeddings
from keras_ranking.schema import Schema
from keras_ranking.serving.checking import verification
from keras_ranking.serving.checking.worker_process import ExportError
from keras_ranking.serving.exporting import bfloat16, model_card
from keras_ranking.serving.exporting.options import Options
from keras_ranking.serving.protocol.model_folder import ENCODE, EXTRA, SCHEMA_FILE, SIGNATURE, Card, read_card

# Operations that a server cannot run, or that prevent clustering of a graph.
_UNSUPPORTED = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaCallModule"})


def load_model(path: Path, imports: Sequence[str] = ()) -> Any:
    """Load the model of a `.keras` file, after importing the modules that register its layers.

    Raises:
        ExportError: a module or model that cannot be loaded.
    """
    try:
        for name in imports:
            importlib.import_module(name)
        from keras_ranking import models

        return models.load(path)
    except Exception as error:
        raise ExportError(f"the model '{path}' does not load: {_line(error)}") from error


def write_version(
    model: Any, target: Path, *, schema: Schema | None, work: Path, options: Options, events: Any = None, origin: str | None = None
) -> None:
    """Write the signatures of `model` as a SavedModel at `target`, with its further files, and check it.

    In this order:

    1. `model` is a RankingModel with a schema and a serving graph, and its graph can be written.
    2. `check_written`, also with `verify=False`: names, dtypes and shapes of all inputs and outputs; no operation that needs Python,
       and in a plain graph none that needs XLA.
    3. With `verify=True`, in a fresh process that runs each signature in a V1 session on random requests: names, shapes and dtypes of
       outputs; finite values; `raw_features` equal to the schema's encoding bit for bit; scores within the tolerance of the Keras
       model's on each request alone, also those of `score_candidates` on the outputs of `encode_history`.
    4. The card can be read back; warm-up requests have the inputs of their signatures.
    5. With `events`: logged requests, by `check_skew`: features bit for bit, scores within `skew_bound`.

    The caller then syncs the files to disk and renames the directory.

    Raises:
        ExportError: a check that fails, or TensorFlow is missing.
        ValueError: not a ranking model, or no schema.
        OSError: a disk that is full or fails.
    """
    try:
        import tensorflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ExportError("an export needs the package 'tensorflow', which is not installed: pip install keras-ranking[serving]") from error
    schema = schema if schema is not None else getattr(model, "schema", None)
    if schema is None or getattr(model, "serving_model", None) is None:
        raise ValueError(f"`model` must be a RankingModel with `schema` and `serving_model`. Received: {type(model).__name__}")
    if options.quantize is not None:
        model = quantize_embeddings(model)
    with _ranked_by(model, options.utility):
        _write(model, target, schema, work, options, events, origin)


@contextlib.contextmanager
def _ranked_by(model: Any, utility: dict[str, float] | None) -> Iterator[None]:
    """Give the model another utility for a while; None: its own."""
    if utility is None:
        yield
        return
    own = model.utility
    model.utility = utility
    try:
        yield
    finally:
        model.utility = own or None


def _write(model: Any, target: Path, schema: Schema, work: Path, options: Options, events: Any, origin: str | None) -> None:
    """The steps of `write_version`."""
    import tensorflow as tf

    try:
        made = _write_graph(model, schema, target, options)
        if options.precision == "bfloat16":
            bfloat16.rewrite(target)
    except tf.errors.OpError as error:  # how TensorFlow's file system reports a full or failing disk
        raise OSError(getattr(error, "error_code", 0), _line(error)) from error
    signatures = {name: {"inputs": endpoint.inputs, "outputs": endpoint.outputs} for name, endpoint in made.items()}
    check_written(target, signatures, compiled=options.compiles)
    (target / EXTRA).mkdir(exist_ok=True)
    schema.save(target / EXTRA / SCHEMA_FILE)
    history, candidates = options.buckets(model)
    measured = None
    if options.verify:
        measured = verification.verify(
            model, schema, signatures, target, work, _bound(options, model), (history, candidates), inside=options.through == "jax"
        )
    card = Card(
        model=str(getattr(model, "name", type(model).__name__)),
        schema_digest=schema.digest,
        tasks=[task.name for task in schema.tasks if task.name in signatures[SIGNATURE]["outputs"]],
        boundaries=[int(bound) for bound in getattr(model, "boundaries", ()) or ()],
        compute_dtype=str(model.serving_model.dtype_policy.compute_dtype),
        quantized=bool(getattr(model, "quantized", False)),
        **signatures[SIGNATURE],
        signatures=signatures,
        packages=model_card.packages(),
        verified=measured,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        through=options.through,
        xla=options.compiles,
        precision=options.precision,
        history_buckets=history,
        candidate_buckets=candidates,
        server_flags=options.server_flags,
        utility=dict(getattr(model, "utility", {})),
    )
    card.write(target)
    read_card(target)
    from keras_ranking.serving.exporting import warmup

    def caches(histories: list[Any]) -> list[Any]:
        found = [made[ENCODE].body({name: tf.constant(x) for name, x in batch.items()}) for batch in histories]
        return [{name: x.numpy() for name, x in cache.items()} for cache in found]

    try:
        warmup.write_warmup(target, warmup.random_batches(target, card, caches), name=options.name)
    except tf.errors.OpError as error:
        raise OSError(getattr(error, "error_code", 0), _line(error)) from error
    skew = None
    if events is not None:
        skew = _skew(model, target, events, options)
    run = Path(options.run) if options.run else None
    model_card.write(model_card.describe(model, card, target, run, origin or _backend(), skew), target)


def _backend() -> str:
    import keras

    return str(keras.backend.backend())


def _skew(model: Any, target: Path, events: Any, options: Options) -> dict[str, Any]:
    from keras_ranking.serving.checking.skew import check_skew

    bound = _bound(options, model) if options.skew_bound is None else options.skew_bound
    report = check_skew(target, model, events, bound=bound)
    if report.found:
        raise ExportError(f"the exported model differs from the pipeline on logged requests: {report.summary()}")
    return report.to_json()


def _write_graph(model: Any, schema: Schema, target: Path, options: Options) -> dict[str, Any]:
    """Write the SavedModel; returns its endpoints."""
    from keras_ranking.serving.exporting import buckets, guard, signatures, weighted

    if options.through == "jax":
        from keras_ranking.serving.exporting import jax_export

        made = jax_export.endpoints(model, schema, *options.buckets(model), options.raw_ids)
    else:
        made = signatures.trunk_endpoints(model, schema)
        if options.xla:
            made = buckets.compiled(made, *options.buckets(model))
        made = weighted.with_weights(made, getattr(model, "arguments", {}).get("tasks", ()))
        made = signatures.with_raw(guard.guarded(made), schema, options.raw_ids)
    signatures.write(made, target)
    return made


def check_written(target: Path, signatures: dict[str, dict[str, Any]], compiled: bool) -> None:
    """Check names, dtypes and shapes, and that a plain graph has no operation that needs special server flags.

    Raises:
        ExportError: naming a lost or changed tensor, or the operation.
    """
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((target / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0]
    for signature, tensors in signatures.items():
        proto = graph.signature_def[signature]
        for what, written in (("inputs", proto.inputs), ("outputs", proto.outputs)):
            expected = tensors[what]
            if sorted(written) != sorted(expected):
                raise ExportError(
                    f"the graph lost the names of the {what} of '{signature}': {sorted(written)}, expected {sorted(expected)}"
                )
            for name, info in written.items():
                dtype = tf.dtypes.as_dtype(info.dtype).name
                if dtype != expected[name]["dtype"]:
                    raise ExportError(f"'{name}' of the graph's {what} became {dtype}, expected {expected[name]['dtype']}")
                dims = [dim.size for dim in info.tensor_shape.dim]
                if info.tensor_shape.unknown_rank or not dims or dims[0] != -1:
                    raise ExportError(f"'{name}' of the graph's {what} has no free batch dimension first. Received: {dims}")
                if len(dims) != len(expected[name]["shape"]):
                    raise ExportError(f"'{name}' of the graph's {what} has {len(dims)} dimensions, expected {expected[name]['shape']}")
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
    found = sorted({node.op for node in nodes} & (_UNSUPPORTED - ({"XlaCallModule"} if compiled else set())))
    found += [] if compiled else [function.signature.name for function in functions if function.attr["_XlaMustCompile"].b]
    if found:
        raise ExportError(f"the graph needs XLA or Python, which servers do not have by default: {found[:3]}")


def _bound(options: Options, model: Any) -> float:
    if options.tolerance is not None:
        return float(options.tolerance)
    if options.precision == "bfloat16":  # compared with float32
        return 6e-2 if bfloat16.truncates() else 3e-2
    policies = {layer.dtype_policy.compute_dtype for layer in model._flatten_layers()}
    return 3e-2 if policies & {"bfloat16", "float16"} else 1e-5


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600]


def main(arguments: list[str]) -> int:
    """Entry point: an error is written, in one line, to error.txt in the folder of the request."""
    request_file = Path(arguments[0])
    work = request_file.parent
    request = json.loads(request_file.read_text(encoding="utf-8"))
    try:
        schema = Schema.load(work / "schema.json") if (work / "schema.json").exists() else None
        model = load_model(Path(request["model"]), request["imports"])
        events = None
        if (work / "events.pkl").exists():
            import pandas as pd

            events = pd.read_pickle(work / "events.pkl")  # written by the exporting process itself
        options = Options(**request["options"])
        write_version(model, Path(request["target"]), schema=schema, work=work, options=options, events=events, origin=request["origin"])
    except Exception as error:
        text = str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {_line(error)}"
        (work / "error.txt").write_text(text, encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
