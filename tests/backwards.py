"""A plugin that runs the tests backwards: `-p tests.backwards`.

What one test leaves behind can be hidden by the next one in the usual order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import MutableSequence


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: MutableSequence[pytest.Item]) -> None:
    """Turn the order round."""
    items.reverse()
