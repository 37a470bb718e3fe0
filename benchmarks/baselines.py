"""The two earlier designs, A and B, as what they were: wrappers in user code.

Both wrap the calls of the training client, so that they see what the SDK raises and call it again.
A retries any 404. B first waits for three `get_info` calls in a row, and after a 404 asks the
control plane whether the job runs. Their bodies are written anew from their description.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import httpx

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tinker_guard import ControlPlane

WAITS_A: Final = (2.0, 4.0, 8.0, 16.0, 30.0, 30.0)
"""Seconds that A waits after the first, second, ... 404."""
WAITS_B: Final = (2.0, 4.0, 8.0, 15.0)
"""Seconds that B waits, each time after the control plane said that the job runs."""
TRAINING_CALLS: Final = ("forward", "forward_backward", "optim_step", "save_state")
CONNECT_SUCCESSES: Final = 3
CONNECT_PAUSE: Final = 1.0
CONNECT_TIMEOUT: Final = 120.0

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)


class Policy(Protocol):
    """When to call again after a 404."""

    def waits(self) -> Iterator[float]:
        """Seconds to wait after each 404; ends when the 404 is to be raised."""
        ...

    def connect(self, training_client: Any) -> None:
        """Wait until a new training client can be used."""
        ...


class AlgorithmA:
    """Retries any 404, whoever wrote it."""

    def waits(self) -> Iterator[float]:
        """See `Policy.waits`."""
        yield from WAITS_A

    def connect(self, training_client: Any) -> None:
        """A does not wait at connect."""


class AlgorithmB:
    """Retries a 404 while the control plane says that the job runs.

    Args:
        job_url: The control plane's page of the job.
        api_key: Key for it.
        not_found: What the SDK raises on a 404.
    """

    def __init__(self, job_url: str, api_key: str, not_found: type[Exception]) -> None:
        self._job_url = job_url
        self._api_key = api_key
        self._not_found = not_found

    def waits(self) -> Iterator[float]:
        """See `Policy.waits`."""
        for seconds in WAITS_B:
            if not self._is_running():
                return
            yield seconds

    def connect(self, training_client: Any) -> None:
        """Wait for three `get_info` calls in a row, one a second."""
        deadline = time.monotonic() + CONNECT_TIMEOUT
        in_a_row = 0
        while in_a_row < CONNECT_SUCCESSES and time.monotonic() < deadline:
            try:
                training_client.get_info()
                in_a_row += 1
            except self._not_found:
                in_a_row = 0
            time.sleep(CONNECT_PAUSE)

    def _is_running(self) -> bool:
        try:
            answer = httpx.get(
                self._job_url, headers={"X-Api-Key": self._api_key}, timeout=5, trust_env=False
            )
            return bool(answer.json().get("state") == "JOB_STATE_RUNNING")
        except (httpx.HTTPError, ValueError):
            return False


class WrappedServiceClient:
    """A service client whose training clients are wrapped.

    Args:
        service_client: The SDK's.
        policy: A or B.
        not_found: What the SDK raises on a 404.
    """

    def __init__(self, service_client: Any, policy: Policy, not_found: type[Exception]) -> None:
        self._service_client = service_client
        self._policy = policy
        self._not_found = not_found

    def create_lora_training_client(self, **arguments: Any) -> WrappedTrainingClient:
        """Create a training client, wait as the policy says, and wrap it."""
        training_client = self._service_client.create_lora_training_client(**arguments).result()
        self._policy.connect(training_client)
        return WrappedTrainingClient(training_client, self._policy, self._not_found)


class WrappedTrainingClient:
    """A training client whose four training calls are called again after a 404."""

    def __init__(self, training_client: Any, policy: Policy, not_found: type[Exception]) -> None:
        self._training_client = training_client
        self._policy = policy
        self._not_found = not_found

    def __getattr__(self, name: str) -> Any:
        """Whatever the SDK's client has; training calls are wrapped."""
        method = getattr(self._training_client, name)
        if name not in TRAINING_CALLS:
            return method
        return partial(self._call, method)

    def _call(self, method: Callable[..., Any], *arguments: Any) -> RetriedFuture[Any]:
        return RetriedFuture(partial(method, *arguments), self._policy, self._not_found)


class _Future(Protocol[_T_co]):
    # As the SDK's futures are.
    def result(self) -> _T_co: ...


class RetriedFuture(Generic[_T]):
    """Submits at once, and again whenever the result turns out to be a 404."""

    def __init__(
        self,
        submit: Callable[[], _Future[_T]],
        policy: Policy,
        not_found: type[Exception],
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._submit = submit
        self._policy = policy
        self._not_found = not_found
        self._sleep = sleep
        self._future = submit()

    def result(self) -> _T:
        """Wait for the result, submitting again as the policy says."""
        waits = self._policy.waits()
        while True:
            try:
                return self._future.result()
            except self._not_found:
                seconds = next(waits, None)
                if seconds is None:
                    raise
                self._sleep(seconds)
                self._future = self._submit()


async def connect_b(get_info: Callable[[], Awaitable[httpx.Response]]) -> None:
    """B's waiting at connect, for benchmarks without the SDK."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + CONNECT_TIMEOUT
    in_a_row = 0
    while in_a_row < CONNECT_SUCCESSES and clock() < deadline:
        response = await get_info()
        in_a_row = 0 if response.status_code == 404 else in_a_row + 1
        await asyncio.sleep(CONNECT_PAUSE)


async def persist(
    contestant: str,
    send: Callable[[], Awaitable[httpx.Response]],
    is_running: Callable[[], Awaitable[bool]],
) -> httpx.Response:
    """Send a request as a contestant does: `A`, `B`, or one that leaves it to its transport.

    Args:
        contestant: Which.
        send: Sends the request once.
        is_running: Asks the control plane, for B.
    """
    response = await send()
    for seconds in {"A": WAITS_A, "B": WAITS_B}.get(contestant, ()):
        if response.status_code != 404 or (contestant == "B" and not await is_running()):
            break
        await asyncio.sleep(seconds)
        response = await send()
    return response


async def says_running(plane: ControlPlane) -> bool:
    """Ask a control plane that knows one job."""
    state = await plane.job_state("", "", origin="", credentials={})
    return state == "JOB_STATE_RUNNING"
