"""Readers of public logs, each returning a `Log`."""

from keras_ranking.data.readers.ebnerd import read_ebnerd
from keras_ranking.data.readers.kuairand import read_kuairand
from keras_ranking.data.readers.log import Log
from keras_ranking.data.readers.movielens import read_movielens

__all__ = ["Log", "read_ebnerd", "read_kuairand", "read_movielens"]
