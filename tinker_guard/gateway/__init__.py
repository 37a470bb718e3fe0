"""A local gateway, control plane and trainer for tests. Needs the extra `demo`."""

from .faults import FAULTS, SAMPLING_FAULTS, Fault, JobStop, LostReply, Race
from .in_process import InProcessGateway
from .server import LocalGateway
from .trainer import Applied, Sampled
from .world import Exchange, World

__all__ = [
    "FAULTS",
    "SAMPLING_FAULTS",
    "Applied",
    "Exchange",
    "Fault",
    "InProcessGateway",
    "JobStop",
    "LocalGateway",
    "LostReply",
    "Race",
    "Sampled",
    "World",
]
