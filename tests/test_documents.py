"""What documents tell a reader to run: blocks of Python run, command lines can be parsed."""

from __future__ import annotations

import asyncio
import re
import shlex
import tomllib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

import tinker_guard
from examples.kubernetes_control_plane import KubernetesControlPlane
from testkit.clients import transport_of
from tests import ROOT
from tests.end_to_end import sdk
from tests.end_to_end.leftovers import LEFT_BEHIND
from tinker_guard import ControlPlane, GuardTransport, RouteControlPlane, install_guard
from tinker_guard.cli.app import build_parser
from tinker_guard.gateway.train import train_five_steps

if TYPE_CHECKING:
    from pathlib import Path

    from sybil.example import Example

pytestmark = LEFT_BEHIND

DOCUMENTS: Final = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "dashboards/*.md", "changelog.d/*.md", ".github/*.md")
    for path in ROOT.glob(pattern)
)
BLOCKS: Final = {
    f"{path.relative_to(ROOT)}-{number}": block
    for path in DOCUMENTS
    for number, block in enumerate(Document.parse(str(path), PythonCodeBlockParser()).examples())
}
LINES: Final = sorted({line for path in DOCUMENTS for line in path.read_text().splitlines()})


def train(base_url: str, api_key: str) -> None:
    """Five guarded steps, as a reader's own loop."""
    install_guard()
    gateway: Any = SimpleNamespace(
        base_url=base_url, api_key=api_key, fault=tinker_guard.FAULTS["none"]
    )
    with sdk.connected(gateway) as service:
        train_five_steps(service)


class Ray:
    """Calls what a worker would call first."""

    def init(self, runtime_env: dict[str, Any]) -> None:
        hook = runtime_env["worker_process_setup_hook"]
        if isinstance(hook, str):
            module, _, name = hook.rpartition(".")
            assert module == "tinker_guard"
            hook = getattr(tinker_guard, name)
        hook()


class Cluster:
    async def state_of(self, job: str) -> str:
        return f"JOB_STATE_OF_{job}"


class Actor:
    @classmethod
    def options(cls, runtime_env: dict[str, Any]) -> type[Actor]:
        tinker_guard.GuardSettings(
            **{
                name.removeprefix("TINKER_GUARD_").lower(): value
                for name, value in runtime_env["env_vars"].items()
            }
        )
        return cls

    @classmethod
    def remote(cls) -> None:
        pass


class MyControlPlane:
    async def job_state(self, account: str, job: str, **_: Any) -> str:
        return "JOB_STATE_RUNNING"


SUPPLIED: Final = {
    **{name: getattr(tinker_guard, name) for name in dir(tinker_guard)},
    "httpx": httpx,
    "logging": __import__("logging"),
    "my_cluster": Cluster(),
    "ray": Ray(),
    "train": train,
    "KubernetesControlPlane": KubernetesControlPlane,
    "MyControlPlane": MyControlPlane,
    "Trainer": Actor,
}
"""What a block takes from the sentences around it, and from the program that it is part of."""


@pytest.mark.parametrize("block", BLOCKS.values(), ids=list(BLOCKS))
def test_a_block_of_python_runs(block: Example) -> None:
    block.namespace.clear()
    block.namespace.update(SUPPLIED)
    block.evaluate()
    if "install_guard(" in block.parsed or "ray.init(" in block.parsed:
        client = sdk.client(base_url="https://gateway.test", api_key="tml-key")
        assert isinstance(transport_of(client), GuardTransport)
    if "class MyControlPlane" in block.parsed:
        plane = block.namespace["MyControlPlane"]()
        how: dict[str, Any] = {"origin": "https://host", "credentials": {}}
        if isinstance(plane, ControlPlane):
            asked = plane.job_state("account", "job-1", **how)
        else:
            assert isinstance(plane, RouteControlPlane)
            asked = plane.route_state({"tenant": "t", "model": "job-1"}, **how)
        assert asyncio.run(asked) == "JOB_STATE_OF_job-1"


def test_the_documents_have_blocks_and_commands() -> None:
    assert len(BLOCKS) >= 5
    assert len(COMMANDS) >= 5


COMMANDS: Final = [line for line in LINES if line.startswith("tinker-guard ")]


@pytest.mark.parametrize("line", COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_line_can_be_parsed(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spans.jsonl").touch()
    _, *arguments = shlex.split(re.split(r"&&|\|", line)[0], comments=True)
    if arguments[0] == "run":
        # What follows is another program's.
        assert arguments[1:]
    else:
        build_parser().parse_args(arguments)


def test_targets_of_make_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = {*re.findall(r"^([\w-]+):", makefile, re.MULTILINE)}
    tasks = re.search(r"^TASKS := (.*)$", makefile, re.MULTILINE)
    assert tasks is not None
    targets |= set(tasks[1].split())
    named = {name for line in LINES for name in re.findall(r"`make ([a-z][\w-]*)", line)}
    named |= {name for line in LINES for name in re.findall(r"^make ([a-z][\w-]*)  ", line)}
    assert named <= targets
    assert targets - {"debian-packages", "help"} <= named | {"clean"}


def test_extras_are_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in LINES:
        for extras in re.findall(r"tinker-guard\[([\w,-]+)\]", line):
            assert set(extras.split(",")) <= set(project["optional-dependencies"]), line


def test_what_is_tested_is_what_is_named() -> None:
    """The same Pythons and the same commands, wherever they are written down."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    pythons = re.findall(r"Programming Language :: Python :: (3\.\d+)", pyproject)
    found = re.search(r"^PYTHONS.* = \((.*)\)$", (ROOT / "noxfile.py").read_text(), re.MULTILINE)
    assert found is not None
    assert re.findall(r'"([\d.]+)"', found[1]) == pythons
    listed = re.search(r"python: \[(.*)\]", workflow)
    assert listed is not None
    assert re.findall(r'"([\d.]+)"', listed[1]) == pythons
    tasks = re.search(r"task: \[(.*)\]", workflow)
    assert tasks is not None
    run = re.findall(r"^make (.*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    # Some of a task's releases alone are a part of the task.
    run = [command.partition(" ONLY=")[0] for command in run]
    assert set(run) <= {"test", *tasks[1].split(", ")}
