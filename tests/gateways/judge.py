"""What the runs through one gateway must have been, and the table of what they were."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from testkit.pages import put_between
from tests.end_to_end import sdk
from tinker_guard import GuardSettings, install_guard, uninstall_guard
from tinker_guard.core.routes import ROUTES
from tinker_guard.gateway.train import train_five_steps
from tinker_guard.settings import SettingValues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from .fleet import Fault, Trainer

    Trainers = Callable[[Fault], AbstractContextManager[Trainer]]
    """Makes a trainer that has done nothing, behind a gateway with a fault."""

FAULTS: Final[dict[Fault, str]] = {
    "late": "one replica knows the route late",
    "lost": "one replica loses it in step 3",
}


class Row(NamedTuple):
    """What one gateway did, and what became of the runs."""

    gateway: str
    not_found: str
    fault: str
    asked: Raced
    unasked: Raced
    """The same without a control plane."""


class Raced(NamedTuple):
    """A guarded run with a fault, beside those without the one or the other."""

    unguarded: str
    """What the run without the guard died of."""
    spans: list[dict[str, Any]]
    """The attributes of each span of the guarded run."""
    missing: float
    """Seconds for which the route was missing."""
    lost: float
    """Seconds that the run took longer than the one without the fault."""
    questions: int
    """How many lookups the trainer's own control plane has met."""
    own: int
    """How many 404s were the trainer's own; `spans` lacks what the guard said of them."""

    @property
    def writers(self) -> set[tuple[str, str | None]]:
        """Who wrote the 404s: source and gateway."""
        source, gateway = "tinker_guard.not_found.source", "tinker_guard.not_found.gateway"
        return {(span[source], span.get(gateway)) for span in self.spans if source in span}

    def lookups(self, url: str) -> int:
        """How many there were at a URL, all of them answered."""
        met = [span for span in self.spans if span.get("url.full", "").startswith(url)]
        assert {span["http.response.status_code"] for span in met} <= {200}
        return len(met)

    @property
    def met(self) -> int:
        """How many 404s there were; each exchange has one span with the URL."""
        statuses = [span["http.response.status_code"] for span in self.spans if "url.full" in span]
        return statuses.count(404) - self.own

    @property
    def resends(self) -> int:
        """How many there were."""
        return sum(span.get("tinker_guard.retries", 0) for span in self.spans)


def try_out(
    trainers: Trainers,
    fault: Fault,
    losses: Any,
    spans: InMemorySpanExporter,
    plane: SettingValues,
    train: Callable[[Trainer], Any] | None = None,
    lacked: str = "",
) -> tuple[Raced, Raced]:
    """Train without the guard, guarded without the fault, and guarded with it.

    Args:
        trainers: Makes the trainers.
        fault: What goes wrong.
        losses: What training comes to without any gateway.
        spans: What is recorded.
        plane: The settings with which the control plane is asked.
        train: Trains, and returns what that comes to; five steps of the local trainer by default.
        lacked: An operation that the trainer does not know, which each run asks for once.

    Returns:
        The runs with the fault: one that asks the control plane, and one that has none to ask.
    """
    train = train or five_steps
    with pytest.raises((sdk.SdkError, ValueError)) as death:
        run(trainers, fault, train)

    install_guard()
    clean, _, usual = run(trainers, "none", train)
    assert clean == losses
    assert not [span for span in _of_all(spans, lacked)[0] if "tinker_guard.verdict" in span]

    found = []
    none = SettingValues(control_plane="none")
    for settings, reason in ((plane, "job_running"), (none, "trainer_reached")):
        uninstall_guard()
        ROUTES.clear()
        spans.clear()
        install_guard(GuardSettings(**settings))
        raced, trainer, took = run(trainers, fault, train)
        assert raced == losses
        assert trainer.unexpected == []
        ended, own = _of_all(spans, lacked)
        assert {
            (one["tinker_guard.verdict"], one["tinker_guard.verdict.reason"])
            for one in ended
            if "tinker_guard.verdict" in one
        } == {("routing_race", reason)}
        lost = took - usual - trainer.outage.held_back
        unguarded = type(death.value).__name__
        missing = trainer.outage.seconds
        found.append(Raced(unguarded, ended, missing, lost, trainer.questions, own))
    asked, unasked = found
    return asked, unasked


def run(
    trainers: Trainers, fault: Fault, train: Callable[[Trainer], Any]
) -> tuple[Any, Trainer, float]:
    """Train; what that came to, the trainer, and the seconds that it took."""
    with trainers(fault) as trainer:
        began_at = time.monotonic()
        measured = train(trainer)
        took = time.monotonic() - began_at
    return measured, trainer, took


def five_steps(trainer: Trainer) -> list[float]:
    """The losses of five steps, each of which the local trainer has done once."""
    with sdk.connected(trainer) as client:
        losses = train_five_steps(client, sdk.types)
    assert sdk.work_of(trainer) == sdk.ONCE_EACH
    return losses


def _of_all(spans: InMemorySpanExporter, lacked: str) -> tuple[list[dict[str, Any]], int]:
    """The attributes of each span, and how many 404s were the trainer's own.

    The guard must have said so on the span of the operation that the trainer lacks, and only there;
    what it said is left out.
    """
    found = [_of(span) for span in spans.get_finished_spans()]
    own = [span for span in found if span.get("tinker_guard.operation") == lacked]
    labels = ("verdict", "verdict.reason", "not_found.source")
    said = [tuple(span.pop(f"tinker_guard.{label}", None) for label in labels) for span in own]
    assert said == [("genuine_not_found", "trainer_answered", "trainer")] * bool(lacked)
    return found, len(own)


def _of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def found_rows(
    target: str, expected: int, write: Callable[[Path, list[Any], str], None] | None = None
) -> Any:
    """The fixture `rows` of a module, which takes what its tests find.

    Args:
        target: Whose table it is.
        expected: How many rows the table has; with fewer nothing is written.
        write: Writes them into a page; this module's by default.
    """

    @pytest.fixture(scope="module")
    def rows() -> Iterator[list[Any]]:
        found: list[Any] = []
        yield found
        page = os.environ.get("TINKER_GUARD_GATEWAYS_PAGE")
        if page and len(found) == expected:
            (write or write_table)(Path(page), found, target)

    return rows


_BEGIN: Final = "<!-- written by make {} -->"
_END: Final = "<!-- end -->"


def write_table(page: Path, rows: list[Row], target: str) -> None:
    """Put the table into a page, in the place of that of the target's last time."""
    head = (
        *("gateway", "its 404", "the fault", "missing for", "unguarded"),
        *("404s met", "resends", "time lost", "without a control plane", "losses equal"),
    )
    lines = [head, ("---",) * len(head)]
    lines += [
        (
            *(gateway, not_found, fault, f"{asked.missing:.1f} s", f"`{asked.unguarded}`"),
            *(str(asked.met), str(asked.resends), f"{max(asked.lost, 0):.2f} s"),
            *(f"{max(unasked.lost, 0):.2f} s", "yes"),
        )
        for gateway, not_found, fault, asked, unasked in rows
    ]
    put_table(page, lines, target)


def put_table(page: Path, lines: list[tuple[str, ...]], target: str) -> None:
    """Put a table into a page, in the place of that of the target's last time."""
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    put_between(page, _BEGIN.format(target), _END, f"\n{date}:\n\n{table}\n")
