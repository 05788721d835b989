"""`keras-ranking predict`: from a file to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from tests.commands.shell import one_line

pytestmark = pytest.mark.one_backend


def test_rows_come_back_with_a_column_for_each_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = kr.data.simulate(members=10, days=2, seed=0)
    model = kr.models.LiRank(log.schema.fit(log.events), hidden=(8,), history_features=("topic",))
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "model.keras")
    late = log.events["time"] >= log.events["time"].quantile(0.8)
    rows = log.events[late].drop(columns=["click", "like", "dwell_seconds", "position"]).sample(frac=1.0, random_state=0)
    rows.to_parquet(tmp_path / "rows.parquet")
    log.events[~late].to_parquet(tmp_path / "log.parquet")
    run, out = str(tmp_path / "run"), str(tmp_path / "out" / "scores.csv")
    common = ["predict", run, str(tmp_path / "rows.parquet"), "--history", str(tmp_path / "log.parquet"), "--out", out]
    assert main(common) == 0
    assert f"{len(rows)} of {len(rows)} rows scored, columns predicted_click, predicted_like" in capsys.readouterr().out
    found = pd.read_csv(out)
    np.testing.assert_array_equal(found["item_id"], rows["item_id"])
    expected = kr.training.predict(model, rows, history=log.events[~late])
    np.testing.assert_allclose(found["predicted_click"], expected["click"], atol=1e-6)
    assert main([*common, "--prefix", "", "--max-history", "3"]) == 0
    assert main(["predict", run, str(tmp_path / "log.parquet"), "--out", out, "--prefix", ""]) == 2
    assert "`--prefix` must make names that" in one_line(capsys)
    assert main(["predict", run, str(tmp_path / "rows.parquet"), "--out", "scores.txt"]) == 2
    assert "`--out` must end in" in one_line(capsys)
    rows.assign(age_hours="old").to_parquet(tmp_path / "bad.parquet")
    assert main(["predict", run, str(tmp_path / "bad.parquet"), "--out", out]) == 2
    assert "--on-error drop" in one_line(capsys)
