"""No test's id depends on clock, seed or machine.

Workers of pytest-xdist that collect other ids than each other stop the run, and an id that was red
yesterday must be there today.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tests import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pytest

_OURS = ("PYTEST_", "TINKER_GUARD_", "COV_", "COVERAGE_")


def collected(folders: Mapping[int, Path], place: Path, *options: str) -> list[list[str]]:
    """The ids of copies of one suite; number 1 is collected as elsewhere, number 0 as here."""
    processes: list[subprocess.Popen[str]] = []
    files = [place / f"{number}.json" for number in folders]
    for (number, folder), file in zip(folders.items(), files, strict=True):
        for name in ("temporary", "home"):
            (place / f"{name}-{number}").mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)} | {
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
            "PYTHONHASHSEED": str(number + 1),
            "TINKER_GUARD_IDS": str(file),
            "TINKER_GUARD_ELSEWHERE": "1" * number,
            "TINKER_GUARD_TEST_SEED": str(number + 1),
            "TMPDIR": str(place / f"temporary-{number}"),
            "HOME": str(place / f"home-{number}"),
            "USER": f"user-{number}",
            "TZ": ("UTC", "Asia/Kathmandu")[number],
            "COLUMNS": str(80 + 40 * number),
        }
        processes.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "pytest", "--collect-only", "--quiet"),
                    # No assertion is run, and rewriting them takes half of the time.
                    *("-p", "tests.elsewhere", "-p", "no:cacheprovider", "--assert=plain"),
                    *options,
                ],
                cwd=folder,
                env=environment,
                umask=(0o022, 0o077)[number],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in processes:
        try:
            output, _ = process.communicate(timeout=250)
        finally:
            process.kill()
        assert process.returncode == 0, output[-3000:]
    return [json.loads(file.read_text()) for file in files]


def differences(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What two lists of ids do not share, or have in another order."""
    compared = difflib.unified_diff(first, second, n=0, lineterm="")
    return [line for line in compared if not line.startswith(("---", "+++", "@@"))]


def is_whole(session: pytest.Session) -> bool:
    """Whether a run has collected all there is: it names no tests, and leaves none out."""
    config = session.config
    named = [(config.invocation_params.dir / name).resolve() for name in config.args]
    chosen = ("keyword", "markexpr", "deselect", "lf", "stepwise")
    return named == [ROOT / "tests"] and not any(config.getoption(name, None) for name in chosen)


def test_every_id_is_the_same_elsewhere(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    copy = tmp_path / "another" / "place"
    is_left_out = shutil.ignore_patterns(".*", "mutants", "dist", "build")
    shutil.copytree(ROOT, copy, ignore=is_left_out)
    # What this run leaves out, such as what needs an extra, they cannot collect either.
    options = [f"--ignore={path}" for path in request.config.getoption("ignore") or ()]
    # What this run has collected is not collected again, unless it is only a part of the suite.
    here = [item.nodeid for item in request.session.items]
    if is_whole(request.session):
        (elsewhere,) = collected({1: copy}, tmp_path, *options)
    else:
        here, elsewhere = collected({0: ROOT, 1: copy}, tmp_path, *options)
    assert len(here) > 1000
    assert differences(here, elsewhere) == []


UNSTABLE = {
    "gzip-stamp": "gzip.compress(b'x' * 99)",
    "zlib-bytes": "zlib.compress(b'x' * 99)",
    "clock": "time.time()",
    "clock-in-ns": "str(time.time_ns())",
    "year": "str(datetime.datetime.now().year)",
    "utc-year": "str(datetime.datetime.now(datetime.UTC).year)",
    "today": "str(datetime.date.today())",
    "set-order": "'-'.join({*map(str, range(9))})",
    "hash": "hash('x')",
    "chance": "random.random()",
    "uuid": "str(uuid.uuid4())",
    "address": "repr(object())",
    "process": "os.getpid()",
    "working-copy": "__file__",
    "temporary-folder": "tempfile.gettempdir()",
    "home": "os.path.expanduser('~')",
    "user": "os.environ['USER']",
    "host": "socket.gethostname()",
    "node": "platform.node()",
    "processors": "os.cpu_count()",
    "umask": "os.umask(0o22)",
    "time-zone": "time.strftime('%Z')",
    "seed": "os.environ['TINKER_GUARD_TEST_SEED']",
}


def test_an_id_that_depends_on_clock_seed_or_machine_is_noticed(tmp_path: Path) -> None:
    program = "import datetime, gzip, os, platform, random, socket, tempfile, time, uuid, zlib\n"
    program += "import pytest\n"
    for number, expression in enumerate(UNSTABLE.values()):
        program += (
            f"@pytest.mark.parametrize('value', [{expression}])\n"
            f"def test_number_{number}_(value): ...\n"
        )
    program += "@pytest.mark.parametrize('value', [1, 'a', b'\\xff', ('x', 1)])\n"
    program += "def test_stable(value): ...\n"
    places = tmp_path / "here", tmp_path / "elsewhere"
    for place in places:
        place.mkdir()
        (place / "test_it.py").write_text(program)
        (place / "pytest.ini").write_text("[pytest]\n")
    here, elsewhere = collected(dict(enumerate(places)), tmp_path)
    assert len(here) == len(elsewhere) == len(UNSTABLE) + 4
    found = "\n".join(differences(here, elsewhere))
    assert "test_stable" not in found
    missed = [
        name for number, name in enumerate(UNSTABLE) if f"test_number_{number}_[" not in found
    ]
    assert missed == []


def test_another_order_is_noticed_too() -> None:
    """Workers are told the number of a test, not its name."""
    assert differences(["a", "b"], ["a", "b"]) == []
    assert differences(["a", "b"], ["b", "a"]) != []
    assert differences(["a"], ["a", "b"]) == ["+b"]
