"""The page of results, from lines as the benchmarks write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "tools" / "benchmarks"
pytestmark = [pytest.mark.one_backend]
FIGURES = {"impression_auc": 0.7, "auc": 0.8, "ndcg_at_10": 0.6, "log_loss": 0.3, "followed_log_loss": 0.29, "calibration_error": 0.01}


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import runs
    import worth

    monkeypatch.setattr(worth, "LINES", tmp_path)
    monkeypatch.setattr(worth, "PAGE", tmp_path / "worth.md")
    return worth, runs, tmp_path


def moved(by: float) -> dict[str, dict[str, float]]:
    return {split: {name: value + by for name, value in FIGURES.items()} for split in ("validation", "new_members")}


def test_a_page_of_peers_rankers_and_parts(tools: Any) -> None:
    worth, runs, folder = tools
    import rankers

    for seed in range(3):
        line = {"log": "retail", "holdout": 0.25, "seconds": 60.0, "seed": seed}
        peer = {**line, "stage": "scored", "model": "LightGBM LambdaRank", "features": "fold_in", "setting": {}}
        figures = moved(0.001 * seed)
        for of_split in figures.values():
            of_split["log_loss"] = of_split["followed_log_loss"] = None
        runs.add_line(folder / "peers.jsonl", {**peer, "figures": figures})
        for name, by in (("cadet fold_in", 0.02), ("cadet fold_in without history", 0.01)):
            own = {**line, "run": name, "made_with": rankers.made_with("retail", name)}
            runs.add_line(folder / "rankers.jsonl", {**own, "tuning": False, "figures": moved(by + 0.001 * seed)})
    runs.add_line(folder / "rankers.jsonl", {**own, "tuning": True, "figures": moved(0.2)})
    runs.add_line(folder / "rankers.jsonl", {**own, "tuning": False, "made_with": {}, "figures": moved(0.2)})  # of other options
    worth.write_page()
    page = (folder / "worth.md").read_text(encoding="utf-8")
    assert page.startswith("# Four logs") and "## Online Retail" in page and "## EB-NeRD" not in page
    assert (
        "| LightGBM LambdaRank, `fold_in` | 0.7010 ± 0.0025 | 0.8010 ± 0.0025 | 0.6010 ± 0.0025 | - | - | 0.0110 ± 0.0025 | 3 | 1.0 |"
        in page
    )
    assert "| **CADET, `fold_in`** | 0.7210 ± 0.0025 |" in page and "0.9" not in page.replace("± 0.9", "")
    assert "| history | CADET, `fold_in` | 0.0100 ± 0.0000 | 0.0100 ± 0.0000 |" in page


def test_a_run_with_the_same_options_is_not_made_again(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import rankers

    made: list[int] = []
    monkeypatch.setattr(rankers, "run", lambda case, name, seed, tuning, changed, kept: made.append(seed) or {"figures": {}})
    case: Any = type("Case", (), {"name": "retail", "holdout": 0.25})()
    path = tools[2] / "rankers.jsonl"
    for seed in (0, 1, 0):
        rankers.run_line(case, "ligr fold_in", seed, path)
    rankers.run_line(case, "ligr fold_in", 0, path, changed={"epochs": 1})
    monkeypatch.setitem(rankers.LISTS, "ema", 0.5)
    rankers.run_line(case, "ligr fold_in", 0, path)
    assert made == [0, 1, 0, 0]


def test_a_folder_is_needed(tools: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tools[0].main([])
    assert "FOLDER is needed" in capsys.readouterr().err


def test_an_offset_follows_what_was_known(tools: Any) -> None:
    follow, rng = tools[1].followed_log_loss, np.random.default_rng(0)
    time, logit = np.sort(rng.integers(0, 100_000, 4000)), rng.normal(size=4000) - 1.0
    label = (rng.uniform(size=4000) < 1 / (1 + np.exp(-logit - 0.8))).astype(float)
    plain = float(np.mean(np.logaddexp(0, logit) - label * logit))
    best = float(np.mean(np.logaddexp(0, logit + 0.8) - label * (logit + 0.8)))
    got = follow(label, logit, time, delay=10, prior=100.0)
    assert best - 0.002 < got < plain - 0.5 * (plain - best)
    # Nothing is known before the last row: no offset.
    assert follow(label, logit, time, delay=100_001) == pytest.approx(plain, abs=1e-12)
    order = rng.permutation(4000)
    assert follow(label[order], logit[order], time[order], delay=10, prior=100.0) == pytest.approx(got, abs=1e-3)
