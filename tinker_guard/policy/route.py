"""Which URLs lie on trainer routes: patterns of base URLs, and what one of them captures."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from tinker_guard.policy.template import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx

FIREWORKS: Final = "/training/v1/rlorTrainerJobs/{account}/{job}"
"""The pattern that is always there."""

HOT_LOAD: Final = "/hot_load/v1/models"
"""Base path of hot-loads at Fireworks. All deployments share it: a header names the one."""
INFERENCE: Final = "/inference/v1"
"""Base path of completions at Fireworks. All deployments share it: the body names the one."""
DEPLOYMENT_HEADER: Final = "fireworks-deployment"


# -- what was captured -----------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Route:
    """The place of one trainer: a base URL, and the names in it."""

    origin: str
    """Scheme, host and port of the gateway, such as `https://api.example.com`."""
    path: str
    """The path of the trainer's base URL, without a slash at its end. It may hold a secret."""
    captured: tuple[tuple[str, str], ...] = ()
    """What the pattern's placeholders stand for, in their order. Values of names that begin with an
    underscore are never recorded."""
    recorded_path: str = ""
    """The path with the placeholders themselves in the place of such values."""

    @classmethod
    def of_job(cls, origin: str, account: str, job: str) -> Route:
        """The route of a Fireworks trainer job."""
        path = FIREWORKS.format(account=account, job=job)
        return cls(origin, path, (("account", account), ("job", job)), path)

    @classmethod
    def of_deployment(
        cls, base: str, scheme: str, host: str, port: int | None, name: str
    ) -> Route | None:
        """The route of a deployment of Fireworks, by which it is hot-loaded or asked to complete.

        Args:
            base: `HOT_LOAD` or `INFERENCE`.
            scheme: Of the URL.
            host: Of the URL; an IPv6 address without brackets.
            port: Of the URL; None if it is the scheme's.
            name: What the request says: `accounts/{account}/deployments/{deployment}`. None comes
                of anything else.
        """
        found = re.fullmatch(_DEPLOYMENT, name)
        if found is None:
            return None
        captured = ("account", found[1]), ("deployment", found[2])
        return cls(_origin(scheme, host, port), base, captured, base)

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What each placeholder stands for, by its name. Not all may be recorded."""
        return dict(self.captured)

    @property
    def ids(self) -> tuple[str, ...]:
        """What placeholders stand for: words that users have chosen. Not all may be recorded."""
        return tuple(value for _, value in self.captured)

    @cached_property
    def account(self) -> str | None:
        """What `{account}` stands for, if there is one in the pattern."""
        return self.names.get("account")

    @cached_property
    def job(self) -> str | None:
        """What `{job}` stands for, if there is one in the pattern."""
        return self.names.get("job")

    @cached_property
    def deployment(self) -> str | None:
        """The deployment of Fireworks that a request names; None on a trainer route."""
        is_named = list(self.names) == ["account", "deployment"]
        return self.names["deployment"] if is_named and self.path in (HOT_LOAD, INFERENCE) else None

    @property
    def has_probe(self) -> bool:
        """Whether there is a question whose answer shows that the route is reached."""
        return self.deployment is None or self.path != INFERENCE

    @cached_property
    def is_named_by_job(self) -> bool:
        """Whether account and job, and nothing else, tell it apart from others of its gateway."""
        return set(self.names) == {"account", "job"}

    @cached_property
    def is_fireworks(self) -> bool:
        """Whether its path is that of a Fireworks trainer job."""
        return self.is_named_by_job and self.path == FIREWORKS.format(**self.names)

    @property
    def url(self) -> str:
        """The trainer's base URL, without a slash at its end. It may hold a secret."""
        return self.origin + self.path

    @property
    def recorded_url(self) -> str:
        """The same as it may be shown; of a deployment, which no base URL names, the state's."""
        if self.deployment is not None:
            return f"{self.origin}/v1/accounts/{self.account}/deployments/{self.deployment}"
        return self.origin + self.recorded_path

    @cached_property
    def subject(self) -> str:
        """What log lines call it: `job acc/job-1`, `deployment acc/dep-1`, or its shown URL."""
        if self.deployment is not None:
            return f"deployment {self.account}/{self.deployment}"
        return f"job {self}" if self.is_named_by_job else str(self)

    def __str__(self) -> str:
        return f"{self.account}/{self.job}" if self.is_named_by_job else self.recorded_url

    def __repr__(self) -> str:
        return f"Route({self.recorded_url!r})"


# -- one pattern -----------------------------------------------------------------------------------

# Unreserved characters only (RFC 3986, 2.3): an id with an escape in it could mean another
# path to the control plane than it does to the gateway, so such a URL is no trainer route.
_UNRESERVED: Final = "[A-Za-z0-9._~-]+"
_SEGMENT: Final = re.compile(_UNRESERVED)
_CAPTURED_SEGMENT: Final = rf"(?!\.{{1,2}}/)({_UNRESERVED})"
_WHERE: Final = re.compile(r"(https?)://([^/]*)(.*)", re.IGNORECASE | re.DOTALL)
# These are compiled where they are first needed: few programs do, and it takes time at the start.
_DEPLOYMENT: Final = rf"accounts/{_CAPTURED_SEGMENT}/deployments/(?!\.{{1,2}}\Z)({_UNRESERVED})"
_AUTHORITY: Final = r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?"
_LABEL: Final = "[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL})*"
_DOMAIN: Final = rf"{_HOST}\.[a-z](?:[a-z0-9-]*[a-z0-9])?"
"""Of two labels or more, and no address: what follows the label that holds a placeholder."""
_PORTS: Final = {"http": 80, "https": 443}
_SEPARATOR: Final = r"(?:[/\\]|%(?:25)*(?:2f|5c))"
_DOT_SEGMENT: Final = re.compile(
    rf"{_SEPARATOR}(?:\.|%(?:25)*2e){{1,2}}(?=;|%(?:25)*3b|{_SEPARATOR}|\Z)", re.IGNORECASE
)


def leads_elsewhere(path: str) -> bool:
    """Whether a raw path holds a dot segment, which a server may resolve: another job's path then.

    Servers differ in what they take for one, so escapes count, of escapes too, and so do
    backslashes and the parameters of a segment (`..;x`).
    """
    return _DOT_SEGMENT.search(path) is not None


class RoutePattern(NamedTuple):
    """One pattern of base URLs; see `parse_pattern`."""

    text: str
    scheme: str | None
    """None, as host and port, if the gateway may be anywhere."""
    host: str | None
    """A whole host; None if it holds a placeholder."""
    label: re.Pattern[str] | None
    """What the host's first label must look like, if a placeholder stands in it."""
    domain: str
    """What follows that label."""
    port: int | None
    segments: tuple[str, ...]
    path: re.Pattern[str]
    """What a path must begin with: the base URL's path, and the slash behind it."""
    names: tuple[str, ...]
    """The placeholders, in their order."""

    def base_of(self, host: str, path: str) -> str | None:
        """The path of the base URL in a URL's; None if the pattern does not explain that."""
        at_path = self.path.match(path)
        if at_path is None:
            return None
        if self.label is not None and not self.label.fullmatch(host.partition(".")[0]):
            return None
        return at_path[0]

    def route(self, scheme: str, host: str, port: int | None, base: str) -> Route:
        """The route of a base URL that the pattern explains.

        Args:
            scheme: Of the URL.
            host: Of the URL.
            port: Of the URL; None if it is the scheme's.
            base: What `base_of` gives.
        """
        at_path = self.path.match(f"{base}/")
        assert at_path is not None
        values = at_path.groups()
        if self.label is not None:
            at_host = self.label.fullmatch(host.partition(".")[0])
            assert at_host is not None
            values = (*at_host.groups(), *values)
        captured = tuple(zip(self.names, values, strict=True))
        public = dict(captured)
        shown = [
            segment if segment.startswith("{_") else segment.format_map(public)
            for segment in self.segments
        ]
        recorded = "".join(f"/{segment}" for segment in shown)
        return Route(_origin(scheme, host, port), base, captured, recorded)


def _origin(scheme: str, host: str, port: int | None) -> str:
    authority = f"[{host}]" if ":" in host else host
    return f"{scheme}://{authority}" + ("" if port is None else f":{port}")


def parse_pattern(text: str) -> RoutePattern:
    """Read a pattern of base URLs.

    `/trainers/{job}` is at any host, `https://{ws}--app.modal.run` at hosts like that, and
    `http://head:8000` is all of one server. `{name}` is one segment of the path, or a part of the
    host's first label; the value of `{_name}` is never recorded.

    Raises:
        ValueError: It is none. The message says what is wrong, but shows nothing of the pattern,
            in which a key may stand.
    """
    if "?" in text or "#" in text:
        raise ValueError("holds a query or a fragment")
    if "%" in text or "\\" in text:
        raise ValueError("holds an escape")
    where = _WHERE.fullmatch(text)
    if where is None and not text.startswith("/"):
        raise ValueError("begins neither with / nor with http:// or https://")
    if where is None:
        scheme, host, port, label, domain = None, None, None, None, ""
        names: list[str] = []
        path = text
    else:
        scheme, path = where[1].lower(), where[3]
        host, port, label, domain, names = _parse_authority(scheme, where[2])
    segments = path.removesuffix("/").split("/")[1:]
    placeholders = [_parse_segment(segment) for segment in segments]
    if scheme is None and not any(name is None for name in placeholders):
        raise ValueError("has no fixed part, so that it would match any server: name its host")
    names += [name for name in placeholders if name is not None]
    if len(set(names)) < len(names):
        raise ValueError("holds the same placeholder twice")
    parts = [
        re.escape(segment) if name is None else _CAPTURED_SEGMENT
        for segment, name in zip(segments, placeholders, strict=True)
    ]
    expression = re.compile("".join(f"/{part}" for part in parts) + "(?=/)")
    return RoutePattern(
        text, scheme, host, label, domain, port, tuple(segments), expression, tuple(names)
    )


def _parse_segment(segment: str) -> str | None:
    """The name of the placeholder that a segment is; None if it is a fixed one."""
    if not segment:
        raise ValueError("holds an empty segment")
    if segment in (".", ".."):
        raise ValueError("holds a . or .. segment, which would lead elsewhere")
    placeholder = PLACEHOLDER.fullmatch(segment)
    if placeholder is not None:
        return placeholder[1]
    if "{" in segment or "}" in segment:
        raise ValueError(
            "holds a placeholder that is no whole segment, or whose name is not letters, digits "
            "and _: it should look like {job}, or {_key} if it is not to be recorded"
        )
    if not _SEGMENT.fullmatch(segment):
        raise ValueError("holds other characters than letters, digits and ._~- in its path")
    return None


def _parse_authority(
    scheme: str, authority: str
) -> tuple[str | None, int | None, re.Pattern[str] | None, str, list[str]]:
    """Host, port, expression of the first label, domain behind it, and names."""
    if "@" in authority:
        raise ValueError("holds a user name")
    parts = re.fullmatch(_AUTHORITY, authority)
    if parts is None:
        raise ValueError("names no host, or one with a port that is none")
    if not authority.isascii():
        raise ValueError("must name its host in ASCII (xn--...)")
    host, port = parts[1].lower(), None if parts[2] is None else int(parts[2])
    if port is not None and not 0 < port < 65536:
        raise ValueError("must have a port from 1 to 65535")
    if port == _PORTS[scheme]:
        port = None
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError("names an address in brackets that is none") from None
        return str(address), port, None, "", []
    if "{" in host or "}" in host:
        # As it was written: a placeholder's name has upper and lower case.
        label, domain, name = _parse_label(parts[1])
        return None, port, label, domain, [name]
    if not re.fullmatch(rf"{_HOST}\.?", host):
        raise ValueError("names a host with other characters than letters, digits and .-_")
    return host, port, None, "", []


def _parse_label(host: str) -> tuple[re.Pattern[str], str, str]:
    """Expression of the first label, domain behind it, and the placeholder's name."""
    first, _, domain = host.partition(".")
    pieces = PLACEHOLDER.split(first)
    if len(pieces) != 3 or "{" in domain or "}" in domain:
        raise ValueError(
            "holds a placeholder in its host that is not the only one, or not in the first label: "
            "it should look like https://{workspace}--app.modal.run"
        )
    before, name, after = pieces
    if name.startswith("_"):
        raise ValueError(
            "would hide a part of its host, which name servers and proxies see: leave out the _"
        )
    if not re.fullmatch("[a-z0-9-]*", (before + after).lower()):
        raise ValueError("names a host with other characters than letters, digits and .-")
    if not re.fullmatch(_DOMAIN, domain.lower()):
        raise ValueError(
            "holds a placeholder in its host without a domain of two names or more behind it, such "
            "as .modal.run"
        )
    expression = re.compile(f"{re.escape(before.lower())}({_LABEL}){re.escape(after.lower())}")
    return expression, domain.lower(), name


# -- all patterns of a guard -----------------------------------------------------------------------


class RoutePatterns:
    """The patterns of one guard. The one with the most segments is tried first.

    Looked up by what they begin with, so that a URL which none of many patterns explains costs no
    more than with one.
    """

    __slots__ = ("_anywhere", "_by_domain", "_by_first_segment", "_by_origin", "texts")

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts: tuple[str, ...] = tuple(texts)
        self._by_origin: dict[tuple[str, str, int | None], list[_Ranked]] = {}
        self._by_domain: dict[tuple[str, str, int | None], list[_Ranked]] = {}
        self._by_first_segment: dict[str, list[_Ranked]] = {}
        self._anywhere: list[_Ranked] = []
        for position, text in enumerate(self.texts):
            pattern = parse_pattern(text)
            ranked = _rank(pattern, position), pattern
            if pattern.scheme is None:
                first = pattern.segments[0]
                if first.startswith("{"):
                    self._anywhere.append(ranked)
                else:
                    self._by_first_segment.setdefault(first, []).append(ranked)
            elif pattern.host is not None:
                key = (pattern.scheme, pattern.host, pattern.port)
                self._by_origin.setdefault(key, []).append(ranked)
            else:
                key = (pattern.scheme, pattern.domain, pattern.port)
                self._by_domain.setdefault(key, []).append(ranked)

    def find(
        self, scheme: str, host: str, port: int | None, path: str
    ) -> tuple[RoutePattern, str] | None:
        """The pattern of a URL and the path of its base URL; None if it is on no trainer route.

        Args:
            scheme: Of the URL, in lower case.
            host: Of the URL, in lower case; an IPv6 address without brackets.
            port: Of the URL; None if it is the scheme's.
            path: The raw path, without the query.
        """
        found: list[_Ranked] = []
        if self._by_origin:
            found += self._by_origin.get((scheme, _canonical(host), port), ())
        if self._by_domain:
            found += self._by_domain.get((scheme, host.partition(".")[2], port), ())
        first = path[1:].partition("/")[0]
        found += self._by_first_segment.get(first, ())
        found += self._anywhere
        if not found or scheme not in _PORTS or not host:
            return None
        for _, pattern in sorted(found):
            base = pattern.base_of(host, path)
            if base is not None:
                return None if leads_elsewhere(path) else (pattern, base)
        return None

    def route_of(self, url: httpx.URL) -> Route | None:
        """The trainer route that a URL lies on; None if it lies on none."""
        scheme, _, host, port, path, _, _ = url._uri_reference
        found = self.find(scheme, host, port, path)
        if found is None:
            return None
        pattern, base = found
        return pattern.route(scheme, host, port, base)


def _canonical(host: str) -> str:
    """An IPv6 address in its one form; any other host as it is."""
    if ":" in host:
        with suppress(ValueError):
            return str(ipaddress.IPv6Address(host))
    return host


_Rank = tuple[int, bool, bool, int, int]
_Ranked = tuple[_Rank, RoutePattern]


def _rank(pattern: RoutePattern, position: int) -> _Rank:
    """More segments first, then the nearer named host, then fewer placeholders."""
    is_anywhere, has_open_host = pattern.scheme is None, pattern.host is None
    return -len(pattern.segments), is_anywhere, has_open_host, len(pattern.names), position


@lru_cache(maxsize=64)
def patterns_of(texts: tuple[str, ...] = ()) -> RoutePatterns:
    """The patterns of a guard: those of its setting, and that of Fireworks' trainer jobs.

    Raises:
        ValueError: One of them is none.
    """
    return RoutePatterns(texts if FIREWORKS in texts else (*texts, FIREWORKS))


SERVERLESS: Final = "/training/v1/serverless"
"""Base path of Fireworks' serverless training. No job stands in it that could be asked for: the
session is in bodies, and the account behind the key. Guarded only where the setting `routes` has
it."""


def suggest_pattern(url: httpx.URL) -> str:
    """A pattern by which a base URL would be guarded. It shows nothing of a path that is not known.

    Args:
        url: The base URL.
    """
    path = url.raw_path.partition(b"?")[0].decode("ascii").rstrip("/")
    if path == SERVERLESS:
        return path
    parts = [f"/{{_part{number + 1}}}" for number in range(path.count("/"))]
    return f"{url.scheme}://{url.netloc.decode('ascii')}{''.join(parts)}"


def last_segment(raw_path: bytes) -> bytes:
    """The last segment of a request's path, which names its operation.

    Args:
        raw_path: The request's path and query.
    """
    return raw_path.partition(b"?")[0].rpartition(b"/")[2]
