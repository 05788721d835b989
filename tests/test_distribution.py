"""What is published: a wheel and an sdist are built, and the wheel is imported from an environment that holds nothing else.

The wheel is installed with `--no-deps` into a fresh environment, and a `.pth` file shows it the site-packages of the running one, which
has the dependencies at the tested versions. So no package is downloaded and the test runs without a network; the
place that the package is imported from is checked, so that this checkout cannot stand in for the wheel.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import keras_ranking as kr

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "keras_ranking"
SOURCES = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")} | {"keras_ranking/py.typed"}
pytestmark = [pytest.mark.slow, pytest.mark.one_backend]

IMPORTS = """
import sys, pathlib, importlib
import keras_ranking as kr
place = pathlib.Path(kr.__file__).resolve()
assert place.is_relative_to(sys.prefix), place
for room in ("data", "layers", "losses", "metrics", "models", "ops", "serving", "training"):
    module = importlib.import_module("keras_ranking." + room)
    assert all(getattr(module, name) is not None for name in module.__all__), room
from keras_ranking.cli import build_parser
build_parser()
print(kr.__version__)
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist, built from a copy: setuptools writes build/ and *.egg-info next to the sources, and reads old ones."""
    try:
        version("build")  # not an import: a folder build/ can be imported too
    except PackageNotFoundError:
        pytest.skip("the package build is not installed; tools/test installs it")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("keras_ranking", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=unwanted)
    for name in ("setup.py", "setup.cfg", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt", "ruff.toml"):
        shutil.copy(ROOT / name, copy / name)
    # With the running setuptools: an isolated build environment would download one.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=copy)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def test_the_wheel_holds_every_module_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = {name for name in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in name}
    assert sorted(SOURCES - names) == []
    assert sorted(names - SOURCES) == []


def test_the_sdist_holds_what_the_wheel_needs(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert sorted({*SOURCES, "setup.py", "setup.cfg", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt"} - names) == []


def test_the_sdist_holds_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    with tarfile.open(built[1]) as archive:
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # since 3.11.4
        archive.extractall(tmp_path, **safe)
    folder = next(tmp_path.iterdir())
    missing = [name for name in SOURCES if (folder / name).read_bytes() != (ROOT / name).read_bytes()]
    assert missing == []


def test_the_installed_wheel_is_imported(built: tuple[Path, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    run(sys.executable, "-m", "venv", empty, cwd=tmp_path)
    python = empty / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "--disable-pip-version-check", built[0], cwd=tmp_path)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    assert (own / "keras_ranking" / "py.typed").exists()
    # It comes behind the environment's own site-packages, and .pth files in it, such as an editable install's, are not read.
    (own / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    printed = run(python, "-c", IMPORTS, cwd=tmp_path, PYTHONPATH="", TF_CPP_MIN_LOG_LEVEL="3")
    assert printed.split()[-1] == kr.__version__
    command = run(empty / "bin" / "keras-ranking", "--version", cwd=tmp_path, PYTHONPATH="")
    assert kr.__version__ in command
