"""From a log to batches. All of it needs numpy and pandas alone, but for the Keras datasets."""

from keras_ranking.data.checks import Report, check_events
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.datasets import PackedDataset
from keras_ranking.data.delays import sample_delays
from keras_ranking.data.packed_requests import PackedRequests
from keras_ranking.data.packing import PackedRows, pack, pad
from keras_ranking.data.readers import Log, read_ebnerd, read_kuairand, read_movielens
from keras_ranking.data.request_dataset import RequestDataset
from keras_ranking.data.requests import Requests, requests
from keras_ranking.data.sequences import Sequences, build_sequences
from keras_ranking.data.shuffling import shuffle_sessions
from keras_ranking.data.simulate import simulate
from keras_ranking.data.simulation_options import SimulatedItems, SimulatedLists, SimulatedTastes
from keras_ranking.data.sources import open_log, split_by_time

__all__ = [
    "Log",
    "PackedDataset",
    "PackedRequests",
    "PackedRows",
    "Report",
    "RequestDataset",
    "Requests",
    "Sequences",
    "SimulatedItems",
    "SimulatedLists",
    "SimulatedTastes",
    "build_sequences",
    "check_events",
    "open_log",
    "pack",
    "pad",
    "point_in_time_counts",
    "read_ebnerd",
    "read_kuairand",
    "read_movielens",
    "requests",
    "sample_delays",
    "shuffle_sessions",
    "simulate",
    "split_by_time",
]
