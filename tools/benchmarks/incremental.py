"""Incremental training against retraining and plain fine-tuning, on a drifting simulated stream and on the days of EB-NeRD.

    python tools/benchmarks/incremental.py [--ebnerd FOLDER] [--json FILE] [--seeds 0 1 2]

A cold start on the first days, then a step per day; each model is evaluated on the day after its step. `retrain`: from scratch on all
days so far, with the epochs of the cold start. `fine-tune`: two passes over the latest two days. `incremental`: the same passes with a
Fisher information penalty towards earlier weights (`fit_incremental`). `cold start`: never trained again.

Compute has two measures: sample gradients per day (a pass over a row is one per candidate, and so is a sample of the Fisher
information), and seconds of training steps per day, without the first of each compiled step and including the measurement of the Fisher
information. Forgetting, cold weight and the daily step are the same for both streams. They were chosen on another seed of the simulator and
on the first six days of EB-NeRD, which are not used for evaluation later; the epochs of a cold start and of retraining, 5 and 8, are those
with the best retraining there.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_ranking import data, metrics, models, training
from keras_ranking.columns import Id
from keras_ranking.commands import table
from keras_ranking.data import PackedRequests, Sequences, build_sequences
from keras_ranking.training import FisherSnapshot, TrainingOptions
from keras_ranking.training.scoring.events import model_requests
from keras_ranking.training.setup import compile_for, training_data

DAY = 86_400
DAILY_RATE, DAILY_ROWS, DAILY_EPOCHS, DAILY_DAYS = 2e-3, 4, 2, 2
FORGETTING, COLD_WEIGHT, FISHER_SAMPLES = 30.0, 0.0, 4096
OPTIONS = TrainingOptions(batch_size=16, row_length=256, learning_rate=2e-3, pairwise_weight=0.0, listwise_weight=0.1)


class StepTimer(keras.callbacks.Callback):
    """Seconds of training steps; the first of a fit, which compiles, is replaced by the mean of the others."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.steps: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps.append(time.perf_counter() - self._begin)

    @property
    def seconds(self) -> float:
        later = self.steps[1:] or self.steps
        return float(np.mean(later) * len(self.steps))


class Stream:
    """A log cut into days, and the model that is trained on it."""

    def __init__(self, log: data.Log, cold_days: int, builder: dict[str, Any], epochs: int) -> None:
        events = log.events[log.events["split"] != "history"].reset_index(drop=True)
        seconds = events[log.schema.time].to_numpy()
        self.day = (seconds - seconds.min()) // DAY
        self.cold_days, self.days = cold_days, int(self.day.max()) + 1
        self.schema = log.schema.fit(events[self.day < cold_days])  # the constants are those of the cold start
        self.sequences = build_sequences(events, self.schema)
        self.builder, self.options = builder, replace(OPTIONS, epochs=epochs)

    def on(self, first: int, last: int) -> Sequences:
        return self.sequences.with_target((self.day >= first) & (self.day <= last))

    def model(self, seed: int) -> models.RankingModel:
        keras.utils.set_random_seed(seed)
        return models.LiRank(self.schema, **self.builder)

    def evaluate(self, model: models.RankingModel, day: int) -> dict[str, float]:
        sequences = self.on(day, day)
        score = training.predict_events(model, model_requests(model, sequences))["click"][:, 0]
        evaluated = sequences.target
        found = metrics.summary(sequences.labels["click"][evaluated], score[evaluated], sequences.request[evaluated])
        return {name: float(found[name]) for name in ("auc", "impression_auc", "log_loss")}


def fit(model: models.RankingModel, sequences: Sequences, options: TrainingOptions, seed: int) -> tuple[float, int]:
    dataset, window = training_data(model, sequences, options, seed)
    compile_for(model, options, steps=len(dataset) * options.epochs, window=window)
    timer = StepTimer()
    model.fit(dataset, epochs=options.epochs, shuffle=False, verbose=0, callbacks=[timer])
    return timer.seconds, int(sequences.target.sum()) * options.epochs


def samples_of(model: models.RankingModel, sequences: Sequences, seed: int) -> PackedRequests:
    """One event per row: the samples of the Fisher information."""
    return PackedRequests(model_requests(model, sequences), 1, 512, model.input_columns, tasks=model.tasks, single=True, seed=seed)


def measure(model: models.RankingModel, sequences: Sequences, seed: int) -> tuple[FisherSnapshot, float]:
    begin = time.perf_counter()
    snapshot = FisherSnapshot.measure(model, samples_of(model, sequences, seed), samples=FISHER_SAMPLES, seed=seed)
    return snapshot, time.perf_counter() - begin


def daily(model: models.RankingModel, stream: Stream, day: int, seed: int, snapshots: Any) -> tuple[float, int, Any]:
    """Passes over the latest days with their own warm-up and decay, and a penalty if there are snapshots (previous, cold)."""
    sequences = stream.on(day - DAILY_DAYS + 1, day)
    options = replace(OPTIONS, epochs=DAILY_EPOCHS, batch_size=DAILY_ROWS, learning_rate=DAILY_RATE)
    dataset, window = training_data(model, sequences, options, seed * 1000 + day)
    compile_for(model, options, steps=len(dataset) * DAILY_EPOCHS, window=window)
    timer = StepTimer()
    settings: dict[str, Any] = {"epochs": DAILY_EPOCHS, "shuffle": False, "verbose": 0, "callbacks": [timer]}
    if snapshots is None:
        model.fit(dataset, **settings)
        return timer.seconds, int(sequences.target.sum()) * DAILY_EPOCHS, None
    previous, cold = snapshots
    _, snapshot = training.fit_incremental(
        model,
        dataset,
        previous,
        cold,
        forgetting=FORGETTING,
        cold_weight=COLD_WEIGHT,
        fisher_dataset=samples_of(model, stream.on(day, day), seed),
        fisher_samples=FISHER_SAMPLES,
        accumulate=0.9,
        seed=seed,
        **settings,
    )
    return timer.seconds, int(sequences.target.sum()) * DAILY_EPOCHS, (snapshot, cold)


def run(stream: Stream, seed: int, retrain_days: list[int]) -> list[dict[str, Any]]:
    """One line per method and day."""
    lines: list[dict[str, Any]] = []

    def note(method: str, day: int, model: models.RankingModel, seconds: float, samples: int) -> None:
        lines.append(
            {"method": method, "day": day, "seed": seed, "seconds": seconds, "samples": samples, **stream.evaluate(model, day + 1)}
        )

    cold = stream.model(seed)
    fit(cold, stream.on(0, stream.cold_days - 1), stream.options, seed)
    start = [np.copy(w) for w in cold.get_weights()]
    snapshot, _ = measure(cold, stream.on(0, stream.cold_days - 1), seed)
    tuned, held = stream.model(seed), stream.model(seed)
    for model in (tuned, held):
        model.set_weights(start)
    snapshots = (snapshot, snapshot)
    for day in range(stream.cold_days, stream.days - 1):
        note("cold start", day, cold, 0.0, 0)
        seconds, count, _ = daily(tuned, stream, day, seed, None)
        note("fine-tune", day, tuned, seconds, count)
        seconds, count, snapshots = daily(held, stream, day, seed, snapshots)
        _, fisher_seconds = measure(held, stream.on(day, day), seed)  # as in `fit_incremental`, timed separately
        note("incremental", day, held, seconds + fisher_seconds, count + min(FISHER_SAMPLES, int(stream.on(day, day).target.sum())))
        if day in retrain_days:
            fresh = stream.model(seed)
            seconds, count = fit(fresh, stream.on(0, day), stream.options, seed)
            note("retrain", day, fresh, seconds, count)
    return lines


def streams(folder: str | None, seed: int) -> dict[str, Stream]:
    """Both streams; the simulated one has drifting tastes, and the member as a feature from which they can be learned."""
    log = data.simulate(members=400, days=24, seed=seed, drift=0.03)
    member = Id("member", buckets=2048, known="context")
    schema = log.schema.model_copy(update={"features": (*log.schema.features, member)})
    log = data.Log(events=log.events.assign(member=log.events["member_id"]), schema=schema, name="simulated", preset="simulated")
    small = {"history_features": [], "tasks": ["click"], "hidden": [64, 64], "rank": 16}
    found = {"simulated": Stream(log, 14, {**small, "id_dim": 16}, epochs=5)}
    if folder:
        news = data.read_ebnerd(folder)
        columns = [feature.name for feature in news.schema.features if feature.kind != "id"]
        found["ebnerd"] = Stream(news, 7, {**small, "features": columns}, epochs=8)
    return found


def summary(lines: list[dict[str, Any]]) -> str:
    """Means over seeds for the last day and for the days with a retrained model; compute of the last day."""
    last = max(line["day"] for line in lines)
    shared = {line["day"] for line in lines if line["method"] == "retrain"}
    rows = []
    for method in ("cold start", "fine-tune", "incremental", "retrain"):
        found = [line for line in lines if line["method"] == method]
        end = [line for line in found if line["day"] == last]
        both = [line for line in found if line["day"] in shared]

        def cell(some: list[dict[str, Any]], name: str) -> str:
            by_seed = [np.mean([line[name] for line in some if line["seed"] == s]) for s in sorted({line["seed"] for line in some})]
            return f"{np.mean(by_seed):.4f} ± {np.ptp(by_seed) / 2:.4f}"

        cells = [cell(end, name) for name in ("auc", "impression_auc", "log_loss")] + [cell(both, "auc")]
        costs = [f"{np.mean([line[name] for line in end]):,.{digits}f}" for name, digits in (("samples", 0), ("seconds", 2))]
        rows.append([method, *cells, *costs])
    header = ["", "AUC last day", "impression AUC", "log loss", f"AUC {len(shared)} days", "gradients a day", "seconds a day"]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ebnerd", help="folder of the EB-NeRD files")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stream", choices=["simulated", "ebnerd"])
    args = parser.parse_args()
    everything: dict[str, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        for name, stream in streams(args.ebnerd, seed).items():
            if args.stream in (None, name):
                lines = run(stream, seed, retrain_days=[stream.days - 2])
                everything.setdefault(name, []).extend(lines)
                if args.json:
                    args.json.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    for name, lines in everything.items():
        print(f"\n{name}, seeds {args.seeds}\n{summary(lines)}")


if __name__ == "__main__":
    main()
