"""Task: what a model predicts, from the column of its label to the number that is served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from keras_ranking.column_base import NAME, usable
from keras_ranking.field_errors import PlainWords
from keras_ranking.number_column import Number
from keras_ranking.values import Faults, numbers_of, plain_series, raise_first

LARGEST_LOGARITHM = 80.0  # e^80 is within float32
_STATED = ("kind", "levels", "transform", "mean", "std", "loss", "delta", "weight", "given")


class Task(BaseModel, metaclass=PlainWords):
    """What to predict: an outcome that happens or not, a grade, or a number.

    With z the output of the model for an item, and y the label:

    | kind     | label              | served                          | loss                                                 |
    |----------|--------------------|---------------------------------|------------------------------------------------------|
    | `binary` | 0 or 1             | sigmoid(z), a probability       | cross-entropy, and in-request losses                 |
    | `graded` | 0 to `levels`      | sigmoid(z) = mean of y / levels | the same with y / levels as the label                |
    | `number` | any finite number  | t^-1(z), in units of the label  | squared or Huber, of z and the transformed label t(y)|

    t is that of `Number`: x, ln(1 + x), or these standardised, (t - mean) / std. After a logarithm, what is served is below the mean of y,
    near its median, and at most e^80. Standardised numbers train best; `Schema.fit` measures `mean` and `std` on the known labels of the
    training rows. All three kinds, and that a grade is trained as a share, are our choice.

    Args:
        name: name of the task, of the model output and of the score in a reply.
        label: column of the label; `name` where not given.
        missing: what a missing label means: 'error', or 'unknown' (the row gets weight 0 for this task).
        kind: 'binary', 'graded' or 'number'.
        levels: of 'graded': the highest grade, such as 4.
        transform: of 'number': 'identity', 'log1p', 'standardise' or 'log1p_standardise'; label >= 0 for a logarithm.
        mean, std: of a standardising transform; None = not fitted yet.
        loss: of 'number': 'squared', (z - t)^2, or 'huber', (z - t)^2 / 2 up to `delta` and linear beyond.
        delta: of 'huber', in units of t.
        weight: column with the weight of each row in this task's loss, a finite number >= 0; None: 1. Metrics of a
            validation, of `evaluate` and of a report weigh rows by it too, but for NDCG and MRR.
        given: name of a binary task: the label counts where that one is 1, as dwell time counts given a click. What is served is then
            the prediction under this condition. Labels of other rows are not read.

    Example:
        >>> kr.Task("click", missing="unknown").encode([1, 0, None]).tolist()
        [1.0, 0.0, nan]
        >>> kr.Task("stars", kind="graded", levels=4).encode([4, 1]).tolist()
        [1.0, 0.25]
        >>> dwell = kr.Task("dwell", label="dwell_seconds", kind="number", transform="log1p", given="click", missing="unknown")
        >>> dwell.encode([0.0, None]).tolist(), dwell.served(dwell.encode([99.0])).round(3).tolist()
        ([0.0, nan], [99.0])
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str = ""
    missing: Literal["error", "unknown"] = "error"
    kind: Literal["binary", "graded", "number"] = "binary"
    levels: int | None = Field(default=None, ge=1, le=1000)
    transform: Literal["identity", "log1p", "standardise", "log1p_standardise"] = "identity"
    mean: float | None = Field(default=None, allow_inf_nan=False)
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    loss: Literal["squared", "huber"] = "squared"
    delta: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    weight: str | None = None
    given: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(**({} if name is None else {"name": name}), **settings)  # pydantic raises the error of a missing name

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("label"):
            data = {**data, "label": data.get("name", "")}
        return data

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            rule = "must be letters, digits and underscores, not starting with a digit"
            stated = f"the column may have any name: Task({usable(name)!r}, label={name!r})"
            raise ValueError(f"`name` {rule}. Received: name={name!r}; {stated}")
        return name

    @model_validator(mode="after")
    def _check_kind(self) -> Task:
        if (self.levels is None) == (self.kind == "graded"):
            raise ValueError(
                f"`levels`, the highest grade, is for kind='graded', which needs it. Received: kind={self.kind!r}, levels={self.levels}"
            )
        for name, default in (("transform", "identity"), ("mean", None), ("std", None), ("loss", "squared"), ("delta", 1.0)):
            if self.kind != "number" and getattr(self, name) != default:
                raise ValueError(f"`{name}` is for kind='number'. Received: kind={self.kind!r}, {name}={getattr(self, name)!r}")
        if self.loss != "huber" and self.delta != 1.0:
            raise ValueError(f"`delta` is for loss='huber'. Received: loss={self.loss!r}, delta={self.delta}")
        return self

    @model_serializer(mode="wrap")
    def _as_dict(self, plain: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """What a binary task does not state is not written: other schemas keep their files and digests."""
        fields = type(self).model_fields
        return {name: value for name, value in plain(self).items() if name not in _STATED or value != fields[name].default}

    @property
    def fitted(self) -> bool:
        """Whether all constants are known."""
        return not self.transform.endswith("standardise") or (self.mean is not None and self.std is not None)

    @property
    def _number(self) -> Number:
        """The column of numbers with this transform; the label may have any name."""
        return Number.model_construct(name=self.label, transform=self.transform, mean=self.mean, std=self.std)

    def fit(self, values: Any) -> Task:
        """The same task with the constants of its transform, measured on the known ones of these labels. See `Schema.fit`.

        Raises:
            ValueError: no known label.
        """
        series = plain_series(values)
        known = series[~np.isnan(numbers_of(series)[0])]
        if self.fitted:
            return self
        if not len(known):
            raise ValueError(f"task '{self.name}' cannot be fitted on a log without known labels.")
        found = self._number.fit(known)
        return self.model_copy(update={"mean": found.mean, "std": found.std})

    def encode(self, values: Any) -> np.ndarray:
        """Labels as float32: 0 or 1, grades as shares from 0 to 1, numbers transformed; NaN where unknown."""
        if not self.fitted:
            raise ValueError(
                f"task '{self.name}' has transform={self.transform!r} without `mean` and `std`: call `schema.fit(training_rows)`."
            )
        series = plain_series(values)
        labels, faults = self._labels(series)
        raise_first(self.label, series, faults)
        return labels.astype(np.float32)

    def faults(self, values: Any) -> Faults:
        """Every value that `encode` refuses: pairs of a mask of rows and the reason."""
        return self._labels(plain_series(values))[1]

    def _labels(self, series: pd.Series) -> tuple[np.ndarray, Faults]:
        labels, wrong = numbers_of(series)
        missing = np.isnan(labels) & ~wrong  # text that is not a number is wrong, not missing
        faults: Faults = []
        if self.kind == "binary":
            faults.append((~missing & (labels != 0) & (labels != 1), f"of task '{self.name}' must hold 0 or 1"))
        elif self.kind == "graded":
            beyond = ~missing & ~((labels >= 0) & (labels <= (self.levels or 0)))
            faults.append((beyond, f"of task '{self.name}' must hold a grade from 0 to levels={self.levels}"))
            labels = labels / (self.levels or 1)
        else:
            known = np.where(missing, 0.0, labels)
            found, of_number = self._number._standardised(pd.Series(np.where(wrong, np.nan, known)))
            faults.append((wrong, f"of task '{self.name}' must hold numbers"))
            faults += [(rows & ~missing & ~wrong, f"of task '{self.name}' {reason}") for rows, reason in of_number]
            labels = np.where(missing, np.nan, found)
        if self.missing == "error":
            stated = "Task(missing='unknown') gives such rows weight 0"
            faults.append((missing, f"must hold a label of task '{self.name}' in every row; {stated}"))
        return labels, faults

    def row_weights(self, values: Any) -> tuple[np.ndarray, Faults]:
        """Weights of rows as float32, and the values that are none."""
        weights, wrong = numbers_of(plain_series(values))
        bad = wrong | ~((weights >= 0) & (weights <= np.finfo(np.float32).max))
        return np.where(bad, 0.0, weights).astype(np.float32), [(bad, f"of task '{self.name}' must hold weights, finite numbers >= 0")]

    def served_label(self, labels: np.ndarray) -> np.ndarray:
        """Encoded labels of a number in its own units, float64."""
        return self.served(labels)

    def served(self, outputs: np.ndarray) -> np.ndarray:
        """What is served of the outputs z of a model, in float64: see the table."""
        z = np.asarray(outputs, dtype=np.float64)
        if self.kind != "number":
            with np.errstate(over="ignore"):
                return np.asarray(1.0 / (1.0 + np.exp(-z)))
        if self.transform.endswith("standardise"):
            z = z * float(self.std or 1.0) + float(self.mean or 0.0)
        return np.asarray(np.expm1(np.minimum(z, LARGEST_LOGARITHM)) if self.transform.startswith("log1p") else z)


def check_conditions(tasks: Sequence[Task]) -> None:
    """Check that a task counts under a binary one of these, which has no condition.

    Raises:
        ValueError: naming the task.
    """
    free = {task.name for task in tasks if task.kind == "binary" and task.given is None}
    for task in tasks:
        if task.given is not None and (task.given not in free or task.given == task.name):
            raise ValueError(
                f"`given` of task '{task.name}' must name another binary task, which has no condition of its own. "
                f"Received: given={task.given!r}"
            )


def counting_rows(tasks: Sequence[Task], task: Task, events: pd.DataFrame) -> np.ndarray:
    """Rows in which the label of a task counts, bool: where the task that it is `given` is 1; all, where it is given none."""
    for other in tasks:
        if other.name == task.given:
            return np.asarray(numbers_of(events[other.label])[0] == 1)
    return np.ones(len(events), dtype=bool)


def encoded_labels(tasks: Sequence[Task], task: Task, events: pd.DataFrame) -> np.ndarray:
    """Labels of a task as float32, NaN where they are unknown or do not count."""
    counts = counting_rows(tasks, task, events)
    found = np.full(len(events), np.nan, dtype=np.float32)
    found[counts] = task.encode(events[task.label][counts])
    return found
