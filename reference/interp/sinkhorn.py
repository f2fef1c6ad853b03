"""The Sinkhorn warp interpolator: match two keyframes token by token, warp both, blend by confidence (spec 5.4).

Precision: matching, displacements and confidences are float32 whatever the latents are; each warp is in the dtype of
what is warped (the grid too), α is formed in the dtype of the latents, the result goes back to it.
Stages take stacks (of frames, pairs of keyframes, frames to fill) and go through them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from . import matching, motion
from .motion import Motion
from .patches import patchify
from .straighten import Straightener
from .warping import fraction, hold_and_fill, nothing, segments_of, warp

GLOBAL_MODES = ("se2", "phasecorr", "none")
PROJECTIONS = ("none", "groupmean", "linear")


class Match(NamedTuple):
    """How the tokens of one keyframe move to another, for a stack of pairs."""

    flow: Tensor  # (pairs, hp, wp, 2), tokens
    confidence: Tensor  # (pairs, hp, wp)


class SinkhornWarpInterpolator(nn.Module):
    """Contract of every warp interpolator: `interpolate(latents, idx) -> (video, confidence)`.

    Errors: ValueError for unknown modes, features that do not divide into groups, or `warp_space="s"` without a straightener.
    """

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
            raise ValueError("warp_space 's' needs a straightener")
        if global_mode not in GLOBAL_MODES or proj_mode not in PROJECTIONS:
            raise ValueError(
                f"global_mode {global_mode!r} / proj_mode {proj_mode!r}: see {GLOBAL_MODES}, {PROJECTIONS}"
            )
        del se2_chunk  # how many candidates a vectorised search takes at a time: no meaning in a loop
        self.patch_size, self.win_size, self.win_stride = patch_size, win_size, win_stride
        self.global_mode, self.phasecorr_mode, self.phasecorr_level = global_mode, phasecorr_mode, phasecorr_level
        self.angles, self.shift_range, self.iterations = list(angles_deg), shift_range, sinkhorn_iters
        self.spatial_gamma, self.spatial_radius, self.fb_sigma = spatial_gamma, spatial_radius, fb_sigma
        self.d_match, self.proj_mode, self.tau_min, self.warp_space = d_match, proj_mode, tau_min, warp_space
        self.straightener = straightener
        self.token_proj = None
        if proj_mode == "linear":
            self.token_proj = nn.Linear(in_channels * patch_size**2, d_match, bias=False)
        self.learn_tau, self.learn_dustbin = learn_tau, learn_dustbin
        if learn_tau:
            self.tau_raw = nn.Parameter(torch.tensor(math.log(math.expm1(max(sinkhorn_tau - tau_min, 1e-6)))))
        else:
            self.register_buffer("tau_const", torch.tensor(float(sinkhorn_tau)), persistent=False)
        if learn_dustbin:
            self.dustbin_param = nn.Parameter(torch.tensor(float(dustbin_logit)))
        else:
            self.register_buffer("dustbin_const", torch.tensor(float(dustbin_logit)), persistent=False)

    def temperature(self) -> Tensor:
        """τ, a scalar in the dtype of the module."""
        return F.softplus(self.tau_raw) + self.tau_min if self.learn_tau else self.tau_const

    def dustbin(self) -> Tensor:
        """Logit of the dustbin, a scalar."""
        return self.dustbin_param if self.learn_dustbin else self.dustbin_const

    def encode(self, z: Tensor) -> Tensor:
        """Straightened latents `(n, c, h, w)`, or the latents themselves."""
        return z if self.straightener is None else torch.cat([self.straightener.encode(frame[None]) for frame in z])

    def features(self, encoded: Tensor) -> Tensor:
        """Unit features of every patch, float32: `(n, c, h, w)` -> `(n, hp, wp, d)`."""
        tokens, (hp, wp) = patchify(encoded[:, None], self.patch_size)
        tokens = tokens[:, 0].float()
        if self.token_proj is not None:
            tokens = F.linear(tokens, self.token_proj.weight.float())
        elif self.proj_mode == "groupmean" and 0 < self.d_match < tokens.shape[-1]:
            if tokens.shape[-1] % self.d_match:
                raise ValueError(f"{tokens.shape[-1]} features do not divide into {self.d_match} groups")
            tokens = reduce(tokens, "n l (d g) -> n l d", "mean", d=self.d_match)
        return rearrange(F.normalize(tokens, dim=-1, eps=1e-6), "n (y x) d -> n y x d", y=hp, x=wp)

    def global_motion(self, f0: Tensor, f1: Tensor, e0: Tensor, e1: Tensor) -> Motion:
        """Motion of every pair: features `(pairs, hp, wp, d)` and encoded latents `(pairs, c, h, w)`; `(pairs,)` each."""
        found = [self.motion_of_pair(*pair) for pair in zip(f0, f1, e0, e1, strict=True)]
        return Motion(*(torch.stack(part) for part in zip(*found, strict=True)))

    def motion_of_pair(self, f0: Tensor, f1: Tensor, e0: Tensor, e1: Tensor) -> Motion:
        if self.global_mode == "none":
            return motion.still(f0)
        if self.global_mode == "se2":
            return motion.search(f0, f1, self.angles, self.shift_range)
        unit = 1.0
        if self.phasecorr_level == "latent":
            f0, f1 = (rearrange(e.float(), "c h w -> h w c") for e in (e0, e1))
            unit = float(self.patch_size)
        if self.phasecorr_mode == "mean":
            f0, f1 = f0.mean(dim=-1, keepdim=True), f1.mean(dim=-1, keepdim=True)
        return motion.phase_correlate(f0, f1, self.angles, unit)

    def align(self, f1: Tensor, moved: Motion) -> Tensor:
        """Features of the second keyframe, read where the motion says: `(pairs, hp, wp, d)`."""
        if self.global_mode == "none":
            return f1
        return torch.stack([motion.resample(m, Motion(*each)) for m, *each in zip(f1, *moved, strict=True)])

    def local_match(self, f0: Tensor, f1: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement `(pairs, hp, wp, 2)` and confidence `(pairs, hp, wp)` inside windows."""
        pairs = [self.match_pair(a, b) for a, b in zip(f0, f1, strict=True)]
        return torch.stack([delta for delta, _ in pairs]), torch.stack([conf for _, conf in pairs])

    def match_pair(self, f0: Tensor, f1: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one pair `(hp, wp, d)`, window by window."""
        h, w = f0.shape[:2]
        windows = matching.Windows(h, w, self.win_size, self.win_stride)
        f0, f1 = (matching.pad_map(f, *windows.padding) for f in (f0, f1))
        moved, trust, count = (torch.zeros(*f0.shape[:2], k, device=f0.device) for k in (2, 1, 1))
        for y, x, wh, ww in (window for group in windows.groups() for window in group):
            area = (slice(y, y + wh), slice(x, x + ww))
            delta, confidence, _, _ = self.match_window(f0[area], f1[area])
            moved[area] += delta * (confidence[..., None] if windows.overlapping else 1)
            trust[area] += confidence[..., None]
            count[area] += 1
        if windows.overlapping:
            moved, trust = moved / trust.clamp(min=1e-8), (trust / count).clamp(0, 1)
        return moved[:h, :w], trust[:h, :w, 0]

    def match_window(self, f0: Tensor, f1: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One window `(h, w, d)`: displacement, confidence, logits, plan."""
        return matching.match_window(
            f0, f1, self.temperature(), self.dustbin(), self.spatial_gamma, self.spatial_radius, self.iterations
        )

    def match(self, f0: Tensor, f1: Tensor, e0: Tensor, e1: Tensor) -> Match:
        """Match every pair from the first keyframe to the second."""
        moved = self.global_motion(f0, f1, e0, e1)
        delta, confidence = self.local_match(f0, self.align(f1, moved))
        return Match(self.compose(delta, moved), confidence)

    def compose(self, delta: Tensor, moved: Motion) -> Tensor:
        """Local displacement on top of the global motion: `(pairs, hp, wp, 2)` in tokens."""
        return torch.stack([motion.compose(d, Motion(*each)) for d, *each in zip(delta, *moved, strict=True)])

    def consistency(self, flow01: Tensor, flow10: Tensor) -> Tensor:
        """Length of going there and back, `(pairs, hp, wp)` in tokens; not asked for (0) without a sigma."""
        if self.fb_sigma <= 0:
            return torch.zeros_like(flow01[..., 0])
        errors = []
        for there, back in zip(flow01, flow10, strict=True):
            there, back = (rearrange(f, "h w two -> 1 two h w") for f in (there, back))
            errors.append((there + warp(back, there)).norm(dim=1)[0])
        return torch.stack(errors)

    def trust(self, error: Tensor) -> Tensor:
        """Factor of the confidence from how far going there and back misses; 1 without a sigma."""
        if self.fb_sigma <= 0:
            return torch.ones_like(error)
        return torch.exp(-0.5 * (error / self.fb_sigma) ** 2)

    def upsample(self, match: Match, size: tuple[int, int]) -> Match:
        """Flow in pixels `(pairs, 2, h, w)` and confidence `(pairs, 1, h, w)` at the size of the latents."""
        scale = {"size": size, "mode": "bilinear", "align_corners": True}
        flow = F.interpolate(rearrange(match.flow, "b h w two -> b two h w"), **scale) * self.patch_size
        return Match(flow, F.interpolate(match.confidence[:, None], **scale).clamp(0, 1))

    def blend(self, a0: Tensor, a1: Tensor, there: Match, back: Match, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Frames at α `(m,)` between keyframes `(m, c, h, w)`: `(m, c, h, w)`, confidence `(m, h, w)`."""
        frames = [self.blend_one(*(x[None] for x in parts)) for parts in zip(a0, a1, *there, *back, alpha, strict=True)]
        return torch.cat([frame for frame, _ in frames]), torch.cat([conf for _, conf in frames])

    def blend_one(
        self, a0: Tensor, a1: Tensor, f01: Tensor, c01: Tensor, f10: Tensor, c10: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One frame. The displacement shrinks with the confidence; without confidence the ends are blended unwarped."""
        a = alpha.view(1, 1, 1, 1)
        g0, g1 = -a * (f01 * c01), -(1 - a) * (f10 * c10)
        x0, x1, k0, k1 = warp(a0, g0), warp(a1, g1), warp(c01, g0), warp(c10, g1)
        w0, w1 = (1 - a) * k0, a * k1
        total = w0 + w1
        warped = (w0 * x0 + w1 * x1) / total.clamp(min=1e-6)
        y = torch.where(total > 1e-6, warped, (1 - a) * a0 + a * a1)
        return y.to(a0.dtype), torch.minimum(k0, k1)[:, 0].to(a0.dtype)

    @torch.no_grad()
    def interpolate(self, latents: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
        """Fill a clip `(b, t, c, h, w)` between keyframes `(b, K)`; returns it and the confidence `(b, t, h, w)`."""
        segments = segments_of(idx)
        if not segments:
            return hold_and_fill(latents, idx, nothing)
        z0 = torch.stack([latents[s.sample, s.start] for s in segments])
        z1 = torch.stack([latents[s.sample, s.end] for s in segments])
        e0, e1 = self.encode(z0), self.encode(z1)
        f0, f1 = self.features(e0), self.features(e1)
        there, back = self.match(f0, f1, e0, e1), self.match(f1, f0, e1, e0)
        there, back = (
            Match(there.flow, there.confidence * self.trust(self.consistency(there.flow, back.flow))),
            Match(back.flow, back.confidence * self.trust(self.consistency(back.flow, there.flow))),
        )
        size = (latents.shape[-2], latents.shape[-1])
        there, back = self.upsample(there, size), self.upsample(back, size)
        ends = (e0, e1) if self.warp_space == "s" else (z0, z1)
        places = [(n, t) for n, segment in enumerate(segments) for t in segment.inner]
        of = [n for n, _ in places]
        alpha = torch.stack([fraction(segments[n], t, latents) for n, t in places])
        pick = lambda match: Match(match.flow[of], match.confidence[of])  # noqa: E731
        frames, trust = self.blend(ends[0][of], ends[1][of], pick(there), pick(back), alpha)
        if self.warp_space == "s" and self.straightener is not None:
            frames = torch.cat([self.straightener.decode(frame[None]) for frame in frames])
        at = {place: m for m, place in enumerate(places)}
        return hold_and_fill(latents, idx, lambda n, segment, t: (frames[at[n, t]], trust[at[n, t]]))
