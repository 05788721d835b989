"""Logs to batches: numpy and pandas only, until the Keras datasets at the end."""

from keras_ranking.data.checks import Report, check_events
from keras_ranking.data.counts import point_in_time_counts
from keras_ranking.data.datasets import PackedDataset, RequestDataset
from keras_ranking.data.packing import PackedRows, pack
from keras_ranking.data.readers.log import Log
from keras_ranking.data.requests import Requests, requests
from keras_ranking.data.sequences import Sequences, build_sequences
from keras_ranking.data.simulate import simulate
