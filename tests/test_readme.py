"""The README's lines from a DataFrame to served scores, run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import preloaded

ROOT = Path(__file__).resolve().parents[1]
# A plain run goes the same way from the command line: tests/commands/test_steps.py.
pytestmark = [pytest.mark.slow, pytest.mark.one_backend, pytest.mark.release]

BEFORE = """
import numpy as np, pandas as pd
rng = np.random.default_rng(0)
requests, shown = 300, 6
size = requests * shown
request = np.repeat(np.arange(requests), shown)
events = pd.DataFrame({
    "member_id": np.repeat(rng.integers(0, 20, requests), shown),
    "shown_at": np.repeat(np.sort(rng.choice(864_000, requests, replace=False)) + 1_780_000_000, shown),
    "request_id": request,
    "rank": np.tile(np.arange(shown) + 1, requests),
    "item_id": [f"i{item}" for item in rng.permuted(np.tile(np.arange(50), (requests, 1)), axis=1)[:, :shown].ravel()],
    "age_hours": rng.gamma(2.0, 3.0, size),
    "ctr": rng.uniform(0.0, 0.3, size),
    "click": rng.integers(0, 2, size),
    "dwell_seconds": rng.gamma(1.0, 5.0, size),
    "split": np.where(request < 200, "train", "validation"),
})
past_events = events[events.member_id == 3].head(12)
candidates = events[["item_id", "age_hours", "ctr"]].tail(6)
"""
AFTER = """
assert len(scores) == 6 and np.isfinite(np.asarray(scores, dtype="float64")).all(), scores
"""


def test_the_example_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    # The default ports may be taken where tests run.
    code, client = re.subn(r'"127\.0\.0\.1:8500"', 'f"127.0.0.1:{server.grpc_port}"', code)
    code, server = re.subn(r'serve\("saved_models/cadet"\)', 'serve("saved_models/cadet", rest_port=0, grpc_port=0)', code)
    assert client == server == 1
    done = preloaded.run(["-c", BEFORE + code + AFTER], "tensorflow", {"PYTHONPATH": str(ROOT)}, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (tmp_path / "saved_models" / "cadet" / "1" / "saved_model.pb").exists()
