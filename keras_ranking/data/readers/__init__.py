"""Readers of public logs, each returning a `Log`; and which rows of a log are trained on."""

from keras_ranking.data.readers.ebnerd import read_ebnerd
from keras_ranking.data.readers.kuairand import read_kuairand
from keras_ranking.data.readers.log import Log
from keras_ranking.data.readers.movielens import read_movielens
from keras_ranking.data.readers.retail import read_retail
from keras_ranking.data.readers.splits import hold_out_members, split_by_time

__all__ = ["Log", "hold_out_members", "read_ebnerd", "read_kuairand", "read_movielens", "read_retail", "split_by_time"]
