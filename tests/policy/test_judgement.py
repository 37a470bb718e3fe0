from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import pytest

from tinker_guard.policy import judgement as verdicts
from tinker_guard.policy.job import JobPhase
from tinker_guard.policy.judgement import (
    CONTROL_PLANE_ERROR,
    CONTROL_PLANE_TIMEOUT,
    JOB_MISSING,
    JOB_NOT_RUNNING,
    JOB_RUNNING,
    NO_CONTROL_PLANE,
    TRAINER_ANSWERED,
    TRAINER_REACHED,
    AskAgain,
    JobAnswer,
    Judgement,
    KeepWaiting,
    Outcome,
    Reason,
    Verdict,
    is_essential_to_sdks,
    is_in_force,
    judge,
    outcome_of,
    waits_once,
)

if TYPE_CHECKING:
    from tinker_guard.policy.judgement import Judged

RUNNING = JobAnswer(state="JOB_STATE_RUNNING")
CREATING = JobAnswer(state="JOB_STATE_CREATING")
NEW_NAME = JobAnswer(state="WARMING_THE_POD")
PAUSED = JobAnswer(state="JOB_STATE_PAUSED")
EXPIRED = JobAnswer(state="JOB_STATE_EXPIRED")
MISSING = JobAnswer(state=None)
FAILED = JobAnswer(failure=CONTROL_PLANE_ERROR)
TIMED_OUT = JobAnswer(failure=CONTROL_PLANE_TIMEOUT)
KEY_LOST = JobAnswer(failure=NO_CONTROL_PLANE)

AGES = (None, 0.0, 0.999, 1.0, 3600.0)


# -- what an answer means ------------------------------------------------------------------------


@pytest.mark.parametrize("was_missing", [False, True])
@pytest.mark.parametrize("warm_for", AGES)
@pytest.mark.parametrize(
    ("answer", "judgement"),
    [
        (RUNNING, JOB_RUNNING),
        (PAUSED, JOB_NOT_RUNNING),
        (EXPIRED, JOB_NOT_RUNNING),
        (JobAnswer(state="JOB_STATE_DELETED"), JOB_NOT_RUNNING),
        (FAILED, CONTROL_PLANE_ERROR),
        (TIMED_OUT, CONTROL_PLANE_TIMEOUT),
        (KEY_LOST, NO_CONTROL_PLANE),
    ],
)
def test_answers_that_mean_the_same_at_any_time(
    answer: JobAnswer, judgement: Judgement, warm_for: float | None, was_missing: bool
) -> None:
    assert judge(answer, was_missing=was_missing, warm_for=warm_for) is judgement


@pytest.mark.parametrize("warm_for", AGES)
def test_a_missing_job_is_believed_the_second_time(warm_for: float | None) -> None:
    """Also on a route that has just answered, and on one that has done so for an hour."""
    assert judge(MISSING, was_missing=False, warm_for=warm_for) == AskAgain(2.0)
    assert judge(MISSING, was_missing=True, warm_for=warm_for) is JOB_MISSING


def kind_of(judged: Judged) -> Judged | type[KeepWaiting]:
    return KeepWaiting if isinstance(judged, KeepWaiting) else judged


@pytest.mark.parametrize("was_missing", [False, True])
@pytest.mark.parametrize("answer", [CREATING, NEW_NAME, JobAnswer(state="JOB_STATE_PENDING")])
@pytest.mark.parametrize(
    ("warm_for", "judged"),
    [
        pytest.param(None, KeepWaiting, id="never"),
        # The control plane may lag behind the gateway for a second.
        pytest.param(0.0, AskAgain(1.0), id="just-now"),
        pytest.param(0.75, AskAgain(0.25), id="shortly"),
        pytest.param(1.0, JOB_NOT_RUNNING, id="a-second"),
        pytest.param(60.0, JOB_NOT_RUNNING, id="a-minute"),
    ],
)
def test_a_job_on_its_way_is_judged_by_how_long_its_route_has_answered(
    answer: JobAnswer,
    warm_for: float | None,
    judged: Judged | type[KeepWaiting],
    was_missing: bool,
) -> None:
    assert kind_of(judge(answer, was_missing=was_missing, warm_for=warm_for)) == judged


@pytest.mark.parametrize("warm_for", [1.0 - 1e-16 * n for n in (2, 10, 1000)])
def test_no_pause_before_asking_again_is_a_rounding_error(warm_for: float) -> None:
    """Found by the simulation: it asked again for ever where the clock stood still meanwhile."""
    assert judge(CREATING, was_missing=False, warm_for=warm_for) == AskAgain(0.01)


@pytest.mark.parametrize(
    ("answer", "phase", "is_missing"),
    [
        (RUNNING, JobPhase.RUNNING, False),
        (CREATING, JobPhase.STARTING, False),
        (NEW_NAME, JobPhase.STARTING, False),
        (PAUSED, JobPhase.STOPPED, False),
        (MISSING, JobPhase.STOPPED, True),
        # It says nothing, so it does not say that the job is missing.
        (FAILED, JobPhase.STOPPED, False),
    ],
)
def test_phase_of_an_answer(answer: JobAnswer, phase: JobPhase, is_missing: bool) -> None:
    assert answer.phase is phase
    assert answer.is_missing is is_missing


# -- how long an answer counts -------------------------------------------------------------------

OTHERS = [
    pytest.param(CREATING, id="on-its-way"),
    pytest.param(NEW_NAME, id="unknown-name"),
    pytest.param(PAUSED, id="stopped"),
    pytest.param(MISSING, id="missing"),
    pytest.param(FAILED, id="failed"),
    pytest.param(TIMED_OUT, id="timed-out"),
    pytest.param(KEY_LOST, id="key-lost"),
]


def asked(answer: JobAnswer) -> JobAnswer:
    """It took from second 10 to second 12."""
    return answer.timed(10.0, 12.0)


@pytest.mark.parametrize(
    ("now", "not_found_at", "is_good"),
    [
        # Asked after the 404, or in the same moment: for as long as that takes.
        pytest.param(12.0, 9.0, True, id="asked-after"),
        pytest.param(12.0, 10.0, True, id="asked-at-once"),
        pytest.param(99.0, 10.0, True, id="judged-late"),
        # Asked before the 404: for the time to live, which begins with the answer.
        pytest.param(12.0, 11.0, True, id="asked-before"),
        pytest.param(12.9, 12.9, True, id="fresh"),
        pytest.param(13.0, 12.9, False, id="old"),
        pytest.param(13.0, 13.0, False, id="older"),
        pytest.param(13.0, 10.1, False, id="old-for-an-old-404"),
    ],
)
def test_running_may_be_reused(now: float, not_found_at: float, is_good: bool) -> None:
    answer = asked(RUNNING)
    assert is_in_force(answer, now=now, not_found_at=not_found_at, ttl=1.0) is is_good


def test_running_is_not_reused_where_no_answer_is() -> None:
    assert not is_in_force(asked(RUNNING), now=12.0, not_found_at=10.1, ttl=0.0)
    assert is_in_force(asked(RUNNING), now=12.0, not_found_at=10.0, ttl=0.0)


@pytest.mark.parametrize("answer", OTHERS)
@pytest.mark.parametrize(
    ("now", "not_found_at", "is_good"),
    [
        (12.0, 9.0, True),
        (12.0, 10.0, True),
        (99.0, 10.0, True),
        # The question was under way as the 404 came, and may have been answered before.
        (12.0, 10.1, False),
        (12.0, 12.0, False),
        (12.1, 12.1, False),
    ],
)
def test_any_other_answer_counts_for_404s_before_its_question(
    answer: JobAnswer, now: float, not_found_at: float, is_good: bool
) -> None:
    """Whatever the time to live: the job may have come up meanwhile."""
    for ttl in (0.0, 1.0, 60.0):
        assert is_in_force(asked(answer), now=now, not_found_at=not_found_at, ttl=ttl) is is_good


@pytest.mark.parametrize(("now", "is_good"), [(12.0, True), (14.9, True), (15.0, False)])
def test_a_control_plane_that_asks_for_a_pause_is_given_it(now: float, is_good: bool) -> None:
    answer = asked(JobAnswer(failure=CONTROL_PLANE_ERROR, status_code=429, retry_after=3.0))
    assert is_in_force(answer, now=now, not_found_at=12.0, ttl=1.0) is is_good


def test_an_answer_keeps_all_but_its_times() -> None:
    answer = JobAnswer(failure=CONTROL_PLANE_ERROR, detail="down", status_code=503, retry_after=2)
    timed = answer.timed(1.0, 2.0)
    assert (timed.asked_at, timed.answered_at) == (1.0, 2.0)
    assert timed.timed(0.0, 0.0) == answer


# -- how a request ended -------------------------------------------------------------------------

RACES = (JOB_RUNNING, TRAINER_REACHED)
GENUINE = (JOB_NOT_RUNNING, JOB_MISSING, TRAINER_ANSWERED)
UNVERIFIED = (CONTROL_PLANE_ERROR, CONTROL_PLANE_TIMEOUT, NO_CONTROL_PLANE)


@pytest.mark.parametrize("status_code", [200, 204, 302, 403, 404, 409, 429, 500, 503])
def test_a_request_that_met_no_404_is_ok_whatever_was_answered(status_code: int) -> None:
    assert outcome_of(status_code, None) is Outcome.OK


@pytest.mark.parametrize(
    ("judgements", "outcome"),
    [
        (RACES, Outcome.EXHAUSTED),
        (GENUINE, Outcome.NOT_FOUND),
        (UNVERIFIED, Outcome.UNVERIFIED),
    ],
)
def test_outcome_of_a_404_that_is_handed_back(
    judgements: tuple[Judgement, ...], outcome: Outcome
) -> None:
    assert {outcome_of(404, judgement) for judgement in judgements} == {outcome}


@pytest.mark.parametrize("judgement", [*RACES, *UNVERIFIED])
@pytest.mark.parametrize(
    ("status_code", "outcome"),
    [
        (200, Outcome.RECOVERED),
        (204, Outcome.RECOVERED),
        (307, Outcome.RECOVERED),
        (403, Outcome.RECOVERED),
        (409, Outcome.RECOVERED),
        (429, Outcome.RECOVERED),
        (499, Outcome.RECOVERED),
        # A gateway that is out of order answered in the trainer's place.
        (500, Outcome.ERROR),
        (502, Outcome.ERROR),
        (504, Outcome.ERROR),
    ],
)
def test_outcome_of_a_request_that_met_a_404_and_got_another_answer(
    status_code: int, outcome: Outcome, judgement: Judgement
) -> None:
    assert outcome_of(status_code, judgement) is outcome


# -- labels --------------------------------------------------------------------------------------


def test_each_reason_belongs_to_one_verdict() -> None:
    known = [value for value in vars(verdicts).values() if isinstance(value, Judgement)]
    assert len(known) == len(Reason)
    assert {judgement.reason for judgement in known} == set(Reason)
    assert {judgement.verdict for judgement in known} == set(Verdict)
    for judgements, verdict in (
        (RACES, Verdict.ROUTING_RACE),
        (GENUINE, Verdict.GENUINE_NOT_FOUND),
        (UNVERIFIED, Verdict.UNVERIFIED),
    ):
        assert {judgement.verdict for judgement in judgements} == {verdict}
        assert {judgement.is_race for judgement in judgements} == {judgements is RACES}
    assert len(list(itertools.chain(RACES, GENUINE, UNVERIFIED))) == len(known)


def test_values_are_the_labels_people_see() -> None:
    assert json.dumps([[judgement.verdict, judgement.reason] for judgement in RACES]) == (
        '[["routing_race", "job_running"], ["routing_race", "trainer_reached"]]'
    )


# -- requests that no run fails with ---------------------------------------------------------------

BASE = b"/training/v1/rlorTrainerJobs/acc/job-1/api/v1"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (BASE + b"/telemetry", True),
        (BASE + b"/session_heartbeat", True),
        (BASE + b"/sessions/s-1/finish", True),
        (BASE + b"/telemetry?a=/b", True),
        (BASE + b"/healthz", True),
        (b"/inference/v1/completions", True),
        (BASE + b"/forward_backward", False),
        (BASE + b"/retrieve_future", False),
        # No more than a part of the name, another place, or another letter.
        (BASE + b"/telemetry/", False),
        (BASE + b"/telemetry/x", False),
        (BASE + b"/telemetry_config", False),
        (BASE + b"/unfinish", False),
        (b"/hot_load/v1/models/hot_load", True),
        (b"/hot_load/v1/models", False),
        (BASE + b"/Telemetry", False),
        (BASE + b"/get_info?of=/telemetry", False),
        (b"/training/v1/rlorTrainerJobs/acc/telemetry/api/v1/optim_step", False),
    ],
)
def test_requests_that_wait_once(path: bytes, expected: bool) -> None:
    assert waits_once(path) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/t/api/v1/forward_backward", True),
        (b"/t/api/v1/optim_step?x=/telemetry", True),
        (b"/t/api/v1/retrieve_future", True),
        (b"/t/api/v1/retrieve_futures", True),
        (b"/t/api/v1/asample", True),
        (b"/t/api/v1/create_model", True),
        (b"/t/api/v1/create_session", True),
        (b"/t/api/v1/load_weights", True),
        (b"/t/api/v1/save_weights", True),
        (b"/t/api/v1/save_weights_for_sampler", True),
        (b"/t/api/v1/save_weights_external", False),
        (b"/t/api/v1/weights_info", True),
        (b"/t/api/v1/create_sampling_session", True),
        (b"/t/api/v1/join_sampling_session", True),
        (b"/t/api/v1/auth/token", True),
        (b"/t/api/v1/client/config", True),
        (b"/t/api/v1/get_info", True),
        (b"/t/api/v1/forward", True),
        (b"/t/api/v1/session_heartbeat", False),
        (b"/t/api/v1/training_runs/r/checkpoints", False),
        (b"/t/api/v1/client/dynamic_config", False),
        (b"/t/api/v1/get_server_capabilities", False),
        (b"/t/api/v1/x?forward_backward", False),
        (b"", False),
    ],
)
def test_what_an_sdk_cannot_do_without(path: bytes, expected: bool) -> None:
    assert is_essential_to_sdks(path) is expected
