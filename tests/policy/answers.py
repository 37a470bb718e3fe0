"""Answers, row by row: of gateways, of servers that speak Tinker, of control planes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import httpx

from tinker_guard.policy.json_body import BODY_LIMIT
from tinker_guard.policy.not_found import Source

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
    "phrase-as-an-error": Case(JSON, {"detail": "NotFoundError"}, Source.ROUTER),
    "phrase-of-grpc": Case(JSON, {"detail": "StatusCode.NOT_FOUND"}, Source.ROUTER),
    "phrase-and-an-id": Case(JSON, {"detail": "Not Found - Request ID: 1a-2"}, Source.ROUTER),
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
    "hasura": Case(JSON, {"path": "$", "error": "resource does not exist", "code": "not-found"}),
    "no-deployment": Case(JSON, {"code": "NOT_FOUND", "message": "Deployment not found"}),
    "no-instance": Case(JSON, {"code": "NOT_FOUND", "message": "no instance is running"}),
    "no-tenant": Case(JSON, {"code": "NOT_FOUND", "message": "No tenant for this request"}),
    "version": Case(JSON, {"code": "NOT_FOUND", "message": "Unknown API version v1"}),
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
    "number-and-error": Case(JSON, {"code": 404, "error": "Job not found"}, Source.UNKNOWN, True),
    "number-and-reason": Case(
        JSON, {"code": 404, "reason": "job j not found"}, Source.UNKNOWN, True
    ),
    "in-a-list": Case(
        JSON, {"errors": [{"code": "NOT_FOUND", "message": "job gone"}]}, Source.UNKNOWN, True
    ),
    "no-such-job": Case(JSON, {"code": "NO_SUCH_JOB", "message": "j"}, Source.UNKNOWN, True),
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
