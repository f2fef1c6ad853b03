"""From an audio file to the features of every video frame (spec 6.3)."""

from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .whisper import WhisperEncoder

RATE, N_FFT, HOP = 16000, 400, 160
SEGMENT = 3000  # mel frames of one pass of the encoder, 30 s
FEATURE_RATE = 50  # positions of the encoder a second
BEFORE, AFTER = 4, 5  # positions beside the centre
DEFAULT_FPS = 25  # of the feature windows; callers must pass 24 (quirk `window-fps`)
SLANEY_HZ_PER_MEL, SLANEY_BREAK_HZ, SLANEY_LOG_STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0


def read_audio(path: Path) -> Tensor:
    """Decode any audio file to mono, 16 kHz, 16 bit, /32768: (samples,) float32."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            raise ValueError(f"{path}: has no audio stream")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=RATE)
        parts = [
            piece.to_ndarray().reshape(-1)
            for frame in (*container.decode(audio=0), None)
            for piece in resampler.resample(frame)
        ]
    return pcm_to_float(torch.from_numpy(np.concatenate(parts))) if parts else torch.zeros(0)


def pcm_to_float(pcm: Tensor) -> Tensor:
    """int16 -> float32 in [−1, 1)."""
    return pcm.float() / 32768.0


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Slaney's scale: linear below 1 kHz, logarithmic above."""
    break_mel = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL
    linear = mel * SLANEY_HZ_PER_MEL
    return np.where(mel < break_mel, linear, SLANEY_BREAK_HZ * np.exp(SLANEY_LOG_STEP * (mel - break_mel)))


def mel_filters(n_mels: int = 80) -> Tensor:
    """Triangles between neighbouring mel points from 0 to 8 kHz, of equal area: (n_mels, 201) float32."""
    break_mel = SLANEY_BREAK_HZ / SLANEY_HZ_PER_MEL
    top = break_mel + np.log(RATE / 2 / SLANEY_BREAK_HZ) / SLANEY_LOG_STEP
    points = mel_to_hz(np.linspace(0.0, top, n_mels + 2))
    bins = np.linspace(0, RATE / 2, 1 + N_FFT // 2)
    width = np.diff(points)
    ramps = points[:, None] - bins[None, :]
    triangles = np.maximum(0, np.minimum(-ramps[:-2] / width[:-1, None], ramps[2:] / width[1:, None]))
    area = 2.0 / (points[2:] - points[:-2])
    return torch.from_numpy((triangles * area[:, None]).astype(np.float32))


def log_mel(audio: Tensor, n_mels: int = 80) -> Tensor:
    """(samples,) -> (n_mels, frames) with 100 frames a second; the maximum is that of the whole clip."""
    spectrum = torch.stft(audio, N_FFT, HOP, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :-1].abs() ** 2
    mel = (mel_filters(n_mels).to(power.dtype) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0


def segments(frames: int) -> list[tuple[int, int]]:
    """Beginnings and ends of the pieces that the encoder sees."""
    return [(start, min(start + SEGMENT, frames)) for start in range(0, frames, SEGMENT)]


@torch.no_grad()
def audio_features(encoder: WhisperEncoder, audio: Tensor) -> Tensor:
    """(samples,) -> (T, layers + 1, state), T about 50 a second.

    Pieces are padded with zeros behind the logarithm; of a piece of n frames the first int(n / 2) positions count.
    """
    mel = log_mel(audio, encoder.config.n_mels)
    dtype = encoder.conv1.weight.dtype
    found = []
    for start, end in segments(mel.shape[1]):
        piece = F.pad(mel[:, start:end], (0, SEGMENT - (end - start))).to(dtype)
        states = encoder(piece[None])  # (layers + 1, 1, 1500, state)
        found.append(states[:, 0].transpose(0, 1)[: int((end - start) / 2)])
    return torch.cat(found)


def window_positions(length: int, fps: float = DEFAULT_FPS) -> Tensor:
    """Ten positions for each video frame, clamped to the clip: int64 (frames, 10).

    Frames are made until the centre lies behind the end, so there are a few more than the video has (quirk
    `more-windows`).
    """
    rows, frame = [], 0
    while True:
        centre = int(frame * (FEATURE_RATE / fps))
        rows.append([min(max(p, 0), length - 1) for p in range(centre - BEFORE, centre + AFTER + 1)])
        frame += 1
        if centre > length:
            return torch.tensor(rows)


def audio_windows(features: Tensor, fps: float = DEFAULT_FPS) -> Tensor:
    """(T, 5, d) -> (frames, 50, d): ten positions of five layers each, the layer fastest."""
    return features[window_positions(features.shape[0], fps)].flatten(1, 2)
