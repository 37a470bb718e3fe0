from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import threading
import warnings
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tinker_guard.install import import_hooks as imports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to import from; what was imported from it is forgotten in the end."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    imports.forget_all()
    for name in set(sys.modules) - before:
        if name.startswith("later"):
            del sys.modules[name]


def write(place: Path, name: str, source: str = "") -> None:
    path = place / f"{name.replace('.', '/')}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    importlib.invalidate_caches()


def test_calls_back_after_the_module_has_been_executed(place: Path) -> None:
    write(place, "later.__init__")
    write(place, "later.holder", "value = 1")
    seen = []
    imports.on_import("later.holder", lambda: seen.append(sys.modules["later.holder"].value))
    importlib.import_module("later")
    assert seen == []
    module = importlib.import_module("later.holder")
    assert seen == [1]
    assert module.__spec__ is not None
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__.loader is module.__loader__
    # A module that is imported anew has new classes.
    importlib.reload(module)
    assert seen == [1, 1]


def test_calls_back_at_once_if_it_is_imported_already() -> None:
    seen = []
    imports.on_import("json.decoder", lambda: seen.append("now"))
    assert seen == ["now"]


def test_everybody_who_waits_is_told_in_order(place: Path) -> None:
    write(place, "later_both")
    seen: list[int] = []
    for number in (1, 2):
        imports.on_import("later_both", lambda number=number: seen.append(number))  # type: ignore[misc]
    importlib.import_module("later_both")
    assert seen == [1, 2]


def test_what_the_callback_raises_comes_out_of_the_import(place: Path) -> None:
    write(place, "later_refused")

    def refuse() -> None:
        raise ZeroDivisionError

    imports.on_import("later_refused", refuse)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            importlib.import_module("later_refused")
        assert "later_refused" not in sys.modules


def test_a_module_that_fails_to_import_is_told_of_when_it_succeeds(place: Path) -> None:
    write(place, "later_broken", "import later_missing")
    seen = []
    imports.on_import("later_broken", lambda: seen.append(1))
    with pytest.raises(ModuleNotFoundError, match="later_missing"):
        importlib.import_module("later_broken")
    assert seen == []
    write(place, "later_missing")
    importlib.import_module("later_broken")
    assert seen == [1]


def test_nobody_is_told_after_forgetting(place: Path) -> None:
    write(place, "later_forgotten")
    imports.on_import("later_forgotten", lambda: pytest.fail("was told"))
    imports.forget_all()
    importlib.import_module("later_forgotten")


def test_an_import_that_another_thread_has_begun_is_waited_for(place: Path) -> None:
    write(
        place,
        "later_slow",
        "import threading\nbegun, go_on = threading.Event(), threading.Event()\n"
        "import later_gate\nlater_gate.begun.set()\nlater_gate.go_on.wait(10)\ndone = True\n",
    )
    write(
        place,
        "later_gate",
        "import threading\nbegun = threading.Event()\ngo_on = threading.Event()",
    )
    gate = importlib.import_module("later_gate")
    importing = threading.Thread(target=importlib.import_module, args=["later_slow"])
    importing.start()
    assert gate.begun.wait(10)
    seen = []
    asking = threading.Thread(
        target=imports.on_import,
        args=["later_slow", lambda: seen.append(sys.modules["later_slow"].done)],
    )
    asking.start()
    gate.go_on.set()
    for thread in (importing, asking):
        thread.join(10)
    assert seen == [True]


def test_finding_imports_nothing(place: Path) -> None:
    write(place, "later_package.__init__", "raise ZeroDivisionError")
    write(place, "later_package.sub.__init__", "raise ZeroDivisionError")
    write(place, "later_package.sub.leaf", "raise ZeroDivisionError")
    assert imports.is_findable("later_package.sub.leaf")
    assert not imports.is_findable("later_package.sub.other")
    assert not imports.is_findable("later_package.sub.leaf.below")
    assert not imports.is_findable("later_nothing.sub")
    assert not any(name.startswith("later_package") for name in sys.modules)


def test_a_blocked_module_is_neither_imported_nor_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "later_blocked", None)
    imports.on_import("later_blocked", lambda: pytest.fail("was told"))
    assert not imports.is_findable("later_blocked")


def test_what_a_finder_refuses_to_find_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tests of what a program does without an optional package."""

    class Refusing:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "later_refused":
                raise ImportError(name)

    monkeypatch.setattr(sys, "meta_path", [Refusing(), *sys.meta_path])
    assert not imports.is_findable("later_refused")
    assert not imports.is_findable("later_refused.below")
    imports.on_import("later_refused", lambda: pytest.fail("was told"))
    with pytest.raises(ImportError, match="later_refused"):
        importlib.import_module("later_refused")


@pytest.mark.parametrize("place_of_it", [0, -1])
def test_a_finder_without_find_spec_is_passed_by(
    place: Path, monkeypatch: pytest.MonkeyPatch, place_of_it: int
) -> None:
    """One of old, as a vendored `six` before 1.16 has it: an `import` statement passes it by."""
    write(place, "later_beside_six")
    seen: list[int] = []
    finders = [*sys.meta_path]
    finders.insert(place_of_it, object())  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "meta_path", finders)
    imports.on_import("later_beside_six", lambda: seen.append(1))
    assert imports.is_findable("later_beside_six")
    # Python 3.11 warns of such a finder, and asks for its `find_module`.
    with warnings.catch_warnings(action="ignore", category=ImportWarning):
        importlib.import_module("later_beside_six")
    assert seen == [1]


class _Wrapper:
    """Around another finder, as a tool has it that watches all imports."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, path: Any, target: object = None) -> ModuleSpec | None:
        found: ModuleSpec | None = self.finder.find_spec(name, path, target)
        return found


class _AsksAll:
    """Asks all finders again, and itself only once."""

    is_asked = False

    def find_spec(self, name: str, path: Any, target: object = None) -> ModuleSpec | None:
        if self.is_asked:
            return None
        self.is_asked = True
        try:
            return importlib.util.find_spec(name)
        finally:
            self.is_asked = False


@pytest.mark.parametrize(
    "finders",
    [
        lambda known: [_Wrapper(finder) for finder in known],
        lambda known: [_Wrapper(_Wrapper(finder)) for finder in known],
        lambda known: [*known[:1], *(_Wrapper(finder) for finder in known)],
        lambda known: [_AsksAll(), *known],
        lambda known: [*known[:1], _AsksAll(), *known[1:]],
    ],
    ids=["wrapped", "wrapped-twice", "wrapped-beside", "asks-before", "asks-after"],
)
def test_a_finder_that_asks_the_others_ends(
    finders: Callable[[list[Any]], list[Any]], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, "later_wrapped")
    seen: list[int] = []
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    imports.on_import("later_wrapped", lambda: seen.append(1))
    monkeypatch.setattr(sys, "meta_path", finders(sys.meta_path))
    importlib.import_module("later_wrapped")
    assert seen


class _OtherLoader:
    """Finds one module, and loads it in a way of its own."""

    def __init__(self, loader: object) -> None:
        self.loader = loader

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name != "later_other":
            return None
        spec = ModuleSpec(name, self.loader, is_package=True)  # type: ignore[arg-type]
        spec.submodule_search_locations = [str(Path(__file__).parent)]
        return spec


def test_of_what_is_in_an_archive_nothing_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _OtherLoader(object())])
    assert imports.is_findable("later_other.holder")


def test_an_old_loader_is_left_alone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def load_module(self, name: str) -> None: ...

    old: Any = Old()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _OtherLoader(old)])
    known = list(sys.meta_path)
    imports.on_import("later_other", lambda: None)
    (finder,) = [finder for finder in sys.meta_path if finder not in known]
    spec = finder.find_spec("later_other", None)
    assert spec is not None
    assert spec.loader is old


def test_a_loader_that_is_looked_at_meanwhile_can_be_copied(place: Path) -> None:
    write(place, "later_copied")
    imports.on_import("later_copied", lambda: None)
    spec = importlib.util.find_spec("later_copied")
    assert spec is not None
    assert copy.copy(spec.loader).is_package("later_copied") is False  # type: ignore[union-attr]


class _SlowFinder:
    """Looks for one module once it is let, as the others do or in vain."""

    def __init__(self, name: str, *, in_vain: bool = False) -> None:
        self.name = name
        self.in_vain = in_vain
        self.begun, self.go_on = threading.Event(), threading.Event()

    def find_spec(self, name: str, path: Any, target: object = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        self.begun.set()
        assert self.go_on.wait(10)
        return None if self.in_vain else PathFinder.find_spec(name, path)


class _OtherPlaceFinder:
    """Finds modules in a place of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def find_spec(self, name: str, path: Any, target: object = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(self.place)])


def in_thread(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def test_an_import_that_is_still_looking_for_its_module_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(place, "later_sought", "done = True")
    slow = _SlowFinder("later_sought")
    monkeypatch.setattr(sys, "meta_path", [slow, *sys.meta_path])
    importing = in_thread(importlib.import_module, "later_sought")
    assert slow.begun.wait(10)
    seen: list[bool] = []
    asking = in_thread(
        imports.on_import,
        "later_sought",
        lambda: seen.append(sys.modules["later_sought"].done),
    )
    asking.join(0.1)
    assert seen == []
    slow.go_on.set()
    for thread in (importing, asking):
        thread.join(10)
        assert not thread.is_alive()
    assert seen == [True]


def test_watching_waits_for_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, "later_watched")
    slow = _SlowFinder("later_watched")
    monkeypatch.setattr(sys, "meta_path", [slow, *sys.meta_path])
    importing = in_thread(importlib.import_module, "later_watched")
    assert slow.begun.wait(10)
    watching = in_thread(imports.watch, "later_watched", lambda: None)
    watching.join(10)
    assert not watching.is_alive()
    slow.go_on.set()
    importing.join(10)


def test_a_module_that_is_being_executed_is_told_of_at_its_end(place: Path) -> None:
    """Not now, where it lacks what is defined further down."""
    write(
        place,
        "later_executed",
        "import tinker_guard.install.import_hooks as imports\nimport later_seen\n"
        "imports.on_import('later_executed', later_seen.look)\nvalue = 1\n",
    )
    write(
        place,
        "later_seen",
        "import sys\nvalues = []\n"
        "def look(): values.append(getattr(sys.modules['later_executed'], 'value', None))\n",
    )
    imports.watch("later_executed", lambda: None)
    importlib.import_module("later_executed")
    assert sys.modules["later_seen"].values == [1]
    assert imports.is_imported("later_executed")


def test_forgetting_leaves_nothing_in_the_import_system(place: Path) -> None:
    before = list(sys.meta_path)
    callback = lambda: None  # noqa: E731
    imports.watch("later_gone", callback)
    assert imports.is_watched("later_gone", callback)
    assert sys.meta_path != before
    imports.forget_all()
    assert not imports.is_watched("later_gone", callback)
    assert sys.meta_path == before


def test_an_import_under_way_skips_no_finder_when_ours_goes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As removing an entry from the list, that the import goes through, would make it do."""
    write(place, "other.later_after")
    slow = _SlowFinder("later_after", in_vain=True)
    other = _OtherPlaceFinder(place / "other")
    monkeypatch.setattr(sys, "meta_path", [slow, other, *sys.meta_path])
    imports.watch("later_other", lambda: None)
    importing = in_thread(importlib.import_module, "later_after")
    assert slow.begun.wait(10)
    imports.forget_all()
    slow.go_on.set()
    importing.join(10)
    assert "later_after" in sys.modules


def test_watching_and_forgetting_in_many_threads_loses_no_finder() -> None:
    """What is watched after the last forgetting finds its finder in place."""
    before = list(sys.meta_path)

    def watched() -> None: ...

    for _ in range(300):
        barrier = threading.Barrier(2)

        def forget(barrier: threading.Barrier = barrier) -> None:
            barrier.wait(10)
            imports.forget_all()

        forgetting = in_thread(forget)
        barrier.wait(10)
        imports.watch("later_never", watched)
        forgetting.join(10)
        assert (sys.meta_path != before) is imports.is_watched("later_never", watched)
        imports.forget_all()
    assert sys.meta_path == before
