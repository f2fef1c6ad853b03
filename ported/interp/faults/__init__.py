"""Real bugs of the system as switches on the port (spec 14).

    with FAULTS["flow_alpha_twice"].inject(Port(modules=(warper,))):
        warper.interpolate(latents, idx)

On exit the live objects and the package are as before. Left out: IF-29 and IF-37 are what the specification keeps (held
frames with confidence 1, grids in the dtype of the latents); IF-30 needs a logit space, which no checkpoint here has.
"""

from itertools import chain

from ported.interp.faults import forward, levels, networks, warps
from ported.interp.faults.record import Port, PortFault

FAULTS: dict[str, PortFault] = {
    fault.name: fault for fault in chain(networks.FAULTS, forward.FAULTS, warps.FAULTS, levels.FAULTS)
}

__all__ = ["FAULTS", "Port", "PortFault"]
