from __future__ import annotations

import gzip
import json
import random
import time
import zlib

import pytest

from tests.fakes import GATEWAY_BODY
from tinker_guard.verdict import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    EVIDENCE_NEEDED,
    JOB_MISSING,
    JOB_NOT_RUNNING,
    NO_CONTROL_PLANE,
    PEEK_LIMIT,
    ROUTING_RACE,
    TRAINER_ANSWERED,
    Answer,
    JobPhase,
    Judgement,
    Outcome,
    Source,
    backoff,
    decompressed,
    judge,
    may_begin,
    outcome_of,
    phase_of,
    retry_after,
    source_of,
    weigh,
)

JSON = "application/json"

DEFLATED = zlib.compress(b"body")


@pytest.mark.parametrize(
    ("content_type", "content_encoding", "body", "source"),
    [
        pytest.param(JSON, "", GATEWAY_BODY, Source.GATEWAY, id="gateway"),
        pytest.param(
            "application/json; charset=latin-1", "", GATEWAY_BODY, Source.GATEWAY, id="charset"
        ),
        pytest.param(JSON, "gzip", gzip.compress(GATEWAY_BODY), Source.GATEWAY, id="gzip"),
        pytest.param(JSON, "", GATEWAY_BODY.decode().encode("utf-16"), Source.GATEWAY, id="utf16"),
        pytest.param(JSON, "", b'{"detail": "Not Found"}', Source.TRAINER, id="fastapi"),
        pytest.param(JSON, "", b'{"detail": [{"loc": []}]}', Source.TRAINER, id="fastapi-list"),
        pytest.param(
            "application/problem+json", "", b'{"detail": "x"}', Source.TRAINER, id="problem"
        ),
        pytest.param(
            JSON, "gzip", gzip.compress(b'{"detail": "x"}'), Source.TRAINER, id="gzip-fastapi"
        ),
        pytest.param("text/plain", "", b"404 page not found", Source.UNKNOWN, id="plain"),
        pytest.param("text/html", "", b"<html>404</html>", Source.UNKNOWN, id="html"),
        pytest.param("text/html", "", b'{"detail": "x"}', Source.UNKNOWN, id="json-as-html"),
        pytest.param("", "", b"", Source.UNKNOWN, id="empty"),
        pytest.param(JSON, "", b"", Source.UNKNOWN, id="empty-json"),
        pytest.param(JSON, "", GATEWAY_BODY[:40], Source.UNKNOWN, id="truncated"),
        pytest.param(JSON, "gzip", GATEWAY_BODY, Source.UNKNOWN, id="not-gzip"),
        pytest.param(JSON, "gzip", gzip.compress(GATEWAY_BODY)[:20], Source.UNKNOWN, id="cut-gzip"),
        pytest.param(JSON, "br", b'{"detail": "x"}', Source.UNKNOWN, id="brotli"),
        pytest.param(JSON, "", b'["detail"]', Source.UNKNOWN, id="list"),
        pytest.param(JSON, "", b'{"error": "not found"}', Source.UNKNOWN, id="other-error"),
        pytest.param(
            JSON, "", b'{"error": {"code": "NOT_FOUND"}, "detail": ""}', Source.UNKNOWN, id="both"
        ),
        pytest.param(JSON, "", b"\xff\xfe\x00", Source.UNKNOWN, id="wrong-bytes"),
        pytest.param(JSON, "", b"[" * 100_000, Source.UNKNOWN, id="deep"),
        pytest.param(
            JSON,
            "gzip",
            gzip.compress(b'{"detail": "' + b"x" * 10 * PEEK_LIMIT + b'"}'),
            Source.UNKNOWN,
            id="bomb",
        ),
    ],
)
def test_source_is_told_by_the_body(
    content_type: str, content_encoding: str, body: bytes, source: Source
) -> None:
    assert source_of(content_type, content_encoding, body) is source


RUNNING = Answer(state="JOB_STATE_RUNNING")


@pytest.mark.parametrize(
    ("source", "answer", "judgement"),
    [
        (Source.GATEWAY, RUNNING, ROUTING_RACE),
        (Source.UNKNOWN, RUNNING, ROUTING_RACE),
        (Source.GATEWAY, Answer(state="JOB_STATE_DELETED"), JOB_NOT_RUNNING),
        (Source.GATEWAY, Answer(state="JOB_STATE_CREATING"), JOB_NOT_RUNNING),
        (Source.GATEWAY, Answer(state=None), JOB_MISSING),
        (Source.UNKNOWN, Answer(failure=CONTROL_PLANE_ERROR), CONTROL_PLANE_ERROR),
        (Source.GATEWAY, Answer(failure=CONTROL_PLANE_TIMEOUT), CONTROL_PLANE_TIMEOUT),
        (Source.TRAINER, None, TRAINER_ANSWERED),
        (Source.TRAINER, RUNNING, TRAINER_ANSWERED),
        (Source.GATEWAY, None, None),
        (Source.UNKNOWN, None, None),
    ],
)
def test_verdict_table(source: Source, answer: Answer | None, judgement: Judgement | None) -> None:
    assert judge(source, answer) == judgement


@pytest.mark.parametrize(
    "name",
    [
        "FAILED",
        "CANCELLED",
        "CANCELLING",
        "COMPLETED",
        "EARLY_STOPPED",
        "DELETING",
        "DELETED",
        "ARCHIVED",
        "PAUSED",
    ],
)
def test_stopped_states(name: str) -> None:
    assert phase_of(f"JOB_STATE_{name}") is JobPhase.STOPPED


@pytest.mark.parametrize("state", ["JOB_STATE_CREATING", "JOB_STATE_PENDING", "", "NEW_STATE"])
def test_other_states_are_on_their_way(state: str) -> None:
    assert phase_of(state) is JobPhase.STARTING


@pytest.mark.parametrize(
    ("status_code", "resends", "judgement", "outcome"),
    [
        (200, 0, None, Outcome.OK),
        (500, 0, None, Outcome.OK),
        (200, 2, ROUTING_RACE, Outcome.RECOVERED),
        (404, 0, JOB_MISSING, Outcome.NOT_FOUND),
        (404, 0, JOB_NOT_RUNNING, Outcome.NOT_FOUND),
        (404, 0, TRAINER_ANSWERED, Outcome.NOT_FOUND),
        (404, 9, ROUTING_RACE, Outcome.EXHAUSTED),
        (404, 0, CONTROL_PLANE_ERROR, Outcome.UNVERIFIED),
        (404, 0, NO_CONTROL_PLANE, Outcome.UNVERIFIED),
    ],
)
def test_outcome(
    status_code: int, resends: int, judgement: Judgement | None, outcome: Outcome
) -> None:
    assert outcome_of(status_code, resends, judgement) is outcome


def test_backoff_starts_at_once_and_grows_to_its_maximum() -> None:
    delays = [backoff(n, initial=0.1, maximum=3.0, jitter=0.0) for n in range(1, 31)]
    assert [round(delay, 3) for delay in delays[:5]] == [0.0, 0.1, 0.115, 0.132, 0.152]
    assert delays[-1] == 3.0
    assert backoff(10**9, initial=0.1, maximum=3.0, jitter=0.0) == 3.0


def test_jitter_only_shortens_a_delay() -> None:
    full, least = (backoff(9, initial=0.1, maximum=3.0, jitter=jitter) for jitter in (0.0, 1.0))
    assert least == pytest.approx(0.5 * full)


@pytest.mark.parametrize("race", [0.05, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 28.0])
def test_a_race_costs_little_more_than_itself(race: float) -> None:
    """Back within W + max(0.5 s, W/4), for any jitter, with 40 ms spent on every attempt."""
    chance = random.Random(1)
    worst = 0.0
    for run in range(200):
        elapsed, resend = 0.0, 0
        while elapsed < race:
            resend += 1
            jitter = 0.0 if run == 0 else chance.random()
            elapsed += backoff(resend, initial=0.1, maximum=3.0, jitter=jitter) + 0.04
        worst = max(worst, elapsed)
    assert worst <= race + max(0.5, race / 4)


def test_a_resend_that_cannot_begin_in_the_budget_is_not_begun() -> None:
    assert may_begin(elapsed=1.0, delay=0.9, budget=2.0)
    assert not may_begin(elapsed=1.0, delay=1.0, budget=2.0)
    assert not may_begin(elapsed=0.0, delay=0.0, budget=0.0)


def test_values_are_the_labels_people_see() -> None:
    assert json.dumps([ROUTING_RACE.verdict, ROUTING_RACE.reason]) == (
        '["routing_race", "job_running"]'
    )


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "250", "retry-after": "3"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        (
            # Found by the simulation: where this machine's clock is behind, so long a wait would
            # be beyond every budget, and the race be handed back at once.
            {
                "retry-after": "Thu, 01 Jan 1970 01:00:02 GMT",
                "date": "Thu, 01 Jan 1970 01:00:00 GMT",
            },
            2.0,
        ),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT", "date": "today"}, 40.0),
        ({"retry-after": "Thu, 01 Jan 1970 02:01:40 +0200"}, 40.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after-ms": "nan"}, 0.0),
        ({"retry-after-ms": "inf"}, 0.0),
        ({"retry-after-ms": ""}, 0.0),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers, now=60.0) == seconds


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs a time zone that can be set")
def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setenv("TZ", "America/New_York")
        time.tzset()
        assert retry_after({"retry-after": "Thu Jan  1 00:01:40 1970"}, now=60.0) == 40.0
    time.tzset()


@pytest.mark.parametrize(
    ("coding", "body"),
    [("", b"body"), ("identity", b"body"), ("gzip", gzip.compress(b"body")), ("deflate", DEFLATED)],
)
def test_codings_that_are_looked_into(coding: str, body: bytes) -> None:
    assert decompressed(coding, body, 100) == b"body"
    assert decompressed(coding.upper(), body, 3) == b"bod"


def test_evidence_weighs_only_where_the_body_names_nobody() -> None:
    assert weigh(Source.UNKNOWN, EVIDENCE_NEEDED - 1) is Source.UNKNOWN
    assert weigh(Source.UNKNOWN, EVIDENCE_NEEDED) is Source.TRAINER
    assert weigh(Source.GATEWAY, EVIDENCE_NEEDED) is Source.GATEWAY
