"""The workloads of `attention.py`: shapes, segments, sessions and times, with their spans and dense masks."""

from __future__ import annotations

from typing import Any

import numpy as np

WORKLOADS = ("W1a", "W1b", "W2", "W3", "W4", "W5")
LARGER = ("W1-1024", "W1-4096", "W3-64")  # for a GPU
SHAPES = {
    "W1a": (8, 512, 8, 32),
    "W1b": (2, 2048, 8, 64),
    "W1-1024": (16, 1024, 8, 64),
    "W1-4096": (4, 4096, 8, 64),
    "W3": (1, 1536, 4, 64),
    "W3-64": (64, 1536, 4, 64),
}
LONGEST_DENSE = 16384  # no dense mask is made for more tokens


class Workload:
    """Shapes and ids of one workload, in numpy, and functions for its spans and dense masks."""

    def __init__(self, name: str, tokens: int, rng: np.random.Generator) -> None:
        self.name = name
        self.batch, self.tokens, self.heads, self.size = SHAPES.get(name, (1, tokens, 4, 64))
        self.packed = name in ("W2", "W4", "W5")
        self.bounds = [0, self.tokens]
        if self.packed:
            self.bounds = [0]
            while self.bounds[-1] < self.tokens:
                length = int(np.clip(rng.lognormal(np.log(95.0), 0.8), 8, 1024))
                self.bounds.append(min(self.tokens, self.bounds[-1] + length))
        lengths = np.diff(self.bounds)
        self.longest = int(lengths.max())
        row = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        self.segments = np.tile(row, (self.batch, 1)).astype("int32")
        # Sessions of about 12 events within seconds, with hours between sessions.
        inside = np.arange(self.tokens) - np.repeat(self.bounds[:-1], lengths)
        self.sessions = np.tile(inside // 12, (self.batch, 1)).astype("int32")
        self.times = np.tile(inside // 12 * 7200 + inside % 12, (self.batch, 1)).astype("int32")

    def spans(self) -> Any:
        from keras_ranking.ops import Spans

        if self.name.startswith("W3"):
            return Spans.candidates(np.full(self.batch, 1024, "int32"), 1024, 512)
        if self.name == "W4":
            return Spans.delayed(self.times, 3600, self.segments)
        if self.name == "W5":
            return Spans.setwise(self.sessions, self.segments, history=True)
        return Spans.causal(self.segments)

    def mask(self) -> np.ndarray:
        """Boolean (B, T, T)."""
        from keras_ranking.ops.backends.reference import visible

        return visible(*numpy_parts(self.spans()), self.tokens)

    def pairs(self) -> int:
        start, end, own = (part.astype("int64") for part in numpy_parts(self.spans()))
        index = np.arange(self.tokens)[None]
        first, second = np.maximum(end - start, 0), index + 1 - own
        overlap = np.maximum(0, np.minimum(end, index + 1) - np.maximum(start, own))
        return int((first + second - overlap).sum())

    def pad(self, values: np.ndarray, fill: float = 0) -> np.ndarray:
        """(1, T, ...) -> (segments, longest, ...): one segment per row."""
        out = np.full((len(self.bounds) - 1, self.longest, *values.shape[2:]), fill, values.dtype)
        for row, (low, high) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            out[row, : high - low] = values[0, low:high]
        return out

    def padded_mask(self) -> np.ndarray:
        """Boolean (segments, longest, longest)."""
        start, end, own = (part[0] for part in numpy_parts(self.spans()))
        out = np.zeros((len(self.bounds) - 1, self.longest, self.longest), bool)
        for row, (low, high) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            i, j = np.arange(low, high)[:, None], np.arange(low, high)[None]
            seen = ((j >= start[low:high, None]) & (j < end[low:high, None])) | ((j >= own[low:high, None]) & (j <= i))
            out[row, : high - low, : high - low] = seen
        return out


def numpy_parts(spans: Any) -> list[np.ndarray]:
    import keras

    return [keras.ops.convert_to_numpy(part) for part in spans]
