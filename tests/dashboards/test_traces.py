"""What a person sees of guarded runs in the trace lists of Phoenix and MLflow.

The screenshots of docs/ are taken here, if `TINKER_GUARD_SCREENSHOTS` names a directory.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from testkit.programs import until

from .conftest import training

if TYPE_CHECKING:
    from collections.abc import Iterator

# Read here: during a test, no variable is there that looks like a setting of the guard.
_SCREENSHOTS: Final = os.environ.get("TINKER_GUARD_SCREENSHOTS")

RUNS = {
    "clean": "finished",
    "late-route": "finished",
    "deleted": "not found",
    "recovered": "finished",
}
RECOVERED = "recovered: routing_race, job_running"
NOT_FOUND = "not_found: genuine_not_found, job_not_running"


@contextmanager
def trained_into(url: str, **variables: object) -> Iterator[None]:
    """What a program sent that has trained; it goes on, since a cold backend takes its time."""
    with training(
        TINKER_GUARD_EXPORT="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT=url,
        OTEL_METRICS_EXPORTER="none",
        **variables,
    ) as train:
        for name, end in RUNS.items():
            assert train(name) == f"{name}: {end}"
        yield


def take(page: Any, name: str) -> None:
    """Keep a screenshot, as a file that is small enough for a repository."""
    if _SCREENSHOTS:
        from PIL import Image

        path = Path(_SCREENSHOTS) / f"{name}.png"
        page.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
        assert path.stat().st_size < 200_000


@pytest.fixture
def in_phoenix(phoenix: str) -> Iterator[str]:
    """The URL of the traces in Phoenix."""

    def project() -> str | None:
        found = httpx.get(f"{phoenix}/v1/projects", trust_env=False).json()["data"]
        return next((each["id"] for each in found if each["name"] == "training"), None)

    with trained_into(phoenix, OTEL_RESOURCE_ATTRIBUTES="openinference.project.name=training"):
        yield f"{phoenix}/projects/{until(project, 'the project')}/traces"


@pytest.fixture
def in_mlflow(mlflow: str) -> Iterator[str]:
    """The URL of the traces in MLflow."""
    with trained_into(mlflow, OTEL_EXPORTER_OTLP_HEADERS="x-mlflow-experiment-id=0"):
        yield f"{mlflow}/#/experiments/0/traces"


def open_list(page: Any, url: str) -> None:
    """Open a trace list, again and again until the last run's spans are in it."""
    from playwright.sync_api import TimeoutError as NotThere

    def is_complete() -> bool:
        page.goto("about:blank")
        page.goto(url)
        with suppress(NotThere):
            page.get_by_text(RECOVERED).first.wait_for(timeout=15_000)
            return True
        return False

    until(is_complete, "the recovered run's traces", 180.0)


def test_phoenix(in_phoenix: str, page: Any) -> None:
    open_list(page, in_phoenix)
    recovered = page.get_by_role("row").filter(has_text=RECOVERED)
    not_found = page.get_by_role("row").filter(has_text=NOT_FOUND)
    clean = page.get_by_role("row").filter(has_text="POST /api/v1/optim_step")
    clean = clean.filter(has_not_text="job_")
    recovered.first.wait_for()
    not_found.first.wait_for()
    clean.first.wait_for()
    assert "POST /api/v1/retrieve_future" in recovered.first.inner_text()
    # Of the three, Phoenix calls the genuine not-found alone an error.
    is_error = [row.first.get_by_label("ERROR").count() for row in (recovered, not_found, clean)]
    assert is_error == [0, 1, 0]

    recovered.last.get_by_role("link").first.click()
    page.get_by_text("resend POST /api/v1/retrieve_future").first.click()
    page.get_by_role("tab", name="Attributes").click()
    for label in ("resend_count", "routing_race", "job_running", "pause"):
        page.get_by_text(label).first.wait_for()


def test_mlflow(in_mlflow: str, page: Any) -> None:
    open_list(page, in_mlflow)
    page.get_by_role("button", name="Got it").click()
    page.get_by_role("button", name="Close", exact=True).click()
    recovered = page.get_by_role("row").filter(has_text=RECOVERED)
    not_found = page.get_by_role("row").filter(has_text=NOT_FOUND)
    clean = (
        page.get_by_role("row")
        .filter(has=page.get_by_text("OK", exact=True))
        .filter(has_not_text="job_")
    )
    for row, state in ((recovered, "OK"), (not_found, "Error"), (clean, "OK")):
        row.first.wait_for()
        assert state in row.first.inner_text().splitlines()
    assert "POST /api/v1/retrieve_future" in recovered.first.inner_text()
    take(page, "mlflow-list")

    recovered.last.get_by_text(RECOVERED).click()
    page.get_by_text("resend POST /api/v1/retrieve_future").first.click()
    for label in ("http.request.resend_count", "routing_race", "job_running"):
        page.get_by_text(label, exact=True).first.wait_for()
    take(page, "mlflow-trace")
