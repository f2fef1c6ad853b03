"""Denoising stage of the port's pipeline: frames one after another, each denoised, then passed once more for the cache
(spec A7, B10).

Precision: latents and sigmas are in the engine's dtype; sigma differences are taken in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .cache import WaypointKVCache
from .model import WaypointWorldModel


@dataclass(frozen=True)
class Controls:
    """Controls of the frames of one call: mouse [B, T, 2], button [B, T, n_buttons], scroll [B, T, 1]."""

    mouse: Tensor
    button: Tensor
    scroll: Tensor

    @property
    def n_frames(self) -> int:
        return min(self.mouse.shape[1], self.button.shape[1], self.scroll.shape[1])


class DenoisingStage(nn.Module):
    """Streaming generation of latents. One call of `streaming_step` makes as many frames as its controls have."""

    sigmas: Tensor

    def __init__(self, model: WaypointWorldModel, kv_cache: WaypointKVCache) -> None:
        super().__init__()
        self.model = model
        self.kv_cache = kv_cache
        weight = model.patchify.weight
        sigmas = torch.tensor(model.config.scheduler_sigmas, dtype=weight.dtype, device=weight.device)
        self.register_buffer("sigmas", sigmas, persistent=False)
        self.frame_index = 0
        self.seed = 0
        self.prompt_emb: Tensor | None = None
        self.prompt_pad_mask: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.sigmas.device

    # Session

    @torch.no_grad()
    def streaming_reset(
        self,
        prompt_emb: Tensor | None,
        prompt_pad_mask: Tensor | None,
        image_latent: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Start a session; image_latent [1, C, h, w], if given, becomes frame 0 with zero controls."""
        self.streaming_clear()
        self.seed = seed
        self.set_prompt(prompt_emb, prompt_pad_mask)
        if image_latent is not None:
            self.append_latent(image_latent)

    def set_prompt(self, prompt_emb: Tensor | None, prompt_pad_mask: Tensor | None) -> None:
        """prompt_emb [1, S, P] with zero rows on padding, prompt_pad_mask bool [1, S], True on padding."""
        if self.model.prompt_cfg is not None and prompt_emb is None:
            raise ValueError("Waypoint port: this checkpoint is conditioned on a prompt, but none was given")
        self.prompt_emb = None if prompt_emb is None else prompt_emb.to(self.device, self.dtype)
        self.prompt_pad_mask = None if prompt_pad_mask is None else prompt_pad_mask.to(self.device)

    def streaming_clear(self) -> None:
        """Forget the history, the prompt and the frame index."""
        self.kv_cache.reset()
        self.frame_index = 0
        self.prompt_emb = self.prompt_pad_mask = None

    @torch.no_grad()
    def streaming_step(
        self, keyboard: Tensor, mouse: Tensor, scroll: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Generate the next frames -> latents [B, C, T, h, w].

        keyboard [B, T, n_buttons] of 0 and 1, mouse [B, T, 2], scroll [B, T, 1], [B, T] or [T]; T is the shortest of
        the three. noise [T, 1, 1, C, h, w] replaces the per-frame generator.
        """
        controls = self.prepare_controls(keyboard, mouse, scroll)
        if noise is not None and len(noise) < controls.n_frames:
            raise ValueError(f"Waypoint port: noise for {len(noise)} frames, controls for {controls.n_frames}")
        latents = [self.generate_frame(i, controls, noise) for i in range(controls.n_frames)]
        return torch.stack([latent[:, 0] for latent in latents], dim=2)

    # Inputs of a frame

    def prepare_controls(self, keyboard: Tensor, mouse: Tensor, scroll: Tensor | None) -> Controls:
        if scroll is None:
            scroll = torch.zeros(*mouse.shape[:2], 1)
        if scroll.ndim == 1:
            scroll = scroll.unsqueeze(0)
        if scroll.ndim == 2:
            scroll = scroll.unsqueeze(-1)
        parts = (mouse, keyboard, self.scroll_value(scroll))
        return Controls(*(part.to(self.device, self.dtype) for part in parts))

    def scroll_value(self, scroll: Tensor) -> Tensor:
        """Direction of the wheel: -1, 0 or 1."""
        return scroll.sign()

    def control_index(self, i: int, n_frames: int) -> int:
        """Which of the call's controls the call's i-th frame takes."""
        return i

    def controls_at(self, i: int, controls: Controls) -> tuple[Tensor, Tensor, Tensor]:
        """(mouse [B, 1, 2], button [B, 1, n_buttons], scroll [B, 1, 1]) of the call's i-th frame."""
        at = self.control_index(i, controls.n_frames)
        mouse, button, scroll = (c[:, at : at + 1] for c in (controls.mouse, controls.button, controls.scroll))
        return mouse, button, scroll

    def zero_controls(self) -> tuple[Tensor, Tensor, Tensor]:
        sizes = (2, self.model.config.n_buttons, 1)
        mouse, button, scroll = (torch.zeros(1, 1, n, dtype=self.dtype, device=self.device) for n in sizes)
        return mouse, button, scroll

    def timestamp(self) -> Tensor:
        """Index of the frame in the session, int64 [1, 1]."""
        return torch.full((1, 1), self.frame_index, dtype=torch.int64, device=self.device)

    def draw_noise(self) -> Tensor:
        """[1, 1, C, h, w] from a generator seeded with seed + frame index."""
        generator = torch.Generator().manual_seed(self.seed + self.frame_index)
        return torch.randn(1, 1, *self.model.config.latent_shape, generator=generator, dtype=self.dtype)

    def initial_latent(self, i: int, noise: Tensor | None) -> Tensor:
        return (self.draw_noise() if noise is None else noise[i]).to(self.device, self.dtype)

    # One frame

    def generate_frame(self, i: int, controls: Controls, noise: Tensor | None) -> Tensor:
        """Denoise the call's i-th frame, write it to the cache, advance -> latent [1, 1, C, h, w]."""
        x = self.initial_latent(i, noise)
        timestamp, inputs = self.timestamp(), self.controls_at(i, controls)
        x = self.denoise_frame(x, timestamp, inputs)
        self.cache_pass(x, timestamp, inputs)
        self.advance()
        return x

    def append_latent(self, latent: Tensor) -> None:
        """Put a given frame [1, C, h, w] in the history, with zero controls, and advance."""
        x = latent.unsqueeze(1).to(self.device, self.dtype)
        self.cache_pass(x, self.timestamp(), self.zero_controls())
        self.advance()

    def advance(self) -> None:
        self.frame_index += 1

    def denoise_frame(self, x: Tensor, timestamp: Tensor, controls: tuple[Tensor, ...]) -> Tensor:
        self.kv_cache.frozen = True
        for step in range(len(self.sigmas) - 1):
            x = self.denoise_step(x, step, timestamp, controls)
        return x

    def denoise_step(self, x: Tensor, step: int, timestamp: Tensor, controls: tuple[Tensor, ...]) -> Tensor:
        v = self.predict(x, self.sigma_at(step), timestamp, controls)
        return self.euler_step(x, v, self.sigmas[step], self.sigmas[step + 1])

    def sigma_at(self, step: int) -> Tensor:
        """Noise level of a denoise step as the model takes it, [1, 1]."""
        return self.sigmas[step].view(1, 1)

    def predict(self, x: Tensor, sigma: Tensor, timestamp: Tensor, controls: tuple[Tensor, ...]) -> Tensor:
        """Velocity of x [1, 1, C, h, w] at sigma [1, 1]."""
        return self.model(x, sigma, timestamp, self.prompt_emb, self.prompt_pad_mask, *controls, self.kv_cache)

    def euler_step(self, x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        return x + (sigma_next - sigma) * v

    def cache_sigma(self) -> Tensor:
        """Noise level of the cache pass: a clean frame, [1, 1]."""
        return torch.zeros(1, 1, dtype=self.dtype, device=self.device)

    def cache_pass(self, x: Tensor, timestamp: Tensor, controls: tuple[Tensor, ...]) -> None:
        """One forward on the finished latent with the cache unfrozen; its output is dropped."""
        self.kv_cache.frozen = False
        self.predict(x, self.cache_sigma(), timestamp, controls)
