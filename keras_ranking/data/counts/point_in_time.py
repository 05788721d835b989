"""PointInTime: several states and numbers relative to a list in one, for a log and for a request."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Number
from keras_ranking.data.counts.choice_strengths import ChoiceStrengths
from keras_ranking.data.counts.column_counts import ColumnCounts
from keras_ranking.data.counts.expectation import RunningExpectation
from keras_ranking.data.counts.fold_in import FoldIn
from keras_ranking.data.counts.keys import key_columns
from keras_ranking.data.counts.list_relative import KINDS, list_relative
from keras_ranking.data.counts.running_counts import RunningCounts
from keras_ranking.data.counts.running_moments import RunningMoments
from keras_ranking.data.counts.running_past import RunningPast
from keras_ranking.data.counts.state import State
from keras_ranking.data.log_columns import require_frame, unix_seconds

Part = State | ChoiceStrengths
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (ChoiceStrengths, ColumnCounts, FoldIn, RunningCounts, RunningExpectation, RunningMoments, RunningPast)
}
_VERSION = 1
FILE = "point_in_time.json"


class PointInTime:
    """States of a log, read and continued together.

    Parts come in order: a later one may use columns of an earlier one, such as `RunningCounts(expected="item_click_share")` after
    `ChoiceStrengths`. Columns whose names are in `relative`, or all with True, also come relative to their list, see `list_relative`.
    Residuals are left out of `features`, since they are known with the outcome.

    Args:
        parts: `RunningCounts`, `ChoiceStrengths`, `RunningPast`, `RunningExpectation`, `FoldIn`, `ColumnCounts`.
        request: column of the list, for `relative`.
        relative: which columns come relative to their list too: names, True (all) or False (none).

    Raises:
        TypeError: a part that is no such state.
        ValueError: no part, two columns of one name, `relative` without `request`, or of a name that no part has.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> states = kr.data.PointInTime(
        ...     [kr.data.RunningCounts("item_id", [3600, None]), kr.data.ChoiceStrengths("item_id", "request_id")],
        ...     request="request_id",
        ...     relative=["item_id_click_strength"],
        ... )
        >>> columns = states.update(log.events)
        >>> columns.shape == (len(log.events), 11)
        True
        >>> now = int(log.events["time"].max()) + 60
        >>> states.features(log.events[["item_id"]].head(3), time=now).shape
        (3, 11)
    """

    def __init__(self, parts: Sequence[Part], request: str | None = None, relative: Sequence[str] | bool = False) -> None:
        self.parts, self.request = list(parts), request
        self.rows = 0  # that were read
        for part in self.parts:
            if not isinstance(part, (State, ChoiceStrengths)):
                raise TypeError(f"`parts` must be states such as RunningCounts. Received: {type(part).__name__}")
        names = [name for part in self.parts for name in part.columns]
        if not names or len(set(names)) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"`parts` must have columns of different names. Received: {f'{twice} twice' if twice else 'no part'}")
        self.relative = names if relative is True else [] if relative is False else list(relative)
        if unknown := [name for name in self.relative if name not in names]:
            raise ValueError(f"`relative` must name columns of the parts, of {names}. Received: {unknown}")
        if self.relative and request is None:
            raise ValueError("`relative` needs `request`, the column of the list. Received: request=None")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `update` and `features` return."""
        own = [name for part in self.parts for name in part.columns]
        return (*own, *(f"{name}_{kind}" for name in self.relative for kind in KINDS))

    @property
    def last(self) -> int | None:
        """Newest time that was read, Unix seconds; None before the first row."""
        return max((part.last for part in self.parts if part.last is not None), default=None)

    @property
    def keys(self) -> tuple[str, ...]:
        """Columns of the keys: what `features` reads of a request."""
        found = [
            key_columns(part.key) if isinstance(part, ChoiceStrengths) else [name for key in part.keys.values() for name in key.columns]
            for part in self.parts
        ]
        return tuple(dict.fromkeys(name for names in found for name in names))

    @property
    def digest(self) -> str:
        """SHA-256 of all that the states know: equal digests mean equal columns for all later rows."""
        about = [self.request, self.relative, self.rows, *(part.digest for part in self.parts)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def anew(self) -> PointInTime:
        """The same states before their first row."""
        return PointInTime([part.anew() for part in self.parts], self.request, self.relative)

    def copied(self) -> PointInTime:
        """A copy, that goes on by itself."""
        return copy.deepcopy(self)

    def update(self, events: pd.DataFrame, counted: Any = None, round: str | None = None) -> pd.DataFrame:
        """The columns of each row as they were known at its time; then the rows are part of the states.

        Args:
            events: rows in any order, whole lists, none earlier than the newest one of an earlier call.
            counted: boolean per row: which rows count for others. A `ChoiceStrengths` reads these rows alone, so for others its columns are
                missing, and so is what is relative to a list. None: all.
            round: as `point_in_time_counts`.

        Returns:
            DataFrame with the index of `events`, float64.

        Raises:
            TypeError: `events` is not a DataFrame.
            ValueError: as the parts.
        """
        require_frame(events)
        mask = np.ones(len(events), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
        if mask.shape != (len(events),):
            raise ValueError(f"`counted` must hold one boolean per row ({len(events)}). Received: shape {mask.shape}")
        return self.go_on(events, mask, mask, round)

    def go_on(self, events: pd.DataFrame, counted: np.ndarray, plainly: np.ndarray, round: str | None) -> pd.DataFrame:
        """`update` with other rows that count for the `ColumnCounts` among the parts: `plainly`."""
        frame, mask = events.reset_index(drop=True), counted
        made = []
        for part in self.parts:
            if isinstance(part, ChoiceStrengths):
                found = part.update(frame[mask], round).reindex(frame.index)
            else:
                found = part.update(frame, plainly if isinstance(part, ColumnCounts) else mask, round)
            made.append(found)
            frame = frame.assign(**{str(name): found[name] for name in found})
        out = pd.concat(made, axis=1)
        if self.relative and self.request is not None:
            shown = out.loc[mask, self.relative].assign(**{self.request: frame.loc[mask, self.request]})
            out = pd.concat([out, list_relative(shown, self.relative, self.request).reindex(out.index)], axis=1)
        self.rows += len(events)
        return out.set_axis(events.index)

    def features(self, rows: pd.DataFrame, time: int) -> pd.DataFrame:
        """The columns of the candidates of one request, scored at a time; nothing is taken in.

        Args:
            rows: the candidates, with the columns of the keys.
            time: Unix seconds, not before the newest row.

        Raises:
            TypeError: `rows` is not a DataFrame.
            ValueError: a missing column, or an earlier time.
        """
        require_frame(rows)
        plain = rows.reset_index(drop=True)
        out = pd.concat([part.features(plain, time) for part in self.parts], axis=1)
        if self.relative and self.request is not None:
            one = out[self.relative].assign(**{self.request: 0})
            out = pd.concat([out, list_relative(one, self.relative, self.request)], axis=1)
        return out.set_axis(rows.index)

    def with_features(self, candidates: pd.DataFrame, time: Any, **of_request: Any) -> pd.DataFrame:
        """The candidates of one request with the columns of the states, as a client or a model takes them.

        Args:
            candidates: one row per candidate, without these columns.
            time: of the request: Unix seconds or a datetime, not before the newest row.
            **of_request: columns of keys that are the same for all candidates, such as member_id=17. They are read, not added.

        Returns:
            The candidates, with these columns.

        Raises:
            TypeError: `candidates` is not a DataFrame.
            ValueError: a column of a key that is missing or given twice, columns of these names, or an earlier time.

        Example:
            >>> log = kr.data.simulate(members=20, days=2, seed=0)
            >>> states = kr.data.PointInTime([kr.data.ColumnCounts([kr.Count(("member_id", "topic"), of="views")])])
            >>> columns = states.update(log.events)
            >>> candidates = pd.DataFrame({"topic": ["topic_1", "topic_2"]})
            >>> states.with_features(candidates, 1_790_000_000, member_id=3)["member_id_topic_views_all"].tolist()
            [14.0, 7.0]
        """
        require_frame(candidates, "candidates")
        if twice := [name for name in of_request if name in candidates]:
            raise ValueError(f"`candidates` have the column '{twice[0]}' already. Received: {twice[0]}={of_request[twice[0]]!r} as well")
        if missing := [name for name in self.keys if name not in candidates and name not in of_request]:
            has = sorted(map(str, [*candidates.columns, *of_request]))
            raise ValueError(
                f"`candidates` must have the columns of the keys; one that is the same for all is given by name, "
                f"with_features(candidates, time, {missing[0]}=...). Missing: {missing}. Received: {has}"
            )
        if there := [name for name in self.columns if name in candidates]:
            raise ValueError(f"`candidates` have columns of these names already: {there}")
        moment = int(unix_seconds(pd.DataFrame({"time": [time]}), "time")[0])
        found = self.features(candidates.assign(**of_request), moment)
        return candidates.assign(**{name: found[name].to_numpy() for name in map(str, found)})

    def added_to(self, log: Any, counted: Any = None) -> Any:
        """The log with these columns, as numbers of the context that its schema names.

        Rows that have no value, such as events of the past that were in no list, get the column's mean over the others as `missing`. Views
        and seconds are standardised after a logarithm. Columns of residuals are added to the log, not to the schema: name them as actions.

        Args:
            log: a `Log` without these columns.
            counted: as `update`; None: the rows whose split is not 'history'.

        Returns:
            A `Log`, with these states as its `counts`: `kr.training.train` saves them with the run.

        Raises:
            ValueError: a column that the log has already.
        """
        events = log.events
        mask = (events["split"] != "history").to_numpy() if counted is None else counted
        columns = self.update(events, mask, log.round)
        if there := [name for name in columns if name in events]:
            raise ValueError(f"the log has columns of these names already: {there}")
        known = [name for name in map(str, columns) if not name.endswith("_residual")]
        features = tuple(_number(name, columns[name]) for name in known)
        schema = log.schema.model_copy(update={"features": (*log.schema.features, *features)})
        return replace(log, events=pd.concat([events, columns], axis=1), schema=schema, counts=self)

    def save(self, folder: str | Path) -> None:
        """Write the states to a folder, one file each."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for name, write in self.files().items():
            write(place / name)

    def files(self) -> dict[str, Callable[[Path], Any]]:
        """The names of the files of `save`, and what writes each."""
        files: dict[str, Callable[[Path], Any]] = {}
        kinds = []
        for number, part in enumerate(self.parts):
            file = f"{number}.{'json' if isinstance(part, ChoiceStrengths) else 'npz'}"
            files[file] = part.save
            kinds.append({"kind": type(part).__name__, "file": file})
        about = {"version": _VERSION, "parts": kinds, "request": self.request, "relative": self.relative, "rows": self.rows}
        text = json.dumps(about, indent=1)
        return {**files, FILE: lambda path: path.write_text(text, encoding="utf-8")}

    @classmethod
    def load(cls, folder: str | Path) -> PointInTime:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a folder without it.
            ValueError: of a later version.
        """
        place = Path(folder)
        about = json.loads((place / FILE).read_text(encoding="utf-8"))
        if about.get("version") != _VERSION:
            raise ValueError(f"'{folder}' holds no states that this version reads.")
        parts = [_KINDS[part["kind"]].load(place / part["file"]) for part in about["parts"]]
        made = cls(parts, about["request"], about["relative"])
        made.rows = about.get("rows", 0)
        return made


def _number(name: str, values: pd.Series) -> Number:
    """The schema's column of a feature: amounts after a logarithm, everything standardised."""
    amount = bool((values.dropna() >= 0).all()) and ("_views_" in name or name.endswith("_seconds_since"))
    missing = float(values.mean()) if values.notna().any() else 0.0
    return Number(name, transform="log1p_standardise" if amount else "standardise", missing=missing, known="context")
