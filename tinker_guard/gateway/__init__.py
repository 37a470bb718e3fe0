"""A local gateway, control plane and trainer to try things on. Needs the extra `demo`."""

from .app import Exchange
from .faults import FAULTS, SAMPLING_FAULTS, Fault, JobStop, LostReply, Race
from .server import LocalGateway
from .trainer import Applied, Sampled

__all__ = [
    "FAULTS",
    "SAMPLING_FAULTS",
    "Applied",
    "Exchange",
    "Fault",
    "JobStop",
    "LocalGateway",
    "LostReply",
    "Race",
    "Sampled",
]
