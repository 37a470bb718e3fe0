"""Who wrote an answer, row by row: gateways, servers that speak Tinker, control planes, caches."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tinker_guard.policy.caches import is_cached_copy
from tinker_guard.policy.gateways import gateway_of
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.policy.not_found import Source, is_from_trainer, may_be_trainers, source_of

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = "application/json"
PROBLEM = "application/problem+json"
TEXT = "text/plain; charset=utf-8"
HTML = "text/html"

GATEWAY_BODY = {
    "error": {
        "message": "Trainer job not found or not running",
        "param": "jobId",
        "code": "NOT_FOUND",
    }
}
CLOUDFLARE_BODY = {
    "type": "https://developers.cloudflare.com/support/x/error-1018/",
    "title": "Error 1018: Could not find host",
    "status": 404,
    "detail": "The host could not be found; this may be a delay in propagation.",
    "instance": "9d99a4434fz2d168",
    "error_code": 1018,
    "cloudflare_error": True,
}


class Case(NamedTuple):
    """An answer without a route, and what it says of itself."""

    content_type: str
    body: bytes | str | dict[str, Any]
    source: Source = Source.UNKNOWN
    is_control_planes: bool = False

    def headers(self, **more: str) -> httpx.Headers:
        given = {"content-type": self.content_type} if self.content_type else {}
        return httpx.Headers(given | {name.replace("_", "-"): v for name, v in more.items()})

    @property
    def wire(self) -> bytes:
        if isinstance(self.body, dict):
            return json.dumps(self.body).encode()
        return self.body.encode() if isinstance(self.body, str) else self.body


GATEWAYS = {
    "fireworks": Case(JSON, GATEWAY_BODY, Source.GATEWAY),
    "fireworks-utf-16": Case(JSON, json.dumps(GATEWAY_BODY).encode("utf-16"), Source.GATEWAY),
    "nginx": Case(HTML, "<html><center><h1>404 Not Found</h1></center><center>nginx</center>"),
    "envoy": Case("", ""),
    "gke": Case(TEXT, "fault filter abort"),
    "gke-rules": Case(TEXT, "response 404 (backend NotFound), service rules for the path"),
    "kubernetes-backend": Case(TEXT, "default backend - 404"),
    "traefik": Case(TEXT, "404 page not found\n"),
    "haproxy": Case(HTML, "<html><body><h1>404 Not Found</h1></body></html>"),
    "caddy": Case("", ""),
    "kong": Case(JSON, {"message": "no Route matched with those values", "request_id": "1a"}),
    "apisix": Case(JSON, {"error_msg": "404 Route Not Found"}),
    "ray": Case("text/plain", "Path '/x' not found. Ping http://h/-/routes for available routes."),
    "ray-parent": Case(JSON, {"detail": "Not Found"}, Source.ROUTER),
    "knative": Case(TEXT, "Error getting active endpoint: revision not found"),
    "modal": Case(TEXT, "modal-http: invalid function call"),
    "aws-http": Case(JSON, {"message": "Not Found"}),
    "cloudflare": Case(JSON, CLOUDFLARE_BODY),
    "cloudflare-problem": Case(PROBLEM, CLOUDFLARE_BODY),
    "problem-of-a-router": Case(
        PROBLEM,
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "No route matches this path.",
            "instance": "/training/v1",
        },
    ),
    "problem-as-json": Case(JSON, {"title": "Not Found", "detail": "Nothing here", "status": 404}),
    "problem-with-type-only": Case(JSON, {"type": "about:blank", "detail": "unknown"}),
    "problem-with-instance-only": Case(JSON, {"instance": "/x", "detail": "unknown"}),
    "problem-media-type-only": Case(PROBLEM, {"detail": "Model not found"}),
    "aspnet": Case(PROBLEM, {"type": "https://x.test#15.5.5", "title": "Not Found", "status": 404}),
    "spring": Case(JSON, {"timestamp": 1, "status": 404, "error": "Not Found", "path": "/x"}),
    "nest": Case(JSON, {"statusCode": 404, "message": "Cannot GET /v1/x", "error": "Not Found"}),
    "fastify": Case(
        JSON, {"message": "Route GET:/x not found", "error": "Not Found", "statusCode": 404}
    ),
    "azure-api-management": Case(JSON, {"statusCode": 404, "message": "Resource not found"}),
    "railway": Case(JSON, {"status": "error", "code": 404, "message": "Application not found"}),
    "vercel": Case(JSON, {"error": {"code": "404", "message": "The page could not be found"}}),
    "cloud-endpoints": Case(JSON, {"code": 5, "message": "Method does not exist.", "details": []}),
    "esp-v2": Case(
        JSON, {"code": 404, "message": "The current request is not defined by this API."}
    ),
    "kubernetes-api": Case(
        JSON,
        {
            "kind": "Status",
            "status": "Failure",
            "message": "the server could not find the requested resource",
            "reason": "NotFound",
            "code": 404,
        },
    ),
    "openapi-framework": Case(JSON, {"code": 404, "status": "Not Found"}),
    "path-given-back": Case(JSON, {"code": 404, "message": "/v1/accounts/a/jobs/j not found"}),
    "custom-handler": Case(JSON, {"error": {"code": 404, "message": "Not Found"}}),
    "this-gateway-unknown-path": Case(
        JSON, {"error": {"message": "No such path", "code": "NOT_FOUND"}}
    ),
    # Gateways that are made with FastAPI.
    "dstack": Case(JSON, {"detail": "Service main/run-1 not found"}),
    "fastapi-service": Case(JSON, {"detail": "Unknown service"}),
    "fastapi-route": Case(JSON, {"detail": "No matching route for this host"}),
    "fastapi-upstream": Case(JSON, {"detail": "Upstream 'a' could not be found"}),
    "fastapi-replicas": Case(JSON, {"detail": "No ready replicas. Use `sky serve status`."}),
    "mlflow": Case(
        JSON, {"detail": "The endpoint 'a' is not present or active on the server. Please verify"}
    ),
    "fastapi-job": Case(JSON, {"detail": "Trainer job not found or not running"}),
    "fastapi-job-by-name": Case(JSON, {"detail": "No job job-1 in account acc"}),
    "fastapi-server": Case(JSON, {"detail": "No available server."}),
    "fastapi-worker": Case(JSON, {"detail": "worker w-1 is not registered"}),
    "fastapi-deployment": Case(JSON, {"detail": "Deployment 'd' does not exist"}),
    "fastapi-backend": Case(JSON, {"detail": "Backend unavailable"}),
    "fastapi-unrouted": Case(JSON, {"detail": "Cannot route this request"}),
    "fastapi-object": Case(JSON, {"detail": {"message": "No route", "code": "ROUTE_NOT_FOUND"}}),
    "fastapi-code": Case(JSON, {"detail": {"code": "UPSTREAM_NOT_FOUND", "ids": [1]}}),
    "fastapi-list": Case(JSON, {"detail": ["Backend not found"]}),
    "fastapi-fireworks": Case(JSON, {"detail": GATEWAY_BODY}),
    "fastapi-code-beside": Case(JSON, {"detail": "Nothing matches", "code": "ROUTE_NOT_FOUND"}),
    "fastapi-text-beside": Case(JSON, {"detail": "x", "message": "no Route matched with those"}),
    "fastapi-account": Case(JSON, {"detail": "Account acc not found"}),
    "fastapi-resource": Case(JSON, {"detail": "The requested resource could not be found."}),
    "django-query": Case(JSON, {"detail": "No TrainerJob matches the given query."}),
    "fastapi-job-in-one-word": Case(JSON, {"detail": "trainer-job 'job-1' not found"}),
    "fastapi-resource-name": Case(JSON, {"detail": "accounts/a/rlorTrainerJobs/j is unknown"}),
    "fastapi-path": Case(JSON, {"detail": "Not at /training/v1/rlorTrainerJobs/a/j/api/v1/x"}),
    "fastapi-path-of-a-checkpoint": Case(
        JSON, {"detail": "No route for /api/v1/training_runs/r/checkpoints"}
    ),
    "error-with-the-path-of-a-sampler": Case(JSON, {"error": "nothing at api/v1/samplers/s-1"}),
    # The answer of the server behind, as `detail=response.text` and `detail=response.json()`.
    "fastapi-page": Case(JSON, {"detail": "<!DOCTYPE html><pre>Cannot POST /api/v1/x</pre>"}),
    "fastapi-page-of-nginx": Case(JSON, {"detail": "<html><h1>404 Not Found</h1>nginx</html>"}),
    "fastapi-text": Case(JSON, {"detail": "default backend - 404"}),
    "fastapi-json": Case(JSON, {"detail": '{"message":"Not Found"}'}),
    "fastapi-phrase-in-an-object": Case(JSON, {"detail": {"message": "Not Found"}}),
    "fastapi-phrase-and-code": Case(JSON, {"detail": {"error": {"code": "NOT_FOUND"}}}),
    "fastapi-phrase-in-a-list": Case(JSON, {"detail": [{"msg": "Not Found."}]}),
    # What a client raises for it, as `detail=str(error)`.
    "fastapi-httpx": Case(
        JSON, {"detail": "Client error '404 Not Found' for url 'http://pod:8000/api/v1/x'\nFor ..."}
    ),
    "fastapi-requests": Case(
        JSON, {"detail": "404 Client Error: Not Found for url: http://pod:8000/api/v1/x"}
    ),
    "fastapi-aiohttp": Case(
        JSON, {"detail": "404, message='Not Found', url='http://pod:8000/api/v1/x'"}
    ),
    "fastapi-urllib": Case(JSON, {"detail": "HTTP Error 404: Not Found"}, Source.ROUTER),
    "fastapi-status": Case(JSON, {"detail": "Upstream returned 404"}),
    "fastapi-status-line": Case(JSON, {"detail": "Got HTTP/1.1 404 Not Found"}),
    "phrase-as-a-code": Case(JSON, {"detail": "NOT_FOUND"}, Source.ROUTER),
    "django": Case(JSON, {"detail": "Not found."}, Source.ROUTER),
    "django-problem": Case(JSON, {"detail": "Not found.", "error": 1}),
    "phrase": Case(JSON, {"detail": f"{'Not Found':.<64}"}, Source.ROUTER),
    "cloudflare-detail": Case(JSON, {"detail": "x", "cloudflare_error": True}),
    "cloudflare-code": Case(JSON, {"code": 5, "cloudflare_error": True}),
}

SERVERS = {
    "fastapi": Case(JSON, {"detail": "Model not found"}, Source.TRAINER),
    "fastapi-list": Case(JSON, {"detail": [{"loc": ["path"], "msg": "x"}]}, Source.TRAINER),
    "fastapi-object": Case(JSON, {"detail": {"error": "gone", "status": 404}}, Source.TRAINER),
    "fastapi-charset": Case(
        "Application/JSON; charset=utf-8", {"detail": "Future not found"}, Source.TRAINER
    ),
    "fastapi-more": Case(JSON, {"detail": "Future not found", "request_id": "1"}, Source.TRAINER),
    # A proxy that adds the header once more.
    "fastapi-twice": Case(
        "application/json, application/json; charset=utf-8",
        {"detail": "Model not found"},
        Source.TRAINER,
    ),
    "fastapi-router": Case(JSON, b'{"detail":"Not Found"}', Source.ROUTER),
    "fastapi-long": Case(JSON, {"detail": f"{'Not Found':.<65}"}, Source.TRAINER),
    # Texts of servers that answer as FastAPI makes them.
    "tuft": Case(JSON, {"detail": "Future f-1 not found"}, Source.TRAINER),
    "skyrl": Case(JSON, {"detail": "Sampling session not found"}, Source.TRAINER),
    "service-aside": Case(
        JSON, {"detail": "Session s not found: the service has restarted"}, Source.TRAINER
    ),
    "service-of-checkpoints": Case(
        JSON, {"detail": "Service not found for checkpoint c"}, Source.TRAINER
    ),
    "server-in-a-name": Case(JSON, {"detail": "Model my-server not found"}, Source.TRAINER),
    "service-in-a-path": Case(
        JSON, {"detail": "Weights at /mnt/service not found"}, Source.TRAINER
    ),
    "server-of-models": Case(
        JSON,
        {"detail": "The model does not exist on this server or is not available"},
        Source.TRAINER,
    ),
    "worker-of-models": Case(
        JSON, {"detail": "Model m is not loaded on this worker"}, Source.TRAINER
    ),
    "checkpoint-of-an-object": Case(
        JSON, {"detail": {"error": "Service not found", "id": "checkpoint c"}}, Source.TRAINER
    ),
    "twinkle": Case(
        JSON, {"detail": "Training run r-1 not found or access denied"}, Source.TRAINER
    ),
    "miles": Case(JSON, {"detail": "Model m-1 is not registered"}, Source.TRAINER),
    "tuft-loss": Case(JSON, {"detail": "Loss function f not found."}, Source.TRAINER),
    "twinkle-session": Case(JSON, {"detail": "Unknown session"}, Source.TRAINER),
    "twinkle-path": Case(
        JSON, {"detail": "Weights at twinkle://r/checkpoints/c not found"}, Source.TRAINER
    ),
    "fastapi-status-in-front": Case(JSON, {"detail": "404: Model not found"}, Source.TRAINER),
    "fastapi-number-of-a-session": Case(JSON, {"detail": "Session 404 not found"}, Source.TRAINER),
    "fastapi-future-passed-on": Case(
        JSON, {"detail": '{"detail": "Future not found"}'}, Source.TRAINER
    ),
    "fastapi-deep": Case(
        JSON, '{"detail": ' + "[" * 500 + '"Model not found"' + "]" * 500 + "}", Source.TRAINER
    ),
    "fastapi-beside": Case(
        JSON, {"detail": "Model not found", "server": "main", "code": "model_gone"}, Source.TRAINER
    ),
    "fastapi-number": Case(JSON, f'{{"detail": {7**473}}}', Source.TRAINER),
    "fireworks-serverless": Case(
        JSON, {"error": {"code": "not_found", "type": "x"}}, Source.UNKNOWN, True
    ),
    "spindle": Case(JSON, {"error": "not_found", "message": "no such model"}, Source.UNKNOWN, True),
    "open-rl": Case(JSON, {"error": "model m not found"}),
    "tinker-cloud-router": Case(
        JSON, {"error": "Not Found", "status_code": 404, "path": "/x"}, Source.ROUTER
    ),
    "tinker-cloud": Case(
        JSON, {"error": "Model m not found", "status_code": 404, "path": "/x"}, Source.TRAINER
    ),
    "tinker-cloud-route": Case(
        JSON, {"error": "no route for this host", "status_code": 404, "path": "/x"}
    ),
    "tinker-cloud-number": Case(
        JSON, {"error": "Model m not found", "status_code": "404", "path": "/x"}
    ),
    "tinker-cloud-more": Case(
        JSON, {"error": "Model m not found", "status_code": 404, "path": "/x", "timestamp": 1}
    ),
    "spindle-future": Case(
        JSON, {"error": "not_found", "message": "future not found: f-1"}, Source.TRAINER, True
    ),
    "spindle-session": Case(
        JSON, {"error": "not_found", "message": "session not found: s"}, Source.UNKNOWN, True
    ),
    "spindle-more": Case(
        JSON,
        {"error": "not_found", "message": "future not found: f-1", "code": 1},
        Source.UNKNOWN,
        True,
    ),
    "open-rl-own": Case(JSON, {"error": "No base model is configured"}, Source.TRAINER),
    "open-rl-route": Case(JSON, {"error": "no upstream for /training/v1 of checkpoint c"}),
    "open-rl-phrase": Case(JSON, {"error": "Not Found"}),
    "open-rl-long": Case(JSON, {"error": "x" * 1000 + " checkpoint"}),
    "connect": Case(
        JSON, {"code": "not_found", "message": "checkpoint c is gone"}, Source.TRAINER, True
    ),
    "connect-router": Case(JSON, {"code": "not_found", "message": "no route for this path"}),
    "connect-unknown": Case(
        JSON, {"code": "not_found", "message": "nothing here"}, Source.UNKNOWN, True
    ),
    "serverless": Case(
        JSON,
        {"error": {"code": "not_found", "type": "x", "message": "no training session ts-1"}},
        Source.TRAINER,
        True,
    ),
    "serverless-model": Case(
        JSON,
        {"error": {"code": "not_found", "type": "x", "message": "Model not found"}},
        Source.UNKNOWN,
        True,
    ),
    "serverless-more": Case(
        JSON,
        {"error": {"code": "not_found", "type": "x", "message": "no checkpoint c", "param": None}},
        Source.TRAINER,
        True,
    ),
    "spindle-other-error": Case(JSON, {"error": "gone", "message": "no such checkpoint"}),
    "connect-other-code": Case(JSON, {"code": "unavailable", "message": "no such checkpoint"}),
    "serverless-other-code": Case(
        JSON, {"error": {"code": 404, "type": "x", "message": "training session"}}
    ),
    "serverless-text": Case(JSON, {"error": "checkpoint", "code": 1}),
    "problem-of-a-server": Case(PROBLEM, {"error": "No base model is configured"}),
}

# Routers that answer in the form of a control plane, and give back the path or just the status.
ROUTERS = {
    "grpc-gateway": Case(JSON, {"code": 5, "message": "Not Found", "details": []}),
    "grpc-gateway-1": Case(JSON, {"error": "Not Found", "message": "Not Found", "code": 5}),
    "jax-rs": Case(JSON, {"error": "NotFoundException", "message": "HTTP 404 Not Found"}),
    "spring": Case(
        PROBLEM,
        {
            "type": "about:blank",
            "title": "Not Found",
            "status": 404,
            "detail": "No static resource v1/accounts/a/rlorTrainerJobs/j.",
            "instance": "/v1/accounts/a/rlorTrainerJobs/j",
        },
    ),
    "path-without-its-slash": Case(
        JSON, {"code": "NOT_FOUND", "message": "nothing at v1beta1/accounts/a"}
    ),
    "platform-app": Case(JSON, {"error": "not_found", "message": "no such app"}),
    "platform-app-by-name": Case(JSON, {"code": "not_found", "message": "App a-1 was not found"}),
    "ingress": Case(JSON, {"error": {"code": "NotFound", "message": "Ingress not found"}}),
    "tunnel": Case(JSON, {"code": "NOT_FOUND", "message": "Tunnel is not connected"}),
    "listener": Case(JSON, {"code": 5, "message": "no listener on this address", "details": []}),
    "supabase": Case(JSON, {"code": "NOT_FOUND", "message": "Requested function was not found"}),
}

CONTROL_PLANES = {
    "grpc-gateway": Case(JSON, {"code": 5, "message": "not found"}, Source.UNKNOWN, True),
    "grpc-status": Case(JSON, {"code": 5, "message": "Not Found"}, Source.UNKNOWN, True),
    "grpc-status-details": Case(
        JSON, {"code": 5, "message": "Not Found", "details": [{}]}, Source.UNKNOWN, True
    ),
    "name-and-status": Case(
        JSON, {"error": {"code": "NOT_FOUND", "message": "Not Found"}}, Source.UNKNOWN, True
    ),
    "google-status-phrase": Case(
        JSON,
        {"error": {"code": 404, "status": "NOT_FOUND", "message": "Not Found"}},
        Source.UNKNOWN,
        True,
    ),
    "name-and-phrase": Case(
        JSON, {"code": "NOT_FOUND", "message": "Not found"}, Source.UNKNOWN, True
    ),
    "grpc-gateway-details": Case(
        JSON,
        {"code": 5, "message": 'rlorTrainerJob "j" not found', "details": []},
        Source.UNKNOWN,
        True,
    ),
    "google": Case(
        JSON,
        {
            "error": {
                "code": 404,
                "message": "Requested entity was not found.",
                "status": "NOT_FOUND",
            }
        },
        Source.UNKNOWN,
        True,
    ),
    "google-bare": Case(
        JSON, {"error": {"code": 404, "message": "job j was not found"}}, Source.UNKNOWN, True
    ),
    "google-status": Case(
        JSON, {"error": {"status": 404, "message": "no job j"}}, Source.UNKNOWN, True
    ),
    "grpc-of-a-router": Case(JSON, {"code": 5, "reason": "ROUTE_NOT_FOUND"}),
    "grpc-number-inside": Case(JSON, {"error": {"code": 5}}, Source.UNKNOWN, True),
    "name": Case(JSON, {"code": "NOT_FOUND"}, Source.UNKNOWN, True),
    "grpc-without-a-text": Case(JSON, {"code": 5, "message": ""}, Source.UNKNOWN, True),
    "status-and-more": Case(
        JSON, {"code": 5, "message": "Not Found", "description": "job j"}, Source.UNKNOWN, True
    ),
    "version-in-a-name": Case(
        JSON, {"code": 5, "message": "no job j/v1/2 of v1.2/x"}, Source.UNKNOWN, True
    ),
    "name-inside": Case(
        JSON, {"error": {"message": "Job not found", "code": "NOT_FOUND"}}, Source.UNKNOWN, True
    ),
    "job-name": Case(JSON, {"code": "job_not_found", "message": "gone"}, Source.UNKNOWN, True),
    "long-name": Case(JSON, {"code": f"{'job_not_found':_<64}"}, Source.UNKNOWN, True),
    "too-long-name": Case(JSON, {"code": f"{'job_not_found':_<65}"}),
    "trainer-job-name": Case(JSON, {"code": "TRAINER_JOB_NOT_FOUND"}, Source.UNKNOWN, True),
    "number": Case(JSON, {"code": 404, "message": "no job j in account a"}, Source.UNKNOWN, True),
    "aws": Case(
        "application/x-amz-json-1.1",
        {"__type": "com.amazonaws#ResourceNotFoundException", "message": "no job"},
    ),
    "aws-json": Case(
        JSON,
        {"__type": "com.amazonaws#ResourceNotFoundException", "message": "no job"},
        Source.UNKNOWN,
        True,
    ),
    "kubernetes": Case(
        JSON,
        {
            "kind": "Status",
            "status": "Failure",
            "message": 'rayjobs.ray.io "j" not found',
            "reason": "NotFound",
            "details": {"name": "j", "kind": "rayjobs"},
            "code": 404,
        },
        Source.UNKNOWN,
        True,
    ),
    "problem": Case(
        PROBLEM,
        {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "Job j is gone"},
        Source.UNKNOWN,
        True,
    ),
    "problem-as-json": Case(
        JSON, {"title": "Job missing", "status": 404, "detail": "No job j"}, Source.UNKNOWN, True
    ),
    "title-alone": Case(
        JSON, {"title": "x", "status": 404, "message": "no job j"}, Source.UNKNOWN, True
    ),
    "detail-alone": Case(JSON, {"status": 404, "detail": "no job j"}, Source.UNKNOWN, True),
    "route-in-a-problem": Case(
        JSON, {"code": "ROUTE_NOT_FOUND", "status": 404, "detail": "nothing matches"}
    ),
    "number-without-a-job": Case(JSON, {"code": 404, "message": "nothing to see here"}),
    "problem-without-a-job": Case(PROBLEM, {"title": "x", "status": 404, "detail": "Go away"}),
    "status-without-a-problem": Case(JSON, {"status": 404, "message": "no job j"}),
    "other-code": Case(JSON, {"code": 7, "message": "permission denied"}),
    "boolean-code": Case(JSON, {"code": True, "message": "job not found"}),
    "float-code": Case(JSON, {"code": 404.0, "message": "job not found"}),
    "no-code": Case(JSON, {"message": "job j not found"}),
    "text": Case(TEXT, {"code": 5, "message": "not found"}),
}

NOTHING = {
    "empty": Case(JSON, ""),
    "no-content-type": Case("", {"detail": "Model not found"}),
    "html": Case(HTML, {"detail": "Model not found"}),
    "text-json": Case("text/json", {"detail": "Model not found"}),
    "two-media-types": Case("application/json, text/html", {"detail": "Model not found"}),
    "two-media-types-with-a-charset": Case(
        "application/json; charset=utf-8, text/html", {"detail": "Model not found"}
    ),
    "two-media-types-of-json": Case(
        "application/json, application/problem+json", {"detail": "Model not found"}
    ),
    "json-in-a-parameter": Case("text/plain; a=application/json", {"detail": "Model not found"}),
    "list": Case(JSON, '["detail"]'),
    "string": Case(JSON, '"detail"'),
    "null": Case(JSON, "null"),
    "null-detail": Case(JSON, {"detail": None}),
    "error-too": Case(JSON, {"detail": "x", "error": None}),
    "errors-too": Case(JSON, {"detail": "x", "errors": []}),
    "title-in-capitals": Case(JSON, {"detail": "x", "Title": "Not Found"}),
    "code-without-param": Case(JSON, {"error": {"code": "NOT_FOUND"}}, Source.UNKNOWN, True),
    "other-code-with-param": Case(JSON, {"error": {"code": "GONE", "param": "jobId"}}),
    "cut": Case(JSON, '{"detail": "Model not fou'),
    "two-documents": Case(JSON, '{"detail": "x"} {"detail": "x"}'),
    "twice": Case(JSON, '{"detail": "x", "detail": "y"}'),
    "twice-error": Case(JSON, '{"code": 5, "code": 5}'),
    "twice-inside": Case(JSON, '{"detail": {"a": 1, "a": 2}}'),
    "nan": Case(JSON, '{"detail": NaN}'),
    "infinity": Case(JSON, '{"detail": "x", "x": -Infinity}'),
    "long-integer": Case(JSON, f'{{"detail": {7**474}}}'),
    "a-million-digits": Case(JSON, '{"detail": ' + "9" * 1_000_000 + "}"),
    "deep": Case(JSON, '{"detail": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "deep-objects": Case(JSON, '{"detail": ' * 100_000),
    "wrong-bytes": Case(JSON, b"\xff\xfe\x00"),
    "wrong-bytes-inside": Case(JSON, b'{"detail": "\xff"}'),
    "too-long": Case(JSON, '{"detail": "' + "x" * BODY_LIMIT + '"}'),
    "long-and-spaces": Case(JSON, '{"detail": "x"}' + " " * BODY_LIMIT),
}

ALL = {
    f"{kind}-{name}": case
    for kind, cases in {
        "gateway": GATEWAYS,
        "router": ROUTERS,
        "server": SERVERS,
        "plane": CONTROL_PLANES,
        "nothing": NOTHING,
    }.items()
    for name, case in cases.items()
}
every_case = pytest.mark.parametrize("case", ALL.values(), ids=[*ALL])


@every_case
def test_who_wrote_a_404(case: Case) -> None:
    assert source_of(case.headers(), case.wire) is case.source


@every_case
def test_whether_a_control_plane_says_that_there_is_no_job(case: Case) -> None:
    assert is_control_planes_404(case.headers(), case.wire) is case.is_control_planes


@every_case
def test_a_404_shows_the_trainer_only_where_the_trainer_wrote_it(case: Case) -> None:
    is_trainers = case.source is Source.TRAINER
    assert is_from_trainer(404, case.headers(), case.wire) is is_trainers


# -- what the URL names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "ids", "is_control_planes"),
    [
        # A router's word in an id says nothing ...
        ({"code": 5, "message": "no job a-route"}, ["a-route"], True),
        ({"code": 5, "message": "No job A-Route."}, ["a-route"], True),
        ({"code": 5, "message": "no job a-route-b"}, ["a-route", "a-route-b"], True),
        ({"code": 5, "message": "no job host_1"}, ["host_1"], True),
        # ... but the word beside it does, and so does one that could be either.
        ({"code": 5, "message": "no route to a-route"}, ["a-route"], False),
        ({"code": 5, "message": "no route to route"}, ["route"], False),
        ({"code": 5, "message": "no job a-route-b"}, ["a-route"], False),
        # That an id speaks of a job does not show that the answer does.
        ({"code": 404, "message": "nothing at job-1"}, ["job-1"], False),
        ({"code": 404, "message": "nothing at trainer"}, ["trainer"], False),
        ({"code": 404, "message": "no job job-1"}, ["job-1"], True),
        ({"code": 404, "message": "no job"}, [""], True),
    ],
)
def test_an_id_that_is_given_back_is_no_evidence_of_a_control_plane(
    body: dict[str, Any], ids: list[str], is_control_planes: bool
) -> None:
    case = Case(JSON, body)
    assert is_control_planes_404(case.headers(), case.wire, ids=ids) is is_control_planes


@pytest.mark.parametrize(
    ("text", "ids", "source"),
    [
        ("checkpoint-1 is unknown", ["checkpoint-1"], Source.UNKNOWN),
        ("checkpoint is unknown", ["checkpoint"], Source.UNKNOWN),
        ("no checkpoint in checkpoint-1", ["checkpoint-1"], Source.TRAINER),
        ("no checkpoint on host-1", ["host-1"], Source.TRAINER),
        ("no checkpoint on host-1", [], Source.UNKNOWN),
        ("checkpoint-1: service not found", ["checkpoint-1"], Source.UNKNOWN),
        ("x" * 1995 + " future-1", ["future-1"], Source.UNKNOWN),
        ("x" * 990 + " future-1", ["future-1"], Source.UNKNOWN),
    ],
)
def test_an_id_that_is_given_back_is_no_evidence_of_a_trainer(
    text: str, ids: list[str], source: Source
) -> None:
    case = Case(JSON, {"error": text})
    assert source_of(case.headers(), case.wire, ids=ids) is source


@pytest.mark.parametrize(
    ("text", "ids", "source"),
    [
        ("Service a/checkpoint-1 not found", ["a", "checkpoint-1"], Source.UNKNOWN),
        ("Model no-route-1 not found", ["no-route-1"], Source.TRAINER),
        ("Model not found", ["a"], Source.TRAINER),
    ],
)
def test_an_id_that_is_given_back_by_fastapi_is_no_evidence(
    text: str, ids: list[str], source: Source
) -> None:
    case = Case(JSON, {"detail": text})
    assert source_of(case.headers(), case.wire, ids=ids) is source


@pytest.mark.parametrize("ids", [["run", "future.run"], ["future.run", "run"]])
def test_the_longer_of_two_ids_is_looked_for_first(ids: list[str]) -> None:
    """The rest of it may be a trainer's word."""
    case = Case(JSON, {"error": "future.run does not run"})
    assert source_of(case.headers(), case.wire, ids=ids) is Source.UNKNOWN


def test_ids_are_looked_for_as_they_are() -> None:
    case = Case(JSON, {"error": "checkpoint is unknown"})
    assert source_of(case.headers(), case.wire, ids=["che.kpoint", "c", "(", ""]) is Source.TRAINER


# A text alone is no error.
@pytest.mark.parametrize("name", [name for name in GATEWAYS if name not in ("kong", "aws-http")])
def test_what_a_gateway_says_shows_nothing_whatever_the_status(name: str) -> None:
    """As of a gateway that has a page for each error, or answers 200 where it knows no path."""
    case = GATEWAYS[name]
    for status_code in (200, 202, 404, 502):
        assert is_from_trainer(status_code, case.headers(), case.wire) is False


# -- which gateway ---------------------------------------------------------------------------------

NGINX_PAGE = (
    "<html>\r\n<head><title>404 Not Found</title></head>\r\n<body>\r\n"
    "<center><h1>404 Not Found</h1></center>\r\n<hr><center>{}</center>\r\n</body>\r\n</html>\r\n"
)
HAPROXY_PAGE = (
    "<html><body><h1>404 Not Found</h1>\nThe resource could not be found.\n</body></html>\n"
)
RAY_TEXT = "Path '/api/v1/x' not found. Ping http://127.0.0.1:8000/-/routes for available routes."


class Met(NamedTuple):
    """A 404 as it comes over the wire."""

    gateway: str | None
    headers: dict[str, str]
    body: bytes | str | dict[str, Any] = b""

    @property
    def wire(self) -> bytes:
        return Case("", self.body).wire


MET = {
    "dstack": Met("dstack", {"content-type": JSON}, {"detail": "Service main/run-1 not found"}),
    "fireworks": Met("fireworks", {"content-type": JSON}, GATEWAY_BODY),
    "nginx": Met(
        "nginx", {"content-type": HTML, "server": "nginx/1.22.1"}, NGINX_PAGE.format("nginx/1.22.1")
    ),
    "nginx-silent": Met(
        "nginx", {"content-type": HTML, "server": "nginx"}, NGINX_PAGE.format("nginx")
    ),
    "ingress-nginx": Met("ingress-nginx", {"content-type": HTML}, NGINX_PAGE.format("nginx")),
    "nginx-behind-another": Met(
        "nginx", {"content-type": HTML, "server": "cloudflare"}, NGINX_PAGE.format("nginx")
    ),
    "openresty": Met("openresty", {"content-type": HTML}, NGINX_PAGE.format("openresty/1.25.3.1")),
    "nginx-in-a-text": Met(None, {"content-type": HTML}, "<p>We use nginx"),
    "envoy": Met("envoy", {"server": "envoy", "connection": "close"}),
    "envoy-of-an-upstream": Met(None, {"server": "envoy", "x-envoy-upstream-service-time": "1"}),
    "istio": Met("istio", {"server": "istio-envoy"}),
    "nameless": Met(None, {}),
    "empty-json": Met(None, {"server": "envoy", "content-type": JSON}),
    "gke": Met("gcp", {"content-type": TEXT, "via": "1.1 google"}, "fault filter abort"),
    "fault-filter": Met("envoy", {"content-type": TEXT}, "fault filter abort"),
    "gke-rules": Met(
        "gcp",
        {"content-type": TEXT},
        "response 404 (backend NotFound), service rules for the path non-existent \n",
    ),
    "kubernetes": Met("kubernetes-backend", {"content-type": TEXT}, "default backend - 404"),
    "traefik": Met(
        "traefik-or-go",
        {"content-type": TEXT, "x-content-type-options": "nosniff"},
        "404 page not found\n",
    ),
    "traefiks-text": Met(None, {"content-type": TEXT}, "404 page not found\n"),
    "haproxy": Met("haproxy", {"content-type": HTML}, HAPROXY_PAGE),
    "haproxy-empty": Met(None, {}),
    "caddy": Met("caddy", {"server": "Caddy"}),
    "caddy-of-an-upstream": Met(None, {"server": "Caddy", "via": "1.1 Caddy"}),
    "kong": Met(
        "kong",
        {"content-type": "application/json; charset=utf-8"},
        {"message": "no Route matched with those values", "request_id": "1a"},
    ),
    "apisix": Met("apisix", {"content-type": JSON}, {"error_msg": "404 Route Not Found"}),
    "apisix-number": Met(None, {"content-type": JSON}, {"error_msg": 404}),
    "ray-serve": Met("ray-serve", {"content-type": "text/plain", "server": "uvicorn"}, RAY_TEXT),
    "ray-parent": Met(None, {"content-type": JSON}, {"detail": "Not Found"}),
    "knative": Met(
        "knative", {"content-type": TEXT}, 'Error getting active endpoint: revision "r" not found\n'
    ),
    "modal": Met("modal", {"content-type": TEXT}, "modal-http: invalid function call"),
    "modal-stopped": Met(
        "modal", {"content-type": TEXT}, "modal-http: app for invoked web endpoint is stopped"
    ),
    "modal-disabled": Met("modal", {"content-type": TEXT}, "workspace w is disabled"),
    "aws-http-api": Met(
        "aws-http-api", {"content-type": JSON, "apigw-requestid": "Jx="}, {"message": "Not Found"}
    ),
    "aws-without-a-trace": Met(None, {"content-type": JSON}, {"message": "Not Found"}),
    "cloudflare": Met("cloudflare", {"content-type": JSON}, CLOUDFLARE_BODY),
    "cloudflare-problem": Met("cloudflare", {"content-type": PROBLEM}, CLOUDFLARE_BODY),
    "cloudflare-false": Met(None, {"content-type": JSON}, {"cloudflare_error": False}),
    # A tunnel's rule `http_status:404`; an origin behind the edge may write the same.
    "cloudflare-tunnel": Met(None, {"server": "cloudflare", "cf-ray": "9d99a4434fz2d168-FRA"}),
    "trainer": Met(None, {"content-type": JSON}, {"detail": "Model not found"}),
    "no-json": Met(None, {"content-type": JSON}, "nothing"),
    "too-long": Met(
        None, {"content-type": TEXT, "via": "1.1 google"}, "fault filter abort" + " " * 5000
    ),
    "unknown-coding": Met(
        None, {"content-type": TEXT, "content-encoding": "rot13"}, "default backend - 404"
    ),
}


@pytest.mark.parametrize("met", MET.values(), ids=[*MET])
def test_which_gateway_wrote_a_404(met: Met) -> None:
    headers = httpx.Headers(met.headers)
    assert gateway_of(headers, met.wire) == met.gateway
    if "content-encoding" in headers:
        assert gateway_of(headers, met.wire, is_decoded=True) == "kubernetes-backend"
    elif met.wire:
        coded = httpx.Headers(met.headers | {"content-encoding": "gzip"})
        assert gateway_of(coded, gzip.compress(met.wire)) == met.gateway


@pytest.mark.parametrize(
    ("name", "length"),
    [("nginx", 153), ("nginx-silent", 146), ("ingress-nginx", 146), ("haproxy", 83), ("envoy", 0)],
)
def test_pages_are_as_long_as_they_were_measured(name: str, length: int) -> None:
    assert len(MET[name].wire) == length


# What gateways say of the same race, or in the place of a 404, with another status.
OTHER_STATUSES = {
    "nginx": (502, HTML, "<html><center><h1>502 Bad Gateway</h1></center><hr>nginx</html>"),
    "ingress-nginx": (503, HTML, "<html><h1>503 Service Temporarily Unavailable</h1></html>"),
    "envoy": (503, TEXT, "no healthy upstream"),
    "envoy-reset": (503, TEXT, "upstream connect error or disconnect/reset before headers"),
    "traefik": (502, TEXT, "Bad Gateway"),
    "traefik-no-server": (503, TEXT, "no available server\n"),
    "haproxy": (503, HTML, "<html><body><h1>503 Service Unavailable</h1></body></html>"),
    "caddy": (502, "", ""),
    "caddy-no-route": (200, "", ""),
    "kong": (503, JSON, '{"message": "name resolution failed"}'),
    "ray-serve": (503, TEXT, "Route table is not populated yet."),
    "knative": (503, TEXT, "Error getting active endpoint: context deadline exceeded"),
    "aws-rest-api": (403, JSON, '{"message": "Missing Authentication Token"}'),
    "aws-load-balancer": (503, HTML, "<html><h1>503 Service Temporarily Unavailable</h1></html>"),
    "cloudflare": (503, JSON, '{"status": 503, "title": "Error", "cloudflare_error": true}'),
    "azure-front-door": (400, HTML, "<h2>Our services aren't available right now</h2>"),
    "miles-not-ready": (503, JSON, '{"detail": "not ready"}'),
    "spindle-lost-model": (410, JSON, '{"error": "gone", "message": "model m was lost"}'),
}


@pytest.mark.parametrize("answer", OTHER_STATUSES.values(), ids=[*OTHER_STATUSES])
def test_no_other_answer_of_a_gateway_shows_the_trainer(answer: tuple[int, str, str]) -> None:
    status_code, content_type, body = answer
    headers = httpx.Headers({"content-type": content_type} if content_type else {})
    assert is_from_trainer(status_code, headers, body.encode()) is False


@pytest.mark.parametrize("met", MET.values(), ids=[*MET])
def test_no_gateways_404_is_the_trainers(met: Met) -> None:
    if met.gateway is not None:
        source = source_of(httpx.Headers(met.headers), met.wire)
        assert source is (Source.GATEWAY if met.gateway == "fireworks" else Source.UNKNOWN)


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda body: gzip.compress(body, mtime=0),
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body, mtime=0), mtime=0),
}


@pytest.mark.parametrize(("coding", "encode"), CODERS.items(), ids=[*CODERS])
def test_a_coded_body_says_the_same(coding: str, encode: Callable[[bytes], bytes]) -> None:
    for case in (*GATEWAYS.values(), *SERVERS.values(), *CONTROL_PLANES.values()):
        headers, wire = case.headers(content_encoding=coding), encode(case.wire)
        assert source_of(headers, wire) is case.source
        assert is_control_planes_404(headers, wire) is case.is_control_planes
        # Undone below: the header still stands there.
        assert source_of(headers, case.wire, is_decoded=True) is case.source
        is_control_planes = is_control_planes_404(headers, case.wire, is_decoded=True)
        assert is_control_planes is case.is_control_planes
        is_trainers = is_from_trainer(404, headers, case.wire, is_decoded=True)
        assert is_trainers is (case.source is Source.TRAINER)
        if case.source is not Source.UNKNOWN:
            assert source_of(headers, case.wire) is Source.UNKNOWN
            assert source_of(headers, wire[:20]) is Source.UNKNOWN
    headers = httpx.Headers({"content-type": JSON, "content-encoding": coding})
    assert is_from_trainer(200, headers, encode(b'{"a": 1}'))
    assert is_from_trainer(200, headers, b'{"a": 1}', is_decoded=True)


@pytest.mark.parametrize("coding", ["br", "compress", "gzip", "x, gzip"])
def test_a_body_that_cannot_be_decoded_shows_nothing(coding: str) -> None:
    case = SERVERS["fastapi"]
    assert source_of(case.headers(content_encoding=coding), case.wire) is Source.UNKNOWN


@pytest.mark.parametrize(("coding", "encode"), CODERS.items(), ids=[*CODERS])
def test_a_bomb_shows_nothing(coding: str, encode: Callable[[bytes], bytes]) -> None:
    for size in (BODY_LIMIT, 2**26):
        wire = encode(b'{"detail": "' + b"x" * size + b'"}')
        headers = SERVERS["fastapi"].headers(content_encoding=coding)
        assert source_of(headers, wire) is Source.UNKNOWN
        assert is_control_planes_404(headers, wire) is False


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_the_limit_is_that_of_the_decoded_body_too(coding: str) -> None:
    body = b'{"detail": "' + b"x" * 100 + b'"}'
    headers = SERVERS["fastapi"].headers(content_encoding=coding)
    wire = gzip.compress(body, mtime=0) if coding == "gzip" else body
    for limit, source in ((len(body), Source.TRAINER), (len(body) - 1, Source.UNKNOWN)):
        assert source_of(headers, wire, limit=limit) is source
        assert is_from_trainer(404, headers, wire, limit=limit) is (source is Source.TRAINER)


# -- probes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status_code", "content_type", "body"),
    [
        pytest.param(200, JSON, b'{"supported_models": []}', id="capabilities"),
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
        pytest.param(404, JSON, b'{"detail": "no such path here"}', id="its-own-404"),
    ],
)
def test_the_trainers_own_answer(status_code: int, content_type: str, body: bytes) -> None:
    assert is_from_trainer(status_code, httpx.Headers({"content-type": content_type}), body)


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
    assert not is_from_trainer(status_code, headers, body)


COPIES = [
    ("age", "1"),
    ("age", "86400"),
    ("Age", " 07 "),
    ("age", "5, 0"),
    ("X-Cache", "HIT"),
    ("x-cache", "hit"),
    ("x-cache", "Hit from cloudfront"),
    ("x-cache", "RefreshHit from cloudfront"),
    ("x-cache", "MISS, HIT"),
    ("x-cache", "HIT, MISS"),
    ("x-cache", "HIT from proxy.test:3128"),
    ("x-cache", "TCP_MEM_HIT from a.test (AkamaiGHost)"),
    ("x-cache", "TCP_REFRESH_UNMODIFIED"),
    ("x-cache", "HIT-SYNTH"),
    ("x-cache-hits", "0,3"),
    ("x-cache-hits", "3,0"),
    ("x-cache-remote", "TCP_HIT"),
    ("x-cache-status", "HIT"),
    ("x-cache-status", "STALE"),
    ("x-cache-status", "UPDATING"),
    ("x-cache-status", "REVALIDATED"),
    ("x-proxy-cache", "HIT"),
    ("x-fastcgi-cache", "HIT"),
    ("x-litespeed-cache", "hit,litemage"),
    ("x-tyk-cached-response", "1"),
    ("x-cache-hit", "true"),
    ("server-timing", "cdn-cache; desc=HIT"),
    ("server-timing", 'edge; dur=1, cdn-cache; dur=0; desc="HIT"'),
    ("server-timing", 'cfCacheStatus;desc="STALE"'),
    ("server-timing", 'cache;desc="hit-front", host;desc="cp3066"'),
    ("x-vercel-cache", "STALE"),
    ("apisix-cache-status", "HIT"),
    ("cdn_cache_status", "hit"),
    ("x-from-cache", "1"),
    ("cf-cache-status", "HIT"),
    ("cf-cache-status", "REVALIDATED"),
    ("cf-cache-status", "UPDATING"),
    ("cache-status", "ExampleCache; hit"),
    ("cache-status", "ExampleCache;hit;ttl=376"),
    ("cache-status", '"a, b"; fwd=miss; stored, Edge; ttl=1; hit'),
    ("cache-status", "Edge; hit=?1"),
    ("cache-status", "Edge; fwd=stale; fwd-status=304"),
    ("cache-status", "HIT"),
    ("warning", '110 - "Response is Stale"'),
    ("warning", '199 - "a, b", 113 cache "Heuristic Expiration"'),
    ("x-varnish", "32770 5"),
    ("x-varnish", "32770, 32771 5"),
]
ORIGINALS = [
    ("age", "0"),
    ("age", "soon"),
    ("age", "00"),
    ("age", ""),
    ("age", "-1"),
    ("x-cache", "MISS"),
    ("x-cache", "Miss from cloudfront"),
    ("x-cache", "MISS from white.test"),
    ("x-cache", "MISS from hit.test:80"),
    ("x-cache", "TCP_MISS"),
    ("x-cache", "CONFIG_NOCACHE"),
    ("x-cache", ""),
    ("x-cache-hits", "0, 0"),
    ("x-cache-lookup", "HIT from proxy.test:3128"),
    ("x-cache-key", "/hit"),
    ("x-cache-status", "BYPASS"),
    ("x-cache-status", "EXPIRED"),
    ("cf-cache-status", "DYNAMIC"),
    ("cf-cache-status", "MISS"),
    ("cf-cache-status", "NONE/UNKNOWN"),
    ("cache-status", "ExampleCache; fwd=uri-miss; stored"),
    ("cache-status", "ExampleCache; fwd=stale; fwd-status=200"),
    ("cache-status", 'ExampleCache; fwd=miss; key="a; hit"'),
    ("cache-status", "Edge; hit=?0"),
    ("cache-control", "max-age=0, stale-while-revalidate=5, hit"),
    ("warning", '214 - "Transformation Applied"'),
    ("warning", '199 - "110, 111"'),
    ("x-varnish", "32770"),
    ("x-varnish", "32770, 32771"),
    ("x-no-cache", "1"),
    ("x-skip-cache", "true"),
    ("x-bypass-cache", "yes"),
    ("x-wp-bypass-cache", "1"),
    ("x-served-by", "cache-hit"),
    ("x-cache-hit", "false"),
    ("server-timing", "cdn-cache; desc=MISS, edge; dur=1"),
    ("server-timing", "cache, db;desc=HIT"),
    ("server-timing", "hit;desc=cache"),
]


@pytest.mark.parametrize(("name", "value"), COPIES)
def test_a_copy_from_a_cache_shows_nothing(name: str, value: str) -> None:
    headers = httpx.Headers({"content-type": JSON, name: value})
    assert is_cached_copy(headers)
    assert not is_from_trainer(200, headers, b'{"supported_models": []}')
    assert not is_from_trainer(404, headers, b'{"detail": "Model not found"}')
    assert not is_control_planes_404(headers, b'{"code": 5, "message": "not found"}')


@pytest.mark.parametrize(("name", "value"), ORIGINALS)
def test_an_answer_that_a_cache_let_pass(name: str, value: str) -> None:
    headers = httpx.Headers({"content-type": JSON, name: value})
    assert not is_cached_copy(headers)
    assert is_from_trainer(200, headers, b'{"supported_models": []}')
    assert is_control_planes_404(headers, b'{"code": 5, "message": "not found"}')


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
    source = source_of(headers, body, is_decoded=is_decoded, limit=limit)
    is_trainers = is_from_trainer(status_code, headers, body, is_decoded=is_decoded, limit=limit)
    is_planes = is_control_planes_404(headers, body, is_decoded=is_decoded, limit=limit)
    assert source is Source.UNKNOWN or not is_planes or source is Source.TRAINER
    gateway = gateway_of(headers, body, is_decoded=is_decoded, limit=limit)
    assert gateway is None or source in (Source.UNKNOWN, Source.GATEWAY)
    assert not is_trainers or status_code == 404 or 200 <= status_code < 300


@pytest.mark.parametrize(("length", "gateway"), [(4096, "nginx"), (4097, None)])
def test_a_page_longer_than_any_gateways_own_names_none(length: int, gateway: str | None) -> None:
    page = b"<html><center>nginx</center></html>"
    headers = httpx.Headers({"content-type": "text/html", "server": "nginx"})
    assert gateway_of(headers, page + b" " * (length - len(page))) == gateway


@pytest.mark.parametrize("server", ["Caddy", "caddy", "CADDY"])
def test_a_gateway_is_named_however_its_header_is_written(server: str) -> None:
    assert gateway_of(httpx.Headers({"server": server}), b"") == "caddy"


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
