"""Every notebook runs from top to bottom, in its small form, in a fresh kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

# The first one as a newcomer runs it, the others where small training runs are quickest: they are for any backend.
BACKENDS = {"quickstart": "tensorflow"}
NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks_and_each_is_stored_executed() -> None:
    import nbformat

    assert NOTEBOOKS
    for path in NOTEBOOKS:
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        counts = [cell.execution_count for cell in cells]
        assert counts == list(range(1, len(cells) + 1)), f"{path.name} is not stored as one run from top to bottom: {counts}"


@pytest.mark.slow
@pytest.mark.one_backend
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("KR_SMALL", "1")
    monkeypatch.setenv("KERAS_BACKEND", BACKENDS.get(path.stem, "torch"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
