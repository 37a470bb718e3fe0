"""Every attribute that the guard puts on a span or a metric, declared once.

docs/telemetry.md has the same table, and a test compares both with the emitted spans.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class On(StrEnum):
    """The spans, and the metrics, that have an attribute."""

    REQUEST = "request"
    """The span of one guarded request, from its arrival at the guard to the answer.

    For a clean request this is its CLIENT span, if the guard creates that one."""
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
    """The declaration of one attribute."""

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
    "The classification of a 404: `routing_race`, `genuine_not_found` or `unverified`. On a "
    "request: of its last 404, or of the last one in its route's warmup; on a resend: of the 404 "
    "before it.",
)
REASON: Final = _declare(
    "tinker_guard.verdict.reason",
    str,
    (On.REQUEST, On.RESEND, On.QUESTION, On.WARMUP, On.METRICS),
    "The cause of the verdict: `job_running`, `trainer_reached`, `job_not_running`, `job_missing`, "
    "`trainer_answered`, `control_plane_error`, `control_plane_timeout` or `no_control_plane`.",
)
NOT_FOUND_SOURCE: Final = _declare(
    "tinker_guard.not_found.source",
    str,
    (On.REQUEST, On.PROBE),
    "The author of the 404, for a request of its last one: `trainer`, `gateway` or `unknown`. No "
    "verdict depends on `gateway`: a server behind the gateway may write the same. Absent without "
    "a 404, and off trainer routes, where the guard reads none.",
)
NOT_FOUND_GATEWAY: Final = _declare(
    "tinker_guard.not_found.gateway",
    str,
    (On.REQUEST, On.PROBE),
    "The gateway, if its 404 shows it, such as `fireworks`, `nginx` or `envoy`.",
)
RETRIES: Final = _declare(
    "tinker_guard.retries", int, (On.REQUEST,), "How often the request was sent again."
)
REPLAYABLE: Final = _declare(
    "tinker_guard.replayable",
    bool,
    (On.REQUEST,),
    "`false` if the body is a stream, which cannot be sent again; else absent.",
)
OPERATION: Final = _declare(
    "tinker_guard.operation",
    str,
    (On.REQUEST, On.METRICS),
    "The operation of the trainer, ids replaced, such as `forward_backward` or "
    "`sessions/{id}/finish`.",
)
ACCOUNT: Final = _declare(
    "tinker_guard.account",
    str,
    (On.REQUEST, On.QUESTION, On.WARMUP, On.METRICS),
    "The account in the trainer's URL, if it names one. On metrics only with `metrics_by_job`.",
)
JOB: Final = _declare(
    "tinker_guard.job",
    str,
    (On.REQUEST, On.QUESTION, On.WARMUP, On.METRICS),
    "The job in the trainer's URL, if it names one. On metrics only with `metrics_by_job`.",
)
ROUTE: Final = _declare(
    "tinker_guard.route",
    str,
    (On.REQUEST, On.QUESTION, On.WARMUP, On.METRICS),
    "The base URL of a trainer without account and job, such as `http://head:8000/api/v1/"
    "model/{_model}`: values that the setting `routes` hides are shown as their placeholders. For "
    "a deployment, the URL of its state. On metrics only with `metrics_by_job`.",
)
JOB_STATE: Final = _declare(
    "tinker_guard.job.state",
    str,
    (On.QUESTION,),
    "The state that the control plane reported, such as `JOB_STATE_RUNNING`; absent without one.",
)
PAUSE: Final = _declare(
    "tinker_guard.pause", float, (On.RESEND,), "Seconds between the 404 and this resend."
)
PROBE_RESULT: Final = _declare(
    "tinker_guard.probe.result",
    str,
    (On.PROBE, On.METRICS),
    "`reached` the trainer, met a 404 of another author (`not_found`), or `failed`.",
)
WARMUP_PROBES: Final = _declare(
    "tinker_guard.warmup.probes", int, (On.WARMUP,), "How many probes the warmup took."
)
WARMUP_WAIT: Final = _declare(
    "tinker_guard.warmup.wait",
    float,
    (On.REQUEST,),
    "Seconds that the request waited for its route's warmup; absent if it did not wait.",
)
MET: Final = _declare(
    "tinker_guard.met",
    str,
    (On.CALLER,),
    "The last verdict on a gateway's 404 to a request made in this span. Absent if the requests "
    "met none.",
)

# -- of OpenInference ----------------------------------------------------------------------------

INPUT: Final = _declare(
    "input.value",
    str,
    (On.REQUEST,),
    "The span's name: some trace lists, such as MLflow's, have columns for input and output only.",
)
OUTPUT: Final = _declare(
    "output.value",
    str,
    (On.REQUEST,),
    "Likewise: the outcome and, if the request met a 404, verdict and reason, such as "
    "`recovered: routing_race, job_running`, or `ok: waited 3.02 s for the warmup`.",
)

# -- of the HTTP conventions ---------------------------------------------------------------------

METHOD: Final = _declare(
    "http.request.method",
    str,
    (On.REQUEST, On.EXCHANGE, On.RESEND, On.PROBE, On.METRICS),
    "The method, or `_OTHER` for a non-standard one.",
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
    "values that the setting `routes` hides. A path outside `/api/v1/` of a trainer route may "
    "hold a key: there, only the template of a known operation is shown, such as "
    "`https://host/api/v1/sessions/{id}`, or no path.",
)
RESEND_COUNT: Final = _declare(
    "http.request.resend_count", int, (On.EXCHANGE, On.RESEND), "1 for the first resend."
)
STATUS_CODE: Final = _declare(
    "http.response.status_code",
    int,
    (On.REQUEST, On.EXCHANGE, On.RESEND, On.PROBE, On.METRICS),
    "The status of the answer; on a request, of the answer that was handed back.",
)
PROTOCOL_VERSION: Final = _declare(
    "network.protocol.version",
    str,
    (On.REQUEST, On.EXCHANGE, On.METRICS),
    "On CLIENT spans and metrics: `1.1` or `2`, if the inner transport reports it.",
)
ERROR_TYPE: Final = _declare(
    "error.type",
    str,
    (On.REQUEST, On.EXCHANGE, *_ACTIONS, On.METRICS),
    "The status code if it is 400 or more, else the class of the exception, or the reason of a "
    "failed question. Absent without an error, and if the caller cancelled.",
)
