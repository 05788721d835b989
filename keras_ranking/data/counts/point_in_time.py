"""PointInTime: several states and numbers relative to a list in one, for a log and for a request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Number
from keras_ranking.data.counts.choice_strengths import ChoiceStrengths
from keras_ranking.data.counts.expectation import RunningExpectation
from keras_ranking.data.counts.fold_in import FoldIn
from keras_ranking.data.counts.list_relative import list_relative
from keras_ranking.data.counts.running_counts import RunningCounts
from keras_ranking.data.counts.running_moments import RunningMoments
from keras_ranking.data.counts.running_past import RunningPast
from keras_ranking.data.counts.state import State
from keras_ranking.data.log_columns import require_frame

Part = State | ChoiceStrengths
_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (ChoiceStrengths, FoldIn, RunningCounts, RunningExpectation, RunningMoments, RunningPast)
}
_VERSION = 1


class PointInTime:
    """States of a log, read and continued together.

    Parts come in order: a later one may use columns of an earlier one, such as `RunningCounts(expected="item_click_share")` after
    `ChoiceStrengths`. Columns whose names are in `relative`, or all with True, also come relative to their list, see `list_relative`.
    Residuals are left out of `features`, since they are known with the outcome.

    Args:
        parts: `RunningCounts`, `ChoiceStrengths`, `RunningPast`, `RunningExpectation`, `FoldIn`.
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
        frame = events.reset_index(drop=True)
        made = []
        for part in self.parts:
            if isinstance(part, ChoiceStrengths):
                found = part.update(frame[mask], round).reindex(frame.index)
            else:
                found = part.update(frame, mask, round)
            made.append(found)
            frame = frame.assign(**{str(name): found[name] for name in found})
        out = pd.concat(made, axis=1)
        if self.relative and self.request is not None:
            shown = out.loc[mask, self.relative].assign(**{self.request: frame.loc[mask, self.request]})
            out = pd.concat([out, list_relative(shown, self.relative, self.request).reindex(out.index)], axis=1)
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

    def added_to(self, log: Any, counted: Any = None) -> Any:
        """The log with these columns, as numbers of the context that its schema names.

        Rows that have no value, such as events of the past that were in no list, get the column's mean over the others as `missing`. Views
        and seconds are standardised after a logarithm. Columns of residuals are added to the log, not to the schema: name them as actions.

        Args:
            log: a `Log` without these columns.
            counted: as `update`; None: the rows whose split is not 'history'.

        Returns:
            A `Log`.

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
        return replace(log, events=pd.concat([events, columns], axis=1), schema=schema)

    def save(self, folder: str | Path) -> None:
        """Write the states to a folder, one file each."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        files = []
        for number, part in enumerate(self.parts):
            file = f"{number}.{'json' if isinstance(part, ChoiceStrengths) else 'npz'}"
            part.save(place / file)
            files.append({"kind": type(part).__name__, "file": file})
        about = {"version": _VERSION, "parts": files, "request": self.request, "relative": self.relative}
        (place / "point_in_time.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> PointInTime:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: a folder without it.
            ValueError: of a later version.
        """
        place = Path(folder)
        about = json.loads((place / "point_in_time.json").read_text(encoding="utf-8"))
        if about.get("version") != _VERSION:
            raise ValueError(f"'{folder}' holds no states that this version reads.")
        parts = [_KINDS[part["kind"]].load(place / part["file"]) for part in about["parts"]]
        return cls(parts, about["request"], about["relative"])


def _number(name: str, values: pd.Series) -> Number:
    """The schema's column of a feature: amounts after a logarithm, everything standardised."""
    amount = bool((values.dropna() >= 0).all()) and ("_views_" in name or name.endswith("_seconds_since"))
    missing = float(values.mean()) if values.notna().any() else 0.0
    return Number(name, transform="log1p_standardise" if amount else "standardise", missing=missing, known="context")
