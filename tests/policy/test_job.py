from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tinker_guard.policy.job import DEPLOYMENT_PHASES, PHASES, RESUMABLE, JobPhase, phase_of

RUNNING = {"RUNNING"}
STOPPED = {
    *("FAILED", "CANCELLED", "CANCELLING", "COMPLETED", "EARLY_STOPPED", "EXPIRED", "DELETING"),
    *("DELETING_CLEANING_UP", "FAILED_CLEANING_UP", "DELETED", "ARCHIVED", "PAUSED"),
}
STARTING = {
    *("CREATING", "PENDING", "VALIDATING", "RE_QUEUEING", "CREATING_INPUT_DATASET", "IDLE"),
    *("WRITING_RESULTS", "UNSPECIFIED"),
}
# All that `grep -rhoE 'JOB_STATE_[A-Z_]+'` finds in the wheel fireworks-ai 1.2.30.
FIREWORKS = {
    *("ARCHIVED", "CANCELLED", "CANCELLING", "COMPLETED", "CREATING", "CREATING_INPUT_DATASET"),
    *("DELETED", "DELETING", "DELETING_CLEANING_UP", "EARLY_STOPPED", "EXPIRED", "FAILED", "IDLE"),
    *("PAUSED", "PENDING", "RE_QUEUEING", "RUNNING", "UNSPECIFIED", "VALIDATING"),
    "WRITING_RESULTS",
}


@pytest.mark.parametrize(
    ("names", "phase"),
    [
        pytest.param(RUNNING, JobPhase.RUNNING, id="running"),
        pytest.param(STARTING, JobPhase.STARTING, id="starting"),
        pytest.param(STOPPED, JobPhase.STOPPED, id="stopped"),
    ],
)
def test_the_phase_of_each_state(names: set[str], phase: JobPhase) -> None:
    assert {name: phase_of(f"JOB_STATE_{name}") for name in names} == dict.fromkeys(names, phase)
    # A user's own control plane may leave the prefix out.
    assert {name: phase_of(name) for name in names} == dict.fromkeys(names, phase)


def test_each_state_is_sorted_on_purpose() -> None:
    """Not by the rule for names that nobody knows."""
    assert set(PHASES) == {f"JOB_STATE_{name}" for name in RUNNING | STARTING | STOPPED}
    assert (RUNNING | STARTING | STOPPED) - {"FAILED_CLEANING_UP"} == FIREWORKS


def test_the_states_of_an_installed_fireworks_are_known() -> None:
    spec = importlib.util.find_spec("fireworks")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fireworks-ai is not installed")
    found: set[str] = set()
    for folder in spec.submodule_search_locations:
        for path in Path(folder).rglob("*.py"):
            found |= set(re.findall(r"JOB_STATE_[A-Z_]*[A-Z]", path.read_text("utf-8", "replace")))
    assert found - set(PHASES) == set()


def test_the_states_of_a_deployment() -> None:
    """All that `types/deployment.py` of fireworks-ai 1.2.30 names."""
    assert DEPLOYMENT_PHASES == {
        "STATE_UNSPECIFIED": JobPhase.STARTING,
        "CREATING": JobPhase.RUNNING,
        "READY": JobPhase.RUNNING,
        "UPDATING": JobPhase.RUNNING,
        "DELETING": JobPhase.STOPPED,
        "DELETED": JobPhase.STOPPED,
        "FAILED": JobPhase.STOPPED,
    }


def test_the_states_of_a_deployment_of_an_installed_fireworks_are_known() -> None:
    spec = importlib.util.find_spec("fireworks")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fireworks-ai is not installed")
    source = Path(spec.submodule_search_locations[0], "types", "deployment.py").read_text("utf-8")
    (names,) = re.findall(r"\n    state: Optional\[Literal\[(.*?)\]\]", source, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', names)) <= set(DEPLOYMENT_PHASES)


@pytest.mark.parametrize(
    "state",
    [
        "",
        "JOB_STATE_",
        "JOB_STATE_WARMING_UP",
        "WARMING_UP",
        "JOB_STATE_FAILED ",
        "job_state_running",
    ],
)
def test_an_unknown_state_is_on_its_way(state: str) -> None:
    assert phase_of(state) is JobPhase.STARTING


def test_the_stopped_states_that_a_resumed_job_may_still_show() -> None:
    names = {"PAUSED", "COMPLETED", "CANCELLED", "CANCELLING", "EARLY_STOPPED", "DELETING"}
    assert {f"JOB_STATE_{name}" for name in names} == RESUMABLE
    assert {phase_of(state) for state in RESUMABLE} == {JobPhase.STOPPED}
