"""The headers and extensions that make a request arrive: probes and lookups copy them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import httpx

from tinker_guard.policy.pacing import is_over

if TYPE_CHECKING:
    from collections.abc import Mapping

_HEADERS: Final = frozenset(
    {
        # Where the request goes, and who sends it.
        b"host",
        b"authorization",
        b"proxy-authorization",
        b"x-api-key",
        b"user-agent",
        # Keys under other names: Kong, Azure API Management, Google's gateways.
        b"api-key",
        b"apikey",
        b"ocp-apim-subscription-key",
        b"x-goog-api-key",
        b"x-functions-key",
        b"x-auth-token",
        b"x-access-token",
        b"private-token",
        # Credentials for what is in front: Cloudflare Access, Google Cloud Run, Vercel, Modal.
        b"cf-access-client-id",
        b"cf-access-client-secret",
        b"cf-access-token",
        b"x-serverless-authorization",
        b"x-vercel-protection-bypass",
        b"modal-key",
        b"modal-secret",
        # Whose trainer is meant, where one gateway serves several tenants.
        b"x-tenant",
        b"x-tenant-id",
        # Twinkle's, for hosts that take `Authorization` for themselves.
        b"twinkle-authorization",
        # What Fireworks' gateway finds a deployment by.
        b"fireworks-deployment",
        b"fireworks-model",
    }
)
"""All that is copied. A cookie is not among them: a balancer's would pin every probe to the replica
that lacks the route. Nor is anything that describes a body, a trace or the request's identity: a
probe must not look like a repeat of the request (`Idempotency-Key`)."""

_BEHIND_THE_GATEWAY: Final = frozenset({b"fireworks-deployment", b"fireworks-model"})
"""What leads past a gateway that is a control plane too."""

_STICKY: Final = frozenset({b"serve_multiplexed_model_id", b"serve-multiplexed-model-id"})
"""Ray Serve picks the replica by them."""
_OF_STICKY: Final = _STICKY | {b"x-request-id", b"x-ray-serve-request-id"}
"""Twinkle gives them all one value for the whole process, and refuses requests without. Elsewhere
`X-Request-Id` is the identity of one request, so that it is copied beside the others alone."""

_COPIED: Final = _HEADERS | _OF_STICKY

_EXTENSIONS: Final = ("sni_hostname",)


_CREDENTIAL: Final = re.compile(
    rb"(?!.*idempotency)(?:.*[-_])?"
    rb"(?:auth|authorization|token|key|secret|tenant|credentials?|jwt|assertion)"
)


def credentials_of(request: httpx.Request) -> list[tuple[bytes, bytes]]:
    """All headers of a request that may say who asks, by their names in lower case.

    More than are copied: whose answer one may use must not depend on a list of names being whole.
    """
    return [(name, value) for _, name, value in request.headers._list if _may_be_credential(name)]


@lru_cache(maxsize=256)
def _may_be_credential(name: bytes) -> bool:
    return _CREDENTIAL.fullmatch(name) is not None


class Reach(NamedTuple):
    """The headers, as bytes, and the extensions of a request that make it arrive."""

    headers: tuple[tuple[bytes, bytes], ...]
    extensions: Mapping[str, Any]

    @classmethod
    def of(cls, request: httpx.Request) -> Reach:
        """Take them from a request."""
        # Each with its name in lower case. httpx's public properties build a list of their own.
        found = [header for header in request.headers._list if header[1] in _COPIED]
        is_sticky = any(lowered in _STICKY for _, lowered, _ in found)
        return cls(
            tuple(
                (name, value)
                for name, lowered, value in found
                if is_sticky or lowered not in _OF_STICKY
            ),
            {name: request.extensions[name] for name in _EXTENSIONS if name in request.extensions},
        )

    def __repr__(self) -> str:
        """The names of the headers alone: a key stands among their values."""
        return f"Reach({b', '.join(name for name, _ in self.headers).decode('latin-1')})"

    def to_origin(self) -> Reach:
        """The same for a question to the gateway's own origin, not to what is behind it."""
        kept = [pair for pair in self.headers if pair[0].lower() not in _BEHIND_THE_GATEWAY]
        return Reach(tuple(kept), self.extensions)


Cookies: TypeAlias = tuple[tuple[bytes, bytes], ...]
"""Names and values."""


_OVER: Final = re.compile(rb"\s*max-age\s*=\s*(?:-\d+|0+)\s*", re.IGNORECASE)
_EXPIRES: Final = re.compile(rb"\s*expires\s*=\s*(.*)", re.IGNORECASE)


def cookies_set_by(response: httpx.Response) -> Cookies:
    """The cookies that a response sets: a balancer's pin the next request to the same replica.

    One that the response takes back is not among them: the request keeps its own of that name. Nor
    is a login's, which a server may give to whoever comes without.
    """
    headers = response.headers
    cookies = [value.split(b";") for name, value in headers.raw if name.lower() == b"set-cookie"]
    pairs = (
        pair.partition(b"=")
        for pair, *attributes in cookies
        if not any(_takes_back(attribute, headers) for attribute in attributes)
    )
    named = ((name.strip(), value.strip()) for name, _, value in pairs)
    return tuple((name, value) for name, value in named if name and not _LOGINS.fullmatch(name))


# Of web frameworks, load balancers that log in (AWS, Azure, Google), Kubeflow, oauth2-proxy and its
# like, Cloudflare Access. Not JSESSIONID, which balancers choose a replica by, nor a name that says
# what else it is for.
_LOGINS: Final = re.compile(
    rb"(?!.*jsessionid|.*(?:affinity|sticky|stickiness|route|server|replica|backend|upstream))"
    rb".*(?:session|sess(?=id)|auth|token|login|csrf|xsrf|jwt|connect\.sid|(?<![a-z])sid(?![a-z])"
    rb"|oauth2_proxy|\.aspnetcore\.|(?<![a-z])iap(?![a-z])).*",
    re.IGNORECASE | re.DOTALL,
)


def _takes_back(attribute: bytes, headers: httpx.Headers) -> bool:
    """Whether a cookie with such an attribute is over as it is set (RFC 6265, 5.2)."""
    if _OVER.fullmatch(attribute):
        return True
    expires = _EXPIRES.fullmatch(attribute)
    # By the clock of whoever wrote the response: this machine's may be wrong.
    return expires is not None and is_over(expires[1].decode("ascii", "replace"), headers)


def with_cookies(request: httpx.Request, cookies: Cookies) -> httpx.Request:
    """A request that carries cookies in the place of its own of the same names.

    Everything else is the very same; the request that was given, and the caller's cookie jar, stay
    as they are.
    """
    if not cookies:
        return request
    headers = list(request.headers.raw)
    values, places = dict(cookies), []
    missing = dict(values)
    for place, (name, value) in enumerate(headers):
        if name.lower() == b"cookie":
            places.append(place)
            pairs = [pair.partition(b"=") for pair in value.split(b";")]
            pinned = [
                key + b"=" + values[key.strip()] if key.strip() in values else key + equals + old
                for key, equals, old in pairs
            ]
            headers[place] = name, b";".join(pinned)
            for key, _, _ in pairs:
                missing.pop(key.strip(), None)
    added = b"; ".join(name + b"=" + value for name, value in missing.items())
    if added and places:
        name, value = headers[places[-1]]
        headers[places[-1]] = name, value + b"; " + added
    elif added:
        headers.append((b"Cookie", added))
    return with_headers(request, httpx.Headers(headers))


def with_headers(request: httpx.Request, headers: httpx.Headers) -> httpx.Request:
    """The same request, with other headers."""
    # `copy.copy` would lose stream and extensions, timeouts among them.
    twin = object.__new__(type(request))
    vars(twin).update(vars(request))
    twin.headers = headers
    return twin


def copy_of(request: httpx.Request) -> httpx.Request:
    """A request that stays as it is whatever is done to this one."""
    # `headers.copy()` would try encodings on every value first.
    twin = with_headers(request, type(request.headers)(request.headers))
    # Time-outs are a dictionary in a dictionary.
    twin.extensions = {
        name: value.copy() if isinstance(value, dict) else value
        for name, value in request.extensions.items()
    }
    return twin
