"""Tasks, and the environments that they run in: `nox --list`, or by way of `make`.

Each environment is made once, under `.nox/`, and again when pyproject.toml or this file changes.
Daily tasks share the environment `dev`; what would clash with it, or is large, has its own.
Arguments after `--` reach the task's program: `nox -s test -- tests/core -k warmup`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Final

import nox

ROOT: Final = Path(__file__).resolve().parent
PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
"""The versions that are tested; the workflow in .github and the classifiers name the same."""
SKYRL: Final = "skyrl==0.4.0"
"""It asks for Python 3.12 and an SDK of last year, and needs neither: install it without these."""

ON_TWO_CORES: Final = ("--numprocesses", "2", "--dist", "worksteal")
UNIT: Final = (*ON_TWO_CORES, "-m", "unit")

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "venv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["check", "test"]


def install(
    session: nox.Session,
    *groups: str,
    extras: str = "",
    also: tuple[str, ...] = (),
    is_awaited: bool = False,
) -> None:
    """Install this checkout and dependency groups, unless the environment has just that.

    Args:
        session: Whose environment.
        groups: Dependency groups of pyproject.toml.
        extras: Extras of the package, with commas; "-" leaves the package out.
        also: Further requirements.
        is_awaited: Whether somebody watches: pip shows its progress, and compiles no module, which
            takes half of its time (transformers alone has thousands, and the demo imports none).
    """
    project = nox.project.load_toml(ROOT / "pyproject.toml")
    wanted = [*nox.project.dependency_groups(project, *groups), *also]
    if extras != "-":
        wanted += ["--editable", f".[{extras}]" if extras else "."]
    inputs = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "noxfile.py")]
    state = hashlib.sha256(b"".join([*inputs, repr(wanted).encode()])).hexdigest()
    stamp = Path(session.virtualenv.location) / "installed"
    if not stamp.exists() or stamp.read_text() != state:
        stamp.unlink(missing_ok=True)
        session.install(*(["--no-compile"] if is_awaited else []), *wanted, silent=not is_awaited)
        stamp.write_text(state)


# -- daily tasks, in one environment ---------------------------------------------------------------


@nox.session(default=False)
def dev(session: nox.Session) -> None:
    """Make the environment of the daily tasks; point your editor at it."""
    install(session, "dev", extras="all")


def in_dev(session: nox.Session, *command: str, **environment: str) -> None:
    """Run a program of the environment `dev`."""
    programs = Path(session.cache_dir).parent / "dev" / "bin"
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    session.run(
        str(programs / command[0]), *command[1:], env={"PATH": path, **environment}, external=True
    )


@nox.session(venv_backend="none", requires=["dev"])
def test(session: nox.Session) -> None:
    """The tests, on two cores."""
    in_dev(session, "python", "-m", "pytest", *(session.posargs or ON_TWO_CORES))


@nox.session(venv_backend="none", requires=["dev"])
def quick(session: nox.Session) -> None:
    """The tests that need neither sockets nor processes."""
    in_dev(session, "python", "-m", "pytest", *UNIT, *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def coverage(session: nox.Session) -> None:
    """Whether the tests in virtual time take every branch of the heart."""
    # Backwards, so that no test relies on what another has left.
    in_dev(session, "coverage", "run", "-m", "pytest", "-m", "unit", "-p", "tests.backwards")
    in_dev(session, "coverage", "report")


@nox.session(venv_backend="none", requires=["dev"])
def check(session: nox.Session) -> None:
    """Style, spelling, types, contracts of import, and whether all public names are typed."""
    in_dev(session, "ruff", "check", ".")
    in_dev(session, "ruff", "format", "--check", ".")
    in_dev(session, "codespell")
    in_dev(session, "mypy")
    in_dev(session, "lint-imports")
    in_dev(session, "basedpyright", "--verifytypes", "tinker_guard", "--ignoreexternal")


@nox.session(name="format", venv_backend="none", requires=["dev"])
def format_(session: nox.Session) -> None:
    """Let ruff fix what it can."""
    in_dev(session, "ruff", "check", "--fix", ".")
    in_dev(session, "ruff", "format", ".")


@nox.session(venv_backend="none", requires=["dev"])
def bench(session: nox.Session) -> None:
    """Measure, beside peers."""
    written = ("--markdown", "--docs", "docs", "--record", "benchmarks/results.json")
    in_dev(session, "python", "-m", "benchmarks", *written, *session.posargs)


@nox.session(name="bench-overhead", venv_backend="none", requires=["dev"])
def bench_overhead(session: nox.Session) -> None:
    """Whether an untouched request has become twice as dear as recorded: `-- --record`."""
    in_dev(session, "python", "-m", "benchmarks.regression", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def simulate(session: nox.Session) -> None:
    """Hostile schedules in virtual time: `-- --n 100000`."""
    in_dev(session, "python", "-m", "proof.simulation", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def chaos(session: nox.Session) -> None:
    """A soak over real sockets: `-- --minutes 30`."""
    in_dev(session, "python", "-m", "proof.chaos", *session.posargs)


@nox.session(venv_backend="none", requires=["dev"])
def fuzz(session: nox.Session) -> None:
    """Strange inputs on each property, as many as the argument says."""
    in_dev(
        session,
        *("python", "-m", "pytest", "tests/proof/test_fuzz.py", "--timeout", "0"),
        TINKER_GUARD_FUZZ=session.posargs[0] if session.posargs else "10000",
    )


# -- tasks with environments of their own ----------------------------------------------------------


@nox.session
def demo(session: nox.Session) -> None:
    """See the guard at work."""
    install(session, "sdk", extras="demo", is_awaited=True)
    session.run("tinker-guard", "demo", *session.posargs)


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The quick tests on each Python that is found."""
    install(session, "test", extras="all")
    session.run("python", "-m", "pytest", *(session.posargs or UNIT))


@nox.session
def mutants(session: nox.Session) -> None:
    """Break the heart on purpose; goes on where it was stopped, and tries survivors again."""
    install(session, "mutants", extras="all")
    # Other operators or settings give the mutants other numbers, by which results are remembered.
    made_by = b"".join(
        (ROOT / name).read_bytes() for name in ("pyproject.toml", "proof/mutants.py")
    )
    stamp = Path(session.virtualenv.location) / "mutants"
    if not stamp.exists() or stamp.read_bytes() != made_by:
        shutil.rmtree(ROOT / "mutants", ignore_errors=True)
        stamp.write_bytes(made_by)
    session.run("python", "proof/mutants.py", *session.posargs)


@nox.session(name="sdk-suite")
def sdk_suite(session: nox.Session) -> None:
    """The tests that the SDK ships in its own wheel, with the guard installed."""
    install(session, "sdk-suite")
    place = Path(session.virtualenv.location)
    found = sorted(place.glob("lib/python*/site-packages/tinker/**/*_test.py"))
    if not found:
        session.error("the SDK's wheel holds no tests")
    (place / "empty.ini").touch()
    session.chdir(place)
    session.run(
        *("python", "-m", "pytest", "-c", "empty.ini", "-q", "-p", "no:cacheprovider"),
        *("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"),
        *("-p", "install_guard_plugin", "--import-mode=importlib"),
        *(str(path.relative_to(place)) for path in found),
        env={"PYTHONPATH": str(ROOT / "scripts")},
    )


@nox.session(venv_backend="none")
def matrix(session: nox.Session) -> None:
    """The end-to-end tests against every release of the SDKs; makes its own environments."""
    session.run(sys.executable, "scripts/matrix.py", *session.posargs, external=True)


@nox.session
def ray(session: nox.Session) -> None:
    """Actors of a real local Ray, which is large."""
    install(session, "ray", extras="all")
    session.run("python", "-m", "pytest", "tests/end_to_end/test_ray.py", *session.posargs)


@nox.session
def phoenix(session: nox.Session) -> None:
    """The environment of a real Phoenix, for `dashboards`."""
    install(session, "phoenix", extras="-")


@nox.session
def mlflow(session: nox.Session) -> None:
    """The environment of a real MLflow, for `dashboards`."""
    install(session, "mlflow", extras="-")


@nox.session(requires=["phoenix", "mlflow"])
def dashboards(session: nox.Session) -> None:
    """Guarded runs in real backends, with a real browser; writes the pictures in docs/."""
    install(session, "dashboards", extras="all")
    session.run("pytest", "tests/dashboards", env={"TINKER_GUARD_SCREENSHOTS": "docs"})


@nox.session
def gateways(session: nox.Session) -> None:
    """Training through real gateways whose replicas lack a route: `-- docs/gateways.md`."""
    install(session, "gateways", extras="all")
    through(session, "tests/gateways/test_gateways.py")


@nox.session(name="gateways-ray")
def gateways_ray(session: nox.Session) -> None:
    """The same through a real Ray Serve, which is large."""
    install(session, "gateways-ray", extras="all")
    through(session, "tests/gateways/test_ray_serve.py")


@nox.session(name="gateways-skyrl")
def gateways_skyrl(session: nox.Session) -> None:
    """The same before SkyRL's real server, some 7 GB."""
    install(session, "gateways-skyrl", extras="all", is_awaited=True)
    session.install("--no-deps", "--ignore-requires-python", SKYRL)
    through(session, "tests/cookbooks/test_skyrl_gateways.py", "-W", "ignore")


@nox.session
def cookbooks(session: nox.Session) -> None:
    """Recipes of others before a server of others, some 7 GB: `-- docs/cookbooks.md`."""
    install(session, "cookbooks", extras="all", is_awaited=True)
    # tinker-cookbook asks for a tml-renderers that is on no index.
    session.install(
        *("--no-deps", "--ignore-requires-python"),
        *(SKYRL, "tinker-cookbook==0.6.1", "tml-renderers==0.2.1"),
    )
    through(session, "tests/cookbooks", "-W", "ignore")


@nox.session(name="cookbooks-fireworks")
def cookbooks_fireworks(session: nox.Session) -> None:
    """Fireworks' cookbook before the local gateway; FIREWORKS_COOKBOOK says where it lies."""
    if "FIREWORKS_COOKBOOK" not in os.environ:
        session.error("FIREWORKS_COOKBOOK must name a checkout of github.com/fw-ai/cookbook")
    install(session, "cookbooks-fireworks", is_awaited=True)
    session.install("--no-deps", "tinker-cookbook==0.4.3")
    through(session, "tests/cookbooks/test_fireworks_cookbook.py", "-W", "ignore")


def through(session: nox.Session, *tests: str) -> None:
    """Run tests that write a table, if the session is given a page."""
    page = session.posargs[0] if session.posargs else ""
    session.run("pytest", *tests, env={"TINKER_GUARD_GATEWAYS_PAGE": page})


@nox.session(name="fuzz-bytes")
def fuzz_bytes(session: nox.Session) -> None:
    """Bytes, led by coverage, for as many seconds for each target as the argument says."""
    install(session, "fuzz-bytes", extras="cli")
    seconds = session.posargs[0] if session.posargs else "60"
    for target in ("not_found", "codings", "retry_after", "control_plane", "route", "report"):
        session.run(
            *("python", "proof/fuzz_bytes.py", target),
            *(f"-max_total_time={seconds}", "-print_final_stats=0"),
        )


@nox.session
def audit(session: nox.Session) -> None:
    """Known holes in the oldest and the newest dependencies.

    Needs PyPI's own interface, which tells of them: a mirror that lacks it makes this fail.
    """
    install(session, "audit", extras="-")
    for resolution in ("lowest-direct", "highest"):
        locked = str(Path(session.virtualenv.location) / f"{resolution}.txt")
        session.run(
            *("uv", "pip", "compile", "--quiet", "--all-extras", "--resolution", resolution),
            *("--output-file", locked, "pyproject.toml"),
        )
        session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "--requirement", locked)


@nox.session
def floors(session: nox.Session) -> None:
    """The tests with the oldest dependencies that pyproject.toml allows.

    Twice: the SDK's own dependencies raise some bounds, so the core is also tried without it.
    """
    session.install("uv")
    project = nox.project.load_toml(ROOT / "pyproject.toml")
    oldest = ("uv", "pip", "install", "--quiet", "--resolution", "lowest-direct", "--editable")
    session.run(*oldest, ".", *nox.project.dependency_groups(project, "floors"))
    without_sdk = ("tests/core/test_state_machines.py", "tests/gateway", "tests/end_to_end")
    session.run("pytest", "-m", "unit", *(f"--ignore={path}" for path in without_sdk))
    session.run(*oldest, ".[all]", *nox.project.dependency_groups(project, "test", "bench"))
    session.run("pytest")


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, ask whether an index would take them, and test the wheel alone."""
    install(session, "package", "test", extras="-")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = sorted(map(str, dist.iterdir()))
    session.run("twine", "check", "--strict", *built)
    (wheel,) = dist.glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(f"{wheel}[all]")
    # The sdist without the package, so that only the wheel can be what the tests import.
    (sdist,) = dist.glob("*.tar.gz")
    place = Path(session.create_tmp())
    shutil.rmtree(place)
    shutil.unpack_archive(sdist, place, filter="data")
    (alone,) = place.iterdir()
    shutil.rmtree(alone / "tinker_guard")
    session.chdir(alone)
    is_alone = "import tinker_guard; assert 'site-packages' in tinker_guard.__file__"
    session.run("python", "-c", is_alone)
    session.run("python", "-m", "pytest", *(session.posargs or UNIT))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation site, offline: a link to nowhere, or to another host's files, fails it."""
    install(session, "docs", extras="-")
    # Not --quiet: that keeps warnings from being counted, and so from failing it.
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})
    session.log("site/index.html; 'python3 -m http.server -d site' serves it, search included")


@nox.session
def changelog(session: nox.Session) -> None:
    """Write changelog.d/ into CHANGELOG.md: `-- --version 1.2.3`; without arguments, show it."""
    install(session, "changelog", extras="-")
    session.run("towncrier", "build", *(session.posargs or ("--draft", "--version", "next")))
