"""Decides whether a guarded run ended correctly, without I/O; text for applied seq_ids."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final

from tinker_guard.policy.judgement import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tinker_guard.cli.demo.run import Run
    from tinker_guard.gateway import Fault

QUICK: Final = 5.0
"""Time limit in seconds for a run in which waiting cannot help; two steps take far less than one
second."""


class End(Enum):
    """How a guarded run should end."""

    FINISHED = "finished"
    NOT_FOUND = "not found"
    """Ends with the SDK's own error, because the job is gone."""


def expected_end(fault: Fault) -> End:
    """How a guarded run should end with this fault."""
    # If no control plane answers, a probe that reaches the trainer ends a race.
    return End.FINISHED if fault.stop is None else End.NOT_FOUND


def problems(fault: Fault, healthy: Run, guarded: Run) -> list[str]:
    """The faults of a guarded run; an empty list if it ended correctly.

    Args:
        fault: The fault that it met.
        healthy: The run without a fault, for comparison.
        guarded: The run.
    """
    if healthy.losses is None or not _is_once_each(healthy.applied):
        return ["the run without a fault did not finish, so there is nothing to compare with"]
    if guarded.is_stuck:
        return [f"the guarded run was still waiting after {guarded.seconds:.0f} s"]
    found = []
    if not _is_once_each(guarded.applied):
        found.append(f"work was not applied once each, in order: {say_applied(guarded.applied)}")
    found += [
        f"the trainer did not understand a request: {request}" for request in guarded.unexpected
    ]
    match expected_end(fault):
        case End.FINISHED:
            return found + _problems_of_finishing(healthy, guarded)
        case End.NOT_FOUND:
            return found + _problems_of_giving_up(guarded, Verdict.GENUINE_NOT_FOUND)


def _problems_of_finishing(healthy: Run, guarded: Run) -> list[str]:
    if guarded.losses is None:
        return [f"the guarded run ended with {guarded.error_type} instead of finishing"]
    found = []
    if len(guarded.applied) < len(healthy.applied):
        found.append(f"not all of the work was applied: {say_applied(guarded.applied)}")
    assert healthy.losses is not None
    if len(guarded.losses) != len(healthy.losses):
        found.append(f"{len(guarded.losses)} losses instead of {len(healthy.losses)}")
    for step, (loss, right) in enumerate(zip(guarded.losses, healthy.losses, strict=False), 1):
        if loss != right:
            found.append(f"the loss of step {step} is {loss!r} instead of {right!r}")
            break
    return found


def _problems_of_giving_up(guarded: Run, verdict: Verdict) -> list[str]:
    if guarded.error_type is None:
        return ["the guarded run finished, although there was no trainer to reach"]
    found = []
    if guarded.error_type != "NotFoundError":
        found.append(f"it ended with {guarded.error_type} instead of the SDK's NotFoundError")
    if guarded.resends:
        found.append(f"requests were sent again although that cannot help: {guarded.resends}")
    if set(guarded.verdicts) != {verdict.value}:
        said = ", ".join(guarded.verdicts) or "none"
        found.append(f"the verdict should be {verdict.value}, but was: {said}")
    if guarded.seconds > QUICK:
        found.append(f"it took {guarded.seconds:.1f} s to end, although waiting cannot help")
    return found


def _is_once_each(applied: Sequence[int]) -> bool:
    return list(applied) == list(range(1, len(applied) + 1))


def say_applied(applied: Sequence[int]) -> str:
    """The applied seq_ids in words, such as `1-10 once each` or `1-10, but 3 twice`."""
    if not applied:
        return "none"
    spans: list[list[int]] = []
    for seq_id in sorted(set(applied)):
        if spans and seq_id == spans[-1][1] + 1:
            spans[-1][1] = seq_id
        else:
            spans.append([seq_id, seq_id])
    said = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in spans)
    repeated = sorted(seq_id for seq_id in set(applied) if applied.count(seq_id) > 1)
    if repeated:
        times = ", ".join(f"{seq_id} {_times(applied.count(seq_id))}" for seq_id in repeated)
        return f"{said}, but {times}"
    if list(applied) != sorted(applied):
        return f"{said}, out of order"
    return f"{said} once each" if len(applied) > 1 else f"{said} once"


def _times(count: int) -> str:
    return "twice" if count == 2 else f"{count} times"
