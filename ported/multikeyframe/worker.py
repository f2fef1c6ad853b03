"""One segment: keyframes and text to frames, by diffusers' pipeline. This module is what makes a worker heavy.

A segment depends on its task alone, never on what the worker made before, so that it has the same bits wherever, and
after whatever, it is made: noise comes from a generator of its own, drawn on the CPU whatever the device.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ported.multikeyframe import film, pictures
from ported.multikeyframe.checkpoint import load_pipe
from ported.multikeyframe.engines import Done, Task
from ported.multikeyframe.settings import Settings
from ported.wan import image, pipeline

TEXT_LENGTH = 512


@dataclass
class Worker:
    """A loaded pipeline on a device; `threads` of the CPU while a segment is made."""

    pipe: Any
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    texts: dict[str, Tensor] = field(default_factory=dict)

    def run(self, task: Task) -> Done:
        """Make a segment's file."""
        started = time.monotonic()
        with cpu_threads(self.threads):
            frames = self.frames(task)
        film.write_segment(frames, Path(task.path), task.fps)
        return Done(task.segment.index, task.path, os.getpid(), task.device, started, time.monotonic())

    def frames(self, task: Task) -> film.Frames:
        """The segment's frames, uint8 `(f, h, w, 3)`."""
        return to_frames(self.video(task))

    @torch.no_grad()
    def video(self, task: Task) -> Tensor:
        """The segment, `(3, f, h, w)` in [-1, 1]."""
        first, last = read_pair(task)
        shape = latent_shape(first, task.max_area, task.segment.frames)
        request = pipeline.Request(
            noise=draw_noise(shape, task.seed).to(self.device),
            positive=self.text_features(task.segment.prompt),
            negative=self.text_features(task.negative_prompt),
            steps=task.steps,
            guidance=task.guidance,
            image=first,
            last_image=last,
        )
        return pipeline.generate(self.pipe, request).video[0]

    def text_features(self, prompt: str) -> Tensor:
        """Features `(512, dim)` of a prompt, by the library's own encoding."""
        if prompt not in self.texts:
            encoder = next(self.pipe.text_encoder.parameters()).device
            encoded = self.pipe.encode_prompt(
                [prompt], do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH, device=encoder
            )[0]
            self.texts[prompt] = encoded[0].to(self.device)
        return self.texts[prompt]


def read_pair(task: Task) -> tuple[Tensor, Tensor]:
    """First and last keyframe of a segment, uint8 `(h, w, 3)`."""
    index = task.segment.index
    pair = (pictures.read_picture(task.segment.first, index), pictures.read_picture(task.segment.last, index + 1))
    return torch.from_numpy(pair[0]), torch.from_numpy(pair[1])


def latent_shape(first: Tensor, max_area: int, frames: int) -> tuple[int, int, int, int]:
    """`(16, t, h, w)` of a video with the keyframe's aspect ratio within `max_area` pixels."""
    height, width = image.official_size(image.unit_image(first), max_area)
    return 16, (frames - 1) // 4 + 1, height // 8, width // 8


def draw_noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float32 of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def to_frames(video: Tensor) -> film.Frames:
    """`(3, f, h, w)` in [-1, 1] -> uint8 `(f, h, w, 3)`, truncated as the official code does."""
    levels = ((video.float().clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)
    return levels.permute(1, 2, 3, 0).contiguous().cpu().numpy()


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Compute with `count` threads: sums over another number of parts have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_worker(settings: Settings) -> Worker:
    """Load the checkpoint onto the worker's device: the card that it was given, else the CPU."""
    pipe = load_pipe(Path(settings.ckpt_dir), getattr(torch, settings.dtype), settings.sample_shift)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and settings.offload_model:
        pipe.enable_model_cpu_offload()
    elif device.type == "cuda":
        pipe.to(device)
        if settings.t5_cpu:
            pipe.text_encoder.to("cpu")
    return Worker(pipe, settings.threads, device)
