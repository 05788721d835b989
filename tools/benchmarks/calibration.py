#!/usr/bin/env python
"""Calibration of a miscalibrated logit: Platt, histogram binning, isotonic regression and `IsotonicCalibration`, on held-out rows.

A simulated stream of (device, logit, label): the reported logit is the true one, distorted depending on the device (too steep,
shifted, flattened at the top). Every method is fitted on the same rows and evaluated on other rows:

    none                      the reported logit
    Platt                     logistic regression on the logit
    histogram binning         the mean label of 100 bins of equal mass
    isotonic regression       scikit-learn's
    isotonic, one a device    the same, fitted separately for each device
    ours                      `IsotonicCalibration`, trained on the fixed logits
    ours + device             the same with the device one-hot as its calibration features
    truth                     the true probabilities: the remaining loss is noise

Log loss, calibration error (ECE, 20 bins), observed over expected (O/E), and the device O/E furthest from 1;
means over seeds.

Example:
    KERAS_BACKEND=torch python tools/benchmarks/calibration.py --json calibration.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_ranking import metrics
from keras_ranking.commands import table

Rows = dict[str, np.ndarray]
DEVICES = 3
TINY = 1e-6  # one wrong 0 of a histogram or isotonic regression would make the log loss infinite


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000, help="rows fitted, and as many held out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def stream(rows: int, seed: int) -> Rows:
    rng = np.random.default_rng(seed)
    device = rng.choice(DEVICES, rows, p=(0.5, 0.3, 0.2))
    truth = rng.normal(-2.0, 1.5, rows)
    steep = 1.6 * truth + 1.0
    shifted = truth - 0.8 + 0.4 * np.sin(1.5 * truth)
    flattened = np.where(truth < -2.0, truth, -2.0 + 0.35 * (truth + 2.0))
    logit = np.choose(device, (steep, shifted, flattened))
    return {
        "device": device,
        "logit": logit.astype(np.float32),
        "truth": sigmoid(truth),
        "label": (rng.random(rows) < sigmoid(truth)).astype(np.float64),
    }


def platt(fit: Rows, held: Rows) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf).fit(fit["logit"][:, None], fit["label"])
    return np.asarray(model.predict_proba(held["logit"][:, None])[:, 1], np.float64)


def histogram(fit: Rows, held: Rows, bins: int = 100) -> np.ndarray:
    edges = np.quantile(fit["logit"], np.arange(1, bins) / bins)
    at = np.searchsorted(edges, fit["logit"])
    means = np.bincount(at, fit["label"], bins) / np.maximum(np.bincount(at, minlength=bins), 1)
    return np.clip(means, TINY, 1 - TINY)[np.searchsorted(edges, held["logit"])]


def isotonic(fit: Rows, held: Rows) -> np.ndarray:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(out_of_bounds="clip", y_min=TINY, y_max=1 - TINY).fit(fit["logit"].astype(np.float64), fit["label"])
    return np.asarray(model.predict(held["logit"].astype(np.float64)))


def isotonic_by_device(fit: Rows, held: Rows) -> np.ndarray:
    out = np.empty(len(held["logit"]))
    for device in range(DEVICES):
        ours, theirs = fit["device"] == device, held["device"] == device
        out[theirs] = isotonic({name: x[ours] for name, x in fit.items()}, {name: x[theirs] for name, x in held.items()})
    return out


def layer(fit: Rows, held: Rows, features: bool, epochs: int) -> np.ndarray:
    import keras

    from keras_ranking.layers import IsotonicCalibration

    keras.utils.set_random_seed(0)
    logit = keras.Input((), name="logit")
    device = keras.Input((DEVICES,), name="device")
    calibrate = IsotonicCalibration()
    out = calibrate(logit, features=device) if features else calibrate(logit)
    model = keras.Model([logit, device], keras.ops.expand_dims(out, -1))

    def inputs(rows: Rows) -> list[Any]:
        return [rows["logit"], np.eye(DEVICES, dtype="float32")[rows["device"]]]

    batch = 1024
    rate = keras.optimizers.schedules.CosineDecay(0.02, epochs * -(-len(fit["label"]) // batch))
    model.compile(keras.optimizers.Adam(rate), loss=keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit(inputs(fit), fit["label"][:, None], batch_size=batch, epochs=epochs, verbose=0)
    return sigmoid(model.predict(inputs(held), batch_size=8192, verbose=0)[:, 0].astype(np.float64))


def evaluated(held: Rows, chance: np.ndarray) -> dict[str, float]:
    by_device = [
        metrics.observed_over_expected(held["label"][rows], chance[rows]) for rows in (held["device"] == d for d in range(DEVICES))
    ]
    return {
        "log_loss": metrics.log_loss(held["label"], chance),
        "ece": metrics.calibration_error(held["label"], chance, bins=20),
        "observed_over_expected": metrics.observed_over_expected(held["label"], chance),
        "worst_device": max(by_device, key=lambda ratio: abs(np.log(ratio))),
    }


def main() -> None:
    args = arguments()
    try:
        import sklearn
    except ImportError as error:
        raise SystemExit("scikit-learn is needed: pip install 'keras-ranking[dev]'") from error
    methods: dict[str, Callable[[Rows, Rows], np.ndarray]] = {
        "none": lambda fit, held: sigmoid(held["logit"].astype(np.float64)),
        "Platt": platt,
        "histogram binning": histogram,
        "isotonic regression": isotonic,
        "isotonic, one a device": isotonic_by_device,
        "ours": lambda fit, held: layer(fit, held, False, args.epochs),
        "ours + device": lambda fit, held: layer(fit, held, True, args.epochs),
        "truth": lambda fit, held: held["truth"],
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    seconds = dict.fromkeys(methods, 0.0)
    for seed in range(args.seeds):
        fit, held = stream(args.rows, 2 * seed), stream(args.rows, 2 * seed + 1)
        for name, method in methods.items():
            start = time.perf_counter()
            results[name].append(evaluated(held, method(fit, held)))
            seconds[name] += time.perf_counter() - start
    columns = list(results["none"][0])
    mean = {name: {column: float(np.mean([run[column] for run in runs])) for column in columns} for name, runs in results.items()}
    import keras

    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    versions = f"keras {keras.__version__} on {keras.backend.backend()}, scikit-learn {sklearn.__version__}"
    print(f"{args.rows:,} rows fitted, as many held out, {args.seeds} seeds; {machine}; {versions}")
    lines = [[name, *(f"{mean[name][column]:.4f}" for column in columns), f"{seconds[name] / args.seeds:.2f}"] for name in methods]
    print(table(["method", "log loss", "ECE", "O/E", "worst O/E of a device", "seconds"], lines))
    if args.json:
        args.json.write_text(json.dumps({"mean": mean, "runs": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
