"""Real bugs of the EchoMimicV2 server as switches on the port (spec 12).

    with FAULTS["audio_fps"].inject(networks):
        animate(networks, ...)

Each fault is one small context manager; on exit the networks and the modules are as before. The server's published states are sets of
faults: `in_state("A")`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain

from ported.echomimic.build import Networks
from ported.echomimic.faults import conditions, output, quantisation, reference, sampling
from ported.echomimic.faults.record import PortFault
from ported.echomimic.settings import STATES

_MODULES = (quantisation, conditions, reference, sampling, output)
FAULTS: dict[str, PortFault] = {fault.name: fault for fault in chain.from_iterable(m.FAULTS for m in _MODULES)}


@contextmanager
def in_state(name: str, networks: Networks) -> Iterator[None]:
    """All faults of a published state of the server, "A" or "B", at once; networks must be quantised for A."""
    with ExitStack() as stack:
        for fault in STATES[name].faults:
            stack.enter_context(FAULTS[fault].inject(networks))
        yield


__all__ = ["FAULTS", "PortFault", "in_state"]
