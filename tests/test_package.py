"""The package as a whole: one backend is enough, everything public is documented, versions are pinned."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest

import keras_ranking as kr
from tests.public_names import ROOMS, public_objects

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_ranking"
FILES = sorted(PACKAGE.rglob("*.py"))
BACKENDS = ("tensorflow", "jax", "torch")
SERVER = {"grpc", "grpc_health", "tensorflow_serving", "aiohttp", "prometheus_client", "orjson", "google"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_bare_assert(path: Path) -> None:
    lines = [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]
    assert lines == []


BLOCKED = """
import sys
from importlib.machinery import PathFinder

find = PathFinder.find_spec

# As if not installed: a check whether a package is there, as torch makes it, finds none, without an error.
PathFinder.find_spec = classmethod(lambda cls, name, *args: None if name.split(".")[0] in {blocked!r} else find(name, *args))
"""


def run_without(blocked: set[str], program: str, backend: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    if not backend:
        del environment["KERAS_BACKEND"]
    code = textwrap.dedent(BLOCKED).format(blocked=blocked) + textwrap.dedent(program)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300)


def test_the_package_and_its_schema_need_no_backend() -> None:
    program = """
        import keras_ranking as kr
        schema = kr.Schema(member="m", time="t", request="r", features=[kr.Id("item")], tasks=["click"])
        schema.features[0].encode([1, 2])
        print(kr.__version__, len(dir(kr)))
    """
    done = run_without({"keras", *BACKENDS, *SERVER}, program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == kr.__version__


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_backend_is_enough(backend: str) -> None:
    """Every room and every public name loads with the other two backends (and the server's packages) absent."""
    others = set(BACKENDS) - {backend}
    program = f"""
        import importlib
        import keras_ranking as kr
        for room in {ROOMS!r}:
            module = importlib.import_module("keras_ranking." + room)
            for name in getattr(module, "__all__", ()):
                try:
                    getattr(module, name)
                except ModuleNotFoundError as error:  # the server alone needs more, and says what
                    assert room == "serving" and "pip install keras-ranking[serving]" in str(error), error
        import keras_ranking.cli
        import keras
        print(keras.backend.backend())
    """
    absent = SERVER - {"google"} if backend == "tensorflow" else SERVER  # TensorFlow itself stands on protobuf
    done = run_without(others | absent, program, backend)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [backend]


def test_control_blocking_blocks() -> None:
    done = run_without({"jax"}, "import jax")
    assert done.returncode != 0
    assert "No module named 'jax'" in done.stderr


def test_everything_public_has_a_docstring() -> None:
    def own(value: object) -> str:
        # a docstring inherited from keras.layers.Layer says nothing about the subclass
        return str((vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or "").strip()

    undocumented = [name for name, value in public_objects() if not own(value)]
    undocumented += [
        f"{name}.{attribute}"
        for name, value in public_objects()
        if inspect.isclass(value)
        for attribute, member in vars(value).items()
        if not attribute.startswith("_") and inspect.isfunction(member) and not member.__doc__
        # what overrides a method of a base (`call`, `get_config`, `on_epoch_end`) is described there, or by the class
        if not any(hasattr(base, attribute) for base in value.__mro__[1:])
    ]
    assert undocumented == []


def test_rooms_export_by_name() -> None:
    without = [room for room in ROOMS if not hasattr(importlib.import_module(f"keras_ranking.{room}"), "__all__")]
    assert without == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'modles'"):
        kr.modles  # noqa: B018


def requirement_name(line: str) -> str:
    return re.split(r"[\[<>=!~; ]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")


def test_constraints_hold_every_requirement() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    for extra in config["options.extras_require"].values():
        lines += extra.splitlines()
    wanted = {requirement_name(line) for line in lines if line.strip() and not line.startswith("#")} - {"keras-ranking"}
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    exact = re.compile(r'[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+(; python_full_version (<|>=) "[0-9.]+")?')
    assert all(exact.fullmatch(pin) for pin in pins), "exact public versions only, by Python's version where they must be"
    assert wanted <= {requirement_name(pin) for pin in pins}


def test_version_is_one() -> None:
    try:
        version = installed_version("keras-ranking")
    except ModuleNotFoundError:
        pytest.skip("the package is on the path but not installed; tools/test installs it")
    assert version == kr.__version__
