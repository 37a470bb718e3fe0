"""The command line: `demo` end to end in processes of its own, and what judges and draws it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.cli import invoke as invoke_in_process
from testkit.cli import piped, python
from testkit.otlp import backend
from testkit.programs import free_port
from tests.cli.test_report import a_run, otlp_lines
from tinker_guard import __version__
from tinker_guard.cli.app import COMMANDS, NAMES
from tinker_guard.cli.console import new_console
from tinker_guard.cli.demo import commands, judge, screen, spans
from tinker_guard.cli.demo.run import Run
from tinker_guard.cli.demo.serve import line_of
from tinker_guard.cli.terminal import PLAIN_WIDTH, Terminal
from tinker_guard.gateway import FAULTS, SAMPLING_FAULTS, Exchange, Fault, LocalGateway

if TYPE_CHECKING:
    from pathlib import Path

BASE_URL = "https://gateway.test/training/v1/rlorTrainerJobs/acc/job-1"
LOSSES = (4.158883083359672, 3.966264687323382, 3.77521673198419)
HEALTHY = Run(losses=LOSSES, seconds=0.3, applied=(1, 2, 3, 4, 5, 6))
RECOVERED = replace(HEALTHY, resends=2, questions=1, verdicts=Counter(routing_race=2))
NOT_FOUND = Run(
    error_type="NotFoundError",
    error="Error code: 404",
    seconds=0.3,
    applied=(1, 2),
    verdicts=Counter(genuine_not_found=1),
)
UNVERIFIED = replace(NOT_FOUND, verdicts=Counter(unverified=1))


run = partial(python, "-m", "tinker_guard")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tinker_guard", *arguments]


def invoke(*arguments: str) -> tuple[int, str]:
    """Run in this process, which is faster; for everything that trains nothing."""
    ended = invoke_in_process(*arguments)
    return ended.exit_code, " ".join(ended.output.split())


# -- the commands themselves ---------------------------------------------------------------------


def test_version_and_help() -> None:
    assert invoke("--version") == (0, f"tinker-guard {__version__}")
    exit_code, text = invoke("--help")
    assert exit_code == 0
    assert "demo" in text
    assert "gateway" in text
    named = re.findall("what goes wrong: (.*?) [(]", invoke("demo", "--help")[1])
    assert "dispatch, poll," in named[0]
    assert set(named[0].replace("- ", "-").split(", ")) <= FAULTS.keys() - SAMPLING_FAULTS
    assert "Ctrl-C" in invoke("gateway", "--help")[1]


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("rich", ["report", "-"], "cli"),
        ("shtab", ["completion", "bash"], "cli"),
        ("numpy", ["demo", "--fault", "poll"], "demo"),
        ("opentelemetry.sdk", ["gateway", "--list"], "demo"),
    ],
)
def test_without_the_extra_one_line_says_what_to_install(
    module: str, arguments: list[str], extra: str
) -> None:
    ended = run_without(module, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert module in ended.stderr
    assert f"pip install 'tinker-guard[{extra}]'" in ended.stderr


OF_THE_EXTRAS = (
    *(
        "ijson",
        "msgspec",
        "rich",
        "shtab",
        "typer",
        "click",
        "numpy",
        "opentelemetry.sdk",
    ),
    *("tinker", "uvicorn", "zstandard"),
)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, "(extra: demo)"),
        (["-h"], 0, "(extra: demo)"),
        (["--version"], 0, __version__),
        ([], 2, "(extra: demo)"),
        (["run", "-h"], 0, "--strict"),
        (["doctor", "https://tinker.test"], 1, "there is nothing to guard"),
        (["wait", "-h"], 0, "--settle"),
        (["demo", "-h"], 0, "poll"),
    ],
)
def test_a_bare_install_has_these(arguments: list[str], code: int, says: str) -> None:
    ended = run_without(",".join(OF_THE_EXTRAS), *arguments)
    assert (ended.returncode, ended.stderr) == (code, "")
    assert says in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["docter", BASE_URL],
            "tinker-guard: error: there is no command 'docter'; did you mean doctor?",
        ),
        (["--doctor"], "tinker-guard: error: there is no command '--doctor'; did you mean doctor?"),
        (
            ["wait", BASE_URL, "--timout", "3"],
            "[--timeout SECONDS] [--settle SECONDS] [--quiet] [--json] URL "
            "tinker-guard wait: error: unrecognized arguments: --timout 3",
        ),
        (
            ["--strict", "run", "python"],
            "COMMAND ... tinker-guard: error: unrecognized arguments: --strict",
        ),
    ],
)
def test_a_mistyped_word_is_refused_with_what_would_be_right(
    arguments: list[str], says: str
) -> None:
    exit_code, text = invoke(*arguments)
    assert exit_code == 2
    assert text.endswith(says)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = invoke_in_process(*filter(None, [name]), "--help")
    assert max(map(len, ended.stdout.splitlines())) <= 80


@pytest.mark.parametrize("columns", ["0", "1", "19", "-80", "wide", ""])
def test_a_width_in_which_nothing_can_be_shown_is_as_if_none_were_given(
    columns: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exported = tmp_path / "spans.jsonl"
    exported.write_text(otlp_lines(a_run()))
    monkeypatch.delenv("COLUMNS", raising=False)
    without = invoke_in_process("report", str(exported))
    monkeypatch.setenv("COLUMNS", columns)
    assert invoke_in_process("report", str(exported)) == without
    assert new_console(100).width == 100
    assert Terminal(io.StringIO()).width == PLAIN_WIDTH


@pytest.mark.parametrize("columns", [20, 60, 300])
def test_a_width_that_is_given_is_kept_without_a_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert new_console(100).width == Terminal(io.StringIO()).width == columns


def test_help_imports_next_to_nothing() -> None:
    """It is there in under 0.3 s: three times what Python takes by itself, not thirty."""
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from tinker_guard.cli import main\n"
        "try: main()\n"
        "finally: print(*sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    )
    ended = python("-c", code)
    assert ended.returncode == 0
    heavy = {"asyncio", "httpx", "opentelemetry", "pydantic", "rich", "tenacity", "tinker", "typer"}
    assert heavy & set(ended.stderr.split()) == set()


def test_ctrl_c_is_no_traceback_even_while_a_command_is_imported() -> None:
    code = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "tinker_guard.waiting":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["wait", "http://x"]
from tinker_guard.cli import main
main()
"""
    ended = python("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def run_with(redirection: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run with a stream redirected as a shell does it; the exit code, and what is on stderr."""
    ended = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
        timeout=50,
        check=False,
    )
    return ended.returncode, ended.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    ["--help", "doctor --json", "wait http://x/ --help", "run --help", "gateway --list"],
)
def test_output_that_cannot_be_written_is_one_line(arguments: str, unbuffered: str) -> None:
    for redirection, problem in (
        (">/dev/full", "No space left on device"),
        (">&-", "Bad file descriptor"),
    ):
        code, said = run_with(redirection, *arguments.split(), PYTHONUNBUFFERED=unbuffered)
        assert (code, said) == (74, f"tinker-guard: cannot write the output: {problem}\n")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error_to_tell_of(unbuffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            command("gateway", "--list"),
            stdout=writing,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=50,
            check=False,
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (74, b"")


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", ">&- 2>&-"])
def test_closed_streams_change_no_exit_code_of_what_needs_them_not(redirection: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/training/v1/rlorTrainerJobs/acc/job-1"
    assert run_with(redirection, "wait", "not-a-url")[0] == 2
    assert run_with(redirection, "wait", url, "--timeout", "0.1", "--quiet")[0] == 5
    assert run_with(redirection, "run", sys.executable, "-c", "exit(7)")[0] == 7


def test_a_closed_standard_input_is_one_that_cannot_be_read() -> None:
    assert run_with("<&-", "report", "-") == (
        1,
        "the rest of standard input: cannot be read: Bad file descriptor\n"
        "tinker-guard report: no span could be read from standard input.\n",
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completions_name_commands_and_options(shell: str) -> None:
    pytest.importorskip("shtab")
    exit_code, text = invoke("completion", shell)
    assert exit_code == 0
    words = ("wait", "doctor", "settle", "fault-file")
    assert all(word in text for word in words if shell != "tcsh" or "-" not in word)


def test_fish_completes_commands_and_options(tmp_path: Path) -> None:
    pytest.importorskip("shtab")
    if (fish := shutil.which("fish")) is None:
        pytest.skip("needs fish")
    completions = tmp_path / "tinker-guard.fish"
    completions.write_text(invoke_in_process("completion", "fish").stdout)

    def completed(line: str) -> dict[str, str]:
        ended = subprocess.run(
            [fish, "--no-config", "-c", f"source {completions}; complete -C '{line}'"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
            env={**os.environ, "HOME": str(tmp_path)},
        )
        assert ended.stderr == ""
        return dict(entry.split("\t") for entry in ended.stdout.splitlines())

    assert completed("tinker-guard wa") == {"wait": "wait until a trainer's route answers"}
    assert {*COMMANDS, "run"} == completed("tinker-guard ").keys()
    assert "--settle" in completed("tinker-guard wait --")
    assert completed("tinker-guard completion f").keys() == {"fish"}


def run_without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({module.split(',')!r}))\n"
        "from tinker_guard.cli import main; main()"
    )
    return python("-c", code, *arguments)


def test_a_module_that_is_missing_for_another_reason_is_not_hidden() -> None:
    for module, name in (
        ("tinker_guard.cli.demo.judge", "demo"),
        ("tinker_guard.waiting", "wait"),
    ):
        ended = run_without(module, name, *(["http://x"] if name == "wait" else []))
        assert ended.returncode == 1
        assert f"import of {module} halted" in ended.stderr


@pytest.mark.parametrize("subcommand", ["demo", "gateway"])
def test_an_unknown_fault_is_answered_with_the_known_ones(subcommand: str) -> None:
    exit_code, text = invoke(subcommand, "--fault", "nope")
    assert exit_code == 2
    assert "'nope'" in text
    unnamed = {"none", *SAMPLING_FAULTS} if subcommand == "demo" else {"none"}
    assert all(name in text for name in FAULTS if name not in unnamed)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("demo", "--otlp", "localhost"), "--otlp must be a URL such as http://localhost:4318"),
        (("demo", "--otlp", "http://"), "http://localhost:4318"),
        (("demo", "--svg", "no/such/folder/x.svg"), "cannot be written"),
        (("gateway", "--fault-file", "no/such/file.json"), "cannot be read: No such file"),
        (("gateway", "--fault-file", "/"), "is a folder"),
        (("gateway", "--json"), "argument --json: there is nothing to print without --list"),
        (("gateway", "--json", "--fault", "poll"), "argument --json: "),
        (("gateway", "--port", "70000"), "must be a number from 0 to 65535"),
        (("wait", "https://tinker.test", "--timeout", "soon"), "'soon' is no number of seconds"),
        (
            ("wait", "https://tinker.test", "--timeout", "0"),
            "must be a finite number, at least 0.1",
        ),
        (("wait", "https://tinker.test", "--settle", "inf"), "must be a finite number, at least 0"),
        (("trane",), "invalid choice: 'trane'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(
    arguments: tuple[str, ...], says: str
) -> None:
    exit_code, text = invoke(*arguments)
    assert exit_code == 2
    assert says in text


def test_a_setting_that_cannot_work_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "soon")
    exit_code, text = invoke("demo")
    assert exit_code == 2
    assert "TINKER_GUARD_RETRY_TIMEOUT" in text


def test_a_missing_exporter_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    exit_code, text = invoke("demo", "--otlp", "http://localhost:4318")
    assert exit_code == 2
    assert "pip install 'tinker-guard[demo,otlp]'" in text


# -- gateway -------------------------------------------------------------------------------------


def test_the_faults_are_listed() -> None:
    exit_code, text = invoke("gateway", "--list")
    assert exit_code == 0
    assert all(fault.name in text and fault.description in text for fault in FAULTS.values())


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_the_gateway_serves_until_it_is_stopped(tmp_path: Path, signal_number: int) -> None:
    own = tmp_path / "fault.json"
    own.write_text('{"name": "mine", "races": [{"operation": "healthz", "seconds": 0.0}]}')
    with subprocess.Popen(
        command("gateway", "--fault-file", str(own), "--port", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while "Ctrl-C" not in (line := process.stdout.readline()):
            assert line, "it ended early"
            lines.append(line)
        text = "".join(lines)
        assert "'mine'" in text
        base_url = re.findall(r"TINKER_BASE_URL=(\S+)", text)[0]
        key = re.findall(r"TINKER_API_KEY=(\S+)", text)[0]
        origin, _, job = base_url.partition("/training/v1/")
        with httpx.Client(trust_env=False, headers={"x-api-key": key}) as client:
            assert client.get(f"{base_url}/api/v1/healthz").status_code == 404
            assert client.get(f"{base_url}/api/v1/healthz").status_code == 200
            job = job.replace("rlorTrainerJobs/demo", "accounts/demo/rlorTrainerJobs")
            assert client.get(f"{origin}/v1/{job}").status_code == 200
        assert "404  GET /api/v1/healthz from replica 0" in process.stdout.readline()
        assert "200  control plane asked" in process.stdout.readline()
        process.send_signal(signal_number)
        assert process.stdout.read() == "Stopped.\n"
        assert process.wait(timeout=10) == 0


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        exit_code, text = invoke("gateway", "--port", str(port))
    assert exit_code == 1
    assert text == (
        f"tinker-guard: cannot serve on 127.0.0.1:{port}: Address already in use; "
        "--port 0 takes a free one"
    )


@pytest.mark.parametrize("content", ["{", '{"nope": 1}'])
def test_a_fault_that_is_read_from_no_file_is_read(content: str) -> None:
    with piped(content.encode()) as place:
        exit_code, text = invoke("gateway", "--fault-file", place)
    assert exit_code == 2
    assert f"{place} holds no fault: " in text


@pytest.mark.parametrize("content", ["{", "[]", '{"nope": 1}', '{"races": ["x"]}', '{"body": "x"}'])
def test_a_file_that_holds_no_fault_is_one_line(tmp_path: Path, content: str) -> None:
    own = tmp_path / "fault.json"
    own.write_text(content)
    exit_code, text = invoke("gateway", "--fault-file", str(own))
    assert exit_code == 2
    assert f"{own} holds no fault: " in text
    assert "--schema" in text
    assert "pydantic" not in text


def test_the_schema_of_a_fault_file_has_examples_that_are_faults(tmp_path: Path) -> None:
    exit_code, text = invoke("gateway", "--schema")
    assert exit_code == 0
    schema = json.loads(text)
    assert {"races", "job_states", "stop"} <= set(schema["properties"])
    for example in schema["examples"]:
        assert Fault.from_json(json.dumps(example)) == FAULTS[example["name"]]
        own = tmp_path / "fault.json"
        own.write_text(json.dumps(example))
        assert commands.read_fault(own) == FAULTS[example["name"]]


def test_the_list_of_faults_for_machines() -> None:
    assert set(json.loads(invoke("gateway", "--list", "--json")[1])) == set(FAULTS)


def test_a_fault_is_given_once(tmp_path: Path) -> None:
    own = tmp_path / "fault.json"
    own.write_text("{}")
    assert invoke("gateway", "--fault-file", str(own), "--fault", "poll")[0] == 2


def test_which_exchanges_get_a_line() -> None:
    fine = Exchange("POST", "/api/v1/x", 200, 1, 0, 3, "idem", "", 0, 0.5, "trainer")
    assert line_of(fine) is None
    lost = line_of(replace(fine, status=404, answered_by="gateway"))
    assert lost == "    0.50 s  404  POST /api/v1/x from replica 1, seq_id 3"
    own = line_of(replace(fine, status=404, seq_id=None))
    assert own == "    0.50 s  404  POST /api/v1/x from the trainer"
    asked = line_of(replace(fine, status=0, answered_by="control_plane"))
    assert asked == "    0.50 s  dropped  control plane asked: POST /api/v1/x"


# -- demo, end to end ----------------------------------------------------------------------------


def test_demo_of_a_race(tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    picture = tmp_path / "demo.svg"
    with backend() as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        # What a shell may hold must neither switch the guard off nor lead it elsewhere.
        ended = run(
            *("demo", "--fault", "dispatch", "--otlp", url, "--svg", str(picture)),
            TINKER_GUARD_ENABLED="false",
            TINKER_GUARD_CONTROL_PLANE_URL="http://127.0.0.1:9",
            HTTP_PROXY="http://127.0.0.1:9",
            OTEL_SDK_DISABLED="true",
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert server.span_names["POST /api/v1/forward_backward"] == 5
        assert server.span_names["resend POST /api/v1/forward_backward"] >= 1
    out = ended.stdout
    assert ended.stderr == ""
    assert "NotFoundError: Error code: 404" in out
    assert "routing race" in out
    assert "5 of 5 losses identical" in out
    assert out.count("1-10 once each") == 2
    assert "tinker_guard.outcome recovered" in out
    assert "CLIENT span of pyqwest" in out
    assert "Right: " in out
    assert f"spans to {url}/v1/traces" in out
    assert "\x1b" not in out
    assert not [line for line in out.splitlines() if len(line) > 100 and not line.startswith(" ")]
    svg = picture.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"' <)]+", svg)) == {"http://www.w3.org/2000/svg"}
    assert "@font-face" not in svg
    assert "identical" in svg


def test_demo_of_a_deleted_job_with_a_backend_that_is_down() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    place = f"127.0.0.1:{free_port()}"
    ended = run("demo", "--fault", "deleted", "--otlp", f"http://user:secret@{place}/x?key=secret")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "genuine_not_found" in ended.stdout
    assert "ended rightly" in ended.stdout
    assert "secret" not in ended.stdout + ended.stderr
    assert ended.stderr == (
        f"tinker-guard: the backend at http://{place}/x did not take the spans. Does it run?\n"
    )


class _NoRecorder:
    def begin(self, run: str) -> None:
        pass

    def spans(self, run: str | None = None) -> list[Any]:
        return []


def test_a_wrong_run_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "Recorder", _NoRecorder)
    monkeypatch.setattr(screen, "quiet_other_loggers", lambda: None)
    # The command adds to them; they are put back afterwards.
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost")
    different = replace(HEALTHY, losses=(*LOSSES[:2], 3.5))

    def carry_out(fault: object, *, is_guarded: bool, on_tick: object) -> Run:
        return different if is_guarded else HEALTHY

    monkeypatch.setattr(commands, "carry_out", carry_out)
    exit_code, text = invoke("demo")
    assert exit_code == 1
    assert "Wrong: the loss of step 3 is 3.5 instead of 3.77521673198419" in text
    assert "2 of 3 losses identical" in text


def test_a_run_that_hangs_does_not_hang_the_demo() -> None:
    code = """
from tinker_guard.cli.app import execute
from tinker_guard.cli.demo import commands, run
from tinker_guard.gateway import FAULTS, Fault, Race
def carry_out(fault, *, is_guarded, on_tick):
    # The others end, however long that takes on a busy machine.
    limit = {"timeout": 4.0} if is_guarded else {}
    return run.carry_out(fault, is_guarded=is_guarded, on_tick=on_tick, **limit)
commands.carry_out = carry_out
commands.FAULTS = {**FAULTS, "dispatch": Fault(races=(Race("create_model", seconds=99.0),))}
execute(["demo", "--fault", "dispatch"])
"""
    ended = python("-c", code)
    assert ended.returncode == 1
    assert "Wrong: the guarded run was still waiting after 4 s" in ended.stdout
    assert "for the route of job" in ended.stdout


# -- the judgement -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "guarded"),
    [
        ("dispatch", RECOVERED),
        ("late-route", replace(RECOVERED, resends=0)),
        ("fresh-404", HEALTHY),
        ("deleted", NOT_FOUND),
        ("control-plane-down", RECOVERED),
    ],
)
def test_right_runs(fault: str, guarded: Run) -> None:
    assert judge.problems(FAULTS[fault], HEALTHY, guarded) == []


@pytest.mark.parametrize(
    ("fault", "guarded", "says"),
    [
        ("poll", replace(RECOVERED, is_stuck=True, seconds=60.0), "still waiting after 60 s"),
        ("poll", NOT_FOUND, "NotFoundError instead of finishing"),
        ("poll", replace(RECOVERED, losses=(*LOSSES[:2], 3.7)), "loss of step 3 is 3.7"),
        ("poll", replace(RECOVERED, losses=LOSSES[:2]), "2 losses instead of 3"),
        ("poll", replace(RECOVERED, applied=(1, 2, 3, 3, 4, 5, 6)), "1-6, but 3 twice"),
        ("poll", replace(RECOVERED, applied=(1, 2, 3, 4)), "not all of the work"),
        ("poll", replace(RECOVERED, applied=(2, 1, 3, 4, 5, 6)), "out of order"),
        ("poll", replace(RECOVERED, unexpected=("POST x: odd",)), "POST x: odd"),
        ("deleted", RECOVERED, "no trainer to reach"),
        ("deleted", replace(NOT_FOUND, resends=1), "sent again"),
        ("deleted", replace(NOT_FOUND, error_type="ValueError"), "ValueError instead of"),
        ("deleted", replace(NOT_FOUND, seconds=31.0), "31.0 s"),
        ("deleted", UNVERIFIED, "should be genuine_not_found, but was: unverified"),
        ("deleted", replace(NOT_FOUND, verdicts=Counter()), "was: none"),
        ("control-plane-down", UNVERIFIED, "NotFoundError instead of finishing"),
    ],
)
def test_wrong_runs(fault: str, guarded: Run, says: str) -> None:
    found = judge.problems(FAULTS[fault], HEALTHY, guarded)
    assert len(found) == 1
    assert says in found[0]


def test_without_a_healthy_run_nothing_is_right() -> None:
    assert judge.problems(FAULTS["poll"], NOT_FOUND, RECOVERED)
    assert judge.problems(FAULTS["poll"], replace(HEALTHY, is_stuck=True, losses=None), RECOVERED)


@pytest.mark.parametrize(
    ("applied", "said"),
    [
        ((), "none"),
        ((1,), "1 once"),
        ((1, 2, 3), "1-3 once each"),
        ((1, 2, 4), "1-2, 4 once each"),
        ((1, 2, 2, 2, 3, 3), "1-3, but 2 3 times, 3 twice"),
        ((2, 1), "1-2, out of order"),
    ],
)
def test_how_applied_work_is_said(applied: tuple[int, ...], said: str) -> None:
    assert judge.say_applied(applied) == said


# -- spans and pictures --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        ("http://localhost:4318", "http://localhost:4318/v1/traces"),
        ("https://example.com/", "https://example.com/v1/traces"),
        ("http://localhost:4318/own/path", "http://localhost:4318/own/path"),
    ],
)
def test_the_path_of_a_backend(given: str, completed: str) -> None:
    assert spans.traces_url(given) == completed


def test_long_rows_of_spans_are_cut_in_the_middle() -> None:
    from opentelemetry.sdk.trace import ReadableSpan

    def node(name: str, *children: spans.Node) -> spans.Node:
        return spans.Node(ReadableSpan(name, start_time=0, end_time=1), list(children))

    def labels(count: int) -> list[str]:
        root = node("root", *(node(f"child {number}") for number in range(count)))
        return [str(child.label).split("  ")[0] for child in screen.tree_of(root).children]

    assert labels(7) == [f"child {number}" for number in range(7)]
    assert labels(8)[3:6] == ["child 3", "... 2 more like these ...", "child 6"]


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        (Fault(route_known_after=(0.4,)), 0, "Ready: the trainer answers."),
        (Fault(route_known_after=(None,)), 3, "Timed out"),
        (Fault(job_states=((0.0, "JOB_STATE_FAILED"),)), 4, "Gone"),
        (Fault(route_known_after=(None,), control_plane="down"), 5, "Not verifiable"),
    ],
)
def test_wait_tells_its_ends_apart(
    fault: Fault, code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalGateway(fault) as gateway:
        monkeypatch.setenv("TINKER_API_KEY", gateway.api_key)
        exit_code, output = invoke("wait", gateway.base_url, "--timeout", "1")
    assert (exit_code, said in output) == (code, True)
    assert gateway.api_key not in output


@pytest.mark.parametrize("variable", ["TINKER_API_KEY", "FIREWORKS_API_KEY"])
def test_wait_takes_the_key_of_either_sdk(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_API_KEY", "FIREWORKS_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with LocalGateway(Fault(job_states=((0.0, "JOB_STATE_FAILED"),))) as gateway:
        monkeypatch.setenv(variable, gateway.api_key)
        exit_code, _ = invoke("wait", gateway.base_url, "--timeout", "1")
    assert exit_code == 4


def test_wait_for_no_trainer_route() -> None:
    exit_code, output = invoke("wait", "https://tinker.test/services")
    assert exit_code == 2
    assert "https://HOST/training/v1/rlorTrainerJobs/ACCOUNT/JOB" in output


def test_wait_says_nothing_if_it_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalGateway(Fault(route_known_after=(0.3,))) as gateway:
        monkeypatch.setenv("TINKER_API_KEY", gateway.api_key)
        assert invoke("wait", gateway.base_url, "--quiet") == (0, "")


def test_wait_for_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalGateway(Fault(job_states=((0.0, "JOB_STATE_FAILED"),))) as gateway:
        monkeypatch.setenv("TINKER_API_KEY", gateway.api_key)
        ended = invoke_in_process("wait", gateway.base_url, "--json")
    found = json.loads(ended.stdout)
    assert (found["readiness"], found["exit_code"], ended.exit_code) == ("job_gone", 4, 4)
    assert found["detail"] == "Gone: the job is stopped or does not exist."


def test_wait_goes_on_while_nothing_listens_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/training/v1/rlorTrainerJobs/acc/job-1"
    exit_code, text = invoke("wait", url, "--timeout", "1")
    assert exit_code == 5
    assert f"nothing listens at 127.0.0.1:{port}." in text


@pytest.mark.parametrize("value", ["::1]", "http://x:y"])
def test_a_proxy_variable_that_cannot_be_read_is_one_line(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", value)
    exit_code, text = invoke("wait", "https://h.test/training/v1/rlorTrainerJobs/acc/job-1")
    assert exit_code == 2
    assert "check HTTPS_PROXY, ALL_PROXY, NO_PROXY" in text
