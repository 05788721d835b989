"""Seven days of a ranker in operation on a simulator whose tastes drift: the daily step, a plain warm start, retraining, and no training.

    KERAS_BACKEND=torch python tools/benchmarks/daily.py --json daily.jsonl [--seeds 0 1 2] [--days 7]
    python tools/benchmarks/daily.py --page daily.jsonl

LiRank with the member as a feature, random effects of the author and exploration of the click, cold on the first 14 days. Each day is
scored by the model of the day before, which has not seen it, and is then learned by:

    never        nothing
    warm start   `warm_start`
    effects      `daily_step(epochs=0, effects=..., explore=True)`: no gradient step
    daily step   `daily_step(penalty="fisher", effects=..., explore=True)`
    retraining   `train` on all days so far

One JSON line per method, day and seed: metrics of the day before it is learned, and the processor seconds of learning it (of the daily
step all of it: with the measurement of the Fisher information, the effects and exploration; without reading the log). `--page` writes
`docs/results/daily.md` and its plot.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from runs import add_line, mean_cell, read_lines

import keras_ranking as kr

DAY, COLD = 86_400, 14
PAGE = Path(__file__).resolve().parents[2] / "docs" / "results" / "daily.md"
METHODS = ("never", "warm start", "effects", "daily step", "retraining")
OPTIONS: dict[str, Any] = {
    "history_features": (),
    "tasks": ("click",),
    "hidden": (64, 64),
    "rank": 16,
    "id_dim": 16,
    "explore": ("click",),
    "random_effects": {"click": "author_id"},
    "row_length": 256,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "schedule": "constant",
    "pairwise_weight": 0.0,
}
EPOCHS = 5


def simulated(seed: int, days: int) -> tuple[kr.data.Log, np.ndarray]:
    """The log, and the day of each row."""
    log = kr.data.simulate(members=400, days=COLD + days, seed=seed, drift=0.03)
    member = kr.Id("member", buckets=2048, known="context")
    schema = log.schema.model_copy(update={"features": (*log.schema.features, member)})
    events = log.events.assign(member=log.events["member_id"])
    return kr.data.Log(events, schema, "simulated", "simulated"), ((events["time"] - events["time"].min()) // DAY).to_numpy()


def of_days(log: kr.data.Log, day: np.ndarray, trained: int, last: int) -> tuple[kr.data.Log, np.ndarray]:
    """The days up to `last`, of which those before `trained` are 'train', and the days of the rows."""
    rows = day <= last
    events = log.events[rows].reset_index(drop=True)
    return kr.data.Log(events.assign(split=np.where(day[rows] < trained, "train", "validation")), log.schema, log.name, log.preset), day[
        rows
    ]


def run(seed: int, days: int, path: Path, work: Path) -> None:
    """All methods, day after day."""
    log, day = simulated(seed, days)
    first, _ = of_days(log, day, COLD, COLD)
    cold = work / f"cold{seed}"
    kr.training.train(first, "lirank", cold, seed=seed, epochs=EPOCHS, options=OPTIONS, verbose=False)
    at = dict.fromkeys(METHODS, cold)
    effects = kr.training.RefreshEffects(window=7 * DAY)
    for today in range(COLD, COLD + days):
        own, numbers = of_days(log, day, today, today)
        new = numbers == today
        learned, _ = of_days(log, day, today + 1, today)
        for method in METHODS:
            found = kr.training.evaluate(at[method], own, "validation")["click"]
            out, begin = work / f"{method}{seed}-{today}", time.process_time()
            if method == "warm start":
                kr.training.warm_start(own, at[method], new, out, verbose=False)
            elif method == "effects":
                kr.training.daily_step(own, at[method], new, out, epochs=0, effects=effects, explore=True, verbose=False)
            elif method == "daily step":
                kr.training.daily_step(own, at[method], new, out, penalty="fisher", effects=effects, explore=True, verbose=False)
            elif method == "retraining":
                kr.training.train(learned, "lirank", out, seed=seed, epochs=EPOCHS, options=OPTIONS, verbose=False)
            if method != "never":
                at[method] = out
            figures = {name: found[name] for name in ("auc", "impression_auc", "log_loss", "observed_over_expected")}
            line = {"method": method, "seed": seed, "day": today - COLD + 1, "rows": int(new.sum())}
            add_line(path, {**line, **figures, "cpu_s": round(time.process_time() - begin, 2)})
            print(method, seed, today, {name: round(value, 4) for name, value in figures.items()}, flush=True)


def write_page(path: Path) -> None:
    """The page and its plot, of the lines that there are."""
    import matplotlib.pyplot as plt

    lines = read_lines(path)
    seeds, last = sorted({line["seed"] for line in lines}), max(line["day"] for line in lines)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = []
    for number, method in enumerate(METHODS):
        own, color = [line for line in lines if line["method"] == method], f"C{number}"

        def over(name: str, days: range, own: list[dict[str, Any]] = own) -> list[float]:
            return [float(np.mean([line[name] for line in own if line["seed"] == seed and line["day"] in days])) for seed in seeds]

        by_day = range(1, last + 1)
        cost = [float(np.mean([line["cpu_s"] for line in own if line["day"] == at])) for at in by_day]
        later = range(2, last + 1)  # on the first day all methods have the cold model
        cells = [mean_cell(over(name, later)) for name in ("log_loss", "auc", "impression_auc", "observed_over_expected")]
        step = over("log_loss", later, [line for line in lines if line["method"] == "daily step"])
        gain = "-" if method == "daily step" else mean_cell(np.subtract(step, over("log_loss", later)).tolist())
        rows.append(f"| {method} | {' | '.join(cells)} | {gain} | {np.mean(cost):.1f} |")
        axes[0].plot(by_day, [np.mean(over("log_loss", range(at, at + 1))) for at in by_day], "o-", color=color, label=method)
        if method != "never":
            axes[1].plot(by_day, cost, "o-", color=color, label=method)
    axes[0].set(xlabel="day", ylabel="log loss of the day, before it is learned")
    axes[1].set(xlabel="day", ylabel="processor seconds of a day", yscale="log", ylim=(0.1, None))
    axes[0].legend(fontsize=8)
    figure.savefig(PAGE.with_suffix(".svg"), metadata={"Date": None})
    text = f"""# Seven days of operation

A LiRank on the simulator, with tastes that drift (`drift=0.03`), cold on 14 days of 400 members, then {last} days. Each day is scored by
the model of the day before, and is then learned. Means over {len(seeds)} seeds and the days 2 to {last} (on the first, all have the same
model), ± half of the 95 % interval; seconds of one core for a day, all parts of the step, without starting a program.

| | log loss | AUC | impression AUC | observed / expected | log loss of the daily step minus this one | seconds |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

* `never`: the cold model. `warm start`: `warm_start`. `daily step`: `daily_step(penalty="fisher", effects=..., explore=True)`.
  `effects`: the same without a gradient step. `retraining`: `train` on all days so far, {EPOCHS} epochs.

![Log loss and seconds by day](daily.svg)

```bash
KERAS_BACKEND=torch python tools/benchmarks/daily.py --json daily.jsonl
python tools/benchmarks/daily.py --page daily.jsonl
```

How to run it every day: [Daily training](../guides/daily.md).
"""
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--page", type=Path, metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--days", type=int, default=7)
    args = parser.parse_args()
    if args.page:
        write_page(args.page)
        return
    if args.json is None:
        parser.error("--json FILE is needed, or --page FILE")
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as work:
            run(seed, args.days, args.json, Path(work))


if __name__ == "__main__":
    main()
