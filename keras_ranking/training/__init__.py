"""Training: from a log to a trained model and its metrics; incremental training; event weights and propensities."""

from keras_ranking.data.labels import LongDwell, contribution_labels, long_dwell_labels
from keras_ranking.optimizers import TableOptimizer
from keras_ranking.training.allocator import keep_freed_memory
from keras_ranking.training.checkpoint import Checkpoint, read_checkpoint
from keras_ranking.training.daily.penalty import FisherPenalty
from keras_ranking.training.daily.step import RefreshEffects, daily_step
from keras_ranking.training.incremental.fisher import FisherSnapshot
from keras_ranking.training.incremental.penalty import IncrementalPenalty, fit_incremental
from keras_ranking.training.options import TrainingOptions
from keras_ranking.training.post_training import fit_exploration, fit_random_effects, fit_stack, follow_base_rate, forest_rows
from keras_ranking.training.recipe import Recipe
from keras_ranking.training.run import train, warm_start
from keras_ranking.training.scoring.events import model_requests, predict_events
from keras_ranking.training.scoring.rows import predict
from keras_ranking.training.scoring.served import predict_served
from keras_ranking.training.semantic_ids import fit_semantic_id
from keras_ranking.training.start_tables import StartTables
from keras_ranking.training.streaming.evaluate import evaluate
from keras_ranking.training.streaming.score_log import score_log
from keras_ranking.training.tracking.mlflow import MLflowLog
from keras_ranking.training.tracking.tensorboard import TensorBoardLog
from keras_ranking.training.transfer import Transfer, TransferReport, compare_transfer, freeze, transfer
from keras_ranking.training.weighting.event_weights import (
    EventWeights,
    age_weights,
    event_weights,
    inverse_propensity_weights,
    place_weights,
)
from keras_ranking.training.weighting.propensities import PositionCurve, position_propensities

__all__ = [
    "Checkpoint",
    "EventWeights",
    "FisherPenalty",
    "FisherSnapshot",
    "IncrementalPenalty",
    "LongDwell",
    "MLflowLog",
    "PositionCurve",
    "Recipe",
    "RefreshEffects",
    "StartTables",
    "TableOptimizer",
    "TensorBoardLog",
    "TrainingOptions",
    "Transfer",
    "TransferReport",
    "age_weights",
    "compare_transfer",
    "contribution_labels",
    "daily_step",
    "evaluate",
    "event_weights",
    "fit_exploration",
    "fit_incremental",
    "fit_random_effects",
    "fit_semantic_id",
    "fit_stack",
    "follow_base_rate",
    "forest_rows",
    "freeze",
    "inverse_propensity_weights",
    "keep_freed_memory",
    "long_dwell_labels",
    "model_requests",
    "place_weights",
    "position_propensities",
    "predict",
    "predict_events",
    "predict_served",
    "read_checkpoint",
    "score_log",
    "train",
    "transfer",
    "warm_start",
]
