"""The TensorFlow half of `export`: writes one version and checks it. Runs in a process of its own where the caller's
backend is another.

    KERAS_BACKEND=tensorflow python -m keras_ranking.serving._export_worker REQUEST.json
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.schema import Category, Id, Schema
from keras_ranking.serving.examples import alone, random_requests
from keras_ranking.serving.exporting import ExportError, run_worker
from keras_ranking.serving.layout import EXPLORE, EXTRA, SCHEMA_FILE, SIGNATURE, Card, axis_of, read_card
from keras_ranking.serving.quantization import quantize_embeddings

_PACKAGES = ("keras-ranking", "keras", "tensorflow", "numpy")
Inputs = dict[str, dict[str, Any]]
_CASES = (
    # (history lengths, candidate counts) of one batch each; L and N of the tensors follow from them.
    ((0, 1, 7, 20), (1, 5, 2, 9)),
    ((3,), (1,)),
    ((0, 0), (4, 1)),
    ((65, 64, 2), (33, 1, 32)),
)


def load_model(path: Path, imports: Sequence[str] = ()) -> Any:
    """The saved model of a `.keras` file, after the modules that register its layers.

    Raises:
        ExportError: a module or model that does not load.
    """
    try:
        for name in imports:
            importlib.import_module(name)
        from keras_ranking import models

        return models.load(path)
    except Exception as error:
        raise ExportError(f"the model '{path}' does not load: {_line(error)}") from error


def write_version(
    model: Any,
    target: Path,
    *,
    schema: Schema | None,
    work: Path,
    verify: bool = True,
    tolerance: float | None = None,
    quantize: str | None = None,
) -> None:
    """Write `model.serving_model` as a SavedModel at `target` and check it. Arguments as `exporting.export`."""
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise ExportError("an export needs the package 'tensorflow', which is not installed: pip install keras-ranking[serving]") from error
    schema = schema if schema is not None else getattr(model, "schema", None)
    serving = getattr(model, "serving_model", None)
    if schema is None or serving is None:
        raise ValueError(f"`model` must be a RankingModel with `schema` and `serving_model`. Received: {type(model).__name__}")
    if quantize is not None:
        model = quantize_embeddings(model)
        serving = model.serving_model
    graphs = {SIGNATURE: serving}
    if getattr(model, "explore_model", None) is not None:
        graphs[EXPLORE] = model.explore_model
    specs = {name: _specs(graph, schema) for name, graph in graphs.items()}
    inputs, outputs = specs[SIGNATURE]
    try:
        _write_graph(graphs, specs, target)
    except tf.errors.OpError as error:  # how TensorFlow's file system reports a full or failing disk
        raise OSError(getattr(error, "error_code", 0), _line(error)) from error
    for name, (asked, given) in specs.items():
        _check_written(target, name, asked, given)
    (target / EXTRA).mkdir(exist_ok=True)
    schema.save(target / EXTRA / SCHEMA_FILE)
    compute = str(serving.dtype_policy.compute_dtype)
    measured = _verify(graphs, specs, target, work, _bound(tolerance, model)) if verify else None
    Card(
        model=str(getattr(model, "name", type(model).__name__)),
        schema_digest=schema.digest,
        tasks=[task.name for task in schema.tasks if task.name in outputs],
        boundaries=[int(bound) for bound in getattr(model, "boundaries", ()) or ()],
        compute_dtype=compute,
        quantized=bool(getattr(model, "quantized", False)),
        inputs=inputs,
        outputs=outputs,
        packages={name: _version(name) for name in _PACKAGES},
        verified=measured,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    ).write(target)
    read_card(target)


def _specs(serving: Any, schema: Schema) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Inputs and outputs by name, as in `Card`."""
    for what, tensors in (("inputs", serving.input), ("outputs", serving.output)):
        if not isinstance(tensors, dict):
            raise ValueError(f"`model.serving_model` must have its {what} in a dict by name. Received: {type(tensors).__name__}")
        for name, tensor in tensors.items():
            if not tensor.shape or tensor.shape[0] is not None:
                raise ValueError(
                    f"'{name}' of `model.serving_model` must have a free batch dimension first. Received: shape={tensor.shape}"
                )
    rows = {column.name: column.rows for column in (*schema.features, *schema.actions) if isinstance(column, (Id, Category))}
    inputs: dict[str, dict[str, Any]] = {}
    for name, tensor in serving.input.items():
        shape = [None if size is None else int(size) for size in tensor.shape]
        axis = axis_of(name, tuple(shape))
        column = name.removeprefix(f"{axis}_") if axis else name
        inputs[name] = {"dtype": str(tensor.dtype), "shape": shape, "axis": axis, "rows": rows.get(column)}
    outputs: dict[str, dict[str, Any]] = {}
    for name, tensor in serving.output.items():
        shape = [None if size is None else int(size) for size in tensor.shape]
        outputs[name] = {"dtype": "float32", "shape": shape, "axis": "candidate" if len(shape) > 1 else None, "rows": None}
    return inputs, outputs


def _write_graph(graphs: dict[str, Any], specs: dict[str, tuple[Inputs, Inputs]], target: Path) -> None:
    import keras
    import tensorflow as tf

    def endpoint_of(graph: Any) -> Any:
        def endpoint(tensors: dict[str, Any]) -> dict[str, Any]:
            # Outputs are float32 whatever the trunk computes in: half-width floats have no JSON and few clients.
            return {name: tf.cast(value, tf.float32, name=name) for name, value in graph(tensors, training=False).items()}

        return endpoint

    archive = keras.export.ExportArchive()
    for signature, graph in graphs.items():
        # Without `track` the variables belong to nobody: the graph loads in Python and fails in the server.
        archive.track(graph)
        wanted = {name: tf.TensorSpec(spec["shape"], spec["dtype"], name=name) for name, spec in specs[signature][0].items()}

        archive.add_endpoint(signature, endpoint_of(graph), input_signature=[wanted])
    archive.write_out(str(target), verbose=False)


def _check_written(target: Path, name_of: str, inputs: Inputs, outputs: Inputs) -> None:
    """Names, dtypes and shapes as asked for, and nothing in the graph that a server with default flags refuses."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((target / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0]
    signature = graph.signature_def[name_of]
    for what, written, asked in (("inputs", signature.inputs, inputs), ("outputs", signature.outputs, outputs)):
        if sorted(written) != sorted(asked):
            raise ExportError(f"the graph lost the names of its {what}: {sorted(written)}, asked for {sorted(asked)}")
        for name, info in written.items():
            dtype = tf.dtypes.as_dtype(info.dtype).name
            if dtype != asked[name]["dtype"]:
                raise ExportError(f"'{name}' of the graph's {what} became {dtype}, asked for {asked[name]['dtype']}")
            dims = [dim.size for dim in info.tensor_shape.dim]
            if info.tensor_shape.unknown_rank or not dims or dims[0] != -1:
                raise ExportError(f"'{name}' of the graph's {what} has no free batch dimension first. Received: {dims}")
    functions = graph.graph_def.library.function
    compiled = [function.signature.name for function in functions if function.attr["_XlaMustCompile"].b]
    calls = [node.op for function in functions for node in function.node_def if node.op == "XlaCallModule"]
    if compiled or calls:
        raise ExportError(f"the graph needs XLA, which servers have off by default: {(compiled + calls)[:3]}")


def _bound(tolerance: float | None, model: Any) -> float:
    if tolerance is not None:
        return float(tolerance)
    policies = {layer.dtype_policy.compute_dtype for layer in model._flatten_layers()}
    return 2e-2 if policies & {"bfloat16", "float16"} else 1e-5


def _verify(graphs: dict[str, Any], specs: dict[str, tuple[Inputs, Inputs]], target: Path, work: Path, bound: float) -> dict[str, Any]:
    """Compare the written graphs, in a fresh process, with the Keras model on every request alone."""
    cases = work / "cases"
    cases.mkdir(exist_ok=True)
    for signature, graph in graphs.items():
        inputs = specs[signature][0]
        for number, (history, candidates) in enumerate(_CASES):
            batch = random_requests(inputs, history, candidates, seed=number)
            np.savez(cases / f"in-{signature}-{number}.npz", **batch)  # type: ignore[arg-type]
            width = max(values.shape[1] for name, values in batch.items() if inputs[name]["axis"] == "candidate")
            np.savez(cases / f"out-{signature}-{number}.npz", **_keras_scores(graph, batch, inputs, width))  # type: ignore[arg-type]
    run_worker("_check_worker", [str(target), str(cases)], work)
    result = json.loads((cases / "result.json").read_text(encoding="utf-8"))
    if result["problems"]:
        raise ExportError(f"the written graph fails in a fresh process: {result['problems'][0]}")
    worst = max(result["worst"].values())
    if not worst <= bound:
        name = max(result["worst"], key=lambda output: float(result["worst"][output]))
        raise ExportError(f"the written graph's '{name}' differs from the Keras scores by {worst:.3g}, more than {bound:g}")
    return {"largest_difference": worst, "bound": bound, "requests": sum(len(history) for history, _ in _CASES)}


def _keras_scores(serving: Any, batch: dict[str, np.ndarray], inputs: dict[str, dict[str, Any]], width: int) -> dict[str, np.ndarray]:
    """Each request by itself at its own lengths, put back at the batch's width with 0 beyond the candidates."""
    rows = []
    for row in range(len(next(iter(batch.values())))):
        scores = serving(alone(batch, inputs, row), training=False)
        arrays = {name: np.asarray(value, dtype=np.float32) for name, value in scores.items()}
        rows.append(
            {
                name: np.pad(value, [(0, 0), (0, width - value.shape[1])] + [(0, 0)] * (value.ndim - 2)) if value.ndim > 1 else value
                for name, value in arrays.items()
            }
        )
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        import keras_ranking

        return keras_ranking.__version__ if package == "keras-ranking" else "not installed"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:600]


def main(arguments: list[str]) -> int:
    """Entry point: what goes wrong is written, in one line, to error.txt beside the request."""
    request_file = Path(arguments[0])
    work = request_file.parent
    request = json.loads(request_file.read_text(encoding="utf-8"))
    try:
        schema = Schema.load(work / "schema.json") if (work / "schema.json").exists() else None
        model = load_model(Path(request["model"]), request["imports"])
        asked = {name: request[name] for name in ("verify", "tolerance", "quantize")}
        write_version(model, Path(request["target"]), schema=schema, work=work, **asked)
    except Exception as error:
        text = str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {_line(error)}"
        (work / "error.txt").write_text(text, encoding="utf-8")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
