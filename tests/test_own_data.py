"""The guide "Your own data from zero", command by command, on a shop's log as it comes out of a warehouse."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import keras_ranking as kr
from keras_ranking.cli import main
from tests.shop import shop_log, write_request

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "guides" / "own-data.md"
MOST_COMMANDS = 8


def commands() -> list[list[str]]:
    """The lines of the guide that begin with `$ keras-ranking`, without this word."""
    lines = re.findall(r"^\$ keras-ranking (.*)$", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as made:
            if made.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"no server on port {port}")


def test_the_guide_needs_few_commands() -> None:
    assert 5 < len(commands()) <= MOST_COMMANDS


@pytest.mark.slow
@pytest.mark.quickest
def test_from_a_parquet_to_a_served_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    log = shop_log()
    log.to_parquet("shop.parquet", index=False)
    write_request(log, Path("request.json"))
    ports = {"8500": str(free_port()), "8501": str(free_port())}
    said: dict[str, str] = {}
    server = None
    try:
        for words in commands():
            words = [re.sub("8500|8501", lambda found: ports[found[0]], word) for word in words]
            if words[-1] == "&":
                environment = {**os.environ, "PYTHONPATH": str(ROOT)}
                server = subprocess.Popen([sys.executable, "-m", "keras_ranking.cli", *words[:-1]], env=environment)
                wait_for(int(ports["8500"]), server)
                continue
            assert main(words) == 0, capsys.readouterr().err
            said[words[0]] = "".join(capsys.readouterr())
    finally:
        if server is not None:
            server.terminate()
            server.wait(timeout=30)
    tail = log["bought"].isna()
    assert "the input is 'price_eur'" in said["schema"] and "fractions of a second" in said["schema"]
    assert f"{int(tail.sum())} left out: column 'seconds_viewed' must not be missing" in said["evaluate"]
    assert re.search(r"\d+ left out: column 'list_id' has a row that repeats an earlier row exactly", said["train"])
    assert float(re.search(r"^auc +(\S+)", said["evaluate"], flags=re.MULTILINE)[1]) > 0.55  # type: ignore[index]
    assert "AUC, all rows" in said["report"]
    page = Path("report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 5 and "price" in page
    scored = pd.read_parquet("scores.parquet")
    assert len(scored) == len(log) and scored["predicted_bought"].notna().to_numpy()[tail].all()
    pd.testing.assert_series_equal(scored["product_id"], log["product_id"])
    assert len(said["score"].splitlines()) >= 5 and "P-" in said["score"]
    # The server's scores are those of the model.
    request = pd.read_json("request.json", typ="series", dtype=False)
    model = kr.models.load("runs/shop")
    candidates, past = pd.DataFrame(request["candidates"]), pd.DataFrame(request["history"])
    rows = candidates.assign(customer_id="me", shown_at=int(request["time"]))
    own = kr.training.predict(model, rows, history=past.assign(customer_id="me"))["bought"]
    for line in said["score"].splitlines()[-3:]:
        _, candidate, _, score = line.split()
        np.testing.assert_allclose(float(score), own.iloc[int(candidate)], atol=1e-5)
