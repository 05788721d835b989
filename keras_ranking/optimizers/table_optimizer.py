"""TableOptimizer: embedding tables by the rows that a step touches, all other weights by another optimiser."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_ranking.ops.tables import TouchedMask, TouchedRows, touched, update_by_rows, update_whole
from keras_ranking.optimizers.row_rules import LazyAdam, RowRule, RowwiseAdagrad

RULES = ("rowwise_adagrad", "lazy_adam")


@keras.saving.register_keras_serializable(package="keras_ranking")
class TableOptimizer(keras.optimizers.Optimizer):
    """Updates of an embedding table cost what the looked-up rows cost, not what the table costs.

    With g_r the sum of the gradients of row r in a step, and only for rows that the step looks up:

        'rowwise_adagrad':  a_r <- a_r + mean_d g_rd^2,    w_r <- w_r - rate g_r / (sqrt(a_r) + epsilon)
        'lazy_adam':        Adam, whose two moments and weights move in these rows alone

    Row-wise AdaGrad keeps one number a row (as FBGEMM and TorchRec, where it is called exact row-wise AdaGrad); lazy Adam keeps two numbers
    a weight. Other rows keep their bits: tables have no weight decay, and a moment does not go on moving a row that is not looked up.
    Compared with AdaGrad of the whole table the result is the same up to the one accumulator a row; with Adam it differs for rows
    that are not looked up in each step. Gradients of tables are clipped by a norm of their own.

    The gradient is by rows for layers that look rows up by `kr.layers.TableEmbedding`, as all models of this package do. For a gradient
    of a whole table (`keras.layers.Embedding` on JAX and torch, a regularizer, and on torch a loss scale and `jit_compile`) the touched
    rows are those in which it is not zero: the same weights, at the cost of the table. On JAX, and on TensorFlow with `jit_compile`,
    gradients by rows need a model of this package or `kr.models.TableModel`; others have those of whole tables.

    Args:
        optimizer: of all other weights; a Keras optimiser or its name.
        rule: 'rowwise_adagrad' or 'lazy_adam'.
        learning_rate: of the tables, a number or a schedule. Our choice: 0.01.
        tables: regular expression that the path of a table matches as a whole.
        min_rows: tables with fewer rows are left to `optimizer`.
        clip_norm: bound of the norm of the gradients of all tables, rows summed first; None: none.
        initial_accumulator: first a_r. As FBGEMM: 0.
        beta_1, beta_2: of 'lazy_adam', as in Adam.
        epsilon: None: 1e-8 for 'rowwise_adagrad' (as FBGEMM), 1e-7 for 'lazy_adam' (as Keras's Adam).
        name: of the optimiser.

    Raises:
        ValueError: an unknown rule, a number out of range, an `optimizer` with gradient accumulation, averaged weights or a loss scale, or,
            when the model is known, no table, or a table with a constraint.

    Example:
        >>> inputs = keras.Input((3,), dtype="int32")
        >>> x = keras.layers.Flatten()(kr.layers.TableEmbedding(1000, 4)(inputs))
        >>> model = kr.models.TableModel(inputs, keras.layers.Dense(1)(x))
        >>> model.compile(kr.training.TableOptimizer("adam", learning_rate=0.05), loss="mse")
        >>> _ = model.fit(np.array([[1, 2, 3]], "int32"), np.ones((1, 1), "float32"), verbose=0)
    """

    def __init__(
        self,
        optimizer: Any = "adamw",
        rule: str = "rowwise_adagrad",
        learning_rate: Any = 0.01,
        tables: str = ".*/embeddings",
        min_rows: int = 1,
        clip_norm: float | None = None,
        initial_accumulator: float = 0.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float | None = None,
        name: str = "table_optimizer",
    ) -> None:
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {RULES}. Received: rule={rule!r}")
        limits = (("min_rows", min_rows, min_rows >= 1), ("initial_accumulator", initial_accumulator, initial_accumulator >= 0))
        positive = (("clip_norm", clip_norm), ("epsilon", epsilon))
        for label, value, good in (*limits, *((label, value, value is None or value > 0) for label, value in positive)):
            if not good:
                raise ValueError(
                    f"`{label}` must be positive{' or 0' if label == 'initial_accumulator' else ''}. Received: {label}={value}"
                )
        for label, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= value < 1:
                raise ValueError(f"`{label}` must be from 0 to below 1. Received: {label}={value}")
        super().__init__(learning_rate=0.0, name=name)
        self.optimizer = keras.optimizers.get(optimizer)
        _check_other(self.optimizer)
        self.rule, self.tables, self.min_rows, self.clip_norm = rule, str(tables), int(min_rows), clip_norm
        self.settings: dict[str, Any] = {
            "initial_accumulator": float(initial_accumulator),
            "beta_1": float(beta_1),
            "beta_2": float(beta_2),
            "epsilon": epsilon,
        }
        if isinstance(learning_rate, int):
            learning_rate = float(learning_rate)
        if rule == "rowwise_adagrad":
            self.rows: RowRule = RowwiseAdagrad(learning_rate, float(initial_accumulator), 1e-8 if epsilon is None else epsilon)
        else:
            self.rows = LazyAdam(learning_rate, beta_1, beta_2, 1e-7 if epsilon is None else epsilon)
        self._numbers: dict[Any, int] = {}
        self._step = _Step()

    # -- variables -------------------------------------------------------------------------------------------------------

    def is_table(self, variable: Any) -> bool:
        """Whether a variable is a table that is updated by rows."""
        return bool(len(variable.shape) == 2 and int(variable.shape[0]) >= self.min_rows and re.fullmatch(self.tables, str(variable.path)))

    def build(self, variables: Sequence[Any]) -> None:
        if self.built:
            return
        variables = list(variables)
        tables = [variable for variable in variables if self.is_table(variable)]
        if not tables:
            raise ValueError(
                f"no trainable table has a path that matches `tables` and at least `min_rows` rows. Received: tables={self.tables!r}, "
                f"min_rows={self.min_rows}, paths {[variable.path for variable in variables][:20]}"
            )
        if bound := [table.path for table in tables if getattr(table, "constraint", None) is not None]:
            raise ValueError(f"tables with a constraint cannot be updated by rows. Received: {bound}")
        others = [variable for variable in variables if not self.is_table(variable)]
        if others:
            self.optimizer.build(others)
        self.rows.build(tables)
        self._numbers = {self._var_key(table): number for number, table in enumerate(tables)}
        super().build(variables)
        if not (self._step.scaled and keras.backend.backend() == "torch"):
            for table in tables:
                update_by_rows(table, self)

    @property
    def loss_scale_factor(self) -> None:
        """None: a loss scale is that of a `LossScaleOptimizer` around this one, which sets this attribute.

        It reads all gradients, and torch cannot read sparse ones: there gradients are those of whole tables.
        """

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: Any) -> None:
        if factor is not None:
            raise ValueError(
                f"`loss_scale_factor` must be None: use keras.optimizers.LossScaleOptimizer(TableOptimizer(..)). Received: {factor}"
            )
        if hasattr(self, "_step"):
            self._step.scaled = True
            if keras.backend.backend() == "torch":
                for table in self.table_numbers.values():
                    update_whole(table)

    @property
    def table_numbers(self) -> dict[int, Any]:
        """The tables by their number among the trainable variables."""
        return {number: table for number, table in enumerate(self._trainable_variables) if self._var_key(table) in self._numbers}

    @property
    def variables(self) -> list[Any]:
        return [*self._variables, *self.optimizer.variables, *self.rows.variables]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set `variables`."""
        if len(weights) != len(self.variables):
            raise ValueError(f"`weights` must have {len(self.variables)} entries. Received: {len(weights)}")
        for variable, weight in zip(self.variables, weights, strict=True):
            variable.assign(weight)

    @property
    def learning_rate(self) -> Any:
        """That of the weights that are no tables; `rows.learning_rate` is that of the tables.

        Setting it, as callbacks do, keeps their ratio. If one of them is a schedule, that of the tables stays.
        """
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        before = self._rates()
        self.optimizer.learning_rate = learning_rate
        if before is None or (after := self._rates()) is None:
            return
        if before[0] > 0:
            self._step.tables_per_rate = before[1] / before[0]
        if self._step.tables_per_rate is not None:
            self.rows.learning_rate = after[0] * self._step.tables_per_rate

    def _rates(self) -> tuple[float, float] | None:
        """Those of the other weights and of the tables; None: one of them is a schedule."""
        rates = [optimizer._learning_rate for optimizer in (self.optimizer, self.rows)]
        if any(isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) or not hasattr(rate, "assign") for rate in rates):
            return None
        first, second = (float(ops.convert_to_numpy(rate)) for rate in rates)
        return first, second

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """As the other optimiser does with its variables."""
        self.optimizer.finalize_variable_values([variable for variable in var_list if self._var_key(variable) not in self._numbers])

    # -- updates ---------------------------------------------------------------------------------------------------------

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if not self.built:
            with keras.name_scope(self.name):
                self.build(variables)
        grads = list(grads)
        if len(grads) != len(variables):
            raise ValueError(f"`grads` must have an entry for each trainable variable, {len(variables)}. Received: {len(grads)}")
        pairs = list(zip(grads, variables, strict=True))
        self._check_variables_are_known(variables)
        others = [(gradient, variable) for gradient, variable in pairs if self._var_key(variable) not in self._numbers]
        if any(gradient is not None for gradient, _ in others):
            self.optimizer.apply([gradient for gradient, _ in others], [variable for _, variable in others])
        tables = [(gradient, table) for gradient, table in pairs if self._var_key(table) in self._numbers and gradient is not None]
        if self._step.left_out is not None:
            self._step.left_out.extend(tables)
        else:
            self.apply_to_tables(tables)
        self._iterations.assign_add(1)

    def apply_to_tables(self, gradients: Sequence[tuple[Any, Any]]) -> None:
        """Update tables, given (gradient, table)."""
        given = {self._var_key(self._trainable_variables[number]): ids for number, ids in self._step.given.items()}
        rows: list[TouchedRows | TouchedMask] = [touched(gradient, table, given.get(self._var_key(table))) for gradient, table in gradients]
        scale: Any = 1.0
        if self.clip_norm is not None and rows:
            norm = ops.sqrt(sum(ops.sum(ops.square(touch.gradients)) for touch in rows))
            scale = self.clip_norm / ops.maximum(norm, self.clip_norm)
        rate, step = ops.cast(self.rows.learning_rate, "float32"), ops.cast(self.rows.iterations + 1, "float32")
        for touch, (_, table) in zip(rows, gradients, strict=True):
            self.rows.update_rows(touch, touch.gradients * scale, table, self._numbers[self._var_key(table)], rate, step)
        self.rows.iterations.assign_add(1)

    @contextlib.contextmanager
    def given_ids(self, ids: Mapping[int, Any]) -> Iterator[None]:
        """Inside, gradients of tables are (N, D), of the rows in `ids`: (N,) by the table's number among the trainable variables."""
        self._step.given = ids
        try:
            yield
        finally:
            self._step.given = {}

    @contextlib.contextmanager
    def without_tables(self) -> Iterator[list[tuple[Any, Any]]]:
        """Inside, `apply` leaves the tables out; (gradient, table) of each is in the list, for `apply_to_tables`."""
        left_out: list[tuple[Any, Any]] = []
        self._step.left_out = left_out
        try:
            yield left_out
        finally:
            self._step.left_out = None

    def get_config(self) -> dict[str, Any]:
        return {
            "optimizer": keras.saving.serialize_keras_object(self.optimizer),
            "rule": self.rule,
            "learning_rate": self.rows.get_config()["learning_rate"],
            "tables": self.tables,
            "min_rows": self.min_rows,
            "clip_norm": self.clip_norm,
            **self.settings,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> TableOptimizer:
        config = dict(config)
        for name in ("optimizer", "learning_rate"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)
        return cls(**config)


class _Step:
    """What holds inside one step. An object of its own, since Keras wraps lists that are attributes of an optimiser."""

    def __init__(self) -> None:
        self.given: Mapping[int, Any] = {}
        self.left_out: list[tuple[Any, Any]] | None = None
        self.scaled = False
        self.tables_per_rate: float | None = None


def _check_other(optimizer: Any) -> None:
    if isinstance(optimizer, (TableOptimizer, keras.optimizers.LossScaleOptimizer)):
        raise ValueError(f"`optimizer` must be the one of the other weights. Received: optimizer={type(optimizer).__name__}")
    for name in ("gradient_accumulation_steps", "use_ema", "loss_scale_factor"):
        if getattr(optimizer, name, None):
            raise ValueError(f"`{name}` of `optimizer` would not hold for the tables. Received: {name}={getattr(optimizer, name)}")
