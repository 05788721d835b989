"""`ShardedLog`: a prepared log on disk, in shards that each hold the whole streams of some members."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.data.checks import Report
from keras_ranking.data.member_values import HeldOnce
from keras_ranking.data.readers.log import HISTORY, NEW_MEMBERS, SPLITS, Log, log_of
from keras_ranking.data.sequences import Sequences
from keras_ranking.data.shards.container import file_digest, read_arrays
from keras_ranking.data.shards.ids import ids_of_arrays
from keras_ranking.data.shards.parts import report_of_plain
from keras_ranking.schema import Schema

MANIFEST, VERSION = "manifest.json", 1
_FORMAT = "keras_ranking shards"


@dataclass(frozen=True)
class Chosen:
    """Which events of a sharded log are read, and which of them are targets.

    Attributes:
        read: splits that are read; None: all.
        target: splits of the targets; None: all that are read.
        since: model time before which no event is a target; None: none.
        without: model time from which events of the target splits are not read at all, such as those of a validation; None: none.
        until: model time after which nothing is read; None: none.
    """

    read: tuple[str, ...] | None = None
    target: tuple[str, ...] | None = None
    since: int | None = None
    without: int | None = None
    until: int | None = None

    def masks(self, split: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which events are read and which are targets, bool (E,), by split code and time."""
        wanted = _of(split, self.target if self.target is not None else self.read)
        read = _of(split, self.read)
        if self.target is not None:
            read = read | wanted
        if self.without is not None:
            read &= ~(wanted & (time >= self.without))
        if self.until is not None:
            read &= time <= self.until
        if self.since is not None:
            wanted &= time >= self.since
        return read, wanted & read


TRAINING = Chosen(read=("train", HISTORY), target=("train",))


def _of(split: np.ndarray, words: Sequence[str] | None) -> np.ndarray:
    if words is None:
        return np.ones(len(split), dtype=bool)
    return np.isin(split, [SPLITS.index(word) for word in words])


class ShardedLog:
    """A log of any size as a folder of shards, which `keras-ranking prepare` and `keras_ranking.data.prepare` write.

    Each shard has the whole streams of some members, chosen by a hash of the member's id: what `build_sequences` makes of their rows,
    encoded, with the `split` of each event. Training, evaluation and scoring read one shard after the other, so they need the memory of a
    few shards. Files are mapped into memory; no library but numpy reads them.

    | file | content |
    |---|---|
    | `manifest.json` | version, schema with its constants, report of the checks, and each shard's file, digest and sizes |
    | `00000.shard`, ... | arrays: members, times, requests, columns, labels, splits, rows of the log, ids |

    Args:
        folder: that was written.

    Attributes:
        folder: the folder.
        manifest: the content of `manifest.json`.

    Raises:
        FileNotFoundError: no manifest in the folder.
        ValueError: of another format or version, or a shard that is missing or has another size.

    Example:
        >>> log = kr.data.simulate(members=40, days=2, seed=0)
        >>> shards = kr.data.prepare(log, "runs/shards", shards=2)
        >>> shards.events == len(log.events), shards.shards, sorted(shards.splits)
        (True, 2, ['test', 'train', 'validation'])
        >>> kr.data.ShardedLog("runs/shards").sequences(0).num_members == shards.manifest["files"][0]["members"]
        True
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"`folder` must hold a sharded log, with a {MANIFEST}. Received: '{folder}'; `prepare` writes one.")
        self.manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if self.manifest.get("format") != _FORMAT:
            raise ValueError(f"'{path}' is not the manifest of a sharded log.")
        if self.manifest["version"] != VERSION:
            raise ValueError(
                f"'{folder}' holds shards of version {self.manifest['version']}, and this version of the package reads version {VERSION}: "
                "prepare the log again."
            )
        for about in self.manifest["files"]:
            file = self.folder / about["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != about["bytes"]:
                raise ValueError(
                    f"'{file}' must have {about['bytes']:,} bytes. Received: {'no such file' if size is None else f'{size:,} bytes'}"
                )

    def __repr__(self) -> str:
        return f"ShardedLog({str(self.folder)!r}: {self.events:,} events of {self.members:,} members in {self.shards} shards)"

    @cached_property
    def schema(self) -> Schema:
        """What the columns are, with fitted constants."""
        return Schema.model_validate(self.manifest["schema"])

    @property
    def name(self) -> str:
        """Name of the log."""
        return str(self.manifest["name"])

    @property
    def preset(self) -> str | None:
        """Preset of the log, see `Log`."""
        preset = self.manifest.get("preset")
        return None if preset is None else str(preset)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.manifest["files"])

    @property
    def events(self) -> int:
        """Number of events: rows of the log that passed the checks."""
        return self._sum("events")

    @property
    def members(self) -> int:
        """Number of members."""
        return self._sum("members")

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self._sum("requests")

    @property
    def longest_request(self) -> int:
        """Impressions of the largest request."""
        return max((int(about["longest_request"]) for about in self.manifest["files"]), default=0)

    @property
    def splits(self) -> dict[str, int]:
        """Events by split."""
        return {word: self._sum("splits", word) for word in SPLITS if any(word in about["splits"] for about in self.manifest["files"])}

    @property
    def keep(self) -> tuple[str, ...]:
        """Columns that were kept beside those of the schema."""
        return tuple(self.manifest["keep"])

    @cached_property
    def report(self) -> Report:
        """What the checks left out."""
        return report_of_plain(self.manifest["report"])

    @property
    def digest(self) -> str:
        """Of all shards: two logs with the same digest and schema hold the same."""
        return str(self.manifest["digest"])

    def _sum(self, name: str, word: str | None = None) -> int:
        return sum(int(about[name] if word is None else about[name].get(word, 0)) for about in self.manifest["files"])

    def newest(self, split: str) -> int:
        """Model time of the newest event of a split.

        Raises:
            ValueError: no such events.
        """
        self.require_split(split)
        return max(int(about["newest"][split]) for about in self.manifest["files"] if split in about["newest"])

    def require_split(self, split: str) -> None:
        """Check that there are events of a split.

        Raises:
            ValueError: none.
        """
        if split not in self.splits:
            why = "; `holdout`, or `--holdout-members` of `keras-ranking prepare`, makes them" if split == NEW_MEMBERS else ""
            raise ValueError(f"the log '{self.name}' has no rows with split '{split}'. It has: {sorted(self.splits)}{why}")

    def verify(self) -> None:
        """Read all shards and compare their digests with those of the manifest.

        Raises:
            ValueError: a shard that is not what was written.
        """
        for about in self.manifest["files"]:
            found = file_digest(self.folder / about["file"])
            if found != about["digest"]:
                raise ValueError(
                    f"'{self.folder / about['file']}' is not what was written. Received: digest {found}, not {about['digest']}"
                )

    def arrays(self, number: int) -> dict[str, np.ndarray]:
        """The arrays of a shard, mapped into memory."""
        return read_arrays(self.folder / self.manifest["files"][number]["file"])[1]

    def sequences(self, number: int, chosen: Chosen | None = None, columns: Sequence[str] | None = None) -> Sequences:
        """The streams of a shard, as `build_sequences` makes them of the rows of its members.

        Args:
            number: of the shard, from 0 on.
            chosen: which events are read and which are targets; None: all.
            columns: features and actions to read; None: all. Of the others there are zeros, in no memory.

        Returns:
            `Sequences`, whose `rows` are those of the log.

        Raises:
            IndexError: no such shard.
        """
        return sequences_of(self.arrays(number), self.schema, chosen or Chosen(), self.report, columns)

    def all_sequences(self, chosen: Chosen | None = None, columns: Sequence[str] | None = None) -> Iterator[Sequences]:
        """The streams of one shard after the other."""
        return (self.sequences(number, chosen, columns) for number in range(self.shards))

    def kept(self, number: int, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A kept column of a shard as float64, and the rows of the log.

        Raises:
            ValueError: a column that was not kept.
        """
        if name not in self.keep:
            raise ValueError(f"column '{name}' was not kept with the shards, which have {list(self.keep)}: prepare the log with `keep`.")
        arrays = self.arrays(number)
        return arrays[f"keep/{name}"], arrays["rows"]


def sequences_of(arrays: dict[str, np.ndarray], schema: Schema, chosen: Chosen, report: Report, columns: Sequence[str] | None) -> Sequences:
    """The chosen events of a shard's arrays."""
    read, target = chosen.masks(arrays["split"], arrays["time"])
    starts, offsets = arrays["starts"], arrays["offsets"]
    sizes = np.diff(starts)
    members = ids_of_arrays(arrays, "member_id")
    names = [feature.name for feature in (*schema.features, *schema.actions)]
    wanted = set(names if columns is None else columns)
    whole = Sequences(
        schema=schema,
        members=members,
        offsets=offsets,
        time=arrays["time"],
        request=np.repeat(arrays["request"], sizes),
        session=arrays.get("session"),
        position=arrays["position"],
        columns={name: _column(arrays, name, name in wanted, name in schema.of_member) for name in names},
        labels={task.name: arrays[f"label/{task.name}"] for task in schema.tasks},
        weights={task.name: arrays[f"weight/{task.name}"] for task in schema.tasks if task.weight is not None},
        target=target,
        rows=arrays["rows"],
        report=report,
    )
    return whole if read.all() else _taken(whole, read)


def _column(arrays: dict[str, np.ndarray], name: str, wanted: bool, of_member: bool) -> Any:
    values = arrays[f"column/{name}"]
    if not wanted:
        values = np.broadcast_to(np.zeros(1, dtype=values.dtype).reshape((1,) * values.ndim), values.shape)
    return HeldOnce(values, arrays["member_run"]) if of_member else values


def _taken(whole: Sequences, read: np.ndarray) -> Sequences:
    """The streams without some events, in the order that `build_sequences` gives the others."""
    index = np.flatnonzero(read)
    seen = np.concatenate([[0], np.cumsum(read)])[whole.offsets]
    there = np.diff(seen) > 0
    member, request, rows = whole.member[index], whole.request[index], whole.rows[index]
    change = np.ones(len(index), dtype=bool)
    change[1:] = (request[1:] != request[:-1]) | (member[1:] != member[:-1])
    starts = np.flatnonzero(change)
    if len(starts):
        # Requests of one member and second are in the order of their first rows, which may be among the rows that are not read.
        first = np.minimum.reduceat(rows, starts)
        time, of = whole.time[index][starts], member[starts]
        if ((first[1:] < first[:-1]) & (time[1:] == time[:-1]) & (of[1:] == of[:-1])).any():
            run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(index))))
            index = index[np.lexsort((rows, first[run], time[run], member))]

    def take(values: Any) -> Any:
        if isinstance(values, HeldOnce):
            return values.of_events(index)
        if values.strides and values.strides[0] == 0:  # a column of zeros
            return np.broadcast_to(values[:1], (len(index), *values.shape[1:]))
        return np.asarray(values[index])

    return replace(
        whole,
        members=whole.members[there],
        offsets=np.append(seen[:-1][there], seen[-1]) if len(seen) else seen,
        time=take(whole.time),
        request=take(whole.request),
        session=None if whole.session is None else take(whole.session),
        position=take(whole.position),
        columns={name: take(values) for name, values in whole.columns.items()},
        labels={name: take(values) for name, values in whole.labels.items()},
        weights={name: take(values) for name, values in whole.weights.items()},
        target=take(whole.target),
        rows=take(whole.rows),
    )


def require_sharded(log: Any) -> None:
    """Check that this is a `ShardedLog`.

    Raises:
        TypeError: with the way to make one.
    """
    if not isinstance(log, ShardedLog):
        raise TypeError(f"`log` must be a keras_ranking.data.ShardedLog. Received: {type(log).__name__}; `prepare` makes one of a log.")


def log_or_shards(log: Any, schema: Schema | None, verbose: bool = False) -> Log | ShardedLog:
    """`log_of`, for functions that take a log in shards too, which stays as it is.

    Raises:
        TypeError, ValueError: as `log_of`.
    """
    return log if schema is None and isinstance(log, ShardedLog) else log_of(log, schema, verbose)
