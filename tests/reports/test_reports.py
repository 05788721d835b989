"""The report of two small runs: numbers against `evaluate` and planted effects, the page in a browser, the command."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from keras_ranking.data import Log
from keras_ranking.reports import ReportOptions, RunReport, report_of
from keras_ranking.reports.importance import groups_of
from keras_ranking.reports.scored import run_names
from tests.plots.test_plots import checked

pytestmark = pytest.mark.quickest
SMALL = ReportOptions(sample=60, draws=60, max_history=32)
LIRANK = {"features": ("good", "noise"), "history_features": (), "hidden": (8,), "cross_layers": 1, "learning_rate": 0.05}
CADET = {"dim": 16, "num_layers": 1, "num_heads": 2, "row_length": 256, "tower_boundaries": (1, 4)}


@pytest.fixture(scope="module")
def log() -> Log:
    """A simulated log in which `good` tells the click, mostly, and `noise` nothing."""
    made = kr.data.simulate(members=60, days=4, seed=0)
    random = np.random.default_rng(1)
    good = made.events["click"] * 0.8 + random.normal(size=len(made.events)) * 0.5
    events = made.events.assign(good=good, noise=random.normal(size=len(made.events)))
    kept = [feature for feature in made.schema.features if feature.name in ("item_id", "topic", "device")]
    schema = made.schema.model_copy(update={"features": (*kept, kr.Number("good"), kr.Number("noise"))})
    return Log(events, schema, "<planted>")


@pytest.fixture(scope="module")
def runs(log: Log, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    for model, options in (("cadet", CADET), ("lirank", LIRANK)):
        kr.training.train(log, model, folder / model, epochs=2, options=options, verbose=False)
    return [folder / "cadet", folder / "lirank"]


@pytest.fixture(scope="module")
def report(log: Log, runs: list[Path]) -> RunReport:
    return report_of(runs, log, options=SMALL)


def test_metrics_are_those_of_evaluate(report: RunReport, log: Log, runs: list[Path]) -> None:
    for run in runs:
        for task, values in kr.training.evaluate(run, log).items():
            for name, value in values.items():
                assert report.figures_by_task[task][run.name][name][0] == pytest.approx(value, rel=1e-6, nan_ok=True)
    apart = report.differences["click"]["lirank"]["log_loss"]
    values = [report.figures_by_task["click"][run]["log_loss"][0] for run in report.runs]
    assert apart[0] == pytest.approx(values[1] - values[0], rel=1e-6) and apart[1] < apart[0] < apart[2]


def test_importance_finds_what_was_planted(report: RunReport) -> None:
    found = {line["group"]: line for line in report.importance["lirank"] if line["task"] == "click"}
    assert set(found) == {"candidate: good", "candidate: noise"}
    good, noise = (found[f"candidate: {name}"]["impression_auc"] for name in ("good", "noise"))
    assert good[2] < -0.05, "the whole interval is a loss"
    assert noise[1] < 0 < noise[2] or abs(noise[0]) < 0.02, "control: what tells nothing costs nothing"
    assert "history: all" in {line["group"] for line in report.importance["cadet"]}


def test_groups_are_by_the_first_word() -> None:
    assert groups_of(["views_1h", "views_24h", "hour"]) == {"views_…": ("views_1h", "views_24h"), "hour": ("hour",)}


def test_segments_add_up_and_rows_of_new_members_are_apart(report: RunReport, log: Log) -> None:
    lines = [line for line in report.segments if line["task"] == "click"]
    for column in {line["column"] for line in lines}:
        assert sum(line["rows"] for line in lines if line["column"] == column) == len(report.scored.place)
    rows = log.events.iloc[report.scored.place]
    known = log.events.loc[log.events["split"] == "train", "member_id"]
    new = [line["rows"] for line in lines if line["column"] == "member's rows in train" and line["segment"] == "no row"]
    assert sum(new) == int((~rows["member_id"].isin(known)).sum())
    older = {member: times.to_numpy() for member, times in log.events.loc[log.events["split"] != "test"].groupby("member_id")["time"]}
    expected = [int((older[row.member_id] < row.time).sum()) for row in rows.itertuples()]
    assert report.scored.past.tolist() == expected


def test_attention_is_shown_where_it_is_and_explained_where_it_is_not(report: RunReport) -> None:
    kept = report.attention["cadet"]
    assert kept["weights"].shape == kept["ages"].shape and (kept["weights"] >= 0).all() and kept["weights"].max() <= 1 + 1e-5
    assert report.attention["lirank"] == "the model reads no history"


def test_the_summary_sees_drift(log: Log, runs: list[Path]) -> None:
    """Planted: `noise` of the validation rows moves by two standard deviations, a topic is renamed; the other columns stay."""
    moved = log.events.copy()
    late = (moved["split"] == "validation").to_numpy()
    moved.loc[late, "noise"] += 2.0
    columns = {line["column"]: line for line in report_of(runs[1], replace(log, events=moved), options=SMALL).columns}
    assert columns["noise"]["psi"] > 0.25 > 0.1 > columns["good"]["psi"]


@pytest.fixture(scope="module")
def text(report: RunReport, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.save(tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def test_the_page_is_whole_and_loads_nothing(report: RunReport, text: str) -> None:
    checked(text)
    assert "&lt;planted&gt;" in text and "<planted>" not in text
    for title in ("Metrics", "Training", "Probabilities of click", "Segments of like", "Importance for click", "Attention", "Data", "Cost"):
        assert f">{title}</h2>" in text
    assert (
        text.count("<figure>") == text.count("<svg") == 2 * 3 + 2 * 5 + 2 * 2 + 3
    )  # by task, by segment, importance; curves, attention, drift
    assert json.loads(json.dumps(report.as_json(), allow_nan=False))["runs"] == ["cadet", "lirank"]


@pytest.mark.parametrize("width", [1300, 420])
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_fits_a_browser(text: str, tmp_path: Path, width: int) -> None:
    """Nothing but tables, which scroll by themselves, is wider than the window; no figure is cut."""
    measure = """<script>
    const wide = [...document.querySelectorAll("svg, p, h1, h2, nav, figure, .wide")];
    const over = wide.filter(one => one.getBoundingClientRect().right > innerWidth + 1 || one.getBoundingClientRect().width < 1);
    document.title = JSON.stringify([innerWidth, document.documentElement.scrollWidth, over.length, wide.length]);
    </script></body>"""
    file = tmp_path / "report.html"
    file.write_text(text.replace("</body>", measure), encoding="utf-8")
    run = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900",
    ]
    shown = subprocess.run([*run, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=240, check=True).stdout
    found = re.search(r"<title>(\[.*?\])</title>", shown)
    assert found is not None
    inner, scrolled, over, elements = json.loads(found[1])
    assert abs(inner - width) <= 100 and scrolled <= inner and over == 0 and elements > 30


def test_rows_of_drawn_members_are_scored_where_there_are_many(log: Log, runs: list[Path]) -> None:
    found = report_of(runs[1], log, options=replace(SMALL, max_rows=300))
    assert len(found.scored.place) <= 300 and "drawn at random" in found.notes[0]
    members = log.events["member_id"].to_numpy()[found.scored.place]
    whole = log.events[(log.events["split"] == "validation") & log.events["member_id"].isin(members)]
    assert len(whole) == len(found.scored.place), "members are whole"


def test_errors(log: Log, runs: list[Path]) -> None:
    cases: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "at least one folder"),
        ([runs[0], runs[0]], {}, "must be different folders"),
        (runs[1], {"options": replace(SMALL, segments=("nothing",))}, "column 'nothing'"),
        (runs[1], {"options": replace(SMALL, groups={"a": ("click",)})}, "columns that the model reads"),
        (runs[1], {"split": "new_members"}, "no rows with split 'new_members'"),
    ]
    for given, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            report_of(given, log, **{"options": SMALL, **settings})
    with pytest.raises(ValueError, match="`sample` must be a positive integer"):
        ReportOptions(sample=0)


def test_runs_have_short_names_that_differ() -> None:
    assert run_names([Path("a/x"), Path("b/y")]) == ["x", "y"]
    assert run_names([Path("a/x"), Path("b/x")]) == ["a/x", "b/x"]


def test_the_command(log: Log, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.parquet"
    log.events.to_parquet(file)
    out = tmp_path / "page.html"
    more = ["--sample", "20", "--json", str(tmp_path / "r.json"), "--segment", "device", "--group", "all=good,noise"]
    assert main(["report", str(runs[1]), "--data", f"parquet:{file}", "--out", str(out), *more]) == 0
    assert "impression AUC (grouped AUC) ↑" in capsys.readouterr().out and out.stat().st_size > 100_000
    assert json.loads((tmp_path / "r.json").read_text())["importance"]["lirank"][0]["group"] == "candidate: all"
    assert main(["report", str(tmp_path), "--data", f"parquet:{file}", "--out", str(out)]) == 2
    assert "no model at" in capsys.readouterr().err
    assert main(["report", str(runs[1]), "--data", f"parquet:{file}", "--out", "page.pdf"]) == 2
