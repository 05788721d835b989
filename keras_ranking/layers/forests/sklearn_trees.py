"""Trees of scikit-learn's forests."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_ranking.layers.forests.trees import Tree, Trees, round_down

_ONE = ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor")
_MEAN = ("RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier", "ExtraTreesRegressor")
_SUM = ("GradientBoostingClassifier", "GradientBoostingRegressor")
_HISTOGRAM = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")


def sklearn_trees(forest: Any) -> Trees:
    """Trees of a fitted scikit-learn estimator.

    | estimator | raw | prediction |
    |---|---|---|
    | a tree, `RandomForest*`, `ExtraTrees*` | the mean over trees: shares of classes, or values of all outputs | the same |
    | `GradientBoosting*`, `HistGradientBoosting*` | `decision_function`, or `predict` | `predict_proba`, or `predict` |

    Of two classes, boosting has one output: the probability of the second. A forest of classes with several outputs has the classes of
    the first output, then those of the second, and so on.

    Raises:
        ValueError: an estimator of another kind, one that is not fitted, columns that are categories, a start (`init`) that depends
            on the row, a loss without a link of ours.
    """
    kind = type(forest).__name__
    if kind not in (*_ONE, *_MEAN, *_SUM, *_HISTOGRAM):
        known = ", ".join((*_ONE, *_MEAN, *_SUM, *_HISTOGRAM))
        raise ValueError(f"`forest` must be one of scikit-learn's {known}. Received: {kind}")
    if not hasattr(forest, "n_features_in_"):
        raise ValueError(f"`forest` must be fitted. Received: a {kind} without `fit`")
    names = getattr(forest, "feature_names_in_", None)
    features = [str(name) for name in names] if names is not None else [f"column_{at}" for at in range(forest.n_features_in_)]
    if kind in _HISTOGRAM:
        return _of_histograms(forest, features)
    if kind in _SUM:
        return _of_boosting(forest, features)
    members = [forest] if kind in _ONE else forest.estimators_
    trees = [_tree(member.tree_, _shares(member)) for member in members]
    return Trees(trees, features, np.zeros(trees[0].values.shape[1]), 1.0 / len(trees))


def _shares(member: Any) -> np.ndarray:
    """(nodes, K): values of all outputs, of classes their shares."""
    value = member.tree_.value  # (nodes, outputs, classes)
    if not hasattr(member, "classes_"):
        return np.asarray(value[:, :, 0])
    counts = np.atleast_1d(member.n_classes_)
    parts = [value[:, at, :count] / value[:, at, :count].sum(axis=1, keepdims=True) for at, count in enumerate(counts)]
    return np.concatenate(parts, axis=1)


def _tree(tree: Any, of_node: np.ndarray) -> Tree:
    """A `sklearn.tree` tree, whose leaves are numbered among its nodes, with values of nodes (nodes, K)."""
    inner = np.flatnonzero(tree.children_left >= 0)
    missing_left = getattr(tree, "missing_go_to_left", np.zeros(tree.node_count))
    numbered = _numbers(tree.children_left < 0)
    return Tree(
        tree.feature[inner],
        round_down(tree.threshold[inner]),
        numbered[tree.children_left[inner]],
        numbered[tree.children_right[inner]],
        ["nan"] * len(inner),
        np.asarray(missing_left, dtype=bool)[inner],
        of_node[tree.children_left < 0],
    )


def _numbers(leaf: np.ndarray) -> np.ndarray:
    """Of each node its number among inner nodes, or ~ its number among leaves."""
    return np.where(leaf, ~(np.cumsum(leaf) - 1), np.cumsum(~leaf) - 1)


def _of_boosting(forest: Any, features: list[str]) -> Trees:
    start = forest.init_
    if not (isinstance(start, str) or type(start).__name__ in ("DummyClassifier", "DummyRegressor")):
        raise ValueError(f"`forest` must start from a constant. Received: init={type(start).__name__}")
    width = forest.estimators_.shape[1]
    rows = np.zeros((1, forest.n_features_in_), np.float32)
    base = np.asarray(forest._raw_predict_init(rows), np.float64)[0]  # scikit-learn has no public name for it
    trees = []
    for row in forest.estimators_:
        for output, member in enumerate(row):
            values = np.zeros((member.tree_.node_count, width))
            values[:, output] = member.tree_.value[:, 0, 0]
            trees.append(_tree(member.tree_, values))
    link, slope = "identity", 1.0
    if hasattr(forest, "classes_"):
        link, slope = ("softmax", 1.0) if width > 1 else ("sigmoid", 2.0 if forest.loss == "exponential" else 1.0)
    return Trees(trees, features, base, float(forest.learning_rate), link, slope)


def _of_histograms(forest: Any, features: list[str]) -> Trees:
    if getattr(forest, "is_categorical_", None) is not None:
        raise ValueError("`forest` must have numbers alone; LightGBM's categories are read. Received: categorical_features")
    base = np.asarray(forest._baseline_prediction, np.float64).reshape(-1)
    trees = []
    for row in forest._predictors:
        for output, member in enumerate(row):
            nodes = member.nodes
            leaf, inner = nodes["is_leaf"].astype(bool), np.flatnonzero(~nodes["is_leaf"].astype(bool))
            numbered, values = _numbers(leaf), np.zeros((int(leaf.sum()), len(base)))
            values[:, output] = nodes["value"][leaf]
            chosen = nodes[inner]
            left, right = numbered[chosen["left"]], numbered[chosen["right"]]
            threshold, missing_left = round_down(chosen["num_threshold"]), chosen["missing_go_to_left"].astype(bool)
            trees.append(Tree(chosen["feature_idx"].astype(np.int64), threshold, left, right, ["nan"] * len(inner), missing_left, values))
    links = {"log_loss": "softmax" if len(base) > 1 else "sigmoid", "poisson": "exp", "gamma": "exp"}
    return Trees(trees, features, base, 1.0, links.get(forest.loss, "identity"))
