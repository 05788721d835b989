"""`Forest`: equal to its float64 reference and to LightGBM and scikit-learn, leaf by leaf; saved; inside a compiled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from keras_ranking import layers
from keras_ranking.layers.forests import Tree, Trees
from keras_ranking.layers.forests.lightgbm_text import lightgbm_trees
from keras_ranking.layers.forests.pieces import EXITS, bits_without, cut
from keras_ranking.layers.forests.sklearn_trees import sklearn_trees
from keras_ranking.layers.forests.trees import round_down

lightgbm = pytest.importorskip("lightgbm", reason="LightGBM comes with the extra [dev]")
ensemble = pytest.importorskip("sklearn.ensemble", reason="scikit-learn comes with the extra [dev]")


def numpy(value: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(value))


def rows(count: int = 800, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, one with many zeros, one with missing values, and a category; a label of all of them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    x[:, 1] = np.where(rng.random(count) < 0.4, 0.0, x[:, 1])
    x[rng.random(count) < 0.3, 2] = np.nan
    x[:, 3] = rng.integers(0, 40, count)
    score = x[:, 0] * x[:, 1] + np.nan_to_num(x[:, 2], nan=1.5) + np.isin(x[:, 3] % 7, (1, 4)) + 0.5 * rng.normal(size=count)
    return x, score.astype("float32")


def hostile(x: np.ndarray) -> np.ndarray:
    """Rows that meet every edge: all missing, zeros, infinities, categories never seen, negative, fractional and huge."""
    strange = np.zeros((8, x.shape[1]), "float32")
    strange[0], strange[1], strange[2] = np.nan, np.inf, -np.inf
    strange[:, 3] = (np.nan, 99, -1, 1.9, -0.5, 39, 40, 1e9)
    return np.concatenate([x, strange])


def booster(objective: str = "binary", trees: int = 12, leaves: int = 15, **settings: Any) -> Any:
    x, score = rows()
    label = {"binary": score > 0, "multiclass": np.digitize(score, (0, 1)), "poisson": np.exp(np.clip(score, -2, 2))}
    options = {"objective": objective, "num_leaves": leaves, "min_data_in_leaf": 3, "min_data_per_group": 5, "cat_smooth": 1.0}
    options |= {"verbose": -1, "num_threads": 1, "deterministic": True, "seed": 0, **settings}
    return lightgbm.train(options, lightgbm.Dataset(x, label.get(objective, score), categorical_feature=[3]), trees)


CASES: dict[str, dict[str, Any]] = {
    "binary": {},
    "one piece has no right side": {"leaves": 2},
    "many leaves": {"leaves": 200, "min_data_in_leaf": 1, "trees": 20},
    "33 leaves": {"leaves": 33, "trees": 3},
    "zero is missing": {"zero_as_missing": True},
    "missing is not used": {"use_missing": False},
    "categories by one value": {"max_cat_to_onehot": 50},
    "multiclass": {"objective": "multiclass", "num_class": 3},
    "regression": {"objective": "regression"},
    "square root": {"objective": "regression", "reg_sqrt": True},
    "poisson": {"objective": "poisson"},
    "sigmoid of its own": {"sigmoid": 2.0},
    "mean of trees": {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
    "dart": {"boosting": "dart", "drop_rate": 0.5},
    "a constant": {"min_data_in_leaf": 2000},
}


@pytest.mark.few(5)
@pytest.mark.parametrize("case", CASES)
def test_as_lightgbm(case: str) -> None:
    made, x = booster(**CASES[case]), hostile(rows()[0])
    raw, prediction = made.predict(x, raw_score=True).reshape(len(x), -1), made.predict(x).reshape(len(x), -1)
    raw = raw / 12 if case == "mean of trees" else raw  # LightGBM's raw score of a mean is the sum
    trees = lightgbm_trees(made)
    np.testing.assert_allclose(trees.raw(x), raw, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(trees.prediction(x), prediction, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(trees.leaves(x), made.predict(x, pred_leaf=True).reshape(len(x), -1))
    np.testing.assert_array_equal(numpy(layers.Forest.from_trees(trees, "leaves")(x)), trees.leaves(x))
    scale = np.maximum(1.0, np.abs(raw))
    assert np.abs((numpy(layers.Forest.from_trees(trees, "raw")(x)) - raw) / scale).max() < 1e-6
    assert np.abs((numpy(layers.Forest.from_trees(trees)(x)) - prediction) / np.maximum(1.0, prediction)).max() < 1e-6


def test_control_thresholds_to_the_nearest_float() -> None:
    x = np.array([[0.1], [0.2]], "float32")
    threshold = 0.1  # below float32(0.1): the first row goes right in float64
    exact, nearest = round_down(np.array([threshold])), np.array([threshold], "float32")
    one = np.zeros(1, int)
    tree = {"left": ~one, "right": ~(one + 1), "missing": ["none"], "missing_left": one > 0, "values": np.array([[1.0], [2.0]])}
    for rounded, leaf in ((exact, 1), (nearest, 0)):
        forest = Trees([Tree(one, rounded, **tree)], ["x"], np.zeros(1))
        assert numpy(layers.Forest.from_trees(forest, "leaves")(x))[0, 0] == leaf


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "kind",
    [
        "RandomForestClassifier",
        "RandomForestRegressor",
        "ExtraTreesClassifier",
        "GradientBoostingClassifier",
        "GradientBoostingRegressor",
        "HistGradientBoostingClassifier",
        "HistGradientBoostingRegressor",
    ],
)
def test_as_scikit_learn(kind: str) -> None:
    x, score = rows()
    missing = not kind.startswith("Gradient")
    x = x if missing else np.nan_to_num(x)
    trees = {"max_iter": 8} if kind.startswith("Hist") else {"n_estimators": 8}
    classes = np.digitize(score, (0, 1))
    for label in [classes, classes > 0] if kind.endswith("Classifier") else [score]:
        fitted = getattr(ensemble, kind)(random_state=0, **trees).fit(x, label)
        want = fitted.predict_proba(x) if kind.endswith("Classifier") else fitted.predict(x)[:, None]
        boosted = "Boosting" in kind
        want = want[:, 1:] if boosted and want.shape[1] == 2 else want
        np.testing.assert_allclose(sklearn_trees(fitted).prediction(x), want, rtol=1e-9, atol=1e-9)
        got = numpy(layers.Forest.from_sklearn(fitted)(x))
        assert got.shape == want.shape
        assert np.abs((got - want) / np.maximum(1.0, np.abs(want))).max() < 1e-6


def test_click_and_dwell_by_one_forest() -> None:
    x, score = rows()
    both = np.stack([score > 0, np.maximum(score, 0)], axis=1)
    fitted = ensemble.RandomForestRegressor(6, random_state=0).fit(x, both)
    np.testing.assert_allclose(numpy(layers.Forest.from_sklearn(fitted)(x)), fitted.predict(x), atol=1e-6)


def test_classes_of_two_outputs() -> None:
    x, score = rows(200)
    fitted = ensemble.RandomForestClassifier(3, random_state=0).fit(x, np.stack([score > 0, np.digitize(score, (0, 1))], axis=1))
    want = np.concatenate(fitted.predict_proba(x), axis=1)
    np.testing.assert_allclose(numpy(layers.Forest.from_sklearn(fitted)(x)), want, atol=1e-6)


def test_pieces() -> None:
    made = lightgbm_trees(booster(leaves=200, min_data_in_leaf=1, trees=3))
    for number, tree in enumerate(made.trees):
        pieces = cut(tree, number)
        assert len(tree.values) > EXITS and max(len(piece.exits) for piece in pieces) <= EXITS
        assert sorted(leaf for piece in pieces for leaf in piece.exits if leaf >= 0) == list(range(len(tree.values)))
        assert len(pieces) <= 2 * len(tree.values) / EXITS + 1
    assert bits_without(0, 32) == 0 and bits_without(31, 32) == 2**31 - 1 and bits_without(0, 1) == -2


def test_one_model_with_a_network(tmp_path: Path) -> None:
    """Trained beside a network: the forest does not move; saved, it is the same, with the library out of reach."""
    x, score = rows()
    forest = layers.Forest.from_lightgbm(booster(), "raw", name="forest")
    inputs = keras.Input((6,))
    network = keras.layers.Dense(1)(keras.layers.Dense(8, activation="gelu")(keras.ops.where(keras.ops.isnan(inputs), 0.0, inputs)))
    model = keras.Model(inputs, keras.ops.sigmoid(keras.layers.Add()([forest(inputs), network])))
    assert not any(weight.path.startswith("forest") for weight in model.trainable_variables)
    before = numpy(forest(x))
    model.compile("adam", "binary_crossentropy")
    model.fit(x, (score > 0)[:, None], epochs=1, verbose=0)
    np.testing.assert_array_equal(numpy(forest(x)), before)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def test_rows_in_lists_and_a_saved_text(tmp_path: Path) -> None:
    made, (x, _) = booster(), rows()
    made.save_model(tmp_path / "model.txt")
    layer = layers.Forest.from_lightgbm(tmp_path / "model.txt")
    lists = x[:12].reshape(3, 4, 6)
    np.testing.assert_array_equal(numpy(layer(lists)).reshape(12, 1), numpy(layer(x[:12])))
    assert layer(keras.Input((None, 6))).shape == (None, None, 1)
    few = layers.Forest.from_lightgbm(made, "leaves", iterations=3)
    assert few(keras.Input((6,))).shape == (None, 3) and few.leaf_counts == [15] * 3
    with pytest.raises(ValueError, match="must be from 1 to 12"):
        layers.Forest.from_lightgbm(made, iterations=13)


def test_what_stopped_early() -> None:
    x, score = rows()
    fitted = lightgbm.LGBMClassifier(n_estimators=60, learning_rate=0.5, n_jobs=1, verbose=-1)
    fitted.fit(x, score > 0, eval_set=[(x[::3], score[::3] < 0.5)], callbacks=[lightgbm.early_stopping(3, verbose=False)])
    assert len(layers.Forest.from_lightgbm(fitted).leaf_counts) == fitted.best_iteration_ < 60
    np.testing.assert_allclose(numpy(layers.Forest.from_lightgbm(fitted)(x))[:, 0], fitted.predict_proba(x)[:, 1], atol=1e-6)


def test_errors(tmp_path: Path) -> None:
    (tmp_path / "no.txt").write_text("hello")
    with pytest.raises(ValueError, match="LightGBM's text format"):
        layers.Forest.from_lightgbm(tmp_path / "no.txt")
    with pytest.raises(ValueError, match="booster, estimator or model file"):
        layers.Forest.from_lightgbm(object())
    with pytest.raises(ValueError, match="linear trees"):
        x, score = rows()
        x = np.nan_to_num(x)
        fitted = lightgbm.train({"linear_tree": True, "verbose": -1, "num_threads": 1}, lightgbm.Dataset(x, score), 3)
        layers.Forest.from_lightgbm(fitted)
    with pytest.raises(ValueError, match="must be fitted"):
        layers.Forest.from_sklearn(ensemble.RandomForestRegressor())
    with pytest.raises(ValueError, match="must be one of scikit-learn's"):
        layers.Forest.from_sklearn(ensemble.IsolationForest())
    layer = layers.Forest.from_lightgbm(booster())
    with pytest.raises(ValueError, match=r"must be \(..., 6\)"):
        layer(np.zeros((2, 5), "float32"))
    with pytest.raises(ValueError, match="`output` must be one of"):
        layers.Forest(layer.sizes, "leaf")
    with pytest.raises(ValueError, match="use Forest.from_lightgbm"):
        layers.Forest({})
