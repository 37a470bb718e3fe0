"""Faults are data that survive a trip through JSON."""

from __future__ import annotations

import json

import pytest

from tinker_guard.gateway import FAULTS, Fault, JobStop, LostReply, Race

EVERYTHING = Fault(
    "everything",
    "every field away from its default",
    replicas=3,
    assignment="random",
    affinity="cookie",
    seed=7,
    route_known_after=(0.0, None, 2.5),
    races=(Race("forward_backward", 2, 0.0, (0, 2)), Race("get_info")),
    lost_replies=(LostReply("optim_step", 3),),
    body="html",
    job_states=((0.0, "JOB_STATE_CREATING"), (1.0, None)),
    stop=JobStop("forward", 4, None),
    control_plane="slow",
    control_plane_delay=0.5,
    trainer_lacks=("client/dynamic_config",),
    transport="httpx",
    protobuf=False,
    compress=True,
    session_poller=False,
)


@pytest.mark.parametrize("fault", [*FAULTS.values(), EVERYTHING], ids=lambda fault: fault.name)
def test_json_round_trip(fault: Fault) -> None:
    assert Fault.from_json(fault.to_json()) == fault


def test_fields_left_out_of_json_keep_their_defaults() -> None:
    assert Fault.from_json('{"races": [{"operation": "get_info"}]}') == Fault(
        races=(Race("get_info", occurrence=1, seconds=1.0, replicas=None),)
    )


@pytest.mark.parametrize("name", FAULTS)
def test_a_named_fault_describes_itself_in_one_line(name: str) -> None:
    fault = FAULTS[name]
    assert fault.name == name
    assert 0 < len(fault.description) < 100
    assert "\n" not in fault.description


@pytest.mark.parametrize(
    "wrong",
    [
        {"body": "xml"},
        {"control_plane": "sleepy"},
        {"transport": "carrier pigeon"},
        {"assignment": "sorted"},
        {"affinity": "elective"},
        {"replicas": 0},
        {"replicas": 1, "route_known_after": [0.0, 1.0]},
        {"races": [{"operation": "get_info", "occurrence": 0}]},
        [],
        {"raecs": []},
    ],
)
def test_a_value_that_would_do_nothing_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        Fault.from_json(json.dumps(wrong))


def test_it_is_refused_in_code_too() -> None:
    with pytest.raises(ValueError, match="body"):
        Fault(body="xml")  # type: ignore[arg-type]
