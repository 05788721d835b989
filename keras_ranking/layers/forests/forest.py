"""Forest: a forest of decision trees that another library fitted, as a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_ranking.layers.base import PassesMask
from keras_ranking.layers.forests.lightgbm_text import lightgbm_trees
from keras_ranking.layers.forests.pieces import BLOCK, EXITS, GROUPS, OUTSIDE, Columns, arrays_of
from keras_ranking.layers.forests.sklearn_trees import sklearn_trees
from keras_ranking.layers.forests.trees import LINKS, NEAR_ZERO, Trees

OUTPUTS = ("prediction", "raw", "leaves")
_INTEGERS = ("column", "mask", "right_column", "right_mask", "leaf", "tree")


@keras.saving.register_keras_serializable(package="keras_ranking")
class Forest(PassesMask, keras.layers.Layer):
    """A forest of decision trees, fitted by LightGBM or scikit-learn, as a layer without trainable weights.

        raw        = base + sum over trees of the value of the leaf that x comes to
        prediction = link(raw), what the library's `predict` gives

    It is made by `Forest.from_lightgbm` or `Forest.from_sklearn`, and saved, exported and served with the model that it is in: as
    comparisons, bit operations and lookups, on every backend and inside XLA, without custom operations and without the library.

    The way of a row through a tree is one word: each exit is a bit, in order from left to right. A row that does not go left at a node
    loses the exits of its left side; when all nodes are done, whichever order they come in, the lowest bit that is left is the
    row's exit (QuickScorer, Lucchese et al., SIGIR 2015). Trees of more than 32 leaves are cut into pieces (ours).

    Rows are float32: thresholds are rounded down to float32, so that every comparison is that of the library on the same
    float32 values. What is missing goes where the library sends it: NaN, near zero with LightGBM's `zero_as_missing`, categories that
    a node does not name. Predictions are within 1e-6 of the library's, raw sums within 1e-6 of their size.

    Args:
        sizes: what `get_config` holds: columns, and sizes of the weights.
        output: 'prediction', 'raw' or 'leaves'.

    Call arguments:
        inputs: numbers (..., F), in the order of `features`; NaN is missing, a category is its number.

    Output:
        float32 (..., K); with output='leaves' int32 (..., T), the leaf of each tree, as the library numbers leaves (scikit-learn: the
        leaves alone, in order of its nodes).

    Attributes:
        features: names of the columns.
        leaf_counts: leaves of each tree.

    Raises:
        ValueError: another number of columns, an unknown output.

    Example:
        >>> from sklearn.ensemble import RandomForestRegressor
        >>> x = np.arange(20, dtype="float32")[:, None]
        >>> fitted = RandomForestRegressor(5, random_state=0).fit(x, x[:, 0] > 9)
        >>> layer = kr.layers.Forest.from_sklearn(fitted)
        >>> bool(np.allclose(layer(x)[:, 0], fitted.predict(x), atol=1e-6))
        True
    """

    def __init__(self, sizes: Mapping[str, Any], output: str = "prediction", **settings: Any) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"`output` must be one of {OUTPUTS}. Received: output={output!r}")
        if not isinstance(sizes, Mapping) or "link" not in sizes:
            raise ValueError("`sizes` must be of another Forest: use Forest.from_lightgbm(booster) or Forest.from_sklearn(forest).")
        super().__init__(autocast=False, trainable=False, **{name: value for name, value in settings.items() if name != "trainable"})
        self.sizes, self.output_kind = {name: _plain(value) for name, value in sizes.items()}, output
        self.features: list[str] = list(self.sizes["features"])
        self.leaf_counts: list[int] = list(self.sizes["leaf_counts"])

    # -- making ------------------------------------------------------------------------------------------------------------

    @classmethod
    def from_lightgbm(cls, model: Any, output: str = "prediction", iterations: int | None = None, **settings: Any) -> Forest:
        """A layer of a LightGBM model.

        Args:
            model: a `lightgbm.Booster`, a fitted `LGBMClassifier`, `LGBMRegressor` or `LGBMRanker`, or the path of a file by
                `save_model`, for which LightGBM need not be installed.
            output: see the class.
            iterations: the first so many; None: the best, where training stopped early, else all.
            settings: of `keras.layers.Layer`.

        Raises:
            ValueError: linear trees, an objective whose link is not known, a model that is not fitted, a text that is no model.

        Example:
            >>> import lightgbm
            >>> x = np.random.default_rng(0).normal(size=(500, 3)).astype("float32")
            >>> booster = lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(x, x[:, 0] > x[:, 1]), 5)
            >>> layer = kr.layers.Forest.from_lightgbm(booster)
            >>> bool(np.allclose(layer(x)[:, 0], booster.predict(x), atol=1e-6))
            True
        """
        return cls.from_trees(lightgbm_trees(model, iterations), output, **settings)

    @classmethod
    def from_sklearn(cls, forest: Any, output: str = "prediction", **settings: Any) -> Forest:
        """A layer of a forest of scikit-learn.

        Args:
            forest: a fitted decision tree, `RandomForest*`, `ExtraTrees*`, `GradientBoosting*` or `HistGradientBoosting*`. A regressor of
                several outputs, such as click and dwell, has K of them.
            output: see the class.
            settings: of `keras.layers.Layer`.

        Raises:
            ValueError: another estimator, one that is not fitted, categorical columns, a start that depends on the row.

        Example:
            >>> from sklearn.tree import DecisionTreeClassifier
            >>> x = np.arange(8, dtype="float32")[:, None]
            >>> fitted = DecisionTreeClassifier(max_depth=1).fit(x, x[:, 0] > 3)
            >>> keras.ops.convert_to_numpy(kr.layers.Forest.from_sklearn(fitted)(x[3:5])).tolist()
            [[1.0, 0.0], [0.0, 1.0]]
        """
        return cls.from_trees(sklearn_trees(forest), output, **settings)

    @classmethod
    def from_trees(cls, trees: Trees, output: str = "prediction", **settings: Any) -> Forest:
        """A layer of trees as arrays, such as those of another library.

        Args:
            trees: see `kr.layers.forests.Trees`.
            output: see the class.
            settings: of `keras.layers.Layer`.

        Raises:
            ValueError: no trees, a link that is not known.
        """
        if not trees.trees:
            raise ValueError("a forest must have at least one tree. Received: none")
        if trees.link not in LINKS:
            raise ValueError(f"`link` must be one of {LINKS}. Received: link={trees.link!r}")
        columns = Columns.of(trees.trees)
        arrays, tables = arrays_of(trees, columns), columns.tables()
        sizes = {
            "features": list(trees.features),
            "leaf_counts": [len(tree.values) for tree in trees.trees],
            "numbers": columns.numbers,
            "tables": [[feature, *table.shape] for feature, table in tables.items()],
            "shapes": {name: array.shape for name, array in arrays.items()},
            "link": trees.link,
            "slope": trees.slope,
        }
        made = cls(sizes, output, **settings)
        made.build((None, len(trees.features)))
        for name, array in arrays.items():
            made.held[name].assign(array)
        for weight, table in zip(made.tables, tables.values(), strict=True):
            weight.assign(table)
        return made

    def build(self, inputs_shape: tuple[int | None, ...]) -> None:
        self._check(inputs_shape)

        def held(name: str, shape: Any, dtype: str) -> Any:
            return self.add_weight(name=name, shape=tuple(shape), initializer="zeros", trainable=False, dtype=dtype, autocast=False)

        kinds = {name: "int32" if name in _INTEGERS else "float32" for name in self.sizes["shapes"]}
        self.held = {name: held(name, shape, kinds[name]) for name, shape in self.sizes["shapes"].items()}
        self.tables = [held(f"categories_{feature}", shape, "float32") for feature, *shape in self.sizes["tables"]]
        self.built = True

    def _check(self, shape: Any) -> None:
        if not shape or shape[-1] != len(self.features):
            raise ValueError(f"`inputs` must be (..., {len(self.features)}), a column for each feature. Received: shape={tuple(shape)}")

    # -- computing ---------------------------------------------------------------------------------------------------------

    def call(self, inputs: Any) -> Any:
        self._check(inputs.shape)
        x = ops.reshape(ops.cast(inputs, "float32"), (-1, len(self.features)))
        at = self._exits(ops.transpose(x))
        lead = ops.shape(inputs)[:-1]
        if self.output_kind == "leaves":
            return ops.reshape(self._leaves(at), (*lead, len(self.leaf_counts)))
        raw = self._sums(at)
        return ops.reshape(raw if self.output_kind == "raw" else self._linked(raw), (*lead, self.sizes["shapes"]["base"][0]))

    def _columns(self, x: Any) -> Any:
        """(F, N) -> (columns, N), what nodes compare."""
        parts = []
        for group in GROUPS:
            if not self.sizes["numbers"][group]:
                continue
            own = ops.take(x, np.array(self.sizes["numbers"][group], np.int32), axis=0)
            kind, _, side = group.partition("_")
            absent = ops.isnan(own)
            own = ops.where(absent, 0.0, own) if kind != "nan" else own
            if kind == "zero":
                absent = ops.abs(own) <= NEAR_ZERO
            parts.append(own if kind == "none" else ops.where(absent, -np.inf if side == "left" else np.inf, own))
        for (feature, values, _), table in zip(self.sizes["tables"], self.tables, strict=True):
            own = x[feature]
            known = ops.logical_and(own > -1.0, own < values - 1)
            row = ops.cast(ops.where(known, own, -1.0), "int32")  # towards zero, as the library reads a category
            row = ops.where(known, row + 1, 0)
            parts.append(ops.transpose(ops.take(table, row, axis=0)))
        return ops.concatenate(parts, axis=0) if parts else x[:1]

    def _exits(self, x: Any) -> Any:
        """(F, N) -> rows of `value` and `leaf`: the exit of each piece, int32 (P, N)."""
        columns = self._columns(x)
        word: Any = None
        for prefix, compare in (("", ops.less_equal), ("right_", ops.greater)):
            entries = self.sizes["shapes"][f"{prefix}mask"][0]
            column, threshold, mask = (ops.convert_to_tensor(self.held[prefix + name]) for name in ("column", "threshold", "mask"))
            for entry in range(entries):
                kept = compare(ops.take(columns, column[entry], axis=0), threshold[entry][:, None])
                kept = ops.where(kept, -1, mask[entry][:, None])
                word = kept if word is None else ops.bitwise_and(word, kept)
        pieces = self.sizes["shapes"]["tree"][0]
        first = np.arange(pieces, dtype=np.int32)[:, None] * (EXITS + 1)
        if word is None:  # no tree has a node
            return ops.broadcast_to(ops.convert_to_tensor(first, "int32"), (pieces, ops.shape(x)[1]))
        lowest = ops.bitwise_and(word, -word)
        power = ops.abs(ops.cast(lowest, "float32"))  # the sign bit is -2^31
        at = ops.cast(ops.round(ops.log2(ops.maximum(power, 1.0))), "int32")
        return ops.where(lowest == 0, OUTSIDE, at) + ops.convert_to_tensor(first, "int32")

    def _sums(self, at: Any) -> Any:
        """(P, N) -> raw (N, K)."""
        outputs = self.sizes["shapes"]["base"][0]
        values = ops.convert_to_tensor(self.held["value"])
        values = ops.take(values[:, 0], at)[..., None] if outputs == 1 else ops.take(values, at, axis=0)
        if self.sizes["shapes"]["tree"][0] > BLOCK:
            values = ops.sum(ops.reshape(values, (BLOCK, -1, *ops.shape(values)[1:])), axis=1)
        return ops.sum(values, axis=0) + ops.convert_to_tensor(self.held["base"])

    def _leaves(self, at: Any) -> Any:
        """(P, N) -> (N, T): one piece of each tree has the row's leaf, the others say 0."""
        found = ops.take(ops.convert_to_tensor(self.held["leaf"]), at)
        trees = len(self.leaf_counts)
        if self.sizes["shapes"]["tree"][0] != trees:
            found = ops.segment_sum(found, ops.convert_to_tensor(self.held["tree"]), num_segments=trees + 1)[:trees]
        return ops.transpose(found) - 1

    def _linked(self, raw: Any) -> Any:
        link = self.sizes["link"]
        if link == "sigmoid":
            return ops.sigmoid(self.sizes["slope"] * raw)
        if link == "softmax":
            return ops.softmax(raw, axis=-1)
        return ops.exp(raw) if link == "exp" else ops.sign(raw) * raw * raw if link == "signed_square" else raw

    def compute_output_spec(self, inputs: Any) -> Any:
        self._check(inputs.shape)
        if self.output_kind == "leaves":
            return keras.KerasTensor((*inputs.shape[:-1], len(self.leaf_counts)), dtype="int32")
        return keras.KerasTensor((*inputs.shape[:-1], self.sizes["shapes"]["base"][0]), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "sizes": self.sizes, "output": self.output_kind}


def _plain(value: Any) -> Any:
    """Tuples and numpy numbers as JSON has them, so that a layer and its copy have equal sizes."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value
