"""Every notebook runs from top to bottom, in its small form: the first as a newcomer runs it, the others where they are quickest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import preloaded

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


PLAIN = ("ligr",)  # of a plain run; before a release all run


def test_there_are_notebooks_and_each_is_stored_executed() -> None:
    import nbformat

    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        counts = [cell.execution_count for cell in cells]
        assert counts == list(range(1, len(cells) + 1)), f"{path.name} is not stored as one run from top to bottom: {counts}"


# As a kernel runs the cells, in a fork of a process that has imported torch: small training runs are quickest there.
CELLS = """
import sys, nbformat
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if cell.cell_type == "code":
        shell.run_cell(cell.source, store_history=True).raise_error()
"""


RUNS = [path if path.stem in PLAIN else pytest.param(path, marks=pytest.mark.release) for path in NOTEBOOKS]


@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("KR_SMALL", "1")
    if path.stem == "quickstart":  # in a kernel of Jupyter, on TensorFlow
        monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    else:
        done = preloaded.run(["-c", CELLS, str(path)], "torch", {"PYTHONPATH": str(preloaded.ROOT)}, tmp_path)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.release
@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("backend", ["jax", "tensorflow"])
def test_a_model_of_ones_own_on_the_other_backends(backend: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KR_SMALL", "1")
    path = NOTEBOOKS[0].with_name("own_keras_model.ipynb")
    done = preloaded.run(["-c", CELLS, str(path)], backend, {"PYTHONPATH": str(preloaded.ROOT)}, tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert f"backend: {backend}" in done.stdout
