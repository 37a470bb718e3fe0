"""Keeps the documentation site whole without the network: other hosts' addresses fail the build.

MkDocs calls `on_post_page`; a warning fails a strict build.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

_logger: Final = logging.getLogger("mkdocs.hooks.site")

_ELSEWHERE: Final = r"""["']?(?:https?:)?//[^"'>)\s]+"""
# What a browser fetches by itself, unlike the target of an <a>.
_FETCHED: Final = re.compile(
    rf"""
    <(?:script|img|iframe|source|video|audio|embed|object|use)\b[^>]*?
        \b(?:src|srcset|data|href)\s*=\s*{_ELSEWHERE}
    | <link\b(?![^>]*\brel=["']?(?:canonical|next|prev)\b)[^>]*?\bhref\s*=\s*{_ELSEWHERE}
    | (?:@import\s*|url\()\s*{_ELSEWHERE}
    | class=["']?mermaid\b  # the theme fetches the library that draws it
    """,
    re.VERBOSE | re.IGNORECASE,
)


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """Warn of each address that a browser would fetch from elsewhere."""
    for match in _FETCHED.finditer(output):
        _logger.warning("%s fetches from elsewhere: %s", page.file.src_path, match[0])
    return output
