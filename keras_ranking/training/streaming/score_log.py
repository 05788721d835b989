"""Probabilities of a whole log, written as parquet files, one shard after the other."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_ranking import metrics, models
from keras_ranking.data import Log, PackedRows, Requests, ShardedLog
from keras_ranking.data.readers.log import as_log, require_log
from keras_ranking.data.shards.ids import ids_of_arrays
from keras_ranking.data.shards.log import Chosen
from keras_ranking.training.checkpoint import write_whole
from keras_ranking.training.reporting import tell_rows
from keras_ranking.training.scoring.events import log_to_score, model_of, rows_to_score, served_and_logged
from keras_ranking.training.streaming.evaluate import check_encoding, check_prepared
from keras_ranking.training.streaming.scores import longest_known, rows_by_shard
from keras_ranking.utility import SCORE

ABOUT = "_scores.json"  # readers of parquet folders leave out names that begin so
Run = Callable[[Callable[[int], Any], Sequence[int]], Iterable[Any]]


def score_log(
    model: str | Path | models.RankingModel,
    log: Log | ShardedLog | pd.DataFrame,
    out: str | Path,
    split: str | None = None,
    row_length: int = 2048,
    run: Run | None = None,
    verbose: bool = False,
    on_error: str = "raise",
) -> dict[str, Any]:
    """Score the rows of a log, each from earlier rows, and write the probabilities as parquet files.

    The files `part-00000.parquet`, ... have one row for each scored row of the log: `row`, its place in the log; the columns of request and
    member, as in the log; and for each task the probability that serving returns. For a model with towers by position, or with an input
    `position`, the column `TASK_shown` has the probability at the position shown. They are the numbers of `predict_events`. A model with
    a utility has the column `score`. Labels are not needed: where the column of one is missing, it is unknown. `predict` scores rows
    without actions.

    A file appears when it is whole, and `_scores.json` when all files have; after an interruption, the same call goes on.

    Args:
        model: a `RankingModel`, or the folder that `train` wrote.
        log: the rows, as a `Log` or a DataFrame; a `ShardedLog` is scored shard by shard, in the memory of a few shards, and has a file
            for each.
        out: folder to write, which must not hold scores of another model or log.
        split: whose rows are scored, from those that are not later than its newest one; None: all rows. A DataFrame without a column
            `split` is cut as `evaluate` does.
        row_length: events per packed row, for models trained on rows; raised to twice the largest request.
        run: calls a function with each number of a shard, here or elsewhere, for a `ShardedLog` and a folder as `model`. None: here.
        verbose: print progress.
        on_error: 'raise', or 'drop': bad rows are left out, and a warning says how many, why and the first of each.

    Returns:
        The content of `_scores.json`: rows, files, columns.

    Raises:
        TypeError: `log` is not a `Log` or `ShardedLog`.
        FileExistsError: `out` holds other scores.
        ValueError: no such split, bad values in the log, or shards with other constants than the model's schema.

    Example:
        >>> log = kr.data.simulate(members=20, days=2, seed=0)
        >>> model = kr.models.LiRank(log.schema.fit(log.events), history_features=())
        >>> about = kr.training.score_log(model, log, "scores", split="test")
        >>> list(pd.read_parquet("scores").columns)
        ['row', 'request_id', 'member_id', 'click', 'like']
    """
    if isinstance(log, ShardedLog):
        check_prepared(on_error)
    elif not isinstance(log, pd.DataFrame):
        require_log(log)
    _pyarrow()
    ranker = model_of(model)
    log = log if isinstance(log, ShardedLog) else as_log(log, ranker.schema, "test" if split is None else None)
    out = Path(out)
    source = {"model": weights_digest(ranker), "split": split, "row_length": row_length}
    if isinstance(log, ShardedLog):
        check_encoding(log, ranker.schema, f"the model '{ranker.name}'")
        chosen = Chosen() if split is None else Chosen(target=(split,), until=log.newest(split))
        source |= {"log": log.digest, "shards": log.shards}
        _begin(out, source)
        size = max(row_length, 2 * longest_known(log, chosen))
        todo = [number for number in range(log.shards) if not _part(out, number).is_file()]
        if run is None:
            for number, rows in rows_by_shard(ranker, log, chosen, size, todo):
                _write(ranker, log, number, rows, _part(out, number))
                if verbose:
                    print(f"scored: {number + 1} of {log.shards} shards", flush=True)
        elif isinstance(model, models.RankingModel):
            raise ValueError("`run` needs the folder of a model, which each worker loads. Received: a model")
        else:
            for _ in run(partial(score_shard, model=str(model), folder=str(log.folder), chosen=chosen, size=size, out=str(out)), todo):
                pass
        files = [_part(out, number) for number in range(log.shards)]
    else:
        rows, ids = _of_frame(ranker, model, log, split, row_length, on_error)
        source |= {"rows": len(log.events)}
        _begin(out, source)
        _write_table(_table(ranker, rows, ids), _part(out, 0))
        files = [_part(out, 0)]
    return _finished(out, source, files)


def score_shard(number: int, model: str, folder: str, chosen: Chosen, size: int, out: str) -> int:
    """Score one shard with a model that is loaded once in a process; what a worker does.

    Returns:
        The number.
    """
    if model not in _LOADED:
        _LOADED.clear()
        _LOADED[model] = models.load(model)
    log, ranker = ShardedLog(folder), _LOADED[model]
    for at, rows in rows_by_shard(ranker, log, chosen, size, [number]):
        _write(ranker, log, at, rows, _part(Path(out), at))
    return number


_LOADED: dict[str, models.RankingModel] = {}


def weights_digest(ranker: models.RankingModel) -> str:
    """Of the weights, arguments and utility of a model."""
    about = [ranker.arguments, ranker.utility] if ranker.utility else ranker.arguments
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16)
    for weight in ranker.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _part(out: Path, number: int) -> Path:
    return out / f"part-{number:05d}.parquet"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("writing parquet files needs pyarrow: pip install 'keras-ranking[data]'", name="pyarrow") from error
    return pyarrow


def _begin(out: Path, source: dict[str, Any]) -> None:
    """Make the folder, or check that what it has is of the same model and log."""
    about, text = out / f"{ABOUT}.begun", json.dumps(source, sort_keys=True)
    if out.is_dir() and any(out.iterdir()) and not (about.is_file() and about.read_text(encoding="utf-8") == text):
        raise FileExistsError(f"`out` must be empty or hold scores of the same model and log. Received: '{out}'")
    out.mkdir(parents=True, exist_ok=True)
    write_whole({about: lambda path: path.write_text(text, encoding="utf-8")})


def _finished(out: Path, source: dict[str, Any], files: Sequence[Path]) -> dict[str, Any]:
    pyarrow = _pyarrow()
    metas = [pyarrow.parquet.read_metadata(file) for file in files]
    about = {
        **source,
        "rows": sum(meta.num_rows for meta in metas),
        "columns": list(metas[0].schema.names),
        "files": [file.name for file in files],
    }
    text = json.dumps(about, indent=1) + "\n"
    write_whole({out / ABOUT: lambda path: path.write_text(text, encoding="utf-8")})
    return about


def _write(ranker: models.RankingModel, log: ShardedLog, number: int, rows: PackedRows | Requests | None, path: Path) -> None:
    arrays, schema = log.arrays(number), log.schema
    wanted = arrays["rows"][:0] if rows is None else rows.sequences.rows[rows.sequences.target]
    # The events that are read may be some of those of the shard.
    order = np.argsort(arrays["rows"], kind="stable")
    place = order[np.searchsorted(arrays["rows"], wanted, sorter=order)]
    request = np.searchsorted(arrays["starts"], place, side="right") - 1
    member = np.searchsorted(arrays["offsets"], place, side="right") - 1
    ids = {schema.request: ids_of_arrays(arrays, "request_id")[request], schema.member: ids_of_arrays(arrays, "member_id")[member]}
    _write_table(_table(ranker, rows, ids), path)


def _table(ranker: models.RankingModel, rows: PackedRows | Requests | None, ids: dict[str, Any]) -> Any:
    """Rows of the log in its order, ids, and probabilities; `ids` are those of the targets in the order of the streams."""
    pyarrow = _pyarrow()
    shown = bool(ranker.boundaries) or "position" in ranker.input_columns
    if rows is None:
        target, order = np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64)
        places: np.ndarray = np.zeros(0, dtype=np.int64)
        served = logged = {task: np.zeros(0) for task in ranker.tasks}
    else:
        target = rows.sequences.target
        places = rows.sequences.rows[target]
        order = np.argsort(places, kind="stable")
        served, logged = served_and_logged(ranker, rows)
    columns: dict[str, Any] = {"row": places[order]}
    columns |= {name: pyarrow.array(values[order]) for name, values in ids.items()}
    for task in ranker.tasks:
        columns[task] = served[task][target][order]
        if shown:
            columns[f"{task}_shown"] = logged[task][target][order]
    if ranker.utility:
        columns[SCORE] = metrics.utility_score({task: served[task] for task in ranker.utility}, ranker.utility)[target][order]
    return pyarrow.table(columns)


def _write_table(table: Any, path: Path) -> None:
    pyarrow = _pyarrow()
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        pyarrow.parquet.write_table(table, temporary, compression="zstd")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _of_frame(
    ranker: models.RankingModel, model: Any, log: Log, split: str | None, row_length: int, on_error: str
) -> tuple[PackedRows | Requests, dict[str, Any]]:
    schema, events = ranker.schema, log.events
    wanted = np.ones(len(events), dtype=bool) if split is None else log.is_split(split)
    unknown = {
        task.label: np.nan for task in schema.tasks if task.label not in events and task.label not in {a.name for a in schema.actions}
    }
    schema = schema.model_copy(
        update={"tasks": tuple(task.model_copy(update={"missing": "unknown"}) if task.label in unknown else task for task in schema.tasks)}
    )
    log = Log(events.assign(**unknown), schema, log.name, round=log.round, counts=log.counts)
    log = log_to_score(model, schema, log, wanted, on_error)
    rows = rows_to_score(ranker, log, wanted, "row to score", row_length, on_error, schema)
    tell_rows(rows.sequences, verbose=False)
    places = rows.sequences.rows[rows.sequences.target]
    return rows, {name: log.events[name].to_numpy()[places] for name in (schema.request, schema.member)}
