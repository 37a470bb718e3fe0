"""Imports run one way, as ARCHITECTURE.md says, and a plain install imports nothing it lacks."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tinker_guard

PACKAGE = Path(tinker_guard.__file__).parent

# From the bottom to the top; a module may import those before it.
ORDER = [
    "_version",
    "imports",
    "children",
    "running",
    "sdks",
    "verdict",
    "settings",
    "single_flight",
    "route",
    "logs",
    "closing",
    "peek",
    "line",
    "attributes",
    "operations",
    "observers",
    "metrics",
    "spans",
    "telemetry",
    "export",
    "control_plane",
    "probing",
    "waiting",
    "warmup",
    "recovery",
    "transport",
    "hooks",
    "auto",
    "instrumentor",
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
    assert {path.stem for path in PACKAGE.glob("*.py")} == {*ORDER, "__main__", "cli", "commands"}


def test_only_the_modules_of_telemetry_and_the_instrumentor_know_opentelemetry() -> None:
    knowing = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if "from opentelemetry" in path.read_text() or "import opentelemetry" in path.read_text()
    }
    assert knowing == {
        *("logs", "observers", "metrics", "spans", "telemetry", "export"),
        "instrumentor",
    }


def test_the_gateway_knows_nothing_of_the_guard() -> None:
    for path in (PACKAGE / "gateway").glob("*.py"):
        assert "tinker_guard" not in {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.level == 0
            for name in [node.module or ""]
        }


def test_every_public_name_can_be_had() -> None:
    assert set(tinker_guard.__all__) == set(tinker_guard._MODULE_OF)
    for name, module in tinker_guard._MODULE_OF.items():
        value = getattr(tinker_guard, name)
        assert value is getattr(import_module(f"tinker_guard.{module}"), name)
    assert set(tinker_guard.__all__) <= set(dir(tinker_guard))
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = tinker_guard.no_such_name


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
