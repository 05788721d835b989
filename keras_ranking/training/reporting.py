"""What a training tells: the options of the log's preset, rows left out or sorted, and the sizes of model and data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from keras_ranking import models
from keras_ranking.data import Log, PackedDataset, PackedRequests, Sequences
from keras_ranking.optimizers import TableOptimizer
from keras_ranking.training.presets import PAPER, preset_options

_DIFFER = 0.01  # share of events from which on it is told that ids and pauses disagree


def tell_preset(model: str, preset: str | None, options: Mapping[str, Any]) -> None:
    """Print the options that the preset has set: the log's, or 'paper'."""
    chosen = {name: value for name, value in preset_options(model, preset).items() if name not in options}
    if chosen:
        whose = "" if preset == PAPER else " of the log"
        print(f"preset '{preset}'{whose}: {', '.join(f'{name}={value}' for name, value in chosen.items())}", flush=True)


def tell_counts(log: Log) -> None:
    """Print what was counted, or that nothing was, where the log had the columns."""
    named = [count.name for count in log.schema.counts]
    if log.counts is not None:
        print(f"counts of {log.counts.rows:,} rows, all splits: {', '.join(log.counts.columns)}", flush=True)
    elif named:
        print(f"counts as they are in the log: {', '.join(named)}; no state is saved for serving", flush=True)


def tell_rows(sequences: Sequences, verbose: bool) -> None:
    """Print which rows were left out, and how many were sorted; without `verbose`, warn of those left out."""
    report = sequences.report
    if verbose and (report.dropped or report.reordered):
        print(str(replace(report, notes=())), flush=True)
    elif report.dropped:
        warnings.warn(str(replace(report, notes=())), UserWarning, stacklevel=3)


def tell_start(
    ranker: models.RankingModel,
    sequences: Sequences,
    dataset: PackedDataset | PackedRequests,
    report: Mapping[str, Any],
    devices: str | None,
    verbose: bool,
) -> None:
    """Print model and data, the devices if there are several, and which tables are updated by rows."""
    if verbose:
        print(describe(ranker, sequences, dataset, report), flush=True)
        tell_sessions(ranker, [sequences])
        if devices is not None:
            print(devices, flush=True)
        tell_tables(ranker)


def tell_sessions(ranker: models.RankingModel, parts: Iterable[Sequences]) -> None:
    """Print how many events begin a session by the ids of the log and not by the pause, or the reverse, if more than one in a hundred."""
    if ranker.arguments.get("session_by") != "column":
        return
    gap = int(ranker.arguments["session_gap"])
    found = [sessions_that_differ(sequences, gap) for sequences in parts]
    differ, events = (sum(pair[at] for pair in found) for at in (0, 1))
    if differ > _DIFFER * events:
        print(
            f"sessions: for {differ:,} of {events:,} events ({differ / events:.1%}) column '{ranker.schema.session}' and pauses of {gap:,} "
            "seconds disagree whether a session begins; masks go by the column (by pauses with session_by='gap')",
            flush=True,
        )


def sessions_that_differ(sequences: Sequences, gap: int) -> tuple[int, int]:
    """Events that begin a session by one of ids and pauses alone, and all that have an earlier event of their member.

    Args:
        sequences: with ids of sessions.
        gap: seconds without an event that end a session.
    """
    later = np.ones(sequences.num_events, dtype=bool)
    later[sequences.offsets[:-1][np.diff(sequences.offsets) > 0]] = False
    session: Any = sequences.session
    by_id, by_pause = np.diff(session, prepend=-1) != 0, np.diff(sequences.time, prepend=0) >= gap
    return int(((by_id != by_pause) & later).sum()), int(later.sum())


def tell_tables(ranker: models.RankingModel) -> None:
    """Print which embedding tables are updated by rows."""
    optimizer = ranker.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    if isinstance(optimizer, TableOptimizer):
        tables = [variable for variable in ranker.trainable_variables if optimizer.is_table(variable)]
        sizes = ", ".join(f"{table.path.split('/')[-2]} ({int(table.shape[0]):,} rows)" for table in tables)
        print(f"tables updated by rows, {optimizer.rule}: {sizes}", flush=True)


def filled(dataset: PackedDataset | PackedRequests) -> float:
    """The share of slots that hold an event."""
    return dataset.efficiency if isinstance(dataset, PackedRequests) else dataset.rows.efficiency


def describe(ranker: models.RankingModel, sequences: Sequences, dataset: PackedDataset | PackedRequests, report: Mapping[str, Any]) -> str:
    """One line: model, data, and what was left out or clipped."""
    if isinstance(dataset, PackedRequests):
        rows, skipped = len(dataset.slots), 0
        how = f"{len(dataset.requests):,} requests in {rows:,} rows of {dataset.row_length}, {dataset.efficiency:.1%} filled"
    else:
        packed = dataset.rows
        how, skipped = f"{len(packed.index):,} rows of {packed.index.shape[1]}, {packed.efficiency:.1%} filled", packed.skipped
    weighed = "".join(f"; inverse propensities of {task}: {r['clipped']:,} of {r['of']:,} clipped" for task, r in report.items())
    return (
        f"{ranker.name}: {ranker.count_params():,} parameters; {sequences.num_events:,} events of {sequences.num_members:,} members, "
        f"{int(sequences.target.sum()):,} target events; {how}"
        + (f"; {skipped} pieces without a target left out" if skipped else "")
        + weighed
    )
