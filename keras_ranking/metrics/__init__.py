"""Ranking and calibration metrics that Keras does not have: exact functions on arrays, and streaming `keras.metrics.Metric` forms.

NDCG and MRR as Keras metrics are in keras-rs; the array forms here agree with them.
"""

from keras_ranking.metrics.bootstrap import BootstrapInterval, paired_bootstrap
from keras_ranking.metrics.calibration_error_metric import CalibrationError
from keras_ranking.metrics.diversity import GapViolations, coverage, gap_violations, greedy_rerank, intra_list_similarity
from keras_ranking.metrics.grouped_auc_metric import GroupedAUC
from keras_ranking.metrics.intervals import MetricInterval, summary_differences, summary_intervals
from keras_ranking.metrics.normalized_entropy_metric import NormalizedEntropy
from keras_ranking.metrics.observed_metric import Observed
from keras_ranking.metrics.observed_over_expected_metric import ObservedOverExpected
from keras_ranking.metrics.probability import calibration_error, log_loss, normalized_entropy, observed_over_expected
from keras_ranking.metrics.ranking import GroupAUCs, GroupedValue, auc, grouped_auc, mrr, ndcg, per_request_auc
from keras_ranking.metrics.replay import ReplayRate, replay_contribution_rate
from keras_ranking.metrics.replay_contribution_rate_metric import ReplayContributionRate
from keras_ranking.metrics.report import summary
from keras_ranking.metrics.report_kinds import grade_summary, number_summary
from keras_ranking.metrics.utility import realised_utility, utility_score

__all__ = [
    "BootstrapInterval",
    "CalibrationError",
    "GapViolations",
    "GroupAUCs",
    "GroupedAUC",
    "GroupedValue",
    "MetricInterval",
    "NormalizedEntropy",
    "Observed",
    "ObservedOverExpected",
    "ReplayContributionRate",
    "ReplayRate",
    "auc",
    "calibration_error",
    "coverage",
    "gap_violations",
    "grade_summary",
    "greedy_rerank",
    "grouped_auc",
    "intra_list_similarity",
    "log_loss",
    "mrr",
    "ndcg",
    "normalized_entropy",
    "number_summary",
    "observed_over_expected",
    "paired_bootstrap",
    "per_request_auc",
    "realised_utility",
    "replay_contribution_rate",
    "summary",
    "summary_differences",
    "summary_intervals",
    "utility_score",
]
