"""Ids of spans that leave the program's random numbers as they are."""

from __future__ import annotations

import secrets

from opentelemetry.sdk.trace.id_generator import IdGenerator


class OwnIds(IdGenerator):
    """Random ids that come from the system.

    OpenTelemetry's come from the module `random`: a training that has seeded it would draw other
    numbers with an export than without, and others each time.
    """

    def generate_span_id(self) -> int:
        """Return 64 random bits; never 0, which is no id."""
        return secrets.randbits(64) or 1

    def generate_trace_id(self) -> int:
        """Return 128 random bits; never 0, which is no id."""
        return secrets.randbits(128) or 1

    def is_trace_id_random(self) -> bool:
        """Return True: samplers may go by these bits."""
        return True
