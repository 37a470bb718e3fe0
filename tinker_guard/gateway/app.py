"""A world as an ASGI application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from .wire import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from .in_process import LoopedWorld

    Message: TypeAlias = MutableMapping[str, Any]


class App:
    """Passes HTTP requests to a world.

    Args:
        looped: The world.
    """

    def __init__(self, looped: LoopedWorld) -> None:
        self.looped = looped

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Serve one request; ignore the server's start and end."""
        if scope["type"] != "http":
            return
        headers: dict[str, str] = {}
        for name, value in (
            (n.decode("latin-1"), v.decode("latin-1")) for n, v in scope["headers"]
        ):
            # HTTP/2 may send each cookie in a header of its own.
            headers[name] = f"{headers[name]}; {value}" if name in headers else value
        body, is_more = b"", True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            is_more = message.get("more_body", False)
        call = Call(scope["method"], scope["path"], headers, body, tuple(scope["client"]))
        reply = await self.looped.answer(call)
        # A server closes the connection if the announced body is missing.
        length = len(reply.content) if reply.status else 64
        await send(
            {
                "type": "http.response.start",
                "status": reply.status or 200,
                "headers": [
                    (b"content-type", reply.media_type.encode()),
                    (b"content-length", b"%d" % length),
                    *((name.encode(), value.encode()) for name, value in reply.headers),
                ],
            }
        )
        if reply.status:
            await send({"type": "http.response.body", "body": reply.content})
