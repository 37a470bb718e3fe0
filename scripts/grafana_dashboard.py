"""Writes dashboards/tinker-guard.json with Grafana's own builder library.

`python scripts/grafana_dashboard.py`, in an environment that has `grafana-foundation-sdk`; a test
of `make dashboards` asserts that the committed file is what comes out of here.
"""

# ruff: noqa: T201

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
)

FILE: Final = Path(__file__).resolve().parent.parent / "dashboards" / "tinker-guard.json"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")

REQUESTS: Final = "tinker_guard_request_duration_seconds"
RECOVERIES: Final = "tinker_guard_recovery_duration_seconds"
WARMUPS: Final = "tinker_guard_warmup_duration_seconds"
QUESTIONS: Final = "tinker_guard_question_duration_seconds"
VERDICTS: Final = "tinker_guard_verdicts_total"
RESENDS: Final = "tinker_guard_resends_total"
PROBES: Final = "tinker_guard_probes_total"
# The trainer's own 404s, and those off trainer routes, are everyday life.
GENUINE: Final = 'tinker_guard_verdict_reason=~"job_not_running|job_missing"'
UNVERIFIED: Final = (
    'tinker_guard_outcome="unverified",tinker_guard_verdict_reason!="no_control_plane"'
)


def grown(metric: str, window: str, *labels: str) -> str:
    """By how much counters grew in a window.

    `increase` alone does not count what a series begins with, and a rare event is its beginning.
    """
    selected = ",".join(filter(None, (*labels, 'tinker_guard_job=~"$job"')))
    series = f"{metric}{{{selected}}}"
    return (
        f"((max_over_time({series}[{window}]) unless {series} offset {window})"
        f" or increase({series}[{window}]))"
    )


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    """One query, whose series are named by a legend."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(SOURCE)


def number(title: str, meaning: str, colour: str, *selected: str, metric: str) -> stat.Panel:
    """How often something happened in the time shown; in a colour if it did."""
    steps = [Threshold(value=None, color="text"), Threshold(value=0.5, color=colour)]
    return (
        stat.Panel()
        .title(title)
        .description(meaning)
        .datasource(SOURCE)
        .height(4)
        .span(6)
        .unit("short")
        .decimals(0)
        .color_mode(BigValueColorMode.BACKGROUND)
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(query(f"sum({grown(metric, '$__range', *selected)}) or vector(0)").instant())
    )


def graph(title: str, meaning: str, unit: str, *queries: prometheus.Dataquery) -> Any:
    """Something over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(meaning)
        .datasource(SOURCE)
        .height(8)
        .span(12)
        .unit(unit)
        .min(0)
        .fill_opacity(10)
        .interval("1m")
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    for each in queries:
        panel = panel.with_target(each.range())
    return panel


def counts(title: str, meaning: str, metric: str, *labels: str, selected: str = "") -> Any:
    """How often things happened, told apart by labels, as bars on each other."""
    expression = f"sum by ({', '.join(labels)}) ({grown(metric, '$__rate_interval', selected)})"
    legend = " ".join(f"{{{{{label}}}}}" for label in labels)
    return (
        graph(title, meaning, "short", query(f"{expression} > 0", legend))
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(60)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    )


def quantiles(title: str, meaning: str, metric: str) -> Any:
    """How long things took."""
    buckets = f"sum by (le) ({grown(f'{metric}_bucket', '$__rate_interval')})"
    return graph(
        title,
        meaning,
        "s",
        *(
            query(f"histogram_quantile({share / 100:g}, {buckets})", f"p{share}")
            for share in (50, 90, 99)
        ),
    )


def added(metric: str) -> str:
    """Seconds that something added to a guarded request on average."""
    seconds, requests = (grown(name, "$__rate_interval") for name in (metric, f"{REQUESTS}_count"))
    return f"sum({seconds}) / sum({requests})"


def dashboard() -> Dashboard:
    """All of it."""
    return (
        Dashboard("tinker_guard")
        .uid("tinker-guard")
        .description("Routing races of an API gateway, and what tinker_guard did about them.")
        .tags(["tinker-guard"])
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-6h", "now")
        .refresh("1m")
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            QueryVariable("job")
            .label("Job (with TINKER_GUARD_METRICS_BY_JOB=1)")
            .datasource(SOURCE)
            .query(f"label_values({REQUESTS}_count, tinker_guard_job)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
        .with_row(Row("In the time shown"))
        .with_panel(
            number(
                "Races recovered",
                "Requests that met a routing race and came back.",
                "green",
                'tinker_guard_outcome="recovered"',
                metric=f"{REQUESTS}_count",
            )
        )
        .with_panel(
            number(
                "Races exhausted",
                "Requests still racing when retry_timeout was over: the SDK got the 404.",
                "red",
                'tinker_guard_outcome="exhausted"',
                metric=f"{REQUESTS}_count",
            )
        )
        .with_panel(
            number(
                "Genuine not-founds",
                "Requests whose job is stopped or missing. The trainer's own 404s do not count.",
                "orange",
                'tinker_guard_outcome="not_found"',
                GENUINE,
                metric=f"{REQUESTS}_count",
            )
        )
        .with_panel(
            number(
                "Unverified 404s",
                "404s handed back because the control plane did not say whether the job runs.",
                "red",
                UNVERIFIED,
                metric=f"{REQUESTS}_count",
            )
        )
        .with_row(Row("Over time"))
        .with_panel(
            counts(
                "Requests that met a 404",
                "By how they ended, and why.",
                f"{REQUESTS}_count",
                "tinker_guard_outcome",
                "tinker_guard_verdict_reason",
                selected='tinker_guard_verdict!=""',
            )
        )
        .with_panel(
            counts(
                "Races met",
                "404s that were routing races, by what was asked for.",
                VERDICTS,
                "tinker_guard_operation",
                selected='tinker_guard_verdict="routing_race"',
            )
        )
        .with_panel(
            quantiles("Recovery time", "From a request's first 404 to its end.", RECOVERIES)
        )
        .with_panel(quantiles("Warmup time", "Before a new route's first request.", WARMUPS))
        .with_panel(
            graph(
                "Added latency",
                "Seconds that races and warmups added to a guarded request, on average.",
                "s",
                query(added(f"{RECOVERIES}_sum"), "races"),
                query(added(f"{WARMUPS}_sum"), "warmups"),
            )
        )
        .with_panel(
            counts(
                "Resends",
                "By what was asked for, and the status that came back.",
                RESENDS,
                "tinker_guard_operation",
                "http_response_status_code",
                "error_type",
            )
        )
        .with_panel(counts("Probes", "By how they ended.", PROBES, "tinker_guard_probe_result"))
        .with_panel(
            counts(
                "Control-plane questions",
                "By what the answer meant for the 404.",
                f"{QUESTIONS}_count",
                "tinker_guard_verdict",
                "tinker_guard_verdict_reason",
            )
        )
    )


def text() -> str:
    """The file's content."""
    return JSONEncoder(sort_keys=True, indent=2).encode(dashboard().build()) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(f"wrote {FILE.name}")
