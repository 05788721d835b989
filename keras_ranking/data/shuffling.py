"""Random order of events inside a session: in serving, all candidates of a session are scored before any of its actions are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from keras_ranking.data.member_values import in_order
from keras_ranking.data.sequences import Sequences, require_sequences


def session_order(
    sequences: Sequences, seed: int | Sequence[int] = 0, cuts: Sequence[int] | np.ndarray = ()
) -> tuple[np.ndarray, np.ndarray]:
    """A random order of the events inside each session, and the time of each place.

    Args:
        sequences: from `build_sequences`, with a session.
        seed: of the order; an integer, or several that form one seed.
        cuts: places in the streams that no event may cross (`PackedRows.cuts`).

    Returns:
        (E,) int64, the event at each place; (E,) int32, the time of each place.

    Raises:
        ValueError: the schema names no session, or a request has two.
    """
    require_sequences(sequences)
    if sequences.session is None:
        raise ValueError(
            "shuffling inside sessions needs a schema with a session: name its column, or give the option `shuffle_sessions=None`. "
            "Received: session=None"
        )
    starts = sequences.request_starts
    size = np.diff(starts)
    if not len(size):
        return np.zeros(0, dtype=np.int64), sequences.time
    request = np.repeat(np.arange(len(size)), size)
    session = sequences.session[starts[:-1]]
    if (sequences.session != session[request]).any():
        row = int((sequences.session != session[request]).argmax())
        raise ValueError(
            f"column '{sequences.schema.session}' must hold one session for all rows of a request, to shuffle inside sessions. "
            f"Received: another one at row {int(sequences.rows[row])} of the log"
        )
    rng = np.random.default_rng(seed)
    block = np.searchsorted(np.sort(np.asarray(cuts, dtype=np.int64)), starts[:-1], side="right")
    places = np.lexsort((np.arange(len(size)), session, block))
    drawn = np.lexsort((rng.random(len(size)), session, block))
    place = np.empty(len(size), dtype=np.int64)  # of each request, among the requests
    place[drawn] = places
    order = np.lexsort((rng.random(len(request)), place[request]))
    time = sequences.time[starts[:-1]][place[request[order]]]
    return order, time


def shuffle_sessions(sequences: Sequences, seed: int | Sequence[int] = 0, cuts: Sequence[int] | np.ndarray = ()) -> Sequences:
    """The same streams with the events of each session in random order, item and action together.

    Feed-SR uses a random order in the session (stated): feedback inside a session is strongly correlated, and in serving all
    candidates of a request are scored before any action of their session. A shuffle weakens this difference between training and
    serving; the delay mask and the session mask remove it.

    Requests change places with requests of the same member and session, and impressions change places inside their request, so
    a request's impressions stay together. *Times belong to the places, not to the events*: the request that moves to the
    k-th place of its session gets the time of that place. So times never decrease, as masks by delay and the rotation need; a
    request's time is wrong by at most the length of the session; and no time reveals the old order.
    All other columns, also those known at scoring, move with their event. Whether the paper shuffles once or each epoch is
    not known.

    Args:
        sequences: from `build_sequences`, with a session.
        seed: of the order; an integer, or several that form one seed.
        cuts: places in the streams that no event may cross.

    Returns:
        `Sequences` with the events in their new places.

    Raises:
        ValueError: the schema names no session, or a request has two.

    Example:
        >>> log = kr.data.simulate(members=50, days=3, seed=0)
        >>> sequences = kr.data.build_sequences(log.events, log.schema.fit(log.events))
        >>> moved = kr.data.shuffle_sessions(sequences, seed=1)
        >>> bool((np.sort(moved.rows) == np.sort(sequences.rows)).all()), bool((moved.rows == sequences.rows).all())
        (True, False)
    """
    order, time = session_order(sequences, seed, cuts)
    return replace(
        sequences,
        time=time,
        request=sequences.request[order],
        session=None if sequences.session is None else sequences.session[order],
        position=sequences.position[order],
        columns={name: in_order(column, order) for name, column in sequences.columns.items()},
        labels={name: label[order] for name, label in sequences.labels.items()},
        target=sequences.target[order],
        rows=sequences.rows[order],
    )
