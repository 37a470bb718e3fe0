"""The model that all tests of this folder train, and SkyRL's server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cookbooks.server import Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give these tests time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
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
