"""Ctrl-C on a training of the command line, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import keras_ranking as kr
from keras_ranking.training import read_checkpoint
from tests.commands.shell import ROOT


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    log = kr.data.simulate(members=10, days=2, seed=0)
    log.events.to_parquet(tmp_path / "log.parquet")
    log.schema.save(tmp_path / "schema.json")
    small = [part for option in ("history_features=[]", "hidden=[8]", "cross_layers=1") for part in ("--set", option)]
    data = ["--data", f"parquet:{tmp_path / 'log.parquet'}", "--schema", str(tmp_path / "schema.json")]
    command = ["-m", "keras_ranking.cli", "train", "--model", "LiRank", *data, "--out", str(tmp_path / "run"), *small]
    command += ["--epochs", "100000", "--tensorboard", str(tmp_path / "board"), "--backend", "torch", "--quiet"]

    def as_in_a_terminal() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background has Ctrl-C ignored

    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    try:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("board/train/*")) and time.monotonic() < end and process.poll() is None:
            time.sleep(0.1)  # until an epoch has ended
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "stopping after this step, with a checkpoint" in said and f"--resume {tmp_path / 'run'}" in said
    about = read_checkpoint(tmp_path / "run").about
    assert not about["finished"] and about["progress"]["step"] > 0
