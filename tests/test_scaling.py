"""The scaling study: its fit on data whose slope is known, its count of FLOPs, and a small ladder from end to end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import keras_ranking as kr

pytestmark = pytest.mark.quickest


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling", Path(__file__).parents[1] / "tools" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module
    spec.loader.exec_module(module)
    return module


def lines(slope: float, noise: float, sizes: int = 9) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e9, 1e12, sizes), 3)
    return [
        {"size": {"n": i // 3}, "axis": "dim", "seed": i % 3, "flops": x, "auc": 0.7 + slope * np.log10(x) + rng.normal(0, noise)}
        for i, x in enumerate(flops)
    ]


def test_fit_finds_a_slope_and_a_flat_line(scaling: ModuleType) -> None:
    found = scaling.fit(lines(0.01, 0.002), "auc")
    assert found["low"] < 0.01 < found["high"] and abs(found["slope"] - 0.01) < 0.002 and found["low"] > 0
    flat = scaling.fit(lines(0.0, 0.01), "auc")
    assert flat["low"] < 0 < flat["high"]
    assert "flat: 0 is inside" in scaling.report(lines(0.0, 0.01), "auc")
    assert "rises" in scaling.report(lines(0.01, 0.0001), "auc")
    assert "too few sizes" in scaling.report(lines(0.01, 0.0001, sizes=2), "auc")


def test_flops_of_one_block(scaling: ModuleType) -> None:
    log = kr.data.simulate(members=10, days=2, seed=0)
    schema = log.schema.fit(log.events)
    small, deep = (kr.models.LiGR(schema, dim=8, num_heads=2, num_layers=n, setwise_layers=0, max_history=6) for n in (1, 2))
    once, twice = scaling.training_flops(small, log, 1), scaling.training_flops(small, log, 2)
    assert twice == 2 * once
    # a second block adds its own weights on every token and its pairs, and nothing else
    block = sum(np.prod(v.shape) for v in deep.trainable_variables if "block_1" in v.path)
    found = kr.training.model_requests(small, kr.data.build_sequences(log.events, schema, target=(log.events.split == "train").to_numpy()))
    history = np.minimum(found.history_end - found.history_begin, 6)
    shown = found.candidate_end - found.candidate_begin
    expected = 3 * (2 * block * (history + shown).sum() + 4 * 8 * (history * (history + shown)).sum())
    np.testing.assert_allclose(scaling.training_flops(deep, log, 1) - once, expected, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.quickest
def test_a_small_ladder(scaling: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--ladder", "tiny", "--members", "30", "--days", "3", "--epochs", "1", "--seeds", "0"]
    path, picture = tmp_path / "runs.jsonl", tmp_path / "scaling.png"
    monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments, "--json", str(path), "--plot", str(picture)])
    scaling.main()
    assert len(path.read_text().splitlines()) == 5 and picture.stat().st_size > 5000
    assert "auc a decade" in capsys.readouterr().out
    scaling.main()  # nothing is run again
    assert len(path.read_text().splitlines()) == 5
