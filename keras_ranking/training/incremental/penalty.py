"""Training on new data alone, with a penalty that keeps the weights near earlier ones."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.ops.replicas import refuse_replicas
from keras_ranking.training.incremental.fisher import FisherSnapshot, grown, trainable_weights
from keras_ranking.training.incremental.layer_gradients import embedding_tables, replaced, variable_path
from keras_ranking.training.incremental.quadratic_penalty import QuadraticPenalty

_ATTACHED = "_keras_ranking_penalty"


class IncrementalPenalty:
    """Keeps weights near earlier ones, with a strength that grows with their Fisher information.

        L_t(w) = loss_{D_t}(w) + lambda_f / 2 [ alpha (w - w_0)^T H_0 (w - w_0) + (1 - alpha) (w - w_{t-1})^T H_{t-1} (w - w_{t-1}) ]

    LiRank (2402.06859), Eq. 3, with the start `w = alpha w_0 + (1 - alpha) w_{t-1}`; alpha = 0 is Eq. 2 (all stated). H is
    diagonal: a `FisherSnapshot`.

    **Scale.** Keras's loss is a mean over samples and H is one too: lambda_f is the weight of one mean
    relative to the other. If H comes from as many samples as the new data has, lambda_f = 1 gives old and new samples equal weight.

    **Tables.** Of an `Embedding`'s table only the rows that a step looks up are penalised in that step, each once even if it occurs
    several times (the paper is silent; our choice). Their gradient is that of the whole penalty; other rows have no gradient
    from the loss either. Rows and variables that are missing in a snapshot, or have H = 0, are not penalised.

    While attached, `fit` and `train_on_batch` of every backend minimise the sum, and report it as `loss`; `evaluate`,
    `predict` and saving do not change. Weights that are not trainable, such as moving means, are not penalised.

    Args:
        previous: (w_{t-1}, H_{t-1}).
        cold: (w_0, H_0) of the cold start.
        forgetting: lambda_f >= 0. Not in the paper.
        cold_weight: alpha in [0, 1]. Not in the paper.

    Raises:
        ValueError: a number out of range, or a positive `cold_weight` without `cold`.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
        >>> model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
        >>> data = [(np.ones((4, 2), "float32"), np.ones((4, 1), "float32"))]
        >>> penalty = kr.training.IncrementalPenalty(kr.training.FisherSnapshot.measure(model, data), forgetting=2.0)
        >>> with penalty.attach(model):
        ...     _ = model.fit(*data[0], verbose=0)
        >>> penalty.value(model) > 0
        True
    """

    def __init__(
        self, previous: FisherSnapshot, cold: FisherSnapshot | None = None, forgetting: float = 1.0, cold_weight: float = 0.0
    ) -> None:
        if not (math.isfinite(forgetting) and forgetting >= 0):
            raise ValueError(f"`forgetting` must be a finite number, at least 0. Received: forgetting={forgetting}")
        if not 0 <= cold_weight <= 1:
            raise ValueError(f"`cold_weight` must be from 0 to 1. Received: cold_weight={cold_weight}")
        if cold is None and cold_weight > 0:
            raise ValueError(f"`cold_weight` needs a `cold` snapshot. Received: cold_weight={cold_weight}, cold=None")
        self.previous, self.cold = previous, cold
        self.forgetting, self.cold_weight = float(forgetting), float(cold_weight)
        self._priors = [
            (share, prior) for share, prior in ((cold_weight, cold), (1 - cold_weight, previous)) if prior is not None and share > 0
        ]
        self._attached: tuple[Any, contextlib.ExitStack] | None = None

    def initialise(self, model: Any) -> None:
        """Set w <- alpha w_0 + (1 - alpha) w_{t-1}. A row or variable of only one snapshot is taken from that one.

        Raises:
            ValueError: a snapshot that does not fit the model.
        """
        current = self._checked(model)
        for variable in model.trainable_variables:
            path = variable_path(model, variable)
            total, shares = (
                np.zeros(variable.shape),
                np.zeros((variable.shape[0] if len(variable.shape) else 1, *[1] * (len(variable.shape) - 1))),
            )
            for share, prior in self._priors:
                if path in prior.weights:
                    old = prior.weights[path]
                    total += share * grown(old.astype(np.float64), total.shape)
                    shares[: len(old) if old.ndim else 1] += share
            shares = shares.reshape(()) if not len(variable.shape) else shares
            known = shares > 0
            variable.assign(np.where(known, total / np.where(known, shares, 1), current[path]).astype(np.float32))

    def value(self, model: Any) -> float:
        """The whole penalty at the model's weights, all rows of all tables: lambda_f / 2 [...], in float64."""
        total = 0.0
        for path, weight in self._checked(model).items():
            for share, prior in self._priors:
                if path in prior.weights:
                    old, precision = prior.weights[path].astype(np.float64), prior.fisher[path].astype(np.float64)
                    kept = weight[: len(old)] if old.ndim else weight
                    total += share * float((precision * (kept - old) ** 2).sum())
        return self.forgetting / 2 * total

    def attach(self, model: Any) -> IncrementalPenalty:
        """Add the penalty to what training minimises until `detach`, or the end of a `with` block.

        Raises:
            ValueError: a snapshot that does not fit the model.
            RuntimeError: this penalty, or another one for the model, is attached already.
            NotImplementedError: in a `tf.distribute` strategy of several replicas.
        """
        refuse_replicas("IncrementalPenalty", "each replica would add the whole penalty", always=True)
        self._checked(model)
        if self._attached is not None or _ATTACHED in vars(model):
            raise RuntimeError(f"a penalty is attached to '{model.name}' already; detach it first.")
        tables = embedding_tables(model)
        looked_up: dict[Any, list[Any]] = {}
        stack, step = contextlib.ExitStack(), _Step()
        by_table = {id(table): layer for layer, table in tables.items()}
        terms = [term for variable in model.trainable_variables if (term := self._term(model, variable)).any]
        train_step, compute_loss = model.train_step, model.compute_loss

        def watched_step(*args: Any, **settings: Any) -> Any:
            step.active = True
            looked_up.clear()
            try:
                return train_step(*args, **settings)
            finally:
                step.active = False
                looked_up.clear()

        def penalised(*args: Any, **settings: Any) -> Any:
            loss = compute_loss(*args, **settings)
            if not step.active:
                return loss
            parts = []
            for term in terms:
                layer = by_table.get(id(term.variable))
                if layer is None:
                    parts.append(term.whole())
                elif layer in looked_up:
                    parts.append(term.rows(looked_up[layer]))
            looked_up.clear()  # a second loss of the same step looks up its rows again
            return loss + ops.cast(self.forgetting / 2 * sum(parts), loss.dtype) if parts else loss

        def watch(layer: Any) -> None:
            call = layer.call

            def watched(inputs: Any, *args: Any, **settings: Any) -> Any:
                if step.active:
                    looked_up.setdefault(layer, []).append(inputs)
                return call(inputs, *args, **settings)

            stack.enter_context(replaced(layer, call=watched))

        for layer in tables:
            watch(layer)
        stack.enter_context(replaced(model, train_step=watched_step, compute_loss=penalised, **{_ATTACHED: self}))
        self._attached = (model, stack)
        _forget_compiled(model)
        return self

    def detach(self) -> None:
        """Restore the model to its state before `attach`. Does nothing if not attached."""
        if self._attached is not None:
            (model, stack), self._attached = self._attached, None
            stack.close()
            _forget_compiled(model)

    def __enter__(self) -> IncrementalPenalty:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def _term(self, model: Any, variable: Any) -> QuadraticPenalty:
        path = variable_path(model, variable)
        found = [(share, prior.weights[path], prior.fisher[path]) for share, prior in self._priors if path in prior.weights]
        return QuadraticPenalty(variable, found)

    def _checked(self, model: Any) -> dict[str, np.ndarray]:
        for _, prior in self._priors:
            prior.check(model)
        return trainable_weights(model)


class _Step:
    """Whether a training step is being run or traced."""

    active = False


def _forget_compiled(model: Any) -> None:
    """Drop the compiled step, so that the next one is compiled with or without the penalty."""
    model.train_function = None


def fit_incremental(
    model: Any,
    dataset: Any,
    previous: FisherSnapshot,
    cold: FisherSnapshot | None = None,
    forgetting: float = 1.0,
    cold_weight: float = 0.0,
    epochs: int = 1,
    fisher_dataset: Any = None,
    fisher_samples: int | None = None,
    accumulate: float | None = None,
    seed: int = 0,
    **fit_settings: Any,
) -> tuple[keras.callbacks.History, FisherSnapshot]:
    """One round of incremental training: start, penalised fit, new snapshot. Afterwards the model is trained and has no penalty.

    The paper does not say what happens to the optimiser's state: here it is kept; compile the model again to reset it.

    Args:
        model: compiled, with the variables of the snapshots.
        dataset: of the new data alone, as for `FisherSnapshot.measure`; read `epochs` + 1 times.
        previous, cold, forgetting, cold_weight: of `IncrementalPenalty`.
        epochs: passes over the new data.
        fisher_dataset: data of the new snapshot, if a sample is not an entry of `dataset`'s batch axis: for packed rows, single events
            (`PackedRequests(single=True)`). None: `dataset`.
        fisher_samples: largest number of samples of the new snapshot; None: all.
        accumulate: decay with which the previous Fisher information is added (`FisherSnapshot.accumulate`); None: only that of the
            new data.
        seed: of the choice of these samples.
        fit_settings: further arguments of `model.fit`.

    Returns:
        The history of `fit`, and the new snapshot: the `previous` of the next round.

    Raises:
        ValueError: as `IncrementalPenalty` and `FisherSnapshot.measure`, before training where possible.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
        >>> class Day(keras.utils.PyDataset):
        ...     def __len__(self):
        ...         return 2
        ...
        ...     def __getitem__(self, batch):
        ...         return np.full((4, 2), batch, "float32"), np.ones((4, 1), "float32")
        >>> snapshot = kr.training.FisherSnapshot.measure(model, Day())
        >>> history, snapshot = kr.training.fit_incremental(model, Day(), snapshot, forgetting=1.0, epochs=2, verbose=0)
        >>> len(history.history["loss"]), snapshot.samples
        (2, 8)
    """
    penalty = IncrementalPenalty(previous, cold, forgetting, cold_weight)
    penalty.initialise(model)
    with penalty.attach(model):
        history = model.fit(dataset, epochs=epochs, **fit_settings)
    measured = dataset if fisher_dataset is None else fisher_dataset
    snapshot = FisherSnapshot.measure(model, measured, samples=fisher_samples, seed=seed)
    return history, snapshot if accumulate is None else snapshot.accumulate(previous, accumulate)
