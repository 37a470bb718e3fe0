from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
from typing import TYPE_CHECKING, Any, get_type_hints

import httpx
import pytest
from pydantic import TypeAdapter

from tinker_guard import (
    GuardSettings,
    GuardTransport,
    InvalidSettingsError,
    SyncGuardTransport,
    install_guard,
    wait_until_routable,
)
from tinker_guard.control_plane.chosen import control_plane_of
from tinker_guard.settings import SettingValues, Trainer404, misspelt_variables, unknown_inherited

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS = GuardSettings.model_fields


def test_defaults_are_those_that_the_readme_lists() -> None:
    assert GuardSettings().model_dump() == {
        "enabled": True,
        "strict": False,
        "child_processes": True,
        "routes": (),
        "deployments": True,
        "warmup_successes": 3,
        "warmup_timeout": 120.0,
        "warmup_probe_path": "/api/v1/get_server_capabilities",
        "unreached_timeout": 10.0,
        "probe_timeout": 5.0,
        "retry_timeout": 30.0,
        "backoff_initial": 0.1,
        "backoff_max": 3.0,
        "trainer_404": (),
        "control_plane": None,
        "control_plane_url": None,
        "control_plane_object": None,
        "control_plane_state": "state",
        "control_plane_running": ("RUNNING", "JOB_STATE_RUNNING"),
        "control_plane_stopped": None,
        "control_plane_timeout": 5.0,
        "control_plane_api_key": None,
        "verdict_ttl": 1.0,
        "trace": "work",
        "metrics_by_job": False,
        "export": None,
    }


def test_arguments_win_over_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "12")
    monkeypatch.setenv("TINKER_GUARD_WARMUP_SUCCESSES", "5")
    settings = GuardSettings(retry_timeout=7)
    assert (settings.retry_timeout, settings.warmup_successes) == (7.0, 5)


class _Changing(dict[str, str]):
    """An environment that another thread changes while it is read, as `os.environ` shows it."""

    times = 1

    def items(self) -> Any:
        self.times -= 1
        if self.times >= 0:
            raise KeyError("TINKER_GUARD_INHERITED")
        return super().items()


def test_an_environment_that_changes_meanwhile_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("os.environ", _Changing({"TINKER_GUARD_RETRY_TIMEOUT": "7"}))
    assert GuardSettings(verdict_ttl=2) == GuardSettings(retry_timeout=7, verdict_ttl=2)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("RETRY_TIMEOUT", "-1", "should be greater than or equal to 0 (default: 30.0)"),
        ("PROBE_TIMEOUT", "0", "should be greater than 0"),
        ("WARMUP_TIMEOUT", "two minutes", "should be a valid number"),
        ("BACKOFF_MAX", "inf", "should be a finite number"),
        ("WARMUP_SUCCESSES", "-3", "should be greater than or equal to 0 (default: 3)"),
        ("WARMUP_SUCCESSES", "1.5", "should be a valid integer"),
        ("ENABLED", "perhaps", "should be a valid boolean"),
        ("CONTROL_PLANE_URL", "ftp://api.test", "must begin with http:// or https://"),
        ("CONTROL_PLANE_URL", "api.test", "must begin with http:// or https://"),
        ("CONTROL_PLANE_URL", "https://key@api.test", "must hold neither a user name"),
        ("CONTROL_PLANE_URL", "https://api.test?key=1", "must hold neither a user name"),
        ("CONTROL_PLANE_URL", "https://api.test:port", "must be a URL such as"),
        ("CONTROL_PLANE_URL", "https://api.test ", "must hold no spaces"),
        ("CONTROL_PLANE_URL", "https://api.test /base", "must hold no spaces"),
        ("CONTROL_PLANE_URL", "https://api.test # comment", "must hold neither a user name"),
        ("CONTROL_PLANE_API_KEY", "**********", "must be the key itself, not the stars"),
        ("TRACE", "some", "should be 'all', 'work', 'eventful' or 'off' (default: work)"),
        ("EXPORT", "jaeger", "must be console, otlp or jsonl:PATH"),
        ("EXPORT", "jsonl:", "must be console, otlp or jsonl:PATH"),
        ("WARMUP_PROBE_PATH", "api/v1", "must be a path such as"),
        ("WARMUP_PROBE_PATH", "/api/v1/x\n", "must be a path such as"),
    ],
)
def test_a_wrong_variable_is_refused_at_install_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(f"TINKER_GUARD_{name}", value)
    with pytest.raises(InvalidSettingsError) as caught:
        install_guard()
    assert f"TINKER_GUARD_{name}: " in str(caught.value)
    assert wanted in str(caught.value)


def test_a_wrong_argument_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidSettingsError, match=r"^[^\n]+\n  retry_timeout: input should be"):
        GuardSettings(retry_timeout=math.nan)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if field.annotation in (int, float)]
)
def test_a_boolean_is_no_number(name: str, given: Any) -> None:
    """Python counts True as 1: one second, or one probe."""
    with pytest.raises(InvalidSettingsError, match=rf"^[^\n]+\n  {name}: must be a number") as told:
        GuardSettings(**{name: given})
    assert str(told.value).endswith(f" (default: {FIELDS[name].default})")


class _OfAnArray:
    """A boolean of an array library, which Python takes as a number."""

    def __init__(self, value: bool, dtype: object) -> None:
        self.value, self.dtype = value, dtype

    def __float__(self) -> float:
        return float(self.value)

    def __index__(self) -> int:
        return int(self.value)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("dtype", ["bool", "torch.bool"])
@pytest.mark.parametrize(
    "name", [name for name, field in FIELDS.items() if field.annotation in (int, float)]
)
def test_a_boolean_of_an_array_library_is_none_either(name: str, dtype: str, value: bool) -> None:
    given: Any = _OfAnArray(value, dtype)
    with pytest.raises(InvalidSettingsError, match=rf"^[^\n]+\n  {name}: must be a number"):
        GuardSettings(**{name: given})


@pytest.mark.parametrize("make", ["bool_", "array"])
def test_numpys_booleans_are_no_numbers_and_its_numbers_are(make: str) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(InvalidSettingsError, match="retry_timeout: must be a number"):
        GuardSettings(retry_timeout=getattr(numpy, make)(True))
    settings = GuardSettings(retry_timeout=numpy.float32(3), warmup_successes=numpy.int64(2))
    assert (settings.retry_timeout, settings.warmup_successes) == (3, 2)


def test_an_unknown_argument_is_refused() -> None:
    with pytest.raises(InvalidSettingsError, match="did you mean retry_timeout"):
        GuardSettings(retry_time=3)  # type: ignore[call-arg]
    with pytest.raises(InvalidSettingsError, match=r"  nonsense: is no setting$"):
        install_guard(nonsense=1)  # type: ignore[call-arg]


def test_the_keyword_arguments_are_the_settings() -> None:
    assert sorted(get_type_hints(SettingValues)) == sorted(GuardSettings.model_fields)
    text = inspect.getdoc(install_guard) or ""
    assert [name for name in GuardSettings.model_fields if name not in text] == []


@pytest.mark.parametrize("given", [60, {"retry_timeout": 60}, {}, "retry_timeout=60"])
def test_what_is_no_settings_is_refused_with_what_would_be_right(given: Any) -> None:
    said = (
        rf"settings: must be .* type {type(given).__name__}; .* GuardSettings\(retry_timeout=60\)"
    )
    with pytest.raises(InvalidSettingsError, match=said):
        install_guard(given)
    with pytest.raises(InvalidSettingsError, match=said):
        wait_until_routable("https://gateway.test", settings=given)
    with pytest.raises(InvalidSettingsError, match=said):
        GuardTransport(httpx.AsyncHTTPTransport(), settings=given)
    with pytest.raises(InvalidSettingsError, match=said):
        SyncGuardTransport(httpx.HTTPTransport(), settings=given)


def test_settings_are_given_once() -> None:
    with pytest.raises(InvalidSettingsError, match="either settings or retry_timeout, not both"):
        install_guard(GuardSettings(), retry_timeout=5)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TINKER_GUARD_RETRY_TIMOUT", "TINKER_GUARD_RETRY_TIMEOUT"),
        ("TINKER_GUARD_retry_time", "TINKER_GUARD_RETRY_TIMEOUT"),
        ("TINKERGUARD_RETRY_TIMEOUT", "TINKER_GUARD_RETRY_TIMEOUT"),
        ("TINKER_GUARD_QQQ", None),
    ],
)
def test_a_misspelt_variable_is_known_by_the_right_one(
    name: str, meant: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_GUARD_VERDICT_TTL", "2")
    monkeypatch.setenv("TINKER_BASE_URL", "https://tinker.test")
    monkeypatch.setenv("TINKER_GUARD_INHERITED", "{}")
    monkeypatch.setenv(name, "3")
    assert list(misspelt_variables()) == [(name, meant)]


def test_strict_guards() -> None:
    with pytest.raises(InvalidSettingsError, match="strict needs enabled"):
        GuardSettings(strict=True, enabled=False)


def test_backoffs_must_fit_each_other() -> None:
    with pytest.raises(InvalidSettingsError, match="backoff_initial must not exceed backoff_max"):
        GuardSettings(backoff_initial=2.0, backoff_max=1.0)


def test_a_key_needs_the_place_that_it_is_for() -> None:
    with pytest.raises(InvalidSettingsError, match="control_plane_api_key needs control_plane_url"):
        GuardSettings(control_plane_api_key="fw-secret")
    with pytest.raises(InvalidSettingsError, match=r"control_plane_api_key: .*at least 1"):
        GuardSettings(control_plane_api_key="", control_plane_url="https://api.test")


@pytest.mark.parametrize(
    ("variables", "arguments", "said"),
    [
        (
            {"CONTROL_PLANE_API_KEY": "fw-secret", "CONTROL_PLANE_URL": ""},
            {},
            "TINKER_GUARD_CONTROL_PLANE_API_KEY needs TINKER_GUARD_CONTROL_PLANE_URL, the only",
        ),
        (
            {"BACKOFF_MAX": "1"},
            {"backoff_initial": 2.0},
            "backoff_initial must not exceed TINKER_GUARD_BACKOFF_MAX",
        ),
        (
            {"BACKOFF_MAX": "9"},
            {"backoff_initial": 2.0, "backoff_max": 1.0},
            "backoff_initial must not exceed backoff_max",
        ),
        (
            {"STRICT": "1", "ENABLED": "0"},
            {},
            "TINKER_GUARD_STRICT needs TINKER_GUARD_ENABLED: ",
        ),
        (
            {"CONTROL_PLANE": "kubernetes"},
            {},
            "TINKER_GUARD_CONTROL_PLANE kubernetes needs TINKER_GUARD_CONTROL_PLANE_OBJECT, such as"
            " training/deployments/{job}: NAMESPACE/KIND/NAME, KIND being deployments, ",
        ),
        (
            {"CONTROL_PLANE": "http", "DEPLOYMENTS": "1", "CONTROL_PLANE_STATE": "x"},
            {"control_plane_url": "https://api.test/{nobody}"},
            "control_plane_url, TINKER_GUARD_CONTROL_PLANE_OBJECT and "
            "TINKER_GUARD_CONTROL_PLANE_STATE may hold only names that a pattern of "
            "TINKER_GUARD_ROUTES captures",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_named_as_they_were_given(
    variables: dict[str, str], arguments: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"TINKER_GUARD_{name}", value)
    with pytest.raises(InvalidSettingsError) as caught:
        GuardSettings(**arguments)
    assert f"\n  settings: {said}" in str(caught.value)


SHAPE: Trainer404 = {"members": {"kind": "gone", "reason": "{text}"}, "generic": False}


@pytest.mark.parametrize("value", [SHAPE, [SHAPE], (SHAPE,), json.dumps(SHAPE)])
def test_a_servers_own_404_is_json_or_what_json_can_hold(
    value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (json.dumps(SHAPE),)
    assert GuardSettings(trainer_404=value).trainer_404 == expected
    monkeypatch.setenv("TINKER_GUARD_TRAINER_404", json.dumps(value))
    settings = GuardSettings()
    assert settings.trainer_404 == expected
    assert hash(settings) == hash(GuardSettings(trainer_404=value))
    assert GuardSettings.load_without_key(settings.dump_without_key()).trainer_404 == expected
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("{geheim", "must be JSON, with objects in it"),
        ("[" * 100_000, "must be JSON, with objects in it"),
        ("geheim", "must be JSON, with objects in it"),
        ("1", "shape 1 must be an object with"),
        ('["geheim"]', "shape 1 is no JSON"),
        ('[{"members": {"reason": "{text}"}}, {"error": "geheim"}]', "shape 2 must be an object"),
        ('{"members": {"error": "{text}"}, "geheim": 1}', 'must be an object with "members", and'),
        ('{"members": {}}', "one member or more"),
        ('{"members": ["geheim"]}', "one member or more"),
        ('{"members": {"error": "{text}"}, "generic": 1}', "true or false"),
        ('{"members": {"a": "{text}", "b": {"c": "{text}"}}}', "holds {text} twice"),
        ('{"members": {"a": "{string}"}}', "needs a {text}, by which a trainer's is told from a"),
        ('{"members": {"a": "{str}"}}', "braces that are none of {text}, {string}, {integer}, {an"),
        ('{"members": {"a": ["geheim"]}, "generic": false}', "holds an array: {any} stands for it"),
        ('{"members": ' + '{"a":' * 9 + "1" + "}" * 10, "too deep in one another"),
    ],
)
def test_what_is_no_shape_of_a_404_is_refused_and_not_shown(
    value: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_GUARD_TRAINER_404", value)
    with pytest.raises(InvalidSettingsError) as caught:
        GuardSettings()
    assert "  TINKER_GUARD_TRAINER_404: " in str(caught.value)
    assert wanted in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_what_json_cannot_hold_is_no_shape() -> None:
    for value in ({"members": {"a": object()}}, {"members": {"a": {1, 2}}}):
        with pytest.raises(InvalidSettingsError, match=r"trainer_404: must hold what JSON can"):
            GuardSettings(trainer_404=value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [
        "http://head:8000,/t/{job}",
        " http://head:8000 , /t/{job}\n",
        "http://head:8000 /t/{job}",
        "\thttp://head:8000\n,,/t/{job},",
        ' ["http://head:8000", "/t/{job}"]',
    ],
)
def test_patterns_of_routes_are_separated_by_commas_or_whitespace_or_json(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_GUARD_ROUTES", value)
    expected = ("http://head:8000", "/t/{job}")
    assert GuardSettings().routes == expected
    assert GuardSettings(routes=value).routes == expected
    assert GuardSettings(routes=list(expected)).routes == expected
    assert GuardSettings.load_without_key(GuardSettings().dump_without_key()).routes == expected


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ('["/t/{job}"', "must be separated by commas, or a list in JSON"),
        ("[1]", "input should be a valid string"),
        ("/t/{job} https://me:geheim@h.test", "pattern 2 holds a user name"),
        ("/k/geheim?x", "pattern 1 holds a query or a fragment"),
    ],
)
def test_a_wrong_pattern_is_refused_by_its_number_and_not_shown(
    value: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_GUARD_ROUTES", value)
    with pytest.raises(InvalidSettingsError) as caught:
        GuardSettings()
    assert f"\n  TINKER_GUARD_ROUTES: {wanted}" in str(caught.value)
    assert "geheim" not in f"{caught.value!r} {caught.value.__context__!r}"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "CONTROL_PLANE_API_KEY",
        "CONTROL_PLANE_URL",
        "RETRY_TIMEOUT",
        "ENABLED",
        "ROUTES",
    ):
        monkeypatch.setenv(f"TINKER_GUARD_{name}", "")
    assert GuardSettings() == GuardSettings(enabled=True, retry_timeout=30.0)


def test_a_rejected_value_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "tml-secret")
    with pytest.raises(InvalidSettingsError) as caught:
        GuardSettings()
    assert "tml-secret" not in f"{caught.value!r} {caught.value.__context__!r}"


def test_the_key_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_API_KEY", "fw-secret")
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://api.test")
    settings = GuardSettings()
    assert settings.control_plane_api_key is not None
    assert settings.control_plane_api_key.get_secret_value() == "fw-secret"
    assert "fw-secret" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_settings_are_frozen_comparable_and_picklable() -> None:
    settings = GuardSettings(verdict_ttl=2)
    assert settings == GuardSettings(verdict_ttl=2) != GuardSettings()
    assert pickle.loads(pickle.dumps(settings)) == settings
    with pytest.raises(ValueError, match="frozen"):
        settings.verdict_ttl = 3


def test_a_url_loses_its_last_slash() -> None:
    assert GuardSettings(control_plane_url="https://api.test/x/").control_plane_url == (
        "https://api.test/x"
    )


# -- a key that does not come along --------------------------------------------------------------

URL, KEY = "https://api.test", "fw-secret"
VARIABLE = "TINKER_GUARD_CONTROL_PLANE_API_KEY"

LEAVES_OUT = [
    pytest.param(lambda settings: pickle.loads(pickle.dumps(settings)), id="pickle"),
    pytest.param(lambda settings: pickle.loads(pickle.dumps(settings, 0)), id="old-pickle"),
    pytest.param(lambda settings: pickle.loads(pickle.dumps([settings]))[0], id="nested-pickle"),
    pytest.param(
        lambda settings: GuardSettings.load_without_key(settings.dump_without_key()), id="child"
    ),
]
KEEPS = [
    pytest.param(copy.copy, id="copy"),
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda settings: settings.model_copy(), id="model_copy"),
    pytest.param(lambda settings: settings.model_copy(deep=True), id="deep-model_copy"),
    pytest.param(
        lambda settings: settings.model_copy(update={"retry_timeout": 30}), id="update-model_copy"
    ),
    pytest.param(lambda settings: GuardSettings(**settings.model_dump()), id="model_dump"),
]


@pytest.fixture
def with_key() -> GuardSettings:
    return GuardSettings(control_plane_url=URL, control_plane_api_key=KEY)


@pytest.mark.parametrize("move", KEEPS)
def test_a_copy_within_the_process_keeps_the_key(
    move: Callable[[GuardSettings], GuardSettings], with_key: GuardSettings
) -> None:
    moved = move(with_key)
    assert moved.control_plane_api_key is not None
    assert moved.control_plane_api_key.get_secret_value() == KEY
    assert not moved.is_control_plane_key_lost
    assert moved == with_key


@pytest.mark.parametrize("move", LEAVES_OUT)
def test_what_leaves_the_process_knows_that_there_was_a_key(
    move: Callable[[GuardSettings], GuardSettings], with_key: GuardSettings
) -> None:
    moved = move(with_key)
    for _ in range(3):
        assert moved.control_plane_api_key is None
        assert moved.is_control_plane_key_lost
        # It is not like settings that ask with the key of the request.
        assert moved != with_key
        assert moved != GuardSettings(control_plane_url=URL)
        assert moved.model_dump() == GuardSettings(control_plane_url=URL).model_dump()
        moved = move(moved)
        assert moved == move(with_key)


@pytest.mark.parametrize("copied", KEEPS[:-1])
@pytest.mark.parametrize("move", LEAVES_OUT)
def test_a_copy_of_what_lost_its_key_has_lost_it_too(
    move: Callable[[GuardSettings], GuardSettings],
    copied: Callable[[GuardSettings], GuardSettings],
    with_key: GuardSettings,
) -> None:
    moved = copied(move(with_key))
    assert moved.is_control_plane_key_lost
    assert moved == move(with_key)


@pytest.mark.parametrize("move", LEAVES_OUT)
def test_where_the_variable_holds_a_key_none_is_lost(
    move: Callable[[GuardSettings], GuardSettings],
    with_key: GuardSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "fw-of-the-child")
    moved = move(with_key)
    assert moved.control_plane_api_key is not None
    assert moved.control_plane_api_key.get_secret_value() == "fw-of-the-child"
    assert not moved.is_control_plane_key_lost
    assert moved == GuardSettings(control_plane_url=URL)
    # And what goes on from there without the variable has lost that one.
    monkeypatch.setenv(VARIABLE, "")
    assert move(moved).is_control_plane_key_lost


@pytest.mark.parametrize("move", [*LEAVES_OUT, *KEEPS])
def test_settings_that_never_had_a_key_have_lost_none(
    move: Callable[[GuardSettings], GuardSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GuardSettings(control_plane_url=URL)
    assert not settings.is_control_plane_key_lost
    moved = move(settings)
    assert moved == settings
    assert not moved.is_control_plane_key_lost


def test_a_key_that_no_header_can_carry_is_as_good_as_none(
    with_key: GuardSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled = pickle.dumps(with_key)
    monkeypatch.setenv(VARIABLE, f"{KEY}\n")
    assert pickle.loads(pickled).is_control_plane_key_lost


@pytest.mark.parametrize(
    "shown",
    [
        lambda settings: settings.model_dump(mode="json"),
        lambda settings: json.loads(settings.model_dump_json()),
    ],
)
def test_what_is_shown_in_the_place_of_the_key_is_none(
    shown: Callable[[GuardSettings], dict[str, Any]], with_key: GuardSettings
) -> None:
    with pytest.raises(InvalidSettingsError, match="not the stars that are shown in its place"):
        GuardSettings(**shown(with_key))


def test_a_pickle_without_a_key_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(GuardSettings(control_plane_url=URL))
    monkeypatch.setenv(VARIABLE, KEY)
    assert pickle.loads(pickled).control_plane_api_key is None


def test_a_copy_that_is_given_a_key_has_lost_none(with_key: GuardSettings) -> None:
    lost: GuardSettings = pickle.loads(pickle.dumps(with_key))
    found = lost.model_copy(update={"control_plane_api_key": with_key.control_plane_api_key})
    assert not found.is_control_plane_key_lost
    assert found == with_key
    # And one that is told to use the request's key has lost none either.
    without = with_key.model_copy(update={"control_plane_api_key": None})
    assert not without.is_control_plane_key_lost
    assert without == GuardSettings(control_plane_url=URL)


def test_the_loss_can_neither_be_given_nor_set(with_key: GuardSettings) -> None:
    with pytest.raises(InvalidSettingsError, match="is_control_plane_key_lost: is no setting"):
        GuardSettings(is_control_plane_key_lost=True)  # type: ignore[call-arg]
    lost: GuardSettings = pickle.loads(pickle.dumps(with_key))
    for settings in (with_key, lost):
        with pytest.raises(ValueError, match="frozen"):
            settings.is_control_plane_key_lost = False  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen") as caught:
        lost.control_plane_api_key = KEY  # type: ignore[assignment]
    assert KEY not in f"{caught.value!r} {caught.value} {caught.value.__context__!r}"
    assert lost.is_control_plane_key_lost


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_text_or_pickle_holds_the_key(protocol: int, with_key: GuardSettings) -> None:
    assert KEY.encode() not in pickle.dumps(with_key, protocol)
    texts = f"{with_key!r} {with_key} {with_key.dump_without_key()} {with_key.model_dump_json()}"
    assert KEY not in texts


def test_variables_are_left_to_the_child_but_not_the_loss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", URL)
    monkeypatch.setenv(VARIABLE, KEY)
    text = GuardSettings().dump_without_key()
    assert json.loads(text) == {"is_control_plane_key_lost": True}
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("TINKER_GUARD_RETRY_TIMEOUT", "8")
    settings = GuardSettings.load_without_key(text)
    assert settings.is_control_plane_key_lost
    assert (settings.retry_timeout, settings.control_plane_url) == (8, URL)


URL_VARIABLE = "TINKER_GUARD_CONTROL_PLANE_URL"
OF_A_TEMPLATE: Any = {"control_plane": "http", "routes": ("https://x.test/{job}",)}


@pytest.mark.parametrize("move", LEAVES_OUT)
@pytest.mark.parametrize(
    ("url", "left", "kind"),
    [
        ("https://cp.test/j/{job}?token=geheim", "https://cp.test/j/{job}?token=...", "http"),
        ("https://cp.test/j?geheim", "https://cp.test/j?...", "http"),
        ("/j/{job}?view=full&id={job}&k=geheim", "/j/{job}?view=...&id={job}&k=...", "http"),
        ("https://cp.test/geheim-0123456789/j", "https://cp.test/.../j", "http"),
        ("https://cp.test/geheim-0123456789", "https://cp.test/...", None),
    ],
)
def test_a_url_with_a_key_in_it_does_not_leave_the_process(
    url: str,
    left: str,
    kind: str | None,
    move: Callable[[GuardSettings], GuardSettings],
) -> None:
    given: Any = {**OF_A_TEMPLATE, "control_plane": kind}
    settings = GuardSettings(**given, control_plane_url=url)
    assert not settings.is_control_plane_key_lost
    assert "geheim" not in settings.dump_without_key()
    assert b"geheim" not in pickle.dumps(settings)
    moved = move(move(settings))
    assert moved.control_plane_url == left
    assert moved.is_control_plane_url_lost
    assert moved.is_control_plane_key_lost
    # Nobody is asked: see `SharedControlPlane`.
    assert getattr(control_plane_of(moved), "is_key_lost", False)


@pytest.mark.parametrize(
    ("kind", "other"), [("http", "https://other.test/j?token=other"), (None, "https://other.test")]
)
def test_a_variable_where_it_arrives_holds_another_url(
    kind: str | None, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: Any = {**OF_A_TEMPLATE, "control_plane": kind}
    settings = GuardSettings(**given, control_plane_url="https://cp.test/geheim-0123456789")
    text, pickled = settings.dump_without_key(), pickle.dumps(settings)
    monkeypatch.setenv(URL_VARIABLE, other)
    for moved in (GuardSettings.load_without_key(text), pickle.loads(pickled)):
        assert moved.control_plane_url == other
        assert not moved.is_control_plane_key_lost


@pytest.mark.parametrize("move", [*LEAVES_OUT, *KEEPS])
@pytest.mark.parametrize("url", ["https://cp.test/jobs/{job}?id={job}", "/jobs/{job}", URL])
def test_a_url_without_a_key_goes_along(
    url: str, move: Callable[[GuardSettings], GuardSettings]
) -> None:
    settings = GuardSettings(**OF_A_TEMPLATE, control_plane_url=url)
    assert move(settings).control_plane_url == url
    assert not move(settings).is_control_plane_key_lost


def test_a_url_that_cannot_work_replaces_no_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GuardSettings(control_plane_url="https://cp.test/geheim-0123456789")
    pickled = pickle.dumps(settings)
    monkeypatch.setenv(URL_VARIABLE, "ftp://cp.test")
    assert pickle.loads(pickled).is_control_plane_url_lost


@pytest.mark.parametrize("move", KEEPS)
def test_a_copy_within_the_process_keeps_a_url_with_a_key(
    move: Callable[[GuardSettings], GuardSettings],
) -> None:
    settings = GuardSettings(control_plane_url="https://cp.test/geheim-0123456789")
    assert move(settings) == settings
    assert not move(settings).is_control_plane_key_lost
    lost: GuardSettings = pickle.loads(pickle.dumps(settings))
    assert lost.model_copy().is_control_plane_url_lost
    assert not lost.model_copy(update={"control_plane_url": URL}).is_control_plane_key_lost


URLS_WITH_KEYS = [
    ("https://cp.test/j/{job}?token=geheim", "https://cp.test/j/{job}?token=..."),
    ("https://cp.test/j?geheim", "https://cp.test/j?..."),
    ("https://cp.test/geheim-0123456789/{job}", "https://cp.test/.../{job}"),
]


@pytest.mark.parametrize(("url", "shown"), URLS_WITH_KEYS)
@pytest.mark.parametrize(
    "dump",
    [
        lambda settings: settings.model_dump(),
        lambda settings: settings.model_dump(exclude_unset=True),
        lambda settings: settings.model_dump(mode="json"),
        lambda settings: json.loads(settings.model_dump_json()),
        lambda settings: TypeAdapter(GuardSettings).dump_python(settings),
        dict,
    ],
    ids=["python", "unset", "json", "text", "adapter", "dict"],
)
def test_a_dump_of_the_settings_shows_no_key_in_a_url(
    dump: Callable[[GuardSettings], dict[str, Any]], url: str, shown: str
) -> None:
    """A program that logs its configuration does that with such a dump."""
    settings = GuardSettings(**OF_A_TEMPLATE, control_plane_url=url)
    dumped = dump(settings)
    assert "geheim" not in f"{dumped!r} {dumped}"
    assert str(dumped["control_plane_url"]) == shown
    again = GuardSettings(**dumped)
    if isinstance(dumped["control_plane_url"], str):
        # Its URL has lost the key, and nobody is to be asked with the dots instead.
        assert again.control_plane_url == shown
        assert again.is_control_plane_url_lost
    else:
        assert again == settings


@pytest.mark.parametrize("shown", [shown for _, shown in URLS_WITH_KEYS])
def test_a_url_from_a_log_is_asked_by_nobody(
    shown: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pickled = pickle.dumps(GuardSettings(**OF_A_TEMPLATE, control_plane_url=URLS_WITH_KEYS[0][0]))
    monkeypatch.setenv(URL_VARIABLE, shown)
    text = GuardSettings(**OF_A_TEMPLATE, control_plane_url="https://cp.test?geheim")
    for settings in (
        GuardSettings(**OF_A_TEMPLATE),
        GuardSettings.load_without_key(text.dump_without_key()),
        pickle.loads(pickled),
    ):
        assert settings.is_control_plane_url_lost
        assert getattr(control_plane_of(settings), "is_key_lost", False)
    install_guard(**OF_A_TEMPLATE)
    assert (
        "no control plane is asked. Set TINKER_GUARD_CONTROL_PLANE_URL to the whole" in caplog.text
    )


@pytest.mark.parametrize("url", [URL, "/jobs/{job}", "https://cp.test/j/{job}?id={job}", None])
def test_a_dump_holds_a_url_without_a_key_as_it_is(url: str | None) -> None:
    settings = GuardSettings(**OF_A_TEMPLATE if url else {}, control_plane_url=url)
    for dumped in (settings.model_dump(), settings.model_dump(mode="json"), dict(settings)):
        assert dumped["control_plane_url"] == url
        assert GuardSettings(**dumped) == settings


def test_a_url_from_a_variable_is_left_to_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, "https://cp.test/geheim-0123456789")
    assert GuardSettings().dump_without_key() == "{}"


# -- a child process -----------------------------------------------------------------------------

RETRY = "TINKER_GUARD_RETRY_TIMEOUT"


@pytest.mark.parametrize(
    ("parents", "own", "expected"),
    [
        ({}, {}, GuardSettings(retry_timeout=7)),
        ({}, {RETRY: ""}, GuardSettings(retry_timeout=7)),
        ({}, {RETRY: "8"}, GuardSettings(retry_timeout=8)),
        ({}, {RETRY.lower(): "8"}, GuardSettings(retry_timeout=8)),
        ({}, {RETRY: "30"}, GuardSettings()),
        ({RETRY: "9"}, {RETRY: "9"}, GuardSettings(retry_timeout=7)),
        ({RETRY: "9"}, {}, GuardSettings(retry_timeout=7)),
        ({RETRY: "9"}, {RETRY: ""}, GuardSettings(retry_timeout=7)),
        ({RETRY: "9"}, {RETRY: "8"}, GuardSettings(retry_timeout=8)),
        ({RETRY: ""}, {RETRY: "8"}, GuardSettings(retry_timeout=8)),
        ({}, {"TINKER_GUARD_VERDICT_TTL": "2"}, GuardSettings(retry_timeout=7, verdict_ttl=2)),
        ({"TINKER_GUARD_VERDICT_TTL": "2"}, {}, GuardSettings(retry_timeout=7)),
        ({}, {"TINKER_GUARD_ENABLED": "0"}, GuardSettings(retry_timeout=7, enabled=False)),
    ],
)
def test_a_variable_of_the_child_wins_unless_the_parent_had_it_too(
    parents: dict[str, str],
    own: dict[str, str],
    expected: GuardSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as parent:
        for name, value in parents.items():
            parent.setenv(name, value)
        text = GuardSettings(retry_timeout=7).dump_without_key()
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert GuardSettings.load_without_key(text) == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: GuardSettings(retry_timeout=7),
        lambda: GuardSettings().model_copy(update={"retry_timeout": 7.0}),
        lambda: pickle.loads(pickle.dumps(GuardSettings(retry_timeout=7))),
        lambda: copy.deepcopy(GuardSettings(retry_timeout=7)),
    ],
    ids=["argument", "copy-with-update", "pickle", "deepcopy"],
)
def test_a_child_is_given_what_was_given_in_code(
    make: Callable[[], GuardSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_GUARD_VERDICT_TTL", "2")
    assert json.loads(make().dump_without_key()) == {"retry_timeout": 7.0}


def test_what_a_variable_holds_is_not_passed_on_in_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINKER_GUARD_CONTROL_PLANE_URL", "https://api.test/geheim")
    assert "geheim" not in GuardSettings(control_plane_url=URL).dump_without_key()


def test_a_setting_of_another_release_is_ignored() -> None:
    text = json.dumps({"retry_timeout": 7, "patience": "geheim", "mood": None})
    assert GuardSettings.load_without_key(text) == GuardSettings(retry_timeout=7)
    assert unknown_inherited(text) == ["patience", "mood"]
    assert unknown_inherited(json.dumps({"a\nforged line": 1, "x" * 99: 2})) == ["...", "..."]
    for known in (GuardSettings(**GuardSettings().model_dump()), GuardSettings(strict=True)):
        assert unknown_inherited(known.dump_without_key()) == []


@pytest.mark.parametrize("variables", [None, 5, "geheim", [], {"retry_timeout": 5}])
def test_what_the_parents_variables_held_can_be_anything(
    variables: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RETRY, "8")
    text = json.dumps({"retry_timeout": 7, "variables": variables})
    assert GuardSettings.load_without_key(text).retry_timeout == 8


@pytest.mark.parametrize(
    "text", ["geheim", '{"strict": tru', "[1]", "null", "5", '"geheim"', "[" * 100_000]
)
def test_what_is_no_json_of_settings_is_refused_by_its_variable(text: str) -> None:
    with pytest.raises(InvalidSettingsError, match=r"^TINKER_GUARD_INHERITED holds no settings"):
        GuardSettings.load_without_key(text)


@pytest.mark.parametrize("key", ["hunter2\n", " hunter2", "hun\r\nter2", "hunter2\x00", "hunter2é"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real environment cannot hold a NUL; a dictionary of the test can.
    monkeypatch.setattr("os.environ", {"TINKER_GUARD_CONTROL_PLANE_API_KEY": key})
    with pytest.raises(InvalidSettingsError, match="printable ASCII") as refused:
        GuardSettings(control_plane_url="https://api.example")
    assert "TINKER_GUARD_CONTROL_PLANE_API_KEY" in str(refused.value)
    assert "ter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/x/{job}", "/x/{job}"),
        ("/x?job={job}", "/x?job={job}"),
        ("/x?job={job}&token=s3cret", "/x?job={job}&token=..."),
        ("/x?token=s3cret&job={job}", "/x?token=...&job={job}"),
        ("https://cp.test/x?s3cret", "https://cp.test/x?..."),
        ("/x?a=s3cret={job}&&b=", "/x?a=...&&b="),
        ("/x?a={job}s3cret", "/x?a=..."),
        ("https://cp.test/k/s3cret-s3cret-s3cret/{job}", "https://cp.test/k/.../{job}"),
        ("https://cp-1.long-name-of-a-host.test/v1/s3cret-s3cret-s3cret", None),
        ("https://cp.test/rlor-trainer-jobs-of-ours/{job}", None),
    ],
)
def test_no_value_of_a_url_that_may_be_a_key_is_shown(url: str, shown: str | None) -> None:
    settings = GuardSettings(control_plane="http", control_plane_url=url)
    shown = shown or url.replace("s3cret-s3cret-s3cret", "...")
    assert f"control_plane_url='{shown}'" in repr(settings)
    assert "s3cret" not in f"{settings!r} {settings} {control_plane_of(settings)!r}"
