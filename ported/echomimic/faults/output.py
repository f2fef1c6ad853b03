"""Faults between the decoder and the client (spec B05, B06, B30 to B33)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ported.echomimic import files, pipeline, settings
from ported.echomimic.build import Networks
from ported.echomimic.faults.record import PortFault, patch, patched, together


def raw_decode(networks: Networks, latents: Tensor) -> Tensor:
    rows = pipeline.unscale(networks, latents)[0].transpose(0, 1)
    pictures = torch.cat([networks.vae.decode(row[None]).sample for row in rows])
    return pictures.float().transpose(0, 1)[None]


@contextmanager
def unguarded(networks: Networks) -> Iterator[None]:
    """Values in [−1, 1] are cast to bytes as they are."""
    with together(patched(pipeline, "decode", raw_decode), patched(files, "to_frames", files.cast_bytes)):
        yield


def rounded(video: Tensor) -> np.ndarray:
    return (video * 255).round().permute(1, 2, 3, 0).contiguous().numpy().astype(np.uint8)


def defaults_only(given: Mapping[str, Any], defaults: Any = None) -> settings.Settings:
    return defaults or settings.Settings()


def muted(frames: np.ndarray, path: Path, fps: int, audio: Tensor | None = None, rate: int = 16000) -> None:
    WRITE(frames, path, fps)


WRITE = files.write_mp4


def at_8(frames: np.ndarray, path: Path, fps: int, audio: Tensor | None = None, rate: int = 16000) -> None:
    WRITE(frames, path, 8, audio, rate)


def by_size(path: Path, frames: np.ndarray, fps: int, sound: bool) -> files.VideoFacts:
    if path.stat().st_size < 1000:
        raise ValueError(f"{path.name}: generated video is corrupted")
    return files.read_facts(path)


FAULTS = (
    PortFault("uint8_cast_unguarded", "B05", "C8", "values in [-1, 1] cast to bytes", unguarded),
    PortFault("round_not_truncate", "B06", "V10", "bytes rounded, not truncated", patch(files, "cast_bytes", rounded)),
    PortFault("form_params_ignored", "B30", "W12", "fields of a form are ignored", patch(settings, "settings_from_fields", defaults_only)),
    PortFault("mux_failed_silently", "B31", "N5", "sound is lost without a word", patch(files, "write_mp4", muted)),
    PortFault("container_fps", "B32", "T6", "file written at 8 frames a second", patch(files, "write_mp4", at_8)),
    PortFault("size_check_passes_black", "B33", "V10", "a black file of 1000 bytes is good enough", patch(files, "check_file", by_size)),
)  # fmt: skip
