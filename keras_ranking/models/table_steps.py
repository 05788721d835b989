"""Training steps in which embedding tables are updated by rows, and `TableModel`, which has them."""

from __future__ import annotations

from typing import Any

import keras

from keras_ranking.ops.tables import compiled, row_gradients
from keras_ranking.optimizers.table_optimizer import TableOptimizer


class TableSteps:
    """A model whose training steps give a `TableOptimizer` gradients by rows; with other optimisers they are Keras's.

    * TensorFlow: with `jit_compile`, tables are written outside the compiled program, since XLA on CPU would copy them.
    * JAX: the gradient is taken with respect to the rows that are looked up, see `ops/backends/jax_tables.py`.
    * torch: Keras's step; look-ups have sparse gradients.
    """

    def train_step(self, *arguments: Any) -> Any:
        """As that of `keras.Model`: `(data)`, on JAX `(state, data)`."""
        optimizer = _table_optimizer(self.optimizer)  # type: ignore[attr-defined]
        if optimizer is not None and keras.backend.backend() == "jax":
            return _jax_step(self, optimizer, *arguments)
        compiled = getattr(self, "_compiled_without_tables", None)
        if optimizer is None or compiled is None:
            return super().train_step(*arguments)  # type: ignore[misc]
        logs, gradients = compiled(*arguments)
        pairs = zip(gradients, optimizer.table_numbers.values(), strict=True)
        optimizer.apply_to_tables([(gradient, table) for gradient, table in pairs if gradient is not None])
        return logs

    def make_train_function(self, force: bool = False) -> Any:
        """As that of `keras.Model`."""
        self._compiled_without_tables: Any = None
        optimizer = _table_optimizer(self.optimizer)  # type: ignore[attr-defined]
        compiles = keras.backend.backend() == "tensorflow" and self.jit_compile and not self.run_eagerly  # type: ignore[has-type,attr-defined]
        if optimizer is None or not compiles:
            return super().make_train_function(force)  # type: ignore[misc]
        if optimizer is self.optimizer:  # type: ignore[attr-defined]
            self._compiled_without_tables = _without_tables(self, super().train_step, optimizer)  # type: ignore[misc]
        # A loss scale decides inside the step whether there is an update: then nothing of it is compiled.
        self.jit_compile = False
        try:
            return super().make_train_function(force)  # type: ignore[misc]
        finally:
            self.jit_compile = True


@keras.saving.register_keras_serializable(package="keras_ranking")
class TableModel(TableSteps, keras.Model):
    """A `keras.Model` in whose training steps a `kr.training.TableOptimizer` gets gradients by rows on every backend.

    Args:
        As those of `keras.Model`: `inputs`, `outputs`, `name` of a functional model, or a subclass with a `call`.

    Example:
        >>> inputs = keras.Input((), dtype="int32")
        >>> model = kr.models.TableModel(inputs, keras.layers.Dense(1)(kr.layers.TableEmbedding(100_000, 8)(inputs)))
        >>> model.compile(kr.training.TableOptimizer("adam"), loss="mse")
        >>> _ = model.fit(np.array([7, 99_999], "int32"), np.ones((2, 1), "float32"), verbose=0)
    """


def _table_optimizer(optimizer: Any) -> TableOptimizer | None:
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer if isinstance(optimizer, TableOptimizer) else None


def _without_tables(model: Any, step: Any, optimizer: TableOptimizer) -> Any:
    """Keras's step compiled by XLA, without the tables' updates, that also returns their gradients in the order of `table_numbers`."""

    def run(data: Any) -> Any:
        with optimizer.without_tables() as left_out:
            logs = step(data)
        by_table = {id(table): gradient for gradient, table in left_out}
        return logs, [by_table.get(id(table)) for table in optimizer.table_numbers.values()]

    return compiled(run)


def _jax_step(model: Any, optimizer: TableOptimizer, state: Any, data: Any) -> Any:
    """Keras's step on JAX, with gradients of tables by rows."""
    trainable, others, of_optimizer, of_metrics = state
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def loss(values: list[Any]) -> Any:
        return model.compute_loss_and_updates(
            values, others, of_metrics, x, y, sample_weight, training=True, optimizer_variables=of_optimizer
        )

    (_, (unscaled, y_pred, others, of_metrics)), gradients, ids = row_gradients(loss, trainable, optimizer.table_numbers)
    with optimizer.given_ids(ids):
        trainable, of_optimizer = model.optimizer.stateless_apply(of_optimizer, gradients, trainable)
    logs, of_metrics = model._update_metrics_variables(of_metrics, unscaled, x, y, y_pred, sample_weight)
    return logs, (trainable, others, of_optimizer, of_metrics)
