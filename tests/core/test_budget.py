"""How long a request may be held back after a 404, and which setting says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tinker_guard import GuardSettings
from tinker_guard.core.budget import Budget, budget_after_404

ARRIVED_AT, MET_AT = 100.0, 130.0


def budget(
    *,
    has_control_plane: bool = True,
    has_shown_trainer: bool = False,
    is_cold: bool = True,
    came_cold: bool = True,
    **settings: float,
) -> Budget:
    given: dict[str, Any] = {"retry_timeout": 60.0, "warmup_timeout": 300.0, **settings}
    guarded: Any = SimpleNamespace(
        settings=GuardSettings(unreached_timeout=20.0, **given),
        state=SimpleNamespace(has_shown_trainer=has_shown_trainer),
        has_control_plane=has_control_plane,
        came_cold=came_cold,
        is_cold=is_cold,
        arrived_at=ARRIVED_AT,
    )
    return budget_after_404(guarded, MET_AT)


def test_on_a_cold_route_the_warmup_counts_from_the_arrival() -> None:
    assert budget() == Budget(400.0, 400.0, "warmup_timeout", 300.0)


@pytest.mark.parametrize(
    "differs",
    [
        pytest.param({"is_cold": False}, id="warm since"),
        pytest.param({"came_cold": False}, id="came to a warm route"),
        pytest.param({"warmup_successes": 0}, id="no warmup"),
        pytest.param({"has_control_plane": False, "has_shown_trainer": True}, id="reached before"),
        pytest.param({"warmup_timeout": 89.9}, id="the warmup ends sooner"),
        pytest.param({"warmup_timeout": 90.0}, id="both end at once"),
    ],
)
def test_otherwise_the_time_for_resends_counts_from_the_404(differs: dict[str, Any]) -> None:
    assert budget(**differs) == Budget(190.0, 190.0, "retry_timeout", 60.0)


@pytest.mark.parametrize(("retry_timeout", "ends_at"), [(60.0, 190.0), (5.0, 150.0)])
def test_what_may_not_exist_has_to_show_itself_first(retry_timeout: float, ends_at: float) -> None:
    found = budget(has_control_plane=False, retry_timeout=retry_timeout)
    assert found == Budget(ends_at, 150.0, "unreached_timeout", 20.0)
