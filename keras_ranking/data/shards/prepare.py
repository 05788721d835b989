"""A log as shards: the checks of the whole log, the constants of the schema, and the order of the work, for every engine."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking.columns import Number
from keras_ranking.configuration import is_integer
from keras_ranking.data.checks import Report, check_members, merged_reports, raise_problems
from keras_ranking.data.log_columns import require_column
from keras_ranking.data.readers.log import Log, check_splits, log_of
from keras_ranking.data.shards.container import read_arrays
from keras_ranking.data.shards.ids import shard_of
from keras_ranking.data.shards.log import _FORMAT, MANIFEST, VERSION, Chosen, ShardedLog, sequences_of
from keras_ranking.data.shards.parts import (
    Plan,
    ReadPart,
    check_part,
    fitted_plan,
    report_as_plain,
    report_of_plain,
    request_times,
    suspects,
    write_part,
    write_text,
)
from keras_ranking.number_edges import checked_edges, quantile_edges
from keras_ranking.schema import Schema
from keras_ranking.schema_sums import SchemaSums

Run = Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]]
"""Calls a function with each number, in any order and anywhere, and gives the results in the order of the numbers."""
ROWS_OF_A_SHARD = 500_000


def prepare(
    log: Log | pd.DataFrame,
    out: str | Path,
    shards: int | None = None,
    keep: Sequence[str] = (),
    on_error: str = "raise",
    verbose: bool = False,
    schema: Schema | None = None,
) -> ShardedLog:
    """Write a log that is in memory as shards; `keras-ranking prepare` does it for logs beyond memory, with the same result.

    Args:
        log: from `keras_ranking.data.open_log` or a reader, a `Log` of your own, or a DataFrame with `schema`.
        out: folder to write, which must not exist. It appears when it is whole; after an interruption, the same call goes on.
        shards: number of shards; None: one for each 500,000 rows.
        keep: further columns of numbers to keep for the options of training that read them, such as `delay_column`.
        on_error: 'raise', or 'drop': bad rows are left out, counted and reported in the manifest.
        verbose: print progress on stderr.
        schema: of a DataFrame.

    Returns:
        `ShardedLog`.

    Raises:
        TypeError: `log` is neither, or a DataFrame without a schema.
        FileExistsError: `out` exists.
        ValueError: what `build_sequences` finds wrong, or no training row where the schema has constants to fit.

    Example:
        >>> log = kr.data.simulate(members=40, days=2, seed=0)
        >>> kr.data.prepare(log, "runs/two_shards", shards=2).requests == log.events["request_id"].nunique()
        True
    """
    log = log_of(log, schema)
    count = shard_count(len(log.events), shards)
    if lacking := [count.name for count in log.schema.counts if count.name not in log.events]:
        raise ValueError(f"counts of the schema must be in the log: `kr.data.with_counts(log)` adds them. It lacks: {lacking}")
    for column in (log.schema.member, *keep):
        require_column(log.events, column)
    plan = Plan(log.schema, count, log.name, tuple(keep), log.round, on_error, preset=log.preset)
    number = shard_of(log.events[log.schema.member], count)
    order = np.argsort(number, kind="stable")
    bounds = np.searchsorted(number[order], np.arange(count + 1))

    def read(part: int, columns: tuple[str, ...] | None) -> tuple[pd.DataFrame, np.ndarray]:
        rows = order[bounds[part] : bounds[part + 1]]
        frame = log.events.iloc[rows]
        return frame if columns is None else frame[list(columns)], rows

    for column in plan.schema.columns:
        require_column(log.events, column, f"of the schema is not in the log{plan.schema.count_hint(column)}")
    source = {"rows": len(log.events), "digest": _frame_digest(log.events[list(plan.columns)])}
    return build(out, plan, source, lambda work: None, lambda work: read, tell=teller(verbose))


def shard_count(rows: int, shards: int | None, memory: float | None = None) -> int:
    """The number of shards for a log of this many rows.

    Args:
        rows: of the log.
        shards: a number that was asked for; None: one for each 500,000 rows, or fewer with less than 4 GB.
        memory: bytes.

    Raises:
        ValueError: `shards` that is no positive integer.
    """
    if shards is not None and (not is_integer(shards) or shards < 1):
        raise ValueError(f"`shards` must be a positive integer. Received: shards={shards!r}")
    size = ROWS_OF_A_SHARD * min(1.0, 1.0 if memory is None else memory / 4e9)
    return shards if shards is not None else max(1, math.ceil(rows / size))


def teller(verbose: bool) -> Callable[[str], None]:
    """Prints progress on stderr, or does not."""
    return (lambda text: print(text, file=sys.stderr, flush=True)) if verbose else (lambda text: None)


def build(
    out: str | Path,
    plan: Plan,
    source: dict[str, Any],
    split: Callable[[Path], None],
    reader: Callable[[Path], ReadPart],
    run: Run | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> ShardedLog:
    """Prepare a log whose parts an engine makes.

    All is written in a folder beside `out` with the ending `.partial`, where each file appears when it is whole, and which is renamed at
    the end. What is there of an interrupted preparation of the same source by the same plan is used.

    Args:
        out: folder to write, which must not exist.
        plan: how.
        source: what tells this log from others, for JSON.
        split: writes the parts below a folder; called once.
        reader: gives what reads the parts below a folder.
        run: calls the functions of parts; None: one after the other, here.
        tell: progress.

    Raises:
        FileExistsError: `out` exists.
        ValueError: what the checks find wrong.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f"`out` must be a folder that does not exist. Received: '{out}'")
    work = out.with_name(f"{out.name}.partial")
    text = json.dumps({"version": VERSION, "plan": plan.plain(), "source": source}, sort_keys=True)
    if (work / "plan.json").is_file() and (work / "plan.json").read_text(encoding="utf-8") != text:
        tell(f"'{work}' is of another preparation, and is replaced")
        shutil.rmtree(work)
    (work / "result").mkdir(parents=True, exist_ok=True)
    (work / "facts").mkdir(exist_ok=True)
    write_text(work / "plan.json", text)
    if not (work / "parts.done").is_file():
        shutil.rmtree(work / "parts", ignore_errors=True)
        (work / "parts").mkdir()
        split(work / "parts")
        write_text(work / "parts.done", "")
    read, run = reader(work / "parts"), run or _here
    numbers = range(plan.shards)
    edge, notes = (None, ()) if plan.has_split else _edge(numbers, read, plan, run)

    facts = [work / "facts" / f"{number:05d}" for number in numbers]

    def checked(left_out: np.ndarray, numbers: Sequence[int]) -> list[dict[str, Any]]:
        step = partial(_check, read=read, plan=plan, edge=edge, left_out=left_out, folder=work / "facts")
        _in_steps(run, step, numbers, "checked", tell)
        return [read_arrays(path)[0] for path in facts]

    if not (work / "across.json").is_file():
        found = checked(np.zeros(0, dtype=np.int64), [number for number in numbers if not facts[number].is_file()])
        write_text(work / "across.json", json.dumps(_across(facts, read, plan)))
    across = json.loads((work / "across.json").read_text(encoding="utf-8"))
    report, left_out = report_of_plain(across["report"]), np.array(across["left_out"], dtype=np.int64)
    found = [read_arrays(path)[0] for path in facts]
    check_splits(_added([part["splits"] for part in found]))
    if plan.on_error == "raise":
        raise_problems(merged_reports([*(report_of_plain(part["report"]) for part in found), report]), ("on_error",))
    if len(left_out):
        found = checked(left_out, across["touched"])
    sums = SchemaSums.merged(SchemaSums.read(part["sums"]) for part in found)
    if not sum(part["train"] for part in found) and fitted_plan_needed(plan):
        raise ValueError(f"no training row passed the checks: {merged_reports(report_of_plain(part['report']) for part in found)}")
    made = fitted_plan(plan, sums)
    todo = [number for number in numbers if not (work / "result" / f"{number:05d}.json").is_file()]
    step = partial(_shard, read=read, plan=made, edge=edge, left_out=left_out, folder=work)
    beyond = [each for each in _in_steps(run, step, todo, "written", tell) if each is not None]
    if beyond:
        raise_problems(merged_reports(beyond), ("on_error",))
    _finish(work, made, report, notes)
    os.rename(work / "result", out)
    shutil.rmtree(work)
    return ShardedLog(out)


def fitted_plan_needed(plan: Plan) -> bool:
    """Whether the schema has constants to fit."""
    return not all(getattr(feature, "fitted", True) for feature in (*plan.schema.features, *plan.schema.actions))


def _check(number: int, read: ReadPart, plan: Plan, edge: int | None, left_out: np.ndarray, folder: Path) -> None:
    check_part(number, read, plan, edge, left_out, folder / f"{number:05d}")


def _shard(number: int, read: ReadPart, plan: Plan, edge: int | None, left_out: np.ndarray, folder: Path) -> Report | None:
    facts, to = folder / "facts" / f"{number:05d}", folder / "result" / f"{number:05d}.shard"
    return write_part(number, read, plan, edge, left_out, facts, to)


def _here(function: Callable[[int], Any], numbers: Sequence[int]) -> Iterable[Any]:
    return map(function, numbers)


def _in_steps(run: Run, function: Callable[[int], Any], numbers: Sequence[int], what: str, tell: Callable[[str], None]) -> list[Any]:
    results = []
    for result in run(function, numbers):
        results.append(result)
        if len(results) == len(numbers) or len(results) % max(1, len(numbers) // 10) == 0:
            tell(f"{what}: {len(results)} of {len(numbers)} parts")
    return results


def _edge(numbers: Sequence[int], read: ReadPart, plan: Plan, run: Run) -> tuple[int, tuple[str, ...]]:
    """The time from which requests are validation, as `split_by_time` finds it."""
    parts = list(run(partial(request_times, read=read, plan=plan), numbers))
    times, place = np.unique(np.concatenate([times for times, _ in parts]), return_inverse=True)
    counts = np.bincount(place, weights=np.concatenate([counts for _, counts in parts])).astype(np.int64) if len(times) else times
    if not len(times):
        return 0, ()
    if plan.train_share >= 1:
        return int(times[-1]) + 1, ("no column 'split': all rows are 'train'",)
    total = int(counts.sum())
    wanted = min(math.ceil(total * plan.train_share), total - 1)
    edge = int(times[np.searchsorted(np.cumsum(counts), wanted, side="right")])
    stamp = pd.Timestamp(edge + plan.schema.epoch, unit="s")
    return edge, (f"no column 'split': requests before {stamp} UTC ({plan.train_share:.0%} of them) are 'train', the rest 'validation'",)


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    added: dict[str, int] = {}
    for each in counts:
        added = {word: added.get(word, 0) + each.get(word, 0) for word in {*added, *each}}
    return added


def _across(facts: Sequence[Path], read: ReadPart, plan: Plan) -> dict[str, Any]:
    """Requests whose rows are in several parts, which have several members: a report, rows to leave out, and the parts they are in."""
    keys_of = [read_arrays(path)[1]["keys"] for path in facts]
    bounds = np.linspace(0, 2.0**64, sum(map(len, keys_of)) // 2_000_000 + 2)  # ranges of keys, so that memory is bounded
    doubled = []
    for low, high in itertools.pairwise(bounds):
        unique, counts = np.unique(np.concatenate([_between(keys, low, high) for keys in keys_of]), return_counts=True)
        doubled.append(unique[counts > 1])
    keys = np.concatenate(doubled)
    touched = [number for number, own in enumerate(keys_of) if np.isin(keys, own).any()]
    if not touched:
        return {"report": report_as_plain(Report(rows=0)), "left_out": [], "touched": []}
    rows = pd.concat([suspects(number, read, plan, keys) for number in touched]).sort_index()
    report = replace(check_members(rows, plan.schema, plan.on_error, rows.index.to_numpy()), rows=0)
    left_out = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *report.places.values()])) if plan.on_error == "drop" else np.zeros(0)
    return {"report": report_as_plain(report), "left_out": left_out.tolist(), "touched": touched}


def _between(keys: np.ndarray, low: float, high: float) -> np.ndarray:
    """Of sorted keys, those from `low` on and below `high`."""
    ends = [len(keys) if bound >= 2.0**64 else int(np.searchsorted(keys, np.uint64(int(bound)))) for bound in (low, high)]
    return keys[ends[0] : ends[1]]


def _finish(work: Path, plan: Plan, across: Report, notes: Sequence[str]) -> None:
    """Fit the edges of bins, and write the manifest."""
    files = []
    for number in range(plan.shards):
        path = work / "result" / f"{number:05d}.json"
        files.append(json.loads(path.read_text(encoding="utf-8")))
    report = merged_reports([*(report_of_plain(about.pop("report")) for about in files), across])
    report.rows += sum(across.dropped.values())
    digest = hashlib.blake2b("".join(about["digest"] for about in files).encode(), digest_size=16).hexdigest()
    schema = plan.schema
    unbinned = [column.name for column in (*schema.features, *schema.actions) if isinstance(column, Number) and not column.fitted]
    if unbinned:
        edges = {name: _edges(work / "result", plan, name) for name in unbinned}

        def binned(column: Any) -> Any:
            return column.model_copy(update={"edges": edges[column.name]}) if column.name in edges else column

        schema = schema.model_copy(update={"features": tuple(map(binned, schema.features)), "actions": tuple(map(binned, schema.actions))})
    manifest = {
        "format": _FORMAT,
        "version": VERSION,
        "name": plan.name,
        "preset": plan.preset,
        "schema": schema.model_dump(mode="json"),
        "digest": digest,
        "keep": list(plan.keep),
        "round": plan.round,
        "on_error": plan.on_error,
        "holdout": plan.holdout,
        "notes": list(notes),
        "report": report_as_plain(report),
        "files": files,
    }
    write_text(work / "result" / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for number in range(plan.shards):
        (work / "result" / f"{number:05d}.json").unlink()


def _edges(folder: Path, plan: Plan, name: str) -> tuple[float, ...]:
    """Edges of the bins of a column, from the encoded values of all rows to train on."""
    values = [values_to_train_on(read_arrays(folder / f"{number:05d}.shard")[1], plan.schema, name) for number in range(plan.shards)]
    column: Any = next(feature for feature in (*plan.schema.features, *plan.schema.actions) if feature.name == name)
    return checked_edges(quantile_edges(np.concatenate(values), column.bins), f"edges of column '{name}'")


def values_to_train_on(arrays: dict[str, np.ndarray], schema: Any, name: str) -> np.ndarray:
    """The encoded values of a column in the rows of a shard that are trained on."""
    sequences = sequences_of(arrays, schema, Chosen(read=("train",)), Report(rows=0), [name])
    return np.asarray(sequences.columns[name])


def _frame_digest(frame: pd.DataFrame) -> str:
    """Of the first, last and some other rows: tells logs apart in which an interrupted preparation might go on."""
    step = max(1, len(frame) // 1000)
    return hashlib.blake2b(frame.iloc[::step].to_csv().encode("utf-8", "replace"), digest_size=16).hexdigest()
