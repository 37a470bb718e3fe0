"""Patterns of base URLs: which URLs they explain, what they capture, and which are refused."""

from __future__ import annotations

import pickle
import re
import string

import httpx
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tinker_guard import GuardSettings, InvalidSettingsError
from tinker_guard.policy.route import (
    FIREWORKS,
    HOT_LOAD,
    Route,
    RoutePatterns,
    parse_pattern,
    patterns_of,
    suggest_pattern,
)


def route_of(url: str, *patterns: str) -> Route | None:
    there = httpx.URL(url)
    host, path = there.raw_host.decode("ascii"), there.raw_path.partition(b"?")[0].decode("ascii")
    found = RoutePatterns(patterns).find(there.scheme, host, there.port, path)
    return None if found is None else found[0].route(there.scheme, host, there.port, found[1])


@pytest.mark.parametrize("origin", ["https://h.test", "http://h.test:81", "http://[::1]:81"])
def test_the_route_of_a_url(origin: str) -> None:
    url = httpx.URL(f"{origin}/training/v1/rlorTrainerJobs/a/j/api/v1/get_info?x=1")
    assert patterns_of().route_of(url) == Route.of_job(origin, "a", "j")
    assert patterns_of().route_of(httpx.URL(f"{origin}/api/v1/get_info")) is None


# -- deployments ---------------------------------------------------------------------------------


def test_the_route_of_a_deployment() -> None:
    route = Route.of_deployment(HOT_LOAD, "https", "h.test", None, "accounts/acc/deployments/dep-1")
    assert route is not None
    assert route.url == "https://h.test/hot_load/v1/models"
    assert route.recorded_path == "/hot_load/v1/models"
    assert (route.account, route.job, route.deployment) == ("acc", None, "dep-1")
    assert route.recorded_url == str(route) == "https://h.test/v1/accounts/acc/deployments/dep-1"
    assert route.subject == "deployment acc/dep-1"
    assert not route.is_named_by_job
    assert not route.is_fireworks


def test_the_route_of_a_deployment_at_a_port() -> None:
    route = Route.of_deployment(HOT_LOAD, "http", "::1", 81, "accounts/a/deployments/d")
    assert route is not None
    assert route.origin == "http://[::1]:81"


@pytest.mark.parametrize(
    "name",
    [
        *("", "accounts/a/deployments/", "accounts//deployments/d", "accounts/a/deployments/d/"),
        *("accounts/a/deployments/d/e", "accounts/../deployments/d", "accounts/a/deployments/.."),
        *("accounts/a/deployments/.", "accounts/a/deployments/%2e", "accounts/a/models/d"),
        *("/accounts/a/deployments/d", "accounts/a/deployments/d\n", "accounts/a/deployments/d?e"),
    ],
)
def test_what_is_no_name_of_a_deployment(name: str) -> None:
    """It would be a part of what the control plane is asked for."""
    assert Route.of_deployment(HOT_LOAD, "https", "h.test", None, name) is None


@pytest.mark.parametrize(
    "origin", ["http://h.test", "http://h.test:8000", "https://h.test", "https://h.test:8443"]
)
def test_a_route_is_at_the_origin_of_its_url(origin: str) -> None:
    route = route_of(f"{origin}/t/d-1/x", "/t/{job}")
    assert route is not None
    assert route.origin == origin


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("https://h.test/t/d-1/x", "/t/{deployment}"),
        ("https://d-1.h.test/inference/v1/x", "https://{deployment}.h.test/inference/v1"),
        (
            "https://d-1.h.test/hot_load/v1/models/x",
            "https://{deployment}.h.test/hot_load/v1/models",
        ),
    ],
)
def test_a_placeholder_of_that_name_makes_no_deployment(url: str, pattern: str) -> None:
    route = route_of(url, pattern)
    assert route is not None
    assert route.deployment is None
    assert route.has_probe
    assert route.recorded_url == route.url


@pytest.mark.parametrize(
    ("url", "job"),
    [
        ("https://h.test/training/v1/rlorTrainerJobs/acc/j-1/api/v1/x", "j-1"),
        ("http://head:8000/t/j.2/", "j.2"),
        ("https://h.test/elsewhere", None),
    ],
)
def test_which_of_the_patterns_explains_a_url(url: str, job: str | None) -> None:
    route = patterns_of(("http://head:8000/t/{job}",)).route_of(httpx.URL(url))
    assert (route and route.job) == job


# -- what a pattern explains -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "url", "base", "captured"),
    [
        ("/t/{job}", "https://any.test/t/j-1/api/v1/x", "https://any.test/t/j-1", {"job": "j-1"}),
        ("/t/{job}", "http://other.test:81/t/j.2/", "http://other.test:81/t/j.2", {"job": "j.2"}),
        ("/a/b", "http://h.test/a/b/c", "http://h.test/a/b", {}),
        ("/a/b/", "http://h.test/a/b/c", "http://h.test/a/b", {}),
        ("/{a}/x/{B2_}", "http://h.test/1/x/2/", "http://h.test/1/x/2", {"a": "1", "B2_": "2"}),
        ("http://head:8000", "http://head:8000/api/v1/x", "http://head:8000", {}),
        ("http://head:8000/", "http://head:8000/", "http://head:8000", {}),
        ("HTTP://Head:8000", "http://HEAD:8000/x", "http://head:8000", {}),
        ("https://h.test:443", "https://h.test/x", "https://h.test", {}),
        ("http://h.test", "http://h.test:80/x", "http://h.test", {}),
        ("http://my_head.ns/a", "http://my_head.ns/a/x", "http://my_head.ns/a", {}),
        ("http://127.0.0.1:1", "http://127.0.0.1:1/x", "http://127.0.0.1:1", {}),
        # Absolute, as names in a cluster are often written.
        ("http://head.svc.:1", "http://head.svc.:1/x", "http://head.svc.:1", {}),
        ("http://[::1]:8000", "http://[::1]:8000/x", "http://[::1]:8000", {}),
        # One address, however it is written.
        ("http://[0:0:0::1]:8000", "http://[::1]:8000/x", "http://[::1]:8000", {}),
        ("http://[::ab]", "http://[0:0::AB]/x", "http://[0:0::AB]", {}),
        ("https://xn--bcher-kva.test", "https://bücher.test/x", "https://xn--bcher-kva.test", {}),
        (
            "http://head:8000/api/v1/model/{model}",
            "http://head:8000/api/v1/model/qwen-3/create_model",
            "http://head:8000/api/v1/model/qwen-3",
            {"model": "qwen-3"},
        ),
        (
            "https://{ws}--app.modal.run",
            "https://my-team--app.modal.run/api/v1/x",
            "https://my-team--app.modal.run",
            {"ws": "my-team"},
        ),
        (
            "https://Ws-{name}-X.modal.run",
            "https://ws-a--b-x.modal.run/api/v1/x",
            "https://ws-a--b-x.modal.run",
            {"name": "a--b"},
        ),
        (
            "https://{Ws}.modal.run/{job}",
            "https://UP.modal.run/j/",
            "https://up.modal.run/j",
            {"Ws": "up", "job": "j"},
        ),
        (
            "https://user.test/k/{_key}",
            "https://me:secret@user.test/k/tml-1/api/v1/x?key=2",
            "https://user.test/k/tml-1",
            {"_key": "tml-1"},
        ),
    ],
)
def test_urls_that_a_pattern_explains(
    pattern: str, url: str, base: str, captured: dict[str, str]
) -> None:
    route = route_of(url, pattern)
    assert route is not None
    assert (route.url, route.names) == (base, captured)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        ("/t/{job}", "https://h.test/t/j"),
        ("/t/{job}", "https://h.test/t//x"),
        ("/t/{job}", "https://h.test/t/a%2Fb/x"),
        ("/t/{job}", "https://h.test/t/%2e%2e/x"),
        ("/t/{job}", "https://h.test/T/j/x"),
        ("/t/{job}", "https://h.test/p/t/j/x"),
        ("/t/{job}", "https://h.test/tt/j/x"),
        ("/t/{job}", "https://h.test/x?/t/j/x"),
        ("/t/{job}", "ftp://h.test/t/j/x"),
        ("/t/{job}", "/t/j/x"),
        ("/a.b", "https://h.test/axb/x"),
        ("http://head:8000", "http://head:8001/x"),
        ("http://head:8000", "http://head/x"),
        ("http://head:8000", "https://head:8000/x"),
        ("https://h.test", "https://h.test:80/x"),
        # Hosts that look alike.
        ("http://head:8000", "http://head.evil.test:8000/x"),
        ("http://head:8000", "http://ahead:8000/x"),
        ("http://head:8000", "http://head@evil.test:8000/x"),
        ("http://head:8000", "http://head.:8000/x"),
        ("http://head:8000", "http://evil.test/head:8000/x"),
        ("http://head:8000", "http://evil.test/http://head:8000/x"),
        ("http://h.test", "http://hxtest/x"),
        ("http://bucher.test", "http://bücher.test/x"),
        ("http://127.0.0.1", "http://127.0.0.2/x"),
        ("http://[::1]", "http://[::2]/x"),
        ("https://{ws}--app.modal.run", "https://--app.modal.run/x"),
        ("https://{ws}--app.modal.run", "https://a.b--app.modal.run/x"),
        ("https://{ws}--app.modal.run", "https://a--app.modal.run.evil.test/x"),
        ("https://{ws}--app.modal.run", "https://a--app.modalxrun/x"),
        ("https://{ws}--app.modal.run", "https://evil.test.a--app.modal.run/x"),
        ("https://{ws}--app.modal.run", "https://a--apps.modal.run/x"),
        ("https://{ws}--app.modal.run", "https://a--app.modal.run:8443/x"),
        ("https://{ws}--app.modal.run", "http://a--app.modal.run/x"),
        ("https://{ws}--app.modal.run", "https://a--app.evil.run/x"),
        ("https://ws-{name}.modal.run", "https://a-b.modal.run/x"),
        ("https://{ws}.modal.run", "https://.modal.run/x"),
        ("https://{ws}.modal.run", "https://modal.run/x"),
        ("https://{ws}.modal.run", "https://a-.modal.run/x"),
    ],
)
def test_urls_that_it_does_not_explain(pattern: str, url: str) -> None:
    assert route_of(url, pattern) is None


DOT_SEGMENTS = (
    *("/%2e%2e/", "/%2E%2e/", "/.%2e/", "/%2E./", "/%2e/", "/..%2f", "/..%2F", "/..%5c", "/..\\"),
    *("/x%2f..%2f", "/x%2F%2e%2E%5C", "/\\..\\", "/%252e%252E/", "/..%252f", "/..;/"),
    *(
        "/%25252f..%2f",
        "/..;a=b/",
        "/..%3b/",
        "/%2e%2e;/",
        "/a/%2e%2e/%2e%2e/",
        "/%2e%2e//",
        "//%2e%2e/",
    ),
)


@pytest.mark.parametrize("dots", DOT_SEGMENTS)
@pytest.mark.parametrize(
    ("pattern", "base"),
    [
        (FIREWORKS, "https://h.test/training/v1/rlorTrainerJobs/acc/job-1"),
        ("/t/{job}", "https://h.test/t/job-1"),
        ("http://head:8000", "http://head:8000"),
        ("https://{ws}--app.modal.run", "https://a--app.modal.run"),
    ],
)
def test_a_url_that_a_server_may_take_for_another_jobs_is_on_no_route(
    pattern: str, base: str, dots: str
) -> None:
    assert route_of(f"{base}{dots}job-2/api/v1/x", pattern) is None
    assert route_of(f"{base}/api/v1{dots}x", pattern) is None


@pytest.mark.parametrize(
    "path", ["/...", "/.x/y", "/x../y", "/x..%2fy", "/..x/y", "/v1.2/y", "/%2e%2ex/y", "/a%2fb/%2d"]
)
def test_dots_within_a_segment_lead_nowhere_else(path: str) -> None:
    assert route_of(f"https://h.test/t/job-1{path}", "/t/{job}") is not None


@pytest.mark.parametrize("value", [".", "..", "%2e", "%2e%2E", "a%2Fb", "..%2Fb", "a%3Fb", "a%23b"])
def test_what_would_lead_a_question_elsewhere_is_never_captured(value: str) -> None:
    for account, job in ((value, "job-1"), ("acc", value)):
        route = route_of(f"https://h.test/training/v1/rlorTrainerJobs/{account}/{job}/api/v1/x")
        assert route is None
        name = f"accounts/{account}/deployments/{job}"
        assert Route.of_deployment(HOT_LOAD, "https", "h.test", None, name) is None


@pytest.mark.parametrize(
    ("patterns", "wins"),
    [
        (["http://head", "http://head/m/{x}"], "http://head/m/{x}"),
        (["/m/{x}", "http://head"], "/m/{x}"),
        (["/m/{x}", "http://head/m/{x}"], "http://head/m/{x}"),
        (["/m/{x}", "/m/q"], "/m/q"),
        (["/{y}/q", "/m/{x}"], "/{y}/q"),
        (["/m/{x}", "/{y}/q"], "/m/{x}"),
        (["https://nothing.test", "/m/{x}"], "/m/{x}"),
        (["/m/{x}", "http://head/{y}/q"], "http://head/{y}/q"),
        (["/m/q", "http://head/{y}/{x}"], "http://head/{y}/{x}"),
    ],
)
def test_of_several_the_nearest_one_counts(patterns: list[str], wins: str) -> None:
    found = RoutePatterns(patterns).find("http", "head", None, "/m/q/api/v1/x")
    assert found is not None
    assert found[0].text == wins


def test_a_named_host_is_nearer_than_a_placeholder() -> None:
    patterns = RoutePatterns(["https://{ws}.modal.run", "https://mine.modal.run"])
    for host, text in (("mine", "https://mine.modal.run"), ("yours", "https://{ws}.modal.run")):
        found = patterns.find("https", f"{host}.modal.run", None, "/x")
        assert found is not None
        assert found[0].text == text


def test_a_placeholder_in_a_host_is_nearer_than_any_host() -> None:
    patterns = RoutePatterns(["/m/{x}", "https://{ws}.modal.run/{y}/q"])
    found = patterns.find("https", "mine.modal.run", None, "/m/q/x")
    assert found is not None
    assert found[0].text == "https://{ws}.modal.run/{y}/q"


def test_a_host_that_is_no_address_is_taken_as_it_is() -> None:
    assert RoutePatterns(["http://[::1]"]).find("http", "v1:x", None, "/x") is None


def test_that_of_fireworks_is_always_there() -> None:
    assert patterns_of().texts == (FIREWORKS,)
    assert patterns_of(("/t/{job}",)).texts == ("/t/{job}", FIREWORKS)
    assert patterns_of((FIREWORKS, "/t/{job}")).texts == (FIREWORKS, "/t/{job}")
    assert patterns_of(("/t/{job}",)) is patterns_of(("/t/{job}",))


# -- what a route tells ----------------------------------------------------------------------------


def test_a_trainer_job_is_named_by_account_and_job() -> None:
    route = route_of("https://h.test/training/v1/rlorTrainerJobs/acc/job-1/x", FIREWORKS)
    assert route == Route.of_job("https://h.test", "acc", "job-1")
    assert (str(route), route.subject) == ("acc/job-1", "job acc/job-1")
    assert route.is_fireworks
    other = route_of("https://h.test/t/job-1/acc/x", "/t/{job}/{account}")
    assert other is not None
    assert (str(other), other.is_fireworks) == ("acc/job-1", False)


@pytest.mark.parametrize(
    ("pattern", "url", "shown", "account", "job"),
    [
        ("http://head:8000", "http://head:8000/x", "http://head:8000", None, None),
        ("/m/{model}", "http://head/m/qwen/x", "http://head/m/qwen", None, None),
        ("/t/{_tenant}/{job}", "http://h/t/secret/j/x", "http://h/t/{_tenant}/j", None, "j"),
        ("/t/{_job}", "http://h/t/secret/x", "http://h/t/{_job}", None, None),
        ("/{a}/t/{account}/{job}", "http://h/0/t/1/2/x", "http://h/0/t/1/2", "1", "2"),
        ("https://{w}.m.run/{_k}", "https://a.m.run/secret/x", "https://a.m.run/{_k}", None, None),
    ],
)
def test_other_routes_are_named_by_what_of_their_url_may_be_shown(
    pattern: str, url: str, shown: str, account: str | None, job: str | None
) -> None:
    route = route_of(url, pattern)
    assert route is not None
    assert str(route) == route.subject == route.recorded_url == shown
    assert (route.account, route.job) == (account, job)
    assert "secret" not in f"{route!r} {route} {route.subject} {route.recorded_url}"
    assert pickle.loads(pickle.dumps(route)) == route


@pytest.mark.parametrize(
    ("url", "pattern"),
    [
        ("http://head:8000", "http://head:8000"),
        ("http://me:secret@head:8000/", "http://head:8000"),
        ("http://head.svc.:8000", "http://head.svc.:8000"),
        ("https://h.test/k/tml-secret", "https://h.test/{_part1}/{_part2}"),
        ("http://[::1]:8/a?key=secret", "http://[::1]:8/{_part1}"),
        ("http://head/a?key=b/c/d", "http://head/{_part1}"),
        ("http://head/a/X/", "http://head/{_part1}/{_part2}"),
        ("http://head/a//", "http://head/{_part1}"),
        ("https://api.fireworks.ai/training/v1/serverless/", "/training/v1/serverless"),
    ],
)
def test_the_pattern_that_is_suggested_explains_the_url_and_shows_no_key(
    url: str, pattern: str
) -> None:
    assert suggest_pattern(httpx.URL(url)) == pattern
    bare = url.partition("?")[0].rstrip("/")
    route = route_of(f"{bare}/api/v1/x", pattern)
    assert route is not None
    assert "secret" not in route.recorded_url


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "wrong"),
    [
        ("", "begins neither with / nor with http:// or https://"),
        ("t/{job}", "begins neither"),
        ("ftp://h.test/x", "begins neither"),
        ("http:/h.test", "begins neither"),
        ("//h.test/x", "an empty segment"),
        ("/", "no fixed part"),
        ("/{job}", "no fixed part"),
        ("/{a}/{_b}", "no fixed part"),
        ("/a//b", "an empty segment"),
        ("/a//", "an empty segment"),
        ("/a/./b", "a . or .. segment"),
        ("/a/..", "a . or .. segment"),
        ("/a?b=c", "a query or a fragment"),
        ("/a#b", "a query or a fragment"),
        ("/a%2Fb", "an escape"),
        ("/a\\b", "an escape"),
        ("/a/{job}/{job}", "the same placeholder twice"),
        ("https://{a}.m.run/{a}", "the same placeholder twice"),
        ("/a/x{job}", "no whole segment"),
        ("/a/{job", "no whole segment"),
        ("/a/{}", "no whole segment"),
        ("/a/{1}", "no whole segment"),
        ("/a/{__x}", "no whole segment"),
        ("/a/{job!r}", "no whole segment"),
        ("/a/{a.b}", "no whole segment"),
        ("/a b", "other characters"),
        ("/a\n", "other characters"),
        ("/ä", "other characters"),
        ("/a;b", "other characters"),
        ("http://", "names no host"),
        ("http:///a", "names no host"),
        ("http://:8000", "names no host"),
        ("http://h:", "names no host"),
        ("http://h:port", "names no host"),
        ("http://h:1:2", "names no host"),
        ("http://h:0", "a port from 1 to 65535"),
        ("http://h:65536", "a port from 1 to 65535"),
        ("http://user@h.test", "a user name"),
        ("http://user:key@h.test", "a user name"),
        ("http://h.test@", "a user name"),
        ("http://[::1", "names no host"),
        ("http://[::12345]", "an address in brackets"),
        ("http://[1.2.3.4]", "an address in brackets"),
        ("http://::1", "names no host"),
        ("http://bücher.test", "its host in ASCII"),
        ("http://h..test", "other characters"),
        ("http://-h.test", "other characters"),
        ("http://h test", "other characters"),
        ("http://h*.test", "other characters"),
        ("https://{a}", "without a domain"),
        ("https://{a}.run", "without a domain"),
        ("https://{a}.0.0.1", "without a domain"),
        ("https://{a}..m.run", "without a domain"),
        ("https://{a}{b}.m.run", "not the only one"),
        ("https://{a}-{b}.m.run", "not the only one"),
        ("https://x.{a}.run", "not the only one"),
        ("https://{a}.{b}.run", "not the only one"),
        ("https://{a.m.run", "not the only one"),
        ("https://a}.m.run", "not the only one"),
        ("https://{a}.m}.run", "not the only one"),
        ("https://{a}.{m.run", "not the only one"),
        ("/t/x}", "no whole segment"),
        ("/t/{x", "no whole segment"),
        ("https://{a}_x.m.run", "other characters"),
        ("https://{_a}.m.run", "would hide a part of its host"),
        ("https://h.test:{port}", "names no host"),
    ],
)
def test_what_is_no_pattern(pattern: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=re.escape(wrong)) as caught:
        parse_pattern(pattern)
    # By settings it is refused by its number, and nothing of it is shown.
    with pytest.raises(InvalidSettingsError) as told:
        GuardSettings(routes=["/t/{job}", pattern])
    assert f"routes: pattern 2 {caught.value}" in str(told.value)


# -- any of them -----------------------------------------------------------------------------------

SEGMENTS = st.from_regex(r"[A-Za-z0-9._~-]{1,8}", fullmatch=True).filter(
    lambda segment: segment not in (".", "..")
)
NAMES = st.from_regex(r"_?[A-Za-z][A-Za-z0-9_]{0,5}", fullmatch=True)
LABELS = st.from_regex(r"[a-z](?:[a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True).filter(
    # What looks like an international name has to be one.
    lambda label: not label.startswith("xn--")
)
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join) | st.ip_addresses().map(
    lambda address: f"[{address}]" if address.version == 6 else str(address)
)
PORTS = st.none() | st.integers(1, 65535)


@st.composite
def urls(draw: st.DrawFn) -> tuple[str, str, list[str], dict[str, str]]:
    """A pattern, the origin that it names, the segments of a URL that it explains, the names."""
    port = draw(PORTS)
    scheme = draw(st.sampled_from(["http", "https"]))
    origin = f"{scheme}://{draw(HOSTS)}" + ("" if port is None else f":{port}")
    values = draw(st.lists(SEGMENTS, max_size=5))
    names = draw(st.lists(NAMES, min_size=len(values), max_size=len(values), unique=True))
    is_fixed = draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    parts = [
        value if fixed else f"{{{name}}}"
        for value, name, fixed in zip(values, names, is_fixed, strict=True)
    ]
    captured = {
        name: value for value, name, fixed in zip(values, names, is_fixed, strict=True) if not fixed
    }
    return "".join(f"/{part}" for part in parts), origin, values, captured


@given(urls(), st.booleans())
def test_a_pattern_captures_what_stands_in_the_place_of_its_names(
    url: tuple[str, str, list[str], dict[str, str]], has_host: bool
) -> None:
    path, origin, values, captured = url
    assume(has_host or len(captured) < len(values))
    base = origin + "".join(f"/{value}" for value in values)
    route = route_of(f"{base}/api/v1/x", origin + path if has_host else path)
    assert route is not None
    assert route.names == captured
    assert httpx.URL(f"{route.url}/") == httpx.URL(f"{base}/")
    # What may be recorded holds each public value, and the placeholder of each hidden one.
    shown = route.recorded_path.split("/")[1:]
    for value, part in zip(values, shown, strict=True):
        hidden = {name for name, held in captured.items() if name[0] == "_" and held == value}
        assert part == value or part.strip("{}") in hidden


@given(st.text(alphabet=string.printable + "äß\u2028", max_size=40))
@example("http://{a}.{b}.c/")
@example("https://h/{a}/../b")
@example("http://[::ffff:1.2.3.4]:80/{x}")
def test_any_text_is_a_pattern_or_is_refused(text: str) -> None:
    try:
        pattern = parse_pattern(text)
    except ValueError:
        return
    # What it explains, it explains by itself: each placeholder filled in gives such a URL.
    url = re.sub(r"\{[^}]*\}", "v-1", text).removesuffix("/") + "/x"
    url = url if pattern.scheme else f"https://any.test{url}"
    assume(_is_url(url))
    route = route_of(url, text)
    assert route is not None
    assert set(route.names) == set(pattern.names)
    assert set(route.names.values()) <= {"v-1"}
    assert not {".", ".."} & set(route.path.split("/"))
    parsed, there = httpx.URL(url), httpx.URL(f"{route.url}/")
    assert (there.scheme, there.host, there.port) == (parsed.scheme, parsed.host, parsed.port)
    assert (there.userinfo, there.query, there.fragment) == (b"", b"", "")


def _is_url(text: str) -> bool:
    try:
        return bool(httpx.URL(text).host)
    except httpx.InvalidURL:
        return False


@given(
    st.sampled_from(["http://head.test:8000", "https://{ws}--app.modal.run", "http://[::1]:8"]),
    st.text(alphabet=string.printable, max_size=40),
)
def test_no_text_in_front_of_a_path_leads_to_another_host(pattern: str, text: str) -> None:
    for url in (f"http://{text}/x", f"{pattern.format(ws='a')}{text}/x"):
        if not _is_url(url):
            continue
        route = route_of(url, pattern)
        host = httpx.URL(url).host
        if route is not None:
            assert httpx.URL(route.origin).host == host
            assert re.fullmatch(r"head\.test|[a-z0-9_][a-z0-9_-]*--app\.modal\.run|::1", host)


@st.composite
def open_hosts(draw: st.DrawFn) -> tuple[str, str, str, str]:
    """What stands before and behind a placeholder in a host, its domain, and a value for it."""
    before = draw(st.just("") | LABELS.map("{}-".format))
    behind = draw(st.just("") | LABELS.map("--{}".format))
    return before, behind, f"{draw(LABELS)}.{draw(LABELS)}", draw(LABELS)


@given(open_hosts(), PORTS)
def test_a_placeholder_in_a_host_captures_what_stands_in_its_place(
    parts: tuple[str, str, str, str], port: int | None
) -> None:
    before, behind, domain, value = parts
    end = f"{behind}.{domain}" + ("" if port is None else f":{port}")
    url = f"https://{before}{value}{end}/x"
    assume(_is_url(url))
    route = route_of(url, f"https://{before}{{ws}}{end}")
    assert route is not None
    assert route.names == {"ws": value}
    assert httpx.URL(f"{route.origin}/x") == httpx.URL(url)


@given(
    open_hosts(),
    st.booleans(),
    st.integers(0, 60),
    # What ends a host or begins another one, an escape, letters that look like others or mean them.
    st.sampled_from(
        [*"@:/\\?#.-_%{}[]a0", "%2e", "%40", ".a.", "@a.", "u:p@", "\u0430\u217c\uff0e\u3002"]
    ),
    st.booleans(),
)
def test_a_host_that_only_looks_alike_is_another_one(
    parts: tuple[str, str, str, str], is_open: bool, at: int, put: str, replaces: bool
) -> None:
    before, behind, domain, value = parts
    host = f"{before}{value}{behind}.{domain}"
    at %= len(host) + 1
    url = f"https://{host[:at]}{put}{host[at + replaces :]}/x"
    assume(_is_url(url))
    route = route_of(
        url, f"https://{before}{{ws}}{behind}.{domain}" if is_open else f"https://{host}"
    )
    if route is None:
        return
    # The host that is connected to, told apart without a pattern.
    there = httpx.URL(url)
    label, _, rest = there.raw_host.decode("ascii").partition(".")
    assert (rest, there.port) == (domain, None)
    assert (label.startswith(before), label.endswith(behind)) == (True, True)
    captured = (
        label.removeprefix(before).removesuffix(behind) if behind else label.removeprefix(before)
    )
    assert captured == (route.names["ws"] if is_open else value)
    assert (httpx.URL(route.origin).raw_host, httpx.URL(route.origin).userinfo) == (
        there.raw_host,
        b"",
    )
