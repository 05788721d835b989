"""A training on several devices or in several processes: which part of a batch is whose, who writes, and what is added up."""

from keras_ranking.training.distribution.choice import KINDS, plan_for
from keras_ranking.training.distribution.plan import Plan, active

__all__ = ["KINDS", "Plan", "active", "plan_for"]
