"""Whether an answer of a control plane says that there is no such job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_guard.policy.caches import is_cached_copy
from tinker_guard.policy.errors import has_not_found_code, speaks_of_routes
from tinker_guard.policy.json_body import BODY_LIMIT, json_object
from tinker_guard.policy.not_found import Source, source_of
from tinker_guard.policy.wording import is_reason_phrase

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def is_control_planes_404(
    headers: Mapping[str, str],
    body: bytes,
    *,
    ids: Collection[str] = (),
    is_decoded: bool = False,
    limit: int = BODY_LIMIT,
) -> bool:
    """Whether a 404 is recognisably a control plane's "there is no such job". Never raises.

    It is one where JSON carries a not-found code: gRPC's 5 or NOT_FOUND, a name like JOB_NOT_FOUND,
    or the number 404 with a text that speaks of a job. If the text speaks of routes, paths or
    hosts, or is what a framework says of any path that it does not know, then it is a router's,
    which knows nothing of jobs.

    Args:
        headers: The answer's headers, by names of any case.
        body: The body, possibly only its beginning.
        ids: What the question's URL names; see `source_of`.
        is_decoded: Whether something below has undone the Content-Encoding already.
        limit: How many bytes are looked at, before and after decoding.
    """
    # A copy was said at some earlier time, which is not known.
    if is_cached_copy(headers):
        return False
    source = source_of(headers, body, is_decoded=is_decoded, limit=limit)
    answer = json_object(headers, body, is_decoded=is_decoded, limit=limit)
    if answer is None or source in (Source.GATEWAY, Source.ROUTER):
        return False
    return (
        not speaks_of_routes(answer.members, ids)
        and not _is_said_of_any_path(answer.members)
        and has_not_found_code(answer.members, ids)
    )


def _is_said_of_any_path(members: dict[str, Any]) -> bool:
    """Whether an answer is what a framework says of a path that it does not know.

    grpc-gateway takes the text from Go's table, and adds the very code of a job that does not exist
    (grpc-ecosystem/grpc-gateway#1513); its first version has the text twice, its second one an
    empty list of details. JAX-RS writes "HTTP 404 Not Found". The phrase alone, beside a code, may
    be what a control plane says of a job.
    """
    message = members.get("message")
    if not is_reason_phrase(message):
        return False
    is_grpc_gateways = message == "Not Found" and (
        members.get("details") == [] or members.get("error") == message
    )
    return is_grpc_gateways or str(message).startswith("HTTP")
