"""Goldens of Waypoint against wrong implementations: what is wrong fails, and fails at its place."""

import math
import re
from pathlib import Path

import pytest
import torch
from waypoint_golden_files import failures, odd, write_frames

from reference import waypoint
from reference.waypoint import attention, autoencoder, cache, layers

GOLDEN = Path(__file__).parents[2] / "fixtures/waypoint/golden"


def _unmixed(self, v, v1):
    return v, v


def _floor_bytes(y):
    return ((y / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8)[0, :3].movedim(0, -1)


def _cosine_first(self, sigma):
    phase = (sigma.float() * 1000).unsqueeze(-1) * self.freq
    return math.sqrt(2) * torch.cat([phase.cos(), phase.sin()], dim=-1)


MUTANTS = {
    "value residual ignored": (
        attention.Attn,
        "mix_values",
        _unmixed,
        "variants",
        r"acts\.(transformer\.blocks\.1\.attn\.v\.f00s0|kv_cache\.layers\.1\.kv\.after_f00)",
        r".*(denoise_step_emb|ctrl_emb|patchify|blocks\.0)\b.*\.f00s0",
    ),
    "bytes truncated": (
        autoencoder,
        "to_uint8",
        _floor_bytes,
        "ae_tiny",
        r"outputs\.decoded_u8",
        r"(?!.*decoded_u8).*",
    ),
    "cosine first": (
        layers.NoiseConditioner,
        "features",
        _cosine_first,
        "units",
        r"acts\.noise\.features_fp32",
        r"outputs\.(rope|ada|cond|cross|cfg|mlp|ctrl|rms|noise\.freq).*",
    ),
    "slot rounded down": (
        cache.LayerKVCache,
        "slot",
        lambda self, frame: frame // self.dilation % max(1, self.num_buckets - 1),
        "kv_schedule",
        r"outputs\.global4x2\.visible",
        r"acts.*",
    ),
    "reset keeps the clock": (
        waypoint.Engine,
        "reset",
        lambda self: self.kv_cache.reset(),
        "session",
        r"acts\.after_reset\.frame_ts",
        r"acts\.after_append.*",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_implementation_fails_where_it_is_wrong(monkeypatch, name):
    owner, attribute, wrong, file, seen, unseen = MUTANTS[name]
    monkeypatch.setattr(owner, attribute, wrong)
    failed = failures(GOLDEN / f"{file}.safetensors")
    assert any(re.fullmatch(seen, value) for value in failed), failed[:5]
    assert not [value for value in failed if re.fullmatch(unseen, value)]


def test_a_wrong_step_fails_from_that_step_on(monkeypatch, tmp_path):
    """The tag of an activation tells the step: an error in the second Euler step leaves the first alone."""
    path = write_frames(tmp_path / "own.safetensors", odd(), torch.float32, frames=1)
    right, calls = waypoint.engine.euler_step, []

    def wrong(x, v, sigma, next_sigma):
        calls.append(sigma)
        return right(x, v, sigma, next_sigma) * (1.0 if len(calls) == 1 else 1.01)

    monkeypatch.setattr(waypoint.engine, "euler_step", wrong)
    failed = failures(path)
    assert "acts.x_in.f00sc" in failed
    assert not [name for name in failed if name.endswith((".f00s0", ".f00s1"))]
