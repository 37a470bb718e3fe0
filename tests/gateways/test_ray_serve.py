"""The real SDK through a real Ray Serve, which routes a trainer's path to nothing, or wrongly.

Its dashboard is the control plane: it says of the trainer's application that this runs.

Where no application has a path, Ray's proxy says so in a text. Where one at `/` has, that answers
`{"detail": "Not Found"}`, as a trainer says of a path that it does not know.
"""

from __future__ import annotations

import gc
import secrets
import tempfile
import threading
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from testkit.programs import free_port, until
from testkit.relay import Balancer
from tinker_guard.settings import SettingValues

from .fleet import Fault, Outage, Trainer
from .judge import FAULTS, Row, found_rows, try_out
from .programs import APPLY_TIMEOUT, PLANE, ROUTE

ray: Any = pytest.importorskip("ray", reason="`make gateways-ray` installs and runs it")
serve: Any = pytest.importorskip("ray.serve", reason="`make gateways-ray` installs and runs it")

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


_ELSEWHERE: Final = "/not-yet"
"""Where the trainer's application is while its route is missing."""
_FAULTS: Final = {"late": "it knows the route late", "lost": "it loses the route in step 3"}
_PARENTS: Final = {False: "no application there", True: "another application there"}


_OPTIONS: Final = {"num_cpus": 0.1}
_TOKEN: Final = secrets.token_hex(32)
"""Ray's own key; a process reads it once. Without one, Ray leaves one in the home directory."""
_OWN: Final = (b"host", b"connection", b"content-length", b"transfer-encoding")
"""Headers that are of one connection."""


class Forward:
    """An application that hands requests on to the trainer."""

    def __init__(self, port: int) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False
        )

    async def __call__(self, request: Any) -> Any:
        from starlette.responses import Response

        root, path = request.scope["root_path"], request.scope["path"]
        answer = await self._client.request(
            request.method,
            path if path.startswith(root) else root + path,
            headers=[header for header in request.headers.raw if header[0] not in _OWN],
            content=await request.body(),
        )
        kind = answer.headers.get("content-type")
        return Response(answer.content, answer.status_code, media_type=kind)


class Proxy:
    """Ray Serve's proxy, and applications in front of one port."""

    def __init__(self, dashboard: str) -> None:
        self.has_parent: bool = False
        self.dashboard = dashboard
        self._moving: threading.Thread | None = None
        self.port = free_port()
        self._upstream = free_port()

    def start(self) -> None:
        """Start the applications of the control plane and of the trainer."""
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})
        self._trainer = serve.deployment(
            Forward, ray_actor_options=_OPTIONS, max_ongoing_requests=100
        ).bind(self._upstream)
        serve.run(self._trainer, name="plane", route_prefix=PLANE.rstrip("/"))
        serve.run(self._trainer, name="trainer", route_prefix=ROUTE.rstrip("/"))

    def add_parent(self) -> None:
        """Start an application that takes all paths which no other one has."""
        from fastapi import FastAPI

        class Parent:
            pass

        parent = serve.deployment(ray_actor_options=_OPTIONS)(serve.ingress(FastAPI())(Parent))
        serve.run(parent.bind(), name="parent", route_prefix="/")
        self.has_parent = True

    def not_found(self) -> httpx.Response | None:
        """The answer on the trainer's route, if that is a 404."""
        url = f"http://127.0.0.1:{self.port}{ROUTE}api/v1/healthz"
        # Ray may hold it back while it replaces the application's replicas.
        response = httpx.get(url, trust_env=False, timeout=APPLY_TIMEOUT)
        return response if response.status_code == 404 else None

    def set_route(self, is_known: bool) -> None:
        """Move the trainer's application, and wait until Ray's proxy knows."""
        if is_known is (self.not_found() is None):
            return
        place = ROUTE.rstrip("/") if is_known else _ELSEWHERE
        # It returns only when the replica that it replaces has answered its last request, which
        # may be the one that waits for this.
        self.settle()
        self._moving = threading.Thread(
            target=serve.run,
            args=(self._trainer,),
            kwargs={"name": "trainer", "route_prefix": place},
        )
        self._moving.start()
        until(
            lambda: is_known is (self.not_found() is None),
            "Ray Serve to follow",
            APPLY_TIMEOUT,
            every=0.02,
        )

    def settle(self) -> None:
        """Wait until Ray has done what it was told."""
        if self._moving is not None:
            self._moving.join()

    @contextmanager
    def trainer(self, fault: Fault) -> Iterator[Trainer]:
        """A trainer that has done nothing, behind Ray."""
        outage = Outage(self.set_route)

        def lose() -> None:
            if fault == "lost":
                outage.begin_in_a_request()

        balancer = Balancer(repeat(self.port))
        trainer = Trainer(self._upstream, balancer, outage, lose)
        with balancer, trainer:
            self.set_route(True)
            if fault == "late":
                outage.begin()
            try:
                yield trainer
            finally:
                outage.wait()
                self.settle()


rows = found_rows("gateways-ray", len(_PARENTS) * len(FAULTS))


@pytest.fixture(scope="module")
def started() -> Iterator[Proxy]:
    surroundings = {
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default, with a FutureWarning
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with (
        pytest.MonkeyPatch.context() as patch,
        # Not pytest's directory: the names of Ray's sockets are long already.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory,
    ):
        for name, value in surroundings.items():
            patch.setenv(name, value)
        try:
            port = free_port()
            ray.init(
                address="local",
                num_cpus=4,
                object_store_memory=100 * 2**20,
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=port,
                log_to_driver=False,
                configure_logging=False,
                _node_ip_address="127.0.0.1",
                _temp_dir=directory,
            )
            proxy = Proxy(f"http://127.0.0.1:{port}")
            proxy.start()
            yield proxy
            proxy.settle()
            serve.shutdown()
        finally:
            ray.shutdown()
            gc.collect()  # of Ray's subprocesses, here where their warnings are ignored


@pytest.fixture(scope="module", params=_PARENTS, ids=_PARENTS.get)
def proxy(request: pytest.FixtureRequest, started: Proxy) -> Proxy:
    if request.param:
        started.add_parent()
    return started


@pytest.mark.parametrize("fault", FAULTS)
def test_training_through_ray_serve_which_lacks_the_route(
    fault: Fault,
    proxy: Proxy,
    losses: list[float],
    rows: list[Row],
    spans: InMemorySpanExporter,
) -> None:
    plane = SettingValues(
        control_plane="ray-serve",
        control_plane_url=proxy.dashboard,
        control_plane_object="trainer",
        control_plane_api_key=_TOKEN,
    )
    asked, unasked = try_out(proxy.trainer, fault, losses, spans, plane)
    assert asked.lookups(proxy.dashboard) > 0
    assert unasked.lookups(proxy.dashboard) == asked.questions == unasked.questions == 0
    assert (
        asked.writers
        == unasked.writers
        == {("unknown", None) if proxy.has_parent else ("gateway", "ray-serve")}
    )
    proxy.set_route(False)
    response = proxy.not_found()
    assert response is not None
    kind = response.headers["content-type"].partition(";")[0]
    text = response.text if proxy.has_parent else f"{response.text.partition(chr(39))[0]}'...' ..."
    name = f"Ray Serve {ray.__version__}, {_PARENTS[proxy.has_parent]}"
    rows.append(Row(name, f"{kind}, `{text}`", _FAULTS[fault], asked, unasked))
