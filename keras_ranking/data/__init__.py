"""From a log to batches. All of it needs numpy and pandas alone, but for the Keras datasets."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from keras_ranking.data.checks import Report, check_events
from keras_ranking.data.counted import saved_counts, with_counts
from keras_ranking.data.counts import (
    ChoiceStrengths,
    ColumnCounts,
    FoldIn,
    ItemFactors,
    LabelTree,
    PointInTime,
    RunningCounts,
    RunningExpectation,
    RunningMoments,
    RunningPast,
    exposure_corrected_rates,
    item_agreement,
    item_factors,
    list_relative,
    point_in_time_counts,
)
from keras_ranking.data.delays import sample_delays
from keras_ranking.data.packing import PackedRows, pack, pad
from keras_ranking.data.readers import Log, hold_out_members, read_ebnerd, read_kuairand, read_movielens, read_retail, split_by_time
from keras_ranking.data.requests import Requests, requests
from keras_ranking.data.sequences import Sequences, build_sequences
from keras_ranking.data.shards.log import ShardedLog
from keras_ranking.data.shards.prepare import prepare
from keras_ranking.data.shuffling import shuffle_sessions
from keras_ranking.data.simulation.options import SimulatedItems, SimulatedLists, SimulatedTastes
from keras_ranking.data.simulation.simulate import simulate
from keras_ranking.data.sources import open_log
from keras_ranking.schema_sums import SchemaSums

if TYPE_CHECKING:
    from keras_ranking.data.datasets import PackedDataset
    from keras_ranking.data.packed_requests import PackedRequests
    from keras_ranking.data.request_dataset import RequestDataset
    from keras_ranking.data.shards.dataset import ShardedDataset

# A log is read and checked without Keras: the datasets, which import it, are loaded on first use.
_LAZY = {
    "PackedDataset": "datasets",
    "PackedRequests": "packed_requests",
    "RequestDataset": "request_dataset",
    "ShardedDataset": "shards.dataset",
}

__all__ = [
    "ChoiceStrengths",
    "ColumnCounts",
    "FoldIn",
    "ItemFactors",
    "LabelTree",
    "Log",
    "PackedDataset",
    "PackedRequests",
    "PackedRows",
    "PointInTime",
    "Report",
    "RequestDataset",
    "Requests",
    "RunningCounts",
    "RunningExpectation",
    "RunningMoments",
    "RunningPast",
    "SchemaSums",
    "Sequences",
    "ShardedDataset",
    "ShardedLog",
    "SimulatedItems",
    "SimulatedLists",
    "SimulatedTastes",
    "build_sequences",
    "check_events",
    "exposure_corrected_rates",
    "hold_out_members",
    "item_agreement",
    "item_factors",
    "list_relative",
    "open_log",
    "pack",
    "pad",
    "point_in_time_counts",
    "prepare",
    "read_ebnerd",
    "read_kuairand",
    "read_movielens",
    "read_retail",
    "requests",
    "sample_delays",
    "saved_counts",
    "shuffle_sessions",
    "simulate",
    "split_by_time",
    "with_counts",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
