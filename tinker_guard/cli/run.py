"""`tinker-guard run`: starts an unchanged program with the guard.

It needs no extra and imports next to nothing, so that a program loads only its own modules.
"""

from __future__ import annotations

import os
import signal
import sys

from tinker_guard.install.child_env import STRICT, inject, is_strict

USAGE = """\
Usage: tinker-guard run [--strict] [--] COMMAND [ARGUMENT]...

Starts a program with the guard in it and in every Python process that it
starts. Nothing else changes: same process, same signals, same exit code.

    tinker-guard run python train.py --steps 100
    tinker-guard run train.py
    tinker-guard run -m my_package.train
    tinker-guard run torchrun --nproc-per-node 4 train.py

With --strict, what would run unguarded stops with an error instead: an SDK
release that the guard cannot hook, a Python without tinker_guard, a setting
that cannot work, python -E, -I or -S.

An SDK (tinker, fireworks-ai) is guarded when the program imports it, by the
TINKER_GUARD_* variables. A program that imports none is left alone. With
OpenTelemetry's launcher:

    tinker-guard run opentelemetry-instrument python train.py
"""

_USAGE_ERROR = 2
# The exit codes of a shell.
_CANNOT_EXECUTE = 126
_NOT_FOUND = 127


def run(arguments: list[str]) -> int:
    """Replace this process by a command, with the guard in its environment.

    Args:
        arguments: The words after `tinker-guard run`.

    Returns:
        The exit code if the command could not be started; on Windows, always the exit code.
    """
    if arguments[:1] in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        return 0
    is_strict_here = arguments[:1] == ["--strict"]
    rest = arguments[is_strict_here:]
    command = rest[1:] if rest[:1] == ["--"] else rest
    if not command:
        sys.stderr.write(f"{USAGE}\ntinker-guard run: which command?\n")
        return _USAGE_ERROR
    if command[0] in ("-m", "-c") or command[0].endswith(".py"):
        command = [sys.executable, *command]
    if is_strict_here:
        os.environ[STRICT] = "true"
    if is_strict(os.environ) and (option := option_against_guard(command)):
        sys.stderr.write(
            f"tinker-guard run: {command[0]} {option} would run unguarded, and strict is set: "
            "Python ignores PYTHONPATH with -E and -I, and sitecustomize with -S.\n"
        )
        return _CANNOT_EXECUTE
    inject(os.environ)
    try:
        return _become(command)
    except (OSError, ValueError) as error:
        if _is_missing(command[0], error):
            sys.stderr.write(f"tinker-guard run: there is no command {command[0]!r}.\n")
            return _NOT_FOUND
        why = error.strerror if isinstance(error, OSError) else error
        if isinstance(error, FileNotFoundError):
            why = "the program that its first line names is missing"
        sys.stderr.write(f"tinker-guard run: cannot start {command[0]!r}: {why}.\n")
        return _CANNOT_EXECUTE


def option_against_guard(command: list[str]) -> str | None:
    """The option that keeps the guard from a Python; None if the command shows none.

    Args:
        command: A program and its arguments.
    """
    name = os.path.basename(command[0]).lower().removesuffix(".exe")
    # Such as python3.14t, pythonw and pypy3.
    if name.rstrip("0123456789.tw") not in ("python", "pypy"):
        return None
    words = iter(command[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "--"):
            return None
        if word == "--check-hash-based-pycs":
            next(words, None)
        if word.startswith("--"):
            continue
        for place, letter in enumerate(word[1:], start=2):
            if letter in "EIS":
                return f"-{letter}"
            if letter in "cm":
                return None
            if letter in "WX":
                # The rest of the word is its value, or else the next word.
                if place == len(word):
                    next(words, None)
                break
    return None


def _is_missing(name: str, error: Exception) -> bool:
    if not name:
        # Looked up in PATH, it would be each of the directories.
        return True
    if isinstance(error, NotADirectoryError):
        # Without a slash, it is a place of PATH that is no directory.
        return not os.path.dirname(name)
    if not isinstance(error, FileNotFoundError):
        return False
    from shutil import which

    return which(name) is None


def _become(command: list[str]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        for name in ("SIGPIPE", "SIGXFSZ"):
            # Python ignores these signals, and the new program would inherit this.
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - the user's own command, without a shell
    # On Windows, `exec` would not wait for the new process.
    import subprocess

    return subprocess.call(command)  # noqa: S603
