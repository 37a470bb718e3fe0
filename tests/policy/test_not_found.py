"""Who wrote an answer."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.answers import (
    ALL,
    GATEWAYS,
    HTML,
    JSON,
    PROBLEM,
    TEXT,
    Case,
)
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.gateways import gateway_of
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.policy.not_found import Source, is_from_trainer, may_be_trainers, source_of

every_case = pytest.mark.parametrize("case", ALL.values(), ids=[*ALL])


@every_case
def test_who_wrote_a_404(case: Case) -> None:
    assert source_of(Answer(case.headers(), case.wire)) is case.source


@every_case
def test_whether_a_control_plane_says_that_there_is_no_job(case: Case) -> None:
    assert is_control_planes_404(Answer(case.headers(), case.wire)) is case.is_control_planes


@every_case
def test_a_404_shows_the_trainer_only_where_the_trainer_wrote_it(case: Case) -> None:
    is_trainers = case.source is Source.TRAINER
    assert is_from_trainer(Answer(case.headers(), case.wire)) is is_trainers


# -- what the URL names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "ids", "is_control_planes"),
    [
        # A router's word in an id says nothing ...
        ({"code": 5, "message": "no job a-route"}, ["a-route"], True),
        ({"code": 5, "message": "No job A-Route."}, ["a-route"], True),
        ({"code": 5, "message": "no job a-route-b"}, ["a-route", "a-route-b"], True),
        ({"code": 5, "message": "no job host_1"}, ["host_1"], True),
        # ... but the word beside it does.
        ({"code": 5, "message": "no route to a-route"}, ["a-route"], False),
        ({"code": 5, "message": "no route to route"}, ["route"], False),
        ({"code": 5, "message": "nothing at a-route-b"}, ["a-route"], False),
        # A job is what is missing, whatever words stand beside it.
        ({"code": 5, "message": "no job a-route-b"}, ["a-route"], True),
        ({"code": 5, "message": "training service: job job-1 not found"}, ["job-1"], True),
        ({"code": 5, "message": "Job a was not found in the backend database"}, ["a"], True),
        ({"code": 5, "message": "job job-1 not found on host db-3"}, ["job-1"], True),
        ({"code": 5, "message": "no such trainer job in domain acc"}, ["acc"], True),
        ({"code": 5, "message": "Job j not found: the handler has no rows"}, ["j"], True),
        ({"code": 5, "message": "job-1 does not exist; check the URL"}, ["job-1"], True),
        ({"code": 5, "message": "No route for job job-1"}, ["job-1"], False),
        ({"code": 5, "message": "Route of job job-1 not found"}, ["job-1"], False),
        ({"code": 5, "message": "The service of job-1 is unknown"}, ["job-1"], False),
        # A plain word does, but for one in the name of a resource.
        ({"code": 5, "message": "no job accounts/upstream/jobs/host"}, ["upstream", "host"], True),
        ({"code": 5, "message": "accounts/a/jobs/app is not there"}, ["a", "app"], True),
        ({"code": 5, "message": "accounts/a/jobs/b: no upstream"}, ["a", "upstream"], False),
        ({"code": 5, "message": "unknown path /v1/route"}, ["route"], False),
        # That an id speaks of a job does not show that the answer does.
        ({"code": 404, "message": "nothing at job-1"}, ["job-1"], False),
        # What the question is about may be a place elsewhere.
        ({"reason": "NotFound", "message": 'deployments.apps "d" not found'}, ["d"], True),
        ({"reason": "NotFound", "message": 'deployments.apps "e" not found'}, ["d"], False),
        ({"code": 404, "message": "nothing at trainer"}, ["trainer"], False),
        ({"code": 404, "message": "no job job-1"}, ["job-1"], True),
        ({"code": 404, "message": "no job"}, [""], True),
    ],
)
def test_an_id_that_is_given_back_is_no_evidence_of_a_control_plane(
    body: dict[str, Any], ids: list[str], is_control_planes: bool
) -> None:
    case = Case(JSON, body)
    assert is_control_planes_404(Answer(case.headers(), case.wire), ids=ids) is is_control_planes


@pytest.mark.parametrize(
    ("text", "ids", "source"),
    [
        ("checkpoint-1 is unknown", ["checkpoint-1"], Source.UNKNOWN),
        ("checkpoint is unknown", ["checkpoint"], Source.UNKNOWN),
        ("no checkpoint in checkpoint-1", ["checkpoint-1"], Source.TRAINER),
        ("no checkpoint on host-1", ["host-1"], Source.TRAINER),
        ("no checkpoint on host-1", [], Source.UNKNOWN),
        ("no checkpoint on host", ["host"], Source.UNKNOWN),
        ("no checkpoint in jobs/host", ["host"], Source.TRAINER),
        ("checkpoint-1: service not found", ["checkpoint-1"], Source.UNKNOWN),
        ("x" * 1995 + " future-1", ["future-1"], Source.UNKNOWN),
        # What is named after it: pods, a host, a replica set.
        ("pod sampler-7b-0 is not ready", ["sampler-7b"], Source.UNKNOWN),
        ("pod sampler-0 is not ready", ["sampler"], Source.UNKNOWN),
        ("Sampler-7B-5d9c7b-x2x9z has gone", ["sampler-7b"], Source.UNKNOWN),
        ("rlor-sampler-7b-0 has gone", ["sampler-7b"], Source.UNKNOWN),
        ("sampler-7b-0.acme.svc.cluster.local: refused", ["sampler-7b"], Source.UNKNOWN),
        ("sampler-7b.acme.svc is not known", ["sampler-7b"], Source.UNKNOWN),
        ("no sampler sampler-7b-0", ["sampler-7b"], Source.TRAINER),
        ("no sampler-8b in llama-7b", ["llama-7b"], Source.TRAINER),
        ("x" * 990 + " future-1", ["future-1"], Source.UNKNOWN),
    ],
)
def test_an_id_that_is_given_back_is_no_evidence_of_a_trainer(
    text: str, ids: list[str], source: Source
) -> None:
    case = Case(JSON, {"error": text})
    assert source_of(Answer(case.headers(), case.wire), ids=ids) is source


@pytest.mark.parametrize(
    ("text", "ids", "source"),
    [
        ("Service a/checkpoint-1 not found", ["a", "checkpoint-1"], Source.UNKNOWN),
        ("Model no-route-1 not found", ["no-route-1"], Source.TRAINER),
        ("Pod sampler-7b-0 not found", ["sampler-7b"], Source.UNKNOWN),
        ("Service not found", ["service"], Source.UNKNOWN),
        ("Model jobs/service not found", ["service"], Source.TRAINER),
        # No future of the trainer's.
        ("Service not found. It may come in the near future.", [], Source.UNKNOWN),
        ("Service not found: try again in the future", [], Source.UNKNOWN),
        ("Service not found. In future, ask first.", [], Source.UNKNOWN),
        ("Job not found: the future f-1 is gone", [], Source.TRAINER),
        ("Job f-1 not found in futures", [], Source.UNKNOWN),
        ("Model not found", ["a"], Source.TRAINER),
    ],
)
def test_an_id_that_is_given_back_by_fastapi_is_no_evidence(
    text: str, ids: list[str], source: Source
) -> None:
    case = Case(JSON, {"detail": text})
    assert source_of(Answer(case.headers(), case.wire), ids=ids) is source


@pytest.mark.parametrize("ids", [["run", "future.run"], ["future.run", "run"]])
def test_the_longer_of_two_ids_is_looked_for_first(ids: list[str]) -> None:
    """The rest of it may be a trainer's word."""
    case = Case(JSON, {"error": "look at future.run"})
    assert source_of(Answer(case.headers(), case.wire), ids=ids) is Source.UNKNOWN


def test_ids_are_looked_for_as_they_are() -> None:
    case = Case(JSON, {"error": "checkpoint is unknown"})
    assert (
        source_of(Answer(case.headers(), case.wire), ids=["che.kpoint", "c", "(", ""])
        is Source.TRAINER
    )


# A text alone is no error.
@pytest.mark.parametrize("name", [name for name in GATEWAYS if name not in ("kong", "aws-http")])
def test_what_a_gateway_says_shows_nothing_whatever_the_status(name: str) -> None:
    """As of a gateway that has a page for each error, or answers 200 where it knows no path."""
    case = GATEWAYS[name]
    for status_code in (200, 202, 404, 502):
        assert is_from_trainer(Answer(case.headers(), case.wire, status_code=status_code)) is False


# -- probes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status_code", "content_type", "body"),
    [
        pytest.param(200, JSON, b'{"supported_models": []}', id="capabilities"),
        *(
            pytest.param(
                200, JSON, b'{"supported_models": [], ' + more + b"}", id=f"words-{more!r}"
            )
            for more in (
                b'"description": "JAX backend"',
                b'"message": "on host gpu-3"',
                b'"error_budget": 3',
                b'"status": "loading"',
            )
        ),
        pytest.param(200, JSON, b'{"status": "ok"}', id="health"),
        pytest.param(200, JSON, b"{}", id="empty-object"),
        pytest.param(200, "application/json;charset=UTF-8", b'{"a": 1}', id="charset"),
        pytest.param(202, JSON, b'{"request_id": "1"}', id="accepted"),
        pytest.param(200, JSON, b'{"models": [], "error": null}', id="no-error"),
        pytest.param(200, JSON, b'{"type": "try_again", "detail": "busy", "x": 1}', id="type"),
        *(
            pytest.param(200, JSON, b'{"a": 1, "error": %s}' % empty, id=f"error-{empty!r}")
            for empty in (b'""', b"false", b"[]", b"{}")
        ),
        *(
            pytest.param(200, JSON, b'{"%s": %d}' % (name, number), id=f"{name!r}-{number}")
            for name in (b"status", b"status_code", b"statusCode", b"code")
            for number in (200, 399, 600)
        ),
        pytest.param(200, JSON, b'{"message": "ready"}', id="message"),
        *(
            pytest.param(200, JSON, b'{"a": 1, ' + more + b"}", id=f"well-{number}")
            for number, more in enumerate(
                (
                    b'"ok": true',
                    b'"success": "true"',
                    b'"fault": null',
                    b'"Error": ""',
                    b'"code": "200"',
                    b'"code": "4042"',
                    b'"code": "\xc2\xb2"',
                    b'"code": "-404"',
                    b'"message": ""',
                    b'"msg": "ok"',
                    b'"status": "running"',
                    b'"result": ["error"]',
                )
            )
        ),
        *(
            pytest.param(200, JSON, b'{"code": %d, "message": "x"}' % code, id=f"grpc-{code}")
            for code in (0, 17)
        ),
        pytest.param(404, JSON, b'{"detail": "no such thing here"}', id="its-own-404"),
    ],
)
def test_the_trainers_own_answer(status_code: int, content_type: str, body: bytes) -> None:
    assert is_from_trainer(
        Answer(httpx.Headers({"content-type": content_type}), body, status_code=status_code)
    )


@pytest.mark.parametrize(
    ("status_code", "content_type", "body"),
    [
        *(
            pytest.param(status, JSON, b'{"supported_models": []}', id=f"status-{status}")
            for status in (
                100,
                199,
                300,
                301,
                304,
                307,
                400,
                401,
                403,
                405,
                429,
                500,
                502,
                503,
                504,
            )
        ),
        pytest.param(401, JSON, b'{"detail": "Not authenticated"}', id="fastapi-401"),
        pytest.param(422, JSON, b'{"detail": []}', id="fastapi-422"),
        pytest.param(204, "", b"", id="no-content"),
        pytest.param(200, "", b"", id="caddy-without-a-route"),
        pytest.param(200, JSON, b"", id="empty-json"),
        pytest.param(200, HTML, b"<html>Sign in</html>", id="login-page"),
        pytest.param(200, HTML, b'{"supported_models": []}', id="json-as-html"),
        pytest.param(200, PROBLEM, b'{"a": 1}', id="problem-media-type"),
        pytest.param(200, TEXT, b"ok", id="text"),
        pytest.param(200, JSON, b'["a"]', id="list"),
        pytest.param(200, JSON, b'"ok"', id="string"),
        pytest.param(200, JSON, b'{"supported_models": [', id="cut"),
        pytest.param(200, JSON, b'{"a": NaN}', id="nan"),
        pytest.param(200, JSON, b'{"error": "maintenance"}', id="error"),
        pytest.param(200, JSON, b'{"error": {"code": 503}}', id="error-object"),
        pytest.param(200, JSON, b'{"errors": [1], "data": null}', id="errors"),
        pytest.param(200, JSON, b'{"error_code": 1018}', id="error-code"),
        pytest.param(200, JSON, b'{"status": 503, "message": "starting"}', id="status"),
        pytest.param(200, JSON, b'{"code": 404, "message": "no job"}', id="code"),
        *(
            pytest.param(200, JSON, b'{"%s": %d}' % (name, number), id=f"{name!r}-{number}")
            for name in (b"status", b"status_code", b"statusCode", b"code")
            for number in (400, 599)
        ),
        *(
            pytest.param(200, JSON, b'{"code": %d, "message": "x"}' % code, id=f"grpc-{code}")
            for code in (1, 16)
        ),
        pytest.param(200, JSON, b'{"cloudflare_error": true}', id="cloudflare"),
        pytest.param(200, JSON, b'{"type": "about:blank", "title": "x"}', id="type-and-title"),
        pytest.param(200, JSON, b'{"success": false}', id="no-success"),
        # Other ways in which gateways report an error with a good status.
        *(
            pytest.param(200, JSON, json.dumps(body).encode(), id=name)
            for name, body in {
                "kong": {"message": "no Route matched with those values"},
                "aws": {"message": "Not Found"},
                "msg": {"msg": "404 not found", "data": None},
                "apigee": {"fault": {"faultstring": "unknown proxy"}},
                "capital": {"Error": {"Code": "NoSuchKey"}},
                "capital-number": {"StatusCode": 503},
                "name": {"code": "NOT_FOUND", "message": "x"},
                "name-of-a-job": {"status": "JOB_NOT_FOUND"},
                "number-as-text": {"code": "404", "data": {}},
                "status-as-text": {"status": "503"},
                "word": {"status": "error", "message": "starting"},
                "word-of-jsend": {"status": "Fail", "data": {}},
                "result": {"result": "failure"},
                "not-ok": {"ok": False},
                "not-ready": {"ready": False},
                "not-healthy": {"healthy": False},
                "not-available": {"available": "false"},
                "maintenance": {"maintenance": True},
                "starting": {"status": "starting"},
                "loading": {"status": "Loading", "progress": 3},
                "no-success-as-text": {"success": "False"},
            }.items()
        ),
        pytest.param(200, JSON, b'{"detail": "Not Found"}', id="detail-only"),
        pytest.param(200, JSON, b'{"type": "about:blank", "detail": "x"}', id="problem"),
        pytest.param(200, JSON, b'{"type": "x", "title": "y", "foo": 1}', id="problem-title"),
        pytest.param(404, JSON, b'{"detail": "Not Found"}', id="any-router"),
    ],
)
def test_what_does_not_show_the_trainer(status_code: int, content_type: str, body: bytes) -> None:
    headers = httpx.Headers({"content-type": content_type} if content_type else {})
    assert not is_from_trainer(Answer(headers, body, status_code=status_code))


# -- whatever comes --------------------------------------------------------------------------------

_NAMES = st.sampled_from(
    [
        *("content-type", "content-encoding", "age", "x-cache", "cache-status", "warning"),
        *("x-varnish", "x-cache-hits", "cf-cache-status"),
    ]
)
_VALUES = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=30),
    st.sampled_from([JSON, PROBLEM, "gzip", "br", "zstd", ";" * 9999, ", " * 9999, "9" * 5000]),
)
_MEMBERS = st.sampled_from(
    ["error", "detail", "code", "param", "message", "status", "type", "title", "errors", "success"]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["NOT_FOUND", 5, 404, "Not Found", " " * 9999, "-" * 9999, "no " * 9999]),
)
_DOCUMENTS = st.dictionaries(
    _MEMBERS, _LEAVES | st.lists(_LEAVES, max_size=3) | st.dictionaries(_MEMBERS, _LEAVES)
)


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(
    st.dictionaries(_NAMES, _VALUES),
    st.one_of(
        st.binary(max_size=200),
        _DOCUMENTS.map(lambda document: json.dumps(document).encode()),
        _DOCUMENTS.map(lambda document: json.dumps(document).encode("utf-16")),
        _DOCUMENTS.map(lambda document: gzip.compress(json.dumps(document).encode(), mtime=0)),
    ),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([BODY_LIMIT, 100, 0]),
)
def test_nothing_raises_and_nothing_says_two_things(
    given_headers: dict[str, str], body: bytes, status_code: int, is_decoded: bool, limit: int
) -> None:
    headers = httpx.Headers(
        {
            name: value.encode("latin-1")
            for name, value in ({"content-type": JSON} | given_headers).items()
        }  # type: ignore[arg-type]
    )
    source = source_of(Answer(headers, body, is_decoded=is_decoded, limit=limit))
    is_trainers = is_from_trainer(
        Answer(headers, body, status_code=status_code, is_decoded=is_decoded, limit=limit)
    )
    is_planes = is_control_planes_404(Answer(headers, body, is_decoded=is_decoded, limit=limit))
    assert source is Source.UNKNOWN or not is_planes or source is Source.TRAINER
    gateway = gateway_of(Answer(headers, body, is_decoded=is_decoded, limit=limit))
    assert gateway is None or source in (Source.UNKNOWN, Source.GATEWAY)
    assert not is_trainers or status_code == 404 or 200 <= status_code < 300


# -- answers whose bodies are the client's ---------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "is_trainers"),
    [
        *(("application/json", True), ("Application/JSON; charset=utf-8", True)),
        *(("application/x-protobuf", True), ("application/octet-stream", True)),
        *(("application/x-ndjson", True), ("text/event-stream", True)),
        *(("text/html", False), ("application/xhtml+xml", False), ("application/xml", False)),
        *(("text/xml", False), ("Text/HTML; charset=utf-8", False), ("image/svg+xml", False)),
        *(("application/problem+json", False), ("application/problem+xml", False)),
        *(("text/html, text/html", False), ("application/json, text/html", False)),
        ("application/json, application/json", True),
        # A server of somebody's own may name any other type, or none.
        *(("text/plain", True), ("", True), ("json", True)),
    ],
)
def test_whose_an_answer_may_be_by_its_media_type(media_type: str, is_trainers: bool) -> None:
    headers = httpx.Headers({"content-type": media_type})
    assert may_be_trainers(200, headers) is may_be_trainers(202, headers) is is_trainers
    for status_code in (101, 199, 204, 205, 301, 307, 401, 403, 404, 429, 500, 503):
        assert may_be_trainers(status_code, headers) is False
    for name, value in (
        *(("Age", "3"), ("X-Cache", "Hit from edge"), ("Cache-Status", "a; hit")),
        ("Content-Length", "0"),
    ):
        assert may_be_trainers(200, httpx.Headers({**headers, name: value})) is False
