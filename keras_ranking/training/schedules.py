"""Learning rates over the steps of a training."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

FLOOR = 0.01  # the share of the highest learning rate at which the cosine decay ends
_START, _END = 25.0, 10_000.0  # of one cycle, as in PyTorch and fastai


@keras.saving.register_keras_serializable(package="keras_ranking")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """Up from a 25th of the highest rate, and down to a 10,000th of that, by half a cosine period each.

    With s the step from 0 on, n the number of steps, and w = max(1, warmup n - 1) the end of the rise, as in PyTorch:

        rate(s) = start + (peak - start) (1 - cos(pi s / w)) / 2                 s <= w
        rate(s) = end + (peak - end) (1 + cos(pi (s - w) / (n - 1 - w))) / 2     after

    Args:
        peak: the highest rate.
        steps: n.
        warmup: share of the steps in which the rate rises.
    """

    def __init__(self, peak: float, steps: int, warmup: float) -> None:
        super().__init__()
        self.peak, self.steps, self.warmup = float(peak), int(steps), float(warmup)

    def __call__(self, step: Any) -> Any:
        start, end = self.peak / _START, self.peak / _START / _END
        rise = max(1.0, self.warmup * self.steps - 1)
        step = ops.cast(step, "float32")
        up = ops.minimum(step / rise, 1.0)
        down = ops.clip((step - rise) / max(1.0, self.steps - 1 - rise), 0.0, 1.0)
        rising = start + (self.peak - start) * (1 - ops.cos(math.pi * up)) / 2
        falling = end + (self.peak - end) * (1 + ops.cos(math.pi * down)) / 2
        return ops.where(step <= rise, rising, falling)

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "steps": self.steps, "warmup": self.warmup}


def schedule_for(peak: float, warmup_share: float, steps: int) -> keras.optimizers.schedules.CosineDecay:
    """Linear warm-up from 0 to `peak`, then half a cosine period down to a hundredth of it."""
    warmup = max(1, round(warmup_share * steps))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0, decay_steps=max(1, steps - warmup), alpha=FLOOR, warmup_target=peak, warmup_steps=warmup
    )


def constant_rate(rate: float) -> keras.optimizers.schedules.CosineDecay:
    """The same rate at every step, as a schedule: the optimiser then has the same variables as with a schedule."""
    return keras.optimizers.schedules.CosineDecay(initial_learning_rate=rate, decay_steps=1, alpha=1.0)


def rate_for(schedule: Any, peak: float, warmup_share: float, steps: int) -> Any:
    """The learning rate for an optimiser.

    Args:
        schedule: 'cosine', 'constant', 'onecycle', or a schedule of Keras.
        peak: the highest rate, for the named ones.
        warmup_share: share of the steps in which the rate rises.
        steps: of the whole training.
    """
    if schedule == "constant":
        return peak  # a variable of the optimiser, which callbacks can set
    if schedule == "onecycle":
        return OneCycle(peak, steps, warmup_share)
    return schedule_for(peak, warmup_share, steps) if schedule == "cosine" else schedule


def last_rate(schedule: Any, peak: float, steps: int) -> Any:
    """The rate at which a training ended, at every step.

    Args:
        schedule, peak: as `rate_for`.
        steps: that were made.
    """
    if schedule == "constant":
        return peak  # the checkpoint has the variable's value
    if schedule in ("cosine", "onecycle"):  # at the end of one cycle, a 250,000th, nothing would be learned
        return constant_rate(FLOOR * peak)
    return constant_rate(float(keras.ops.convert_to_numpy(schedule(steps))))


def chosen_rate(schedule: Any, rate: float) -> Any:
    """A rate for every step of a training that is continued, in the form that the schedule had: the optimiser has the same variables."""
    return rate if schedule == "constant" else constant_rate(rate)
