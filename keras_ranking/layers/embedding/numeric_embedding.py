"""A vector for each number: piecewise-linear over bins, periodic, or linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.configuration import is_integer
from keras_ranking.layers.base import PassesMask, WeightRules
from keras_ranking.number_edges import checked_edges, quantile_edges

KINDS = ("piecewise_linear", "periodic", "linear")
_LARGEST = 1e15  # of an open bin: products of it stay finite


@keras.saving.register_keras_serializable(package="keras_ranking")
class NumericEmbedding(PassesMask, WeightRules, keras.layers.Layer):
    """A vector for each number, by weights of its own: `activation(W_f encoding(x_f) + b_f)` for number f.

    | `kind`             | encoding of x                                                                                       |
    |--------------------|-----------------------------------------------------------------------------------------------------|
    | `piecewise_linear` | e_t = (x - b_{t-1}) / (b_t - b_{t-1}), t = 1..T; at least 0 but for t = 1, at most 1 but for t = T  |
    | `periodic`         | [sin(2 pi c_1 x), ..., sin(2 pi c_k x), cos(2 pi c_1 x), ..., cos(2 pi c_k x)], c learned           |
    | `linear`           | x                                                                                                   |

    So a bin is 0 for numbers before it and 1 for numbers beyond it; the first is open below and the last above. Gorishniy et al., "On
    Embeddings for Numerical Features in Tabular Deep Learning" (2203.05556): the three kinds, weights of their own for each number, edges
    at quantiles of training rows, c drawn from N(0, sigma), and ReLU or no activation are *stated*; the paper tunes sizes, k and sigma. A
    width of 8 without activation is a start that the authors' package names. *Our choice*: other defaults; numbers and c in float32
    under every policy; an open bin is at least -1e15 and at most 1e15.

    Args:
        kind: see the table.
        width: D, width of a vector; None: the encoding itself, without W and b, for 'piecewise_linear' and 'periodic'.
        edges: for 'piecewise_linear', the increasing edges b_0..b_T of each number, as from `edges_of`; numbers may have different T.
        frequencies: k, number of c of each number, for 'periodic'.
        sigma: standard deviation of the first c, for 'periodic'.
        activation: of the vectors, such as 'relu'; None: none.
        flatten: whether the vectors of a token are joined. With `width=None`, a number then has as many places as bins.
        initializer: of W and b; None: uniform within 1 / sqrt(n), n the length of the number's encoding.
        kernel_regularizer, kernel_constraint, bias_regularizer, bias_constraint: of W and of b.

    Call arguments:
        inputs: floats (..., F), F numbers.
        columns: which numbers these are, by their places in `edges` and weights; None: all F.

    Output:
        (..., F, D); with `width=None`, D is the longest encoding, zero beyond a shorter one. With `flatten`, (..., F * D).

    Raises:
        ValueError: an unknown kind, sizes that are not positive, `edges` with another kind or another count than the numbers, edges that do
            not increase or are not finite, an activation without width.

    Example:
        >>> ages = np.array([1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0])
        >>> edges = kr.layers.NumericEmbedding.edges_of(ages, bins=3)
        >>> edges
        ((1.0, 3.0, 8.0, 21.0),)
        >>> encoding = kr.layers.NumericEmbedding(edges=edges, width=None)
        >>> keras.ops.convert_to_numpy(encoding(np.array([[5.5]], "float32"))).tolist()
        [[[1.0, 0.5, 0.0]]]
        >>> inputs = keras.Input((1,))
        >>> vectors = kr.layers.NumericEmbedding(edges=edges, width=4, activation="relu", flatten=True)(inputs)
        >>> keras.Model(inputs, keras.layers.Dense(1)(vectors)).output_shape
        (None, 1)
    """

    weight_rules = ("kernel_regularizer", "kernel_constraint", "bias_regularizer", "bias_constraint")

    def __init__(
        self,
        kind: str = "piecewise_linear",
        width: int | None = 8,
        edges: Sequence[Sequence[float]] | None = None,
        frequencies: int = 16,
        sigma: float = 0.1,
        activation: Any = None,
        flatten: bool = False,
        initializer: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(**{**settings, "autocast": False})  # a number in half precision would be in another bin
        check_numeric(kind, width, frequencies, sigma, activation)
        if (edges is None) == (kind == "piecewise_linear"):
            raise ValueError(f"`edges` go with kind='piecewise_linear', and with it alone. Received: kind={kind!r}, edges={edges}")
        if edges is not None and not len(edges):
            raise ValueError(f"`edges` must be a list of edges for each number. Received: edges={edges}")
        self.kind, self.width, self.flatten = kind, None if width is None else int(width), bool(flatten)
        self.frequencies, self.sigma = int(frequencies), float(sigma)
        self.activation = keras.activations.get(activation)
        self.initializer = None if initializer is None else keras.initializers.get(initializer)
        self.edges = None if edges is None else tuple(checked_edges(each, f"edges[{f}]") for f, each in enumerate(edges))

    @staticmethod
    def edges_of(values: Any, bins: int) -> tuple[tuple[float, ...], ...]:
        """Edges of each number: quantiles of training values, equal ones merged, see `kr.Number` for columns of a schema.

        Args:
            values: (rows,) or (rows, F), finite.
            bins: most bins of a number.

        Returns:
            For each of F numbers, from 2 to bins + 1 increasing edges. A constant number c has the bin [c, c + 1].

        Raises:
            ValueError: no rows, a value that is not finite, or `bins` that is no positive integer.

        Example:
            >>> kr.layers.NumericEmbedding.edges_of([[0.0, 7.0], [1.0, 7.0], [4.0, 7.0]], bins=2)
            ((0.0, 1.0, 4.0), (7.0, 8.0))
        """
        table = np.asarray(values, dtype=np.float64)
        if table.ndim not in (1, 2):
            raise ValueError(f"`values` must have the shape (rows,) or (rows, numbers). Received: {table.shape}")
        return tuple(quantile_edges(column, bins) for column in (table[:, None] if table.ndim == 1 else table).T)

    def _lengths(self, count: int) -> list[int]:
        """Length of the encoding of each number."""
        if self.edges is not None:
            return [len(each) - 1 for each in self.edges]
        return [2 * self.frequencies if self.kind == "periodic" else 1] * count

    def _count(self, input_shape: Any, columns: Sequence[int] | None) -> int:
        count = input_shape[-1] if len(input_shape) else None
        wanted = len(self.edges) if columns is None and self.edges is not None else None if columns is None else len(columns)
        if count is None or (wanted is not None and count != wanted):
            what = "a known number of" if wanted is None else f"{wanted}"
            raise ValueError(f"inputs must have {what} numbers in their last axis. Received: shape {tuple(input_shape)}")
        return int(count)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        lengths = self._lengths(self._count(input_shape, None))
        self.lengths = tuple(lengths)
        if self.kind == "periodic":
            # In float32 under every policy: an error of a frequency grows with the number.
            normal = keras.initializers.RandomNormal(stddev=self.sigma)
            shape = (len(lengths), self.frequencies)
            self.c = self.add_weight(shape=shape, initializer=normal, name="frequencies", autocast=False)
        if self.edges is not None:
            self.bounds = self._bins()
        if self.width is not None:
            bound = 1.0 / np.sqrt(np.asarray(lengths, dtype=np.float64))
            shapes: dict[str, tuple[int, ...]] = {"kernel": (len(lengths), max(lengths), self.width), "bias": (len(lengths), self.width)}
            for name, of_weight in shapes.items():
                initial = self.initializer or _uniform(bound.reshape(-1, *[1] * (len(of_weight) - 1)))
                setattr(self, name, self._add(name, True, shape=of_weight, initializer=initial, name=name))
        self.built = True

    def _bins(self) -> tuple[np.ndarray, ...]:
        """Lower edge, width, least and largest value of each bin, (F, T) each; a bin that a number does not have is always 0."""
        count, most = len(self.edges or ()), max(self._lengths(0))
        lower, least, top = (np.zeros((count, most), dtype=np.float32) for _ in range(3))
        size = np.ones((count, most), dtype=np.float32)
        for f, edges in enumerate(self.edges or ()):
            bins = len(edges) - 1
            lower[f, :bins], size[f, :bins], top[f, :bins] = edges[:-1], np.diff(np.asarray(edges, dtype=np.float32)), 1.0
            least[f, 0], top[f, bins - 1] = -_LARGEST, _LARGEST
        return lower, size, least, top

    def call(self, inputs: Any, columns: Sequence[int] | None = None) -> Any:
        self._count(inputs.shape, columns)
        chosen = None if columns is None else np.asarray(columns, dtype=np.int32)

        def of(weight: Any) -> Any:
            if chosen is None:
                return weight
            return weight[chosen] if isinstance(weight, np.ndarray) else ops.take(weight, chosen, axis=0)

        x = ops.expand_dims(ops.cast(inputs, "float32"), -1)
        if self.kind == "piecewise_linear":
            lower, size, least, most = (ops.convert_to_tensor(of(part)) for part in self.bounds)
            x = ops.minimum(ops.maximum((x - lower) / size, least), most)
        elif self.kind == "periodic":
            angle = x * (2.0 * math.pi * ops.cast(of(self.c), "float32"))
            x = ops.concatenate([ops.sin(angle), ops.cos(angle)], axis=-1)
        x = ops.cast(x, self.compute_dtype)
        if self.width is not None:
            kernel, bias = (ops.cast(of(weight), self.compute_dtype) for weight in (self.kernel, self.bias))
            x = self.activation(ops.einsum("...fe,fed->...fd", x, kernel) + bias)
        if not self.flatten:
            return x
        x = ops.reshape(x, (*ops.shape(x)[:-2], x.shape[-2] * x.shape[-1]))
        places = self._places(columns)
        return x if len(places) == x.shape[-1] else ops.take(x, np.asarray(places, dtype=np.int32), axis=-1)

    def _places(self, columns: Sequence[int] | None) -> list[int]:
        """Where a flat output has something: all places, but for bins that a number does not have."""
        lengths = self.lengths if columns is None else [self.lengths[f] for f in columns]
        most = max(self.lengths) if self.width is None else self.width
        return [f * most + t for f, length in enumerate(lengths) for t in range(length if self.width is None else most)]

    def compute_output_shape(self, input_shape: tuple[int | None, ...], columns: Sequence[int] | None = None) -> tuple[int | None, ...]:
        count = self._count(input_shape, columns)
        lengths = self._lengths(count)
        width = max(lengths) if self.width is None else self.width
        if not self.flatten:
            return (*input_shape, width)
        taken = lengths if columns is None or self.edges is None else [lengths[f] for f in columns]
        return (*input_shape[:-1], sum(taken) if self.width is None else count * width)

    def compute_output_spec(self, inputs: Any, columns: Sequence[int] | None = None) -> Any:
        return keras.KerasTensor(self.compute_output_shape(tuple(inputs.shape), columns), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kind": self.kind,
            "width": self.width,
            "edges": None if self.edges is None else [list(each) for each in self.edges],
            "frequencies": self.frequencies,
            "sigma": self.sigma,
            "activation": keras.activations.serialize(self.activation),
            "flatten": self.flatten,
            "initializer": None if self.initializer is None else keras.initializers.serialize(self.initializer),
        }


def check_numeric(kind: str, width: int | None, frequencies: int, sigma: float, activation: Any) -> None:
    """Raises a ValueError for arguments that `NumericEmbedding` does not accept."""
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {KINDS}. Received: kind={kind!r}")
    if width is None and (kind == "linear" or activation not in (None, "linear")):
        received = f"width=None, kind={kind!r}, activation={activation!r}"
        raise ValueError(f"`width` must be given with kind='linear' and with an activation. Received: {received}")
    for name, value in (("width", 1 if width is None else width), ("frequencies", frequencies)):
        if not is_integer(value) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"`sigma` must be a positive number. Received: sigma={sigma}")


def _uniform(bound: np.ndarray) -> Any:
    """An initialiser that is uniform within bounds, which broadcast to the shape."""

    def initial(shape: Any, dtype: Any = None) -> Any:
        unit = keras.initializers.RandomUniform(-1.0, 1.0)(shape, dtype="float32")
        return ops.cast(ops.multiply(unit, ops.convert_to_tensor(bound, dtype="float32")), dtype)

    return initial
