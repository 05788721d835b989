"""tools/benchmarks/transfer.py: what is learned and scored on two screens of a log, and tables of lines of both kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.readers.kuairand_files import BEGIN, DAY, write_pure

BENCHMARKS = Path(__file__).resolve().parents[1] / "tools" / "benchmarks"
LINE = {"model": "cadet", "train_rows": 1701, "scored_rows": 100, "task": "click", "log_loss": 0.3}


@pytest.fixture(scope="module")
def tools() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import transfer
        import transfer_surfaces

        yield transfer, transfer_surfaces


def test_the_screens_of_a_log(tools: Any, tmp_path: Path) -> None:
    """Learned are earlier rows of some members on the second screen, scored all later ones; no row of the first screen is either."""
    log, *_ = write_pure(tmp_path, tabs=3)
    surfaces = tools[1].kuairand(tmp_path)
    feed = surfaces.first(0)
    assert len(feed.events) == (log["tab"] == 1).sum() and set(feed.events["split"]) == {"train", "validation"}
    learned = {}
    for seed in (0, 1):
        second = surfaces.second(seed, 10)
        events, later = second.events, second.events["time"] >= BEGIN + DAY
        assert (events["tab"] == 0).sum() == (log["tab"] == 0).sum() and "tab" not in {feature.name for feature in second.schema.features}
        assert (events.loc[events["tab"] == 1, "split"] == "history").all()
        here = events["tab"] == 0
        assert (events["split"] == "validation").equals(here & later)
        train = events["split"] == "train"
        assert 10 <= train.sum() < (here & ~later).sum() and not (train & later).any()
        learned[seed] = set(events.loc[train, "user_id"])
        assert (train == (here & ~later & events["user_id"].isin(learned[seed]))).all()
    assert learned[0] != learned[1]
    everything = surfaces.second(0, 10_000).events
    assert ((everything["split"] == "history") == (everything["tab"] == 1)).all()


def test_lines_without_surfaces_are_simulated_ones(tools: Any, tmp_path: Path) -> None:
    path, transfer = tmp_path / "lines.jsonl", tools[0]
    real = {"surfaces": "kuairand", "positives": 30, "auc": 0.61}
    lines = [
        {**LINE, "way": "scratch", "seed": 0, "auc": 0.5, "impression_auc": 0.6},
        {**LINE, "way": "heads", "seed": 0, "auc": 0.55, "impression_auc": 0.6},
        *({**LINE, **real, "rows": rows, "way": way, "seed": 0} for rows in (1700, 3000) for way in ("scratch", "heads")),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    simulated, two = (transfer.table(path, "cadet", name) for name in transfer.SURFACES)
    assert "| click | heads | 0.550 | +0.050 | 0.600 | +0.000 | 0.3000 |" in simulated and simulated.count("cadet, 1 seeds") == 1
    assert two.count("cadet, 1 seeds") == 2 and two.count("| click | heads | 0.610 | +0.000 | 0.3000 |") == 2
    assert "standard error" in two and "standard error" not in simulated
    with pytest.raises(SystemExit, match="has no line of feedsr on the surfaces 'kuairand'"):
        transfer.table(path, "feedsr", "kuairand")


def test_the_standard_error_of_an_auc(tools: Any) -> None:
    """Without any order it is that of the rank sum, exactly; with one, that of samples of two exponential scores, as is assumed."""
    assert tools[0].auc_error(0.5, 30, 200) == pytest.approx((231 / (12 * 30 * 200)) ** 0.5, rel=1e-12)
    random, found = np.random.default_rng(0), []
    for _ in range(2000):
        positive, negative = random.exponential(4, 40), random.exponential(1, 200)
        found.append((positive[:, None] > negative).mean())
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)
    error = tools[0].auc_error(0.8, 40, 200)
    assert error == pytest.approx(np.std(found), rel=0.05) and error != pytest.approx(tools[0].auc_error(0.5, 40, 200), rel=0.05)
