"""What all tests share: a quiet Keras on the chosen backend, fixed seeds, and the way to the real logs."""

from __future__ import annotations

import gc
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import numpy as np
import pytest

from tests import preloaded

pytest_plugins = ("tests.tiers",)

ROOT = Path(__file__).resolve().parents[1]

# Folders of numpy and pandas, or that bring their own backend in a process of their own: run once, not per backend. The files beside
# the folders are of the package as a whole, and run once too.
ONE_BACKEND = ("commands", "data", "serving")

# A traced graph is a million small objects that stay: to look through them all again and again takes a twentieth of a run.
gc.set_threshold(200_000, 50, 100)

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("repeatable")


preloaded.begin()


def pytest_unconfigure() -> None:
    """What is left needs no look through before the process ends: with TensorFlow's graphs it took ten seconds."""
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = ROOT / "tests"
    for item in items:
        place = item.path.relative_to(tests).parts if item.path.is_relative_to(tests) else ("",)
        if (len(place) == 1 or place[0] in ONE_BACKEND) and not (
            item.get_closest_marker("quickest") or item.get_closest_marker("every_backend")
        ):
            item.add_marker(pytest.mark.one_backend)
    # Files with many slow tests first, so that no process is left with one of them at the end.
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_report_header() -> str:
    return f"keras backend: {os.environ['KERAS_BACKEND']}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Repeat what `tools/test` did before this run, so that a long log ends with the whole picture."""
    steps = [line.split("\t") for line in os.environ.get("KR_TEST_STEPS", "").splitlines()]
    if not steps:
        return
    terminalreporter.section("steps before this one")
    for name, result in steps:
        failed = result.startswith("FAILED")
        terminalreporter.line(f"{name:<22} {result}", red=failed, green=not failed)


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same random numbers in each test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - keras's augmentation and sklearn read the global state
    if "keras" in sys.modules:
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture(scope="session", autouse=True)
def quick_export_workers() -> Iterator[None]:
    """The process that an export starts is a fork of one that has imported the backend; tests of the command line start it anew."""
    from keras_ranking.serving.checking import worker_process

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process, "subprocess", preloaded.QUICK)
        yield


@pytest.fixture(scope="module")
def quick_calls(pytestconfig: pytest.Config) -> Iterator[None]:
    """On JAX a plain run compiles each call of a whole model; before a release it is called as a user calls it, operation by operation."""
    with pytest.MonkeyPatch.context() as patch:
        if os.environ["KERAS_BACKEND"] == "jax" and not pytestconfig.getoption("--all"):
            from tests.compiling import whole_models_compiled

            whole_models_compiled(patch)
        yield


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real logs (EB-NeRD, KuaiRand, MovieLens, ...): the environment variable KR_DATA, or ../shared/data."""
    folder = Path(os.environ.get("KR_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "ebnerd_behaviors.csv.gz").is_file():
        pytest.skip(f"no real logs in {folder}; set KR_DATA to their folder")
    return folder
