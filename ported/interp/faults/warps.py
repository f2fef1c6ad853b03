"""Faults of the warp interpolators (spec 14: IF-08 to IF-17, IF-31)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ported.interp import motion, warping
from ported.interp.faults.record import Port, PortFault, child, patched, swap
from ported.interp.flow import LatentFlowInterpolator
from ported.interp.motion import Motion
from ported.interp.sinkhorn import Match, SinkhornWarpInterpolator
from ported.interp.straighten import TokenMap

Warper = SinkhornWarpInterpolator


@contextmanager
def flow_alpha_twice(port: Port) -> Iterator[None]:
    """The flow is scaled by α before a blend that scales it again."""
    with ExitStack() as stack:
        for warper in port.all(LatentFlowInterpolator):
            stack.enter_context(patched(warper, "alpha_twice", True))
        yield


def forward_confidence(self: Warper, a0: Tensor, a1: Tensor, there: Match, back: Match, alpha: Tensor) -> tuple:
    """Both ends are weighted by the forward confidence, where it lies."""
    a = alpha.view(-1, 1, 1, 1)
    x0 = warping.warp(a0, self.displacement(there, a))
    x1 = warping.warp(a1, self.displacement(back, 1 - a))
    k = there.confidence
    y = self.mix(a0, a1, x0, x1, (1 - a) * k, a * k, a)
    return y.to(a0.dtype), k[:, 0].to(a0.dtype)


def eps_denominator(
    self: Warper, a0: Tensor, a1: Tensor, x0: Tensor, x1: Tensor, w0: Tensor, w1: Tensor, a: Tensor
) -> Tensor:
    """A small constant in the denominator instead of a fallback."""
    return (w0 * x0 + w1 * x1) / (w0 + w1 + 1e-6)


def warped_fallback(
    self: Warper, a0: Tensor, a1: Tensor, x0: Tensor, x1: Tensor, w0: Tensor, w1: Tensor, a: Tensor
) -> Tensor:
    """Where nobody is sure, the warped ends are blended."""
    total = w0 + w1
    return torch.where(total > 1e-6, (w0 * x0 + w1 * x1) / total.clamp(min=1e-6), (1 - a) * x0 + a * x1)


@contextmanager
def fallback_of_warped_ends(port: Port) -> Iterator[None]:
    """IF-11 is visible only where the displacement is not shrunk by the confidence, as in its time."""
    with patched(Warper, "mix", warped_fallback), patched(Warper, "displacement", whole_displacement):
        yield


def roll_as_translation(theta: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The roll is used as the translation: sign wrong, misalignment doubled."""
    return shift.unbind(dim=-1)


def ratio_of_extents(self: Warper, f0: Tensor, e0: Tensor) -> Tensor:
    """Pixels to tokens by (Wp−1)/(W−1)."""
    (hp, wp), (h, w) = f0.shape[1:3], e0.shape[-2:]
    return torch.tensor([(w - 1) / (wp - 1), (h - 1) / (hp - 1)], device=f0.device)


def whole_displacement(self: Warper, match: Match, share: Tensor) -> Tensor:
    """The displacement is not shrunk by the confidence."""
    return -share * match.flow


def search_all_channels(f0: Tensor, f1: Tensor, angles: Sequence[float], shift_range: int, chunk: int) -> Motion:
    """Motions are scored on all channels instead of their mean."""
    tried = motion.candidates(angles, shift_range, f0)
    best = f0.new_full((len(f0),), -math.inf)
    found = torch.zeros(len(f0), dtype=torch.long)
    for number in range(len(tried.theta)):
        moved = motion.resample(f1, Motion(*(values[number].expand(len(f0)) for values in tried)))
        score = (moved * f0).mean(dim=(1, 2, 3))
        found = torch.where(score > best, number, found)
        best = torch.maximum(best, score)
    return Motion(*(values[found] for values in tried))


def warp_uncast(image: Tensor, flow: Tensor) -> Tensor:
    """A float32 flow meets a half-precision image."""
    return F.grid_sample(image, warping.sampling_grid(flow), padding_mode="border", align_corners=True)


@contextmanager
def straightener_without_output(port: Port) -> Iterator[None]:
    """The output projection is missing where the widths agree: the module is far from the identity."""
    with ExitStack() as stack:
        for tokens in port.all(TokenMap):
            if isinstance(tokens.in_proj, nn.Identity):
                stack.enter_context(child(tokens, "out_proj", nn.Identity()))
        yield


_features = SinkhornWarpInterpolator.features


def features_uncast(self: Warper, encoded: Tensor) -> Tensor:
    """Float32 tokens meet the projection in the dtype of the module."""
    if self.token_proj is not None:
        self.token_proj(encoded.new_zeros(1, self.token_proj.in_features).float())
    return _features(self, encoded)


FAULTS: tuple[PortFault, ...] = (
    PortFault("flow_alpha_twice", "IF-08", "N6", "flow scaled by alpha twice", flow_alpha_twice, "flow"),
    PortFault(
        "forward_confidence_for_both",
        "IF-09",
        "C5",
        "both ends weighted by the forward confidence",
        swap(Warper, "blend", forward_confidence),
        "sinkhorn",
    ),
    PortFault(
        "eps_denominator", "IF-10", "N1", "blend divided by w0 + w1 + 1e-6", swap(Warper, "mix", eps_denominator), "sinkhorn"
    ),
    PortFault(
        "fallback_of_warped_ends", "IF-11", "N5", "fallback blends the warped ends", fallback_of_warped_ends, "sinkhorn"
    ),
    PortFault(
        "roll_as_translation", "IF-12", "P7", "roll used as translation", swap(motion, "translation", roll_as_translation), "sinkhorn"
    ),
    PortFault(
        "latent_shift_by_extents",
        "IF-13",
        "P5",
        "pixel shift to tokens by the ratio of extents",
        swap(Warper, "latent_unit", ratio_of_extents),
        "sinkhorn",
    ),
    PortFault(
        "displacement_not_shrunk",
        "IF-14",
        "N5",
        "displacement not multiplied by the confidence",
        swap(Warper, "displacement", whole_displacement),
        "sinkhorn",
    ),
    PortFault(
        "search_on_all_channels",
        "IF-15",
        "N7",
        "motion search scored on all channels",
        swap(motion, "search", search_all_channels),
        "sinkhorn",
    ),
    PortFault(
        "warp_flow_uncast", "IF-16", "N4", "float32 flow on a bf16 image", swap(warping, "warp", warp_uncast), "sinkhorn", "error"
    ),
    PortFault(
        "straightener_without_output", "IF-17", "N5", "no output projection at equal widths", straightener_without_output, "sinkhorn"
    ),
    PortFault(
        "matcher_uncast", "IF-31", "N4", "float32 tokens on a bf16 projection", swap(Warper, "features", features_uncast), "sinkhorn", "error"
    ),
)  # fmt: skip
