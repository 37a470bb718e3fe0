"""The Grafana dashboard and the alerts, over what a real Prometheus scraped of guarded runs."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import pytest

from testkit.programs import free_port, serving, until
from tests import ROOT, script

from .conftest import program, training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PLACE: Final = ROOT / "dashboards"
DASHBOARD: Final = json.loads((PLACE / "tinker-guard.json").read_text())
PANELS: Final = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}

ALERTS_OF: Final = {
    "deleted": {"TinkerGuardJobGone"},
    "unverified": {"TinkerGuardUnverified404", "TinkerGuardControlPlaneFailing"},
    "slow": {"TinkerGuardSlowRecovery"},
    "exhausted": {"TinkerGuardRaceExhausted"},
}
"""Which alerts a run sets off."""


def test_the_dashboard_is_what_the_script_writes() -> None:
    dashboard = script("grafana_dashboard")
    assert dashboard.FILE.read_text() == dashboard.text(), (
        "run `python scripts/grafana_dashboard.py`"
    )


def test_grafanas_own_library_reads_the_dashboard() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert json.loads(JSONEncoder().encode(read)) == DASHBOARD


@pytest.mark.parametrize("arguments", [("check", "alerts.yml"), ("test", "alerts.test.yml")])
def test_the_rules_by_themselves(arguments: tuple[str, str]) -> None:
    verb, file = arguments
    promtool = [program("promtool"), verb, "rules", file]
    done = subprocess.run(promtool, cwd=PLACE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


class Scraped(NamedTuple):
    """A Prometheus, and the program that it scrapes."""

    train: Callable[[str], str]
    url: str

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """What an expression is now."""
        response = httpx.post(
            f"{self.url}/api/v1/query", data={"query": expression}, trust_env=False
        )
        assert response.is_success, f"{expression}: {response.text}"
        return [
            (series["metric"], float(series["value"][1]))
            for series in response.json()["data"]["result"]
        ]

    def fires(self, *alerts: str) -> bool:
        """Whether all of these alerts fire."""
        found = self.query('ALERTS{alertstate="firing"}')
        return set(alerts) <= {labels["alertname"] for labels, _ in found}

    def panel(self, title: str, job: str = ".*") -> list[list[tuple[dict[str, str], float]]]:
        """What each query of a panel returns for the last ten minutes."""
        variables = {"$__rate_interval": "10m", "$__range": "10m", "$job": job}
        expressions = [target["expr"] for target in PANELS[title]["targets"]]
        for name, value in variables.items():
            expressions = [expression.replace(name, value) for expression in expressions]
        return [self.query(expression) for expression in expressions]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """A program that is scraped every second, under the alerts with two seconds to the minute."""
    place = tmp_path_factory.mktemp("prometheus")
    metrics, port = free_port(), free_port()
    rules = (PLACE / "alerts.yml").read_text()
    rules = re.sub(r"\b(\d+)m\b", lambda minutes: f"{2 * int(minutes[1])}s", rules)
    (place / "alerts.yml").write_text(rules)
    (place / "prometheus.yml").write_text(f"""
        global: {{scrape_interval: 1s, evaluation_interval: 1s}}
        rule_files: [alerts.yml]
        scrape_configs:
          - job_name: training
            static_configs: [{{targets: ["127.0.0.1:{metrics}"]}}]
    """)
    with (
        training(
            str(Path(sys.executable).parent / "opentelemetry-instrument"),
            OTEL_METRICS_EXPORTER="prometheus",
            OTEL_TRACES_EXPORTER="none",
            OTEL_LOGS_EXPORTER="none",
            OTEL_EXPORTER_PROMETHEUS_HOST="127.0.0.1",
            OTEL_EXPORTER_PROMETHEUS_PORT=metrics,
            TINKER_GUARD_METRICS_BY_JOB="1",
            TINKER_GUARD_RETRY_TIMEOUT="16",
        ) as train,
        serving(
            [
                *(program("prometheus"), "--config.file=prometheus.yml"),
                *(f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={place}/data"),
            ],
            f"http://127.0.0.1:{port}/-/ready",
            place / "log",
        ),
    ):
        yield Scraped(train, f"http://127.0.0.1:{port}")


def test_alerts_fire_and_clear_and_every_panel_has_data(scraped: Scraped) -> None:
    assert scraped.train("clean") == "clean: finished"
    requests = 'sum(tinker_guard_request_duration_seconds_count{tinker_guard_job="job-clean"}) > 20'
    until(lambda: scraped.query(requests), "the clean run's metrics")
    assert scraped.train("late-route") == "late-route: finished"
    assert scraped.query("ALERTS") == []

    for run, expected in ALERTS_OF.items():
        scraped.train(run)
        until(partial(scraped.fires, *expected), f"{expected} after {run}")
    until(
        lambda: scraped.train("recovered") and scraped.fires("TinkerGuardRacesPersist"),
        "an alert after races for 30 s",
        120.0,
    )
    until(lambda: scraped.query("ALERTS") == [], "all alerts to clear", 120.0)

    totals = {
        "Races recovered": 'tinker_guard_outcome="recovered"',
        "Races exhausted": 'tinker_guard_outcome="exhausted"',
        "Genuine not-founds": 'tinker_guard_outcome="not_found"',
        "Unverified 404s": 'tinker_guard_outcome="unverified"',
    }
    for title, selected in totals.items():
        ((_, total),) = scraped.query(
            f"sum(tinker_guard_request_duration_seconds_count{{{selected}}})"
        )
        assert scraped.panel(title) == [[({}, total)]]
        assert total > 0
    for title in PANELS.keys() - totals.keys():
        for series in scraped.panel(title):
            assert series, f"{title} is empty"
            assert all(math.isfinite(value) for _, value in series), f"{title}: {series}"

    def labels(title: str, name: str) -> set[str | None]:
        (series,) = scraped.panel(title)
        return {found.get(name) for found, _ in series}

    assert labels("Requests that met a 404", "tinker_guard_outcome") >= {
        *("recovered", "exhausted", "not_found", "unverified"),
    }
    assert {"forward_backward", "retrieve_future"} <= labels("Races met", "tinker_guard_operation")
    assert labels("Probes", "tinker_guard_probe_result") >= {"reached", "not_found"}
    assert labels("Control-plane questions", "tinker_guard_verdict") == {
        *("routing_race", "genuine_not_found", "unverified"),
    }
    (_, p90, _) = scraped.panel("Warmup time", "job-late-route")
    assert p90[0][1] > 2.5, "its route is known after 3 s"

    # The variable `job` tells the runs apart.
    names = httpx.get(f"{scraped.url}/api/v1/label/tinker_guard_job/values", trust_env=False)
    assert {"job-clean", "job-deleted"} <= set(names.json()["data"])
    assert scraped.panel("Races recovered", "job-deleted") == [[({}, 0.0)]]
    (((_, gone),),) = scraped.panel("Genuine not-founds", "job-deleted")
    assert gone > 0
