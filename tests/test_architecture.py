"""Imports run one way, as ARCHITECTURE.md says, and a plain install imports nothing it lacks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tinker_guard

PACKAGE = Path(tinker_guard.__file__).parent

# From the bottom to the top; a module may import those before it.
ORDER = [
    "_version",
    "verdict",
    "settings",
    "single_flight",
    "route",
    "telemetry",
    "peek",
    "line",
    "control_plane",
    "probing",
    "waiting",
    "warmup",
    "recovery",
    "transport",
    "hooks",
    "__init__",
]


def imported(module: str) -> set[str]:
    """The package's own modules that a module imports, those for type checkers alone included."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tinker_guard"):
            below = (node.module or "").removeprefix("tinker_guard").removeprefix(".")
            names |= {below} if below else {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    assert imported(module) <= set(ORDER[: ORDER.index(module)])


def test_every_module_of_the_heart_has_its_place() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "cli"}


def test_only_telemetry_and_the_instrumentor_know_opentelemetry() -> None:
    knowing = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if "from opentelemetry" in path.read_text() or "import opentelemetry" in path.read_text()
    }
    assert knowing == {"telemetry", "hooks"}


def test_the_gateway_knows_nothing_of_the_guard() -> None:
    for path in (PACKAGE / "gateway").glob("*.py"):
        assert "tinker_guard" not in {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.level == 0
            for name in [node.module or ""]
        }


def test_a_plain_install_imports_without_the_extras() -> None:
    """Neither the SDKs nor what only the demo, exporters and tests need."""
    extras = ["tinker", "numpy", "starlette", "uvicorn", "typer", "rich", "opentelemetry.sdk"]
    program = (
        "import sys\n"
        f"for name in {extras!r}: sys.modules[name] = None\n"
        "import tinker_guard\n"
        "tinker_guard.GuardTransport(__import__('httpx').AsyncHTTPTransport())\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
