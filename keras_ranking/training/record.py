"""What a training leaves behind: the content of `history.json`, and the files of its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keras_ranking import models
from keras_ranking.data import PackedDataset, PackedRequests, PointInTime, Report, Sequences
from keras_ranking.data.counted import COUNTS, about_counts
from keras_ranking.data.counts.point_in_time import FILE as STATES
from keras_ranking.schema import Schema
from keras_ranking.training.checkpoint import FILE, checkpoint_writer, write_whole
from keras_ranking.training.distribution.plan import active
from keras_ranking.training.incremental.fisher import SNAPSHOTS
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.progress import Progress
from keras_ranking.training.reporting import filled
from keras_ranking.training.scoring.pairs import pair_counts, plain


def history_of(
    ranker: models.RankingModel,
    about: Mapping[str, Any],
    counter: Progress,
    training: TrainingOptions,
    sequences: Sequences,
    dataset: PackedDataset | PackedRequests,
    report: Mapping[str, Any],
    seconds: float,
    counts: PointInTime | None = None,
) -> dict[str, Any]:
    """The content of `history.json`."""
    read = read_of(sequences.report, int(sequences.target.sum()), _span(ranker.schema, sequences), filled(dataset))
    read["pairs"] = plain(pair_counts(ranker, sequences, training, dataset.weights))
    return history_with(ranker, about, counter, training, read, report, seconds, counts)


def read_of(checks: Report, targets: int, span: Mapping[str, list[str]], efficiency: float) -> dict[str, Any]:
    """What `history.json` says of the rows that were read.

    Args:
        checks: report of the checks.
        targets: number of target events.
        span: first and last time, of targets and of all.
        efficiency: share of the slots that hold an event.
    """
    left_out = {
        reason: {"rows": rows, "first": checks.examples[reason], "places": checks.places[reason][:100].tolist()}
        for reason, rows in checks.dropped.items()
    }
    return {
        "train_events": targets,
        "left_out": left_out,
        "reordered": checks.reordered,
        "data_span": dict(span),
        "packing_efficiency": efficiency,
    }


def history_with(
    ranker: models.RankingModel,
    about: Mapping[str, Any],
    counter: Progress,
    training: TrainingOptions,
    read: Mapping[str, Any],
    report: Mapping[str, Any],
    seconds: float,
    counts: PointInTime | None = None,
) -> dict[str, Any]:
    """The content of `history.json`, with what `read_of` says."""
    return {
        **{name: about[name] for name in ("model", "log", "seed", "backend")},
        "log_seed": about.get("log_seed", about["seed"]),
        "epochs": counter.epochs,
        "seconds": seconds,
        "train_events": read["train_events"],
        "preset": about.get("preset"),
        "left_out": read["left_out"],
        "reordered": read["reordered"],
        "data_span": read["data_span"],
        "parameters": int(ranker.count_params()),
        "packing_efficiency": read["packing_efficiency"],
        "propensities": dict(report),
        **({"pairs": read["pairs"]} if read.get("pairs") else {}),
        "training": asdict(training),
        "arguments": ranker.arguments,
        **{name: about["fingerprint"][name] for name in ("recipe", "started_tables", "transfer") if name in about["fingerprint"]},
        **({} if counts is None else {"counts": about_counts(counts)}),
        **({} if counter.validation is None else counter.validation.report()),
    }


def _span(schema: Schema, sequences: Sequences) -> dict[str, list[str]]:
    """First and last time, UTC, of the target events and of all events read."""
    times = {"learned": sequences.time[sequences.target], "read": sequences.time}
    return {name: stamps(schema, found.min(), found.max()) for name, found in times.items()}


def stamps(schema: Schema, *times: int) -> list[str]:
    """Model times as UTC."""
    return [datetime.fromtimestamp(schema.epoch + int(at), UTC).isoformat() for at in times]


def write_folder(
    folder: Path,
    ranker: models.RankingModel,
    history: Mapping[str, Any],
    about: Mapping[str, Any],
    counts: PointInTime | None = None,
    more: Mapping[str, Callable[[Path], Any]] | None = None,
) -> None:
    """Write the four files of a finished training, the states of its counts, and `more` files. One process writes, and the others wait."""
    plan = active()
    if plan.writes:
        _write_folder(folder, ranker, history, about, counts, more or {})
    plan.wait()


def _write_folder(
    folder: Path,
    ranker: models.RankingModel,
    history: Mapping[str, Any],
    about: Mapping[str, Any],
    counts: PointInTime | None,
    more: Mapping[str, Callable[[Path], Any]],
) -> None:
    states = {} if counts is None else {folder / COUNTS / name: write for name, write in counts.files().items()}
    (folder / COUNTS if states else folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps(history, indent=2) + "\n"
    write_whole(
        {
            **states,
            **{folder / name: write for name, write in more.items()},
            folder / "model.keras": ranker.save,
            folder / "schema.json": ranker.schema.save,
            folder / "history.json": lambda path: path.write_text(text, encoding="utf-8"),
            folder / FILE: checkpoint_writer(ranker, about),
        }
    )
    if not states:  # those of an earlier training are no longer of this one
        (folder / COUNTS / STATES).unlink(missing_ok=True)
    for name in {*SNAPSHOTS} - set(more):
        (folder / name).unlink(missing_ok=True)
