"""What the columns of a log are, guessed from names, types and values, each guess with its reason: a start for a schema."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.column_base import usable
from keras_ranking.columns import Category, Feature, Id, Ids, Number, Task, Vector
from keras_ranking.values import require_frame

ROWS = 200_000  # that are looked at, our choice
FEW = 100  # words of a category with a vocabulary, our choice
_FEW_NUMBERS = 20
_OF_LISTS, _FEWEST_LISTS = 50_000, 10  # rows whose requests are looked at, and requests of several rows that say something, our choice
_LEAK = 0.95  # AUC of one column alone
_SEPARATORS = ("|", ";", ",")
_ID_WORDS = ("id", "ids", "uuid", "guid", "sku", "code", "hash", "key")
_REQUESTS = ("request_id", "impression_id", "list_id", "query_id", "search_id", "request", "impression")
_POSITIONS = ("position", "rank", "slot", "pos")
_SESSIONS = ("session_id", "session", "visit_id")
_ITEMS = ("item_id", "item", "article_id", "product_id", "video_id", "movie_id", "document_id", "sku", "listing_id", "post_id")


@dataclass
class Guess:
    """One column: the role or kind that was chosen, why, and what to look at."""

    name: str
    role: str
    reason: str
    column: Any = None
    warning: str = ""


@dataclass
class Inferred:
    """The parts of a schema, and a `Guess` for each column of the log.

    Attributes:
        roles: arguments of `Schema`: member, time, request, session, position.
        features, tasks: columns and tasks.
        guesses: of all columns, in the order of the log.
        warnings: about roles.
    """

    roles: dict[str, str | None]
    features: tuple[Feature, ...]
    tasks: tuple[Task, ...]
    guesses: list[Guess]
    warnings: list[str] = field(default_factory=list)

    def table(self) -> str:
        """A line a column: name, role or kind, when it is known, reason and warning."""
        known = [getattr(guess.column, "known", "") for guess in self.guesses]
        cells = [(guess.name, guess.role, when, guess.reason) for guess, when in zip(self.guesses, known, strict=True)]
        widths = [max(len(row[at]) for row in (("column", "is", "known", ""), *cells)) for at in range(3)]
        lines = []
        for row, guess in zip([("column", "is", "known", "because"), *cells], [None, *self.guesses], strict=True):
            lines.append("  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]).rstrip())
            if guess is not None and guess.warning:
                lines.append(f"{' ' * widths[0]}  ! {guess.warning}")
        return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])

    def comments(self) -> dict[str, str]:
        """By column, what a written schema says beside it."""
        return {guess.name: guess.reason + (f". LOOK: {guess.warning}" if guess.warning else "") for guess in self.guesses}


def infer_columns(
    events: pd.DataFrame,
    member: str,
    time: str,
    tasks: Sequence[str],
    request: str | None = None,
    session: str | None = None,
    position: str | None = None,
    item: str | None = None,
    actions: Iterable[str] = (),
) -> Inferred:
    """Guess what the columns of a log are: see `Schema.infer`.

    Raises:
        ValueError: a stated column that the log lacks, no row, or no column left for a feature.
    """
    require_frame(events)
    if isinstance(tasks, str):
        raise ValueError(f"`tasks` must be a list of label columns. Received: tasks={tasks!r}")
    stated = {"member": member, "time": time, "request": request, "session": session, "position": position, "item": item}
    names = [name for name in (*stated.values(), *tasks, *actions) if name is not None]
    if missing := [name for name in names if name not in events.columns]:
        raise ValueError(f"`events` must hold the columns that are stated. Missing: {missing}; it has: {list(map(str, events.columns))}")
    if not len(events):
        raise ValueError("`events` must have rows. Received: none")
    rows = events if len(events) <= ROWS else events.sample(ROWS, random_state=0)
    free = [str(name) for name in events.columns if name not in names]
    request = request or _named(free, _REQUESTS)
    session = session or _named([name for name in free if name != request], _SESSIONS)
    position = position or next((name for name in free if name.lower() in _POSITIONS and _is_position(rows[name])), None)
    item = item or _named(free, _ITEMS)
    roles = {"member": member, "time": time, "request": request or time, "session": session, "position": position}
    labels = {task: _label_of(rows[task]) for task in tasks}
    found = Inferred(roles, (), tuple(_task(task, events[task]) for task in tasks), [], _about_time(events[time], time))
    if request is None:
        told = f"no request column: rows of one '{time}' are one list of one member"
        if rows.groupby(time)[member].nunique().gt(1).any():
            numbered = f"events['request_id'] = events.groupby(['{member}', '{time}'], sort=False).ngroup()"
            told = f"no request column, and members share a '{time}': `{numbered}` makes one"
        found.warnings.append(told)
    taken = {column: f"the {role}" for role, column in roles.items() if column is not None and column != time}
    taken |= {time: "the time", **dict.fromkeys(tasks, "a task"), **dict.fromkeys(actions, "an action")}
    features = []
    lists = _Lists.of(events, rows, member, request or time)
    for name in map(str, events.columns):
        if name in taken:
            why = "stated" if name in names else "by its name"
            found.guesses.append(Guess(name, taken[name], why, warning=_about_label(events[name]) if name in tasks else ""))
            continue
        if name == "split":
            found.guesses.append(Guess(name, "the split", "by its name"))
            continue
        guess = _guess(name, rows, item, labels, lists)
        found.guesses.append(guess)
        features += [guess.column] if guess.column is not None else []
    if not features:
        raise ValueError("no column is left for a feature.\n" + found.table())
    found.features = tuple(features)
    return found


def _named(columns: Iterable[str], words: Sequence[str]) -> str | None:
    by_word = {name.lower(): name for name in columns}
    return next((by_word[word] for word in words if word in by_word), None)


def _is_position(values: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(values)) and bool((values.dropna() >= 1).all()) and bool((values.dropna() % 1 == 0).all())


def _about_time(values: pd.Series, name: str) -> list[str]:
    if pd.api.types.is_datetime64_any_dtype(values):
        if (values.dropna().astype("int64") % (10**9 if values.dt.unit == "ns" else 10**6 if values.dt.unit == "us" else 10**3)).any():
            mended = f"`Log(..., round='floor')`, `--round floor` of `train`, or `events['{name}'].dt.floor('s')`"
            return [f"'{name}' has fractions of a second: {mended}"]
        return []
    if pd.api.types.is_numeric_dtype(values):
        most = float(values.max())
        for unit, least, divisor in (("nanoseconds", 1e17, 10**9), ("microseconds", 1e14, 10**6), ("milliseconds", 1e11, 10**3)):
            if most > least:
                return [f"'{name}' holds {unit}: `events['{name}'] //= {divisor}` makes seconds"]
        return []
    return [f"'{name}' holds text: `events['{name}'] = pd.to_datetime(events['{name}'], utc=True)`"]


def _task(label: str, values: pd.Series) -> Task:
    """The task of a label, whose rows without one count for nothing."""
    missing = "unknown" if values.isna().any() else "error"
    return Task(usable(label), missing=missing) if usable(label) == label else Task(usable(label), label=label, missing=missing)


def _about_label(values: pd.Series) -> str:
    known = values.dropna()
    if not len(known):
        return "all labels are missing"
    if known.nunique() == 1:
        return f"all known labels are {known.iloc[0]}"
    return f"{values.isna().sum():,} labels are missing: these rows are not trained on" if values.isna().any() else ""


def _label_of(values: pd.Series) -> np.ndarray:
    """Labels as float64, NaN where unknown; of words and such all are unknown."""
    return np.asarray(pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan))


def _guess(name: str, rows: pd.DataFrame, item: str | None, labels: Mapping[str, np.ndarray], lists: _Lists) -> Guess:
    values = rows[name]
    present = values.dropna()
    if not len(present):
        return Guess(name, "left out", "all values are missing")
    own = usable(name)  # the name of the model input
    if own != name and own in rows:
        return Guess(name, "left out", "its name cannot be that of a model input", warning=f"there is a column '{own}': rename one")
    if pd.api.types.is_datetime64_any_dtype(values):
        return Guess(name, "left out", "a time: state an age instead, such as the seconds from it to the row's time")
    if told := _tells(values, labels):
        why = f"{told}: known only after scoring? If the member did it, state it in `actions`"
        return Guess(name, "left out", why, warning="suspected to tell the label")
    known = "item" if name == item or _is_of_item(rows, name, item) else "member" if lists.agree(name) else "context"
    made = _set_or_vector(own, present, known, len(present) < len(values)) or _scalar(own, values, present, known)
    if isinstance(made, Guess):
        return replace(made, name=name)
    column, reason = made
    if known == "member":
        reason += f"; the same in all rows of each of {lists.count:,} requests"
    if own != name:
        column, reason = column.model_copy(update={"column": name}), f"{reason}; the input is '{own}'"
    return Guess(name, type(column).__name__.lower(), reason, column)


@dataclass(frozen=True)
class _Lists:
    """Whole requests of several rows, in which a column may stay the same."""

    rows: pd.DataFrame
    number: np.ndarray
    count: int

    @classmethod
    def of(cls, events: pd.DataFrame, rows: pd.DataFrame, member: str, request: str) -> _Lists:
        keys = list(dict.fromkeys([member, request]))
        drawn = rows[request].iloc[:_OF_LISTS]
        whole = events if len(events) <= _OF_LISTS else events[events[request].isin(drawn)]
        number = whole.groupby(keys, sort=False, dropna=False).ngroup().to_numpy()
        several = np.bincount(number, minlength=1)[number] > 1
        return cls(whole[several], number[several], len(np.unique(number[several])))

    def agree(self, name: str) -> bool:
        """Whether all rows of each request have one value."""
        if self.count < _FEWEST_LISTS:
            return False
        values = self.rows[name]
        if not values.map(pd.api.types.is_hashable).all():  # lists
            values = values.map(str)
        codes = pd.factorize(values, use_na_sentinel=False)[0]
        return len(np.unique(self.number)) == len(np.unique(np.stack([self.number, codes]), axis=1).T)


def _is_of_item(rows: pd.DataFrame, name: str, item: str | None) -> bool:
    """Whether items have one value each."""
    if item is None:
        return False
    values = rows[name]
    if not values.map(pd.api.types.is_hashable).all():  # lists
        values = values.map(str)
    each = values.groupby(rows[item], sort=False).nunique()
    return bool(len(each) < len(rows) and (each <= 1).mean() > 0.99)


def _set_or_vector(name: str, present: pd.Series, known: str, gaps: bool) -> tuple[Any, str] | None:
    first = present.iloc[0]
    if isinstance(first, (list, tuple, set, frozenset, np.ndarray)):
        lengths = present.map(len)
        parts = [part for cell in present.iloc[:1000] for part in cell]
        if parts and all(isinstance(part, (float, np.floating)) for part in parts) and lengths.nunique() == 1:
            told, settings = f"lists of {int(lengths.iloc[0])} fractions", {"missing": 0.0} if gaps else {}
            told += "; some are missing and become zeros" if gaps else ""
            return Vector(name, size=int(lengths.iloc[0]), known=known, **settings), told
        most = int(max(lengths.max(), 1))
        return Ids(name, buckets=_buckets(len(set(map(str, parts)))), size=most, known=known), f"lists of up to {most} ids"
    if not isinstance(first, str):
        return None
    for separator in _SEPARATORS:
        cells = present.iloc[:5000].astype(str)
        split = [cell.split(separator) for cell in cells]
        words = Counter(part for cell in split for part in cell)
        several = float(np.mean([len(cell) > 1 for cell in split]))
        spaced = sum(count for word, count in words.items() if word != word.strip())
        if several > 0.2 and len(words) < 0.5 * sum(words.values()) and not spaced and cells.nunique() > len(words):
            most = max(map(len, split))
            column = Ids(name, buckets=_buckets(len(words)), size=2 * most, separator=separator, known=known)
            return column, f"text with {len(words)} words between '{separator}'"
    return None


def _scalar(name: str, values: pd.Series, present: pd.Series, known: str) -> tuple[Any, str] | Guess:
    distinct = int(present.nunique())
    if distinct == 1:
        return Guess(name, "left out", f"one value, {present.iloc[0]!r}")
    if pd.api.types.is_bool_dtype(present) or set(map(type, present.iloc[:100])) == {bool}:
        return Category(name, vocabulary=("0", "1"), known=known), "true or false"
    if not pd.api.types.is_numeric_dtype(values):
        return _of_words(name, present.astype(str), distinct, known)
    numbers = present.to_numpy(np.float64)
    if np.isinf(numbers).any():
        return Guess(name, "left out", "infinite values", warning="replace them")
    whole = bool((numbers % 1 == 0).all())
    like_id = name.lower().rsplit("_", 1)[-1] in _ID_WORDS
    if whole and like_id:
        if values.dtype.kind == "f" and np.abs(numbers).max() >= 2**53:
            return Guess(name, "left out", "ids as float64 from 2**53 on", warning="read the column as integers or text")
        return Id(name, buckets=_buckets(distinct), known=known), f"{distinct:,} ids, by its name"
    if whole and distinct <= _FEW_NUMBERS and (numbers.min() < 0 or numbers.max() > 2 * distinct):
        words = tuple(str(int(word)) for word in present.value_counts().index)
        return Category(name, vocabulary=words, known=known), f"{distinct} whole numbers with gaps"
    return _number(name, values, numbers, known)


def _of_words(name: str, present: pd.Series, distinct: int, known: str) -> tuple[Any, str]:
    rare = distinct > FEW or distinct > 0.05 * len(present)
    if rare or name.lower().rsplit("_", 1)[-1] in _ID_WORDS:
        return Id(name, buckets=_buckets(distinct), known=known), f"{distinct:,} different texts"
    return Category(name, vocabulary=tuple(present.value_counts().index), known=known), f"{distinct} words"


def _number(name: str, values: pd.Series, numbers: np.ndarray, known: str) -> tuple[Any, str]:
    middle, high = float(np.median(numbers)), float(np.quantile(numbers, 0.99))
    skewed = numbers.min() >= 0 and high > 20 * max(middle, 1e-9) and high > 5
    transform, reason = ("log1p_standardise", "numbers from 0 on with a long tail") if skewed else ("standardise", "numbers")
    share = float(values.isna().mean())
    settings: dict[str, Any] = {"transform": transform, "known": known}
    if share:
        settings["missing"] = middle
        reason += f"; {share:.1%} are missing and become the median, {middle:g}"
    return Number(name, **settings), reason


def _buckets(distinct: int) -> int:
    """A power of two with at least four rows an id, so that few ids share one; at most 2**22."""
    return int(2 ** np.clip(np.ceil(np.log2(max(4 * distinct, 2))), 8, 22))


def _tells(values: pd.Series, labels: Mapping[str, np.ndarray]) -> str:
    """How one column alone tells a label, by its value, or by whether it is missing; '' if it does not."""
    kinds = {"whether it is missing": values.isna().to_numpy(np.float64)}
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        kinds["its value"] = np.where(np.isnan(numbers), np.nanmin(numbers), numbers) if not np.isnan(numbers).all() else numbers
    for task, label in labels.items():
        for what, score in kinds.items():
            area = _area(label, score)
            if max(area, 1 - area) > _LEAK:
                return f"{what} tells '{task}' (AUC {max(area, 1 - area):.3f} alone)"
    return ""


def _area(label: np.ndarray, score: np.ndarray) -> float:
    """AUC of a score, 0.5 where it is not defined."""
    known = ~np.isnan(label) & ~np.isnan(score)
    positive = label[known] > 0
    count, others = int(positive.sum()), int((~positive).sum())
    if min(count, others) < 20:
        return 0.5
    ranks = pd.Series(score[known]).rank().to_numpy()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))
