"""The public names, what a plain install imports, and the tree in ARCHITECTURE.md.

That imports run one way is checked by `make check`, with the contracts in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

import tinker_guard
from testkit.cli import python
from tests import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_every_public_name_can_be_had() -> None:
    for name in dir(tinker_guard):
        value = getattr(tinker_guard, name)
        if hasattr(value, "__module__"):
            assert value.__module__.startswith("tinker_guard."), name
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = tinker_guard.no_such_name


@pytest.mark.parametrize(
    ("name", "lacking", "extra"),
    [
        ("LocalGateway", "uvicorn", "demo"),
        ("TinkerGuardInstrumentor", "opentelemetry.instrumentation", "instrument"),
    ],
)
def test_a_public_name_names_the_extra_that_it_needs(name: str, lacking: str, extra: str) -> None:
    program = f"import sys; sys.modules[{lacking!r}] = None; from tinker_guard import {name}"
    done = python("-c", program)
    assert done.returncode == 1
    assert "ModuleNotFoundError: " in done.stderr
    assert done.stderr.endswith(f"{name} needs: pip install 'tinker-guard[{extra}]'\n")


def test_installing_imports_nothing_that_only_requests_or_mistakes_need() -> None:
    program = (
        "import sys\n"
        "import tinker_guard.hooks\n"
        "names = {name.partition('.')[0] for name in sys.modules}\n"
        "assert not names & {'opentelemetry', 'tenacity', 'packaging', 'difflib'}\n"
        "assert 'tinker_guard.transport' not in sys.modules\n"
    )
    assert python("-c", program).returncode == 0


def test_a_plain_install_imports_without_the_extras() -> None:
    """Neither the SDKs nor what only the demo, exporters and tests need."""
    extras = ["tinker", "numpy", "uvicorn", "typer", "rich"]
    extras += ["opentelemetry.sdk", "opentelemetry.instrumentation", "opentelemetry.semconv"]
    program = (
        "import sys\n"
        f"for name in {extras!r}: sys.modules[name] = None\n"
        "import tinker_guard\n"
        "tinker_guard.GuardTransport(__import__('httpx').AsyncHTTPTransport())\n"
        "from tinker_guard.install.unattended import install_when_needed; install_when_needed()\n"
    )
    assert python("-c", program).returncode == 0


def tree_in_the_text() -> set[str]:
    """Each folder and module that ARCHITECTURE.md draws, as a path."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    (block,) = re.findall(r"^## Folders\n.*?^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found: list[str] = []
    above: list[str] = []
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders = above[:depth]
        name = line.split()[0]
        if name.endswith("/"):
            above = [*folders, name]
            found.append("".join(above))
        else:
            # A module with a description, or a list of modules.
            names = [name] if "  " in line.strip() else re.split(r",\s*", line.strip().strip(","))
            found += ["".join([*folders, one]) for one in names]
    assert len(found) == len(set(found))
    return set(found)


def test_the_tree_in_architecture_is_the_tree_on_disk() -> None:
    modules = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tinker_guard").rglob("*.py")
        if path.name != "__init__.py" or path.parent == ROOT / "tinker_guard"
    }
    made = {"dist", "mutants", "site"}
    folders = {
        f"{path.relative_to(ROOT)}/"
        for top in ROOT.glob("[a-z]*/")
        if top.name not in made and not top.name.endswith(".egg-info")
        for path in (top, *top.rglob("*/"))
        if top.name in ("tinker_guard", "proof") or path == top
        if "__pycache__" not in path.parts and path.is_dir()
    }
    assert tree_in_the_text() == modules | folders


PRIVATE = re.compile("_[a-zA-Z]")
_REACHES = {"setattr", "getattr", "delattr", "hasattr", "patch", "object"}


def private_names_in(path: Path) -> set[str]:
    """Private names of others that a file imports, or names in a string to read or set them.

    Ruff's SLF001 sees the rest.
    """
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names if PRIVATE.match(alias.name)}
        elif isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            for argument in node.args[:2]:
                if name in _REACHES and isinstance(argument, ast.Constant):
                    last = str(argument.value).rpartition(".")[2]
                    found |= {last} if PRIVATE.match(last) else set()
    return found


def test_tests_reach_for_no_private_names(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from a import _b\nmonkeypatch.setattr(c, '_d', 1)\nmonkeypatch.setattr('e.f._G.h', 1)\n"
        "mock.patch('i._j')\ngetattr(k, '_l')\nself._m = 1\nfrom o import p as _p\n"
    )
    assert private_names_in(tmp_path / "bad.py") == {"_b", "_d", "_j", "_l"}
    known = {"_unpickle_sampling_client"}  # of the SDK: whether its release has it
    for place in ("tests", "testkit"):
        for path in (ROOT / place).rglob("*.py"):
            assert private_names_in(path) <= known, path
