"""Upstream behaviour that departs from what the specification calls right: off by default, on to reproduce its numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Quirk:
    """One departure. `where` names the switch."""

    id: str
    where: str
    what: str
    spec: str


KNOWN = (
    Quirk(
        "flow-alpha-twice",
        "flow:LatentFlowInterpolator(alpha_twice=True)",
        "interpolate() scales the flow by alpha before a blend that scales it again: displacement alpha squared.",
        "5.1, IF-08",
    ),
    Quirk(
        "flat-confidence-lost",
        "corruption:Corruption(confidence_lost=True)",
        "The flat builders write the confidence of keyframes into a copy: only clamped endpoints keep theirs.",
        "6.1, IF-07",
    ),
)
