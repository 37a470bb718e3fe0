"""What a terminal of 80 or 120 columns shows, of the commands that people run by hand."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING, Final

import pytest

from tests.cli.test_report import a_run, otlp_lines, replace_job
from tinker_guard.cli.console import new_console
from tinker_guard.cli.terminal import Terminal
from tinker_guard.gateway import Fault, LocalGateway

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS: Final = [80, 120]
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def shown(columns: int, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """Run a command on a terminal: its exit code, and the lines that it leaves there.

    No line is wider than the terminal, those that are written over included.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", **variables}
    with subprocess.Popen(
        [sys.executable, "-m", "tinker_guard", *arguments],
        stdin=its,
        stdout=its,
        stderr=its,
        env=environment,
    ) as process:
        os.close(its)
        written = b""
        while select.select([ours], [], [], 50)[0]:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not read:
                break
            written += read
        code = process.wait(10)
    os.close(ours)
    text = written.decode().replace("\r\n", "\n")
    assert max(map(len, re.split(r"[\r\n]", _CONTROL.sub("", text)))) <= columns
    # What is written over stands before the last return of its line.
    lines = [_CONTROL.sub("", line.rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    return code, lines


@pytest.mark.parametrize(("columns", "width"), [(33, 33), (200, 200), (0, 100), (5, 100)])
@pytest.mark.parametrize("given", [None, "0", "wide"])
def test_the_width_is_that_of_the_streams_own_terminal(
    columns: int, width: int, given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given is not None:
        monkeypatch.setenv("COLUMNS", given)
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    with open(its, "w") as stream:
        assert Terminal(stream).width == width
        monkeypatch.setattr(sys, "stdout", stream)
        assert new_console(100).width == width
        monkeypatch.undo()
    os.close(ours)


@pytest.mark.parametrize("columns", WIDTHS)
def test_doctor_fits(columns: int) -> None:
    with LocalGateway() as gateway:
        _, lines = shown(columns, "doctor", gateway.base_url, TINKER_API_KEY=gateway.api_key)
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "the first request waits up to 120 s for the route; after a 404 it asks" in text
    assert [line for line in lines if line and not line.startswith(" ")][:-1] == [
        *("Guard", "SDKs", "Gateway", "Spans")
    ]


@pytest.mark.parametrize("columns", WIDTHS[:1])
def test_doctor_on_a_place_where_the_guard_does_nothing(columns: int) -> None:
    _, lines = shown(columns, "doctor", "http://127.0.0.1:9/own")
    text = " ".join(" ".join(lines).split())
    assert "requests pass through, and a 404 reaches the program as it comes" in text
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("columns", WIDTHS[:1])
def test_the_end_of_the_demo_fits_and_nothing_is_cut(columns: int) -> None:
    code, lines = shown(columns, "demo")
    assert code == 0
    assert max(map(len, lines)) <= columns
    at = next(number for number, line in enumerate(lines) if line.split()[:1] == ["outcome"])
    end = lines[at - 2 :]
    assert end[0].split() == ["no", "fault", "no", "guard", "guarded"]
    told = {line[:15].strip(): line[15:].split("  ") for line in end[2 : end.index("")]}
    rows = {name: [cell.strip() for cell in cells if cell.strip()] for name, cells in told.items()}
    assert rows["outcome"] == ["finished", "ValueError", "finished"]
    assert rows["losses"][1] == "-"
    assert rows["last loss"] == ["3.3991806596216927", "-", "3.3991806596216927"]
    text = " ".join(" ".join(end).split())
    for words in ("5 of 5 losses identical", "routing_race", "questions asked", "1-10 once each"):
        assert words in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert text.endswith("every piece of work was done once.")


@pytest.mark.parametrize("columns", WIDTHS)
def test_report_fits(columns: int, tmp_path: Path) -> None:
    spans = tmp_path / "spans.jsonl"
    spans.write_text(otlp_lines([*a_run(), *replace_job("another-job-with-a-long-name")]))
    code, lines = shown(columns, "report", str(spans))
    assert code == 0
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "2 runs met 13 false 404s; none was lost to them; 36 s were spent waiting; " in text
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for figure in ("races met", "crashes avoided", "Slowest recoveries", "By run", "By job"):
        assert figure in text


@pytest.mark.parametrize("columns", WIDTHS[:1])
def test_wait_shows_the_seconds_left_and_clears_them_away(columns: int) -> None:
    with LocalGateway(Fault(route_known_after=(0.6,))) as gateway:
        code, lines = shown(columns, "wait", gateway.base_url, TINKER_API_KEY=gateway.api_key)
    assert code == 0
    assert lines[-2:] == ["Ready: the trainer answers.", ""]
    # What is too long for a line goes on in the next one, further to the right.
    first, second = (" ".join(line.split()) for line in re.split(r"\n(?! )", "\n".join(lines[:-2])))
    assert first.startswith("routing race: waiting up to 120 s (timeout) for the route of job ")
    assert first.endswith("answers 404, but the control plane says JOB_STATE_RUNNING.")
    assert second.startswith("job demo/")
    assert "its route answers after" in second


@pytest.mark.parametrize("columns", WIDTHS[:1])
def test_wait_ends_with_what_it_found(columns: int) -> None:
    gone = Fault(job_states=((0.0, "JOB_STATE_DELETED"),))
    late = Fault(route_known_after=(None,))
    for fault, code, said in ((gone, 4, "Gone: the job is"), (late, 3, "Timed out: the gateway")):
        with LocalGateway(fault) as gateway:
            options = ("--timeout", "1", "--settle", "0")
            ended, lines = shown(
                columns, "wait", gateway.base_url, *options, TINKER_API_KEY=gateway.api_key
            )
        assert ended == code
        assert lines[-2].startswith(said)
