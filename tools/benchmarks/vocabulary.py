#!/usr/bin/env python
"""Collisions and sizes of tables for ids without a vocabulary, counted on fingerprints of distinct ids.

Ids "member:0", "member:1", ... are hashed by `fingerprint64` and mapped to rows in these ways:

    hashed b      1 + fingerprint mod (b - 1), as `hash_buckets`: one row of a table of b rows
    int32         one 32-bit half of the fingerprint (LiRank's static int32 hash has as many bits; any good hash is as uniform)
    low half QR   (q, r) = (B // m, B % m) of the low half B only: the pair of rows
    both halves   (q, r) of both halves, as `QuotientRemainderEmbedding`: the four rows

Two ids collide if they share all their rows; then they cannot be distinguished. Expected for a uniform hash to R places:
n (n - 1) / 2 R colliding pairs, and n (1 - (1 - 1/R)^(n-1)) ids that collide with another.

`ids a row` is the mean number of ids that share a row; for QR tables, a quotient and a remainder row. Sizes are rows and
MB (10^6 bytes, float32) at `--width`; for the full table without the vocabulary that it needs.

Example:
    python tools/benchmarks/vocabulary.py --ids 10000000 --json vocabulary.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SPACE = 2**32
CHUNK = 500_000  # number of ids whose texts are in memory at once


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=1_000_000, help="distinct ids; 10 million take 0.5 GB")
    parser.add_argument("--buckets", type=int, nargs="+", default=[2**20, 2**24], help="rows of the hashed tables")
    parser.add_argument("--divisors", type=int, nargs="+", default=[1000, 10_000, 65_536, 1_000_000], help="m of the QR tables")
    parser.add_argument("--width", type=int, default=30, help="width of an embedding (LiRank's feed: 30)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.ids < 2 or min(args.buckets) < 2 or not all(2 <= m <= 2**30 for m in args.divisors) or args.width < 1:
        parser.error("--ids and --buckets must be at least 2, --divisors from 2 to 2^30, --width at least 1")
    return args


def fingerprints(ids: int) -> np.ndarray:
    """uint64 (ids,), in chunks: the text of an id needs ten times the memory of its fingerprint."""
    from keras_ranking.ops.hashing import fingerprint64

    out = np.empty(ids, dtype=np.uint64)
    for begin in range(0, ids, CHUNK):
        end = min(begin + CHUNK, ids)
        out[begin:end] = fingerprint64([f"member:{number}" for number in range(begin, end)])
    return out


def repeats(sorted_places: np.ndarray) -> np.ndarray:
    """Number of occurrences of each distinct value."""
    starts = np.flatnonzero(np.r_[True, sorted_places[1:] != sorted_places[:-1]])
    return np.diff(np.r_[starts, sorted_places.size])


def counted(size: np.ndarray, ids: int, places: float) -> dict[str, float]:
    """Colliding pairs and ids: counted from the number of ids in each place, and expected for a uniform hash."""
    several = size[size > 1].astype(np.int64)
    return {
        "pairs": int((several * (several - 1) // 2).sum()),
        "pairs_expected": ids * (ids - 1) / (2 * places),
        "share": float(several.sum()) / ids,
        "share_expected": float(-np.expm1((ids - 1) * np.log1p(-1 / places))),
    }


def quotient_remainder(half: np.ndarray, divisor: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the quotient and of the remainder table for halves read as unsigned 32-bit numbers."""
    unsigned = half.astype(np.uint32)
    return unsigned // np.uint32(divisor), unsigned % np.uint32(divisor)


def packed_rows(half: np.ndarray, divisor: int) -> np.ndarray:
    """Both rows of a half as one number q m + r below 2^32, different if any of the two rows is, because r < m (checked)."""
    quotient, remainder = quotient_remainder(half, divisor)
    rows = -(-SPACE // divisor)
    if int(quotient.max()) >= rows or int(remainder.max()) >= divisor:
        raise AssertionError(f"a row lies outside its table of {rows} or {divisor} rows")
    packed: np.ndarray = quotient.astype(np.uint64) * np.uint64(divisor) + remainder
    return packed


def qr_rows(divisor: int) -> int:
    """Rows of the four tables."""
    return 2 * (-(-SPACE // divisor) + divisor)


def measure(ids: int, buckets: list[int], divisors: list[int], width: int) -> list[dict[str, Any]]:
    """One dictionary per scheme: name, rows, MB, collisions."""
    from keras_ranking.ops.hashing import hash_buckets, split_fingerprint

    hashed = fingerprints(ids)
    found: list[dict[str, Any]] = []

    def add(scheme: str, rows: int | None, sharing: list[float], figures: dict[str, float]) -> None:
        size = None if rows is None else rows * width * 4 / 1e6
        found.append({"scheme": scheme, "rows": rows, "mb": size, "ids_a_row": sharing, **figures})

    add("full table (vocabulary)", ids + 1, [1.0], {"pairs": 0, "pairs_expected": 0.0, "share": 0.0, "share_expected": 0.0})
    few = min(ids, 1000)
    for size in buckets:
        rows = 1 + (hashed % np.uint64(size - 1)).astype(np.int64)
        if not np.array_equal(rows[:few], hash_buckets([f"member:{number}" for number in range(few)], size)):
            raise AssertionError("the rows are not those of hash_buckets")
        add(f"hashed, {size:,} buckets", size, [ids / (size - 1)], counted(np.bincount(rows), ids, size - 1))
        del rows
    # The halves of `split_fingerprint`, computed in chunks, because it makes copies.
    low, high = (np.empty(ids, dtype=np.uint32) for _ in range(2))
    for begin in range(0, ids, CHUNK):
        part = split_fingerprint(hashed[begin : begin + CHUNK]).view(np.uint32)
        low[begin : begin + CHUNK], high[begin : begin + CHUNK] = part[:, 0], part[:, 1]
    del hashed
    add("int32 (a row for each hash met)", None, [1.0], counted(repeats(np.sort(low)), ids, SPACE))
    for divisor in divisors:
        sharing = [ids * divisor / SPACE, ids / divisor]
        key = packed_rows(low, divisor)
        alone = np.sort(key)
        add(f"low half QR, m = {divisor:,}", qr_rows(divisor) // 2, sharing, counted(repeats(alone), ids, SPACE))
        del alone
        key <<= np.uint64(32)
        key |= packed_rows(high, divisor)
        key.sort()
        add(f"both halves QR, m = {divisor:,}", qr_rows(divisor), sharing, counted(repeats(key), ids, 2.0**64))
        del key
    return found


def main() -> None:
    args = arguments()
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    begin = time.perf_counter()
    found = measure(args.ids, args.buckets, args.divisors, args.width)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform != "darwin" else 1e9)
    command = f"python {' '.join(sys.argv)}"
    print(f"{command}\n{args.ids:,} ids, width {args.width}: {seconds:.0f} s on one thread, at most {peak:.2f} GB resident\n")
    print("| scheme | rows | MB | ids a row | colliding pairs | expected | ids that collide | expected |")
    print("|---|---|---|---|---|---|---|---|")
    for line in found:
        size = "| - | - |" if line["rows"] is None else f"| {line['rows']:,} | {line['mb']:,.1f} |"
        pairs = f"{line['pairs']:,} | {line['pairs_expected']:,.0f}" if line["pairs_expected"] >= 1 or not line["pairs_expected"] else ""
        pairs = pairs or f"{line['pairs']:,} | {line['pairs_expected']:.1e}"
        share = f"{100 * line['share']:.4g} % | {100 * line['share_expected']:.4g} %"
        sharing = ", ".join(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in line["ids_a_row"])
        print(f"| {line['scheme']} {size} {sharing} | {pairs} | {share} |")
    if args.json:
        versions = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.platform()}
        args.json.write_text(
            json.dumps(
                {"command": command, "ids": args.ids, "width": args.width, "seconds": seconds, **versions, "schemes": found}, indent=2
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
