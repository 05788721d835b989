"""Categories whose values and vocabulary do not meet: row 0 of a table would be trained for all of them, without an error."""

from __future__ import annotations

import numpy as np
import pandas as pd

from keras_ranking.columns import Category, Id, Ids, SemanticId
from keras_ranking.id_lists import read_lists
from keras_ranking.ops.hashing import distinct_ids
from keras_ranking.ops.messages import shown
from keras_ranking.schema import Schema

_EXAMPLES = 3
_BOOLEANS = {"true": "1", "false": "0", "yes": "1", "no": "0", "1.0": "1", "0.0": "0"}


def vocabulary_notes(schema: Schema, events: pd.DataFrame, rows: np.ndarray) -> tuple[str, ...]:
    """One line for each category whose values are probably meant by its vocabulary but not in it, with examples and counts.

    A value and a word of the vocabulary are one if their texts are equal; a boolean is written as 1 or 0, an integer in base 10. Lines are
    for values that differ from a word in case, spaces, the accents' encoding or the way a boolean is written; for vocabularies that have
    less than half of the known values; and for hashed columns that hold booleans and their texts.

    Args:
        schema: what the columns are.
        events: the log.
        rows: (rows,) bool, which rows count.
    """
    whole = bool(rows.all())
    lines = (
        _note(column, events[column.name] if whole else events[column.name][rows])
        for column in (*schema.features, *schema.actions)
        if isinstance(column, (Category, Id, Ids, SemanticId))
    )
    return tuple(line for line in lines if line)


def _note(column: Id | Category | Ids | SemanticId, series: pd.Series) -> str:
    if isinstance(column, Id) or column.vocabulary is None:
        return "" if isinstance(column, Ids) else _mixed_booleans(column.name, series)
    ids = read_lists(series, column.separator).ids if isinstance(column, Ids) else distinct_ids(series)
    times = np.bincount(ids.codes[ids.codes >= 0], minlength=len(ids.texts))
    counts = pd.Series(times, index=list(ids.texts), dtype=np.int64).groupby(level=0, sort=False).sum()  # 1 and "1" are one text
    counts = counts[counts.index != ""]
    unknown = counts[~counts.index.isin(column.vocabulary)].sort_values(ascending=False, kind="stable")
    if not len(unknown):
        return ""
    words = {_folded(word): word for word in column.vocabulary}
    near = {text: words[_folded(text)] for text in unknown.index if _folded(text) in words}
    if near:
        examples = ", ".join(f"{text!r} for {word!r}" for text, word in list(near.items())[:_EXAMPLES])
        found = int(unknown[list(near)].sum())
        stated = f"{found} of {int(counts.sum())} values are nearly, but not, in the vocabulary ({examples})"
    elif 2 * int(unknown.sum()) > int(counts.sum()):
        examples = ", ".join(map(repr, unknown.index[:_EXAMPLES]))
        stated = f"{int(unknown.sum())} of {int(counts.sum())} values are not in the vocabulary (such as {examples})"
    else:
        return ""
    written = " A boolean is written as '1' or '0'." if series.dtype.kind == "b" or set(near) & {"0", "1"} else ""
    words_shown = ", ".join(map(repr, column.vocabulary[:_EXAMPLES])) + (", ..." if len(column.vocabulary) > _EXAMPLES else "")
    missing = "" if isinstance(column, Ids) else ", as a missing value does"
    return f"column '{column.name}': {stated}, which has {words_shown}; all of them get row 0{missing}.{written}"


def _mixed_booleans(name: str, series: pd.Series) -> str:
    dtype = series.dtype
    if dtype.kind != "O" or (isinstance(dtype, pd.StringDtype)):
        return ""
    values = series.to_numpy(dtype=object)
    if not set(map(type, values)) & {bool, np.bool_}:
        return ""
    booleans = sum(isinstance(value, bool | np.bool_) for value in values)
    texts = {value for value in values if isinstance(value, str) and value.lower() in ("true", "false")}
    if not texts:
        return ""
    return (
        f"column '{name}': booleans (in {booleans} rows), which are written as '1' and '0', are mixed with the text "
        f"{shown(sorted(texts)[0])}: they are different ids."
    )


def _folded(text: str) -> str:
    """What is left of a text without case, outer spaces and the way that a boolean is written."""
    folded = text.strip().casefold()
    return _BOOLEANS.get(folded, folded)
