"""Faults of the port's history as switches, by name (spec section 12)."""

from ported.svi.faults import latents, masks, pixels, sampling, tasks
from ported.svi.faults.record import Port, PortFault

FAULTS: dict[str, PortFault] = {
    fault.name: fault for part in (pixels, masks, latents, sampling, tasks) for fault in part.FAULTS
}

__all__ = ["FAULTS", "Port", "PortFault"]
