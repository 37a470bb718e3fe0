"""SkyRL's server, for all tests of this folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cookbooks.server import Server

_MISSING: Final = [name for name in ("skyrl", "tinker_cookbook") if find_spec(name) is None]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip these tests where what they need is missing, and give them time elsewhere."""
    reason = f"needs {', '.join(_MISSING)}; `make cookbooks` installs and runs it"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skipif(bool(_MISSING), reason=reason))
            item.add_marker(pytest.mark.timeout(600))
            # The clients' own, and those of what they leave behind.
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a small model and a tokenizer."""
    from tests.cookbooks.model import make_model

    place = tmp_path_factory.mktemp("model")
    make_model(place)
    return place


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server, which serves this model."""
    from tests.cookbooks.server import running

    with running(model, tmp_path_factory.mktemp("skyrl")) as server:
        yield server
