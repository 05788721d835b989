"""Which cases of a test a plain run takes, and which are left to `tools/test --all`.

A plain run, on every push, keeps every promise on each backend, by fewer cases where many cases make one promise:

- torch, the quickest backend, takes all cases. So does each test that runs on one backend only.
- On TensorFlow and JAX, a test parametrised along two axes or more takes cases in which each value of each axis occurs: `covering`.
  A decorator, or the `params` of a fixture, is one axis. The mark `every_case` keeps all combinations.
- `few(n)` marks a test with one long axis, of options of one model or layer, for which n cases show that the backend does its part.
- `release` marks a variation of what another test promises already, which runs before a release: on every backend, or, as
  `release("jax")`, on the backends named, where it takes long.

A test that the command line names, as `file.py::test` or `file.py::test[case]`, runs in all its cases.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest

LEFT = pytest.StashKey[int]()
_CHOSEN = {"everything": False}
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")


def covering(cases: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """Positions of a few cases in which each value of each axis occurs that occurs in `cases`; a case has one value for each axis.

    The case with the most values that are missing is taken, the first of equals, until no value is missing. The same cases in the same
    order give the same few.
    """
    pairs = [set(enumerate(case)) for case in cases]
    missing = set().union(*pairs)
    kept = []
    while missing:
        best = max(range(len(pairs)), key=lambda i: (len(pairs[i] & missing), -i))
        kept.append(best)
        missing -= pairs[best]
    return sorted(kept)


def spread(count: int, few: int) -> list[int]:
    """`few` positions of 0 .. count - 1 at equal distances, the first and the last among them."""
    return list(range(count)) if few >= count else sorted({round(i * (count - 1) / max(few - 1, 1)) for i in range(few)})


def axes(item: pytest.Item) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The axes of a parametrised test and the value of this case on each, by identity: names that one decorator gives are one axis."""
    callspec = getattr(item, "callspec", None)
    left = {} if callspec is None else {name: id(value) for name, value in callspec.params.items()}
    found = {}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0] if mark.args else mark.kwargs["argnames"]
        names = tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
        if all(name in left for name in names):
            found[names] = tuple(left.pop(name) for name in names)
    return {**found, **{(name,): (value,) for name, value in left.items()}}


def plain_cases(items: Sequence[pytest.Item], backend: str) -> list[int]:
    """Positions of the cases, of all those of one test function, that a plain run on a backend takes."""
    able = [i for i, item in enumerate(items) if not item.get_closest_marker("skip")]
    if backend == "torch" or not able or any(items[able[0]].get_closest_marker(mark) for mark in ("one_backend", "every_case")):
        return list(range(len(items)))
    places = [axes(items[i]) for i in able]
    few = items[able[0]].get_closest_marker("few")
    if few:
        return [able[i] for i in spread(len(able), few.args[0])]
    if len(places[0]) < 2:
        return list(range(len(items)))
    return [able[i] for i in covering([tuple(place.values()) for place in places])]


def plain(items: Sequence[pytest.Item], named: Sequence[str] = (), backend: str = BACKEND) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """What a plain run takes of the tests, and what it leaves, in their order. `named` has what stands on the command line."""
    functions: dict[str, list[pytest.Item]] = {}
    taken = set()
    for item in items:
        if is_named(item, named):
            taken.add(item.nodeid)
        elif not any(not mark.args or backend in mark.args for mark in item.iter_markers("release")):
            functions.setdefault(item.nodeid.split("[")[0], []).append(item)
    taken |= {cases[i].nodeid for cases in functions.values() for i in plain_cases(cases, backend)}
    return [item for item in items if item.nodeid in taken], [item for item in items if item.nodeid not in taken]


def long_files_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests with the files of most slow tests first, so that no process is left with one of them at the end."""
    slow = Counter(item.nodeid.split("::")[0] for item in items if item.get_closest_marker("slow"))
    return sorted(items, key=lambda item: -slow[item.nodeid.split("::")[0]])


def is_named(item: pytest.Item, named: Sequence[str]) -> bool:
    """Whether the command line has the test or the case itself: `file.py::test_name` or `file.py::test_name[case]`."""
    file, _, name = item.nodeid.partition("::")
    given = [arg.partition("::") for arg in named]
    return any(asked in (name, name.split("[")[0]) and file.endswith(Path(path).name) for path, _, asked in given if asked)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="every case of every test, also those that plain runs leave out (tests/tiers.py)")


def pytest_configure(config: pytest.Config) -> None:
    _CHOSEN["everything"] = config.getoption("--all")


def everything() -> bool:
    """Whether this run takes every case: for what is shorter in a plain one."""
    return _CHOSEN["everything"]


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--all"):
        items[:], left = plain(items, config.args)
        config.stash[LEFT] = len(left)
        config.hook.pytest_deselected(items=left)
    items[:] = long_files_first(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of xdist tells the one that reports
        session.config.workeroutput["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT] = getattr(node, "workeroutput", {}).get("left", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash.get(LEFT, 0)
    if left:
        terminalreporter.line(f"{left:,} case{'s are' if left > 1 else ' is'} left to tools/test --all")
