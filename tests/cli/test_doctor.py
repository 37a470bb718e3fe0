"""`tinker-guard doctor`: each finding's good and bad branch, the exit code, and no secret."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import socket
import ssl
import sys
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

import httpx
import pytest
from opentelemetry import trace
from pydantic import SecretStr

from testkit.cli import invoke, python
from testkit.clients import transport_of
from tests.end_to_end import sdk
from tinker_guard import GuardSettings, GuardTransport
from tinker_guard.cli import doctor
from tinker_guard.cli.doctor import Finding, Status, screen
from tinker_guard.cli.doctor.base_url import check_base_url, find_route, say_in_words
from tinker_guard.cli.doctor.gateway import ask, probe, say_answer, say_found
from tinker_guard.cli.doctor.network import Obstacle, check_proxy, find_obstacle
from tinker_guard.cli.doctor.sdks import Key, check_any_sdk, check_sdk, find_key
from tinker_guard.cli.doctor.settings import check_settings, read_settings
from tinker_guard.cli.doctor.spans import check_exporter, check_recording
from tinker_guard.cli.terminal import Terminal
from tinker_guard.core.findings import Failed, NotFound, Reached
from tinker_guard.core.routes import RouteTable
from tinker_guard.gateway import Fault
from tinker_guard.install.sdks import REST_CLIENTS, SDKS
from tinker_guard.observability import providers
from tinker_guard.policy.judgement import CONTROL_PLANE_TIMEOUT, JobAnswer
from tinker_guard.policy.not_found import Source
from tinker_guard.transports.failure import Failure
from tinker_guard.waiting import Readiness, wait_until_routable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from tinker_guard.core.findings import ProbeResult

ROUTE = "https://api.test/training/v1/rlorTrainerJobs/acct/job-1"
KEY = "TINKER_API_KEY"
OWN = next(known for known in SDKS if known.is_installed())
OWN_KEY = "FIREWORKS_API_KEY" if sdk.IS_FIREWORKS else KEY
NOBODY = "127.0.0.1:9"
"""The discard service, which nothing here runs."""


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the machine's own changes a finding, and no key that is stored there."""
    for name in list(os.environ):
        if name.upper().startswith(("TINKER", "FIREWORKS", "OTEL_")) or name.lower().endswith(
            "_proxy"
        ):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def only(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    return finding


def of(findings: Iterable[Finding], what: str) -> Finding:
    return only(finding for finding in findings if finding.what == what)


def gateway_says(monkeypatch: pytest.MonkeyPatch, url: str, what: str) -> Finding:
    # The SDKs are looked at in tests of their own.
    monkeypatch.setattr(doctor, "SDKS", ())
    return of(doctor.examine(url), what)


def run(*arguments: str) -> tuple[int, str]:
    ended = invoke("doctor", *arguments)
    return ended.exit_code, ended.output


# -- the command ---------------------------------------------------------------------------------


def test_a_healthy_gateway_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with sdk.Gateway() as gateway:
        monkeypatch.setenv(OWN_KEY, gateway.api_key)
        monkeypatch.setenv("TINKER_BASE_URL", gateway.base_url)
        exit_code, text = run("--json")
        assert gateway.questions == 1
        assert [exchange.path for exchange in gateway.requests[1:]] == [
            "/api/v1/get_server_capabilities"
        ]
    assert exit_code == 0
    document = json.loads(text)
    assert document["ok"] is True
    status = {entry["what"]: entry["status"] for entry in document["findings"]}
    for what in (
        *("versions", "settings", OWN.distribution, OWN_KEY),
        *("base URL", "proxy", "control plane", "trainer route"),
    ):
        assert status[what] == "ok", what
    # The guard is out again.
    assert not isinstance(transport_of(sdk.client(api_key="tml-key")), GuardTransport)


@pytest.mark.parametrize("kind", ["http", "ray-serve"])
@pytest.mark.parametrize(
    ("state", "status"),
    [("RUNNING", Status.OK), ("NOT_STARTED", Status.WARNING), ("DELETING", Status.PROBLEM)],
)
def test_another_control_plane_is_asked_without_the_requests_key(
    kind: str, state: str, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, json={"applications": {"acct-job-1": {"status": state}}})

    for module in ("http", "question"):
        monkeypatch.setattr(
            f"tinker_guard.control_plane.{module}.environment_transport",
            lambda _: httpx.MockTransport(answer),
            raising=False,
        )
    variables = {
        "CONTROL_PLANE": kind,
        "CONTROL_PLANE_URL": "http://head:8265",
        "CONTROL_PLANE_OBJECT": "acct-{job}",
        "CONTROL_PLANE_STATE": "applications.acct-{job}.status",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"TINKER_GUARD_{name}", value)
    monkeypatch.setenv(OWN_KEY, "tml-key")
    found = gateway_says(monkeypatch, ROUTE, "control plane")
    assert found.status is status
    assert found.detail.startswith(f"{state} (http://head:8265, ")
    assert found.detail.endswith(", without a key)")
    assert "x-api-key" not in asked[0].headers


@pytest.mark.parametrize("kind", ["none", "kubernetes", "my.module:Own"])
def test_control_planes_that_are_not_asked_over_http(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes.client", None)
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE", kind)
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_OBJECT", "training/jobs/{job}")
    found = gateway_says(monkeypatch, ROUTE, "control plane")
    words = {
        "none": "none is known for this route",
        "kubernetes": "asking Kubernetes needs its client",
        "my.module:Own": "names a class that cannot be had",
    }
    assert words[kind] in found.detail
    assert found.status is (Status.SKIPPED if kind == "none" else Status.PROBLEM)


@pytest.mark.parametrize("key", ["tml-SECRET\n", "tml-SECR\u00c9T"])
def test_a_key_that_cannot_be_sent_is_named_and_not_tried(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OWN_KEY, key)
    found = of(check_sdk(OWN, GuardSettings()), OWN_KEY)
    assert (found.status, found.detail) == (Status.PROBLEM, "set, but no header can carry it")
    assert find_key() is None


def test_a_problem_is_exit_code_1_in_text_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(job_states=((0.0, "JOB_STATE_DELETED"),))
    with sdk.Gateway(fault) as gateway:
        monkeypatch.setenv(OWN_KEY, gateway.api_key)
        exit_code, text = run(gateway.base_url)
        assert exit_code == 1
        assert "problem  control plane" in text
        assert "JOB_STATE_DELETED" in text
        assert "2 problems, 0 warnings." in text
        exit_code, text = run("--json", gateway.base_url)
    assert exit_code == 1
    assert json.loads(text)["ok"] is False


def test_help_says_what_the_exit_code_means() -> None:
    exit_code, text = run("--help")
    assert exit_code == 0
    assert "exit code is 0 if there is no problem" in " ".join(text.split())


@pytest.mark.parametrize("width", [80, 40])
def test_lines_fit_and_are_plain_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    _, text = run("https://api.fireworks.ai")
    for line in text.splitlines():
        assert line == line.rstrip()
        # Narrower than that, the columns would not be readable.
        assert len(line) <= max(width, 50) or "://" in line
    assert "\x1b" not in text
    # To be copied: not broken.
    assert "https://api.fireworks.ai/training/v1/rlorTrainerJobs/ACCOUNT/JOB" in text


def test_a_check_that_raises_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Iterator[Finding]:
        raise RuntimeError("with a secret in it")

    names = ["check_versions", "check_settings", "check_sdk", "check_any_sdk", "check_base_url"]
    names += [
        "check_rest_clients",
        "check_unguarded",
        "check_proxy",
        "ask",
        "probe",
        "check_recording",
        "check_exporter",
    ]
    for name in names:
        monkeypatch.setattr(doctor, name, broken)
    findings = list(doctor.examine(ROUTE))
    assert len(findings) == 10 + len(SDKS) + len(REST_CLIENTS)
    for finding in findings:
        assert finding.status is Status.PROBLEM
        assert finding.detail == "could not be looked at (RuntimeError)"
        assert finding.to_do


def test_nothing_is_logged_between_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(OWN), "is_tested", lambda _: False)
    result = invoke("doctor")
    assert "no release that was tested" in " ".join(result.output.split())
    assert result.stderr == ""


# -- no secret -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_up", [True, False])
def test_no_secret_is_printed(monkeypatch: pytest.MonkeyPatch, is_up: bool) -> None:
    for name in ("TINKER_API_KEY", "FIREWORKS_API_KEY", "TINKER_GUARD_CONTROL_PLANE_API_KEY"):
        monkeypatch.setenv(name, f"tml-SECRET-{name}")
    # A key in the wrong place.
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "SECRET")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=SECRET")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://SECRET:SECRET@{NOBODY}/SECRET")
    for name in ("ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://SECRET:SECRET@{NOBODY}/SECRET?SECRET")
    if is_up:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with sdk.Gateway(Fault(control_plane="redirect")) as gateway:
        monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", gateway.origin)
        secretive = gateway.base_url.replace("://", "://SECRET:SECRET@")
        for arguments in (
            ("--json", f"{secretive}?key=SECRET#SECRET"),
            (f"{secretive}/SECRET?key=SECRET",),
            ("--json", secretive.replace("/training", "/SECRET")),
            ("--json", f"ftp://SECRET@127.0.0.1/{NOBODY}"),
            ("--json", "https://SECRET:SECRET@["),
        ):
            exit_code, text = run(*arguments)
            assert exit_code == 1, arguments
            assert "base URL" in text
            assert "RETRY_TIMEOUT" in text
            assert "SECRET" not in text, arguments


def test_a_key_is_not_shown_by_its_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_KEY, "tml-SECRET")
    key = find_key()
    assert isinstance(key, Key)
    assert key.variable == OWN_KEY
    assert key.value.get_secret_value() == "tml-SECRET"
    assert "SECRET" not in repr(key)


# -- settings ------------------------------------------------------------------------------------


def test_settings_in_force_are_shown_but_for_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    # What a guarded parent process leaves is no misspelt setting.
    monkeypatch.setenv("TINKER_GUARD_INHERITED", "{}")
    assert only(check_settings()).detail == "all as by default"
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "60")
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_API_KEY", "fw-secret")
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://api.test")
    assert only(check_settings()).detail == (
        "retry_timeout 60.0, control_plane_url https://api.test, control_plane_api_key set, "
        "the others as by default"
    )


def test_no_value_in_the_query_of_a_url_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE", "http")
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "/x?job={job}&token=s3cret")
    assert "control_plane_url /x?job={job}&token=...," in only(check_settings()).detail


@pytest.mark.parametrize("has_parent", [True, False])
def test_a_url_whose_key_is_missing_is_a_warning(
    has_parent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent process does not pass it on; a log line, from which one may copy it, cuts it."""
    if has_parent:
        parents = GuardSettings(control_plane_url="https://cp.test/geheim-0123456789")
        monkeypatch.setenv("TINKER_GUARD_INHERITED", parents.dump_without_key())
    else:
        monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://cp.test/...")
    warning, in_force = check_settings()
    assert warning.status is Status.WARNING
    assert warning.to_do == "Set TINKER_GUARD_CONTROL_PLANE_URL to the whole URL here."
    assert "control_plane_url https://cp.test/...," in in_force.detail
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://cp.test/geheim-0123456789")
    assert "control_plane_url https://cp.test/...," in only(check_settings()).detail


def test_a_setting_that_cannot_work_is_named_and_the_others_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "soon")
    monkeypatch.setenv("TINKER_GUARD_PROBE_TIMEOUT", "2")
    problem, in_force = check_settings()
    assert problem.status is Status.PROBLEM
    assert problem.detail.startswith("TINKER_GUARD_RETRY_TIMEOUT: input should be a valid number")
    assert in_force.detail.startswith("in the checks below: probe_timeout 2.0")
    settings, _ = read_settings()
    assert (settings.retry_timeout, settings.probe_timeout) == (30.0, 2.0)


def test_settings_that_do_not_fit_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_BACKOFF_INITIAL", "9")
    monkeypatch.setenv("TINKER_GUARD_VERDICT_TTL", "x")
    first, second, _ = check_settings()
    assert {first.status, second.status} == {Status.PROBLEM}
    said = "TINKER_GUARD_BACKOFF_INITIAL must not exceed TINKER_GUARD_BACKOFF_MAX"
    assert said in f"{first.detail} {second.detail}"
    assert read_settings()[0] == GuardSettings(backoff_initial=0.1, verdict_ttl=1.0)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("TINKER_GUARD_RETRY_TIMOUT", "Did you mean TINKER_GUARD_RETRY_TIMEOUT?"),
        ("TINKER_GAURD_ENABLED", "Did you mean TINKER_GUARD_ENABLED?"),
        ("TINKER_GUARD_XYZZY", "Unset it; docs/settings.md lists all."),
    ],
)
def test_a_variable_that_is_no_setting_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, name: str, advice: str
) -> None:
    monkeypatch.setenv(name, "1")
    warning, _ = check_settings()
    assert warning.status is Status.WARNING
    assert warning.detail.startswith(f"{name} is no setting")
    assert warning.to_do == advice


def test_a_guard_that_is_switched_off_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_ENABLED", "0")
    warning, _ = check_settings()
    assert warning.status is Status.WARNING
    assert "TINKER_GUARD_ENABLED" in warning.detail
    found = of(check_sdk(OWN, read_settings()[0]), OWN.distribution)
    assert found.status is Status.OK
    assert "would be guarded" in found.detail


# -- the SDKs ------------------------------------------------------------------------------------


def test_an_sdk_is_guarded_over_what_it_sends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    found = of(check_sdk(OWN, GuardSettings()), OWN.distribution)
    assert found.status is Status.OK
    over = "pyqwest and httpx" if sdk.HAS_PYQWEST else "httpx"
    assert found.detail == f"{OWN.version}, guarded over {over}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://{NOBODY}")
    found = of(check_sdk(OWN, GuardSettings()), OWN.distribution)
    assert found.detail.endswith("httpx through the proxy")


def test_clients_that_the_guard_does_not_reach_are_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tinker_guard.cli.doctor.sdks.install_guard", lambda *_, **__: None)
    found = of(check_sdk(OWN, GuardSettings()), OWN.distribution)
    assert found.status is Status.PROBLEM
    assert "send unguarded over" in found.detail
    assert OWN.tested_versions in found.to_do


def test_an_sdk_without_the_hook_point_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sdk.holder, "ClientConnectionPool")
    found = only(check_sdk(OWN, GuardSettings()))
    assert found.status is Status.PROBLEM
    assert "ClientConnectionPool" in found.detail
    assert OWN.tested_versions in found.to_do


def test_an_sdk_that_is_missing_is_skipped_and_none_at_all_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert list(check_any_sdk()) == []
    missing = OWN._replace(package="no_such_sdk")
    assert only(check_sdk(missing, GuardSettings())).status is Status.SKIPPED
    monkeypatch.setattr("tinker_guard.cli.doctor.sdks.SDKS", (missing,))
    found = only(check_any_sdk())
    assert found.status is Status.PROBLEM
    assert "Install tinker" in found.to_do


def test_an_sdk_without_its_extra_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks_something(_: object) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(type(OWN), "find_hook_point", lacks_something)
    found = only(check_sdk(OWN, GuardSettings()))
    assert found.status is Status.SKIPPED
    assert found.detail.endswith("it cannot be imported: there is no module torch")
    # But without another one, there is nothing to guard.
    assert only(check_any_sdk()).status is Status.PROBLEM


def test_a_release_that_was_not_tested_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(OWN), "is_tested", lambda _: False)
    found = of(check_sdk(OWN, GuardSettings()), OWN.distribution)
    assert found.status is Status.WARNING
    assert OWN.tested_versions in found.to_do


def test_the_key_of_an_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def look() -> Finding:
        return of(check_sdk(OWN, GuardSettings()), OWN_KEY)

    found = look()
    assert found.status is Status.WARNING
    assert f"export {OWN_KEY}=" in found.to_do
    monkeypatch.setenv(OWN_KEY, "tml-key")
    assert (look().status, look().detail) == (Status.OK, "set")


@pytest.mark.skipif(sdk.IS_FIREWORKS, reason="fireworks-ai takes any key, and looks nowhere else")
def test_a_key_that_tinker_refuses_and_one_from_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "fw-key")
    found = of(check_sdk(OWN, GuardSettings()), KEY)
    assert found.status is Status.WARNING
    assert "tml-" in found.to_do
    monkeypatch.delenv(KEY)
    monkeypatch.setenv("TINKER_CREDENTIAL_CMD", "false")
    found = of(check_sdk(OWN, GuardSettings()), KEY)
    assert found.status is Status.SKIPPED
    assert "elsewhere" in found.detail


def test_the_key_of_an_installed_sdk_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_key() is None
    monkeypatch.setenv("FIREWORKS_API_KEY", "fw-key")
    assert find_key().variable == "FIREWORKS_API_KEY"  # type: ignore[union-attr]
    monkeypatch.setenv("TINKER_API_KEY", "tml-key")
    assert find_key().variable == OWN_KEY  # type: ignore[union-attr]


# -- the base URL --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "status", "says"),
    [
        (ROUTE, Status.OK, "account acct, job job-1 at https://api.test"),
        (f"{ROUTE}/", Status.OK, "account acct, job job-1"),
        ("https://api.fireworks.ai/training/v1/serverless", Status.OK, "serverless"),
        ("https://tinker.thinkingmachines.dev/services/tinker-prod", Status.OK, "hosted Tinker"),
        ("http://localhost:8000", Status.OK, "a local server"),
        ("http://[::1]:8000/x", Status.OK, "a local server"),
        ("http://10.1.2.3", Status.OK, "a local server"),
        ("https://other.test/api", Status.WARNING, "no trainer route"),
        (None, Status.SKIPPED, "none given"),
        (f"{ROUTE}/api/v1", Status.PROBLEM, "goes on behind the job"),
        (ROUTE.rpartition("/")[0], Status.PROBLEM, "names no job"),
        (ROUTE.replace("/training/v1", ""), Status.PROBLEM, "does not begin with /training/v1"),
        (ROUTE.replace("/training", "/gw/training"), Status.PROBLEM, "does not begin with"),
        (ROUTE.replace("Jobs", "jobs"), Status.PROBLEM, "in other letters"),
        (f"{ROUTE}%20x", Status.PROBLEM, "other characters"),
        ("https://api.test/v1/accounts/acct/rlorTrainerJobs/job-1", Status.PROBLEM, "control pl"),
        ("https://api.test/training/v1", Status.PROBLEM, "names no trainer job"),
        ("https://api.fireworks.ai", Status.PROBLEM, "names no trainer job"),
        ("api.test/training", Status.PROBLEM, "no URL with http"),
        ("https://", Status.PROBLEM, "no URL with http"),
        ("https://[", Status.PROBLEM, "no URL with http"),
        (ROUTE.replace("api.test", "api.test:99999"), Status.PROBLEM, "a port from 1 to 65535"),
    ],
)
def test_what_a_base_url_is_recognised_as(url: str | None, status: Status, says: str) -> None:
    found = only(check_base_url(url, GuardSettings()))
    assert found.status is status
    assert says in found.detail
    if status is not Status.OK:
        assert "/training/v1/rlorTrainerJobs/" in found.to_do


@pytest.mark.parametrize(
    ("url", "routes", "status", "says", "to_do"),
    [
        ("http://head:8000", "http://head:8000", Status.OK, "trainer route http://head:8000", ""),
        (
            "http://h/k/geheim",
            "http://h/k/{_key}",
            Status.OK,
            "trainer route http://h/k/{_key}",
            "",
        ),
        (
            "http://h/k/geheim",
            "http://h/k",
            Status.WARNING,
            "http://h/k: a trainer route by TINKER_GUARD_ROUTES, but the path goes on behind it",
            "TINKER_GUARD_ROUTES=http://h/{_part1}/{_part2}",
        ),
        (
            "http://localhost:8000",
            (),
            Status.OK,
            "a local server without a trainer route",
            "To have it guarded: TINKER_GUARD_ROUTES=http://localhost:8000",
        ),
        (
            "https://api.fireworks.ai/training/v1/serverless",
            (),
            Status.OK,
            "in whose URL no job can be read that could be asked for",
            "TINKER_GUARD_ROUTES=/training/v1/serverless",
        ),
        (
            "https://api.fireworks.ai/training/v1/serverless",
            "/training/v1/serverless",
            Status.OK,
            "trainer route https://api.fireworks.ai/training/v1/serverless",
            "",
        ),
        (
            "https://other.test/k/geheim",
            (),
            Status.WARNING,
            "no trainer route",
            "TINKER_GUARD_ROUTES=https://other.test/{_part1}/{_part2}",
        ),
    ],
)
def test_routes_by_configuration(
    url: str, routes: str, status: Status, says: str, to_do: str
) -> None:
    settings = GuardSettings(routes=routes)
    found = only(check_base_url(url, settings))
    assert found.status is status
    assert says in found.detail
    assert found.to_do.endswith(to_do)
    assert "geheim" not in f"{found.detail} {found.to_do}"
    said = say_in_words(find_route(url, settings), settings).detail
    assert ("whether the job runs" in said, "pass through" in said) == (False, not routes)


@pytest.mark.parametrize(
    "url",
    [
        f"{ROUTE}/api/v1",
        ROUTE.replace("/training/v1", ""),
        ROUTE.replace("Jobs", "jobs"),
        "https://api.test/v1/accounts/acct/rlorTrainerJobs/job-1",
    ],
)
def test_a_url_that_is_almost_right_is_corrected(url: str) -> None:
    assert only(check_base_url(url, GuardSettings())).to_do.endswith(ROUTE)


def test_a_secret_in_a_url_is_a_warning_beside_what_the_url_is() -> None:
    warning, found = check_base_url(ROUTE.replace("://", "://user:secret@"), GuardSettings())
    assert warning.status is Status.WARNING
    assert found.status is Status.OK


# -- the way there -------------------------------------------------------------------------------


@contextmanager
def listening() -> Iterator[httpx.URL]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield httpx.URL(f"http://127.0.0.1:{listener.getsockname()[1]}")


def test_proxies_are_shown_by_host_and_port(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(check_proxy(ROUTE)).detail == "none"
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy.test:3128/")
    assert only(check_proxy(None)).detail == "https through proxy.test:3128"
    found = only(check_proxy(ROUTE))
    assert found.status is Status.OK
    assert found.detail == "https through proxy.test:3128; for the base URL too"
    monkeypatch.setenv("NO_PROXY", "api.test")
    assert only(check_proxy(ROUTE)).detail.endswith("not for the base URL")


def test_a_proxy_before_this_machine_or_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "proxy.test")
    found = only(check_proxy(ROUTE.replace("https://api.test", "http://127.0.0.1:8000")))
    assert found.status is Status.WARNING
    assert "127.0.0.1 to NO_PROXY" in found.to_do
    monkeypatch.setenv("HTTP_PROXY", "socks5://proxy.test:1080")
    monkeypatch.setattr("tinker_guard.cli.doctor.network.find_spec", lambda _: None)
    found = only(check_proxy(ROUTE))
    assert found.status is Status.PROBLEM
    assert found.to_do == "Run: pip install 'httpx[socks]'"
    monkeypatch.setenv("HTTP_PROXY", "http://[")
    found = only(check_proxy(ROUTE))
    assert found.status is Status.PROBLEM
    assert "HTTP_PROXY" in found.detail


def test_a_place_that_takes_connections_is_no_obstacle() -> None:
    with listening() as url:
        assert find_obstacle(url) is None


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_obstacle(httpx.URL(f"http://{NOBODY}"))
    assert found is not None
    assert found.reason == f"nobody listens at {NOBODY}"
    monkeypatch.setenv("HTTPS_PROXY", f"http://{NOBODY}")
    found = find_obstacle(httpx.URL(ROUTE))
    assert found is not None
    assert found.reason == f"nobody listens at {NOBODY}, and it is the proxy for api.test"
    assert found.to_do == "Check HTTPS_PROXY, or add api.test to NO_PROXY."


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (socket.gaierror(-2, "secret"), "the name api.test is not known (DNS)"),
        (TimeoutError(), "api.test:443 did not take a connection within 3 s"),
        (OSError(113, "No route to host"), "api.test:443 cannot be reached (No route to host)"),
    ],
)
def test_why_a_place_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, error: OSError, says: str
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = find_obstacle(httpx.URL(ROUTE))
    assert found is not None
    assert found.reason == says
    assert found.to_do


@pytest.mark.parametrize(
    ("error", "says", "advice"),
    [
        (ssl.SSLError("secret"), "does not speak TLS", "http://"),
        (
            ssl.SSLCertVerificationError("secret"),
            "certificate that is not trusted",
            "SSL_CERT_FILE",
        ),
    ],
)
def test_what_is_wrong_with_tls(
    monkeypatch: pytest.MonkeyPatch, error: ssl.SSLError, says: str, advice: str
) -> None:
    def refuse(*_: object, **__: object) -> ssl.SSLSocket:
        raise error

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", refuse)
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "self-signed certificate"
    with listening() as url:
        found = find_obstacle(url.copy_with(scheme="https"))
    assert found is not None
    assert says in found.reason
    assert "secret" not in found.reason
    assert advice in found.to_do


# -- what the gateway answers --------------------------------------------------------------------

RUNNING = JobAnswer(state="JOB_STATE_RUNNING", status_code=200)
STARTING = JobAnswer(state="JOB_STATE_CREATING", status_code=200)
STOPPED = JobAnswer(state="JOB_STATE_FAILED", status_code=200)
MISSING = JobAnswer(status_code=404)
LATE = JobAnswer(
    failure=CONTROL_PLANE_TIMEOUT, detail="it did not answer within 5 s. Allow longer."
)


@pytest.mark.parametrize(
    ("fault", "status", "says", "advice"),
    [
        (Fault(), Status.OK, "JOB_STATE_RUNNING (http://127.0.0.1:", ""),
        (Fault(control_plane="down"), Status.PROBLEM, "(500)", "operator"),
        (Fault(control_plane="unauthorized"), Status.PROBLEM, "refuses the key (401)", OWN_KEY),
        (Fault(control_plane="redirect"), Status.PROBLEM, "a redirect (302)", "CONTROL_PLANE_URL"),
        (Fault(control_plane="dropped"), Status.PROBLEM, "could not be reached", "right host?"),
        (Fault(control_plane="not_json"), Status.PROBLEM, "no job's state", "CONTROL_PLANE_URL"),
        (Fault(control_plane="slow"), Status.PROBLEM, "within 2 s", "CONTROL_PLANE_TIMEOUT"),
        (Fault(job_states=((0.0, None),)), Status.PROBLEM, "knows no such job", "account and job"),
    ],
    ids=lambda value: value.control_plane if isinstance(value, Fault) else None,
)
def test_the_control_plane_is_asked(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, status: Status, says: str, advice: str
) -> None:
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_TIMEOUT", "2" if "2 s" in says else "5")
    with sdk.Gateway(fault) as gateway:
        monkeypatch.setenv(OWN_KEY, gateway.api_key)
        found = gateway_says(monkeypatch, gateway.base_url, "control plane")
        assert gateway.questions >= 1
    assert found.status is status
    assert says in found.detail
    assert advice in found.to_do


def test_without_a_key_its_want_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with sdk.Gateway() as gateway:
        found = gateway_says(monkeypatch, gateway.base_url, "control plane")
    assert found.status is Status.WARNING
    assert "TINKER_API_KEY or FIREWORKS_API_KEY" in found.to_do


def test_the_control_planes_own_key_is_the_one_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    with sdk.Gateway() as gateway:
        monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", gateway.origin)
        monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_API_KEY", "wrong")
        found = gateway_says(monkeypatch, gateway.base_url, "control plane")
    assert found.status is Status.PROBLEM
    assert found.to_do == "Check TINKER_GUARD_CONTROL_PLANE_API_KEY, which was sent."


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (STARTING, Status.WARNING),
        (STOPPED, Status.PROBLEM),
        (MISSING, Status.PROBLEM),
        (LATE, Status.PROBLEM),
    ],
)
def test_what_an_answer_means(answer: JobAnswer, status: Status) -> None:
    found = say_answer(answer, 0.012, "https://api.test", KEY)
    assert found.status is status
    assert found.to_do


def test_what_a_stopped_job_means_for_requests_and_for_a_resume() -> None:
    found = say_answer(STOPPED, 0.012, "https://api.test", KEY)
    assert found.to_do == (
        "Its requests get a 404 at once. Start or resume the job; tinker-guard wait lets the old "
        "state of one that was just resumed settle."
    )


def test_a_lost_key_of_the_control_plane_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard of such a process asks nobody, so neither does the doctor with another key."""
    parents = GuardSettings(control_plane_api_key="fw-SECRET", control_plane_url=ROUTE)
    lost = pickle.loads(pickle.dumps(parents))
    with sdk.Gateway() as gateway:
        state = RouteTable().find(httpx.URL(f"{gateway.base_url}/"))
        assert state is not None
        key = Key(OWN_KEY, SecretStr(gateway.api_key))
        answer = asyncio.run(ask(state, lost, key))
        assert gateway.questions == 0
    found = say_answer(answer, 0.0, "https://api.test", OWN_KEY)
    assert found.status is Status.PROBLEM
    assert "is not in this process" in found.detail
    assert found.to_do == "Set TINKER_GUARD_CONTROL_PLANE_API_KEY."


@pytest.mark.parametrize("has_variable", [False, True])
def test_a_key_that_the_parent_process_kept_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, has_variable: bool
) -> None:
    parents = GuardSettings(control_plane_api_key="fw-SECRET", control_plane_url=ROUTE)
    monkeypatch.setenv("TINKER_GUARD_INHERITED", parents.dump_without_key())
    if has_variable:
        monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_API_KEY", "fw-OTHER")
        monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://api.test")
    *warnings, _ = check_settings()
    assert len(warnings) == (0 if has_variable else 1)
    for warning in warnings:
        assert warning.status is Status.WARNING
        assert "has a key for the control plane that this one does not get" in warning.detail
        assert warning.to_do == "Set TINKER_GUARD_CONTROL_PLANE_API_KEY here too."


@pytest.mark.parametrize("left", ["", "[]", "{}"])
def test_a_parent_process_may_leave_nothing(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    monkeypatch.setenv("TINKER_GUARD_INHERITED", left)
    assert only(check_settings()).detail == "all as by default"


@pytest.mark.parametrize(
    ("left", "detail"),
    [
        ("{", "TINKER_GUARD_INHERITED: holds no settings. The guard sets it for child processes"),
        ('{"retry_timeout": "soon"}', "retry_timeout: input should be a valid number"),
    ],
)
def test_what_a_parent_process_left_can_be_anything(
    monkeypatch: pytest.MonkeyPatch, left: str, detail: str
) -> None:
    """A run there goes unguarded."""
    monkeypatch.setenv("TINKER_GUARD_INHERITED", left)
    problem, in_force = check_settings()
    assert problem.status is Status.PROBLEM
    assert problem.detail.startswith(detail)
    assert problem.to_do == "The parent process passed it on. Unset TINKER_GUARD_INHERITED."
    assert in_force.detail == "in the checks below: all as by default"


@pytest.mark.parametrize(
    ("variables", "details"),
    [
        ({}, ["retry_timeout 60.0, the others as by default"]),
        ({"RETRY_TIMEOUT": "5"}, ["retry_timeout 5.0, the others as by default"]),
        ({"VERDICT_TTL": "2"}, ["retry_timeout 60.0, verdict_ttl 2.0, the others as by default"]),
        (
            {"ENABLED": "0"},
            [
                "TINKER_GUARD_ENABLED switches the guard off: runs go unguarded",
                "enabled False, retry_timeout 60.0, the others as by default",
            ],
        ),
    ],
)
def test_in_a_child_process_the_settings_of_a_run_there_are_shown(
    variables: dict[str, str], details: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inherited = GuardSettings(retry_timeout=60).dump_without_key()
    monkeypatch.setenv("TINKER_GUARD_INHERITED", inherited)
    for name, value in variables.items():
        monkeypatch.setenv(f"TINKER_GUARD_{name}", value)
    assert [found.detail for found in check_settings()] == details
    assert read_settings() == (GuardSettings.load_without_key(inherited), {})


def test_what_a_parent_of_another_release_left_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_INHERITED", '{"retry_timeout": 60, "patience": 3}')
    warning, in_force = check_settings()
    assert warning.status is Status.WARNING
    assert "settings that this release does not know: patience" in warning.detail
    assert in_force.detail == "retry_timeout 60.0, the others as by default"


def test_an_obstacle_says_more_than_a_failed_question() -> None:
    obstacle = Obstacle("the name is not known", "Check it.")
    found = say_answer(LATE, 0.1, "https://api.test", KEY, obstacle)
    assert (found.detail, found.to_do) == obstacle
    found = say_found(Failed(Failure("other", "ConnectError")), 0.1, None, KEY, obstacle)
    assert (found.detail, found.to_do) == obstacle


@pytest.mark.parametrize("what", ["control plane", "trainer route"])
def test_a_gateway_that_is_down(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    url = f"http://{NOBODY}/training/v1/rlorTrainerJobs/a/j"
    found = gateway_says(monkeypatch, url, what)
    assert found.status is Status.PROBLEM
    assert found.detail == f"nobody listens at {NOBODY}"


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        (Fault(), Status.OK, "the trainer answers ("),
        (
            Fault(trainer_lacks=("get_server_capabilities",)),
            Status.WARNING,
            "a trainer's or a gateway's",
        ),
        (Fault(route_known_after=(None,)), Status.WARNING, "taken for a routing race"),
        (Fault(route_known_after=(None,), body="plain"), Status.WARNING, "404 that names nobody"),
        (Fault(route_known_after=(None,), control_plane="down"), Status.PROBLEM, "nobody can say"),
        (Fault(job_states=((0.0, None),)), Status.PROBLEM, "no running job"),
    ],
)
def test_who_answers_on_the_trainers_route(
    monkeypatch: pytest.MonkeyPatch, fault: Fault, status: Status, says: str
) -> None:
    with sdk.Gateway(fault) as gateway:
        monkeypatch.setenv(OWN_KEY, gateway.api_key)
        found = gateway_says(monkeypatch, gateway.base_url, "trainer route")
    assert found.status is status
    assert says in found.detail


def have_probes_answered(
    monkeypatch: pytest.MonkeyPatch, status: int, headers: dict[str, str], body: bytes
) -> None:
    """The job runs, and each probe of its route gets this answer."""

    async def answer(_: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/v1/accounts/"):
            return httpx.Response(200, json={"state": "JOB_STATE_RUNNING"})
        return httpx.Response(status, headers=headers, content=body)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", answer)


_JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "is_trainers"),
    [
        (200, _JSON, b'{"supported_models": []}', True),
        (404, _JSON, b'{"detail": "Unknown model"}', True),
        (200, _JSON, b'{"status": "maintenance"}', False),
        (200, _JSON, b'{"error": "out of order"}', False),
        (200, _JSON, b"[]", False),
        (200, _JSON | {"age": "7"}, b'{"supported_models": []}', False),
        (200, {"content-type": "text/plain"}, b"ok", False),
        (200, {"content-type": "text/html"}, b"<html>Sign in</html>", False),
        (204, {}, b"", False),
        (301, {"location": "https://other.test"}, b"", False),
        (400, _JSON, b'{"detail": "Unknown model"}', False),
        (401, _JSON, b'{"detail": "No key"}', False),
        (404, _JSON | {"age": "7"}, b'{"detail": "Unknown model"}', False),
        (422, _JSON, b'{"detail": []}', False),
        (429, _JSON, b"{}", False),
        (503, _JSON, b"{}", False),
    ],
)
def test_what_shows_a_trainer_to_a_run_shows_it_to_the_doctor(
    status: int,
    headers: dict[str, str],
    body: bytes,
    is_trainers: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    have_probes_answered(monkeypatch, status, headers, body)
    found = gateway_says(monkeypatch, ROUTE, "trainer route")
    assert (found.status is Status.OK) is is_trainers
    assert ("the trainer answers" in found.detail) is is_trainers
    is_ready = wait_until_routable(ROUTE, timeout=0) is Readiness.READY
    assert is_ready is is_trainers


@pytest.mark.parametrize(("job", "is_trainers"), [("job-1", True), ("checkpoint-7b", False)])
def test_a_trainers_word_in_a_jobs_name_is_none(
    job: str, is_trainers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the guard: a gateway may give the name back."""
    have_probes_answered(monkeypatch, 404, _JSON, b'{"error": "checkpoint-7b does not run"}')
    state = find_route(ROUTE.replace("job-1", job), GuardSettings())
    assert state is not None
    found, _ = asyncio.run(probe(state, GuardSettings(), None))
    assert isinstance(found, Reached) is is_trainers


def test_a_servers_own_404_is_what_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = '{"members": {"detail": "Not Found"}, "generic": false}'
    monkeypatch.setenv("TINKER_GUARD_TRAINER_404", shape)
    with sdk.Gateway(Fault(trainer_lacks=("get_server_capabilities",))) as gateway:
        monkeypatch.setenv(OWN_KEY, gateway.api_key)
        found = gateway_says(monkeypatch, gateway.base_url, "trainer route")
    assert found.status is Status.OK
    assert "the trainer answers" in found.detail


def not_found(source: Source) -> NotFound:
    return NotFound(source, 0.0, httpx.Headers(), b"", 0.0)


@pytest.mark.parametrize(
    ("found", "answer", "status", "says"),
    [
        (Reached(0.0), None, Status.OK, "the trainer answers (12 ms)"),
        (not_found(Source.GATEWAY), STARTING, Status.WARNING, "does not run yet"),
        (not_found(Source.GATEWAY), None, Status.PROBLEM, "there is no control plane"),
        (not_found(Source.GATEWAY), LATE, Status.PROBLEM, "nobody can say"),
        (not_found(Source.GATEWAY), STOPPED, Status.PROBLEM, "no running job"),
        (not_found(Source.ROUTER), RUNNING, Status.WARNING, "a trainer's or a gateway's"),
        (not_found(Source.ROUTER), None, Status.PROBLEM, "a trainer's or a gateway's"),
        (not_found(Source.ROUTER), STOPPED, Status.PROBLEM, "no running job"),
        (Failed(status_code=401), RUNNING, Status.PROBLEM, "refuses the key (401)"),
        (Failed(status_code=302), RUNNING, Status.WARNING, "redirects (302)"),
        (Failed(status_code=503), RUNNING, Status.WARNING, "out of order or busy (503)"),
        (Failed(status_code=429), RUNNING, Status.WARNING, "out of order or busy (429)"),
        (Failed(status_code=200), RUNNING, Status.WARNING, "not as a trainer does (200, 12 ms)"),
        (Failed(status_code=422), RUNNING, Status.WARNING, "not as a trainer does (422, 12 ms)"),
        (Failed(Failure("late", "ReadTimeout")), RUNNING, Status.PROBLEM, "12 ms (ReadTimeout)"),
        (Failed(), RUNNING, Status.PROBLEM, "could not be sent"),
    ],
)
def test_what_a_probe_has_found(
    found: ProbeResult, answer: JobAnswer | None, status: Status, says: str
) -> None:
    said = say_found(found, 0.012, answer, KEY)
    assert said.status is status
    assert says in said.detail
    assert bool(said.to_do) is (status is not Status.OK)


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0012, "1.2 ms"), (0.9997, "1.00 s"), (75.0, "1 min 15 s")]
)
def test_how_long_an_answer_took(seconds: float, said: str) -> None:
    assert say_found(Reached(0.0), seconds, None, KEY).detail == f"the trainer answers ({said})"
    assert f", {said}, with" in say_answer(RUNNING, seconds, "https://api.test", KEY).detail


# -- spans ---------------------------------------------------------------------------------------


def test_who_takes_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "provider_name", lambda: "TracerProvider")
    found = only(check_recording())
    assert found.status is Status.OK
    assert "spans go to a TracerProvider" in found.detail
    monkeypatch.setattr(providers, "provider_name", lambda: None)
    assert only(check_recording()).status is Status.SKIPPED
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert only(check_recording()).status is Status.WARNING


def test_the_provider_of_this_process(
    monkeypatch: pytest.MonkeyPatch, spans: InMemorySpanExporter
) -> None:
    assert providers.provider_name() == "TracerProvider"
    monkeypatch.setattr(trace, "get_tracer_provider", trace.NoOpTracerProvider)
    assert providers.provider_name() is None


def test_without_an_opentelemetry_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("tinker_guard.cli.doctor.spans.version", missing)
    found = only(check_recording())
    assert found.status is Status.SKIPPED
    assert "pip install 'tinker-guard[otlp]'" in found.to_do


class Plugins:
    def __init__(self, *names: str) -> None:
        self.names = set(names)


def install_exporters(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("tinker_guard.cli.doctor.spans.entry_points", lambda **_: Plugins(*names))


def test_somebody_listens_for_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    install_exporters(monkeypatch, "console", "otlp_proto_http")
    with listening() as url:
        for endpoint in (str(url), f"127.0.0.1:{url.port}"):
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
            found = only(check_exporter(GuardSettings()))
            assert found.status is Status.OK
            assert found.detail == f"OTLP to {url}: somebody listens"


def test_nobody_listens_for_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    install_exporters(monkeypatch, "otlp_proto_http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{NOBODY}/v1")
    found = only(check_exporter(GuardSettings()))
    assert found.status is Status.WARNING
    assert found.detail == f"OTLP to http://{NOBODY}: nobody listens at {NOBODY}"
    assert "Start a collector" in found.to_do


@pytest.mark.parametrize(("plugin", "port"), [("otlp_proto_http", 4318), ("otlp_proto_grpc", 4317)])
def test_the_default_endpoint_is_nobodys_fault(
    monkeypatch: pytest.MonkeyPatch, plugin: str, port: int
) -> None:
    install_exporters(monkeypatch, plugin)
    obstacle = Obstacle("nobody listens there", "Start it.")
    monkeypatch.setattr("tinker_guard.cli.doctor.spans.find_obstacle", lambda _: obstacle)
    found = only(check_exporter(GuardSettings()))
    assert found.status is Status.SKIPPED
    assert f"OTLP to http://localhost:{port}, the default: nobody listens there" in found.detail
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", plugin)
    assert only(check_exporter(GuardSettings())).status is Status.WARNING


def test_an_exporter_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    install_exporters(monkeypatch, "console")
    assert only(check_exporter(GuardSettings())).status is Status.SKIPPED
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{NOBODY}")
    found = only(check_exporter(GuardSettings()))
    assert found.status is Status.WARNING
    assert "pip install 'tinker-guard[otlp]'" in found.to_do


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "tml-key"),
        # That means gRPC.
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_TRACES_EXPORTER", "console, otlp_proto_grpc"),
        ("OTEL_TRACES_EXPORTER", "tml-key"),
    ],
)
def test_a_protocol_or_exporter_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    install_exporters(monkeypatch, "console", "otlp_proto_http")
    monkeypatch.setenv(name, value)
    found = only(check_exporter(GuardSettings()))
    assert found.status is Status.WARNING
    assert "not installed" in found.detail
    assert found.to_do in (
        "Set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
        "Installed: console and otlp_proto_http.",
    )


def test_another_exporter_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install_exporters(monkeypatch, "console")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    found = only(check_exporter(GuardSettings()))
    assert found.status is Status.OK
    assert found.detail == "console, by OTEL_TRACES_EXPORTER"
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert only(check_exporter(GuardSettings())).status is Status.WARNING


def test_an_endpoint_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    install_exporters(monkeypatch, "otlp_proto_http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[")
    found = only(check_exporter(GuardSettings()))
    assert found.status is Status.WARNING
    assert found.to_do == "It should look like http://localhost:4318"


# -- the screen ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "says"),
    [
        ([], "No problem."),
        ([Status.OK, Status.SKIPPED], "No problem."),
        ([Status.WARNING], "No problem, 1 warning."),
        ([Status.PROBLEM], "1 problem, 0 warnings."),
        ([Status.PROBLEM, Status.PROBLEM, Status.WARNING], "2 problems, 1 warning."),
    ],
)
def test_the_last_line(statuses: list[Status], says: str) -> None:
    findings = [Finding(doctor.Section.SDKS, "x", status, "y") for status in statuses]
    assert screen.summary(findings, Terminal(io.StringIO())) == says


def test_no_sdk_is_needed_to_be_told_that_there_is_none() -> None:
    code = """
import sys
sys.modules["tinker"] = sys.modules["fireworks"] = None
sys.argv[1:] = ["doctor"]
from tinker_guard.cli import main
main()
"""
    ended = python("-c", code)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr == ""
    assert "there is nothing to guard: no SDK can be imported" in ended.stdout


@pytest.mark.parametrize(
    ("export", "said"),
    [("console", "to stderr"), ("jsonl:some/private/place.jsonl", "to a file")],
)
def test_an_export_of_the_guards_own_is_named_and_not_begun(
    export: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINKER_GUARD_EXPORT", export)
    found = only(check_exporter(GuardSettings()))
    assert (found.status, found.detail) == (Status.OK, f"{said}, by TINKER_GUARD_EXPORT")
    list(doctor.examine())
    assert list(tmp_path.iterdir()) == []
