"""Real bugs of Wan ports as switches on the diffusers port (spec Part D).

    with FAULTS["rope_half_split"].inject(port_of(pipe)):
        generate(pipe, request)

Each fault is one small context manager; on exit the live objects and the library are as before. See
`record.PortFault` for the fields and `record.NEEDS` for the vocabulary of `needs`.
"""

from itertools import chain

from ported.wan.faults import (
    attention,
    clip,
    conditioning,
    context,
    modulation,
    pipeline,
    positions,
    solver,
    text,
    vae_space,
    vae_time,
)
from ported.wan.faults.record import NEEDS, Port, PortFault, port_of

_MODULES = (positions, attention, context, modulation, text, clip, conditioning, vae_time, vae_space, solver, pipeline)
FAULTS: dict[str, PortFault] = {fault.name: fault for fault in chain.from_iterable(m.FAULTS for m in _MODULES)}

__all__ = ["FAULTS", "NEEDS", "Port", "PortFault", "port_of"]
