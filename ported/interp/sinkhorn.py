"""The Sinkhorn warp interpolator over all gaps of a batch (spec 5.4).

Matching is float32; each warp and its grid are in the dtype of what is warped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ported.interp import matching, motion, warping
from ported.interp.matching import Settings
from ported.interp.motion import Motion
from ported.interp.patches import patchify
from ported.interp.straighten import Straightener
from ported.interp.warping import fill_gaps, find_gaps


class Match(NamedTuple):
    """Displacement and confidence of a stack of pairs, on tokens (channel-last) or on latents (channel-first)."""

    flow: Tensor
    confidence: Tensor


class SinkhornWarpInterpolator(nn.Module):
    """`interpolate(latents, idx) -> (video, confidence)`."""

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 4,
        win_size: int = 5,
        win_stride: int = 0,
        global_mode: str = "phasecorr",
        phasecorr_mode: str = "mean",
        phasecorr_level: str = "token",
        angles_deg: Sequence[float] = (-10.0, -5.0, 0.0, 5.0, 10.0),
        shift_range: int = 4,
        se2_chunk: int = 64,
        sinkhorn_iters: int = 20,
        sinkhorn_tau: float = 0.05,
        dustbin_logit: float = -2.0,
        spatial_gamma: float = 0.0,
        spatial_radius: float = 0.0,
        fb_sigma: float = 0.0,
        d_match: int = 0,
        proj_mode: str = "groupmean",
        learn_tau: bool = False,
        learn_dustbin: bool = False,
        tau_min: float = 1e-3,
        straightener: Straightener | None = None,
        warp_space: str = "z",
    ) -> None:
        super().__init__()
        if warp_space == "s" and straightener is None:
            raise ValueError("warp_space='s' works on straightened latents: give a straightener")
        if global_mode not in ("se2", "phasecorr", "none"):
            raise ValueError(f"unknown global_mode {global_mode!r}")
        if proj_mode not in ("none", "groupmean", "linear"):
            raise ValueError(f"unknown proj_mode {proj_mode!r}")
        self.patch_size, self.win_size = patch_size, win_size
        self.win_stride = min(win_stride, win_size) if win_stride > 0 else win_size
        self.global_mode, self.phasecorr_mode, self.phasecorr_level = global_mode, phasecorr_mode, phasecorr_level
        self.angles, self.shift_range, self.se2_chunk = tuple(angles_deg), shift_range, se2_chunk
        self.iterations, self.fb_sigma, self.tau_min = sinkhorn_iters, fb_sigma, tau_min
        self.gamma, self.radius = spatial_gamma, spatial_radius
        self.d_match, self.proj_mode, self.warp_space = d_match, proj_mode, warp_space
        self.straightener = straightener
        width = in_channels * patch_size**2
        self.token_proj = nn.Linear(width, d_match, bias=False) if proj_mode == "linear" else None
        self.tau_raw = self.dustbin_param = None
        if learn_tau:
            self.tau_raw = nn.Parameter(torch.tensor(math.log(math.expm1(max(sinkhorn_tau - tau_min, 1e-6)))))
        else:
            self.register_buffer("tau_const", torch.tensor(float(sinkhorn_tau)), persistent=False)
        if learn_dustbin:
            self.dustbin_param = nn.Parameter(torch.tensor(float(dustbin_logit)))
        else:
            self.register_buffer("dustbin_const", torch.tensor(float(dustbin_logit)), persistent=False)

    def settings(self) -> Settings:
        """Temperature, dustbin and priors as they are now."""
        tau = self.tau_const if self.tau_raw is None else F.softplus(self.tau_raw) + self.tau_min
        dustbin = self.dustbin_const if self.dustbin_param is None else self.dustbin_param
        return Settings(tau, dustbin, self.gamma, self.radius, self.iterations)

    def encode(self, z: Tensor) -> Tensor:
        """Straightened latents, or the latents."""
        return z if self.straightener is None else self.straightener.encode(z)

    def features(self, encoded: Tensor) -> Tensor:
        """Unit features of patches, float32: `(n, c, h, w)` -> `(n, hp, wp, d)`."""
        tokens, shape = patchify(encoded.unsqueeze(1), self.patch_size)
        tokens = tokens.squeeze(1).float()
        if self.token_proj is not None:
            tokens = F.linear(tokens, self.token_proj.weight.float())
        elif self.proj_mode == "groupmean" and 0 < self.d_match < tokens.shape[-1]:
            if tokens.shape[-1] % self.d_match:
                raise ValueError(f"{tokens.shape[-1]} features cannot be averaged in {self.d_match} groups")
            tokens = tokens.unflatten(-1, (self.d_match, -1)).mean(dim=-1)
        return F.normalize(tokens, dim=-1, eps=1e-6).unflatten(1, shape)

    def global_motion(self, f0: Tensor, f1: Tensor, e0: Tensor, e1: Tensor) -> Motion:
        """Motion of all pairs, `(pairs,)` each."""
        if self.global_mode == "none":
            return motion.still(f0[:, 0, 0, 0])
        if self.global_mode == "se2":
            return motion.search(f0, f1, self.angles, self.shift_range, self.se2_chunk)
        maps, unit = (f0, f1), 1.0
        if self.phasecorr_level == "latent":
            maps, unit = tuple(e.float().permute(0, 2, 3, 1) for e in (e0, e1)), self.latent_unit(f0, e0)
        if self.phasecorr_mode == "mean":
            maps = tuple(m.mean(dim=-1, keepdim=True) for m in maps)
        return motion.phase_correlate(*maps, self.angles, unit)

    def latent_unit(self, f0: Tensor, e0: Tensor) -> Tensor | float:
        """Pixels of the latents a token."""
        return float(self.patch_size)

    def align(self, f1: Tensor, moved: Motion) -> Tensor:
        """Second features where the motion says."""
        return f1 if self.global_mode == "none" else motion.resample(f1, moved)

    def local_match(self, f0: Tensor, f1: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement `(pairs, hp, wp, 2)` and confidence `(pairs, hp, wp)`."""
        if self.win_stride < self.win_size:
            return matching.match_overlapping(f0, f1, self.win_size, self.win_stride, self.settings())
        return matching.match_tiles(f0, f1, self.win_size, self.settings())

    def compose(self, delta: Tensor, moved: Motion) -> Tensor:
        """Local on global displacement, in tokens."""
        return motion.compose(delta, moved)

    def match(self, f0: Tensor, f1: Tensor, e0: Tensor, e1: Tensor) -> Match:
        """All pairs from the first keyframe to the second."""
        moved = self.global_motion(f0, f1, e0, e1)
        delta, confidence = self.local_match(f0, self.align(f1, moved))
        return Match(self.compose(delta, moved), confidence)

    def consistency(self, flow01: Tensor, flow10: Tensor) -> Tensor:
        """Length of there and back, `(pairs, hp, wp)`; 0 where nobody asks for it."""
        if self.fb_sigma <= 0:
            return torch.zeros_like(flow01[..., 0])
        there, back = flow01.permute(0, 3, 1, 2), flow10.permute(0, 3, 1, 2)
        return (there + warping.warp(back, there)).norm(dim=1)

    def trust(self, error: Tensor) -> Tensor:
        """A Gaussian of the error: the factor of the confidence."""
        return torch.exp(-0.5 * (error / self.fb_sigma).square()) if self.fb_sigma > 0 else torch.ones_like(error)

    def upsample(self, match: Match, size: tuple[int, int]) -> Match:
        """Flow in pixels `(pairs, 2, h, w)`, confidence `(pairs, 1, h, w)`, in one resize."""
        both = torch.cat((match.flow, match.confidence[..., None]), dim=-1).permute(0, 3, 1, 2)
        both = F.interpolate(both, size=size, mode="bilinear", align_corners=True)
        return Match(both[:, :2] * self.patch_size, both[:, 2:].clamp(0, 1))

    def blend(self, a0: Tensor, a1: Tensor, there: Match, back: Match, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Frames at α `(m,)`: `(m, c, h, w)` and confidence `(m, h, w)`."""
        a = alpha.view(-1, 1, 1, 1)
        g0, g1 = self.displacement(there, a), self.displacement(back, 1 - a)
        x0, x1 = warping.warp(a0, g0), warping.warp(a1, g1)
        k0, k1 = warping.warp(there.confidence, g0), warping.warp(back.confidence, g1)
        y = self.mix(a0, a1, x0, x1, (1 - a) * k0, a * k1, a)
        return y.to(a0.dtype), torch.minimum(k0, k1)[:, 0].to(a0.dtype)

    def displacement(self, match: Match, share: Tensor) -> Tensor:
        """How far to read: the flow, shrunk by its confidence."""
        return -share * (match.flow * match.confidence)

    def mix(self, a0: Tensor, a1: Tensor, x0: Tensor, x1: Tensor, w0: Tensor, w1: Tensor, a: Tensor) -> Tensor:
        """Weighted mean of the warped ends; the unwarped ends where nobody is sure."""
        total = w0 + w1
        return torch.where(total > 1e-6, (w0 * x0 + w1 * x1) / total.clamp(min=1e-6), (1 - a) * a0 + a * a1)

    @torch.no_grad()
    def interpolate(self, latents: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Fill clips `(b, t, c, h, w)` between keyframes `(b, K)`; confidence `(b, t, h, w)`."""
        gaps = find_gaps(idx)

        def make() -> tuple[Tensor, Tensor]:
            z0, z1 = latents[gaps.sample, gaps.start], latents[gaps.sample, gaps.end]
            e0, e1 = self.encode(z0), self.encode(z1)
            there, back = self.both_ways(e0, e1, latents.shape[-2:])
            ends = (e0, e1) if self.warp_space == "s" else (z0, z1)
            n = gaps.pair
            frames, trust = self.blend(
                ends[0][n],
                ends[1][n],
                Match(there.flow[n], there.confidence[n]),
                Match(back.flow[n], back.confidence[n]),
                gaps.alpha(latents),
            )
            if self.warp_space == "s":
                frames = self.straightener.decode(frames)
            return frames, trust

        return fill_gaps(latents, idx, gaps, make)

    def both_ways(self, e0: Tensor, e1: Tensor, size: tuple[int, int]) -> tuple[Match, Match]:
        """Matches of all pairs in both directions, checked against each other, at the size of the latents."""
        f0, f1 = self.features(e0), self.features(e1)
        there, back = self.match(f0, f1, e0, e1), self.match(f1, f0, e1, e0)
        checked = (
            Match(there.flow, there.confidence * self.trust(self.consistency(there.flow, back.flow))),
            Match(back.flow, back.confidence * self.trust(self.consistency(back.flow, there.flow))),
        )
        return self.upsample(checked[0], size), self.upsample(checked[1], size)
