"""The Schema: every column of a log named once, and read alike by data preparation, models, export and client.

A log has one row per impression: one item shown to one member. The schema says which column plays which role and, above
all, *when each value is known*:

| known      | meaning                                                           | may be an input of a score          |
|------------|-------------------------------------------------------------------|-------------------------------------|
| `item`     | describes the item; the same whoever asks                         | yes, in history and candidates      |
| `context`  | known when the item was scored (counts, device, affinity)         | yes                                 |
| actions    | what the member did; known after the feedback delay               | of *later* events only              |
| `after`    | known after scoring (position shown, dwell of the page)           | never                               |

A column cannot stand in two of these at once, so an after-scoring value can never become an input of a score.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from keras_ranking.ops.hashing import canonical_text, fingerprint64, hash_buckets, split_fingerprint
from keras_ranking.ops.logarithm import log1p

Known = Literal["item", "context", "after"]
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = frozenset({"time", "segment", "session", "length", "count", "request_time", "history_length", "candidate_count"})
_INT32_MAX = 2**31 - 1


class _Column(BaseModel):
    """What all feature kinds share. `name` is the column of the log and the name of the model input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    known: Known = "item"

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(**({} if name is None else {"name": name}), **settings)  # a missing name: the error is pydantic's

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"`name` must be letters, digits and underscores, not starting with a digit. Received: name={name!r}")
        if name in _RESERVED:
            raise ValueError(f"`name` must not be a word that the model inputs use themselves. Received: name={name!r}")
        return name

    @property
    def dtype(self) -> str:
        """Data type of the encoded column: 'int32' for ids and categories, 'float32' for numbers and vectors."""
        return "float32"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one encoded value: `()`, or `(size,)` for a vector."""
        return ()

    def encode(self, values: Any) -> np.ndarray:
        """Values of the log -> the numbers the model reads. Errors name column, row and value."""
        raise NotImplementedError

    def numbers(self, values: Any) -> np.ndarray:
        """The log's numbers as float64, a missing one as NaN: what the `raw` signature of an export takes."""
        series = pd.Series(values)
        if isinstance(series.dtype, pd.CategoricalDtype):
            series = series.astype(object)
        if series.dtype.kind in "mMc":
            raise ValueError(f"column '{self.name}' must hold numbers. Received: values of type {series.dtype}")
        if series.dtype == object or pd.api.types.is_string_dtype(series.dtype):
            converted = pd.to_numeric(series, errors="coerce")
            bad = converted.isna() & series.notna()
            if bad.any():
                row = int(bad.to_numpy().argmax())
                raise ValueError(f"column '{self.name}' must hold numbers. Received: {series.iloc[row]!r} at row {row}")
            series = converted
        return series.to_numpy(dtype=np.float64, na_value=np.nan)


class Id(_Column):
    """An identifier with no order and no fixed vocabulary, hashed to rows of an embedding table.

    row = 1 + Fingerprint64(text) mod (buckets - 1); row 0 = missing. See `keras_ranking.ops.fingerprint64`.

    With `buckets=None` the whole 64-bit fingerprint is kept, as two int32 halves, and embedded by quotient and remainder tables
    (`QuotientRemainderEmbedding`): no two ids share all their rows. A missing id is (0, 0).

    Args:
        name: column of the log.
        buckets: rows of the table, at least 2; None: no hashing into buckets. Our choice: 65,536.
        divisor: with `buckets=None`, m of the quotient and remainder tables. Our choice: 65,536, which has the fewest rows.
        table: ids with the same `table` share one embedding table; None: a table of their own.
        known: 'item', 'context' or 'after'.
    """

    kind: Literal["id"] = "id"
    buckets: int | None = Field(default=65536, ge=2, le=_INT32_MAX)
    divisor: int = Field(default=65536, ge=2, le=2**30)
    table: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @property
    def dtype(self) -> str:
        return "int32"

    @property
    def shape(self) -> tuple[int, ...]:
        return (2,) if self.buckets is None else ()

    @property
    def rows(self) -> int | None:
        """Rows of the embedding table, the one for missing values included; None where any int32 is an id."""
        return self.buckets

    def encode(self, values: Any) -> np.ndarray:
        if self.buckets is not None:
            return hash_buckets(values, self.buckets, self.name)
        texts = canonical_text(values, self.name)
        return np.where((texts == "")[:, None], np.int32(0), split_fingerprint(fingerprint64(texts)))


class Category(_Column):
    """One of a few values: rows 1..n of a stated vocabulary, in its order; row 0 = missing or not in the vocabulary.

    Args:
        name: column of the log.
        vocabulary: the values as text (integers in base 10). None: hashed to `buckets` rows like an `Id`.
        buckets: rows where no vocabulary is given.
        table: categories with the same `table` (and the same rows) share one embedding table; None: a table of their own.
        known: 'item', 'context' or 'after'.
    """

    kind: Literal["category"] = "category"
    vocabulary: tuple[str, ...] | None = None
    buckets: int = Field(default=256, ge=2, le=_INT32_MAX)
    table: str | None = None

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @field_validator("vocabulary", mode="before")
    @classmethod
    def _check_vocabulary(cls, vocabulary: Any) -> Any:
        if vocabulary is None:
            return None
        if isinstance(vocabulary, str):
            raise ValueError(f"`vocabulary` must be a list of texts. Received: vocabulary={vocabulary!r}")
        words = tuple(canonical_text(list(vocabulary), "vocabulary"))  # the texts under which the log's values are looked up
        if not words or len(set(words)) != len(words) or "" in words:
            raise ValueError(f"`vocabulary` must be distinct, non-empty texts. Received: vocabulary={words}")
        return words

    @property
    def dtype(self) -> str:
        return "int32"

    @property
    def rows(self) -> int:
        """Rows of the embedding table, the one for missing values included."""
        return self.buckets if self.vocabulary is None else len(self.vocabulary) + 1

    def encode(self, values: Any) -> np.ndarray:
        if self.vocabulary is None:
            return hash_buckets(values, self.buckets, self.name)
        texts = canonical_text(values, self.name)
        return (pd.Index(self.vocabulary).get_indexer(pd.Index(texts, dtype=object)) + 1).astype(np.int32)


class Number(_Column):
    """A number, transformed to float32.

    | transform           | formula                                  |
    |---------------------|------------------------------------------|
    | `identity`          | x                                        |
    | `log1p`             | ln(1 + x), x >= 0                        |
    | `standardise`       | (x - mean) / std                         |
    | `log1p_standardise` | (ln(1 + x) - mean) / std, x >= 0         |

    `mean` and `std` are constants stored in the schema: give them, or let `Schema.fit` measure them on training rows.

    Args:
        name: column of the log.
        transform: see the table.
        mean, std: fitted constants, in units of the (log-)value; None = not fitted yet.
        missing: the raw value that stands for a missing one. None: a missing value is an error.
        known: 'item', 'context' or 'after'.
    """

    kind: Literal["number"] = "number"
    transform: Literal["identity", "log1p", "standardise", "log1p_standardise"] = "identity"
    mean: float | None = Field(default=None, allow_inf_nan=False)
    std: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    missing: float | None = Field(default=None, allow_inf_nan=False)

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @property
    def fitted(self) -> bool:
        """Whether `encode` can run: true unless a standardising transform has no constants yet."""
        return not self.transform.endswith("standardise") or (self.mean is not None and self.std is not None)

    def before_standardise(self, values: Any) -> np.ndarray:
        """The values after imputation and logarithm, in float64; what `Schema.fit` measures mean and std of."""
        numbers = self.numbers(values)
        if self.missing is not None:
            numbers = np.where(np.isnan(numbers), self.missing, numbers)
        bad = ~np.isfinite(numbers)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(
                f"column '{self.name}' must hold finite numbers. Received: {numbers[row]} at row {row} "
                f"({int(bad.sum())} such rows); state Number('{self.name}', missing=...) to replace missing values."
            )
        if self.transform.startswith("log1p"):
            if (numbers < 0).any():
                row = int((numbers < 0).argmax())
                raise ValueError(
                    f"column '{self.name}' has transform={self.transform!r} and must not be negative. Received: {numbers[row]} at row {row}"
                )
            numbers = log1p(numbers)  # not numpy's: a served graph computes the same bits
        return numbers

    def encode(self, values: Any) -> np.ndarray:
        numbers = self.before_standardise(values)
        if self.transform.endswith("standardise"):
            if self.mean is None or self.std is None:
                raise ValueError(
                    f"column '{self.name}' has transform={self.transform!r} without `mean` and `std`: "
                    "call `schema = schema.fit(training_rows)` first."
                )
            numbers = (numbers - self.mean) / self.std
        large = np.abs(numbers) > np.finfo(np.float32).max
        if large.any():
            row = int(large.argmax())
            raise ValueError(f"column '{self.name}' has a value too large for float32. Received: {numbers[row]} at row {row}")
        return numbers.astype(np.float32)


class Vector(_Column):
    """A precomputed vector of fixed size (a content or profile embedding), float32.

    Args:
        name: column of the log; each value a sequence of `size` numbers.
        size: length of the vector.
        known: 'item', 'context' or 'after'.
    """

    kind: Literal["vector"] = "vector"
    size: int = Field(ge=1)

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(name, **settings)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def encode(self, values: Any) -> np.ndarray:
        whole = isinstance(values, np.ndarray) and values.dtype.kind in "fiu" and values.ndim == 2 and values.shape[1] == self.size
        rows = values if whole else list(values)
        if not whole:
            for row, value in enumerate(rows):
                numeric = not isinstance(value, str | bytes) and hasattr(value, "__len__") and np.asarray(value).dtype.kind in "fiu"
                if not numeric or np.shape(value) != (self.size,):
                    raise ValueError(f"column '{self.name}' must hold vectors of {self.size} numbers. Received: {value!r} at row {row}")
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused below
            out = np.asarray(rows, dtype=np.float32).reshape(len(rows), self.size)
        if not np.isfinite(out).all():
            row = int((~np.isfinite(out)).any(axis=1).argmax())
            raise ValueError(f"column '{self.name}' must hold finite numbers. Received: {rows[row]!r} at row {row}")
        return out


Feature = Annotated[Id | Category | Number | Vector, Field(discriminator="kind")]


class Task(BaseModel):
    """A binary outcome to predict.

    Args:
        name: name of the task, of the model output and of the score in a reply.
        label: column with 0 or 1; `name` where not given.
        missing: what a missing label means: 'error', or 'unknown' (the row gets weight 0 for this task).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str = ""
    missing: Literal["error", "unknown"] = "error"

    def __init__(self, name: str | None = None, **settings: Any) -> None:
        super().__init__(**({} if name is None else {"name": name}), **settings)  # a missing name: the error is pydantic's

    @model_validator(mode="before")
    @classmethod
    def _default_label(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("label"):
            data = {**data, "label": data.get("name", "")}
        return data

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"`name` must be letters, digits and underscores, not starting with a digit. Received: name={name!r}")
        return name

    def encode(self, values: Any) -> np.ndarray:
        """Labels as float32 0 or 1, NaN where unknown."""
        series = pd.Series(values)
        labels = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        missing = series.isna().to_numpy()  # a text that is no number is wrong, not missing
        bad = ~missing & (labels != 0) & (labels != 1)
        if bad.any():
            row = int(bad.argmax())
            raise ValueError(f"column '{self.label}' of task '{self.name}' must hold 0 or 1. Received: {series.iloc[row]!r} at row {row}")
        if missing.any() and self.missing == "error":
            row = int(missing.argmax())
            raise ValueError(
                f"column '{self.label}' of task '{self.name}' has no label at row {row} ({int(missing.sum())} such rows); "
                "Task(missing='unknown') gives them weight 0."
            )
        return labels.astype(np.float32)


class Schema(BaseModel):
    """What the columns of an impression log are.

    Args:
        member: column with the member's id.
        time: column with the impression's time: Unix seconds, or datetimes (taken as UTC where they name no zone).
        request: column with the id of the request (one member, one time, one list of candidates).
        session: column with the session's id, or None.
        position: column with the rank at which the item was shown, 1 = first, or None. Known after scoring.
        features: `Id`, `Category`, `Number`, `Vector` columns, each with when it is known.
        actions: what the member did, as features (a bare name is `Number(name)`); inputs of later events only.
        tasks: what to predict.
        epoch: Unix time from which model times count, in seconds; model times are int32 seconds after it.
        feedback_delay: seconds after an impression by which its actions, as this log states them, were known. Models hide
            younger events (their `delay`), so it must be true: a dwell time that ends later leaks. Our choice: 60.

    Raises:
        ValueError: (pydantic's ValidationError) a column in two roles, a repeated name, an unusable name.

    Example:
        >>> schema = Schema(
        ...     member="member_id",
        ...     time="shown_at",
        ...     request="request_id",
        ...     position="rank",
        ...     features=[Id("item_id"), Number("age_hours", transform="log1p"), Number("ctr", known="context")],
        ...     actions=["click", Number("dwell_seconds", transform="log1p")],
        ...     tasks=[Task("click")],
        ... )
        >>> Schema.model_validate_json(schema.model_dump_json()) == schema
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    member: str
    time: str
    request: str
    session: str | None = None
    position: str | None = None
    features: tuple[Feature, ...]
    actions: tuple[Feature, ...] = ()
    tasks: tuple[Task, ...]
    epoch: int = 1_262_304_000  # 2010-01-01 00:00:00 UTC; int32 seconds reach to 2078
    feedback_delay: int = Field(default=60, ge=1, le=_INT32_MAX)

    @field_validator("actions", mode="before")
    @classmethod
    def _bare_actions(cls, actions: Any) -> Any:
        if isinstance(actions, str):
            raise ValueError(f"`actions` must be a list of names or features. Received: actions={actions!r}")
        return tuple({"kind": "number", "name": action, "known": "after"} if isinstance(action, str) else action for action in actions)

    @field_validator("actions")
    @classmethod
    def _actions_are_after(cls, actions: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(action.model_copy(update={"known": "after"}) for action in actions)

    @field_validator("tasks", mode="before")
    @classmethod
    def _bare_tasks(cls, tasks: Any) -> Any:
        if isinstance(tasks, str):
            raise ValueError(f"`tasks` must be a list of names or tasks. Received: tasks={tasks!r}")
        return tuple({"name": task} if isinstance(task, str) else task for task in tasks)

    @model_validator(mode="after")
    def _check_roles(self) -> Schema:
        if not self.tasks:
            raise ValueError("`tasks` must name at least one task.")
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"`tasks` must have distinct names. Received: {names}")
        if clash := [name for name in names if f"{name}_by_position" in names]:
            raise ValueError(f"task '{clash[0]}_by_position' has the name of an output of task '{clash[0]}'.")
        roles = {"member": self.member, "time": self.time, "request": self.request, "session": self.session, "position": self.position}
        taken: dict[str, str] = {}
        for role, column in roles.items():
            if column is None:
                continue
            # a request may have no id of its own: one visit, or one time, can be one request
            if column in taken and (role == "position" or "request" not in (role, taken[column])):
                raise ValueError(f"column '{column}' stands in two roles, {taken[column]} and {role}.")
            taken[column] = role
        after = {column: f"the label of task '{task.name}'" for task in self.tasks for column in [task.label]}
        after |= {action.name: "an action" for action in self.actions}
        if self.position is not None:
            after[self.position] = "the position shown"
        seen: set[str] = set()
        for feature in self.features:
            if feature.name in seen:
                raise ValueError(f"`features` must have distinct names. Received '{feature.name}' twice.")
            seen.add(feature.name)
            if feature.known != "after" and feature.name in after:
                raise ValueError(
                    f"column '{feature.name}' is {after[feature.name]}, which is known only after scoring; "
                    f"it cannot be an input of a score (known='{feature.known}')."
                )
            if feature.name in (self.time, self.request, self.position):
                raise ValueError(f"column '{feature.name}' is the {taken[feature.name]} and cannot be a feature as well.")
        acted: set[str] = set()
        for action in self.actions:
            if action.name in seen:
                raise ValueError(f"column '{action.name}' is an action and cannot be a feature as well.")
            if action.name in acted:
                raise ValueError(f"`actions` must have distinct names. Received '{action.name}' twice.")
            if action.name in taken:
                raise ValueError(f"column '{action.name}' is the {taken[action.name]} and cannot be an action as well.")
            acted.add(action.name)
        return self

    # -- looking things up -------------------------------------------------------------------------------------------

    def features_known(self, *known: Known) -> tuple[Any, ...]:
        """Features known at any of the stated times, in schema order."""
        return tuple(feature for feature in self.features if feature.known in known)

    def inputs(self, names: Any = None, known: tuple[Known, ...] = ("item", "context")) -> tuple[Any, ...]:
        """The features of the given names, checked to be usable as inputs of a score.

        Raises:
            ValueError: an unknown name, or a column that is known only after scoring.
        """
        if names is None:
            return self.features_known(*known)
        by_name = {feature.name: feature for feature in self.features}
        after = {action.name for action in self.actions} | {task.label for task in self.tasks} | {self.position}
        after |= {feature.name for feature in self.features if feature.known == "after"}
        chosen = []
        for name in names:
            if name in after:
                raise ValueError(f"column '{name}' is known only after scoring and cannot be an input of a score.")
            if name not in by_name:
                raise ValueError(f"column '{name}' is not a feature of the schema. It has: {sorted(by_name)}")
            chosen.append(by_name[name])
        return tuple(chosen)

    def task(self, name: str) -> Task:
        """The task of that name.

        Raises:
            ValueError: no such task.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"unknown task '{name}'. The schema has: {[task.name for task in self.tasks]}")

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the log that the schema reads, each once."""
        names = [self.member, self.time, self.request, self.session, self.position]
        names += [column.name for column in (*self.features, *self.actions)] + [task.label for task in self.tasks]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    # -- values --------------------------------------------------------------------------------------------------------

    def encode_time(self, values: Any) -> np.ndarray:
        """Times of the log as int32 seconds after `epoch`.

        Raises:
            ValueError: a missing time, one before the epoch or too late for int32, or a fraction of a second.
        """
        series = pd.Series(values)
        if pd.api.types.is_datetime64_any_dtype(series.dtype):
            if series.isna().any():
                raise ValueError(f"column '{self.time}' has no time at row {int(series.isna().to_numpy().argmax())}")
            stamps = series.dt.tz_convert("UTC").dt.tz_localize(None) if series.dt.tz is not None else series
            whole = stamps.dt.floor("s")
            if (whole != stamps).any():
                row = int((whole != stamps).to_numpy().argmax())
                raise ValueError(
                    f"column '{self.time}' must hold whole seconds. Received: {series.iloc[row]} at row {row}; "
                    "cut the fractions yourself, with `.dt.floor('s')`."
                )
            seconds = whole.to_numpy().astype("datetime64[s]").astype(np.int64)
        else:
            numbers = pd.to_numeric(series, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
            bad = ~np.isfinite(numbers) | (numbers != np.floor(numbers))
            if bad.any():
                row = int(bad.argmax())
                raise ValueError(
                    f"column '{self.time}' must hold whole Unix seconds or datetimes. Received: {series.iloc[row]!r} at row {row}"
                )
            seconds = numbers.astype(np.int64)
        after = seconds - self.epoch
        bad = (after < 0) | (after > _INT32_MAX)
        if bad.any():
            row = int(bad.argmax())
            side = "before the schema's epoch" if after[row] < 0 else "too far after the schema's epoch for int32"
            raise ValueError(f"column '{self.time}' has a time {side} ({self.epoch}). Received: {int(seconds[row])} at row {row}")
        return after.astype(np.int32)

    def fit(self, events: pd.DataFrame) -> Schema:
        """A schema whose standardising numbers carry mean and standard deviation of these rows (training rows only).

        A constant column gets std 1. Constants that were given already are kept.
        """

        def fitted(column: Any) -> Any:
            if not isinstance(column, Number) or column.fitted:
                return column
            if column.name not in events.columns:
                raise ValueError(f"column '{column.name}' of the schema is not in the log. It has: {sorted(map(str, events.columns))}")
            numbers = column.before_standardise(events[column.name])
            if not len(numbers):
                raise ValueError(f"column '{column.name}' cannot be fitted on a log without rows.")
            constant = numbers.min() == numbers.max()  # not std == 0: the rounding of a mean makes it 1e-17
            mean = float(numbers[0] if constant else numbers.mean()) if column.mean is None else column.mean
            std = float(1.0 if constant else numbers.std()) if column.std is None else column.std
            return column.model_copy(update={"mean": mean, "std": std})

        return self.model_copy(update={"features": tuple(map(fitted, self.features)), "actions": tuple(map(fitted, self.actions))})

    # -- files ---------------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 of the schema's JSON: two schemas with one digest read a log alike."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the schema as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read a schema written by `save`."""
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
