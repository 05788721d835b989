"""What a run of a model costs beside its cells: how much padding is worth one run less."""

from __future__ import annotations

_DECAY = 0.98  # of older runs, each time; about the last fifty count. Our choice
_LEAST = 30  # runs before the estimate is used


class RunCost:
    """Running least squares of seconds = fixed + each * cells, newest runs first in weight.

    Attributes:
        free: cells of padding that cost as much as a run by itself does, fixed / each; 0 until enough runs of different sizes were seen.
    """

    def __init__(self) -> None:
        self.free = 0.0
        self._runs = 0
        self._sums = [0.0] * 5  # weight, cells, seconds, cells^2, cells * seconds

    def observe(self, cells: float, seconds: float) -> None:
        """A run took so long."""
        self._runs += 1
        new = (1.0, cells, seconds, cells * cells, cells * seconds)
        self._sums = [_DECAY * old + term for old, term in zip(self._sums, new, strict=True)]
        weight, x, y, xx, xy = self._sums
        spread = weight * xx - x * x
        if self._runs < _LEAST or spread <= 1e-9 * weight * xx:
            return
        each = (weight * xy - x * y) / spread
        fixed = (y - each * x) / weight
        # Where cells seem to cost nothing, as in noise, a run's worth of them is a careful guess.
        self.free = max(0.0, fixed / each) if each > 0 else x / weight
