"""What the server of worker processes imports once, so that none of them has to."""

import contextlib

import benchmarks.runs  # noqa: F401

with contextlib.suppress(ImportError):
    import tinker.lib.internal_client_holder
    import tinker.proto.tinker_public_pb2  # noqa: F401
