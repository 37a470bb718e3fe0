"""Mutates the heart of the guard, and fails where a change goes unseen: `make mutants`.

mutmut makes the mutants, runs for each the tests that reach it, and remembers the outcome under
`mutants/`, so that a run that was stopped goes on where it was. Tests may have become better since,
so survivors are tried again; `make clean` forgets everything. `[tool.mutmut]` in `pyproject.toml`
says what is mutated and which tests are run.

Added to mutmut's mutants are those that matter most for code that closes, waits and gives up: a
call that is left out, a condition turned round, a result that is not returned. Left out are changes
of prose (a string with a space in it), and of a string's case, since header names have none.

Survivors that no test could tell from the code are listed in `docs/mutants.md`, with reasons. It is
a failure too if a test notices one of these: then the reason is wrong, or a test fails in any case.
"""

# A tool for the command line: it prints.
# ruff: noqa: T201

from __future__ import annotations

import os
import re
import signal
import sys
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import libcst as cst
from mutmut.__main__ import _reset_mutant_results, cli
from mutmut.mutation import mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.runners.harness import PytestRunner
from mutmut.state import state
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key
from mutmut.workers.isolation import ForkServerRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PAGE: Final = Path("docs/mutants.md")
WANTED: Final = 0.97
"""Which part of the mutants the tests have to notice, the listed ones not left out."""
_FIRST_BATCH: Final = 50
"""Tests."""
_TIMEOUT: Final = 36
"""The exit code that mutmut takes for a timeout."""
CAUGHT: Final = ("killed", "timeout", "segfault")
"""A loop that never ends is ended by a time limit, or by the system for the memory it takes."""


class Change(NamedTuple):
    """What a mutant changes, in words that outlive its number."""

    function: str
    """Such as `core.recovery.Recovery.run`."""
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"-{line}" for line in self.before] + [f"+{line}" for line in self.after]
        return "\n".join([f"### `{self.function}`", "", "```diff", *lines, "```", ""])


def main() -> int:
    """Run what has not been run, or survived; say what lives. Arguments are names of mutants."""
    _change_operators()
    _try_likely_tests_first()
    if not sys.argv[1:]:
        _reset_mutant_results(lambda _, code: status_by_exit_code[code] not in CAUGHT)
    cli(["run", *sys.argv[1:]], standalone_mode=False)
    return _report()


def _change_operators() -> None:
    operators = [
        (node, operator)
        for node, operator in mutators.mutation_operators
        if operator not in (mutators.operator_string, mutators.operator_assignment)
    ]
    operators += [
        (cst.Assign, _assign_nothing),
        (cst.AnnAssign, _assign_nothing),
        (cst.SimpleString, _mark_string),
        (cst.Expr, _leave_out_call),
        (cst.If, _turn_round),
        (cst.Return, _return_nothing),
    ]
    # In place: other modules of mutmut have imported the list itself.
    mutators.mutation_operators[:] = operators


def _try_likely_tests_first() -> None:
    submit = ForkServerRunner.submit

    def submit_sorted(self: ForkServerRunner, name: str, tests: list[str], *more: float) -> None:
        *folders, module = name.split(".")[1:-1]
        folder = "/".join(["tests", *folders, ""])
        mirror = f"{folder}test_{module}.py"
        seconds = state().duration_by_test
        # The tests of the module, then those of its folder, each from the quickest to the slowest.
        tests = sorted(
            tests,
            key=lambda test: (
                not test.startswith(mirror),
                not test.startswith(folder),
                seconds[test],
            ),
        )
        submit(self, name, tests, *more)

    ForkServerRunner.submit = submit_sorted

    run_tests = PytestRunner.run_tests

    def run_in_batches(self: PytestRunner, *, mutant_name: str | None, tests: Iterable[str]) -> int:
        left = list(tests)
        if mutant_name is None:
            return run_tests(self, mutant_name=None, tests=left)
        # To collect thousands of tests takes longer than to run the few that notice most changes.
        size, code = _FIRST_BATCH, 0
        while left and code == 0:
            batch, left = left[:size], left[size:]
            run_batch = partial(run_tests, self, mutant_name=mutant_name, tests=batch)
            code, size = _in_child(run_batch), size * 8
        return code

    PytestRunner.run_tests = run_in_batches


def _in_child(run: Callable[[], int]) -> int:
    """The exit code of a run in a process of its own: one process can set one provider of spans."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        os._exit(run())
    # A run that lasts too long is ended by it.
    signal.signal(signal.SIGXCPU, lambda *_: os.kill(child, signal.SIGXCPU))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    # What ends it by a signal is a limit of time or of memory.
    return _TIMEOUT if code < 0 else code


def _mark_string(node: cst.SimpleString) -> Iterator[cst.SimpleString]:
    if " " not in node.raw_value:
        yield next(iter(mutators.operator_string(node)), node)


def _assign_nothing(node: cst.Assign | cst.AnnAssign) -> Iterator[cst.CSTNode]:
    if not _is_false(node.value):
        yield from mutators.operator_assignment(node)


def _leave_out_call(node: cst.Expr) -> Iterator[cst.Pass]:
    if isinstance(node.value, cst.Call | cst.Await):
        yield cst.Pass()


def _turn_round(node: cst.If) -> Iterator[cst.If]:
    # mutmut itself turns comparisons round, and `not`.
    if isinstance(node.test, cst.Name | cst.Attribute | cst.Call):
        yield node.with_changes(
            test=cst.UnaryOperation(cst.Not(), node.test),
            whitespace_before_test=cst.SimpleWhitespace(" "),
        )


def _return_nothing(node: cst.Return) -> Iterator[cst.Return]:
    is_nothing = node.value is None or node.value.deep_equals(cst.Name("None"))
    if not is_nothing and not _is_false(node.value):
        yield node.with_changes(value=cst.Name("None"))


def _is_false(node: cst.BaseExpression | None) -> bool:
    """As good as nothing to whoever asks; mutmut itself turns it to `True`."""
    return node is not None and node.deep_equals(cst.Name("False"))


def _report() -> int:
    outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    survivors: list[tuple[str, Change]] = []
    listed = set(_listed())
    noticed: set[Change] = set()
    functions = {change.function for change in listed}
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            outcomes[_module(path)][status] += 1
            if status not in CAUGHT:
                survivors.append((name, _change(path, name)))
            elif status == "killed" and _function(path, name) in functions:
                noticed.add(_change(path, name))
    living = {change for _, change in survivors}
    unlisted = [(name, change) for name, change in survivors if change not in listed]
    for name, change in unlisted:
        print(f"{name}\n{change}")
    # A test that fails whatever the change is would notice these too.
    wrong = (listed & noticed) - living
    for change in sorted(wrong):
        print(f"{PAGE} lists what a test notices:\n{change}")
    for change in sorted(listed - wrong - living):
        print(f"{PAGE} lists what is gone, or took too long:\n{change}")

    print(f"{'module':<26}{'mutants':>8}{'killed':>8}{'timeout':>8}{'lives':>8}{'caught':>9}")
    in_all: Counter[str] = Counter()
    for module, found in sorted(outcomes.items()):
        print(_row(module, found))
        in_all += found
    print(_row("in all", in_all))
    ratio = _caught(in_all) / in_all.total()
    print(f"{len(survivors) - len(unlisted)} survivors are listed in {PAGE}, {len(unlisted)} not.")
    return 1 if unlisted or wrong or ratio < WANTED else 0


def _caught(found: Counter[str]) -> int:
    return sum(found[status] for status in CAUGHT)


def _row(name: str, found: Counter[str]) -> str:
    caught = _caught(found)
    return (
        f"{name:<26}{found.total():>8}{caught - found['timeout']:>8}{found['timeout']:>8}"
        f"{found.total() - caught:>8}{caught / found.total():>9.1%}"
    )


def _module(path: Path) -> str:
    """The name of a module within the package, such as `core.recovery`."""
    return ".".join(path.with_suffix("").parts[1:])


def _change(path: Path, name: str) -> Change:
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    return Change(_function(path, name), *(_of(lines, sign) for sign in "-+"))


def _function(path: Path, name: str) -> str:
    function, class_name = orig_function_and_class_names_from_key(name)
    return ".".join(filter(None, (_module(path), class_name, function)))


def _listed() -> Iterator[Change]:
    function = ""
    for part in re.split(r"^(### .*|```diff\n(?:.*\n)*?```)$", PAGE.read_text(), flags=re.M):
        if part.startswith("###"):
            function = part.strip("#` ")
        elif part.startswith("```"):
            lines = part.splitlines()
            yield Change(function, *(_of(lines, sign) for sign in "-+"))


def _of(lines: list[str], sign: str) -> tuple[str, ...]:
    """What a diff takes away or puts in its place, without the indentation."""
    return tuple(line[1:].strip() for line in lines if line.startswith(sign))


if __name__ == "__main__":
    sys.exit(main())
