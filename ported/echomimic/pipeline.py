"""One request from its inputs to frames: what a server calls (spec 8, 10.3).

    networks = build_networks(configs, states, torch.float16)
    done = animate(networks, picture, audio, pose_maps, Settings(width=512, height=512), progress=print)
    done.frames            # bytes (L, H, W, 3)
    done.nonfinite         # None, or what was cleaned (policy "clean")

Nothing of a request is kept on the networks, so that requests may run at the same time.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from ported.echomimic import files, poses, sound
from ported.echomimic.build import Networks
from ported.echomimic.networks import Denoiser, ReferenceNet
from ported.echomimic.nonfinite import Finding, Watch, clean, first_layer
from ported.echomimic.settings import Settings
from ported.echomimic.windows import closed_windows, windows_at

LATENT_LIMIT = 1.5
SEEDS = (100, 1000000)


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` passes of the denoiser, and the stage in words."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Animation:
    """What a run gives. `video` (3, L, H, W) float32 is as it was decoded, before any cleaning; `frames` are bytes.

    nonfinite: the first operation that made a value which is not finite, when the policy was to clean; cleaned: how many values of the
    video were replaced.
    """

    frames: np.ndarray
    video: Tensor
    latents: Tensor
    seed: int | None
    nonfinite: Finding | None = None
    cleaned: int = 0


@dataclass
class Job:
    """Everything that belongs to one request and to no other."""

    networks: Networks
    settings: Settings
    scheduler: Any
    watch: Watch = field(default_factory=Watch)
    progress: Callable[[Progress], None] | None = None
    audio: Tensor | None = None  # (1, L, 50, d)
    pose: Tensor | None = None  # (1, c0, L, h, w)
    banks: dict[str, Tensor] = field(default_factory=dict)

    @property
    def guided(self) -> bool:
        return self.settings.cfg > 1.0

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        if self.progress is not None:
            self.progress(Progress(stage, done, total))


def animate(
    networks: Networks,
    picture: Tensor | np.ndarray,
    audio: Tensor | str | Path,
    pose_maps: Tensor,
    settings: Settings,
    progress: Callable[[Progress], None] | None = None,
    noise: Tensor | None = None,
) -> Animation:
    """Animate a picture.

    picture: uint8 (h, w, 3) RGB; audio: a file, or features (T, 5, d); pose_maps: uint8 (L, H, W, 3); noise: (1, 4, L, h, w) in place
    of what the seed draws. The clip is as long as the shortest of the request, the poses and the audio.

    Errors: ValueError for inputs that do not fit; NonFiniteError when the policy is `fail`.
    """
    job = start(networks, settings, progress)
    with torch.no_grad():
        latents, seed = prepare(job, picture, audio, pose_maps, noise)
        latents = denoise(job, latents)
        job.tell("decoding")
        video = job.watch.check(decode(networks, latents), plain("video", "decoding"))
    if settings.nonfinite == "ignore":
        return Animation(files.cast_bytes(video[0]), video[0], latents, seed)
    shown, cleaned = tidy(video) if job.watch.first is not None else (video, 0)
    return Animation(files.to_frames(shown[0]), video[0], latents, seed, job.watch.first, cleaned)


def start(networks: Networks, settings: Settings, progress: Callable[[Progress], None] | None = None) -> Job:
    """A job of its own: its solver is a copy."""
    return Job(networks, settings, copy.deepcopy(networks.scheduler), Watch(settings.nonfinite), progress)


def tidy(video: Tensor) -> tuple[Tensor, int]:
    """Clean a video that may not be finite."""
    return clean(video)


def plain(stage: str, operation: str, step: int | None = None) -> Callable[[int, int], Finding]:
    """What to say of a stage that is one operation."""
    return lambda count, of: Finding(stage, step, operation=operation, count=count, of=of)


def prepare(
    job: Job, picture: Tensor | np.ndarray, audio: Tensor | str | Path, pose_maps: Tensor, noise: Tensor | None
) -> tuple[Tensor, int | None]:
    """Turn all inputs into tensors of the networks; return the initial latents and the seed."""
    networks, settings, watch = job.networks, job.settings, job.watch
    check_maps(pose_maps, settings)
    job.tell("reading audio")
    features = audio if isinstance(audio, Tensor) else read_features(networks, audio)
    windows = audio_windows(features, settings.fps)
    length = min(x for x in (settings.length, len(pose_maps), len(windows)) if x is not None)
    job.audio = watch.check(windows[None, :length].to(networks.dtype), plain("audio", "audio windows"))
    job.tell("reading the picture and poses")
    noise, seed = (noise, None) if noise is not None else draw_noise(job, length)
    latents = initial_latents(noise.to(networks.dtype))
    job.pose = watch.check(pose_features(networks, pose_maps[:length]), plain("pose_fea", "pose encoder"))
    reference = reference_tensor(picture, settings.width, settings.height).to(networks.dtype)
    latent = watch.check(encode_reference(networks, reference), plain("ref_latent", "VAE encoder"))
    job.banks = read_reference(job, latent)
    for path, bank in job.banks.items():
        watch.check(bank, plain(f"bank of {path}", "reference network"))
    return latents, seed


def check_maps(maps: Tensor, settings: Settings) -> None:
    """Raise ValueError unless the pose maps are bytes of the right size."""
    wanted = (settings.height, settings.width, 3)
    if maps.dtype != torch.uint8 or maps.dim() != 4 or tuple(maps.shape[1:]) != wanted:
        raise ValueError(
            f"pose maps are {maps.dtype} {tuple(maps.shape)}, expected uint8 (L, {wanted[0]}, {wanted[1]}, 3)"
        )


def read_features(networks: Networks, path: str | Path) -> Tensor:
    """Decode an audio file and run the audio encoder."""
    if networks.audio_model is None:
        raise ValueError("an audio file needs the audio model, which is not loaded")
    return sound.whisper_features(networks.audio_model, sound.load_waveform(path))


def audio_windows(features: Tensor, fps: float) -> Tensor:
    return sound.frame_windows(features, fps)


def draw_noise(job: Job, length: int) -> tuple[Tensor, int]:
    """Draw (1, 4, L, h, w) from a generator of the job's own."""
    settings = job.settings
    seed = random.randint(*SEEDS) if settings.seed is None or settings.seed < 0 else settings.seed
    stride = 2 ** (len(job.networks.vae.config.block_out_channels) - 1)
    shape = (1, 4, length, settings.height // stride, settings.width // stride)
    return torch.randn(shape, generator=generator_of(seed)), seed


def generator_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def initial_latents(noise: Tensor) -> Tensor:
    return noise.clamp(-LATENT_LIMIT, LATENT_LIMIT)


def pose_features(networks: Networks, maps: Tensor) -> Tensor:
    """Bytes (L, H, W, 3) -> (1, c0, L, h, w)."""
    features = networks.pose_encoder(scaled_maps(maps).to(networks.dtype))
    return features.transpose(0, 1)[None]


def scaled_maps(maps: Tensor) -> Tensor:
    return poses.scale_maps(maps)


def reference_tensor(picture: Tensor | np.ndarray, width: int, height: int) -> Tensor:
    """(1, 3, height, width) in [−1, 1], by the library's processor (Lanczos)."""
    image = Image.fromarray(np.asarray(picture)).convert("RGB")
    return VaeImageProcessor(vae_scale_factor=8, resample="lanczos").preprocess(image, height=height, width=width)


def encode_reference(networks: Networks, reference: Tensor) -> Tensor:
    """Mean of the posterior, scaled."""
    return posterior_mean(networks, reference) * networks.vae.config.scaling_factor


def posterior_mean(networks: Networks, reference: Tensor) -> Tensor:
    return networks.vae.encode(reference).latent_dist.mean


def read_reference(job: Job, latent: Tensor) -> dict[str, Tensor]:
    """Run the reference network once and pair its banks with the denoiser's blocks."""
    networks = job.networks
    written = networks.reference_unet(latent, torch.tensor(0))
    return hand_over(networks.reference_unet, networks.denoising_unet, written, job.guided, bank_dtype(job))


def bank_dtype(job: Job) -> torch.dtype:
    """Float16 as upstream, except in bfloat16, which has a wider range than float16 can hold."""
    wide = job.networks.dtype == torch.bfloat16
    return job.settings.bank_dtype or (torch.bfloat16 if wide else torch.float16)


def hand_over(
    writer: ReferenceNet, reader: Denoiser, written: Any, doubled: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Banks by the denoiser's blocks: both networks' blocks in one order, widest first, are paired by position."""
    pairs = zip(block_order(reader), block_order(writer), strict=True)
    banks = {path: written[source].to(dtype) for path, source in pairs}
    return {path: bank.repeat(2, 1, 1) for path, bank in banks.items()} if doubled else banks


def block_order(network: ReferenceNet | Denoiser) -> list[str]:
    found = network.widths_in_order()
    return [path for path, _ in sorted(found, key=lambda item: item[1], reverse=True)]


def denoise(job: Job, latents: Tensor) -> Tensor:
    """All steps: (1, 4, L, h, w)."""
    settings, length = job.settings, latents.shape[2]
    job.scheduler.set_timesteps(settings.steps)
    windows = closed_windows(length, settings.context_frames, settings.context_overlap)
    for step, timestep in enumerate(job.scheduler.timesteps):
        latents = denoise_step(job, latents, timestep, step, windows)
    return latents


def denoise_step(job: Job, latents: Tensor, timestep: Tensor, step: int, windows: list[list[int]]) -> Tensor:
    """One step."""
    velocity = predict(job, latents, timestep, step, windows)
    following = job.scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return job.watch.check(following, plain("latents", "scheduler step", step))


def predict(job: Job, latents: Tensor, timestep: Tensor, step: int, windows: list[list[int]]) -> Tensor:
    """Velocity of all frames: every window, their mean, guidance."""
    length = latents.shape[2]
    total = latents.new_zeros(2 if job.guided else 1, *latents.shape[1:])
    count = latents.new_zeros(1, 1, length, 1, 1)
    moved = windows_at(windows, step, length)
    for number, window in enumerate(moved):
        velocity = window_velocity(job, latents, timestep, window)
        job.watch.check(velocity, lambda n, of: locate(job, latents, timestep, window, step, number, n, of))  # noqa: B023
        if job.settings.accelerated:
            velocity = through_x0(job.scheduler, velocity, gather(job, latents, window), timestep)
        total[:, :, window] += velocity
        count[:, :, window] += 1
        job.tell("denoising", step * len(moved) + number + 1, job.settings.steps * len(moved))
    mean = average(total, count)
    velocity = guide(mean, job.settings.cfg) if job.guided else mean
    return job.watch.check(velocity, uncovered(count, step))


def uncovered(count: Tensor, step: int) -> Callable[[int, int], Finding]:
    """What to say of a mean that is not finite though every pass was."""

    def explain(bad: int, of: int) -> Finding:
        frames = (count.flatten() == 0).nonzero().flatten().tolist()
        term = f"0/0: no window holds frames {frames}" if frames else ""
        return Finding("noise_pred", step, operation="mean over windows", count=bad, of=of, term=term)

    return explain


def gather(job: Job, latents: Tensor, window: list[int]) -> Tensor:
    """Latents of a window, twice with guidance."""
    picked = latents[:, :, window]
    return picked.repeat(2, 1, 1, 1, 1) if job.guided else picked


def conditions(job: Job, window: list[int]) -> tuple[Tensor, Tensor]:
    """Audio and pose features of a window; with guidance zeros go first."""
    audio, pose = job.audio[:, window], job.pose[:, :, window]  # type: ignore[index]
    return (with_zeros(audio), with_zeros(pose)) if job.guided else (audio, pose)


def with_zeros(part: Tensor) -> Tensor:
    return torch.cat((torch.zeros_like(part), part))


def window_velocity(job: Job, latents: Tensor, timestep: Tensor, window: list[int]) -> Tensor:
    """One pass of the denoiser."""
    audio, pose = conditions(job, window)
    return job.networks.denoising_unet(gather(job, latents, window), timestep, audio, pose, job.banks, job.guided)


def locate(
    job: Job, latents: Tensor, timestep: Tensor, window: list[int], step: int, number: int, count: int, of: int
) -> Finding:
    """Name the layer that made a pass not finite."""
    unknown = Finding("denoising_unet", step, number, operation="pass", count=count, of=of)
    run = lambda: window_velocity(job, latents, timestep, window)  # noqa: E731
    return first_layer(job.networks.denoising_unet, run, unknown)


def through_x0(scheduler: Any, velocity: Tensor, sample: Tensor, timestep: Tensor) -> Tensor:
    """To the clean latent and back, as the accelerated pipeline does."""
    alpha = scheduler.alphas_cumprod[timestep]
    clean_latent = alpha**0.5 * sample - (1 - alpha) ** 0.5 * velocity
    return (clean_latent - alpha**0.5 * sample) / -((1 - alpha) ** 0.5)


def average(total: Tensor, count: Tensor) -> Tensor:
    return total / count


def guide(both: Tensor, scale: float) -> Tensor:
    unconditional, conditional = both.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def decode(networks: Networks, latents: Tensor) -> Tensor:
    """(1, 4, L, h, w) -> (1, 3, L, H, W) float32 in [0, 1], frame by frame."""
    rows = unscale(networks, latents)[0].transpose(0, 1)
    pictures = torch.cat([networks.vae.decode(row[None]).sample for row in rows])
    return (pictures / 2 + 0.5).clamp(0, 1).float().transpose(0, 1)[None]


def unscale(networks: Networks, latents: Tensor) -> Tensor:
    return latents / networks.vae.config.scaling_factor
