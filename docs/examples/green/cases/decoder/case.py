"""The decoder of the tutorial as a case: docs/cases.md goes through it field by field."""

import pair
import torch

from parity.capture.probes import Modules, Scope
from parity.case import Case, Expectation, Fault, Setting, Side, System, Variation
from parity.trace.names import parse_names


def side(make):
    """Build, run and see one implementation; `make` returns (function, module)."""
    return Side(
        build=lambda setting: make()[1].to(setting.device, setting.dtype),
        run=lambda decoder, latents: make()[0](decoder, latents),  # the decoder that is given, never one's own
        probes=lambda decoder: [Modules(decoder), Scope(decoder, "forward", "frame")],
        modules=lambda decoder: {"": decoder},
    )


def latents(setting: Setting):
    """The same for both sides."""
    return pair.inputs()[0].to(setting.device, setting.dtype)


def dimmed(decoder):
    """A bug on purpose: the planes a tenth too dark."""
    decoder.planes.weight.data *= 0.9


SYSTEM = System(
    name="decoder",
    text="frames from latents, one at a time",
    cases=(
        Case(
            system="decoder",
            name="five",
            text="five frames of a still scene",
            reference=side(pair.reference),
            port=side(pair.port),
            inputs=latents,
            axes=("frame",),
            names=parse_names([{"port": "(widen|planes)(.*)", "reference": r"\1\2"}]),
            dtypes=(torch.float32,),
        ),
    ),
    faults=(Fault("dimmed", "The planes a tenth too dark.", dimmed, Expectation("planes", classes=("N5",))),),
    variations=(Variation("as_it_is", "Nothing changed."),),
)
