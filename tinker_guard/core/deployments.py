"""How requests for a deployment of Fireworks are seen through, where not as a trainer's are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_guard.policy.route import HOT_LOAD, INFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tinker_guard.settings import GuardSettings


def settings_by_path(settings: GuardSettings) -> Mapping[str, GuardSettings]:
    """The settings for each kind of a deployment's routes, by its path.

    Their first requests need no gate, since hot-loads and completions can be sent again.

    Args:
        settings: Those for trainer routes.
    """
    updates: dict[str, dict[str, Any]] = {
        # The state of the hot-load shows that the deployment is reached.
        HOT_LOAD: {"warmup_successes": 0, "warmup_probe_path": "/hot_load"},
        # Each one is sent again, with its prompt: no probe goes before.
        INFERENCE: {
            "warmup_successes": 0,
            "backoff_initial": max(settings.backoff_initial, 1.0),
            "backoff_max": max(settings.backoff_max, 5.0),
        },
    }
    return {path: settings.model_copy(update=update) for path, update in updates.items()}
