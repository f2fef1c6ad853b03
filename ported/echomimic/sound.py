"""Audio: file to waveform, mel spectrogram, Whisper states, windows of each video frame (spec 6.3)."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from ported.echomimic.settings import Config

RATE, SEGMENT = 16000, 3000
POSITIONS_A_SECOND = 50
REACH = (4, 5)  # positions before and after the centre


def load_waveform(path: str | Path) -> Tensor:
    """Decode to mono at 16 kHz through 16 bits: (samples,) float32.

    Errors: ValueError for a file that is no audio.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ValueError(f"{Path(path).name}: has no audio stream")
            resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
            parts = [p.to_ndarray()[0] for frame in container.decode(audio=0) for p in resampler.resample(frame)]
            parts += [p.to_ndarray()[0] for p in resampler.resample(None)]
    except av.FFmpegError as error:
        raise ValueError(f"{Path(path).name}: cannot be decoded as audio: {error}") from None
    if not parts:
        raise ValueError(f"{Path(path).name}: its audio is empty")
    return torch.from_numpy(np.concatenate(parts)).float() / 32768


@lru_cache(maxsize=2)
def mel_bank(n_mels: int) -> np.ndarray:
    """The library's Slaney filters."""
    return mel_filter_bank(201, n_mels, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")


def mel_spectrogram(waveform: Tensor, n_mels: int = 80) -> Tensor:
    """(samples,) -> (n_mels, frames) float32, 100 frames a second, scaled as Whisper does."""
    mel = spectrogram(
        waveform.double().numpy(),
        window_function(400, "hann"),
        frame_length=400,
        hop_length=160,
        power=2.0,
        mel_filters=mel_bank(n_mels),
        mel_floor=1e-10,
        log_mel="log10",
    )[:, :-1]
    return torch.from_numpy((np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0).float()


class AudioLayer(nn.Module):
    """Pre-norm attention and MLP; the query is scaled inside the fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict(
            {
                "query": nn.Linear(dim, dim),
                "key": nn.Linear(dim, dim, bias=False),
                "value": nn.Linear(dim, dim),
                "out": nn.Linear(dim, dim),
            }
        )
        self.attn_ln = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.mlp_ln = nn.LayerNorm(dim)

    def forward(self, hidden_states: Tensor) -> Tensor:
        normed = self.attn_ln(hidden_states)
        n, s, c = normed.shape
        q, k, v = (self.attn[p](normed).view(n, s, self.heads, -1).transpose(1, 2) for p in ("query", "key", "value"))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, s, c)
        hidden_states = hidden_states + self.attn["out"](mixed)
        return hidden_states + self.mlp(self.mlp_ln(hidden_states))


class AudioEncoder(nn.Module):
    """Whisper's encoder: all its hidden states; the last norm is loaded and not used."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, positions = config["n_audio_state"], config["n_audio_ctx"]
        self.n_mels = config["n_mels"]
        self.conv1 = nn.Conv1d(self.n_mels, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, stride=2, padding=1)
        rates = torch.exp(torch.linspace(0, -math.log(10000), dim // 2))
        angles = torch.outer(torch.arange(positions).float(), rates)
        self.register_buffer("positional_embedding", torch.cat([angles.sin(), angles.cos()], dim=1))
        self.blocks = nn.ModuleList(AudioLayer(dim, config["n_audio_head"]) for _ in range(config["n_audio_layer"]))
        self.ln_post = nn.LayerNorm(dim)

    def forward(self, mel: Tensor) -> Tensor:  # (n, n_mels, 3000) -> (n, 1500, layers + 1, dim)
        hidden_states = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2) + self.positional_embedding
        kept = [hidden_states]
        for block in self.blocks:
            hidden_states = block(hidden_states)
            kept.append(hidden_states)
        return torch.stack(kept, dim=2)


@torch.no_grad()
def whisper_features(encoder: AudioEncoder, waveform: Tensor) -> Tensor:
    """(samples,) -> (T, layers + 1, dim); half a mel frame more than a piece holds is cut."""
    mel = mel_spectrogram(waveform, encoder.n_mels)
    dtype = encoder.conv1.weight.dtype
    parts = []
    for piece in mel.split(SEGMENT, dim=1):
        padded = F.pad(piece, (0, SEGMENT - piece.shape[1])).to(dtype)
        parts.append(encoder(padded[None])[0, : piece.shape[1] // 2])
    return torch.cat(parts)


def window_indices(length: int, fps: float) -> Tensor:
    """Ten positions of each frame, (frames, 10), clamped to the clip."""
    last = next(i for i in range(1, 10**9) if int(i * (POSITIONS_A_SECOND / fps)) > length)
    centres = torch.tensor([int(i * (POSITIONS_A_SECOND / fps)) for i in range(last + 1)])
    reach = torch.arange(-REACH[0], REACH[1] + 1)
    return (centres[:, None] + reach).clamp(0, length - 1)


def frame_windows(features: Tensor, fps: float) -> Tensor:
    """(T, 5, d) -> (frames, 50, d)."""
    picked = features[window_indices(len(features), fps)]
    return picked.reshape(len(picked), -1, features.shape[-1])
