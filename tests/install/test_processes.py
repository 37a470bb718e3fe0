"""The guard in processes of its own: started by its command, by OpenTelemetry's, or as children."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import tomllib
import venv
import zipapp
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from testkit.clients import transport_of
from tests import ROOT
from tests.end_to_end import sdk
from tests.end_to_end.sdk import Gateway
from tinker_guard import GuardSettings, install_guard, status, uninstall_guard
from tinker_guard.auto import HOLDERS, PACKAGES
from tinker_guard.cli import run as running
from tinker_guard.gateway import FAULTS
from tinker_guard.install import child_env as children
from tinker_guard.install.installation import install_unattended
from tinker_guard.install.sdks import SDKS

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN = [sys.executable, "-m", "tinker_guard", "run"]
# The other launcher, by what its script calls.
OPENTELEMETRY = [
    sys.executable,
    "-c",
    "from opentelemetry.instrumentation.auto_instrumentation import run; run()",
]

RACE = sdk.soon_over(FAULTS["dispatch"])

# Programs that know nothing of the guard.
TRAIN = f"""
import json, sys
from tests.end_to_end import sdk
from tinker_guard.gateway import FAULTS
from tinker_guard.gateway.train import train_five_steps

class There:
    base_url, api_key, fault = sys.argv[1], {Gateway.api_key!r}, FAULTS["none"]

with sdk.connected(There) as client:
    print(json.dumps(train_five_steps(client, sdk.types)), flush=True)
"""
IS_GUARDED = """
from testkit.clients import transport_of
from tests.end_to_end import sdk
guard = transport_of(sdk.client(api_key="tml-key", base_url="http://127.0.0.1:9"))
settings = getattr(guard, "settings", None)
print(type(guard).__name__, settings.retry_timeout if settings else "", flush=True)
"""


def run(
    command: list[str], cwd: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in an environment that has this checkout and is otherwise bare."""
    hidden = ("TINKER_", "OTEL_", "PYTHONPATH")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    clean |= {"PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1", **(environment or {})}
    return subprocess.run(
        command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=50, check=False
    )


def output_of(program: str, *arguments: str, cwd: Path, launcher: list[str] | None = None) -> str:
    """What a program prints that ends well."""
    (cwd / "program.py").write_text(textwrap.dedent(program))
    ended = run([*(launcher or []), sys.executable, "program.py", *arguments], cwd)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


# -- without a line of code ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def fault_free_losses(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    with Gateway(FAULTS["none"]) as gateway:
        output = output_of(TRAIN, gateway.base_url, cwd=tmp_path_factory.mktemp("healthy"))
    losses: list[float] = json.loads(output)
    return losses


@pytest.mark.parametrize(
    "launcher", [RUN, OPENTELEMETRY, [*RUN, *OPENTELEMETRY]], ids=["run", "opentelemetry", "both"]
)
def test_a_program_that_knows_nothing_of_the_guard_survives_a_race(
    launcher: list[str], tmp_path: Path, fault_free_losses: list[float]
) -> None:
    with Gateway(RACE) as gateway:
        losses = json.loads(output_of(TRAIN, gateway.base_url, cwd=tmp_path, launcher=launcher))
        applied = [done.seq_id for done in gateway.applied]
    assert losses == fault_free_losses
    assert applied == list(range(1, 11))


def test_without_a_launcher_it_dies(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(TRAIN)
    with Gateway(RACE) as gateway:
        died = run([sys.executable, "program.py", gateway.base_url], tmp_path)
    assert died.returncode != 0
    assert "404" in died.stderr


IMPORTED_LITTLE = """
import sys
print(*sorted(name for name in sys.modules if name.partition(".")[0] in
              ("httpx", "pydantic", "opentelemetry", "wrapt", "typer", "tinker", "tinker_guard")))
"""


def test_a_program_without_an_sdk_pays_for_a_few_small_modules(tmp_path: Path) -> None:
    loaded = output_of(IMPORTED_LITTLE, cwd=tmp_path, launcher=RUN)
    assert loaded.split() == [
        "tinker_guard",
        "tinker_guard.auto",
        "tinker_guard.install",
        "tinker_guard.install.import_hooks",
        "tinker_guard.install.unattended",
    ]


def test_opentelemetrys_launcher_loads_nothing_of_the_guard_that_is_not_needed(
    tmp_path: Path,
) -> None:
    (tmp_path / "program.py").write_text(IMPORTED_LITTLE)
    loaded = []
    for disabled in ("tinker_guard", "none"):
        environment = {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": disabled}
        ended = run([*OPENTELEMETRY, sys.executable, "program.py"], tmp_path, environment)
        loaded.append(set(ended.stdout.split()))
    without, with_guard = loaded
    assert with_guard - without == {
        "tinker_guard",
        "tinker_guard.install",
        "tinker_guard.install.import_hooks",
        "tinker_guard.install.unattended",
        "tinker_guard.install.instrumentor",
    }


def test_all_sdks_are_waited_for() -> None:
    assert set(PACKAGES) == {sdk.package for sdk in SDKS}
    assert set(HOLDERS) == {sdk.holder_module for sdk in SDKS}


def test_the_programs_own_call_takes_precedence(tmp_path: Path) -> None:
    program = """
        from tinker_guard import GuardSettings, install_guard, uninstall_guard
        install_guard(GuardSettings(retry_timeout=7))
    """
    own_call = textwrap.dedent(program) + IS_GUARDED
    late_call = "from tests.end_to_end import sdk\n" + own_call
    taken_out = f"{own_call}\nuninstall_guard(){IS_GUARDED}"
    assert output_of(own_call, cwd=tmp_path, launcher=RUN) == "GuardTransport 7.0"
    assert output_of(late_call, cwd=tmp_path, launcher=RUN) == "GuardTransport 7.0"
    assert "GuardTransport" not in output_of(taken_out, cwd=tmp_path, launcher=RUN).split("\n")[1]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TINKER_GUARD_ENABLED": "0"}, ""),
        ({"TINKER_GUARD_RETRY_TIMEOUT": "soon"}, "unguarded. tinker_guard cannot use these"),
    ],
)
def test_a_program_runs_unguarded_rather_than_not(
    environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(IS_GUARDED)
    ended = run([*RUN, "program.py"], tmp_path, environment)
    assert ended.returncode == 0
    assert "GuardTransport" not in ended.stdout
    assert said in ended.stderr
    assert bool(said) is bool(ended.stderr)


def test_a_broken_dependency_leaves_the_program_alone(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        f"import sys; sys.modules['tenacity'] = None\nimport tinker{IS_GUARDED}"
    )
    ended = run([*RUN, "program.py"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "GuardTransport" not in ended.stdout
    assert ended.stderr.startswith("tinker_guard: this process runs unguarded. ModuleNotFoundError")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TINKER_GUARD_RETRY_TIMEOUT": "soon"}, "TINKER_GUARD_RETRY_TIMEOUT: input should be"),
        ({"TINKER_GUARD_ENABLED": "0"}, "TINKER_GUARD_STRICT needs TINKER_GUARD_ENABLED"),
        ({"TINKER_GUARD_RETRY_TIMOUT": "5"}, "did you mean TINKER_GUARD_RETRY_TIMEOUT?"),
    ],
)
def test_run_strict_stops_what_would_run_unguarded(
    environment: dict[str, str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text("print('begun')\nimport tinker\nprint('trained')")
    ended = run([*RUN, "--strict", "--", "program.py"], tmp_path, environment)
    assert ended.returncode == 1
    assert ended.stdout == "begun\n"
    assert said in ended.stderr


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("-I program.py", "-I"),
        ("-E program.py", "-E"),
        ("-S program.py", "-S"),
        ("-IE program.py", "-I"),
        ("-sE program.py", "-E"),
        ("-uBS -m program", "-S"),
        ("-W ignore -X dev -I program.py", "-I"),
        ("-Wignore -bE program.py", "-E"),
        ("-uX dev -S program.py", "-S"),
        ("--check-hash-based-pycs never -Ic 1", "-I"),
        ("-E", "-E"),
    ],
)
@pytest.mark.parametrize("is_set_by", ["option", "variable"])
def test_run_strict_refuses_a_python_that_reads_no_environment(
    words: str, option: str, is_set_by: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text("print('begun')")
    command = [*RUN, "--strict"] if is_set_by == "option" else RUN
    environment = {} if is_set_by == "option" else {"TINKER_GUARD_STRICT": "1"}
    ended = run([*command, sys.executable, *words.split()], tmp_path, environment)
    assert (ended.returncode, ended.stdout) == (126, "")
    [line] = ended.stderr.splitlines()
    assert line.startswith(f"tinker-guard run: {sys.executable} {option} would run unguarded, ")


@pytest.mark.parametrize(
    "words",
    [
        "-sPu program.py -I",
        "-m program -E",
        "-bm program -S",
        "-cprint(1) -I",
        "-WI -c 1 -S",
        "-W E -c 1",
        "-X I -c 1",
        "-uXS -c 1",
        "--check-hash-based-pycs always program.py -E",
        "-- program.py -I",
        "- -I",
        "-V",
    ],
)
def test_run_strict_starts_a_python_whose_own_options_leave_the_guard_in(words: str) -> None:
    for name in ("python", "/x/python3.14t", "pypy3", "C:/x/pythonw.exe"):
        assert running.option_against_guard([name, *words.split()]) is None


def test_only_python_has_the_options_of_python() -> None:
    assert running.option_against_guard(["C:/x/Python.EXE", "-I"]) == "-I"
    for name in ("sed", "python-config", "ipython", "torchrun", "pythons", ""):
        assert running.option_against_guard([name, "-E"]) is None


def test_run_without_strict_starts_any_python(tmp_path: Path) -> None:
    ended = run([*RUN, sys.executable, "-I", "-c", "print('begun')"], tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begun\n", "")


def test_run_strict_leaves_a_program_without_an_sdk_alone(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print('end')")
    environment = {"TINKER_GUARD_RETRY_TIMEOUT": "soon"}
    ended = run([*RUN, "--strict", "program.py"], tmp_path, environment)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "end\n", "")


def test_a_broken_dependency_stops_a_strict_program(tmp_path: Path) -> None:
    program = "import sys; sys.modules['tenacity'] = None\nimport tinker"
    (tmp_path / "program.py").write_text(program)
    ended = run([*RUN, "--strict", "program.py"], tmp_path)
    assert ended.returncode == 1
    assert "ModuleNotFoundError" in ended.stderr


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["program.py", "--flag", "--", "x"],
        ["--", "program.py", "--flag", "--", "x"],
        ["-m", "program", "--flag", "--", "x"],
        [sys.executable, "program.py", "--flag", "--", "x"],
    ],
)
def test_arguments_and_the_exit_code_are_the_programs_own(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    ended = run([*RUN, *arguments], tmp_path)
    assert ended.stdout.strip() == "['--flag', '--', 'x']"
    assert (ended.returncode, ended.stderr) == (7, "")


def test_a_signal_ends_the_program_itself(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert run([*RUN, "program.py"], tmp_path).returncode == -signal.SIGTERM


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_the_program_ignores_no_signal_that_it_would_not_ignore_alone(tmp_path: Path) -> None:
    command = ["sh", "-c", "grep SigIgn /proc/self/status"]
    assert run([*RUN, *command], tmp_path).stdout == run(command, tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "which command?"),
        (["--"], 2, "which command?"),
        (["no-such-command"], 127, "there is no command 'no-such-command'"),
        (["./no-such-command"], 127, "there is no command './no-such-command'"),
        ([""], 127, "there is no command ''"),
        (["--", "", "x"], 127, "there is no command ''"),
        (["./program.txt"], 126, "cannot start './program.txt': Permission denied"),
        (["."], 126, "cannot start '.': Permission denied"),
        (["./program.txt/x"], 126, "cannot start './program.txt/x': Not a directory"),
        (["./no-first-line"], 126, "cannot start './no-first-line': Exec format error"),
        (
            ["./no-such-first-line"],
            126,
            "cannot start './no-such-first-line': the program that its first line names is missing",
        ),
    ],
)
def test_a_command_that_cannot_be_started(
    arguments: list[str], code: int, said: str, tmp_path: Path
) -> None:
    (tmp_path / "program.txt").write_text("")
    for name, text in (("no-first-line", "echo"), ("no-such-first-line", "#!/no/such\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    # A place of PATH may be no directory, such as an archive.
    path = os.pathsep.join([os.environ["PATH"], str(tmp_path / "program.txt")])
    ended = run([*RUN, *arguments], tmp_path, {"PATH": path})
    assert ended.returncode == code
    assert ended.stderr.splitlines()[-1].startswith(f"tinker-guard run: {said}")
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("tinker-guard run:") == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [("a\0b", "embedded null byte"), ("a\ud800b", "surrogates not allowed")],
)
def test_a_word_that_no_command_can_have(word: str, said: str, tmp_path: Path) -> None:
    """Only a caller in Python can give one."""
    program = f"import sys; from tinker_guard.cli.run import run; sys.exit(run(['sh', {word!r}]))"
    ended = run([sys.executable, "-c", program], tmp_path)
    assert ended.returncode == 126
    [line] = ended.stderr.splitlines()
    assert line.startswith("tinker-guard run: cannot start 'sh': ")
    assert said in line


@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_is_shown(
    option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert running.run([option]) == 0
    assert capsys.readouterr().out == running.USAGE


# -- sitecustomize -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "question",
    ["'bootstrap' not in __file__", "__import__('sys').modules[__name__].__dict__ is globals()"],
)
def test_the_users_own_sitecustomize_runs_too(question: str, tmp_path: Path) -> None:
    place = tmp_path / "own"
    place.mkdir()
    (place / "sitecustomize.py").write_text(f"print('own', {question})")
    (tmp_path / "program.py").write_text("print('end')")
    ended = run([*RUN, "program.py"], tmp_path, {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"})
    # Once in the command's own process, which becomes the program, and once in that.
    assert (ended.stdout, ended.stderr) == ("own True\nown True\nend\n", "")


def test_a_fault_in_the_users_own_sitecustomize_is_told_as_without_the_guard(
    tmp_path: Path,
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import no_such_module")
    (tmp_path / "program.py").write_text("print('end')")
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with_guard = run([*RUN, "program.py"], tmp_path, environment)
    without = run([sys.executable, "program.py"], tmp_path, environment)
    assert with_guard.stdout == without.stdout == "end\n"
    assert "no_such_module" in with_guard.stderr
    assert with_guard.stderr.splitlines()[-1] == without.stderr.splitlines()[-1]


@pytest.mark.parametrize("has_tinker", [True, False])
def test_a_python_without_the_guard_says_so_if_it_has_an_sdk(
    has_tinker: bool, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    if has_tinker:
        (tmp_path / "tinker.py").touch()
    environment: dict[str, str] = {"PYTHONPATH": str(tmp_path)}
    children.inject(environment)
    python = tmp_path / "venv" / "bin" / "python"
    ended = run([str(python), "-c", "print('end')"], tmp_path, environment)
    assert ended.stdout == "end\n"
    expected = (
        f"{python} has tinker, but not tinker_guard: it runs unguarded." if has_tinker else ""
    )
    assert expected in ended.stderr
    assert bool(expected) is bool(ended.stderr)


@pytest.mark.parametrize("has_guard", [True, False])
@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_a_process_that_cannot_be_told_so_runs_all_the_same(
    stderr: str, has_guard: bool, tmp_path: Path
) -> None:
    """A daemon may be started without a standard error; what cannot be written there is lost."""
    python = sys.executable
    environment = {"PYTHONPATH": str(tmp_path)}
    program = "import tinker; print('end')"
    if has_guard:
        # A dependency is missing, and that is to be told.
        environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
        program = f"import sys; sys.modules['tenacity'] = None; {program}"
    else:
        venv.create(tmp_path / "venv", with_pip=False)
        python = str(tmp_path / "venv" / "bin" / "python")
        (tmp_path / "tinker.py").touch()
    children.inject(environment)
    command = f'"$0" -c "$1" {stderr}'
    ended = run(["/bin/sh", "-c", command, python, program], tmp_path, environment)
    assert (ended.returncode, ended.stdout) == (0, "end\n")


def test_a_strict_python_without_the_guard_imports_no_sdk(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    (tmp_path / "tinker.py").write_text("print('imported')")
    python = str(tmp_path / "venv" / "bin" / "python")
    for name, value in (
        ("TINKER_GUARD_STRICT", "true"),
        ("tinker_guard_strict", '"true"'),
        (children.SETTINGS, GuardSettings(strict=True).dump_without_key()),
        (children.SETTINGS, GuardSettings(strict=True, verdict_ttl=2).dump_without_key()),
    ):
        environment = {"PYTHONPATH": str(tmp_path), name: value}
        children.inject(environment)
        ended = run([python, "-c", "print('end')"], tmp_path, environment)
        assert (ended.stdout, ended.stderr) == ("end\n", "")
        ended = run([python, "-c", "import tinker"], tmp_path, environment)
        assert ended.returncode == 1
        assert "imported" not in ended.stdout
        assert "Install tinker-guard there too. (TINKER_GUARD_STRICT is set.)" in ended.stderr


@pytest.mark.parametrize("parents", [None, "0"])
@pytest.mark.parametrize("has_guard", [True, False])
def test_a_child_that_is_told_not_to_be_strict_is_not(
    parents: str | None, has_guard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own word wins over the parent's code, but not a variable that the parent had already."""
    python = sys.executable
    if not has_guard:
        venv.create(tmp_path / "venv", with_pip=False)
        python = str(tmp_path / "venv" / "bin" / "python")
    (tmp_path / "tinker.py").touch()
    if parents is not None:
        monkeypatch.setenv(children.STRICT, parents)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)][: 1 + has_guard]),
        children.STRICT: "0",
        # Nothing else in the child can be read.
        "TINKER_GUARD_RETRY_TIMEOUT": "soon",
    }
    children.inject(environment, GuardSettings(strict=True).dump_without_key())
    ended = run([python, "-c", "import tinker"], tmp_path, environment)
    assert ended.returncode == (0 if parents is None else 1), ended.stderr


# -- a guard that the parent has from a path of its own ------------------------------------------


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin/python`, which has the SDK but not the guard, a copy of the guard, and the SDK."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place, with_pip=False)
    installed = Path(httpx.__file__).parents[1]
    (place / "sdk").mkdir()
    for entry in installed.iterdir():
        if not entry.name.startswith(("tinker_guard", "_tinker_guard")) and entry.suffix != ".pth":
            (place / "sdk" / entry.name).symlink_to(entry)
    # A directory in such a file is searched, but its own such files are not read.
    [own] = place.glob("lib/python*/site-packages")
    (own / "sdk.pth").write_text(f"{place / 'sdk'}\n")
    copy = place / "copy"
    shutil.copytree(Path(children.__file__).parents[1], copy / "tinker_guard")
    (copy / "beside.py").touch()
    return place


FROM_A_PATH = """
import multiprocessing, subprocess, sys

CHILD = '''
import tinker
from tinker_guard import status
print(status().sdks["tinker"], status().settings.retry_timeout, flush=True)
'''

def child():
    exec(CHILD)

def main():
    from tinker_guard import install_guard
    install_guard(retry_timeout=7)
    subprocess.run([sys.executable, "-c", CHILD], check=True, cwd="/")
    if sys.argv[1:] != ["spawn"]:
        return
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""
MAIN = "\nif __name__ == '__main__':\n    main()\n"


@pytest.mark.parametrize(
    ("found", "strict"),
    [
        *(("by sys.path", ""), ("beside the script", ""), ("in a zip", ""), ("in a zipapp", "")),
        ("by sys.path", "1"),
    ],
)
def test_a_child_has_the_guard_that_its_parent_found_by_a_path_of_its_own(
    found: str, strict: str, elsewhere: Path, tmp_path: Path
) -> None:
    copy, path, program, is_spawned = elsewhere / "copy", "", tmp_path / "program.py", ["spawn"]
    match found:
        case "by sys.path":
            path = f"import sys; sys.path.insert(0, {str(copy)!r})\n"
        case "beside the script":
            (tmp_path / "tinker_guard").symlink_to(copy / "tinker_guard")
        case "in a zip":
            shutil.make_archive(str(tmp_path / "packed"), "zip", copy)
            path = f"import sys; sys.path.insert(0, {str(tmp_path / 'packed.zip')!r})\n"
        case _:
            shutil.copytree(copy, tmp_path / "app")
            program, is_spawned = tmp_path / "app" / "__main__.py", []
    program.write_text(path + FROM_A_PATH + MAIN)
    if found == "in a zipapp":
        program = tmp_path / "app.pyz"
        zipapp.create_archive(tmp_path / "app", program)
    ended = run(
        [str(elsewhere / "bin" / "python"), program.name, *is_spawned],
        tmp_path,
        {"PYTHONPATH": "", "TINKER_GUARD_STRICT": strict},
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == ["guarded 7.0"] * (1 + len(is_spawned))


def test_a_child_gets_the_parents_guard_alone_and_no_place_on_its_path(elsewhere: Path) -> None:
    told = (
        "import sys, importlib.util as u; print(sys.path, [type(f).__name__ for f in sys.meta_path"
        " if 'Own' in type(f).__name__], u.find_spec('beside'), 'tinker_guard' in sys.modules)"
    )
    environment = {"PYTHONPATH": "/one"}
    python = str(elsewhere / "bin" / "python")
    without = run([python, "-c", told], elsewhere, environment).stdout
    bootstrap = str(elsewhere / "copy" / "tinker_guard" / "install" / "bootstrap")
    environment["PYTHONPATH"] = f"{bootstrap}{os.pathsep}/one"
    with_guard = run([python, "-c", told], elsewhere, environment)
    assert (with_guard.returncode, with_guard.stderr) == (0, "")
    assert with_guard.stdout == without.replace("[] None False", "[] None True")


@pytest.mark.parametrize("named", ["package", "directory"])
def test_a_childs_own_guard_counts_more_than_the_parents(
    named: str, elsewhere: Path, tmp_path: Path
) -> None:
    own = tmp_path / "tinker_guard"
    own.mkdir()
    if named == "package":
        (own / "__init__.py").touch()
        (own / "auto.py").write_text("install_when_needed = lambda: print('own')")
    bootstrap = str(elsewhere / "copy" / "tinker_guard" / "install" / "bootstrap")
    environment = {"PYTHONPATH": f"{bootstrap}{os.pathsep}{tmp_path}"}
    told = "import tinker_guard; print(tinker_guard.__file__)"
    ended = run([str(elsewhere / "bin" / "python"), "-c", told], tmp_path, environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    if named == "package":
        assert ended.stdout.splitlines() == ["own", str(own / "__init__.py")]
    else:
        # A checkout, for instance: it holds no module of that name.
        assert ended.stdout.startswith(str(elsewhere / "copy"))


@pytest.mark.parametrize("strict", ["", "1"])
@pytest.mark.parametrize("has_all", [True, False])
def test_a_child_that_finds_its_sdk_later_is_guarded_or_says_what_it_lacks(
    has_all: bool, strict: str, elsewhere: Path, tmp_path: Path
) -> None:
    """As a child of multiprocessing does, which is given its parent's path after its start."""
    venv.create(tmp_path / "bare", with_pip=False)
    if not has_all:
        (tmp_path / "tinker").mkdir()
        (tmp_path / "tinker" / "__init__.py").touch()
    place = elsewhere / "sdk" if has_all else tmp_path
    told = (
        f"import sys; sys.path.append({str(place)!r}); import tinker; "
        "print('tinker_guard.install.installation' in sys.modules)"
    )
    environment = {
        "PYTHONPATH": str(elsewhere / "copy" / "tinker_guard" / "install" / "bootstrap"),
        "TINKER_GUARD_STRICT": strict,
    }
    ended = run([str(tmp_path / "bare" / "bin" / "python"), "-c", told], tmp_path, environment)
    if has_all:
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "True\n", "")
    elif strict:
        assert ended.returncode == 1
        assert "ModuleNotFoundError: No module named" in ended.stderr
    else:
        assert ended.stdout == "False\n"
        assert "this process runs unguarded. ModuleNotFoundError: No module" in ended.stderr


def test_what_the_guard_needs_is_what_it_depends_on() -> None:
    bootstrap = Path(children.__file__).parent / "bootstrap" / "sitecustomize.py"
    tree = ast.parse(bootstrap.read_text())
    [needed] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NEEDED"
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[^\w-]", wanted)[0] for wanted in project["dependencies"]]
    modules = {"opentelemetry-api": "opentelemetry"}
    assert list(needed) == [modules.get(name, name.replace("-", "_")) for name in names]


# -- children ------------------------------------------------------------------------------------

SPAWN = """
import multiprocessing, subprocess, sys

def child():
    exec(IS_GUARDED)

IS_GUARDED = sys.argv[1]

if __name__ == "__main__":
    from tinker_guard import GuardSettings, install_guard
    install_guard(GuardSettings(retry_timeout=7, verdict_ttl=2))
    for method in ("spawn", "forkserver", "fork"):
        process = multiprocessing.get_context(method).Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0
    subprocess.run([sys.executable, "-c", IS_GUARDED], check=True)
"""


def test_every_kind_of_child_process_is_guarded_with_the_parents_settings(tmp_path: Path) -> None:
    printed = output_of(SPAWN, IS_GUARDED, cwd=tmp_path)
    assert printed.splitlines() == ["GuardTransport 7.0"] * 4


PARENT_OF_OTHERS = """
import json, os, subprocess, sys
from tinker_guard import install_guard
install_guard(retry_timeout=7)
told = json.loads(sys.argv[1])
if told.pop("from another release", None):
    inherited = json.loads(os.environ["TINKER_GUARD_INHERITED"])
    os.environ["TINKER_GUARD_INHERITED"] = json.dumps({**inherited, "patience": 3})
subprocess.run([sys.executable, "-c", sys.argv[2]], check=True, env={**os.environ, **told})
"""


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"TINKER_GUARD_ENABLED": "false"}, ""),
        ({"TINKER_GUARD_VERDICT_TTL": "2"}, "GuardTransport 7.0"),
        ({"TINKER_GUARD_RETRY_TIMEOUT": "5"}, "GuardTransport 5.0"),
        ({"from another release": True}, "GuardTransport 7.0"),
    ],
    ids=["off", "another", "the-same", "of-another-release"],
)
def test_a_child_obeys_its_own_variables(
    told: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PARENT_OF_OTHERS)
    ended = run([sys.executable, "program.py", json.dumps(told), IS_GUARDED], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(expected)
    assert ("GuardTransport" in ended.stdout) is bool(expected)
    is_told = "TINKER_GUARD_INHERITED holds settings that this release does not know"
    assert ended.stderr.count(is_told) == (1 if "from another release" in told else 0)


def test_a_fork_while_another_thread_installs_leaves_no_lock_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_guard()
    client = sdk.client(api_key="tml-key", base_url="http://127.0.0.1:9")
    held, done = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        held.set()
        done.wait(10)

    # Guards get other settings while the lock is held.
    monkeypatch.setattr(transport_of(client), "configure", hold)
    other = GuardSettings(retry_timeout=7)
    holder = threading.Thread(target=install_guard, args=[other], kwargs={"replace": True})
    holder.start()
    assert held.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        uninstall_guard()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join(10)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("before", [None, "/one", f"/one{os.pathsep}/two"])
def test_the_environment_is_left_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", before)
    untouched = dict(os.environ)
    install_guard(GuardSettings(retry_timeout=7))
    assert os.environ["PYTHONPATH"].endswith(before or "bootstrap")
    install_guard(GuardSettings(retry_timeout=8), replace=True)
    assert json.loads(os.environ[children.SETTINGS])["retry_timeout"] == 8
    install_guard(GuardSettings(child_processes=False), replace=True)
    assert os.environ == untouched
    install_guard(GuardSettings(retry_timeout=7), replace=True)
    uninstall_guard()
    assert os.environ == untouched


RESTORED = "was changed since; calling install_guard() again restores it"


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ({"PYTHONPATH": None}, f"not guarded: PYTHONPATH {RESTORED}"),
        ({"PYTHONPATH": "/of/a/launcher"}, f"not guarded: PYTHONPATH {RESTORED}"),
        ({children.SETTINGS: None}, f"guarded with other settings: {children.SETTINGS} {RESTORED}"),
        ({"PYTHONPATH": None, children.SETTINGS: None}, f"not guarded: PYTHONPATH {RESTORED}"),
    ],
    ids=["taken", "replaced", "settings", "put-back"],
)
@pytest.mark.parametrize("is_by_launcher", [True, False])
def test_a_second_call_restores_the_environment_and_until_then_the_status_tells(
    lost: dict[str, str | None],
    said: str,
    is_by_launcher: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_by_launcher:
        inherited = GuardSettings(retry_timeout=7).dump_without_key()
        monkeypatch.setenv(children.SETTINGS, inherited)
        install_unattended(None, None)
    else:
        install_guard(retry_timeout=7)
    assert status().child_processes == "guarded"
    before = dict(os.environ)
    with monkeypatch.context() as context:
        for name, value in lost.items():
            if value is None:
                context.delenv(name)
            else:
                context.setenv(name, value)
        assert status().child_processes == said
        assert f"  child processes: {said}" in str(status())
        install_guard(retry_timeout=7)
        bootstrap, *others = before["PYTHONPATH"].split(os.pathsep)
        if "PYTHONPATH" in lost:
            others = list(filter(None, [lost["PYTHONPATH"]]))
        assert os.environ["PYTHONPATH"].split(os.pathsep) == [bootstrap, *others]
        assert os.environ[children.SETTINGS] == before[children.SETTINGS]
        assert status().child_processes == "guarded"


def test_a_second_call_without_child_processes_takes_the_guard_out_of_the_environment() -> None:
    install_guard(child_processes=False)
    children.inject(os.environ)
    install_guard(child_processes=False)
    assert "bootstrap" not in os.environ.get("PYTHONPATH", "")
    assert status().child_processes == "not guarded"


class _Kept(dict[str, str]):
    """An environment that nothing may be taken out of."""

    def pop(self, name: str, *default: Any) -> Any:
        assert name not in self
        return super().pop(name, *default)

    def __delitem__(self, name: str) -> None:
        raise AssertionError(name)


@pytest.mark.parametrize("first", [None, "/one"])
def test_other_settings_take_nothing_out_of_the_environment(
    first: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that copies it in that moment would meet a `KeyError`."""
    install_guard(GuardSettings(retry_timeout=7))
    kept = _Kept(os.environ)
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, [first, kept["PYTHONPATH"]]))
    with monkeypatch.context() as context:
        context.setattr(os, "environ", kept)
        install_guard(GuardSettings(retry_timeout=8), replace=True)
    assert json.loads(kept[children.SETTINGS])["retry_timeout"] == 8
    # Before any other `sitecustomize`.
    assert kept["PYTHONPATH"].partition(os.pathsep)[0].endswith("bootstrap")
    assert kept["PYTHONPATH"].count("bootstrap") == 1


PARENT_OF_ONE = """
import subprocess, sys
from tinker_guard import GuardSettings, install_guard, uninstall_guard
{decision}
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


@pytest.mark.parametrize(
    "decision",
    [
        "install_guard(GuardSettings(child_processes=False))",
        "install_guard(GuardSettings(enabled=False))",
        "uninstall_guard()",
    ],
)
def test_the_programs_own_word_counts_for_its_children_too(decision: str, tmp_path: Path) -> None:
    program = PARENT_OF_ONE.format(decision=decision)
    printed = output_of(program, IS_GUARDED, cwd=tmp_path, launcher=RUN)
    assert "GuardTransport" not in printed


def test_settings_from_variables_are_left_to_the_variables() -> None:
    install_guard(GuardSettings())
    assert children.SETTINGS not in os.environ
    assert "bootstrap" in os.environ["PYTHONPATH"]


def test_a_key_given_in_code_stays_in_the_process() -> None:
    settings: Any = {"control_plane_url": "https://api.test", "control_plane_api_key": "geheim"}
    install_guard(GuardSettings(**settings))
    assert "https://api.test" in os.environ[children.SETTINGS]
    assert not any("geheim" in value for value in os.environ.values())


def test_a_key_in_a_url_stays_in_the_process(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        PARENT_WITH_KEY.format(
            install="install_guard(routes='https://x.test/{job}', control_plane='http', "
            "control_plane_url='https://cp.test/jobs/{job}?token=geheim')\n"
            "assert not any('geheim' in value for value in os.environ.values())"
        )
    )
    ended = run([sys.executable, "program.py", GRANDCHILD], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["https://cp.test/jobs/{job}?token=... True"] * 2
    told = "which is not in this process: no control plane is asked."
    assert ended.stderr.count(told) == 2


KEY_IS_LOST = """
from testkit.clients import transport_of
from tests.end_to_end import sdk
settings = transport_of(sdk.client(api_key="tml-key", base_url="http://127.0.0.1:9")).settings
print(settings.control_plane_url, settings.is_control_plane_key_lost, flush=True)
"""
GRANDCHILD = f"""
{KEY_IS_LOST}
import subprocess, sys
subprocess.run([sys.executable, "-c", {KEY_IS_LOST!r}], check=True)
"""
PARENT_WITH_KEY = """
import os, subprocess, sys
from tinker_guard import GuardSettings, install_guard
{install}
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""
IN_CODE = 'install_guard(GuardSettings(control_plane_url="https://api.test", {key}))'
IN_VARIABLES = """
os.environ["TINKER_GUARD_CONTROL_PLANE_URL"] = "https://api.test"
{key}
install_guard()
os.environ.pop("TINKER_GUARD_CONTROL_PLANE_API_KEY", None)
"""


@pytest.mark.parametrize(
    ("install", "is_lost"),
    [
        (IN_CODE.format(key='control_plane_api_key="geheim"'), True),
        (IN_CODE.format(key=""), False),
        # A key that is kept from child processes, as a program does that filters their environment.
        (
            IN_VARIABLES.format(key='os.environ["TINKER_GUARD_CONTROL_PLANE_API_KEY"] = "geheim"'),
            True,
        ),
        (IN_VARIABLES.format(key=""), False),
    ],
    ids=["key-in-code", "no-key-in-code", "key-in-variable", "no-key-in-variable"],
)
def test_child_processes_know_that_they_lack_a_key(
    install: str, is_lost: bool, tmp_path: Path
) -> None:
    printed = output_of(PARENT_WITH_KEY.format(install=install), GRANDCHILD, cwd=tmp_path)
    assert printed.splitlines() == [f"https://api.test {is_lost}"] * 2


def test_a_child_process_with_a_key_of_its_own_lacks_none(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        PARENT_WITH_KEY.format(
            install='install_guard(GuardSettings(control_plane_url="https://api.test", '
            'control_plane_api_key="geheim"))\n'
            'os.environ["TINKER_GUARD_CONTROL_PLANE_API_KEY"] = "fw-of-the-child"'
        )
    )
    ended = run([sys.executable, "program.py", GRANDCHILD], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["https://api.test False"] * 2
