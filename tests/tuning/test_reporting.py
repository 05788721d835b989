"""Figures of fresh seeds: means, intervals, ties and flattery, against numpy; and a planted study, whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from keras_ranking.tuning.places import plan_fresh
from keras_ranking.tuning.reporting import compare, report_of
from keras_ranking.tuning.running import Run, work
from keras_ranking.tuning.settings import fresh_seeds
from tests.tuning.studies import store_of

pytestmark = pytest.mark.quickest


def test_means_intervals_and_flattery_are_those_of_numpy() -> None:
    fresh = {4: [0.50, 0.52, 0.54], 7: [0.40, 0.44, 0.42], 9: [0.41, 0.45, 0.46]}
    found = compare({4: 0.45, 7: 0.39, 9: 0.36}, fresh)
    assert [row.trial for row in found.settings] == [7, 9, 4]
    spread = np.sqrt(np.mean([np.var(values, ddof=1) for values in fresh.values()]))
    np.testing.assert_allclose(found.spread, spread, rtol=1e-12)
    assert found.freedom == 6
    np.testing.assert_allclose(found.settings[0].half, 2.4469118511 * spread / np.sqrt(3), rtol=1e-9)  # t, 6 degrees of freedom
    np.testing.assert_allclose([row.flattery for row in found.settings], [0.03, 0.08, 0.07], rtol=1e-9)
    assert found.tied == (9,)
    # Without the first seed 7 has the best mean of the others, and so on: each judges the choice of the other two.
    np.testing.assert_allclose(found.figure, np.mean([0.40, 0.44, 0.42]))
    negative = {trial: [-value for value in values] for trial, values in fresh.items()}
    turned = compare({4: -0.45, 7: -0.39, 9: -0.36}, negative, minimize=False)
    assert [row.trial for row in turned.settings] == [7, 9, 4] and turned.tied == (9,)
    np.testing.assert_allclose([row.flattery for row in turned.settings], [0.03, 0.08, 0.07], rtol=1e-9)


def test_the_figure_crosses_seeds() -> None:
    """Control: the mean of the choice's own seeds takes each value to choose what it judges."""
    found = compare({0: 0.0, 1: 0.0}, {0: [0.0, 1.0], 1: [1.0, 0.0]})
    assert found.figure == 1.0 and found.settings[0].mean == 0.5


def test_fewer_than_two_seeds_have_no_interval() -> None:
    with pytest.raises(ValueError, match="`fresh` must have two values or more"):
        compare({0: 1.0}, {0: [1.0]})


def test_fresh_figures_are_unbiased_where_the_best_single_run_flatters() -> None:
    """Planted: 30 settings of spread 1, seeds of spread 1; five of them with three fresh seeds, 400 times."""
    random = np.random.default_rng(0)
    bias: dict[str, list[float]] = {"single": [], "fresh": [], "crossed": [], "naive": []}
    for _ in range(400):
        truth = random.normal(size=30)
        seen = truth + random.normal(size=30)
        best = [int(one) for one in np.argsort(seen)[:5]]
        found = compare(dict(enumerate(seen)), {one: truth[one] + random.normal(size=3) for one in best})
        winner = next(row for row in found.settings if row.trial == best[0])
        chosen = found.settings[0]
        bias["single"].append(truth[best[0]] - winner.single)
        bias["fresh"].append(truth[best[0]] - winner.mean)
        bias["crossed"].append(truth[chosen.trial] - found.figure)
        bias["naive"].append(truth[chosen.trial] - chosen.mean)
    errors = {name: np.mean(values) / (np.std(values, ddof=1) / len(values) ** 0.5) for name, values in bias.items()}
    assert errors["single"] > 3, "the best single run flatters itself"
    assert abs(errors["fresh"]) < 2
    assert errors["crossed"] < 2, "the figure of the choice does not flatter; a choice by fewer seeds may be a little worse"
    assert errors["naive"] > 3, "control: the mean of the seeds that chose flatters"


def test_a_report_tells_what_was_found(tmp_path: Path) -> None:
    noise = np.random.default_rng(1)

    def objective(run: Run) -> float:
        if run.folder.parts[-2:] == ("trials", "0002"):
            raise ValueError("no <room>")
        run.report(1.0, 0)
        return run.options["x"] + 0.3 * float(noise.normal())

    store = store_of(tmp_path, 6)
    work(store, objective, verbose=False)
    before = report_of(store)
    assert before.fresh is None and "looks better than its setting is" in before.text() and "1 failed" in before.text()
    single = sorted((row for row in before.rows if row["state"] == "COMPLETE"), key=lambda row: row["value"])
    plan_fresh(store, [(row["trial"], row["options"]) for row in single[:3]], fresh_seeds(store.settings, 2))
    plan_fresh(store, [(row["trial"], row["options"]) for row in single[:3]], fresh_seeds(store.settings, 2))
    assert work(store, objective, store.confirmed, verbose=False) == 6, "planned once"
    report = report_of(store)
    assert report.fresh is not None and report.chosen == report.fresh.settings[0].trial
    text = report.text()
    assert "cannot be told apart from" in text and "than its fresh seeds are" in text and f"chosen: trial {report.chosen}" in text
    files = report.save(tmp_path / "report")
    assert json.loads(files[1].read_text())["fresh"]["settings"][0]["trial"] == report.chosen
    page = files[2].read_text()
    assert page.count("<svg") == 4 and "no &lt;room&gt;" in page and "no <room>" not in page and "http://" not in page.split("<svg")[0]


def test_a_study_without_a_value_says_so(tmp_path: Path) -> None:
    def fails(run: Run) -> float:
        raise ValueError("no room")

    store = store_of(tmp_path, 2)
    work(store, fails, verbose=False)
    report = report_of(store)
    assert report.text().endswith("no trial has finished") and report.chosen is None and report.plots() == {}
    from keras_ranking.tuning.choosing import best

    with pytest.raises(ValueError, match="no trial of the study .* has finished. trial 0: failed: no room"):
        best(store)
