"""Removes possible keys from the URLs of other instrumentations in exported spans."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from opentelemetry.sdk.trace import SpanProcessor

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import Span

_URLS: Final = ("url.full", "http.url")
_MAY_BE_SECRET: Final = re.compile(r"(?<=://)[^/?#]*@|[?#].*", re.DOTALL)


class WithoutSecrets(SpanProcessor):
    """Removes user name, query and fragment from URLs at the start of spans, such as pyqwest's."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Shorten the URL of one span."""
        for name in _URLS:
            url = (span.attributes or {}).get(name)
            if isinstance(url, str) and (found := _MAY_BE_SECRET.sub("", url)) != url:
                span.set_attribute(name, found)
