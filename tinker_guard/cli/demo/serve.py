"""Serves the local gateway to a user's own training loop."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Final

from tinker_guard.gateway import Exchange, Fault, LocalGateway

if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_EVERY: Final = 0.2


def serve(fault: Fault, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; prints one line for each 404 and each lookup.

    Args:
        fault: What is wrong with the gateway.
        host: Address to serve on.
        port: Port to serve on; 0 takes a free one.
        say: Called with each line.

    Raises:
        OSError: The port is taken, or the address does not belong to this machine.
    """
    # Set here because a shell's background job starts with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with LocalGateway(fault, host=host, port=port) as gateway:
            said = f": {fault.description}" if fault.description else ""
            say(f"Serving a gateway with the fault {fault.name!r}{said}.")
            say("")
            say(f"  export TINKER_BASE_URL={gateway.base_url}")
            say(f"  export TINKER_API_KEY={gateway.api_key}")
            say("")
            say("The fault happens once: restart the gateway before the next run. Ctrl-C ends it.")
            seen: set[int] = set()
            while True:
                _say_new(gateway, seen, say)
                threading.Event().wait(_LOOK_EVERY)
    except KeyboardInterrupt:
        say("Stopped.")


def _say_new(gateway: LocalGateway, seen: set[int], say: Callable[[str], None]) -> None:
    # A late answer is inserted before exchanges that were printed already, so a count is not
    # enough. The gateway keeps all exchanges, so their ids stay unique.
    for exchange in gateway.requests:
        if id(exchange) not in seen:
            seen.add(id(exchange))
            if (line := line_of(exchange)) is not None:
                say(line)


def line_of(exchange: Exchange) -> str | None:
    """The line for one exchange; None for an unimportant one."""
    when = f"{exchange.at:8.2f} s  "
    if exchange.answered_by == "control_plane":
        answer = exchange.status or "dropped"
        return f"{when}{answer}  control plane asked: {exchange.method} {exchange.path}"
    if exchange.status != 404:
        return None
    who = "the trainer" if exchange.answered_by == "trainer" else f"replica {exchange.replica}"
    seq_id = "" if exchange.seq_id is None else f", seq_id {exchange.seq_id}"
    return f"{when}404  {exchange.method} {exchange.path} from {who}{seq_id}"
