"""What a study found and how sure that is: means of fresh seeds, how much the winner of single runs flattered itself, and ties."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_ranking.tuning.files import write_text
from keras_ranking.tuning.places import SEED, latest, told
from keras_ranking.tuning.spaces import options_of
from keras_ranking.tuning.store import Store

LEVEL = 0.95


@dataclass(frozen=True)
class Fresh:
    """A setting with fresh seeds.

    Attributes:
        trial: number of the trial that tried it first.
        single: value of that trial.
        values: one for each fresh seed.
        mean, half: of `values`, and half of its 95 % interval, from the spread of all settings around their means.
        flattery: by how much the single value looked better than the mean.
    """

    trial: int
    single: float
    values: tuple[float, ...]
    mean: float
    half: float
    flattery: float


@dataclass(frozen=True)
class Comparison:
    """Settings with fresh seeds, compared.

    Attributes:
        settings: the best mean first.
        spread: standard deviation over seeds, pooled over settings; `freedom` are its degrees of freedom.
        figure: what to expect of the choice: each seed is the judge of a choice that the other seeds have made, so that no value has chosen
            what it judges.
        half: half of its 95 % interval.
        tied: trials that cannot be told apart from the first one (simultaneous 95 % intervals, Bonferroni).
    """

    settings: tuple[Fresh, ...]
    spread: float
    freedom: int
    figure: float
    half: float
    tied: tuple[int, ...]


def compare(single: Mapping[int, float], fresh: Mapping[int, Sequence[float]], minimize: bool = True) -> Comparison:
    """Compare settings by fresh seeds.

    Args:
        single: trial -> value of its single run.
        fresh: trial -> values with fresh seeds; the same seeds in the same order for all, at least two.
        minimize: whether less is better.

    Returns:
        `Comparison`.

    Raises:
        ValueError: no setting, or one with fewer than two values.
    """
    if not fresh or min(len(values) for values in fresh.values()) < 2:
        raise ValueError(f"`fresh` must have two values or more for each setting. Received: {dict(fresh)}")
    from scipy import stats

    sign = 1.0 if minimize else -1.0
    arrays = {trial: np.asarray(values, dtype=np.float64) for trial, values in fresh.items()}
    freedom = sum(len(values) - 1 for values in arrays.values())
    spread = float(np.sqrt(sum(((values - values.mean()) ** 2).sum() for values in arrays.values()) / freedom))
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
    rows = []
    for trial, values in arrays.items():
        mean = float(values.mean())
        half = quantile * spread / len(values) ** 0.5
        rows.append(Fresh(trial, single[trial], tuple(values.tolist()), mean, half, sign * (mean - single[trial])))
    rows.sort(key=lambda row: (sign * row.mean, row.trial))
    first, others = rows[0], rows[1:]
    wide = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / max(len(others), 1), freedom))
    tied = [
        row.trial for row in others if abs(row.mean - first.mean) <= wide * spread * (1 / len(row.values) + 1 / len(first.values)) ** 0.5
    ]
    count = min(len(values) for values in arrays.values())
    table = np.stack([values[:count] for values in arrays.values()])
    judged = []
    for judge in range(count):
        chosen = int((sign * np.delete(table, judge, axis=1).mean(axis=1)).argmin())
        judged.append(table[chosen, judge])
    return Comparison(tuple(rows), spread, freedom, float(np.mean(judged)), quantile * spread / count**0.5, tuple(tied))


@dataclass(frozen=True)
class Report:
    """What a study found.

    Attributes:
        name, metric, direction: of the study.
        rows: one mapping for each trial: `trial`, `state`, `value`, `told`, `options`, `curve` (values after epochs), `seconds`.
        chosen: number of the trial whose setting is to be trained; None: none has finished.
        fresh: the settings with fresh seeds; None: before `confirm`.

    Example:
        >>> def build(options):
        ...     model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(options["units"])])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> def fit(model, callbacks):  # returns the value itself
        ...     return float(model.count_params())
        >>> study = kr.tuning.tune_model(build, fit, space={"units": [1, 2]}, sampler="grid", trials=2, verbose=False)
        >>> report = study.confirm(best=2, seeds=2, verbose=False)
        >>> len(report.fresh.settings), report.chosen in (0, 1)
        (2, True)
    """

    name: str
    metric: str
    direction: str
    rows: tuple[Mapping[str, Any], ...]
    chosen: int | None
    fresh: Comparison | None

    @property
    def single(self) -> Mapping[str, Any] | None:
        """The trial with the best single value."""
        sign = 1 if self.direction == "minimize" else -1
        return min((row for row in self.rows if row["state"] == "COMPLETE"), key=lambda row: sign * row["value"], default=None)

    def text(self) -> str:
        """For reading."""
        words = {"COMPLETE": "finished", "PRUNED": "ended early", "RUNNING": "running", "WAITING": "waiting"}
        states = Counter(words.get(row["state"], str(row["told"]).split(":")[0]) for row in self.rows)
        counts = ", ".join(f"{count} {state}" for state, count in states.items())
        lines = [f"study {self.name}: {len(self.rows)} trials ({counts}); {self.metric}, {self.direction}d"]
        single = self.single
        if single is None:
            return "\n".join([*lines, "no trial has finished"])
        finished = sum(row["state"] == "COMPLETE" for row in self.rows)
        lines.append(f"best single run: trial {single['trial']}, {single['value']:.5f}: {_options(single['options'])}")
        if self.fresh is None:
            lines.append(f"  the luckiest of {finished} runs looks better than its setting is; fresh seeds say by how much: --confirm 5x3")
            return "\n".join(lines)
        lines += ["", *self._fresh_lines(single)]
        return "\n".join(lines)

    def _fresh_lines(self, single: Mapping[str, Any]) -> list[str]:
        fresh: Any = self.fresh
        lines = [f"fresh seeds, mean ± half of the 95 % interval (spread over seeds {fresh.spread:.5f}):"]
        for row in fresh.settings:
            note = "" if row.trial != fresh.settings[0].trial else "   <- best mean"
            lines.append(f"  trial {row.trial:>3}: {row.mean:.5f} ± {row.half:.5f}   single run {row.single:.5f}{note}")
        winner = next((row for row in fresh.settings if row.trial == single["trial"]), None)
        if winner is not None:
            how = f"{abs(winner.flattery):.5f} ± {winner.half:.5f} {'better' if winner.flattery > 0 else 'worse'}"
            lines.append(f"the best single run, trial {winner.trial}, looked {how} than its fresh seeds are")
        first = fresh.settings[0].trial
        if fresh.tied:
            lines.append(f"trial {first} cannot be told apart from {', '.join(f'trial {trial}' for trial in fresh.tied)}")
        elif len(fresh.settings) > 1:
            lines.append(f"trial {first} is better than the other {len(fresh.settings) - 1}")
        lines.append(f"to expect of the choice: {fresh.figure:.5f} ± {fresh.half:.5f} (each seed judges a choice of the other seeds)")
        chosen = next(row for row in self.rows if row["trial"] == self.chosen)
        lines.append(f"chosen: trial {self.chosen}: {_options(chosen['options'])}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        fresh = self.fresh
        made: dict[str, Any] = {
            "study": self.name,
            "metric": self.metric,
            "direction": self.direction,
            "trials": [dict(row) for row in self.rows],
            "chosen": self.chosen,
            "best_single": None if self.single is None else self.single["trial"],
            "fresh": None,
        }
        if fresh is not None:
            settings = [{**vars(row), "values": list(row.values)} for row in fresh.settings]
            made["fresh"] = {**vars(fresh), "settings": settings, "tied": list(fresh.tied)}
        return made

    def plots(self) -> dict[str, Any]:
        """Figures of matplotlib by name: 'history', 'curves', 'slices', and 'fresh' after `confirm`.

        Raises:
            ModuleNotFoundError: matplotlib is not installed, naming the extra.
        """
        from keras_ranking.tuning.plots import plots_of

        return plots_of(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write `report.txt`, `report.json` and `report.html`; without matplotlib the page has no plots, and says so.

        Args:
            folder: to write to.

        Returns:
            The files.
        """
        from keras_ranking.tuning.pages import page_of

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"report.txt": self.text(), "report.json": json.dumps(self.as_json(), indent=2), "report.html": page_of(self)}
        for name, text in texts.items():
            write_text(folder / name, text + "\n")
        return [folder / name for name in texts]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in options.items())


def report_of(store: Store) -> Report:
    """The report of a study as it stands."""
    study, settings = store.study(), store.settings
    trials = latest(study.get_trials(deepcopy=False))
    rows = [
        {
            "trial": slot,
            "state": trial.state.name,
            "value": trial.value,
            "told": told(study, trial),
            "options": options_of(settings.space, trial.params),
            "curve": {str(step): value for step, value in sorted(trial.intermediate_values.items())},
            "seconds": trial.user_attrs.get("seconds"),
        }
        for slot, trial in sorted(trials.items())
    ]
    single = {slot: trial.value for slot, trial in trials.items() if trial.state.name == "COMPLETE"}
    fresh = _fresh(store, single)
    report = Report(store.name, settings.search.metric, settings.direction, tuple(rows), None, fresh)
    chosen = fresh.settings[0].trial if fresh is not None else None if report.single is None else report.single["trial"]
    return Report(report.name, report.metric, report.direction, report.rows, chosen, fresh)


def _fresh(store: Store, single: Mapping[int, float]) -> Comparison | None:
    """The comparison of those settings whose fresh seeds have all ended with a value; None: fewer than two seeds of any."""
    if not store.has(store.confirmed):
        return None
    found: dict[int, dict[int, float]] = {}
    seeds = set()
    for trial in latest(store.study(store.confirmed).get_trials(deepcopy=False)).values():
        seeds.add(trial.user_attrs[SEED])
        if trial.state.name == "COMPLETE":
            found.setdefault(trial.user_attrs["of"], {})[trial.user_attrs[SEED]] = trial.value
    whole = {of: [values[seed] for seed in sorted(seeds)] for of, values in found.items() if seeds <= values.keys() and of in single}
    if not whole or len(seeds) < 2:
        return None
    return compare(single, whole, store.settings.direction == "minimize")
