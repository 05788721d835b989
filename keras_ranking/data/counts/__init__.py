"""What was known when a row was scored: counts, rates, strengths, vectors and a key's own past; and values relative to a list."""

from keras_ranking.data.counts.choice_strengths import ChoiceStrengths
from keras_ranking.data.counts.column_counts import ColumnCounts
from keras_ranking.data.counts.expectation import RunningExpectation
from keras_ranking.data.counts.exposure import exposure_corrected_rates
from keras_ranking.data.counts.fold_in import FoldIn
from keras_ranking.data.counts.item_factors import ItemFactors, item_factors
from keras_ranking.data.counts.label_tree import LabelTree, item_agreement
from keras_ranking.data.counts.list_relative import list_relative
from keras_ranking.data.counts.point_in_time import PointInTime
from keras_ranking.data.counts.running_counts import RunningCounts
from keras_ranking.data.counts.running_moments import RunningMoments
from keras_ranking.data.counts.running_past import RunningPast
from keras_ranking.data.counts.windowed import point_in_time_counts

__all__ = [
    "ChoiceStrengths",
    "ColumnCounts",
    "FoldIn",
    "ItemFactors",
    "LabelTree",
    "PointInTime",
    "RunningCounts",
    "RunningExpectation",
    "RunningMoments",
    "RunningPast",
    "exposure_corrected_rates",
    "item_agreement",
    "item_factors",
    "list_relative",
    "point_in_time_counts",
]
