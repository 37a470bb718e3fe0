"""A plugin for pytest that collects tests as on another machine, at another time.

With `TINKER_GUARD_ELSEWHERE` set, clocks, host name, processors and the compression libraries are
others than here. In any case, the ids of what was collected are written as JSON, in their order, to
the file that `TINKER_GUARD_IDS` names.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import socket
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pytest

# Some three years, and another fraction of a second.
_SHIFT: Final = 100_000_007.31


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _Datetime:
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> _Datetime:
        return cls.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)


class _Date(datetime.date):
    @classmethod
    def today(cls) -> _Date:
        return cls.fromtimestamp(time.time())


def _go_elsewhere() -> None:
    here, here_ns, uname, compress = time.time, time.time_ns, os.uname(), zlib.compress
    replaced: dict[Any, dict[str, Any]] = {
        time: {"time": lambda: here() + _SHIFT, "time_ns": lambda: here_ns() + int(_SHIFT * 1e9)},
        datetime: {"datetime": _Datetime, "date": _Date},
        socket: {"gethostname": lambda: "elsewhere", "getfqdn": lambda *_: "elsewhere.test"},
        platform: {"node": lambda: "elsewhere"},
        os: {
            "cpu_count": lambda: 17,
            "uname": lambda: os.uname_result((uname[0], "elsewhere", *uname[2:])),
        },
        # Another version of a compression library, or zlib-ng, gives other bytes.
        zlib: {"compress": lambda data, level=-1, wbits=15: compress(data, 0, wbits)},
    }
    for module, values in replaced.items():
        for name, value in values.items():
            setattr(module, name, value)


def pytest_collection_finish(session: pytest.Session) -> None:
    ids = [item.nodeid for item in session.items]
    Path(os.environ["TINKER_GUARD_IDS"]).write_text(json.dumps(ids))


if os.environ.get("TINKER_GUARD_ELSEWHERE"):
    _go_elsewhere()
