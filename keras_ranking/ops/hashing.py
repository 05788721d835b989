"""The id hash of the package: FarmHash Fingerprint64, the same as in TensorFlow, BigQuery and ports for Spark.

`fingerprint64` equals `tf.fingerprint(x, method="farmhash64")` and
`tf.strings.to_hash_bucket_fast` before its modulo, so SQL, Python and a served graph give the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def canonical_text(values: Any, name: str = "values") -> np.ndarray:
    """The text of ids that is hashed, as an object array of `str`; missing values become `""`.

    Integers are written in base 10 without leading zeros, strings are unchanged, and floats are accepted only if every value
    is integral (pandas reads a column of integers with gaps as floats). Missing values are None, NaN,
    NaT and pd.NA.

    Raises:
        ValueError: a float value that is not integral, or too large for a float64 to hold exactly.
        TypeError: values that are neither integers, floats nor strings.
    """
    if isinstance(values, np.ndarray):
        values = values.reshape(-1)
    elif np.isscalar(values):
        values = [values]
    # not np.asarray: it writes the missing value of ["a", nan] as the text "nan"
    series = values if isinstance(values, pd.Series) else pd.Series(values)
    out = np.full(len(series), "", dtype=object)
    known = series.notna().to_numpy()
    present = series[known]
    if pd.api.types.is_bool_dtype(series.dtype) or pd.api.types.is_integer_dtype(series.dtype):
        out[known] = present.astype("int64" if series.dtype.kind != "u" else "uint64").astype(str).to_numpy(dtype=object)
        return out
    if pd.api.types.is_float_dtype(series.dtype):
        numbers = present.to_numpy(dtype=np.float64)
        bad = ~np.isfinite(numbers) | (numbers != np.floor(numbers)) | (np.abs(numbers) >= 2**53)
        if bad.any():
            raise ValueError(
                f"`{name}` is an id and must hold integers or strings. Received: {numbers[bad][0]!r} at row "
                f"{int(np.flatnonzero(known)[bad.argmax()])}; cast the column to 'Int64' or to text."
            )
        out[known] = numbers.astype(np.int64).astype(str).astype(object)
        return out
    texts = present.to_numpy(dtype=object)
    kinds = {type(value) for value in texts}
    if not all(issubclass(kind, (str, bytes, int, np.integer)) for kind in kinds):
        wrong = next(kind for kind in kinds if not issubclass(kind, (str, bytes, int, np.integer)))
        raise TypeError(f"`{name}` is an id and must hold integers or strings. Received a value of type {wrong.__name__}.")
    # a boolean in a column with gaps (dtype object) is written like one in a column without: as 1 or 0
    out[known] = [text.decode("utf-8") if isinstance(text, bytes) else str(int(text) if isinstance(text, bool) else text) for text in texts]
    return out


def fingerprint64(values: Any) -> np.ndarray:
    """FarmHash Fingerprint64 of each value's canonical text, as uint64 of the same length.

    Args:
        values: (n,) integers, strings, or integral floats. Missing values (None, NaN, NaT, pd.NA) are hashed as the empty text.

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
