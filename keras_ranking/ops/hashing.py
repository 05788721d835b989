"""The id hash of the package: FarmHash Fingerprint64, the same as in TensorFlow, BigQuery and ports for Spark.

`fingerprint64` equals `tf.fingerprint(x, method="farmhash64")` and
`tf.strings.to_hash_bucket_fast` before its modulo, so SQL, Python and a served graph give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.ops.messages import shown

_IDS = "is an id and must hold integers or strings"


def canonical_text(values: Any, name: str = "values") -> np.ndarray:
    """The text of ids that is hashed, as an object array of `str`; missing values become `""`.

    Integers are written in base 10 without leading zeros, booleans as 1 and 0, strings are unchanged, bytes are UTF-8, and floats are
    accepted only if every value is integral (pandas reads a column of integers with gaps as floats). Missing values are None, NaN,
    NaT and pd.NA.

    Raises:
        ValueError: a float value that is not integral, or too large for a float64 to hold exactly; float16 and float32; text that is
            not Unicode.
        TypeError: values that are neither integers, floats nor strings.
    """
    found = distinct_ids(values)
    _require_ids(found, values, name)
    return found.at_rows(found.texts, "")


@dataclass(frozen=True)
class DistinctIds:
    """Ids of a log, each distinct one once: work on texts does not grow with the rows.

    Attributes:
        codes: (n,) int64, for each row the number of its id, in order of first appearance; -1 where the id is missing.
        texts: (k,) object, the canonical text of each id, `""` where it is none. Two ids of different types may have one text.
        faults: masks (k,) of the ids that are none, with the reason and the kind of error.
    """

    codes: np.ndarray
    texts: np.ndarray
    faults: list[tuple[np.ndarray, str, type[Exception]]]

    def at_rows(self, values: np.ndarray, missing: Any) -> np.ndarray:
        """Values (k, ...) of the ids at the rows, and `missing` where there is none."""
        rest = np.full_like(values[:1], missing, shape=(1, *values.shape[1:]))
        found: np.ndarray = np.concatenate([values, rest])[self.codes]
        return found

    def fault_rows(self) -> Iterator[tuple[np.ndarray, str, type[Exception]]]:
        """The faults as masks of rows."""
        for bad, reason, error in self.faults:
            yield self.at_rows(bad, False), reason, error


def distinct_ids(values: Any) -> DistinctIds:
    """The distinct ids among values, as `canonical_text` writes them, and what is no id."""
    series = as_series(values)
    dtype, known = series.dtype, series.notna().to_numpy(dtype=bool)
    if isinstance(dtype, pd.CategoricalDtype):  # a category is read as the value that it stands for
        codes, used = _factorized(series.cat.codes.to_numpy(), known)
        whole = distinct_ids(pd.Series(series.cat.categories)[used[used >= 0]])
        return replace(whole, codes=np.where(codes < 0, -1, whole.codes[codes]) if len(whole.codes) else codes)
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_integer_dtype(dtype):
        numbers = series[known].to_numpy(dtype=np.uint64 if dtype.kind == "u" else np.int64)
        codes, unique = pd.factorize(numbers)
        return DistinctIds(_spread(codes, known), _texts_of_integers(unique), [])
    if pd.api.types.is_float_dtype(dtype):
        return _of_floats(series, known)
    if pd.api.types.is_string_dtype(dtype) and (isinstance(dtype, pd.ArrowDtype) or getattr(dtype, "storage", "") == "pyarrow"):
        codes, texts = pd.factorize(series)
        return DistinctIds(codes, np.asarray(texts, dtype=object), [])
    return _of_objects(series.to_numpy(dtype=object), known)


def _require_ids(found: DistinctIds, values: Any, name: str) -> None:
    """Raise the first fault, with its row and value."""
    for bad, reason, error in found.fault_rows():
        if bad.any():
            row = int(bad.argmax())
            value = as_series(values).iloc[row]
            what = f", a value of type {type(value).__name__}" if error is TypeError else ""
            cast = "; cast the column to 'Int64' or to text." if isinstance(value, float) else ""
            raise error(f"`{name}` {reason}. Received: {shown(value)} at row {row}{what}{cast}")


def _factorized(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of rows, -1 where the value is not known, and the distinct values that are known."""
    codes, unique = pd.factorize(values[known])
    return _spread(codes, known), unique


def _spread(codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Codes of the known rows as codes of all rows."""
    if known.all():
        return codes
    out = np.full(len(known), -1, dtype=np.int64)
    out[known] = codes
    return out


def _texts_of_integers(numbers: np.ndarray) -> np.ndarray:
    return np.array(list(map(str, numbers.tolist())), dtype=object)


def as_series(values: Any) -> pd.Series:
    """A Series of the values, in the type that pandas infers, but for texts and integers that this type cannot hold."""
    if isinstance(values, pd.Series):
        return values
    if isinstance(values, np.ndarray):
        values = values.reshape(-1)
    elif np.isscalar(values):
        values = [values]
    # not np.asarray: it writes the missing value of ["a", nan] as the text "nan"
    try:
        series = pd.Series(values, dtype=object if len(values) == 0 else None)
    except UnicodeEncodeError:  # half of a surrogate pair, which arrow's texts cannot hold
        return pd.Series(values, dtype=object)
    rounded = series.dtype.kind == "f" and not hasattr(values, "dtype") and (series.abs() >= 2**53).any()
    if rounded and any(isinstance(value, (int, np.integer)) for value in values):  # an integer and a missing value, as floats
        return pd.Series(values, dtype=object)
    return series


def _of_floats(series: pd.Series, known: np.ndarray) -> DistinctIds:
    size = getattr(series.dtype, "itemsize", 8)
    numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)[known]
    codes, unique = pd.factorize(numbers, use_na_sentinel=False)
    texts, faults = np.full(len(unique), "", dtype=object), []
    with np.errstate(invalid="ignore"):
        bad = ~(np.isfinite(unique) & (unique == np.floor(unique)) & (np.abs(unique) < 2**53))
    if size < 8:
        narrow = f"{_IDS}; {series.dtype} holds integers up to {2**11 if size == 2 else 2**24} only: use int64 or text"
        faults = [(np.ones(len(unique), dtype=bool), narrow, ValueError)]
    else:
        texts[~bad] = _texts_of_integers(unique[~bad].astype(np.int64))
        faults = [(bad, _IDS, ValueError)]
    return DistinctIds(_spread(codes, known), texts, [fault for fault in faults if fault[0].any()])


def _of_objects(values: np.ndarray, known: np.ndarray) -> DistinctIds:
    present = values[known]
    kinds: set[type] = set(map(type, present))
    usable = {kind for kind in kinds if issubclass(kind, (str, bytes, int, np.integer, np.bool_))} - {np.timedelta64}
    # Equal values of these types have one text. A float or a Decimal is equal to an integer and is no id, and pandas does not tell
    # texts with half of a surrogate pair apart.
    comparable = kinds <= {str, bytes, int, bool, np.bool_} | {kind for kind in usable if issubclass(kind, np.integer)}
    if comparable and (kinds != {str} or _is_unicode("".join(present))):
        codes, unique = pd.factorize(present)
    else:
        codes, unique = np.arange(len(present)), present
    texts = np.full(len(unique), "", dtype=object)
    wrong, garbled = np.zeros(len(unique), dtype=bool), np.zeros(len(unique), dtype=bool)
    for number, value in enumerate(unique):
        if type(value) not in usable:
            wrong[number] = True
            continue
        try:
            # a boolean in a column with gaps (dtype object) is written like one in a column without: as 1 or 0
            text = value.decode("utf-8") if isinstance(value, bytes) else str(value if isinstance(value, str) else int(value))
        except ValueError:  # bytes that are not UTF-8, or an integer of more digits than Python writes
            garbled[number] = True
            continue
        if _is_unicode(text):
            texts[number] = text
        else:
            garbled[number] = True
    faults: list[Any] = [(wrong, _IDS, TypeError)] if wrong.any() else []
    faults += [(garbled, "is an id and must hold text that can be written as UTF-8", ValueError)] if garbled.any() else []
    return DistinctIds(_spread(codes, known), texts, faults)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def fingerprint64(values: Any) -> np.ndarray:
    """FarmHash Fingerprint64 of each value's canonical text, as uint64 of the same length.

    Args:
        values: (n,) integers, strings, booleans (as 1 and 0), or integral float64 below 2**53. Missing values (None, NaN, NaT, pd.NA) are
            hashed as the empty text.

    Returns:
        uint64 (n,).

    Example:
        >>> kr.ops.fingerprint64(["member:1234"])
        array([...], dtype=uint64)
    """
    found = distinct_ids(values)
    _require_ids(found, values, "values")
    return found.at_rows(_fingerprints(found.texts), _fingerprints(np.array([""], dtype=object))[0])


def _fingerprints(texts: np.ndarray) -> np.ndarray:
    import farmhash

    return np.fromiter(map(farmhash.fingerprint64, texts), dtype=np.uint64, count=len(texts))


def hash_buckets(values: Any, buckets: int, name: str = "values") -> np.ndarray:
    """Ids as rows of a table of `buckets` rows: `1 + fingerprint64 mod (buckets - 1)`, and 0 for a missing id. int32.

    Row 0 is reserved for missing ids and padding, so that both differ from every real id.
    """
    if buckets < 2:
        raise ValueError(f"`buckets` must be at least 2 (row 0 is for missing ids). Received: buckets={buckets}")
    found = distinct_ids(values)
    _require_ids(found, values, name)
    hashed = 1 + (_fingerprints(found.texts) % np.uint64(buckets - 1)).astype(np.int64)
    return found.at_rows(np.where(found.texts == "", 0, hashed).astype(np.int32), 0)


def id_halves(values: Any, name: str = "values") -> np.ndarray:
    """Ids as `split_fingerprint` of their fingerprints, int32 (n, 2); (0, 0) for a missing id."""
    found = distinct_ids(values)
    _require_ids(found, values, name)
    halves = np.where((found.texts == "")[:, None], np.int32(0), split_fingerprint(_fingerprints(found.texts)))
    return found.at_rows(halves, 0)


def vocabulary_rows(values: Any, vocabulary: Sequence[str] | Mapping[str, int], name: str = "values") -> np.ndarray:
    """Ids as rows 1, 2, ... of a vocabulary of texts, or by a mapping of them; int32; 0 for a missing id and one that is not in it."""
    found = distinct_ids(values)
    _require_ids(found, values, name)
    rows = vocabulary if isinstance(vocabulary, Mapping) else {word: row for row, word in enumerate(vocabulary, start=1)}
    return found.at_rows(np.fromiter((rows.get(text, 0) for text in found.texts), dtype=np.int32, count=len(found.texts)), 0)


def split_fingerprint(ids: Any) -> np.ndarray:
    """64-bit fingerprints (...) as two int32 bit patterns (..., 2), the low half first.

    The same as `tf.bitcast` of an int64 to int32. Halves with the top bit set are negative; `QuotientRemainderEmbedding` reads their
    bits as unsigned numbers. It runs on the host, because JAX has no 64-bit integers by default.

    Args:
        ids: uint64 or int64, as `fingerprint64` makes them.

    Raises:
        TypeError: another dtype; a smaller integer has lost half of the bits, and a float some of them.

    Example:
        >>> split_fingerprint(np.array([2**32 + 7, 2**64 - 1], "uint64")).tolist()
        [[7, 1], [-1, -1]]
    """
    ids = np.asarray(ids)
    if ids.dtype.kind not in "iu" or ids.dtype.itemsize != 8:
        raise TypeError(f"`ids` must be uint64 or int64 fingerprints. Received: dtype={ids.dtype}")
    # "<" in both: the order of the halves must not depend on the byte order of the machine.
    whole = np.ascontiguousarray(ids.astype(ids.dtype.newbyteorder("<")))
    return whole.reshape(*ids.shape, 1).view("<i4").astype(np.int32)
