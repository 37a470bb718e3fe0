from __future__ import annotations

import copy
import pickle

import httpx
import pytest

from tinker_guard import SyncGuardTransport
from tinker_guard.core.findings import (
    Ambiguous,
    Inconclusive,
    NotFound,
    ProbingEnd,
    Reached,
    Refused,
    Routable,
    TimedOut,
)
from tinker_guard.gateway import Fault, LocalGateway
from tinker_guard.policy.judgement import JOB_MISSING, JOB_RUNNING, JobAnswer
from tinker_guard.policy.not_found import Source

_WHOLE = NotFound(
    Source.GATEWAY,
    1.0,
    httpx.Headers({"content-length": "3"}),
    b"abc",
    0.0,
    {"http_version": b"HTTP/1.1"},
)
_NOT_FOUND = NotFound(Source.GATEWAY, 1.0, httpx.Headers(), b"", 0.0)


@pytest.mark.parametrize(
    ("end", "since"),
    [
        (Inconclusive(), None),
        (Inconclusive(proved_at=1.0), 1.0),
        (Ambiguous(race=JOB_RUNNING), None),
        (Routable(proved_at=1.0), 1.0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whom_an_end_serves_besides_the_one_who_probed(
    end: ProbingEnd, since: float | None
) -> None:
    """One who needs no proof always; others if it proves something about their own 404.

    Args:
        end: How the probing ended.
        since: From when on a 404 is later than what it proves.
    """
    for met_at in (0.0, 1.0, 2.0):
        assert end.serves(met_at, needs_proof=False) is True
        serves = since is not None and met_at <= since
        assert end.serves(met_at, needs_proof=True) is serves


@pytest.mark.parametrize("needs_proof", [True, False])
@pytest.mark.parametrize(
    ("met_at", "serves"), [(0.0, True), (1.0, True), (1.05, False), (3, False)]
)
def test_a_refusal_serves_those_whose_404_came_before_all_that_it_rests_on(
    met_at: float, serves: bool, needs_proof: bool
) -> None:
    # The first of two lookups began at 1.0, the second one at 3.1.
    refused = Refused(JOB_MISSING, _NOT_FOUND, JobAnswer().timed(3.1, 3.2), proved_at=1.0)
    assert refused.serves(met_at, needs_proof=needs_proof) is serves


def test_that_the_time_is_over_serves_nobody_else() -> None:
    """It is the time of the one who probed."""
    end = TimedOut(JOB_RUNNING, _NOT_FOUND, race=JOB_RUNNING)
    for needs_proof in (False, True):
        assert end.serves(0.0, needs_proof=needs_proof) is False
    assert end.serves_at_gate(0.0) is False


def test_a_404_is_a_value_and_each_who_waited_has_one_of_its_own() -> None:
    assert pickle.loads(pickle.dumps(_WHOLE)) == _WHOLE == copy.deepcopy(_WHOLE)
    first, second = _WHOLE.response("GET"), _WHOLE.response("GET")
    first.headers["x-own"], first.extensions["own"] = "1", b"1"
    assert (dict(second.headers), second.extensions) == (
        {"content-length": "3"},
        {"http_version": b"HTTP/1.1"},
    )


@pytest.mark.sockets
@pytest.mark.parametrize("method", ["HEAD", "GET", "POST"])
def test_a_404_is_as_one_that_the_request_itself_would_have_met(method: str) -> None:
    make = httpx.HTTPTransport
    with LocalGateway(Fault(job_states=((0, "JOB_STATE_FAILED"),))) as gateway:
        url, headers = f"{gateway.base_url}/api/v1/forward", {"X-Api-Key": gateway.api_key}
        guard = SyncGuardTransport(make(), new_transport=make)
        met = []
        for transport in (guard, make()):
            with httpx.Client(transport=transport, headers=headers) as client:
                answer = client.request(method, url)
            kept = {name: value for name, value in answer.headers.items() if name != "date"}
            extensions = {
                name: value for name, value in answer.extensions.items() if name != "network_stream"
            }
            met.append((answer.status_code, answer.content, kept, extensions))
    assert met[0] == met[1]
    assert bool(met[0][1]) is (method != "HEAD")


@pytest.mark.parametrize(
    ("finding", "shown"),
    [
        (
            NotFound(Source.GATEWAY, 1.0, httpx.Headers({"x-key": "geheim"}), b"geheim", 0.0),
            "NotFound(source=<Source.GATEWAY: 'gateway'>, met_at=1.0, asked_to_wait=0.0)",
        ),
        (Reached(1.0, ((b"affinity", b"geheim"),)), "Reached(met_at=1.0)"),
        (
            Routable(((b"affinity", b"geheim"),), proved_at=1.0),
            "Routable(race=None, proved_at=1.0)",
        ),
    ],
    ids=lambda finding: type(finding).__name__,
)
def test_a_finding_shows_neither_header_nor_body(finding: object, shown: str) -> None:
    """Some loggers and test runners write tracebacks with the values of variables."""
    assert repr(finding) == shown
