"""What a type checker says to a program with mistakes in how it calls the guard."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
from tinker_guard import GuardSettings, GuardTransport, install_guard, status

install_guard(retry_timeout=60, control_plane_api_key="fw-key")
GuardSettings(trace="work", retry_timeout=60)
install_guard(retry_timout=60)
install_guard(retry_timeout="a minute")
GuardSettings(trace="some")
print(status().settings)
"""
MISTAKES = {6: "retry_timout", 7: "retry_timeout", 8: "trace"}


def test_mypy_sees_a_wrong_name_and_a_wrong_type(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    said, errors, code = api.run(
        [
            *("--strict", "--follow-imports", "silent", "--config-file", ""),
            *("--cache-dir", str(ROOT / ".mypy_cache" / "users"), str(program)),
        ]
    )
    assert (code, errors) == (1, "")
    found = dict(re.findall(r"program\.py:(\d+): error: (.*)", said))
    assert {int(line) for line in found} == set(MISTAKES), said
    for line, name in MISTAKES.items():
        assert name in found[str(line)]


def test_pyright_sees_them_too(tmp_path: Path) -> None:
    pyright = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    if pyright is None:
        pytest.skip("needs basedpyright")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]})
    )
    ended = subprocess.run(
        [pyright, "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        cwd=tmp_path,
    )
    found = {
        problem["range"]["start"]["line"] + 1: problem["message"]
        for problem in json.loads(ended.stdout)["generalDiagnostics"]
        if problem["severity"] == "error"
    }
    assert found.keys() == MISTAKES.keys(), found
    for line, name in MISTAKES.items():
        assert name in found[line]
