"""Trees of a LightGBM model, from the text that LightGBM saves: LightGBM itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.layers.forests.trees import MISSING, Tree, Trees, round_down

_CATEGORY, _LEFT = 1, 2  # bits of `decision_type`; the next two say what counts as missing
# By objective: the link of `predict`. Objectives that are not here have none.
_LINKS = {
    **dict.fromkeys(("binary", "cross_entropy", "multiclassova"), "sigmoid"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
    "multiclass": "softmax",
}
_PLAIN = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg", "custom", "none", "")


def lightgbm_trees(model: Any, iterations: int | None = None) -> Trees:
    """Trees of a `lightgbm.Booster`, of an estimator of its scikit-learn interface, or of a saved model file.

    Args:
        model: the booster, a fitted `LGBMClassifier`, `LGBMRegressor` or `LGBMRanker`, or the path of a text file by `save_model`.
        iterations: the first so many; None: the best, where training stopped early, else all, as `predict` does. A file holds those that
            it was saved with.

    Of a mean of trees (`boosting="rf"`) `raw` is the mean, where LightGBM's `raw_score=True` gives the sum.

    Raises:
        ValueError: linear trees, an objective whose link is not known, an estimator that is not fitted, a text that is no model.
    """
    if isinstance(model, (str, Path)):
        text = Path(model).read_text(encoding="utf-8")
    else:
        booster = getattr(model, "booster_", model)
        if not hasattr(booster, "model_to_string"):
            raise ValueError(f"`model` must be a LightGBM booster, estimator or model file. Received: {type(model).__name__}")
        text = booster.model_to_string(num_iteration=None)
    head, _, rest = text.partition("\nTree=")
    about = _fields(head)
    if "feature_names" not in about:
        raise ValueError("`model` must be a model in LightGBM's text format. Received: a text without 'feature_names='")
    objective, *settings = about.get("objective", "").split()
    if objective not in (*_LINKS, *_PLAIN):
        raise ValueError(f"`model` must have one of the objectives {sorted((*_LINKS, *_PLAIN))[1:]}. Received: {objective!r}")
    slope = next((float(word.removeprefix("sigmoid:")) for word in settings if word.startswith("sigmoid:")), 1.0)
    link = "signed_square" if "sqrt" in settings else _LINKS.get(objective, "identity")
    width = int(about["num_tree_per_iteration"])
    blocks = ["Tree=" + block for block in rest.partition("\nend of trees")[0].split("\nTree=")] if rest else []
    if iterations is not None:
        if not 1 <= iterations <= len(blocks) // width:
            raise ValueError(f"`iterations` must be from 1 to {len(blocks) // width}. Received: iterations={iterations}")
        blocks = blocks[: iterations * width]
    trees = [_tree(_fields(block), number % width, width) for number, block in enumerate(blocks)]
    scale = width / len(trees) if "average_output" in about and trees else 1.0
    return Trees(trees, about["feature_names"].split(" "), np.zeros(width), scale, link, slope)


def _fields(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}


def _tree(about: dict[str, str], output: int, outputs: int) -> Tree:
    def numbers(name: str, dtype: Any) -> np.ndarray:
        return np.array(about.get(name, "").split(), dtype=dtype)

    if about.get("is_linear", "0") != "0":
        raise ValueError("`model` must have constant leaves. Received: linear trees (linear_tree=true)")
    of_leaf = numbers("leaf_value", np.float64)
    values = np.zeros((len(of_leaf), outputs))
    values[:, output] = of_leaf
    if len(of_leaf) == 1:  # LightGBM writes no nodes
        none = np.zeros(0, np.int64)
        return Tree(none, none.astype(np.float32), none, none, (), none.astype(bool), values)
    kind, threshold = numbers("decision_type", np.int64), numbers("threshold", np.float64)
    bounds, words = numbers("cat_boundaries", np.int64), numbers("cat_threshold", np.uint64)
    categories = {}
    for node in np.flatnonzero(kind & _CATEGORY):
        at = int(threshold[node])
        bits = words[bounds[at] : bounds[at + 1]].astype(np.uint32).view(np.uint8)
        categories[int(node)] = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    return Tree(
        numbers("split_feature", np.int64),
        round_down(threshold),
        numbers("left_child", np.int64),
        numbers("right_child", np.int64),
        [MISSING[code] for code in kind >> 2 & 3],
        (kind & _LEFT).astype(bool),
        values,
        categories,
    )
