"""A control plane of any kind over HTTP: a URL by template, and where the state stands in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import httpx

from tinker_guard.control_plane.protocol import ControlPlaneError, is_state_name
from tinker_guard.control_plane.question import (
    MISSING,
    OF_QUESTIONS,
    HasKey,
    document_at,
    is_same_origin,
    place_of,
)
from tinker_guard.policy.errors import reports_an_error
from tinker_guard.policy.job import PHASES, JobPhase
from tinker_guard.policy.json_body import texts_in
from tinker_guard.policy.template import fill, names_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import SecretStr

    from tinker_guard.policy.reach import Reach


STOPPED: Final = (
    *(
        name
        for state, phase in PHASES.items()
        if phase is JobPhase.STOPPED
        for name in (state, state.removeprefix("JOB_STATE_"))
    ),
    *("ABORTED", "CANCELED", "CANCELING", "DONE", "ENDED", "EXITED", "FINISHED", "KILLED"),
    *("STOPPED", "STOPPING", "SUCCEEDED", "TERMINATED", "TERMINATING"),
)
"""States that stop a job wherever they are said: those of Fireworks, and words of others, such as
SUCCEEDED of Ray's jobs, `terminating` and `done` of dstack, Docker's `exited`. Not ERROR and
SUCCESS, which may be said of the question."""


@dataclass(frozen=True)
class HttpControlPlane(HasKey):
    """Asks a URL for a JSON document, and reads the state of a job out of it.

    Equal ones share their answers.

    Args:
        url: What is asked. `{name}` in its path or query stands for what the route's pattern has
            captured. One that begins with / is at the route's own origin.
        state: Where the state stands: the names of members, one below the other. A member that a
            placeholder names may be missing: then there is no such job.
        listed_at: Position in `state` of another member that may be missing for that reason.
        known_by: A member that is empty while the server has lost what knows the jobs: then it says
            nothing of any of them.
        running: States of a job that runs, in capitals.
        stopped: States of one that does not, and will not by waiting.
        api_key: Sent as `X-Api-Key` and as `Authorization: Bearer`. None sends what the guarded
            request carries if that goes to the same origin, and else nothing.
        timeout: Seconds for each phase of the exchange.
        transport: What carries the lookup; None obeys the environment.
        is_key_lost: Whether it was given a key that a pickle has left out. It asks nobody then.
        reach: What makes a request to the route's own origin arrive there, such as `Host`.
    """

    # A value in its query may be a key.
    url: str = field(repr=False)
    state: tuple[str, ...] = ("state",)
    running: tuple[str, ...] = ("RUNNING", "JOB_STATE_RUNNING")
    stopped: tuple[str, ...] = STOPPED
    listed_at: int | None = None
    known_by: str | None = None
    api_key: SecretStr | None = None
    timeout: float = 5.0
    transport: httpx.AsyncBaseTransport | None = None
    is_key_lost: bool = field(default=False, repr=False)
    reach: Reach | None = field(default=None, repr=False, compare=False)

    @cached_property
    def phases(self) -> Mapping[str, JobPhase]:
        """What each state means; any other one is on the way."""
        stopped = dict.fromkeys(self.stopped, JobPhase.STOPPED)
        return stopped | dict.fromkeys(self.running, JobPhase.RUNNING)

    def asks_about(self, names: Mapping[str, str]) -> bool:
        """Whether a route has captured all that the question needs."""
        return all(names.keys() >= {*names_in(text)} for text in (self.url, *self.state))

    def is_at(self, origin: str) -> bool:
        """Whether the question goes to a route's own origin."""
        if self.url.startswith("/"):
            return True
        return is_same_origin(self.url, origin)

    async def route_state(
        self, names: Mapping[str, str], *, origin: str, credentials: Mapping[str, str]
    ) -> str | None:
        """Say what state a job is in; see `RouteControlPlane.route_state`.

        Raises:
            ControlPlaneError: The answer was none that can be used.
        """
        filled = fill(self.url, names)
        url = httpx.URL(origin + filled if filled.startswith("/") else filled)
        extensions: Mapping[str, Any] = {} if self.reach is None else self.reach.extensions
        headers = self.headers_with(
            credentials if self.is_at(origin) else {},
            lambda key: [(b"x-api-key", key), (b"authorization", b"Bearer " + key)],
        )
        headers.append((b"accept", b"application/json"))
        document = await document_at(
            url,
            headers,
            extensions=extensions,
            timeout=self.timeout,
            transport=self.transport,
            ids=names.values(),
        )
        if document is MISSING or self._lacks_job(document, names):
            return None
        found = document
        for member in self.state:
            found = _member(found, fill(member, names))
        state = state_name(found)
        if state is None or self._is_of_the_question(state, document, names):
            raise ControlPlaneError(
                f"{place_of(url)} answered, but with no state at "
                f"{'.'.join(self.state)}. TINKER_GUARD_CONTROL_PLANE_STATE says where it stands.",
                200,
            )
        return state

    def _is_of_the_question(self, state: str, document: object, names: Mapping[str, str]) -> bool:
        """Whether a word such as `error` says how the question went, and not the job.

        It is the job's where a setting lists it as a state, where it stands below another member,
        and where the document names the job.
        """
        may_be = state in OF_QUESTIONS and state not in self.phases and len(self.state) == 1
        return may_be and not any(
            name in text.split("/") for text in texts_in(document) for name in names.values()
        )

    def _lacks_job(self, document: object, names: Mapping[str, str]) -> bool:
        """Whether a member that a placeholder names is missing where others of its kind are."""
        if isinstance(document, dict) and (
            reports_an_error(document)
            or (self.known_by is not None and document.get(self.known_by, _NONE) in ({}, None))
        ):
            return False
        for position, member in enumerate(self.state):
            found = _member(document, fill(member, names))
            if found is _NONE:
                may_be_missing = bool(names_in(member)) or position == self.listed_at
                is_last = position == len(self.state) - 1
                return (
                    may_be_missing
                    and isinstance(document, dict)
                    and (is_last or _is_list_of_objects(document))
                )
            document = found
        return False


def _is_list_of_objects(document: dict[str, Any]) -> bool:
    """Whether an object may be one of objects by their names: it is empty, or holds another."""
    return not document or any(isinstance(value, dict) for value in document.values())


_NONE: Final = object()


def _member(document: object, name: str) -> object:
    """A member of a JSON object, or of an array by its number."""
    if isinstance(document, dict):
        return document.get(name, _NONE)
    if isinstance(document, list) and name.isdecimal() and int(name) < len(document):
        return document[int(name)]
    return _NONE


def state_name(value: object) -> str | None:
    """A state as the guard writes it, in capitals; None if the value can be none.

    `in-progress` is IN_PROGRESS, and `true` is TRUE.
    """
    if not isinstance(value, str | bool):
        return None
    name = re.sub(r"[^A-Z0-9]+", "_", str(value).upper()).strip("_")
    return name if is_state_name(name) else None
