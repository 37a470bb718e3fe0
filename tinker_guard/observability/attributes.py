"""Every attribute that the guard puts on a span or a metric, declared once.

docs/telemetry.md holds the same as a table, and a test compares both with what is emitted.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class On(StrEnum):
    """What an attribute can stand on."""

    REQUEST = "request"
    """The span of one guarded request, from its arrival at the guard to the answer.

    A request that met nothing has its CLIENT span for this, if the guard makes that."""
    EXCHANGE = "exchange"
    """The CLIENT span of one exchange over the network, if it is not the request's."""
    RESEND = "resend"
    """The span of one resend; its exchange is below it."""
    PROBE = "probe"
    """The span of one probe; its exchange is below it."""
    QUESTION = "question"
    """The span of one control-plane question; its exchange is below it."""
    WARMUP = "warmup"
    """The span of one route's warmup."""
    CALLER = "caller"
    """The program's own span in which the request was made, if there is one."""
    METRICS = "metrics"


class Attribute(NamedTuple):
    """What is known about one attribute."""

    name: str
    type: type[str | int | float | bool]
    on: frozenset[On]
    meaning: str


ATTRIBUTES: Final[dict[str, Attribute]] = {}
"""All of them, by name."""


def _declare(
    name: str, value_type: type[str | int | float | bool], on: tuple[On, ...], meaning: str
) -> str:
    ATTRIBUTES[name] = Attribute(name, value_type, frozenset(on), meaning)
    return name


_ACTIONS = (On.RESEND, On.PROBE, On.QUESTION, On.WARMUP)

# -- the guard's own -----------------------------------------------------------------------------

OUTCOME: Final = _declare(
    "tinker_guard.outcome",
    str,
    (On.REQUEST, On.METRICS),
    "How the request ended: `ok`, `recovered`, `not_found`, `exhausted`, `unverified`, `error` "
    "or `cancelled`.",
)
VERDICT: Final = _declare(
    "tinker_guard.verdict",
    str,
    (On.REQUEST, On.RESEND, On.QUESTION, On.WARMUP, On.METRICS),
    "What a 404 turned out to be: `routing_race`, `genuine_not_found` or `unverified`. On a "
    "request, the last 404, its own or one that its route's warmup met; on a resend, the one that "
    "it follows.",
)
REASON: Final = _declare(
    "tinker_guard.verdict.reason",
    str,
    (On.REQUEST, On.RESEND, On.QUESTION, On.WARMUP, On.METRICS),
    "Why: `job_running`, `trainer_reached`, `job_not_running`, `job_missing`, `trainer_answered`, "
    "`control_plane_error`, `control_plane_timeout` or `no_control_plane`.",
)
NOT_FOUND_SOURCE: Final = _declare(
    "tinker_guard.not_found.source",
    str,
    (On.REQUEST, On.PROBE),
    "Who wrote the 404, a request's last one: `trainer`, `gateway` or `unknown`. No verdict rests "
    "on `gateway`: a server behind it may write the same. Not there where no 404 was met, nor off "
    "trainer routes, where none is read.",
)
NOT_FOUND_GATEWAY: Final = _declare(
    "tinker_guard.not_found.gateway",
    str,
    (On.REQUEST, On.PROBE),
    "Which gateway, where its 404 tells, such as `fireworks`, `nginx` or `envoy`.",
)
RETRIES: Final = _declare(
    "tinker_guard.retries", int, (On.REQUEST,), "How often the request was sent again."
)
REPLAYABLE: Final = _declare(
    "tinker_guard.replayable",
    bool,
    (On.REQUEST,),
    "`false` if the body is a stream, which cannot be sent again; else it is not there.",
)
OPERATION: Final = _declare(
    "tinker_guard.operation",
    str,
    (On.REQUEST, On.METRICS),
    "What the trainer is asked for, ids replaced, such as `forward_backward` or "
    "`sessions/{id}/finish`.",
)
ACCOUNT: Final = _declare(
    "tinker_guard.account",
    str,
    (On.REQUEST, On.QUESTION, On.WARMUP, On.METRICS),
    "The account in the trainer's URL, where it names one. On metrics only if asked for.",
)
JOB: Final = _declare(
    "tinker_guard.job",
    str,
    (On.REQUEST, On.QUESTION, On.WARMUP, On.METRICS),
    "The job in the trainer's URL, where it names one. On metrics only if asked for.",
)
ROUTE: Final = _declare(
    "tinker_guard.route",
    str,
    (On.REQUEST, On.QUESTION, On.WARMUP, On.METRICS),
    "The base URL of a trainer that account and job do not name, such as `http://head:8000/api/v1/"
    "model/{_model}`: what the setting `routes` hides is left as it stands there. Of a "
    "deployment, the URL of its state. On metrics only if asked for.",
)
JOB_STATE: Final = _declare(
    "tinker_guard.job.state",
    str,
    (On.QUESTION,),
    "What the control plane said, such as `JOB_STATE_RUNNING`; not there if it said nothing.",
)
PAUSE: Final = _declare(
    "tinker_guard.pause", float, (On.RESEND,), "Seconds between the 404 and this resend."
)
PROBE_RESULT: Final = _declare(
    "tinker_guard.probe.result",
    str,
    (On.PROBE, On.METRICS),
    "`reached` the trainer, met a 404 of somebody else (`not_found`), or `failed`.",
)
WARMUP_PROBES: Final = _declare(
    "tinker_guard.warmup.probes", int, (On.WARMUP,), "How many probes the warmup took."
)
WARMUP_WAIT: Final = _declare(
    "tinker_guard.warmup.wait",
    float,
    (On.REQUEST,),
    "Seconds that the request waited for its route's warmup; not there if it did not wait.",
)
MET: Final = _declare(
    "tinker_guard.met",
    str,
    (On.CALLER,),
    "The last verdict of the gateway's 404s that the requests made in this span met. Its absence "
    "says that they met none.",
)

# -- of OpenInference ----------------------------------------------------------------------------

INPUT: Final = _declare(
    "input.value",
    str,
    (On.REQUEST,),
    "The span's name: some trace lists, such as MLflow's, have columns for input and output alone.",
)
OUTPUT: Final = _declare(
    "output.value",
    str,
    (On.REQUEST,),
    "There too: the outcome and, where the request met a 404, verdict and reason, such as "
    "`recovered: routing_race, job_running`, or `ok: waited 3.02 s for the warmup`.",
)

# -- of the HTTP conventions ---------------------------------------------------------------------

METHOD: Final = _declare(
    "http.request.method",
    str,
    (On.REQUEST, On.EXCHANGE, On.RESEND, On.PROBE, On.METRICS),
    "The method, or `_OTHER` for one that no standard knows.",
)
METHOD_ORIGINAL: Final = _declare(
    "http.request.method_original",
    str,
    (On.REQUEST, On.EXCHANGE),
    "The method if it is `_OTHER`.",
)
SERVER_ADDRESS: Final = _declare(
    "server.address",
    str,
    (On.REQUEST, On.EXCHANGE, On.RESEND, On.PROBE, On.METRICS),
    "The host in the URL.",
)
SERVER_PORT: Final = _declare(
    "server.port",
    int,
    (On.REQUEST, On.EXCHANGE, On.RESEND, On.PROBE, On.METRICS),
    "The port in the URL, or the scheme's.",
)
URL_FULL: Final = _declare(
    "url.full",
    str,
    (On.REQUEST, On.EXCHANGE),
    "On CLIENT spans: the URL without user name, password, query and fragment, and without "
    "what the setting `routes` hides. Elsewhere than below `/api/v1/` of a trainer route, where a "
    "path may hold a key, of the path only the template of a known operation, such as "
    "`https://host/api/v1/sessions/{id}`, or nothing.",
)
RESEND_COUNT: Final = _declare(
    "http.request.resend_count", int, (On.EXCHANGE, On.RESEND), "1 for the first resend."
)
STATUS_CODE: Final = _declare(
    "http.response.status_code",
    int,
    (On.REQUEST, On.EXCHANGE, On.RESEND, On.PROBE, On.METRICS),
    "The status of the answer; on a request, of the one handed back.",
)
PROTOCOL_VERSION: Final = _declare(
    "network.protocol.version",
    str,
    (On.REQUEST, On.EXCHANGE, On.METRICS),
    "On CLIENT spans and metrics: `1.1` or `2`, where the inner transport tells.",
)
ERROR_TYPE: Final = _declare(
    "error.type",
    str,
    (On.REQUEST, On.EXCHANGE, *_ACTIONS, On.METRICS),
    "The status code if it is 400 or more, else the class of the exception, or the reason why a "
    "question failed. Not there without an error, nor if the caller cancelled.",
)
