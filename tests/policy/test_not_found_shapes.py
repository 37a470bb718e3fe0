"""Shapes of 404s that a user tells of: how they are written, and what they decide."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinker_guard.policy.answer import Answer
from tinker_guard.policy.not_found import Source, author_of, source_of
from tinker_guard.policy.not_found_shapes import SERVERS, ServerShape, parse_shape, shapes_of

JSON = "application/json"


def said_by(members: dict[str, Any], answer: object, *, kind: str = JSON, **more: Any) -> Source:
    """Who wrote an answer, where a shape is told of."""
    shape = parse_shape(json.dumps({"members": members, **more}))
    return source_of(
        Answer(httpx.Headers({"content-type": kind}), json.dumps(answer).encode()), shapes=[shape]
    )


@pytest.mark.parametrize("shape", SERVERS, ids=[shape.server for shape in SERVERS])
def test_each_listed_server_could_be_told_of_in_the_same_way(shape: ServerShape) -> None:
    def written(members: Any, place: tuple[str, ...] = ()) -> dict[str, Any]:
        words = {str: "{string}", int: "{integer}", object: "{any}"}
        return {
            name: written(value, (*place, name))
            if isinstance(value, dict)
            else "{text}"
            if (*place, name) == shape.text
            else words[value]
            if isinstance(value, type)
            else value
            for name, value in members.items()
        }

    document = {"members": written(shape.members), "generic": shape.is_generic}
    assert parse_shape(json.dumps(document)) == shape._replace(server="yours", seen="")


FORM = {"kind": "no_such_thing", "reason": "{text}"}
NESTED = {"fault": {"code": 404, "why": "{text}"}, "id": "{any}"}


@pytest.mark.parametrize(
    ("members", "answer", "source"),
    [
        (FORM, {"kind": "no_such_thing", "reason": "checkpoint c is gone"}, Source.TRAINER),
        (FORM, {"kind": "no_such_thing", "reason": "nothing here"}, Source.UNKNOWN),
        (FORM, {"kind": "no_such_thing", "reason": "no route to checkpoint c"}, Source.UNKNOWN),
        (FORM, {"kind": "no_such_thing", "reason": "Not Found"}, Source.UNKNOWN),
        (FORM, {"kind": "another", "reason": "checkpoint c is gone"}, Source.UNKNOWN),
        (FORM, {"kind": "no_such_thing", "reason": None}, Source.UNKNOWN),
        (FORM, {"kind": "no_such_thing"}, Source.UNKNOWN),
        (FORM, {"kind": "no_such_thing", "reason": "checkpoint", "more": 1}, Source.UNKNOWN),
        (NESTED, {"fault": {"code": 404, "why": "a future"}, "id": None}, Source.TRAINER),
        (NESTED, {"fault": {"code": 404, "why": "a future", "x": 1}, "id": [1]}, Source.TRAINER),
        (NESTED, {"fault": {"code": 404.0, "why": "a future"}, "id": 1}, Source.UNKNOWN),
        (NESTED, {"fault": {"code": 404, "why": "a future"}}, Source.UNKNOWN),
        ({"n": "{integer}", "t": "{text}"}, {"n": True, "t": "a future"}, Source.UNKNOWN),
        ({"n": None, "t": "{text}"}, {"n": None, "t": "a future"}, Source.TRAINER),
    ],
)
def test_a_form_that_gateways_write_too_needs_a_trainers_word(
    members: dict[str, Any], answer: object, source: Source
) -> None:
    assert said_by(members, answer) is source
    assert said_by(members, answer, generic=True) is source


def test_a_form_that_only_the_server_writes_needs_none() -> None:
    answer = {"kind": "no_such_thing", "reason": "nothing here"}
    assert said_by(FORM, answer, generic=False) is Source.TRAINER
    assert said_by(FORM, answer | {"reason": "no route here"}, generic=False) is Source.UNKNOWN
    # What it says of a path that it does not know is another such application's, too.
    assert said_by(FORM, answer | {"reason": "Not Found"}, generic=False) is Source.ROUTER
    assert said_by({"kind": "x"}, {"kind": "x"}, generic=False) is Source.TRAINER


def test_a_shape_that_is_told_of_comes_before_those_that_are_known() -> None:
    answer = {"detail": "Model not found"}
    assert said_by({"detail": "{text}"}, answer) is Source.UNKNOWN
    assert said_by({"detail": "{text}"}, answer, generic=False) is Source.TRAINER
    # But not before the gateway's own.
    fireworks = {"error": {"code": "NOT_FOUND", "param": "jobId", "message": "checkpoint"}}
    form = {"error": {"message": "{text}"}}
    assert said_by(form, fireworks, generic=False) is Source.GATEWAY


def test_a_problem_document_can_be_told_of() -> None:
    members = {"type": "{string}", "title": "{string}", "status": 404, "detail": "{text}"}
    answer = {"type": "about:blank", "title": "Not Found", "status": 404, "detail": "no future f"}
    for kind in (JSON, "application/problem+json"):
        assert said_by(members, answer, kind=kind) is Source.TRAINER
        assert said_by(members, answer | {"detail": "no such host"}, kind=kind) is Source.UNKNOWN
    assert said_by(members, answer, kind="text/html") is Source.UNKNOWN


def test_objects_may_stand_in_one_another_up_to_a_depth() -> None:
    members: dict[str, Any] = {"why": "{text}"}
    for _ in range(7):
        members = {"in": members}
    text = json.dumps({"members": members})
    assert parse_shape(text).text == (*["in"] * 7, "why")
    with pytest.raises(ValueError, match="too deep"):
        parse_shape(json.dumps({"members": {"in": members}}))


def test_a_copy_from_a_cache_is_nobodys() -> None:
    headers = httpx.Headers({"content-type": JSON, "age": "5"})
    shape = parse_shape('{"members": {"kind": "x"}, "generic": false}')
    source = author_of(
        Answer(headers, b'{"kind": "x"}', is_decoded=False), had_shown_trainer=True, shapes=[shape]
    )
    assert source is Source.UNKNOWN


def test_shapes_are_read_once() -> None:
    texts = ('{"members": {"a": "{text}"}}', '{"members": {"b": "{text}"}}')
    assert [dict(shape.members) for shape in shapes_of(texts)] == [{"a": str}, {"b": str}]
    assert shapes_of(texts) is shapes_of(texts)
    assert shapes_of(()) == ()


# What may stand in a form, and an answer's value that has it.
_VALUES = st.one_of(
    st.tuples(st.just("{string}"), st.text(max_size=5)),
    st.tuples(st.just("{integer}"), st.integers()),
    st.tuples(st.just("{any}"), st.none() | st.booleans() | st.lists(st.integers(), max_size=2)),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5))
    .filter(lambda value: not (isinstance(value, str) and value[:1] == "{"))
    .map(lambda value: (value, value)),
)
_PAIRS = st.dictionaries(st.text(max_size=5), _VALUES, min_size=1, max_size=4)


@given(_PAIRS, _PAIRS)
def test_an_answer_that_has_the_form_is_the_trainers(
    outer: dict[str, tuple[Any, Any]], inner: dict[str, tuple[Any, Any]]
) -> None:
    form, answer = (
        {name: pair[index] for name, pair in outer.items()}
        | {"in": {name: pair[index] for name, pair in inner.items()}}
        for index in (0, 1)
    )
    assert said_by(form, answer, generic=False) is Source.TRAINER
    assert said_by(form, answer | {"one more": 1}, generic=False) is not Source.TRAINER


@given(
    st.text(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.sampled_from(["{text}", "{x}", "{any}", "members", "x"]),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["members", "generic", "a"]), inner, max_size=3)
        ),
    ).map(json.dumps)
)
def test_any_text_is_a_shape_or_is_refused(text: str) -> None:
    try:
        shape = parse_shape(text)
    except ValueError:
        return
    assert shape.members
    assert shape.text or not shape.is_generic
