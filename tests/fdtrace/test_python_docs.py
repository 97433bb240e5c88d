"""The lines of docs/python.md, and the notebook, as their readers run them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import fdtrace

DOCS = Path(__file__).parents[2] / "docs"


def test_the_lines_of_the_page_run(trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(trace, tmp_path / "t.duckdb")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "python.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 6
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert isinstance(names["runs"], fdtrace.Runs)


def test_the_page_names_each_function() -> None:
    text = (DOCS / "python.md").read_text()
    for name in ("open", "replay", "simulate", "FdtraceError", "TraceError", "UsageError"):
        assert re.search(rf"\b{name}\b", text), name


@pytest.mark.timeout(1800)
@pytest.mark.xdist_group("paddle")
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("paddle", reason="the sandbox engine needs Paddle: pip install 'fdtrace[sandbox]'")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    notebook = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without output"
    client = nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert any("tokens ran" in output.get("text", "") for output in outputs)
