"""A deployment of Fireworks behind the replicas: hot-loads, their state, and completions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from .wire import Reply

if TYPE_CHECKING:
    from .wire import Call, Steps

PATHS: Final = {
    "/hot_load/v1/models/hot_load": "hot_load",
    "/inference/v1/completions": "completions",
}
"""The operations of deployments, by their paths, which name no deployment."""


def named_by(call: Call) -> str:
    """The deployment that a call is for, such as `accounts/demo/deployments/dep-1`."""
    if PATHS[call.path] == "hot_load":
        return call.headers.get("fireworks-deployment", "")
    return str(call.fields.get("model", ""))


class Deployment:
    """One replica that loads at once, and answers every prompt with one token."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        """The loaded snapshots, in order."""

    def answer(self, call: Call, _: float) -> Steps:
        """Answer one request."""
        yield from ()
        if PATHS[call.path] == "completions":
            chunk = {"id": "1", "choices": [{"text": "a", "index": 0, "finish_reason": "length"}]}
            lines = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
            return Reply(200, lines.encode(), "text/event-stream")
        if call.method == "POST":
            self.loaded.append(str(call.fields["identity"]))
            return Reply.json({})
        replica = {
            "current_snapshot_identity": self.loaded[-1] if self.loaded else None,
            "loading_state": {"stage": "done"},
            "readiness": True,
        }
        return Reply.json({"replicas": [replica]})
