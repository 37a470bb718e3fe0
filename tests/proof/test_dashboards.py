"""Dashboard and alerts ask for what there is; `make dashboards` asks a real Prometheus too."""

from __future__ import annotations

import json
import re
from typing import Final

import pytest

from tests import ROOT
from tinker_guard.observability import attributes
from tinker_guard.observability.metrics import EXCHANGE_DURATION, METRICS
from tinker_guard.policy.judgement import Outcome, Reason, Verdict

PLACE: Final = ROOT / "dashboards"


def prometheus_name(name: str) -> str:
    """A name as OpenTelemetry's exporters write it for Prometheus."""
    return re.sub(r"\W", "_", name)


def labels_by_metric() -> dict[str, set[str]]:
    """What Prometheus sees of the guard: series by name, and the labels that they may have."""
    found = {}
    for metric in METRICS.values():
        labels = {*metric.attributes, attributes.ACCOUNT, attributes.JOB}
        names = {prometheus_name(label) for label in labels}
        if metric.bounds is None:
            found[f"{prometheus_name(metric.name)}_total"] = names
            continue
        for suffix in ("bucket", "count", "sum"):
            found[f"{prometheus_name(metric.name)}_seconds_{suffix}"] = names
    return found


SERIES: Final = labels_by_metric()
VALUES: Final[dict[str, set[str]]] = {
    prometheus_name(attributes.OUTCOME): {outcome.value for outcome in Outcome},
    prometheus_name(attributes.VERDICT): {verdict.value for verdict in Verdict},
    prometheus_name(attributes.REASON): {reason.value for reason in Reason},
}


def expressions() -> list[str]:
    """Those of the panels, then those of the alerts."""
    dashboard = json.loads((PLACE / "tinker-guard.json").read_text())
    panels = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())
    ]
    rules = (PLACE / "alerts.yml").read_text()
    alerts = re.findall(r"expr: >-\n((?: {10}.*\n)+)", rules)
    assert len(alerts) == rules.count("alert: ")
    return panels + alerts


def selectors(expression: str) -> list[tuple[str, str]]:
    """Each metric that an expression names, with what is between its braces."""
    return re.findall(r"\b(tinker_guard_\w+|http_\w+)(?=[{[]| offset)(?:\{([^}]*)\})?", expression)


@pytest.mark.parametrize("expression", expressions())
def test_names_are_those_of_the_declared_metrics(expression: str) -> None:
    found = selectors(expression)
    assert found
    for metric, selected in found:
        for label, _, value in re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selected):
            assert label in SERIES[metric]
            known = VALUES.get(label)
            assert known is None or value == "" or set(value.split("|")) <= known
    labels = set.union(*(SERIES[metric] for metric, _ in found))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        # A scrape's own label, and that of buckets.
        assert set(group.split(", ")) <= labels | {"job", "le"}


def test_every_metric_of_the_guard_has_a_panel() -> None:
    shown = {metric for expression in expressions() for metric, _ in selectors(expression)}
    for metric in METRICS.keys() - {EXCHANGE_DURATION}:
        assert any(name.startswith(prometheus_name(metric)) for name in shown), metric
