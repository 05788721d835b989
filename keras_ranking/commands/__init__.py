"""The commands of `keras-ranking` and their arguments; `cli.py` runs them. Heavy imports are inside the functions."""

from keras_ranking.commands.common import quiet_imports, table
from keras_ranking.commands.exports import export, serve, skew
from keras_ranking.commands.learning import evaluate, simulate, train
from keras_ranking.commands.scoring import score, score_here

__all__ = ["evaluate", "export", "quiet_imports", "score", "score_here", "serve", "simulate", "skew", "table", "train"]
