"""Requests: one member, one time, a history of L events and N candidates, as serving sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from keras_ranking.configuration import is_integer, is_real
from keras_ranking.data.log_columns import require_frame
from keras_ranking.data.sequences import Sequences, checked_sequences
from keras_ranking.schema import Schema


@dataclass(frozen=True)
class Requests:
    """Q requests as slices of member streams: nothing is copied until a batch is made.

    Attributes:
        sequences: the streams.
        history_begin, history_end: (Q,) events of the member before the request's time, the newest `max_history` of them.
        candidate_begin, candidate_end: (Q,) the impressions of the request.
        time: (Q,) int32 request time.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> found = kr.data.requests(log.events, log.schema.fit(log.events))
        >>> found.tensors([0], ["history_length", "candidate_count"])
        {'history_length': array([0], dtype=int32), 'candidate_count': array([10], dtype=int32)}
    """

    sequences: Sequences
    history_begin: np.ndarray
    history_end: np.ndarray
    candidate_begin: np.ndarray
    candidate_end: np.ndarray
    time: np.ndarray

    def __len__(self) -> int:
        return len(self.time)

    def tensors(
        self, which: Sequence[int] | np.ndarray, names: Sequence[str], history: int | None = None, candidates: int | None = None
    ) -> dict[str, np.ndarray]:
        """Serving tensors of the chosen requests.

        Args:
            which: (B,) indices of requests; -1: an empty request, all zeros.
            names: names of the tensors, such as `history_click`, `candidate_age`, `history_length` (a model's input names). A column that
                is known='member' has one value a request, (B[, size]): `member_country`.
            history, candidates: L and N to pad to; None: the longest of the batch (at least 1).

        Raises:
            ValueError: a name that no tensor has (an action of a candidate, a column known only after scoring), or a size
                too small for the batch.
        """
        which = np.asarray(which, dtype=np.int64)
        events = self._slots(self.history_begin, self.history_end, which, history, "history")
        shown = self._slots(self.candidate_begin, self.candidate_end, which, candidates, "candidates")
        sequences, schema = self.sequences, self.sequences.schema
        known = {column.name for column in schema.features_known("item", "context")}
        # Actions on a candidate are not known when it is scored, so only the history has them.
        columns = {"history": known | {action.name for action in schema.actions}, "candidate": known, "member": set(schema.of_member)}
        out: dict[str, np.ndarray] = {}
        for name in names:
            side, _, column = name.partition("_")
            if name == "history_length":
                out[name] = (events >= 0).sum(axis=1).astype(np.int32)
            elif name == "candidate_count":
                out[name] = (shown >= 0).sum(axis=1).astype(np.int32)
            elif name == "request_time":
                out[name] = np.where(which < 0, 0, self.time[which]).astype(np.int32)
            elif name == "history_time":
                out[name] = take_or_zero(sequences.time, events)
            elif name in ("history_session", "request_session") and sequences.session is not None:
                # The first candidate has that of the request.
                out[name] = take_or_zero(sequences.session, events if side == "history" else shown[:, 0])
            elif side == "member" and column in columns[side]:  # one value a request: that of its first candidate, as of all
                out[name] = take_or_zero(sequences.columns[column], shown[:, 0])
            elif column in columns.get(side, ()):
                out[name] = take_or_zero(sequences.columns[column], events if side == "history" else shown)
            else:
                raise ValueError(
                    "`names` must be `history_length`, `history_time`, `candidate_count`, `request_time`, with a session in the schema "
                    "`history_session` and `request_session`, "
                    f"or `history_`, `candidate_` and, of the member's columns, 'member_' before the columns {columns}. Received: {name!r}"
                )
        return out

    def candidate_index(self, which: Sequence[int] | np.ndarray, candidates: int | None = None) -> np.ndarray:
        """(B, N) int64: event of each candidate slot, -1 beyond the request's candidates."""
        return self._slots(self.candidate_begin, self.candidate_end, np.asarray(which, dtype=np.int64), candidates, "candidates")

    @staticmethod
    def _slots(begin: np.ndarray, end: np.ndarray, which: np.ndarray, size: int | None, name: str) -> np.ndarray:
        begin, end = (np.where(which < 0, 0, bound[which]) if len(bound) else np.zeros_like(which) for bound in (begin, end))
        return _padded(begin, end, size, name)


def requests(
    events: pd.DataFrame | Sequences,
    schema: Schema | None = None,
    max_history: int | None = None,
    delay: int | None = None,
    on_error: str = "raise",
) -> Requests:
    """Cut a log into requests: each list of candidates with the member's events strictly before it.

    Only requests with at least one target event are made (see `build_sequences`).

    Args:
        events: a log, or streams from `build_sequences`.
        schema: needed where `events` is a log.
        max_history: largest L; None: no limit. The newest events are kept.
        delay: leave out events younger than this number of seconds, which a model with mask='delay' and the same delay does not see;
            None: keep them. Not for mask='session': without its latest events, a session seems to have ended.
            With `max_history`, the newest visible events are kept, as many as the model reads.
        on_error: of a log: 'raise', or 'drop': bad rows are left out and counted in `Requests.sequences.report`.

    Returns:
        `Requests`.

    Raises:
        ValueError: a log without a schema, a negative `max_history`, a `delay` below 1, or what `build_sequences` finds wrong.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> found = kr.data.requests(log.events, log.schema.fit(log.events), max_history=20)
        >>> tensors = found.tensors([0, 1], ["history_item_id", "history_length", "candidate_item_id"], history=20)
        >>> tensors["history_item_id"].shape
        (2, 20)
    """
    if max_history is not None and (not is_integer(max_history) or max_history < 0):
        raise ValueError(f"`max_history` must be an integer of at least 0, or None. Received: max_history={max_history!r}")
    if isinstance(events, Sequences):
        sequences = events
    elif schema is None:
        require_frame(events)
        raise ValueError("`schema` must be given with a log. Received: schema=None")
    else:
        sequences = checked_sequences(events, schema, on_error=on_error, offers=("on_error",))
    bounds = sequences.request_starts
    begin, end = bounds[:-1], bounds[1:]
    seen = np.concatenate([[0], np.cumsum(sequences.target)])
    wanted = seen[end] > seen[begin]
    begin, end = begin[wanted], end[wanted]
    member = sequences.member
    # First event of the same member at the same time: a request does not see another one of the same second.
    fresh = np.ones(sequences.num_events, dtype=bool)
    fresh[1:] = (sequences.time[1:] != sequences.time[:-1]) | (member[1:] != member[:-1])
    tick = np.maximum.accumulate(np.where(fresh, np.arange(sequences.num_events), 0))
    history_end = tick[begin] if len(begin) else begin
    history_begin = sequences.offsets[member[begin]] if len(begin) else begin
    if delay is not None:
        if not is_real(delay) or delay < 1:
            raise ValueError(f"`delay` must be at least 1 second. Received: delay={delay!r}")
        clock = (member.astype(np.int64) << 32) + sequences.time  # increasing over the streams
        history_end = np.maximum(history_begin, np.searchsorted(clock, clock[begin] - delay, side="right"))
    if max_history is not None:
        history_begin = np.maximum(history_begin, history_end - max_history)
    return Requests(sequences, history_begin, history_end, begin, end, sequences.time[begin])


def _padded(begin: np.ndarray, end: np.ndarray, size: int | None, name: str) -> np.ndarray:
    longest = int((end - begin).max(initial=0))
    size = max(longest, 1) if size is None else size
    if longest > size:
        raise ValueError(f"`{name}` must be at least the longest of the batch, {longest}. Received: {name}={size}")
    index = begin[:, None] + np.arange(size)[None, :]
    return np.where(index < end[:, None], index, -1)


def take_or_zero(column: np.ndarray, index: np.ndarray) -> np.ndarray:
    """`column[index]`, zero where index is -1."""
    if not len(column):
        return np.zeros((*index.shape, *column.shape[1:]), dtype=column.dtype)
    taken: np.ndarray = column[np.maximum(index, 0)]
    taken[index < 0] = 0
    return taken
