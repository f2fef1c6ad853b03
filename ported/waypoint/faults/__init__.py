"""Real faults of the port's history, and harmless changes, each put into a freshly built port by one small function.

Nothing here runs unless it is asked for: `FAULTS["rope_halves"].inject(port)` changes that port in place.
"""

from . import attention, cache, conditioning, pipeline, variations
from .registry import PortFault, PortVariation

FAULTS: dict[str, PortFault] = {
    entry.name: entry for family in (conditioning, attention, cache, pipeline) for entry in family.FAULTS
}
VARIATIONS: dict[str, PortVariation] = {entry.name: entry for entry in variations.VARIATIONS}

__all__ = ["FAULTS", "VARIATIONS", "PortFault", "PortVariation"]
