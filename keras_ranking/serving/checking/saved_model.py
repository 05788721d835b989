"""A SavedModel on disk, run as TensorFlow Serving runs it: in its own V1 session."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_ranking.serving.protocol.errors import ServingError
from keras_ranking.serving.protocol.model_folder import SIGNATURE, axis_of, read_card
from keras_ranking.serving.protocol.signature import Signature, Tensor

_PREDICT = "tensorflow/serving/predict"


class SavedModel:
    """A loaded version: its signatures and its session.

    Args:
        version: folder with `saved_model.pb`.
        threads: threads within and across operations; 0 = TensorFlow's choice.

    Raises:
        OSError, tensorflow.errors.OpError: missing or damaged files.
        ValueError: an unreadable card.
    """

    def __init__(self, version: Path, threads: int = 0) -> None:
        self.card = read_card(version)
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads)
        config.gpu_options.allow_growth = True
        self._graph = tf.Graph()
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        try:
            with self._graph.as_default(), _without_advice():
                meta = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(version))
            self.signature_defs = dict(meta.signature_def)
            predict = {name: proto for name, proto in self.signature_defs.items() if proto.method_name == _PREDICT}
            self.signatures = {name: self._signature(name, proto) for name, proto in predict.items()}
            self._calls = {name: self._callable(proto) for name, proto in predict.items()}
        except BaseException:
            self._session.close()
            raise

    def signature(self, name: str) -> Signature:
        """The signature with this name ('' = `serving_default`).

        Raises:
            ServingError: FAILED_PRECONDITION, as in TensorFlow Serving.
        """
        name = name or SIGNATURE
        if name not in self.signatures:
            raise ServingError("FAILED_PRECONDITION", f'signature "{name}" not found. The model has: {sorted(self.signatures)}')
        return self.signatures[name]

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature on tensors that passed its check.

        Raises:
            tensorflow.errors.OpError: an error of the graph.
        """
        call, inputs_order, outputs_order = self._calls[signature]
        results = call(*(inputs[name] for name in inputs_order))
        return dict(zip(outputs_order, results, strict=True))

    def close(self) -> None:
        """Release the memory of the session."""
        self._session.close()

    def _signature(self, name: str, proto: Any) -> Signature:
        inputs = {key: self._input(name, key, _tensor(info)) for key, info in proto.inputs.items()}
        outputs = {key: self._output(key, _tensor(info), inputs) for key, info in proto.outputs.items()}
        return Signature(name, inputs, outputs)

    def _input(self, signature: str, key: str, tensor: Tensor) -> Tensor:
        axis = axis_of(key, tensor.shape or ())
        if self.card is None:
            return replace(tensor, axis=axis)
        # A card of an earlier format has `serving_default` only; other signatures use the same names of columns.
        stated = self.card.signatures.get(signature, {}).get("inputs", self.card.inputs)
        spec = stated.get(key, {})
        # The number of rows bounds encoded ids; ids of the log may have the same name, with another dtype.
        rows = spec.get("rows") if spec.get("dtype") == tensor.dtype.name else None
        grows = tensor.free[0] if axis is None and len(tensor.free) == 1 else None
        return replace(tensor, axis=axis, rows=rows, missing=bool(spec.get("missing")), sets=bool(spec.get("sets")), grows=grows)

    def _output(self, key: str, tensor: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        """Set the axis of an output: scores grow with the candidates, a cache with the history."""
        used = {found.axis for found in inputs.values()}
        axis = axis_of(key, tensor.shape or ()) or next((axis for axis in ("candidate", "history") if axis in used), None)
        if self.card is None or axis is None or len(tensor.free) != 1:
            return tensor
        return replace(tensor, axis=axis, grows=tensor.free[0])

    def _callable(self, proto: Any) -> tuple[Any, list[str], list[str]]:
        inputs, outputs = sorted(proto.inputs), sorted(proto.outputs)
        feeds = [self._graph.get_tensor_by_name(proto.inputs[name].name) for name in inputs]
        fetches = [self._graph.get_tensor_by_name(proto.outputs[name].name) for name in outputs]
        return self._session.make_callable(fetches, feed_list=feeds), inputs, outputs


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Suppress TensorFlow's advice to load the model in Python instead of a session."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _tensor(info: Any) -> Tensor:
    shape = info.tensor_shape
    dims = None if shape.unknown_rank else tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)
    return Tensor(np.dtype(tf.dtypes.as_dtype(info.dtype).as_numpy_dtype), dims)
