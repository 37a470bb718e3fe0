"""The words of an answer: what a text says is not there."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.policy.answers import JSON
from tinker_guard.policy.job_missing import is_control_planes_404
from tinker_guard.policy.not_found import is_from_trainer, source_of
from tinker_guard.policy.wording import without


@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@example("-1111")
@example("-a1")
@example(".job-1")
@example("job-1-")
@example("no route ")
@example("404 ")
@given(st.text("-_.:/ a1x'\"<", min_size=1, max_size=4))
def test_the_time_that_a_text_takes_does_not_double_with_each_part(part: str) -> None:
    """It would never end: what a 404 says is searched on the event loop."""
    for text in (f"no job-1{part * 300}~head", f"{part * 300}job-1~", f"job-1{part * 300}"):
        for body in ({"detail": text}, {"error": text}, {"code": 404, "message": text}):
            headers = httpx.Headers({"content-type": JSON})
            wire = json.dumps(body).encode()
            source_of(headers, wire, ids=["acc", "job-1"])
            is_control_planes_404(headers, wire, ids=["acc", "job-1"])
            is_from_trainer(200, headers, wire)
        assert len(without(["acc", "job-1"], text)) <= 1000


@pytest.mark.parametrize("parts", [1, 2, 30])
def test_what_is_named_after_an_id_is_named_by_it(parts: int) -> None:
    assert without(["job-1"], "no job-1" + "-5d9c7b" * parts + " here") == "no x here"
    assert "head" in without(["job-1"], "no job-1" + "-5d9c7b" * parts + "-head here")
