"""Runs the end-to-end faults against many releases of the SDKs, and writes docs/sdk-releases.md.

`make matrix`, or `python scripts/matrix.py --only 0.22.7`. Each release gets a virtual environment
of its own under `.matrix/`, with what that release asks for and this checkout of tinker_guard. The
same tests run in all of them; `tests/end_to_end/sdk.py` tells what a release lacks.
"""

# A tool for the command line: it prints, and it runs programs with arguments of its own making.
# ruff: noqa: S603, T201

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from tinker_guard.gateway.wire import Call, Reply

ROOT: Final = Path(__file__).resolve().parent.parent
PLACE: Final = ROOT / ".matrix"
PAGE: Final = ROOT / "docs" / "sdk-releases.md"
TESTS: Final = (
    "tests/end_to_end/test_end_to_end.py",
    "tests/install/test_hooks.py",
    "tests/install/test_rest_clients.py",
    "tests/end_to_end/test_sampling.py",
)
RUN_TIMEOUT: Final = 900.0
"""Seconds for the tests of one release; they take two to three minutes."""
INSTALL_TIMEOUT: Final = 900.0

FAULT_OF: Final = {
    "test_guarded_training_equals_fault_free_training": None,  # named by its parameter
    "test_a_deleted_job_ends_the_run_at_once": "deleted",
    "test_a_job_deleted_before_the_start_costs_one_question": "deleted-before-start",
    "test_without_a_control_plane_the_404_is_handed_back_when_the_budget_is_over": "unverified",
    "test_several_faults_in_one_run": "several-at-once",
}
"""Which tests of `tests/end_to_end/test_end_to_end.py` stand for which fault."""


@dataclass(frozen=True)
class Release:
    """One release of an SDK.

    Args:
        distribution: What to install.
        version: Which version of it.
        extra: Which extra of it.
        lift: Requirements of this release that are replaced, as uv's overrides.
        lacks_torch: Whether torch, which this release requires, is left out.
        note: What a reader of the page should know.
    """

    distribution: str
    version: str
    extra: str = ""
    lift: tuple[str, ...] = ()
    lacks_torch: bool = False
    note: str = ""

    @property
    def name(self) -> str:
        """Name and version, for people."""
        return f"{self.distribution} {self.version}"

    @property
    def place(self) -> Path:
        """Where its environment is."""
        prefix = "" if self.distribution == "tinker" else f"{self.distribution}-"
        return PLACE / f"{prefix}{self.version}"

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.place / "bin" / "python"

    @property
    def requirement(self) -> str:
        """What pip would be asked for."""
        extra = f"[{self.extra}]" if self.extra else ""
        return f"{self.distribution}{extra}=={self.version}"


SIDECAR: Final = "its opt-in sampling sidecar process is guarded too"
RELEASES: Final = (
    Release(
        "tinker",
        "0.3.0",
        lacks_torch=True,
        note="torch, which it imports for types alone, is a stand-in",
    ),
    Release("tinker", "0.9.0"),
    Release("tinker", "0.13.1"),
    Release("tinker", "0.16.1", note="pinned by twinkle-kit 0.5.1"),
    Release("tinker", "0.18.2", note=SIDECAR),
    Release("tinker", "0.22.0", note=f"pinned by MinT; {SIDECAR}"),
    Release("tinker", "0.22.7", note=f"pinned by fireworks-ai 1.2.0; {SIDECAR}"),
    Release(
        "tinker", "0.23.0", note=f"pinned by fireworks-ai 1.2.10 and 1.2.20 to 1.2.24; {SIDECAR}"
    ),
    Release("tinker", "0.24.1", note=f"the oldest that Modal Spindle takes; {SIDECAR}"),
    Release("tinker", "0.25.0", note=f"the newest that Modal Spindle takes; {SIDECAR}"),
    Release("tinker", "0.28.1"),
    Release("tinker", "0.30.4"),
    Release("tinker", "0.33.1"),
    Release("tinker", "0.36.0"),
    Release("tinker", "0.38.0"),
    Release("fireworks-ai", "1.2.28", "training-sdk"),
    Release(
        "fireworks-ai",
        "1.2.30",
        "training-sdk",
        # It asks for a certifi that the registry did not have when this was written.
        lift=("certifi",),
        note="with the newest certifi there is, which may be older than the one it asks for",
    ),
)


@dataclass
class Result:
    """What came of one release.

    Args:
        name: The release.
        problem: Why there are no test results, or "".
        bodies: Formats of the bodies of forward_backward requests.
        transports: The SDK's inner transports.
        outcomes: Test id to `passed`, `failed` or `skipped`.
        reasons: Test id to why it was skipped or how it failed.
    """

    name: str
    problem: str = ""
    bodies: list[str] = field(default_factory=list)
    transports: list[str] = field(default_factory=list)
    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        """Whether tests ran and none failed."""
        return not self.problem and bool(self.outcomes) and not self.tests("failed")

    def tests(self, outcome: str) -> list[str]:
        """The ids of the tests with an outcome."""
        return [test for test, came_out in self.outcomes.items() if came_out == outcome]

    def faults(self) -> dict[str, str]:
        """Fault to outcome, over all transports that this release has."""
        found: dict[str, set[str]] = {}
        for test, outcome in self.outcomes.items():
            if (fault := _fault_of(test)) is not None:
                found.setdefault(fault, set()).add(outcome)
        order = ("failed", "passed", "skipped")
        return {
            fault: next(outcome for outcome in order if outcome in outcomes)
            for fault, outcomes in found.items()
        }


def _fault_of(test: str) -> str | None:
    match = re.fullmatch(r".*::(\w+)(?:\[([\w-]+)\])?", test)
    if match is None or match[1] not in FAULT_OF:
        return None
    return FAULT_OF[match[1]] or match[2].rpartition("-")[0]


# -- one environment ---------------------------------------------------------------------------


class StepError(Exception):
    """A step that prepares or runs an environment failed; the text says which and how."""


def run(command: list[str | Path], log: Path, timeout: float) -> int:
    """Run a program with its output in a log; end it and its children when its time is over.

    Raises:
        StepError: It took too long.
    """
    # The user's own settings must not reach the SDK, and other checkouts must not be imported.
    hidden = ("TINKER_", "FIREWORKS_", "OTEL_", "PYTHON")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    with log.open("a") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running.add(process)
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise StepError(f"still running after {timeout:.0f} s; see {_shown(log)}") from None
        finally:
            _kill(process)
            process.wait()
            _running.discard(process)


_running: Final[set[subprocess.Popen[bytes]]] = set()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started; nothing may outlive its run."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def find_uv() -> str:
    """Path of uv; installs it into an environment of its own if there is none."""
    if (found := shutil.which("uv")) is not None:
        return found
    place = PLACE / "uv"
    uv = place / "bin" / "uv"
    if not uv.exists():
        venv.create(place, with_pip=True, clear=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "uv"]
        subprocess.run(pip, check=True, timeout=INSTALL_TIMEOUT)
    return str(uv)


def test_requirements() -> list[str]:
    """What tinker_guard and the tests need, but for the SDK itself."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = pyproject["project"]
    extras = project["optional-dependencies"]
    # Without the group `sdk`, which this one includes.
    group = [one for one in pyproject["dependency-groups"]["test"] if isinstance(one, str)]
    needed = [
        *project["dependencies"],
        *extras["cli"],
        *extras["demo"],
        *extras["instrument"],
        *group,
    ]
    return [one for one in needed if not one.startswith(("tinker>=", "tinker-guard"))]


def prepare(release: Release, uv: str, log: Path) -> None:
    """Make a release's environment, unless it is there with the same requirements.

    Raises:
        StepError: It could not be installed.
    """
    overrides = [*release.lift, *(['torch; sys_platform == "never"'] * release.lacks_torch)]
    requirements = [release.requirement, *test_requirements()]
    wanted = json.dumps([sys.version, requirements, overrides])
    stamp = release.place / "installed.json"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    override_file = PLACE / f"{release.place.name}.overrides"
    override_file.write_text("\n".join(overrides))
    install: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", release.python]
    steps: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, release.place],
        [*install, "--overrides", override_file, *requirements],
        [*install, "--no-deps", "--editable", ROOT],
    ]
    for step in steps:
        if run(step, log, INSTALL_TIMEOUT) != 0:
            raise StepError(f"could not be installed; see {_shown(log)}")
    override_file.unlink()
    if release.lacks_torch:
        (site_packages,) = release.place.glob("lib/python*/site-packages")
        (site_packages / "torch.py").write_text("class Tensor:\n    pass\n")
    stamp.write_text(wanted)


def try_release(release: Release, uv: str) -> Result:
    """Prepare a release's environment and run the tests in it."""
    PLACE.mkdir(exist_ok=True)
    log = PLACE / f"{release.place.name}.log"
    log.unlink(missing_ok=True)
    report = release.place / "report.json"
    try:
        prepare(release, uv, log)
        report.unlink(missing_ok=True)
        code = run([release.python, __file__, "--inside", report], log, RUN_TIMEOUT)
        if not report.exists():
            raise StepError(f"the tests ended with code {code}; see {_shown(log)}")
        result = Result(**json.loads(report.read_text()))
        if result.name != release.name:
            raise StepError(f"the environment holds {result.name}")
    except StepError as error:
        result = Result(release.name, problem=str(error))
    _print_result(result, log)
    return result


def _print_result(result: Result, log: Path) -> None:
    lines = [f"{result.name}: {result.problem or _summary(result)}"]
    lines += [f"    {test}\n        {result.reasons[test]}" for test in result.tests("failed")]
    if result.tests("failed"):
        lines.append(f"    all of it: {_shown(log)}")
    print("\n".join(lines), flush=True)


def _summary(result: Result) -> str:
    counts = {outcome: len(result.tests(outcome)) for outcome in ("passed", "failed", "skipped")}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- inside an environment -----------------------------------------------------------------------


class Recorder:
    """A pytest plugin that keeps the outcome of each test."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take in one phase of one test; a failure anywhere counts."""
        if report.when == "call" or report.outcome != "passed":
            if self.outcomes.get(report.nodeid) == "failed":
                return
            self.outcomes[report.nodeid] = report.outcome
            if report.outcome == "skipped":
                _, _, reason = report.longrepr
                self.reasons[report.nodeid] = reason.removeprefix("Skipped: ")
            elif report.outcome == "failed":
                crash = getattr(report.longrepr, "reprcrash", None)
                text = crash.message if crash is not None else str(report.longrepr)
                self.reasons[report.nodeid] = text.strip().splitlines()[0]

    def pytest_collectreport(self, report: Any) -> None:
        """Take in a file that could not be collected, or was skipped as a whole."""
        if report.outcome != "passed":
            self.outcomes[report.nodeid] = "failed"
            self.reasons[report.nodeid] = str(report.longrepr).strip().splitlines()[-1]


def run_inside(report: Path) -> None:
    """Describe the installed SDK, run the tests, write both down."""
    sys.path.insert(0, str(ROOT))
    import pytest

    recorder = Recorder()
    pytest.main(["-p", "no:cacheprovider", *TESTS], plugins=[recorder])
    from tests.end_to_end import sdk

    bodies, transports = describe()
    result = Result(sdk.NAME, "", bodies, transports, recorder.outcomes, recorder.reasons)
    report.write_text(json.dumps(asdict(result), indent=2))
    # Without the interpreter's own end, in which the destructor of an old SDK's client waits for
    # ever for a thread that is gone.
    sys.stdout.flush()
    os._exit(0)


def describe() -> tuple[list[str], list[str]]:
    """What forward_backward bodies look like on the wire, and what carries them."""
    from testkit.clients import transport_of
    from tests.end_to_end import sdk
    from tinker_guard.gateway import Fault
    from tinker_guard.gateway.train import train_five_steps

    os.environ["NO_PROXY"] = "127.0.0.1"
    bodies: dict[str, None] = {}

    for protobuf in (True, False):
        with sdk.Gateway(Fault(protobuf=protobuf)) as gateway, sdk.connected(gateway) as client:
            operations = gateway.world.trainer.operations
            work = operations["POST", "forward_backward"]

            def recorded(call: Call, work: Callable[[Call], Reply] = work) -> Reply:
                kind = call.headers["content-type"].removeprefix("application/").removeprefix("x-")
                bodies[{"json": "JSON"}.get(kind, kind)] = None
                return work(call)

            operations["POST", "forward_backward"] = recorded
            train_five_steps(client, sdk.types)
    transports = []
    for wanted in ("pyqwest", "httpx"):
        inner = sdk.client(api_key="tml-key", base_url="http://127.0.0.1:9", transport=wanted)
        transports.append(type(transport_of(inner)).__module__.split(".")[0])
    return list(bodies), list(dict.fromkeys(transports))


# -- the page ------------------------------------------------------------------------------------

TITLE: Final = """\
# Releases of the SDKs

Guarded, and tested with:
"""
HEAD: Final = """\
`make matrix` runs the same end-to-end tests against each of these releases, each in an environment
of its own with that release's requirements, and writes this page. A case passes if five
training steps through the local gateway end with the losses of the same release's fault-free run,
to the last digit, and every `seq_id` was applied once and in order, over each inner transport of
the release. No guard can recover from `deleted`; that case passes if the 404 reaches the
caller at once. `unverified` is a route that stays lost while the control plane is down.
"""

NEVER_SENT: Final = "it sends no such request"


def page(results: list[Result]) -> str:
    """The page that shows the results."""
    faults = list(dict.fromkeys(fault for result in results for fault in result.faults()))
    lines = [
        TITLE,
        tested(results),
        HEAD,
        f"The {len(faults)} cases, of which `none` and `fresh-404` are healthy gateways:",
        f"{', '.join(f'`{fault}`' for fault in faults)}.",
        "",
        "| release | request bodies | inner transports | cases passed | notes |",
        "|---|---|---|---|---|",
    ]
    notes = {release.name: release.note for release in RELEASES}
    for result in results:
        cells = [
            result.name,
            " or ".join(result.bodies),
            ", ".join(result.transports),
            result.problem or _faults_cell(result, len(faults)),
            notes[result.name],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_below(results)]
    return "\n".join(lines) + "\n"


def _faults_cell(result: Result, in_all: int) -> str:
    outcomes = result.faults()
    by_outcome = {
        outcome: [fault for fault, came_out in outcomes.items() if came_out == outcome]
        for outcome in ("passed", "failed", "skipped")
    }
    cell = f"{len(by_outcome['passed'])} of {in_all}"
    if by_outcome["failed"]:
        cell += f"; **failed: {', '.join(by_outcome['failed'])}**"
    if by_outcome["skipped"]:
        cell += f"; {NEVER_SENT}: {', '.join(by_outcome['skipped'])}"
    others = [test for test in result.tests("failed") if _fault_of(test) is None]
    if others:
        cell += f"; **other tests failed: {len(others)}**"
    return cell


def _below(results: list[Result]) -> list[str]:
    lines = [
        "If a row has two kinds of bodies, the server decides, and both were tested. Releases of",
        "fireworks-ai before 1.2.25 have no row: they use the tinker that they pin.",
    ]
    if never_ran := tests_that_ran_nowhere(results):
        lines += ["", f"**Ran nowhere:** {', '.join(never_ran)}."]
    return lines


def tested(results: list[Result]) -> str:
    """The table of releases whose tests passed."""
    passed: dict[str, list[str]] = {}
    for result in results:
        distribution, _, version = result.name.partition(" ")
        if result.is_good:
            passed.setdefault(distribution, []).append(version)
    rows = {
        "tinker": ", ".join(passed.get("tinker", ())),
        "fireworks-ai with `training-sdk`": ", ".join(passed.get("fireworks-ai", ()))
        + "; earlier ones through the tinker that they pin",
    }
    table = "".join(f"| {name} | {releases} |\n" for name, releases in rows.items())
    return f"| SDK | tested releases |\n|---|---|\n{table}"


def tests_that_ran_nowhere(results: list[Result]) -> list[str]:
    """Tests that every release skipped; each should run in at least one."""
    ran = {
        test for result in results for test in (*result.tests("passed"), *result.tests("failed"))
    }
    return sorted({test for result in results for test in result.tests("skipped")} - ran)


def main() -> int:
    """Run the matrix, or one environment's part of it."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--only",
        action="append",
        metavar="VERSION",
        choices=[release.version for release in RELEASES],
        help="try this release and leave the page as it is; may be given again",
    )
    parser.add_argument("--jobs", type=int, default=2, help="releases at a time (default 2)")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        run_inside(options.inside)
        return 0
    releases = [r for r in RELEASES if not options.only or r.version in options.only]
    PLACE.mkdir(exist_ok=True)
    uv = find_uv()
    # So that an end from outside takes the same way as Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            results = list(pool.map(lambda release: try_release(release, uv), releases))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in _running.copy():
                _kill(process)
            raise
    is_good = all(result.is_good for result in results)
    if not options.only:
        PAGE.write_text(page(results))
        print(f"wrote {_shown(PAGE)}")
        is_good = is_good and not tests_that_ran_nowhere(results)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
