"""Several devices of JAX, in one process or many: a batch is one array over all of them, by `keras.distribution`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import keras
import numpy as np
from jax.experimental import multihost_utils

from keras_ranking.data.epochs import shared_out
from keras_ranking.ops.messages import shown
from keras_ranking.training.checkpoint import arrays_of, assign_arrays
from keras_ranking.training.distribution.plan import ByTurns, Plan

LEAST_ROWS = 1_000  # of a table that 'tables' shares out: a smaller one costs more in messages than it saves
_PROCESSES = "KERAS_DISTRIBUTION_NUM_PROCESSES"


class TableParallel(keras.distribution.ModelParallel):
    """Rows of a batch and rows of tables over the same devices; all other weights are on each of them.

    Args:
        devices: their names; None: all.
    """

    def __init__(self, devices: Any = None) -> None:
        names = list(devices or keras.distribution.list_devices())
        mesh = keras.distribution.DeviceMesh((len(names),), ["batch"], names)
        layouts = keras.distribution.LayoutMap(mesh)
        layouts[r".*/embeddings"] = ("batch", None)
        super().__init__(layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False)

    def get_variable_layout(self, variable: Any) -> Any:
        """As that of Keras; small tables are whole on each device."""
        if getattr(variable, "_layout", None) is None and variable.path.endswith("/embeddings") and variable.shape[0] < LEAST_ROWS:
            return keras.distribution.TensorLayout([None] * len(variable.shape), self.device_mesh)
        return super().get_variable_layout(variable)


def plan(distribution: Any) -> Plan:
    """See `keras_ranking.training.distribution.plan_for`."""
    _start_processes()
    if distribution == "data":
        distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    elif distribution == "tables":
        distribution = TableParallel()
    if not isinstance(distribution, (keras.distribution.DataParallel, keras.distribution.ModelParallel)):
        raise ValueError(f"`distribution` must be 'data', 'tables' or a keras.distribution object. Received: {shown(distribution)}")
    return JaxPlan(distribution)


def _start_processes() -> None:
    wanted = int(os.environ.get(_PROCESSES, "1"))
    if wanted == jax.process_count():
        return
    if jax.process_count() > 1:
        raise ValueError(f"`{_PROCESSES}` must be the number of processes. Received: {wanted}, and {jax.process_count()} are there")
    raise ValueError(
        f"`{_PROCESSES}` is {wanted}, and this process is alone. Call `keras.distribution.initialize()` before anything else uses JAX; "
        "`keras-ranking train` does."
    )


class JaxPlan(Plan):
    """A `keras.distribution` object.

    Args:
        distribution: whose batch axis has the parts of a batch.
    """

    def __init__(self, distribution: Any) -> None:
        self.distribution = distribution
        self.rank, self.ranks = jax.process_index(), jax.process_count()
        mesh, axis = distribution.device_mesh.backend_mesh, distribution.batch_dim_name
        self.devices_of_mesh = list(mesh.devices.flat)
        self.parts = int(mesh.shape[axis])
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axis))  # type: ignore[no-untyped-call]
        places: Any = rows.addressable_devices_indices_map((self.parts,)).values()
        own = sorted({(place[0].start or 0) for place in places})
        if not own or own != list(range(own[0], own[-1] + 1)):
            received = f"parts {own} in process {self.rank}"
            raise ValueError(f"devices of a process must be neighbours on the axis '{axis}' of the mesh. Received: {received}")
        self.own = own[0], own[-1] + 1
        self._inside = contextlib.ExitStack()
        self._calls: dict[int, tuple[Any, Any]] = {}

    @contextlib.contextmanager
    def devices(self) -> Iterator[None]:
        sharded, self.distribution.auto_shard_dataset = self.distribution.auto_shard_dataset, False
        try:
            with contextlib.ExitStack() as self._inside:
                self._inside.enter_context(self.distribution.scope())
                yield
        finally:
            self.distribution.auto_shard_dataset = sharded

    def describe(self, dataset: Any, ranker: Any) -> str:
        kind = self.devices_of_mesh[0].platform
        where = f" in {self.ranks} processes" if self.ranks > 1 else ""
        shared = [variable.path.split("/")[-2] for variable in ranker.variables if _is_shared_out(variable)]
        tables = f"; tables by rows over devices: {', '.join(shared)}" if shared else ""
        count = len(self.devices_of_mesh)
        return f"{count} {kind} device{'s' if count > 1 else ''}{where}: {self.rows(dataset)}{tables}"

    def check(self, recipe: Any) -> None:
        if recipe.ema is not None and isinstance(self.distribution, keras.distribution.ModelParallel):
            raise NotImplementedError("`ema` does not work with tables over devices: the averages would be whole on each. Give ema=None.")

    def build(self, ranker: Any, batch: Any, build: Callable[[Any, Any], None]) -> None:
        ranker._symbolic_build(data_batch=batch)  # arrays over several processes cannot be computed with outside of a compiled program
        if not ranker.optimizer.built:
            ranker.optimizer.build(ranker.trainable_variables)

    def finished(self, ranker: Any, again: Callable[[], Any], compiled: Callable[[Any], None]) -> Any:
        arrays = arrays_of(ranker)
        # Tables that no single device may hold are in the memory of the host.
        shared = any(_is_shared_out(variable) for variable in ranker.variables)
        self._inside.close()  # what one process writes must ask nothing of the others
        with jax.default_device(jax.local_devices(backend="cpu")[0]) if shared else contextlib.nullcontext():
            plain = again()
            compiled(plain)
            if not plain.optimizer.built:
                plain.optimizer.build(plain.trainable_variables)
            assign_arrays(arrays, plain)
        return plain

    def by_turns(self) -> Plan:
        return ByTurns(self.rank, self.ranks, self.gathered)

    def predict_on_batch(self, ranker: Any, x: Any) -> Any:
        """Each device scores its rows."""
        rows = len(next(iter(x.values())))
        batch = {name: self._placed(shared_out(value, self.parts, self.own)) for name, value in x.items()}
        call = self._call(ranker)
        found = call([v.value for v in ranker.trainable_variables], [v.value for v in ranker.non_trainable_variables], batch)
        return {name: np.asarray(multihost_utils.process_allgather(value, tiled=True))[:rows] for name, value in found.items()}

    def _placed(self, own: np.ndarray) -> Any:
        layout = self.distribution.get_data_layout(own.shape).backend_layout
        return jax.make_array_from_process_local_data(layout, own)  # type: ignore[no-untyped-call]

    def _call(self, ranker: Any) -> Any:
        kept = self._calls.get(id(ranker))
        if kept is None or kept[0] is not ranker:
            call = jax.jit(lambda trained, others, x: ranker.stateless_call(trained, others, x, training=False)[0])
            kept = self._calls[id(ranker)] = ranker, call
        return kept[1]

    def gathered(self, array: np.ndarray) -> list[np.ndarray]:
        if self.ranks == 1:
            return [array]
        # As bytes: JAX would make float32 of float64.
        sent = np.frombuffer(np.ascontiguousarray(array).tobytes(), dtype=np.uint8)
        found = np.asarray(multihost_utils.process_allgather(sent))
        return [np.frombuffer(one.tobytes(), dtype=array.dtype).reshape(array.shape) for one in found]


def _is_shared_out(variable: Any) -> bool:
    value = variable.value
    return variable.path.endswith("/embeddings") and not value.sharding.is_fully_replicated
