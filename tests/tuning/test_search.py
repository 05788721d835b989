"""How a study may search: what goes together, and settings that do not repeat."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import keras_ranking as kr
from keras_ranking.tuning import Float, Search, spaces
from keras_ranking.tuning.rankers import check_ranker, direction_of
from keras_ranking.tuning.running import work
from keras_ranking.tuning.samplers import SAMPLERS, sampler_for
from keras_ranking.tuning.settings import Settings, training_options
from tests.tuning.studies import store_of

pytestmark = pytest.mark.quickest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "gp", "pruner": "median"}, "`pruner` must be 'none' with sampler='gp', which reads finished trials alone"),
        ({"sampler": "best"}, "`sampler` must be one of"),
        ({"pruner": "often"}, "`pruner` must be one of"),
        ({"seeds": 0}, "`seeds` must be a positive integer. Received: seeds=0"),
        ({"validation": "validation"}, "would choose by the rows that it is reported on"),
        ({"validation": 1.5}, "`validation` must be 'last_day', or a share"),
        ({"keep": "none"}, "`keep` must be one of"),
        ({"heartbeat": 0.5}, "`heartbeat` must be a positive integer"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        Search(**given)
    assert message in str(raised.value)


def test_control_a_pruner_goes_with_tpe() -> None:
    assert Search(pruner="median").sampler == "tpe"


def test_cmaes_takes_numbers_alone() -> None:
    with pytest.raises(ValueError, match="`sampler` must not be 'cmaes' where values have no order"):
        Settings("", Search(sampler="cmaes"), {"a": ["x", "y"]}, 3)


def test_settings_are_the_same_after_json() -> None:
    search = Search(sampler="random", validation=0.2)
    made = Settings("cadet", search, spaces.default_space("cadet"), 7, 3, {"dim": 8, "hidden": (1, 2)})
    again = Settings.from_json(made.as_json())
    assert again.as_json() == made.as_json() and again.search == search
    with pytest.raises(TypeError, match="`options` of a study must be numbers"):
        Settings("cadet", search, {"a": [1, 2]}, 7, options={"optimizer": object()}).as_json()


def test_early_stopping_holds_the_same_rows_out_again() -> None:
    settings = Settings("cadet", Search(), {"dim": [8, 16]}, 3, options={"early_stopping": 2})
    assert training_options(settings, {"dim": 8}) == {"dim": 8, "early_stopping": 2, "validation": "last_day", "monitor": "log_loss"}
    assert training_options(Settings("cadet", Search(), {"dim": [8, 16]}, 3), {"dim": 8}) == {"dim": 8}


def test_the_direction_follows_from_the_metric() -> None:
    assert [direction_of(one) for one in ("log_loss", "click_log_loss", "auc", "like_impression_auc", "grouped_auc")] == [
        "minimize",
        "minimize",
        "maximize",
        "maximize",
        "maximize",
    ]
    with pytest.raises(ValueError, match="`metric` must be one of"):
        direction_of("recall")


@pytest.mark.parametrize(
    "sampler", ["tpe", *(pytest.param(name, marks=pytest.mark.release) for name in SAMPLERS if name not in ("tpe", "gp", "gp-noisy"))]
)
def test_samplers_find_the_valley(sampler: str, tmp_path: Path) -> None:
    space = {"x": Float(0, 1, step=0.05), "y": Float(0, 1, step=0.5)}
    store = store_of(tmp_path, 12, space, sampler=sampler)
    work(store, lambda run: (run.options["x"] - 0.4) ** 2 + run.options["y"], verbose=False)
    trials = store.study().get_trials()
    assert len(trials) == 12 and len({tuple(trial.params.values()) for trial in trials}) > 6
    assert min(trial.value for trial in trials) < 0.4


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("sampler", ["gp", "gp-noisy"])
def test_gaussian_processes_find_the_valley(sampler: str, tmp_path: Path) -> None:
    if sampler == "gp-noisy" and not all(map(importlib.util.find_spec, ("botorch", "optuna_integration"))):
        pytest.skip("the extra tune-gp is not installed")
    store = store_of(tmp_path, 16, {"x": Float(0, 1), "y": Float(0, 1)}, sampler=sampler)
    work(store, lambda run: (run.options["x"] - 0.4) ** 2 + (run.options["y"] - 0.7) ** 2, verbose=False)
    assert min(trial.value for trial in store.study().get_trials()[10:]) < 0.01


def test_gp_noisy_without_its_packages_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"keras-ranking\[tune-gp\]"):
        Search(sampler="gp-noisy")


def test_a_worker_that_starts_anew_draws_other_settings() -> None:
    """Control: a sampler of the study's seed alone, made anew, draws the first settings again."""
    import optuna

    kind = optuna.distributions.FloatDistribution(0, 1)

    def draw(sampler: Any) -> float:
        return float(optuna.create_study(sampler=sampler).ask({"x": kind}).params["x"])

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert draw(sampler_for("random", 0, 0)) != draw(sampler_for("random", 0, 1))
    assert draw(sampler_for("random", 0, 5)) == draw(sampler_for("random", 0, 5))
    assert draw(optuna.samplers.RandomSampler(seed=0)) == draw(optuna.samplers.RandomSampler(seed=0))


SMALL: dict[str, Any] = {"features": ("age_hours",), "history_features": (), "hidden": (8,), "cross_layers": 1}


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        ({"lerning_rate": [1, 2]}, {}, "unknown option 'lerning_rate'; did you mean 'learning_rate'?"),
        ({"learning_rate": ["fast", "slow"]}, {}, "`learning_rate` must be a number"),
        ({"dropout": Float(0, 1.5)}, {}, "the space does not fit: with {'dropout': 1.5}"),
        ({"validation": [0.1, 0.2]}, {}, "`space` must not have 'validation'"),
        ({"seed": [1, 2]}, {}, "`space` must not have 'seed'"),
        ({"dropout": [0.0, 0.1]}, {"ensemble": 2}, "`options` must not have 'ensemble'"),
        ({"dropout": [0.0, 0.1]}, {"dropout": 0.1}, "`dropout` must be in `space` or in `options`"),
        ({"rank": [-1, 2]}, {"cross": "low_rank"}, "with {'rank': -1}"),
    ],
)
def test_a_space_is_checked_before_the_first_trial(space: Any, options: Any, message: str) -> None:
    log = kr.data.simulate(members=12, days=3, seed=0)
    settings = Settings("lirank", Search(), space, 2, options={**SMALL, **options})
    with pytest.raises((TypeError, ValueError)) as raised:
        check_ranker(log, settings)
    assert message in str(raised.value)


def test_the_package_needs_none_of_the_extras() -> None:
    code = """
import sys
for name in ("optuna", "optuna_dashboard", "sqlalchemy", "botorch", "cmaes", "optuna_integration"):
    sys.modules[name] = None
import keras_ranking as kr
assert kr.tuning.Float(0, 1).high == 1 and "keras" not in sys.modules
from keras_ranking.cli import build_parser
build_parser()
try:
    from keras_ranking.tuning.store import open_store
    open_store("nowhere")
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'keras-ranking[tune]'" in done.stdout
