"""What the tests with real gateways have in common."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end import sdk
from tinker_guard.gateway import LocalGateway
from tinker_guard.gateway.train import train_five_steps


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests time; and as in `test_end_to_end.py`, the SDK leaves connections behind."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(300))
            for warning in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{warning}"))


@pytest.fixture(autouse=True)
def _surroundings(loopback: None) -> None: ...


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """Those of a run without gateway, guard and fault."""
    with LocalGateway() as gateway, sdk.connected(gateway) as client:
        return train_five_steps(client, sdk.types)
