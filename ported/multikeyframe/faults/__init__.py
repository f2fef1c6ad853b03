"""Real bugs of multi-keyframe generation as switches (specification, section 10)."""

from ported.multikeyframe.faults import joints, plan, runs, segment
from ported.multikeyframe.faults.record import PortFault

FAULTS: dict[str, PortFault] = {fault.name: fault for part in (plan, segment, joints, runs) for fault in part.FAULTS}

__all__ = ["FAULTS", "PortFault"]
