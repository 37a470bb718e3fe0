"""The words of an answer: what a text says is not there."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.policy.answers import JSON
from tinker_guard.policy.answer import Answer
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.not_found import Source, is_from_trainer, source_of
from tinker_guard.policy.wording import Missing, missing_in, without


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@example("-1111")
@example("-a1")
@example(".job-1")
@example("job-1-")
@example("no route ")
@example("404 ")
@given(st.text("-_.:/ a1x'\"<", min_size=1, max_size=4))
def test_the_time_that_a_text_takes_does_not_double_with_each_part(part: str) -> None:
    """It would never end: what a 404 says is searched on the event loop."""
    for text in (f"no job-1{part * 300}~head", f"{part * 300}job-1~", f"job-1{part * 300}"):
        for body in ({"detail": text}, {"error": text}, {"code": 404, "message": text}):
            headers = httpx.Headers({"content-type": JSON})
            wire = json.dumps(body).encode()
            source_of(Answer(headers, wire), ids=["acc", "job-1"])
            is_control_planes_404(Answer(headers, wire), ids=["acc", "job-1"])
            is_from_trainer(Answer(headers, wire, status_code=200))
        assert len(without(["acc", "job-1"], text)) <= 1000


def test_what_stands_far_behind_is_not_read() -> None:
    assert "head" not in without(["job-1"], "job-1 " * 400 + "head")


@pytest.mark.parametrize(
    "body",
    [
        {"error": "no healthy worker for base model q"},
        {"error": "sampler deployment is not running"},
        {"code": "not_found", "message": "no instance for base model q"},
        {"error": {"code": "not_found", "type": "x", "message": "no replica for base_model q"}},
        {"error": "model my-checkpoint not found"},
        {"error": "Model 'sft-checkpoint-500' does not exist"},
        {"code": "not_found", "message": "model future-llm not found"},
        {"error": "Not found. It will be there in a future release"},
        {"error": "reserved for future use"},
        {"error": "sampler is scaled to zero"},
        {"error": "base model q is loading"},
    ],
)
def test_a_trainers_word_in_a_form_that_gateways_write_too(body: dict[str, object]) -> None:
    """They route by base model and by sampler."""
    headers = httpx.Headers({"content-type": JSON})
    assert source_of(Answer(headers, json.dumps(body).encode())) is Source.UNKNOWN


@pytest.mark.parametrize("parts", [1, 2, 30])
def test_what_is_named_after_an_id_is_named_by_it(parts: int) -> None:
    assert without(["job-1"], "no job-1" + "-5d9c7b" * parts + " here") == "no \0 here"
    assert "head" in without(["job-1"], "no job-1" + "-5d9c7b" * parts + "-head here")


# -- what a text says is not there -----------------------------------------------------------------

IDS = ("acc", "job-1")


def source(detail: object, ids: tuple[str, ...] = IDS) -> Source:
    """Of FastAPI's answer with this detail, on the route of acc/job-1 or another."""
    headers = httpx.Headers({"content-type": JSON})
    return source_of(Answer(headers, json.dumps({"detail": detail}).encode()), ids=ids)


@pytest.mark.parametrize(
    "text",
    [
        # Whatever the grammar ...
        "Trainer job job-1 cannot be found",
        "Trainer job job-1 doesn't exist",
        "Job job-1 isn\N{RIGHT SINGLE QUOTATION MARK}t running",
        "Could not find job job-1",
        "Couldn't find service main/run-1",
        "Unable to find a trainer for job-1",
        "Failed to resolve service job-1",
        "Route for job-1 not found",
        "Job with id job-1 not found",
        "Job job-1 in account acc2 does not exist",
        "There's no such job",
        "No jobs match",
        "Trainer job: not found",
        "Not found: job job-1",
        "Job not found (state=RUNNING)",
        # ... the adjective ...
        "Job job-1 is not currently running",
        "Trainer is not yet ready",
        "Trainer is offline",
        "Backend is not healthy",
        "Job job-1 is starting",
        "Replica set is empty",
        "Invalid route",
        # ... and the noun.
        "Path '/api/v1/forward_backward' not found",
        "Path /m/qwen/api/v1/forward_backward not found",
        "Path /health not found",
        "Not Found: /api/v1/forward_backward",
        "/api/v1/forward_backward does not exist",
        "No handler for POST /api/v1/x",
        "Not in the routing table: job-1",
        "Tunnel abc not found",
        "Cluster 'c' not found",
        "job_id not found",
        "accounts/acc/rlorTrainerJobs/job-1 is gone",
        "jobId not found",
        "Invalid jobId: job-1",
        "FineTuneJob not found",
        # The id alone, or beside a thing of any kind.
        "No row for job-1",
        "No registration for acc/job-1",
        "Lookup failed for job-1",
        "job-1 not found",
        "acc/job-1 does not exist",
        "Unknown id job-1",
        "KeyError: 'job-1'",
        # Gateways route by base model and by sampler, and know that a trainer writes checkpoints.
        "No ready replicas for base model Qwen/Qwen3-8B",
        "sampler deployment is not running",
        "Sampler service not ready",
        "Job job-1 is not running: restoring checkpoint",
        "Trainer not running (checkpointing)",
        "Job scheduled for a future time; not running",
        # What will be otherwise soon.
        "Not ready",
        "Please try again later",
        "Try later",
        "Please wait",
        "Loading",
        "Scaled to zero",
        "Warming up",
        "Provisioning",
        "Scaling from zero",
        # The state of a job, on its way or at rest.
        "job is CREATING",
        "Job job-1 is queued",
        "The trainer is booting",
        "Trainer paused",
        "Job is suspended",
        "Job job-1 was cancelled",
        "JOB_STATE_CREATING",
        "Job state: PENDING",
        "State: RE_QUEUEING",
        "state=PAUSED",
        # Not in English.
        "\N{CJK UNIFIED IDEOGRAPH-672A}\N{CJK UNIFIED IDEOGRAPH-627E}",
        "Trainer-Job nicht gefunden, er l\N{LATIN SMALL LETTER A WITH DIAERESIS}uft nicht",
        "Job nicht gefunden",
        "No se encuentra el trabajo",
        "Ruta no encontrada",
        "Service introuvable",
        "Servizio non trovato",
        # Names of codes.
        "RouteNotFound",
        "service_unavailable",
        # Too long to be read to its end.
        "x" * 1001,
    ],
)
def test_what_a_gateway_says_in_whatever_words(text: str) -> None:
    assert source(text) is Source.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "Trainer job {} not found",
        "Job {} is not running",
        "Job '{}' does not exist",
        "job: {} not found",
        "Trainer {} is offline",
        "No trainer for job {}",
        "accounts/acc/rlorTrainerJobs/{} is gone",
        "'{}' not found",
        "KeyError: '{}'",
        "Unknown id '{}'",
    ],
)
@pytest.mark.parametrize(
    "job", ["finetune", "Alice", "qwen", "model", "session", "step", "run", "batch", "checkpoint"]
)
def test_a_job_whose_id_is_a_word(text: str, job: str) -> None:
    """Also one that trainers say of what they have."""
    assert source(text.format(job), ("acc", job)) is Source.UNKNOWN


@pytest.mark.parametrize(
    "text",
    ["{} not found", "{} does not exist", "Unknown: {}", "{} isn't running", "acc/{} is gone"],
)
@pytest.mark.parametrize("job", ["finetune", "Alice", "qwen"])
def test_a_job_whose_id_is_a_word_that_says_nothing_else(text: str, job: str) -> None:
    assert source(text.format(job), ("acc", job)) is Source.UNKNOWN


@pytest.mark.parametrize("job", ["finetune", "model", "step", "host", "route", "job", "found"])
def test_what_a_trainer_says_on_the_route_of_such_a_job(job: str) -> None:
    for text in (f"Model {job} not found", f"Run {job} not found", "Checkpoint c not found"):
        assert source(text, ("acc", job)) is Source.TRAINER


def test_so_many_texts_are_searched_and_no_more() -> None:
    """All of one answer's in one turn of the event loop."""
    assert source(["ab"] * 31 + ["Checkpoint c not found"]) is Source.TRAINER
    assert source(["ab"] * 32 + ["Checkpoint c not found"]) is Source.UNKNOWN


@pytest.mark.parametrize(
    "detail",
    [
        # Of servers.
        "Cannot POST /api/v1/forward_backward",
        "Path '/api/v1/x' not found. Please ping http://head:8000/-/routes for available routes.",
        "fault filter abort",
        "response 404 (backend NotFound), service rules for the path non-existent \n",
        "Error getting active endpoint: context deadline exceeded",
        "modal-http: invalid function call",
        '<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        "<h1>Not Found</h1>",
        "The endpoint abc.ngrok.app is offline.\r\n\r\nERR_NGROK_3200\r\n",
        {"statusCode": 404, "message": "Cannot POST /api/v1/x", "error": "Not Found"},
        {"message": "no Route matched with those values", "request_id": "1a"},
        {"kind": "Status", "message": 'deployments.apps "job-1" not found', "code": 404},
        {"fault": {"faultstring": "Unable to identify proxy for host: default and url: /api"}},
        {"code": 5, "message": "The current request is not defined by this API.", "details": []},
        # Of clients.
        "<Response [404]>",
        "status_code=404",
        "Got 404 from trainer",
        "All connection attempts failed",
        "[Errno -2] Name or service not known",
        "[Errno 111] Connect call failed",
        "failed to connect to all addresses; last error: UNKNOWN",
        "Server disconnected",
        "Remote end closed connection without response",
        "dial tcp 10.0.0.1:8000: i/o timeout",
        "getaddrinfo ENOTFOUND trainer",
        "HTTPConnectionPool(host='pod', port=8000): Max retries exceeded with url: /api/v1/x",
        # Of the status, and no more.
        [],
        {},
        404,
        {"status": 404},
        {"code": 404, "path": "/api/v1/x"},
        {"timestamp": "2026-11-28T00:00:00Z", "status": 404, "error": "Not Found", "path": "/x"},
        {"error": "Not Found", "method": "POST", "url": "https://gateway.test/x"},
        {"message": "Not Found", "request_id": "1a-1"},
    ],
)
def test_another_servers_404_that_is_passed_on(detail: object) -> None:
    assert source(detail) is Source.UNKNOWN


@pytest.mark.parametrize(
    "text",
    [
        "Model m not found",
        "Model m is not on this server",
        "Model job-1 not found",
        "This server has no model m",
        "This server does not support base model q",
        "No LoRA adapter is loaded on this worker",
        "Unknown model_id m-1",
        "Run run-1 not found",
        "Session s not found: the service has restarted",
        "The service has restarted. Session s not found.",
        "No sampling session s on worker 3",
        "Future f-1 has expired",
        "No checkpoint on the host",
        "Service not found for checkpoint c",
        "Sampler s is unknown",
        "Weights at /mnt/service/x not found",
        "Path /mnt/run/step-1 does not exist",
        "No such path: 's3://bucket/run/step-1'",
        "Path 'tinker://run/weights/1' not found",
        "Path not found: tinker://run/weights/1",
        "Path does not exist: '/mnt/run/step-1'",
        "Model path not found: /mnt/m",
        "Weights path not found",
        "Resource not found: tinker://run/weights/1",
        "[Errno 2] No such file or directory: '/mnt/run/optimizer.pt'",
        "[Errno 13] Permission denied, no access to file: '/mnt/run/optimizer.pt'",
        "404 Client Error.\n\nRepository Not Found for url: https://huggingface.co/api/models/a/b.",
        "Loss function f not found",
        "Request r-1 not found or expired",
        # Names are no things.
        "Model my-server not found",
        "Model my_server not found",
        "Model customer_service not found",
        "Adapter web_app not found",
        "Model org/customer_service not found",
        "my_route not found",
        "x" * 1000,
        # Nothing is said.
        "Nothing here",
        "gone",
        "False",
    ],
)
def test_what_a_trainer_says_in_whatever_words(text: str) -> None:
    assert source(text) is Source.TRAINER


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("no route for job job-1", Missing.PLACE),
        ("job job-1 has no route", Missing.PLACE),
        ("no job for this route", Missing.JOB),
        ("rpc error: code = NotFound desc = training service: job job-1 not found", Missing.JOB),
        ("no static resource v1/accounts/acc/rlorTrainerJobs/job-1", Missing.PLACE),
        ("rlorTrainerJob accounts/acc/rlorTrainerJobs/job-1 not found here", Missing.JOB),
        ("service not found for checkpoint c", Missing.TRAINERS),
        ("checkpoint c", Missing.TRAINERS),
        # What stands beside "not found" in the next clause, else in the one before, is missing.
        ("not found: \n job j", Missing.JOB),
        ("trainer job: not found: model m", Missing.TRAINERS),
        ("not found: that: job j", None),
        ("job j: that: not found", None),
        ("not found", None),
        ("nothing is known of job-1", Missing.JOB),
        ("resource not found: tinker://run/1", Missing.TRAINERS),
        # An id beside "no" stands before other things, and further away behind them.
        ("no id 'job-1' on the server", Missing.JOB),
        ("there is as of today no 'job-1' on the server", Missing.JOB),
        ("no mention of 'job-1' on the server", Missing.PLACE),
        ("", None),
    ],
)
def test_what_is_missing(text: str, missing: Missing | None) -> None:
    assert missing_in(text, IDS) is missing
