"""What a plain run keeps of the cases of a test: each value of each axis; torch and `--all` keep everything."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiers import covering, spread

ROOT = Path(__file__).resolve().parents[1]

SIDES = ["left", "right", "both"]
SUITE = f"""
import pytest

SIDES = {SIDES}

@pytest.fixture(params=["a", "b"])
def model(request):
    return request.param

@pytest.mark.parametrize("shift", [1, 2, 3])
def test_one_axis(shift): pass

@pytest.mark.parametrize("side", SIDES)
def test_with_a_fixture(model, side): pass

@pytest.mark.parametrize("x, y", [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_tied(x, y): pass

@pytest.mark.parametrize("x, y", [(1, 1), (1, 2), (2, 1)])
@pytest.mark.parametrize("side", SIDES)
def test_tied_and_one_more(side, x, y): pass

@pytest.mark.every_case
@pytest.mark.parametrize("side", SIDES)
def test_every_case(model, side): pass

@pytest.mark.one_backend
@pytest.mark.parametrize("side", SIDES)
def test_runs_once(model, side): pass

@pytest.mark.few(2)
@pytest.mark.parametrize("option", range(7))
def test_options(option): pass

@pytest.mark.parametrize("way", ["short", pytest.param("long", marks=pytest.mark.release)])
def test_ways(way): pass

@pytest.mark.release
def test_variation(): pass

@pytest.mark.release("jax", "tensorflow")
def test_slow_there(): pass
"""

Run = Callable[..., tuple[set[str], str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the tests above on a backend: the cases that passed, and what it printed."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "test_suite.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    few(n)\n    release\n    every_case\n    one_backend\n")

    def once(backend: str, *arguments: str) -> tuple[set[str], str]:
        environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
        for name in ("PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS"):
            environment.pop(name, None)
        command = [sys.executable, "-m", "pytest", "-p", "tests.tiers", "-p", "no:cacheprovider", "-v", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
        return set(re.findall(r"test_suite\.py::(\S+)", done.stdout)), done.stdout

    return once


def cases(names: set[str], test: str) -> set[str]:
    return {name.partition("[")[2].rstrip("]") for name in names if name.partition("[")[0] == test}


@pytest.mark.parametrize("sizes", [(2, 2), (3, 4), (5, 2, 3), (1, 4), (4, 4, 4)], ids=str)
def test_each_value_of_each_axis_is_kept_by_few_cases(sizes: tuple[int, ...]) -> None:
    product = list(itertools.product(*map(range, sizes)))
    kept = [product[i] for i in covering(product)]
    assert [set(values) for values in zip(*kept, strict=True)] == [set(range(size)) for size in sizes]
    assert len(kept) == max(sizes)
    assert covering(product) == covering(list(product))


def test_what_is_no_full_product_is_covered_too() -> None:
    assert covering([(0, 0), (1, 1), (2, 0), (2, 2)]) == [0, 1, 3]
    assert covering([(0, 0)]) == [0]
    assert covering([]) == []


def test_control_the_first_case_of_each_value_of_one_axis_misses_another() -> None:
    product = list(itertools.product(range(3), range(3)))
    naive = [product[i * 3] for i in range(3)]
    assert {case[1] for case in naive} != {0, 1, 2}


def test_spread() -> None:
    assert spread(7, 2) == [0, 6]
    assert spread(7, 3) == [0, 3, 6]
    assert spread(9, 1) == [0]
    assert spread(2, 3) == [0, 1]


@pytest.mark.parametrize(("backend", "processes"), [("tensorflow", ()), ("jax", ("-n", "2"))], ids=["tensorflow", "jax in two processes"])
def test_a_plain_run_covers_the_axes(run: Run, backend: str, processes: tuple[str, ...]) -> None:
    names, printed = run(backend, *processes)
    assert cases(names, "test_one_axis") == {"1", "2", "3"}
    assert len(cases(names, "test_with_a_fixture")) == 3
    assert set("-".join(cases(names, "test_with_a_fixture")).split("-")) == {"a", "b", *SIDES}
    assert len(cases(names, "test_tied")) == 4
    assert len(cases(names, "test_tied_and_one_more")) == 3
    tied = " ".join(cases(names, "test_tied_and_one_more"))
    assert set(re.findall(r"[a-z]+|\d-\d", tied)) == {*SIDES, "1-1", "1-2", "2-1"}
    assert len(cases(names, "test_every_case")) == len(cases(names, "test_runs_once")) == 6
    assert cases(names, "test_options") == {"0", "6"}
    assert cases(names, "test_ways") == {"short"}
    assert not {"test_variation", "test_slow_there"} & names
    assert "17 cases are left to tools/test --all" in printed


def test_torch_takes_all_but_what_is_left_to_a_release(run: Run) -> None:
    names, printed = run("torch")
    assert len(cases(names, "test_with_a_fixture")) == 6
    assert len(cases(names, "test_tied_and_one_more")) == 9
    assert len(cases(names, "test_options")) == 7
    assert cases(names, "test_ways") == {"short"} and "test_slow_there" in names
    assert "2 cases are left to tools/test --all" in printed


@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_all_takes_every_case(run: Run, backend: str) -> None:
    names, printed = run(backend, "--all")
    assert len(names) == 3 + 6 + 4 + 9 + 6 + 6 + 7 + 2 + 2
    assert "are left to" not in printed


def test_a_test_that_is_named_runs_in_all_its_cases(run: Run) -> None:
    names, printed = run("jax", "test_suite.py::test_with_a_fixture", "test_suite.py::test_variation", "test_suite.py::test_options[3]")
    assert len(cases(names, "test_with_a_fixture")) == 6
    assert {"test_variation", "test_options[3]"} <= names
    assert "left to" not in printed


def test_files_with_most_slow_tests_come_first(tmp_path: Path) -> None:
    quick, slow = "def test_a(): pass\n", "import pytest\n@pytest.mark.slow\ndef test_b(): pass\n"
    for name, text in (("test_1", quick), ("test_2", slow), ("test_3", quick), ("test_4", slow + slow.replace("test_b", "test_c"))):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "tests.tiers", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    files = [line.split("::")[0] for line in done.stdout.splitlines() if "::" in line]
    assert files == ["test_4.py", "test_4.py", "test_2.py", "test_1.py", "test_3.py"]
