"""Real backends and a real browser, all on the loopback address, ended with the tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from testkit.programs import environment, free_port, serving
from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Each is in an environment of its own: they need different releases of graphql-core, and Phoenix
# brings a pytest plugin that raises a warning.
PHOENIX: Final = Path(sys.prefix).parent / "phoenix" / "bin" / "phoenix"
MLFLOW: Final = Path(sys.prefix).parent / "mlflow" / "bin" / "mlflow"

_MODULES: Final = ("playwright", "grafana_foundation_sdk", "prometheus_client")
_MISSING: Final = [name for name in _MODULES if importlib.util.find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests out where what they need is not installed, and give them time."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(600))
            if _MISSING:
                reason = f"needs {', '.join(_MISSING)}; `make dashboards` installs and runs it"
                item.add_marker(pytest.mark.skip(reason=reason))


def program(name: str) -> str:
    """Path of a program of Debian's; a test that needs it cannot do without."""
    if (path := shutil.which(name)) is None:
        pytest.fail(f"{name} is not installed. As root: apt-get install chromium prometheus")
    return path


@contextlib.contextmanager
def training(*launcher: str, **variables: object) -> Iterator[Callable[[str], str]]:
    """A guarded program; calling it trains with one fault, and says how that ended."""
    command = [*launcher, sys.executable, "-m", "tests.dashboards.train"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(**variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def train(name: str) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        try:
            yield train
            process.stdin.close()
            process.wait(60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def phoenix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Phoenix that has nothing in it."""
    place, port = tmp_path_factory.mktemp("phoenix"), free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(
        [PHOENIX, "serve"],
        f"{url}/healthz",
        place / "log",
        PHOENIX_WORKING_DIR=place,
        PHOENIX_HOST="127.0.0.1",
        PHOENIX_PORT=port,
        PHOENIX_GRPC_PORT=free_port(),
        PHOENIX_TELEMETRY_ENABLED="false",
    ):
        yield url


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an MLflow that has nothing in it."""
    place, port = tmp_path_factory.mktemp("mlflow"), free_port()
    url = f"http://127.0.0.1:{port}"
    with serving(
        [
            *(MLFLOW, "server", "--host", "127.0.0.1"),
            *("--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{place}/mlflow.db"),
            *("--artifacts-destination", str(place / "artifacts")),
        ],
        f"{url}/health",
        place / "log",
        MLFLOW_DISABLE_TELEMETRY="true",
        # Its processes would be in sessions of their own, and outlive it.
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
        DO_NOT_TRACK="true",
    ):
        yield url


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of a headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its sandbox cannot be had by root, and it visits this machine alone.
        browser = playwright.chromium.launch(
            executable_path=program("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1440, "height": 1150})
        page.set_default_timeout(60_000)
        yield page
        browser.close()
