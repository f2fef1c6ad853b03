"""Faults of the sampler, the controls and the decoding of the pipeline (spec C15, C17)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

from ..denoising import DenoisingStage
from ..pipeline import WaypointPipeline
from .registry import PortFault, fault, rebind


def schedule_of_another_checkpoint(port: WaypointPipeline) -> None:
    """The schedule is another checkpoint's: three steps at 1, 0.949 and 0.840."""
    port.denoising.sigmas = port.denoising.sigmas.new_tensor([1.0, 0.94921875, 0.83984375, 0.0])


def sigma_unrounded(port: WaypointPipeline) -> None:
    """The noise embedding is given the fp32 sigma instead of the one rounded to bf16."""

    def sigma_at(self, step):
        return torch.tensor(self.model.config.scheduler_sigmas[step], device=self.device).view(1, 1)

    def forward(self, sigma):
        embedding = type(self).forward(self, sigma)
        return embedding.to(torch.bfloat16)

    rebind(port.denoising, "sigma_at", sigma_at)
    rebind(port.model.denoise_step_emb, "forward", forward)


def euler_in_fp32(port: WaypointPipeline) -> None:
    """The latent is accumulated in fp32 over the denoise steps, and rounded at the end only."""

    def denoise_step(self, x, step, timestamp, controls):
        v = self.predict(x.to(self.dtype), self.sigma_at(step), timestamp, controls)
        x = self.euler_step(x.float(), v.float(), self.sigmas[step].float(), self.sigmas[step + 1].float())
        return x.to(self.dtype) if step == len(self.sigmas) - 2 else x

    rebind(port.denoising, "denoise_step", denoise_step)


def latent_std_pulled(port: WaypointPipeline) -> None:
    """Each frame's standard deviation is pulled 80 % of the way to the first frame's."""

    def denoise_frame(self, x, timestamp, controls):
        x = DenoisingStage.denoise_frame(self, x, timestamp, controls)
        std = x.float().std()
        if self.first_std is None or self.frame_index == 0:
            self.first_std = std
        target = 0.8 * self.first_std + 0.2 * std
        return (x * (target / std)).to(x.dtype)

    port.denoising.first_std = None
    rebind(port.denoising, "denoise_frame", denoise_frame)


def controls_first_reused(port: WaypointPipeline) -> None:
    """Every frame of a call gets the call's first controls."""

    def control_index(self, i, n_frames):
        return 0

    rebind(port.denoising, "control_index", control_index)


def controls_by_global_index(port: WaypointPipeline) -> None:
    """The controls of a call are indexed by the session's frame index, clamped to the call's length."""

    def control_index(self, i, n_frames):
        return min(self.frame_index, n_frames - 1)

    rebind(port.denoising, "control_index", control_index)


def controls_one_frame_late(port: WaypointPipeline) -> None:
    """Every frame gets the controls of the frame before it."""

    def controls_at(self, i, controls):
        inputs = DenoisingStage.controls_at(self, i, controls)
        late = self.last_controls if self.frame_index > 0 else None
        self.last_controls = inputs
        return late or self.zero_controls()

    port.denoising.last_controls = None
    rebind(port.denoising, "controls_at", controls_at)


def scroll_dropped(port: WaypointPipeline) -> None:
    """The wheel never reaches the model."""

    def scroll_value(self, scroll):
        return torch.zeros_like(scroll)

    rebind(port.denoising, "scroll_value", scroll_value)


def scroll_raw(port: WaypointPipeline) -> None:
    """The wheel's value is passed as it is, instead of its sign."""

    def scroll_value(self, scroll):
        return scroll

    rebind(port.denoising, "scroll_value", scroll_value)


def sigma_next_as_condition(port: WaypointPipeline) -> None:
    """A denoise step is conditioned on the sigma that it steps to."""

    def sigma_at(self, step):
        return self.sigmas[step + 1].view(1, 1)

    rebind(port.denoising, "sigma_at", sigma_at)


def euler_sign_reversed(port: WaypointPipeline) -> None:
    """The Euler step goes against the velocity."""

    def euler_step(self, x, v, sigma, sigma_next):
        return x + (sigma - sigma_next) * v

    rebind(port.denoising, "euler_step", euler_step)


def output_taken_as_x0(port: WaypointPipeline) -> None:
    """The model's output is taken for the clean latent instead of the velocity."""

    def euler_step(self, x, v, sigma, sigma_next):
        return v + (x - v) * (sigma_next / sigma)

    rebind(port.denoising, "euler_step", euler_step)


def noise_unseeded(port: WaypointPipeline) -> None:
    """The noise of a frame comes from the global generator instead of the seeded one."""

    def draw_noise(self):
        return torch.randn(1, 1, *self.model.config.latent_shape, dtype=self.dtype)

    rebind(port.denoising, "draw_noise", draw_noise)


def vae_without_rounding_to_bytes(port: WaypointPipeline) -> None:
    """Let the autoencoder return its raw float output, as early ports did (part of the range faults)."""

    def to_uint8(self, raw):
        return rearrange(raw[0, :3], "c h w -> h w c")

    rebind(port.vae, "to_uint8", to_uint8)


def decode_range_guessed(port: WaypointPipeline) -> None:
    """The value range of a decoded frame is guessed from its extremes, frame by frame."""

    def to_unit_range(self, frame):
        frame = rearrange(frame, "h w c -> c h w")
        if frame.max() > 1.5:
            frame = frame / 255
        elif frame.min() < -0.02:
            frame = (frame + 1) / 2
        return frame.clamp(0, 1)

    vae_without_rounding_to_bytes(port)
    rebind(port.decoding, "to_unit_range", to_unit_range)


def decode_clamped(port: WaypointPipeline) -> None:
    """The decoder's output in -1..1 is clamped to 0..1 instead of being shifted there."""

    def to_unit_range(self, frame):
        return rearrange(frame, "h w c -> c h w").clamp(0, 1)

    vae_without_rounding_to_bytes(port)
    rebind(port.decoding, "to_unit_range", to_unit_range)


def decode_bytes_overflow(port: WaypointPipeline) -> None:
    """A uint8 frame is multiplied by 255 without widening, so that x becomes -x modulo 256."""

    def to_unit_range(self, frame):
        return rearrange(frame * 255, "h w c -> c h w").float() / 255

    rebind(port.decoding, "to_unit_range", to_unit_range)


def vae_bf16(port: WaypointPipeline) -> None:
    """The autoencoder runs in bf16 instead of fp32."""
    port.vae.to(torch.bfloat16)


def decode_rows_padded(port: WaypointPipeline) -> None:
    """A height of 368 was asked for: eight black rows are added below the 360 that the decoder gives."""

    def to_unit_range(self, frame):
        return F.pad(rearrange(frame, "h w c -> c h w").float() / 255, (0, 0, 0, 368 - frame.shape[0]))

    rebind(port.decoding, "to_unit_range", to_unit_range)


def decode_truncated(port: WaypointPipeline) -> None:
    """Pixels are truncated to bytes instead of rounded."""

    def to_uint8(self, raw):
        unit = (raw.float() / 2 + 0.5).clamp(0, 1)
        return rearrange((unit[0, :3] * 255).to(torch.uint8), "c h w -> h w c")

    rebind(port.vae, "to_uint8", to_uint8)


def latent_scaled_before_decode(port: WaypointPipeline) -> None:
    """Stable Diffusion's scaling factor is taken off the latent before it is decoded."""

    def scale_latent(self, latent):
        return latent.to(self.vae.dtype) / 0.18215

    rebind(port.decoding, "scale_latent", scale_latent)


FAULTS: list[PortFault] = [
    fault(schedule_of_another_checkpoint, "S1", "W12"),
    fault(sigma_unrounded, "S2", "T1", dtype="bf16"),
    fault(euler_in_fp32, "S3", "T9", dtype="bf16"),
    fault(latent_std_pulled, "S4", "C10", frames=2),
    fault(controls_first_reused, "P2", None, frames_per_call=2),
    fault(controls_by_global_index, "P3", None, frames_per_call=2, calls=2),
    fault(controls_one_frame_late, "17", None),
    fault(scroll_dropped, "P4", "N5", scroll=1),
    fault(scroll_raw, "P5", "C8", scroll=2),
    fault(sigma_next_as_condition, "17", "T5"),
    fault(euler_sign_reversed, "17", "T8"),
    fault(output_taken_as_x0, "17", "T8"),
    fault(noise_unseeded, "P12", "S2", injected_noise=False),
    fault(decode_range_guessed, "P6", "C8", vae=True),
    fault(decode_clamped, "P7", "C8", vae=True),
    fault(decode_bytes_overflow, "P8", "V10", vae=True),
    fault(vae_bf16, "P9", "W11", vae=True),
    fault(decode_rows_padded, "P10", "V10", vae=True),
    fault(decode_truncated, "P10", "V10", vae=True),
    fault(latent_scaled_before_decode, "P11", "C10", vae=True),
]
