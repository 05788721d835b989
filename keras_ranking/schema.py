"""The Schema: names every column of a log once, for data preparation, models, export and client alike.

A log has one row per impression: one item shown to one member. The schema says which column plays which role and, above
all, *when each value is known*:

| known      | meaning                                                           | may be an input of a score          |
|------------|-------------------------------------------------------------------|-------------------------------------|
| `item`     | describes the item; the same for every member                     | yes, in history and candidates      |
| `context`  | known when the item was scored (counts, device, affinity)         | yes                                 |
| `member`   | describes the member; the same for all candidates of a request    | yes; sent and stored once a request |
| actions    | what the member did; known after the feedback delay               | of *later* events only              |
| `after`    | known after scoring (position shown, dwell of the page)           | never                               |

A column has one of these, so an after-scoring value can never become an input of a score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from keras_ranking.column_base import Known, column_hint, named_columns
from keras_ranking.columns import Count, Feature, Number, Task
from keras_ranking.configuration import is_integer
from keras_ranking.field_errors import PlainWords
from keras_ranking.id_columns import bare_ids
from keras_ranking.number_edges import MOST_BINS
from keras_ranking.schema_file import read_model
from keras_ranking.schema_inference import infer_columns
from keras_ranking.schema_roles import check_roles
from keras_ranking.task import counting_rows
from keras_ranking.values import FRACTION, INT32_MAX, SMALL_UNITS, Faults, plain_series, raise_first, require_frame, seconds_of


class Schema(BaseModel, metaclass=PlainWords):
    """What the columns of an impression log are.

    Args:
        member: column with the member's id.
        time: column with the impression's time: Unix seconds, or datetimes (taken as UTC where they name no zone).
        request: column with the id of the request (one member, one time, one list of candidates).
        session: column with the session's id, or None.
        position: column with the rank at which the item was shown, 1 = first, or None. Known after scoring.
        features: `Id`, `Category`, `Ids`, `SemanticId`, `Number`, `Vector` columns, each with when it is known, and `Count`s, which the
            log does not hold. A bare name that ends in `_id`, or is `id`, is `Id(name)`.
        actions: what the member did, as features (a bare name is `Number(name)`); inputs of later events only.
        tasks: what to predict.
        epoch: Unix time from which model times count, in seconds; model times are int32 seconds after it.
        feedback_delay: seconds after an impression by which all its actions, as stated in this log, were known. Models hide younger
            events (their `delay`). A value that is too small leaks: a dwell time of 90 s was not known after 60 s. Our choice: 60.

    Raises:
        ValueError: a field that is missing, unknown or of another type, a column with two roles, a repeated name, an unusable name.

    Example:
        >>> schema = kr.Schema(
        ...     member="member_id",
        ...     time="shown_at",
        ...     request="request_id",
        ...     position="rank",
        ...     features=[kr.Id("item_id"), kr.Number("age_hours", transform="log1p"), kr.Number("ctr", known="context")],
        ...     actions=["click", kr.Number("dwell_seconds", transform="log1p")],
        ...     tasks=[kr.Task("click")],
        ... )
        >>> schema.columns
        ('member_id', 'shown_at', 'request_id', 'rank', 'item_id', 'age_hours', 'ctr', 'click', 'dwell_seconds')
        >>> kr.Schema.model_validate_json(schema.model_dump_json()) == schema
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
    feedback_delay: int = Field(default=60, ge=1, le=INT32_MAX)

    @field_validator("features", mode="before")
    @classmethod
    def _list_of_features(cls, features: Any) -> Any:
        if isinstance(features, str | BaseModel):
            kinds = "`Id`, `Category`, `Ids`, `SemanticId`, `Number`, `Vector` and `Count`"
            raise ValueError(f"`features` must be a list of {kinds}. Received: features={features!r}")
        return bare_ids(features)

    @field_validator("actions", mode="before")
    @classmethod
    def _bare_actions(cls, actions: Any) -> Any:
        if isinstance(actions, str | BaseModel):
            raise ValueError(f"`actions` must be a list of names or features. Received: actions={actions!r}")
        return tuple({"kind": "number", "name": action, "known": "after"} if isinstance(action, str) else action for action in actions)

    @field_validator("actions")
    @classmethod
    def _actions_are_after(cls, actions: tuple[Any, ...]) -> tuple[Any, ...]:
        if counted := [action.name for action in actions if isinstance(action, Count)]:
            raise ValueError(f"`actions` must be what the member did; a `Count` is a feature. Received: '{counted[0]}'")
        return tuple(action.model_copy(update={"known": "after"}) for action in actions)

    @field_validator("tasks", mode="before")
    @classmethod
    def _bare_tasks(cls, tasks: Any) -> Any:
        if isinstance(tasks, str | BaseModel):
            raise ValueError(f"`tasks` must be a list of names or tasks. Received: tasks={tasks!r}")
        return tuple({"name": task} if isinstance(task, str) else task for task in tasks)

    @model_validator(mode="after")
    def _check_roles(self) -> Schema:
        check_roles(self)
        return self

    # -- looking things up -------------------------------------------------------------------------------------------

    @property
    def of_member(self) -> tuple[str, ...]:
        """Names of the features that describe the member."""
        return tuple(feature.name for feature in self.features_known("member"))

    def features_known(self, *known: Known) -> tuple[Any, ...]:
        """Features known at any of the stated times, in schema order."""
        return tuple(feature for feature in self.features if feature.known in known)

    def inputs(self, names: Any = None, known: tuple[Known, ...] = ("item", "context", "member")) -> tuple[Any, ...]:
        """The features with these names, checked to be usable as inputs of a score.

        Args:
            names: None: all features known at one of the times `known`.
            known: read only where `names` is None.

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
        """The task with this name.

        Raises:
            ValueError: no such task.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise ValueError(f"unknown task '{name}'. The schema has: {[task.name for task in self.tasks]}")

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns of the log that the schema reads, without repetition."""
        names = [self.member, self.time, self.request, self.session, self.position]
        names += [column.name for column in (*self.features, *self.actions)] + [task.label for task in self.tasks]
        names += [task.weight for task in self.tasks]
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def counts(self) -> tuple[Count, ...]:
        """The features that are counted from the log, see `Count`."""
        return tuple(feature for feature in self.features if isinstance(feature, Count))

    @property
    def logged(self) -> tuple[str, ...]:
        """The columns that a log must have before `kr.data.with_counts`: `columns` without the counts, and what these are counted from."""
        counted = {count.name for count in self.counts}
        sources = [column for count in self.counts for column in count.sources]
        return tuple(dict.fromkeys([*(name for name in self.columns if name not in counted), *sources]))

    # -- values --------------------------------------------------------------------------------------------------------

    def encode_time(self, values: Any, round: str | None = None) -> np.ndarray:
        """Times of the log as int32 seconds after `epoch`.

        Args:
            values: whole Unix seconds (integers, or whole numbers in float64) or datetimes (UTC where they name no zone).
            round: 'floor', 'ceil' or 'nearest': how fractions of a second are rounded. None: a fraction is an error.

        Raises:
            ValueError: a missing time, float16 or float32, one before the epoch or too late for int32, or a fraction of a second.
        """
        series = plain_series(values)
        seconds, faults = self.model_seconds(series, round)
        fraction = "; remove fractions first, with `.dt.floor('s')`" if faults and FRACTION in faults[0][1] else ""
        raise_first(self.time, series, faults, fraction)
        return seconds.astype(np.int32)

    def model_seconds(self, values: Any, round: str | None = None) -> tuple[np.ndarray, Faults]:
        """Times as int64 seconds after `epoch`, 0 where the row has a fault, and the faults."""
        seconds, faults = seconds_of(values, round)
        good = np.ones(len(seconds), dtype=bool)
        for rows, _ in faults:
            good &= ~rows
        after = seconds - self.epoch
        early, late = good & (after < 0), good & (after > INT32_MAX)
        reach = f"give Schema(epoch=...) a Unix time at or before the first row; times reach {INT32_MAX} s after it"
        faults = [*faults, (early, f"must not be before the schema's epoch ({self.epoch}); {reach}")]
        for unit, per_second in SMALL_UNITS:
            scaled = seconds // per_second - self.epoch
            fits = late & (scaled >= 0) & (scaled <= INT32_MAX)
            faults.append((fits, f"must hold seconds and holds {unit}: divide by {per_second:,}, `// {per_second}`"))
            late &= ~fits
        faults.append((late, f"must be at most {INT32_MAX} s after the schema's epoch ({self.epoch}); {reach}"))
        return np.where(good & (after >= 0) & (after <= INT32_MAX), after, 0), [fault for fault in faults if fault[0].any()]

    def fit(self, events: pd.DataFrame) -> Schema:
        """The same schema with mean and standard deviation of each standardising number and label, and the edges of each number with bins.

        They are measured on these rows: pass training rows only. A constant column gets std 1 and one bin of width 1. Constants that were
        given before are kept.

        Example:
            >>> log = kr.data.simulate(members=20, days=2, seed=0)
            >>> fitted = log.schema.fit(log.events[log.events["split"] == "train"])
            >>> [feature.mean for feature in fitted.features if feature.name == "age_hours"] == [None]
            False
        """

        require_frame(events)
        events = named_columns(self, events)

        def fitted(column: Any) -> Any:
            if not isinstance(column, Number) or column.fitted:
                return column
            if column.name not in events.columns:
                raise ValueError(
                    f"column '{column.name}' of the schema is not in the log{self.count_hint(column.name)}. "
                    f"It has: {sorted(map(str, events.columns))}"
                )
            return column.fit(events[column.name])

        tasks = tuple(task if task.fitted else task.fit(events[task.label][counting_rows(self.tasks, task, events)]) for task in self.tasks)
        features, actions = (tuple(map(fitted, columns)) for columns in (self.features, self.actions))
        return self.model_copy(update={"features": features, "actions": actions, "tasks": tasks})

    def binned(self, bins: int = 16, names: Sequence[str] | None = None) -> Schema:
        """The same schema with bins for the piecewise-linear encoding of numbers, see `NumericEmbedding`; `fit` finds their edges.

        Args:
            bins: most bins of a number. The paper (2203.05556) tunes it; the default is our choice.
            names: numbers among features and actions; None: all features that are numbers, may be inputs of a score and have no bins yet.

        Raises:
            ValueError: a name that is no number of the schema, or `bins` that is no positive integer.

        Example:
            >>> log = kr.data.simulate(members=20, days=2, seed=0)
            >>> schema = log.schema.binned(8, ["age_hours"]).fit(log.events)
            >>> [len(feature.edges) for feature in schema.features if feature.name == "age_hours"]
            [9]
        """
        if not is_integer(bins) or not 1 <= bins <= MOST_BINS:
            raise ValueError(f"`bins` must be an integer from 1 to {MOST_BINS}. Received: bins={bins!r}")
        columns = (*self.features, *self.actions)
        numbers = [column.name for column in columns if isinstance(column, Number)]
        inputs = self.inputs()
        unbinned = [column.name for column in inputs if isinstance(column, Number) and column.bins is None]
        chosen = unbinned if names is None else list(names)
        if unknown := [name for name in chosen if name not in numbers]:
            raise ValueError(f"`names` must name numbers of the schema, of {numbers}. Received: {unknown}")

        def binned(column: Any) -> Any:
            return column.model_copy(update={"bins": int(bins), "edges": None}) if column.name in chosen else column

        return self.model_copy(update={"features": tuple(map(binned, self.features)), "actions": tuple(map(binned, self.actions))})

    def count_hint(self, name: str) -> str:
        """For the message of a missing column: what adds it, if it is a count, or the column that it is read from; else nothing."""
        counted = any(count.name == name for count in self.counts)
        return "; `kr.data.with_counts(log)` counts it" if counted else column_hint(self, name)

    # -- files ---------------------------------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """SHA-256 of the schema's JSON: two schemas with the same digest encode a log in the same way."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the schema as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def infer(cls, events: pd.DataFrame, member: str, time: str, tasks: Sequence[str], verbose: bool = True, **stated: Any) -> Schema:
        """A first schema of a log: kinds guessed from names, types and values of its first 200,000 rows, drawn at random where there are
        more. Each guess is printed with its reason, and columns that seem to tell a label are left out. Look at it before it is used.

        Args:
            events: the log.
            member, time, tasks: columns with the member, the time and the labels.
            verbose: whether the table of guesses is printed.
            stated: `request`, `session`, `position`, `item` (columns, else found by their usual names), `actions` (names), and
                `feedback_delay`.

        Raises:
            ValueError: a stated column that the log lacks, no row, no column left for a feature.

        Example:
            >>> log = kr.data.simulate(members=20, days=2, seed=0)
            >>> schema = kr.Schema.infer(log.events, "member_id", "time", ["click"], verbose=False, actions=["dwell_seconds"])
            >>> schema.request, schema.position
            ('request_id', 'position')
        """
        delay = {name: stated.pop(name) for name in ("feedback_delay",) if name in stated}
        found = infer_columns(events, member, time, tasks, **stated)
        if verbose:
            print(found.table())
        return cls(**found.roles, features=found.features, actions=tuple(stated.get("actions", ())), tasks=found.tasks, **delay)

    @classmethod
    def load(cls, path: str | Path) -> Schema:
        """Read a schema written by `save`, or by hand.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or not a schema: with the file, the line of each problem, and what is allowed there.
        """
        loaded: Schema = read_model(cls, path)
        return loaded
