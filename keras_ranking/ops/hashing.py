"""The id hash of the package: FarmHash Fingerprint64, the same as in TensorFlow, BigQuery and ports for Spark.

`fingerprint64` equals `tf.fingerprint(x, method="farmhash64")` and
`tf.strings.to_hash_bucket_fast` before its modulo, so SQL, Python and a served graph give the same bits.
"""

from __future__ import annotations

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
    texts, faults = id_texts(values)
    for bad, reason, error in faults:
        if bad.any():
            row = int(bad.argmax())
            value = as_series(values).iloc[row]
            what = f", a value of type {type(value).__name__}" if error is TypeError else ""
            cast = "; cast the column to 'Int64' or to text." if isinstance(value, float) else ""
            raise error(f"`{name}` {reason}. Received: {shown(value)} at row {row}{what}{cast}")
    return texts


def id_texts(values: Any) -> tuple[np.ndarray, list[tuple[np.ndarray, str, type[Exception]]]]:
    """The texts of ids as `canonical_text` has them, `""` where a value is no id, and the faults: rows, reason, kind of error."""
    series = as_series(values)
    out = np.full(len(series), "", dtype=object)
    known = series.notna().to_numpy(dtype=bool)
    if isinstance(series.dtype, pd.CategoricalDtype):  # a category is read as the value that it stands for
        texts, faults = id_texts(pd.Series(series.cat.categories))
        codes = series.cat.codes.to_numpy()
        out[known] = texts[codes[known]]
        return out, [(known & bad[codes], reason, error) for bad, reason, error in faults]
    if pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_integer_dtype(series.dtype):
        present = series[known]
        out[known] = present.astype("int64" if series.dtype.kind != "u" else "uint64").astype(str).to_numpy(dtype=object)
        return out, []
    if pd.api.types.is_float_dtype(series.dtype):
        return _of_floats(series, known, out)
    return _of_objects(series, known, out)


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


def _of_floats(series: pd.Series, known: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    size = getattr(series.dtype, "itemsize", 8)
    if size < 8:
        narrow = f"{_IDS}; {series.dtype} holds integers up to {2**11 if size == 2 else 2**24} only: use int64 or text"
        return out, [(known, narrow, ValueError)] if known.any() else []
    numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
    with np.errstate(invalid="ignore"):
        bad = known & ~(np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53))
    good = known & ~bad
    out[good] = numbers[good].astype(np.int64).astype(str).astype(object)
    return out, [(bad, _IDS, ValueError)] if bad.any() else []


def _of_objects(series: pd.Series, known: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    values = series.to_numpy(dtype=object)
    wrong, garbled = np.zeros(len(values), dtype=bool), np.zeros(len(values), dtype=bool)
    present = values[known]
    kinds: set[type] = set(map(type, present))
    if kinds <= {str} and _is_unicode("".join(present)):  # by far the most frequent column, in one step
        out[known] = present
        return out, []
    usable = {kind for kind in kinds if issubclass(kind, (str, bytes, int, np.integer, np.bool_))} - {np.timedelta64}
    for row in np.flatnonzero(known):
        value = values[row]
        if type(value) not in usable:
            wrong[row] = True
            continue
        try:
            # a boolean in a column with gaps (dtype object) is written like one in a column without: as 1 or 0
            text = value.decode("utf-8") if isinstance(value, bytes) else str(value if isinstance(value, str) else int(value))
        except ValueError:  # bytes that are not UTF-8, or an integer of more digits than Python writes
            garbled[row] = True
            continue
        if _is_unicode(text):
            out[row] = text
        else:
            garbled[row] = True
    faults: list[Any] = [(wrong, _IDS, TypeError)] if wrong.any() else []
    return out, faults + ([(garbled, "is an id and must hold text that can be written as UTF-8", ValueError)] if garbled.any() else [])


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
    import farmhash

    codes, unique = pd.factorize(canonical_text(values))
    hashed = np.fromiter((farmhash.fingerprint64(text) for text in unique), dtype=np.uint64, count=len(unique))
    return hashed[codes]


def hash_buckets(values: Any, buckets: int, name: str = "values") -> np.ndarray:
    """Ids as rows of a table of `buckets` rows: `1 + fingerprint64 mod (buckets - 1)`, and 0 for a missing id. int32.

    Row 0 is reserved for missing ids and padding, so that both differ from every real id.
    """
    if buckets < 2:
        raise ValueError(f"`buckets` must be at least 2 (row 0 is for missing ids). Received: buckets={buckets}")
    texts = canonical_text(values, name)
    hashed = fingerprint64(texts) % np.uint64(buckets - 1)
    return np.where(texts == "", 0, 1 + hashed.astype(np.int64)).astype(np.int32)


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
