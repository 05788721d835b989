"""Peers on a matrix of columns: logistic regression, LightGBM (binary and LambdaRank) and a plain MLP, each with settings to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

Setting = dict[str, Any]
_MOST_WORDS = 40  # categories of more values are left out of one-hot inputs

FOREST: list[Setting] = [
    {"num_leaves": leaves, "learning_rate": rate, "min_child_samples": rows, "colsample_bytree": share}
    for leaves, rate, rows, share in [
        *[(15, 0.05, 500, 0.8), (31, 0.05, 200, 0.8), (63, 0.05, 200, 0.8), (15, 0.05, 100, 0.5), (31, 0.05, 500, 0.5)],
        *[(15, 0.1, 500, 0.5), (31, 0.1, 200, 0.5), (7, 0.1, 200, 0.8), (31, 0.03, 500, 0.3), (63, 0.03, 1000, 0.5)],
    ]
]
LOGISTIC: list[Setting] = [{"C": float(10.0**power)} for power in np.arange(-4.0, 1.0, 0.5)]
MLP: list[Setting] = [
    {"width": width, "layers": layers, "dropout": dropout, "rate": rate, "epochs": epochs}
    for width, layers, dropout, rate, epochs in [
        *[(64, 2, 0.0, 2e-3, 3), (64, 2, 0.1, 2e-3, 6), (128, 2, 0.0, 1e-3, 3), (128, 2, 0.1, 2e-3, 3), (128, 2, 0.2, 1e-3, 6)],
        *[(128, 3, 0.1, 1e-3, 3), (256, 2, 0.1, 1e-3, 3), (256, 2, 0.3, 1e-3, 6), (64, 3, 0.1, 5e-3, 3), (32, 2, 0.0, 5e-3, 3)],
    ]
]


@dataclass(frozen=True)
class Rows:
    """Rows of a case: the columns of a set, labels, the request of each, and the columns as numbers for linear models and networks.

    `x` holds codes for categories and NaN where unknown, as trees take them; `dense` has one column a category's value, logarithms of
    what is long-tailed, everything standardised on the rows of `fitted` and within 6 deviations, 0 where unknown.
    """

    x: np.ndarray
    y: np.ndarray
    request: np.ndarray
    dense: np.ndarray


def rows_of(columns: pd.DataFrame, y: np.ndarray, request: np.ndarray, fitted: np.ndarray) -> Rows:
    """All rows, with constants of the fitted ones."""
    return Rows(columns.to_numpy(np.float32), y.astype(np.float32), request, dense_inputs(columns, fitted))


def dense_inputs(columns: pd.DataFrame, fitted: np.ndarray) -> np.ndarray:
    parts = []
    for name in columns:
        values = columns[name].to_numpy(np.float64)
        if name.startswith("category_"):
            words = np.unique(values[fitted])
            parts += [values == word for word in words] if len(words) <= _MOST_WORDS else []
            continue
        known = values[fitted & np.isfinite(values)]
        if len(known) and (known.min() < -20 or known.max() > 20):
            values = np.sign(values) * np.log1p(np.abs(values))
            known = values[fitted & np.isfinite(values)]
        spread = known.std() if len(known) else 0.0
        if spread > 0:
            parts.append(np.nan_to_num(np.clip((values - known.mean()) / spread, -6, 6)))
    return np.stack(parts, axis=1).astype(np.float32)


def take(rows: Rows, which: np.ndarray) -> Rows:
    return Rows(rows.x[which], rows.y[which], rows.request[which], rows.dense[which])


def logistic(fitted: Rows, others: list[Rows], setting: Setting, seed: int) -> list[np.ndarray]:
    """Probabilities of logistic regression."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300, **setting).fit(fitted.dense, fitted.y)
    return [model.predict_proba(other.dense)[:, 1] for other in others]


def forest_settings(setting: Setting, seed: int, threads: int = 1) -> Setting:
    """Arguments of LightGBM."""
    fixed = {"subsample": 0.8, "subsample_freq": 1, "n_jobs": threads, "random_state": seed, "verbose": -1}
    return {**fixed, **{name: value for name, value in setting.items() if name != "trees"}, "n_estimators": setting["trees"]}


def fit_forest(fitted: Rows, ranker: bool, settings: Setting, later: Rows | None = None, patience: int = 40) -> Any:
    """LightGBM: binary, or LambdaRank over the lists; with `later` it stops where its log loss or NDCG@10 is best."""
    from lightgbm import LGBMClassifier, LGBMRanker, early_stopping

    options: dict[str, Any] = {} if later is None else {"callbacks": [early_stopping(patience, verbose=False)]}
    if not ranker:
        options |= {} if later is None else {"eval_set": [(later.x, later.y)], "eval_metric": "binary_logloss"}
        return LGBMClassifier(**settings).fit(fitted.x, fitted.y, **options)
    x, y, sizes = _by_list(fitted)
    if later is not None:
        later_x, later_y, later_sizes = _by_list(later)
        options |= {"eval_set": [(later_x, later_y)], "eval_group": [later_sizes], "eval_at": [10]}
    return LGBMRanker(**settings).fit(x, y, group=sizes, **options)


def _by_list(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(rows.request, kind="stable")
    return rows.x[order], rows.y[order], np.unique(rows.request, return_counts=True)[1]


def forest_scores(model: Any, x: np.ndarray) -> np.ndarray:
    """Probabilities of a classifier; the scores of a ranker, brought between 0 and 1, are no probabilities."""
    if hasattr(model, "predict_proba"):
        return np.asarray(model.predict_proba(x)[:, 1])
    return np.asarray(1 / (1 + np.exp(-model.predict(x))))


def mlp(fitted: Rows, others: list[Rows], setting: Setting, seed: int) -> list[np.ndarray]:
    """Probabilities of a plain MLP with binary loss."""
    import keras

    keras.utils.set_random_seed(seed)
    inputs = keras.Input((fitted.dense.shape[1],))
    x = inputs
    for _ in range(setting["layers"]):
        x = keras.layers.Dropout(setting["dropout"])(keras.layers.Dense(setting["width"], activation="gelu")(x))
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(x))
    fit_network(model, fitted.dense, fitted.y[:, None], None, setting, 1024)
    return [sigmoid(model.predict(other.dense, batch_size=8192, verbose=0)[:, 0]) for other in others]


def fit_network(
    model: Any, inputs: Any, y: np.ndarray, weight: np.ndarray | None, setting: Setting, batch: int, callbacks: Sequence[Any] = ()
) -> None:
    """AdamW with a cosine rate, binary loss."""
    import keras

    steps = max(1, -(-len(y) // batch) * setting["epochs"])
    rate = keras.optimizers.schedules.CosineDecay(0.0, steps, warmup_target=setting["rate"], warmup_steps=min(100, steps // 10 + 1))
    optimizer = keras.optimizers.AdamW(rate, weight_decay=setting.get("decay", 0.01), clipnorm=1.0)
    model.compile(optimizer, keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(inputs, y, sample_weight=weight, batch_size=batch, epochs=setting["epochs"], callbacks=list(callbacks), verbose=0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -30, 30))))
