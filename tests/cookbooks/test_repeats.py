"""What SkyRL's real server does with a request that is sent again because its reply was lost."""

from __future__ import annotations

from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

import pytest

from tests.cookbooks.judge import surroundings
from tinker_guard import install_guard
from tinker_guard.gateway import Fault, LostReply

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cookbooks.server import Server

pytestmark = pytest.mark.skipif(
    find_spec("skyrl") is None, reason="needs skyrl; `make cookbooks` installs and runs it"
)

_SAME, _ANOTHER = "the same", "another"
_REPEATS: Final = {
    "create_session": (200, _ANOTHER),
    "create_model": (200, _ANOTHER),
    "forward_backward": (200, _SAME),
    "optim_step": (200, _SAME),
    "save_weights": (409, None),
    "save_weights_for_sampler": (409, None),
    "create_sampling_session": (200, _ANOTHER),
    "asample": (200, _ANOTHER),
    "load_weights": (400, None),
}
"""What each operation's repeat is answered, and whether that is the promise of the first time."""


@pytest.mark.parametrize("operation", _REPEATS)
def test_a_repeat(
    operation: str, server: Server, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tests.cookbooks.loops import ask_for_everything

    install_guard()
    gateway = server.behind(Fault(lost_replies=(LostReply(operation),)))
    with gateway, surroundings(gateway.api_key), suppress(Exception):
        ask_for_everything(gateway, str(model))
    answers = [answer for answer in gateway.forwarding.answers if answer[0] == operation]
    server.forget(gateway)

    (_, first_status, first), (_, status, promise) = answers[:2]
    assert first_status == 200
    came_of_it = None
    if status == 200:
        came_of_it = _SAME if promise == first else _ANOTHER
    assert (status, came_of_it) == _REPEATS[operation]
    assert any("(409)" in line for line in caplog.messages) is (status == 409)
