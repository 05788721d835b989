"""Which rows are trained on: by time, and by member."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from keras_ranking.data.log_columns import require_column, require_frame
from keras_ranking.data.readers.cuts import TRAIN_SHARE, cut_by_time
from keras_ranking.data.readers.log import HISTORY, NEW_MEMBERS, Log, log_of
from keras_ranking.ops.hashing import distinct_ids, fingerprint64
from keras_ranking.schema import Schema


def hold_out_members(log: Log | pd.DataFrame, share: float = 0.25, seed: int = 0, schema: Schema | None = None) -> Log:
    """The log with members who are never trained on, to measure a model on new members.

    A member is held out if Fingerprint64 of "seed:member" is below `share` of 2**64. So it is the same member in every order and every
    part of a log, whether ids are integers or texts. Of held-out members

    - rows with split "train" become "history": read as the member's history, never a target of training;
    - rows with split "validation" or "test" become "new_members": `kr.training.evaluate(model, log, split="new_members")`;
    - rows with split "history" stay.

    Columns do not change. Counts of items may therefore include what held-out members did before a row, as they do for a new
    member in production; constants of the schema are fitted on rows that are trained on.

    Args:
        log: a `Log`, or a DataFrame with `schema`, which is cut by time where it has no column `split`.
        share: share of the members, above 0 and below 1.
        seed: another seed holds out other members.
        schema: of a DataFrame.

    Returns:
        `Log` with the split word "new_members", and one more note.

    Raises:
        TypeError: `log` is neither, or a DataFrame without a schema.
        ValueError: another share, a log with such rows already, or no row to train on is left.

    Example:
        >>> log = kr.data.hold_out_members(kr.data.simulate(members=40, days=2, seed=0), share=0.25)
        >>> trained, new = set(log.split("train")["member_id"]), set(log.split("new_members")["member_id"])
        >>> len(trained & new), 0 < len(new) < 20
        (0, True)
    """
    log = log_of(log, schema)
    if not isinstance(share, int | float) or not 0 < share < 1:
        raise ValueError(f"`share` of the members to hold out must lie strictly between 0 and 1. Received: share={share!r}")
    require_column(log.events, log.schema.member, "of the schema is not in the log")
    words = log.events["split"].to_numpy(dtype=object)
    if (words == NEW_MEMBERS).any():
        raise ValueError(f"`log` has rows with split '{NEW_MEMBERS}' already: hold members out of the log as it was read.")
    held, chosen, known = held_out(log.events[log.schema.member], share, seed)
    split = split_of_held_out(words, held)
    trained, later = held & (words == "train"), held & (split == NEW_MEMBERS)
    if not ((words == "train") & ~held).any():
        raise ValueError(f"`share` must leave rows to train on. Received: share={share} of {known} members")
    note = (
        f"{chosen:,} of {known:,} members are held out (share {share}, seed {seed}): {int(later.sum()):,} of their "
        f"rows are '{NEW_MEMBERS}', {int(trained.sum()):,} rows to train on became '{HISTORY}'"
    )
    return replace(log, events=log.events.assign(split=split), notes=(*log.notes, note))


def held_out(members: pd.Series, share: float, seed: int) -> tuple[np.ndarray, int, int]:
    """Which rows are of members that `hold_out_members` holds out, and how many members are, of how many."""
    found = distinct_ids(members)
    known = np.array([text != "" for text in found.texts], dtype=bool)  # a missing member, which the checks of a log find, is not held out
    salted = fingerprint64(np.array([f"{seed}:{text}" for text in found.texts], dtype=object))
    chosen = known & (salted.astype(np.float64) < share * 2.0**64)
    return found.at_rows(chosen, False), int(chosen.sum()), int(known.sum())


def split_of_held_out(words: np.ndarray, held: np.ndarray) -> np.ndarray:
    """The splits of rows, of which those of held-out members are not trained on."""
    trained, later = held & (words == "train"), held & ((words == "validation") | (words == "test"))
    return np.where(trained, HISTORY, np.where(later, NEW_MEMBERS, words)).astype(object)


def split_by_time(events: pd.DataFrame, schema: Schema, train_share: float = TRAIN_SHARE) -> pd.DataFrame:
    """The rows with a column `split`: the first `train_share` of the requests by time are "train", the rest "validation".

    Every request is kept whole. A row without a usable time, which the checks of a log find, is "train".

    Args:
        events: one row per impression.
        schema: what the columns are.
        train_share: share of the requests, above 0 and below 1.

    Returns:
        The same rows with the column `split`.

    Raises:
        TypeError: `events` is not a DataFrame.
        ValueError: no rows, a missing column, another share.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> events = kr.data.split_by_time(log.events.drop(columns="split"), log.schema)
        >>> sorted(events["split"].unique())
        ['train', 'validation']
    """
    require_frame(events)
    for column in (schema.time, schema.request):
        require_column(events, column, "of the schema is not in the log")
    if not 0 < train_share < 1:
        raise ValueError(f"`train_share` must lie strictly between 0 and 1. Received: train_share={train_share}")
    if not len(events):
        raise ValueError("`events` must hold rows. Received: none")
    return events.assign(split=cut_by_time(events, schema, train_share)[0])
