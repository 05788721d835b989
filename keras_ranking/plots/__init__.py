"""Single figures for notebooks and reports, of arrays and names. matplotlib is imported when the first one is made."""

from keras_ranking.plots.attention import attention_over_time
from keras_ranking.plots.calibration import reliability, score_distribution
from keras_ranking.plots.intervals import intervals
from keras_ranking.plots.positions import position_curve
from keras_ranking.plots.shares import column_shares, stability_index
from keras_ranking.plots.training_curves import training_curves

__all__ = [
    "attention_over_time",
    "column_shares",
    "intervals",
    "position_curve",
    "reliability",
    "score_distribution",
    "stability_index",
    "training_curves",
]
