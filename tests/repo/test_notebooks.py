"""A notebook and its twin hold the same cells, and every notebook runs from top to bottom in smoke form."""

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.repo.sources import ROOT

TWINS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


def cells(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_notebooks_and_each_has_its_twin():
    names = {path.stem for path in TWINS}
    assert names and names == {path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("script", TWINS, ids=lambda path: path.stem)
def test_twins_are_in_step(script):
    """`jupytext --sync docs/notebooks/*.py` mends a failure."""
    assert cells(nbformat.read(script.with_suffix(".ipynb"), as_version=4)) == cells(jupytext.read(script))


@pytest.mark.notebook
@pytest.mark.parametrize("script", TWINS, ids=lambda path: path.stem)
def test_notebook_runs(script, tmp_path, monkeypatch):
    monkeypatch.setenv("SSMJAX_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = jupytext.read(script)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    assert any(output.output_type == "display_data" for cell in notebook.cells for output in cell.get("outputs", []))
