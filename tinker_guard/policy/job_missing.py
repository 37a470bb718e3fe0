"""Whether an answer of a control plane says that there is no such job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_guard.policy.caches import is_cached_copy
from tinker_guard.policy.errors import has_not_found_code, lacks_a_place, speaks_of_routes
from tinker_guard.policy.not_found import Source, source_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from tinker_guard.policy.answer import Answer


def is_control_planes_404(answer: Answer, *, ids: Collection[str] = ()) -> bool:
    """Whether a 404 is recognisably a control plane's "there is no such job". Never raises.

    It is one where JSON carries a not-found code: gRPC's 5 or NOT_FOUND, a name like JOB_NOT_FOUND,
    or the number 404 with a text that speaks of a job. If the text speaks of routes, paths or
    hosts, or is what a framework says of any path that it does not know, then it is a router's,
    which knows nothing of jobs.

    Args:
        answer: The 404.
        ids: What the question's URL names; see `source_of`.
    """
    # A copy was said at some earlier time, which is not known.
    if is_cached_copy(answer.headers):
        return False
    document = answer.json
    if document is None or source_of(answer) in (Source.GATEWAY, Source.ROUTER):
        return False
    return (
        not speaks_of_routes(document.members, ids)
        and not lacks_a_place(document.members, ids)
        and not _is_said_of_any_path(document.members)
        and has_not_found_code(document.members, ids)
    )


def _is_said_of_any_path(members: dict[str, Any]) -> bool:
    """Whether an answer is what a framework says of a path that it does not know.

    grpc-gateway takes the text from Go's table, and adds the very code of a job that does not exist
    (grpc-ecosystem/grpc-gateway#1513); its first version has the text twice, its second one an
    empty list of details. The phrase alone, beside a code, may be what a control plane says of a
    job.
    """
    message = members.get("message")
    return message == "Not Found" and (
        members.get("details") == [] or members.get("error") == message
    )
