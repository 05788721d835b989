"""What was known when a row was scored: counts, rates corrected for exposure, strengths by choice, and values relative to a list."""

from keras_ranking.data.counts.choice_strengths import ChoiceStrengths
from keras_ranking.data.counts.exposure import exposure_corrected_rates
from keras_ranking.data.counts.list_relative import list_relative
from keras_ranking.data.counts.windowed import point_in_time_counts

__all__ = ["ChoiceStrengths", "exposure_corrected_rates", "list_relative", "point_in_time_counts"]
