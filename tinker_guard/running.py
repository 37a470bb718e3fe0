"""`tinker-guard run`: starts a program that guards its SDKs without a line of its own.

It needs no extra and imports next to nothing, so that a program pays only for what it uses.
"""

from __future__ import annotations

import os
import signal
import sys

from tinker_guard.children import bequeath

USAGE = """\
Usage: tinker-guard run [--] COMMAND [ARGUMENT]...

Starts a program with the guard in it and in every Python process that it starts. Nothing else
changes: same process, same signals, same exit code.

    tinker-guard run python train.py --steps 100
    tinker-guard run train.py
    tinker-guard run -m my_package.train
    tinker-guard run torchrun --nproc-per-node 4 train.py

An SDK (tinker, fireworks-ai) is guarded when the program imports it, by the TINKER_GUARD_*
variables. A program that imports none is left alone. With OpenTelemetry's launcher:

    tinker-guard run opentelemetry-instrument python train.py
"""

_USAGE_ERROR = 2
# What a shell says for these.
_CANNOT_EXECUTE = 126
_NOT_FOUND = 127


def run(arguments: list[str]) -> int:
    """Become a command, with the guard in its environment.

    Args:
        arguments: What stands after `tinker-guard run`.

    Returns:
        The exit code, if the command could not be started; on Windows, always.
    """
    if arguments[:1] in (["--help"], ["-h"]):
        sys.stdout.write(USAGE)
        return 0
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    if not command:
        sys.stderr.write(f"{USAGE}\ntinker-guard run: which command?\n")
        return _USAGE_ERROR
    if command[0] in ("-m", "-c") or command[0].endswith(".py"):
        command = [sys.executable, *command]
    bequeath(os.environ)
    try:
        return _become(command)
    except FileNotFoundError:
        sys.stderr.write(f"tinker-guard run: there is no command {command[0]!r}.\n")
        return _NOT_FOUND
    except OSError as error:
        sys.stderr.write(f"tinker-guard run: cannot start {command[0]!r}: {error.strerror}.\n")
        return _CANNOT_EXECUTE


def _become(command: list[str]) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name != "nt":
        for name in ("SIGPIPE", "SIGXFSZ"):
            # Python ignores these, and what it ignores a new program would ignore too.
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.execvp(command[0], command)  # noqa: S606 - the user's own command, without a shell
    # There, the new process would not be waited for.
    import subprocess

    return subprocess.call(command)  # noqa: S603
