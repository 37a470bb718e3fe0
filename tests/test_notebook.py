"""The example notebook, executed in a kernel of its own; what it prints is what it shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from testkit.cli import python
from tests import ROOT

if TYPE_CHECKING:
    from pathlib import Path

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"

EXECUTE = """
import sys
import nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
for cell in notebook.cells:
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
nbclient.NotebookClient(notebook, timeout=45, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def printed(path: Path, name: str) -> list[str]:
    """What each cell with code printed to a stream."""
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return [
        "".join(
            line
            for output in cell["outputs"]
            if output.get("name") == name
            for line in output["text"]
        )
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def test_the_notebook_prints_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    executed = tmp_path / "executed.ipynb"
    places = dict.fromkeys(("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"), str(tmp_path))
    ended = python("-c", EXECUTE, NOTEBOOK, executed, **places)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert printed(executed, "stdout") == printed(NOTEBOOK, "stdout")
    told = "".join(printed(executed, "stderr")).splitlines()
    assert told[0].startswith(
        "tinker_guard: routing race: POST /api/v1/retrieve_future waits up to"
    )
    assert told[1].startswith("tinker_guard: job demo/job-1: its route answers after ")
    assert len(told) == 2


def test_the_notebook_was_executed_in_order() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    counts = [cell.get("execution_count") for cell in notebook["cells"] if "outputs" in cell]
    assert counts == list(range(1, len(counts) + 1))
    assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")
    assert "/tmp" not in NOTEBOOK.read_text(encoding="utf-8")
