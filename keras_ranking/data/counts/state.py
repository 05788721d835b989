"""What all states share: rows go in by `update`, a request is read by `features`, and a file keeps what there is."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from keras_ranking.data.counts.keys import KeyNumbers
from keras_ranking.data.counts.running_sums import RunningSums
from keras_ranking.data.log_columns import require_column, require_frame, unix_seconds

_VERSION = 1


class State:
    """Point-in-time columns of a log that go on: the same numbers for a row of training and for a request.

    `update` gives each row its columns, as they were known at its time, and takes the rows in. Going on with later rows equals starting
    anew on all of them. `features` gives the columns of rows that are scored now, and takes nothing in.

    A subclass names its arguments in `settings`, keeps `RunningSums` and `KeyNumbers` by name in `sums` and `keys`, and fills in the three
    methods with an underscore.

    Args:
        time: column with whole Unix seconds or datetimes.
    """

    settings: ClassVar[tuple[str, ...]] = ()

    def __init__(self, time: str) -> None:
        self.time = time
        self.last: int | None = None  # newest time that was read
        self.sums: dict[str, RunningSums] = {}
        self.keys: dict[str, KeyNumbers] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns that `update` and `features` return."""
        raise NotImplementedError

    def _take(self, events: pd.DataFrame, times: np.ndarray, counted: np.ndarray) -> None:
        """Take rows into `sums`."""
        raise NotImplementedError

    def _columns(self, rows: pd.DataFrame, times: np.ndarray) -> dict[str, np.ndarray]:
        """The columns of rows at their times."""
        raise NotImplementedError

    def update(self, events: pd.DataFrame, counted: Any = None, round: str | None = None) -> pd.DataFrame:
        """The columns of each row as they were known at its time; then the rows are part of the state.

        Args:
            events: rows in any order, none earlier than the newest one of an earlier call.
            counted: boolean per row: which rows count for others. All rows get columns. None: all count.
            round: 'floor', 'ceil' or 'nearest': how times with a fraction of a second are rounded. None: a fraction is an error.

        Returns:
            DataFrame with the index of `events` and the columns of `columns`, float64.

        Raises:
            TypeError: `events` is not a DataFrame.
            ValueError: a missing column, a bad value, or rows earlier than the newest one of an earlier call.
        """
        require_frame(events)
        require_column(events, self.time)
        mask = np.ones(len(events), dtype=bool) if counted is None else np.asarray(counted, dtype=bool)
        if mask.shape != (len(events),):
            raise ValueError(f"`counted` must hold one boolean per row ({len(events)}). Received: shape {mask.shape}")
        times = unix_seconds(events, self.time, round) if len(events) else np.zeros(0, dtype=np.int64)
        if self.last is not None and len(times) and times.min() < self.last:
            raise ValueError(f"rows must not be earlier than the newest one before, {self.last}. Received: {int(times.min())}")
        for numbers in self.keys.values():
            numbers.watch(events)
        try:
            self._take(events, times, mask)
            out = self._columns(events, times)
        finally:
            for numbers in self.keys.values():
                numbers.watch(None)
        if len(times):
            self.last = int(times.max())
            for sums in self.sums.values():
                sums.forget(self.last)
        return pd.DataFrame({name: out[name] for name in self.columns}, index=events.index)

    def features(self, rows: pd.DataFrame, time: int) -> pd.DataFrame:
        """The columns of rows that are scored at a time; nothing is taken in.

        Args:
            rows: the candidates of a request, with the columns of the keys.
            time: Unix seconds, not before the newest row.

        Raises:
            TypeError: `rows` is not a DataFrame.
            ValueError: a missing column, or an earlier time.
        """
        require_frame(rows)
        if self.last is not None and time < self.last:
            raise ValueError(f"`time` must not be before the newest row, {self.last}. Received: time={time}")
        out = self._columns(rows, np.full(len(rows), int(time), dtype=np.int64))
        return pd.DataFrame({name: out[name] for name in self.columns}, index=rows.index)

    def anew(self) -> Self:
        """The same state before its first row."""
        made = copy.copy(self)
        made.last = None
        made.keys = {name: KeyNumbers(numbers.columns) for name, numbers in self.keys.items()}
        made.sums = {name: RunningSums(sums.width, sums.reach) for name, sums in self.sums.items()}
        return made

    @property
    def digest(self) -> str:
        """SHA-256 of all that the state knows: equal digests mean equal columns for all later rows."""
        found = hashlib.sha256()
        for name, array in sorted(self._contents().items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the state to a file, by convention `*.npz`."""
        with Path(path).open("wb") as file:
            contents: dict[str, Any] = self._contents()
            np.savez(file, allow_pickle=False, **contents)

    def _contents(self) -> dict[str, np.ndarray]:
        """All that the state knows, as arrays."""
        about = {
            "version": _VERSION,
            "kind": type(self).__name__,
            "settings": {name: getattr(self, name) for name in self.settings},
            "last": self.last,
            "keys": {name: {"columns": numbers.columns, "keys": numbers.as_json()} for name, numbers in self.keys.items()},
        }
        arrays = {f"{name}/{part}": array for name, sums in self.sums.items() for part, array in sums.arrays().items()}
        return {"about": np.array(json.dumps(about)), **arrays, **self._more()}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a state that `save` wrote.

        Raises:
            ValueError: a file of something else, or of a later version.
        """
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays.pop("about", "{}")))
        if about.get("version") != _VERSION or about.get("kind") != cls.__name__:
            raise ValueError(f"'{path}' is not a state of {cls.__name__} that this version reads.")
        made = cls._made(about["settings"], arrays)
        made.last = about["last"]
        made.keys = {name: KeyNumbers(kept["columns"], kept["keys"]) for name, kept in about["keys"].items()}
        for name, sums in made.sums.items():
            sums.restore({part: arrays[f"{name}/{part}"] for part in ("old", "codes", "times", "amounts")})
        return made

    def _more(self) -> dict[str, np.ndarray]:
        """Further arrays for the file."""
        return {}

    @classmethod
    def _made(cls, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Self:
        return cls(**settings)


def check_delay(name: str, delay: Any) -> int:
    """Whole seconds, at least 1.

    Raises:
        ValueError: anything else.
    """
    if isinstance(delay, bool) or not isinstance(delay, (int, float, np.integer, np.floating)) or delay < 1 or int(delay) != delay:
        raise ValueError(f"`{name}` must be whole seconds, at least 1. Received: {name}={delay!r}")
    return int(delay)
