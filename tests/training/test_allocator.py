"""Freed memory is kept: repeated allocations of an array do not request memory from the system each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from keras_ranking.training import keep_freed_memory

# Without Keras, whose threads would be counted too. An array of 48 MB is above what glibc keeps by default, whatever it has seen.
LOOP = """
import resource, runpy, sys
import numpy as np
if sys.argv[1] == "kept":
    assert runpy.run_path(sys.argv[2])["keep_freed_memory"]()
np.ones(12_000_000, "float32")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(12_000_000, "float32")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.quickest
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is that of Linux")
def test_pages_are_requested_once() -> None:
    module = sys.modules[keep_freed_memory.__module__].__file__
    faults = {}
    for way in ("plain", "kept"):
        done = subprocess.run(
            [sys.executable, "-c", LOOP, way, str(module)], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
        faults[way] = int(done.stdout)
    assert faults["plain"] > 200, "control: by default the pages of every array are requested again"
    assert faults["kept"] < faults["plain"] / 10


@pytest.mark.quickest
def test_other_allocators_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # a C library without glibc's functions, such as musl
    assert keep_freed_memory() is False

    def no_handle(_: None) -> None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")

    monkeypatch.setattr("ctypes.CDLL", no_handle)  # Windows
    assert keep_freed_memory() is False
