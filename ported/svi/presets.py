"""Values of the SVI presets, and how strengths scale LoRA multipliers (spec section 6.5)."""

from dataclasses import dataclass

GUIDANCE_PHASES, STEPS, GUIDANCE, FLOW_SHIFT, SWITCH_THRESHOLD, SWITCH_PHASE = 2, 6, (1.0, 1.0), 5.0, 883, 1
SOLVER = "euler"


@dataclass(frozen=True)
class Adapter:
    """A LoRA of a preset: its multiplier in the high-noise and in the low-noise phase; `svi`: scaled by the strengths."""

    name: str
    multipliers: str
    svi: bool = True


ADAPTERS = (
    Adapter("svi_high_noise", "1;0"),
    Adapter("svi_low_noise", "0;1"),
    Adapter("acceleration_high", "1.2;0", svi=False),
    Adapter("acceleration_low", "0;1", svi=False),
)


def scaled(multipliers: str, strength: float) -> str:
    """Scale every number of `a;b`; whole numbers stay whole, others have two significant digits.

    Errors: ValueError for what is no list of numbers.
    """
    return ";".join(number(float(part) * strength) for part in multipliers.split(";"))


def number(value: float) -> str:
    """Print a whole number as such, another with two significant digits."""
    return str(int(value)) if value == int(value) else f"{value:.2g}"


def multipliers(
    strength: float | None = None, strength_1: float | None = None, strength_2: float | None = None
) -> tuple[str, ...]:
    """Multipliers of all adapters; `strength_1` is for adapters of the first phase, `strength_2` of the second."""
    found = []
    for adapter in ADAPTERS:
        special = strength_1 if adapter.multipliers.endswith(";0") else strength_2
        own = special if special is not None else strength
        found.append(adapter.multipliers if own is None or not adapter.svi else scaled(adapter.multipliers, own))
    return tuple(found)
