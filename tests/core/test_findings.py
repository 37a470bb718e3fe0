from __future__ import annotations

import httpx
import pytest

from tinker_guard.core.findings import NotFound, Reached, Routable
from tinker_guard.policy.not_found import Source


@pytest.mark.parametrize(
    ("finding", "shown"),
    [
        (
            NotFound(Source.GATEWAY, 1.0, httpx.Headers({"x-key": "geheim"}), b"geheim", 0.0),
            "NotFound(source=<Source.GATEWAY: 'gateway'>, met_at=1.0, asked_to_wait=0.0)",
        ),
        (Reached(1.0, ((b"affinity", b"geheim"),)), "Reached(met_at=1.0)"),
        (
            Routable(reached_at=1.0, cookies=((b"affinity", b"geheim"),)),
            "Routable(race=None, reached_at=1.0)",
        ),
    ],
    ids=lambda finding: type(finding).__name__,
)
def test_a_finding_shows_neither_header_nor_body(finding: object, shown: str) -> None:
    """Some loggers and test runners write tracebacks with the values of variables."""
    assert repr(finding) == shown
