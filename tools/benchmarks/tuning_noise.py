"""What noise does to tuning: regret of samplers on planted objectives, at equal budget, with and without repeats, pruning and fresh seeds.

    python tools/benchmarks/tuning_noise.py run --json noise.jsonl --repetitions 100
    python tools/benchmarks/tuning_noise.py table noise.jsonl

A planted objective has four parameters in [0, 1], a valley at a random place, and standard deviation 1 over random settings. A run of eight
epochs ends at the true value of its setting plus normal noise of the run's seed, and is above it before. The budget is 240 epochs, 30 runs:

    plain     30 settings, one run each
    repeats   15 settings, two runs each, whose mean the sampler reads
    pruning   one run a setting, ended early by the median rule, until the budget is spent
    confirm   15 settings, one run each, then the best five on three fresh seeds each, of which the best mean is chosen

Regret: the true value of the setting that is chosen, less that of the best one. Flattery: true value less the one that was seen of it.
All methods of a repetition have the same objective, so that differences are paired.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from keras_ranking.tuning.samplers import pruner_for, sampler_for

EPOCHS, RUNS, SIZE = 8, 30, 4
NOISES = (0.3, 1.0)
WAYS = ("plain", "repeats", "pruning", "confirm")
SAMPLERS = ("random", "tpe", "gp", "gp-noisy")
BEST, SEEDS, REPEATS = 5, 3, 2


class Planted:
    """An objective with a valley at a random place; `true` has mean 0 and standard deviation 1 over uniform settings."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng((seed, 1))
        self.centre = random.uniform(0.15, 0.85, SIZE)
        self.weights = random.permutation([1.0, 0.6, 0.3, 0.1])
        self.tilt = random.uniform(-0.5, 0.5, (SIZE, SIZE))
        sample = self._raw(random.uniform(size=(20_000, SIZE)))
        self.mean, self.spread = float(sample.mean()), float(sample.std())

    def _raw(self, x: np.ndarray) -> np.ndarray:
        off = x - self.centre
        turned = off + 0.5 * off @ self.tilt
        return np.asarray((turned**2 * self.weights).sum(axis=-1))

    def true(self, x: np.ndarray) -> float:
        return (float(self._raw(x)) - self.mean) / self.spread

    @property
    def least(self) -> float:
        return -self.mean / self.spread

    def curve(self, x: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
        """Values after each epoch of one run; the last one is true value plus noise."""
        epochs = np.arange(1, EPOCHS + 1)
        late = 2 * (0.5 + x[0]) * (np.exp(-epochs / 2) - np.exp(-EPOCHS / 2))
        small = 0.1 * noise * random.normal(size=EPOCHS) * (epochs < EPOCHS)
        return self.true(x) + late + small + noise * random.normal()


def study_of(pruner: str) -> Any:
    return optuna.create_study(direction="minimize", sampler=sampler_for("random", 0, 0), pruner=pruner_for(pruner))


def search(
    planted: Planted, sampler: str, way: str, noise: float, random: np.random.Generator, seed: int
) -> list[tuple[np.ndarray, float]]:
    """Finished settings of one study, and what was seen of each."""
    study = study_of("median" if way == "pruning" else "none")
    left = {"confirm": RUNS - BEST * SEEDS}.get(way, RUNS) * EPOCHS
    found, number = [], 0
    while left > 0:
        study.sampler = sampler_for(sampler, seed, number)
        number += 1
        trial = study.ask({f"x{axis}": optuna.distributions.FloatDistribution(0, 1) for axis in range(SIZE)})
        x = np.array([trial.params[f"x{axis}"] for axis in range(SIZE)])
        if way == "pruning":
            pruned = False
            for epoch, value in enumerate(planted.curve(x, noise, random)):
                trial.report(float(value), epoch)
                left -= 1
                if epoch < EPOCHS - 1 and trial.should_prune():
                    pruned = True
                    break
            if pruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
        else:
            repeats = REPEATS if way == "repeats" else 1
            value = np.mean([planted.curve(x, noise, random)[-1] for _ in range(repeats)])
            left -= repeats * EPOCHS
        study.tell(trial, float(value))
        found.append((x, float(value)))
    return found


def one(planted: Planted, sampler: str, way: str, noise: float, seed: int) -> dict[str, Any]:
    """Regret and flattery of one study."""
    random = np.random.default_rng((seed, 2, SAMPLERS.index(sampler), WAYS.index(way)))
    found = sorted(search(planted, sampler, way, noise, random, seed), key=lambda pair: pair[1])
    x, seen = found[0]
    line: dict[str, Any] = {"settings": len(found), "single_flattery": planted.true(x) - seen}
    if way == "confirm":
        fresh = np.array([[planted.curve(x, noise, random)[-1] for _ in range(SEEDS)] for x, _ in found[:BEST]])
        truths = np.array([planted.true(x) for x, _ in found[:BEST]])
        chosen = int(fresh.mean(axis=1).argmin())
        # The figure of the choice, each seed judged by a choice that the other seeds have made.
        without = [np.delete(fresh, each, axis=1).mean(axis=1).argmin() for each in range(SEEDS)]
        figure = np.mean([fresh[choice, each] for each, choice in enumerate(without)])
        line |= {"first_fresh_flattery": truths[0] - fresh[0].mean(), "naive_flattery": truths[chosen] - fresh[chosen].mean()}
        line |= {"crossed_flattery": truths[chosen] - figure}
        x = found[chosen][0]
    return {name: float(value) for name, value in line.items()} | {"regret": planted.true(x) - planted.least}


def run(path: Path, repetitions: int, first: int, samplers: list[str], ways: list[str]) -> None:
    """Append one line for each repetition, noise, sampler and way that the file lacks."""
    done = {key_of(line) for line in read(path)}
    for repetition in range(first, first + repetitions):
        planted = Planted(repetition)
        for noise in NOISES:
            for sampler in samplers:
                for way in ways:
                    key = {"repetition": repetition, "noise": noise, "sampler": sampler, "way": way}
                    if key_of(key) not in done:
                        line = {**key, **one(planted, sampler, way, noise, repetition)}
                        with path.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("repetition", "noise", "sampler", "way"))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def interval(values: np.ndarray) -> str:
    """'mean ± half of the 95 % interval' over repetitions, by the normal distribution."""
    return f"{values.mean():.3f} ± {1.96 * values.std(ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else "–"


def tables(lines: list[dict[str, Any]], least: int = 2) -> str:
    """Regret and flattery by method, and paired differences of regret, as Markdown; of methods with so many repetitions at least."""
    counts = Counter(key_of(line)[1:] for line in lines)
    lines = [line for line in lines if min(counts[(noise, *key_of(line)[2:])] for noise in NOISES) >= least]
    at = {key_of(line): line for line in lines}
    repetitions = sorted({line["repetition"] for line in lines})

    def values(noise: float, sampler: str, way: str, name: str, than: tuple[str, str] | None = None) -> np.ndarray:
        pairs = [(at.get((each, noise, sampler, way)), at.get((each, noise, *(than or (sampler, way))))) for each in repetitions]
        both = [(mine[name], other[name]) for mine, other in pairs if mine is not None and other is not None]
        return np.array([mine - (other if than else 0.0) for mine, other in both])

    methods = [(sampler, way) for sampler in SAMPLERS for way in WAYS if any(key_of(line)[2:] == (sampler, way) for line in lines)]

    def table(title: str, cell: Callable[[float, str, str], str], chosen: list[tuple[str, str]]) -> str:
        rows = [f"| {title} | noise {NOISES[0]} | noise {NOISES[1]} | repetitions |", "|---|---|---|---|"]
        for sampler, way in chosen:
            sizes = sorted({len(values(noise, sampler, way, "regret")) for noise in NOISES})
            cells = [cell(noise, sampler, way) for noise in NOISES]
            rows.append(f"| {sampler}, {way} | {cells[0]} | {cells[1]} | {' and '.join(map(str, sizes))} |")
        return "\n".join(rows)

    def regret(noise: float, sampler: str, way: str) -> str:
        return interval(values(noise, sampler, way, "regret"))

    def against(than: tuple[str, str]) -> Callable[[float, str, str], str]:
        return lambda noise, sampler, way: interval(values(noise, sampler, way, "regret", than))

    def against_plain(noise: float, sampler: str, way: str) -> str:
        return interval(values(noise, sampler, way, "regret", (sampler, "plain")))

    def flattery(name: str) -> Callable[[float, str, str], str]:
        return lambda noise, sampler, way: interval(values(noise, sampler, way, name))

    confirmed = [method for method in methods if method[1] == "confirm"]
    plain = [method for method in methods if method[1] == "plain"]
    parts = [
        table("regret", regret, methods),
        table("regret less that of random, plain", against(("random", "plain")), [m for m in plain if m[0] != "random"]),
        table("regret less that of tpe, plain", against(("tpe", "plain")), [m for m in plain if m[0] in ("gp", "gp-noisy")]),
        table("regret less that of the same sampler, plain", against_plain, [m for m in methods if m[1] != "plain"]),
        table("flattery of the best single run", flattery("single_flattery"), plain),
        table("of the figure that `confirm` gives", flattery("crossed_flattery"), confirmed),
        table("of the mean of the chosen one's fresh seeds", flattery("naive_flattery"), confirmed),
        table("of the fresh mean of the best single run", flattery("first_fresh_flattery"), confirmed),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("run")
    made.add_argument("--json", type=Path, required=True, metavar="FILE")
    made.add_argument("--repetitions", type=int, default=100, metavar="N")
    made.add_argument("--first", type=int, default=0, metavar="N", help="number of the first repetition")
    made.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    made.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    shown = commands.add_parser("table")
    shown.add_argument("json", type=Path, metavar="FILE")
    shown.add_argument("--least", type=int, default=2, metavar="N", help="leave out methods with fewer repetitions")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.command == "table":
        print(tables(read(args.json), args.least))
    else:
        run(args.json, args.repetitions, args.first, args.samplers, args.ways)


if __name__ == "__main__":
    main()
