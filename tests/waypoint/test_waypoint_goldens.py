"""Goldens of Waypoint: the recorded files, files of other configurations, and wrong implementations."""

import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from waypoint_golden_files import check, no_prompt, odd, save_golden, witness, write_frames

from fixtures.waypoint import goldens
from fixtures.waypoint.goldens_frames import build_engine, run_frames
from fixtures.waypoint.goldens_parts import RAW_TOLERANCE, resolve_ties, run_kv_schedule, schedule
from fixtures.waypoint.goldens_read import deployed_dtype
from fixtures.waypoint.models import make_weights
from parity.case import Golden
from parity.errors import TraceError
from parity.lab.golden import read_golden
from reference import waypoint
from reference.waypoint import rope

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "fixtures/waypoint/golden"
SHARED = ROOT.parent / "shared/goldens/waypoint"
OWN = sorted(GOLDEN.glob("*.safetensors"))
ALL = sorted(SHARED.glob("*.safetensors"))
REASON = "NOT RUN: no folder shared/goldens/waypoint beside the checkout"


# -- recorded files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_recorded_files_are_reproduced(path):
    report = check(path)
    assert len(report.checks) + len(report.omitted) == _values(path)


def test_every_entry_has_a_recorded_file():
    assert {read_golden(path).metadata["entry"] for path in OWN} == {entry.name for entry in goldens.GOLDENS}


@pytest.mark.skipif(not ALL, reason=REASON)
@pytest.mark.parametrize("name", [path.stem for path in ALL] or ["all"])
def test_the_whole_set_is_reproduced(name):
    path = SHARED / f"{name}.safetensors"
    copy = GOLDEN / path.name
    if copy.exists():  # verified above
        assert copy.read_bytes() == path.read_bytes()
    else:
        check(path)


def test_only_the_scroll_sign_is_omitted():
    assert set(check(GOLDEN / "units.safetensors").omitted) == {"outputs.scroll_sign"}


def _values(path):
    return sum(key.startswith(("outputs.", "acts.")) for key in load_file(path))


# -- other configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", [odd(), no_prompt()], ids=["head_dim 48", "no prompt"])
def test_frames_of_other_configurations(tmp_path, config, dtype):
    report = check(write_frames(tmp_path / "own.safetensors", config, dtype))
    assert len(report.checks) > 200


def test_patched_run_of_another_configuration(tmp_path):
    """Tables and merged projections by their paths; the patched latents are those of the plain run up to rounding."""
    path = write_frames(tmp_path / "own.safetensors", odd(), torch.float32, frames=2)
    golden = read_golden(path)
    latents = golden.outputs["latents"]
    model = build_engine(golden).model
    merged = torch.cat([getattr(model.transformer.blocks[3].attn, f"{n}_proj").weight for n in "qkv"])
    table = model.denoise_step_emb(model.scheduler_sigmas[:, None])[:, 0]
    more = {
        "outputs.latents_patched": latents,
        "acts.patched.transformer.blocks.3.attn.qkv_proj.weight": merged,
        "acts.patched.denoise_step_emb.table": table,
    }
    save_golden(path, {**load_file(path), **more}, golden.metadata)
    assert {value.name for value in check(path).checks} >= more.keys()


def test_session_of_another_configuration(tmp_path):
    config = odd()
    path = write_frames(tmp_path / "own.safetensors", config, torch.float32, frames=5)
    golden = read_golden(path)
    draw = torch.Generator().manual_seed(5)
    engine, noise = build_engine(golden), golden.inputs["noise"]
    second = torch.randn(1, 4, config["prompt_embedding_dim"], generator=draw)
    seed = torch.randn(1, *engine.config.latent_shape, generator=draw)
    inputs = {**golden.inputs, "prompt2_emb": second, "seed_latent": seed}

    def run(indices):
        return witness(engine, golden.inputs, indices)[0]

    engine.set_prompt_embeds(inputs["prompt_emb"])
    engine.append_latent(seed)
    appended = {f"after_append.layers.{i}.kv": layer.kv.clone() for i, layer in enumerate(engine.kv_cache.layers)}
    latents = run(range(2))
    engine.set_prompt_embeds(second)
    latents += run(range(2, 3))
    engine.kv_cache.reset()
    engine.frame_ts.zero_()
    rest = run(range(3, len(noise)))
    tensors = {
        **{f"weights.{name}": value for name, value in golden.weights.items()},
        **{f"inputs.{name}": value for name, value in inputs.items()},
        **{f"acts.{name}": value for name, value in appended.items()},
        "acts.after_append.frame_ts": torch.ones(1, 1, dtype=torch.int64),
        "acts.after_reset.frame_ts": torch.zeros(1, 1, dtype=torch.int64),
        "outputs.latents": torch.stack(latents + rest),
        "outputs.latents_fresh": torch.stack(rest),
    }
    check(save_golden(path, tensors, {**golden.metadata, "entry": "session"}))


@pytest.mark.parametrize(("window", "dilation"), [(2, 1), (9, 3), (12, 4), (5, 5)])
def test_schedule_of_other_windows(tmp_path, window, dilation):
    """The history of a frame by its definition: the last W-1 frames, or the last pinned ones (spec section 6)."""
    frames, slots = 40, window // dilation
    visible = torch.zeros(frames, frames, dtype=torch.bool)
    owners = torch.full((frames, window + 1), -1, dtype=torch.int32)
    for t in range(frames):
        pinned = list(range(0, t, dilation))
        visible[t, [t, *pinned[len(pinned) - min(len(pinned), slots - (t % dilation == 0)) :]]] = True
        for p in [*pinned, *[t] * (t % dilation == 0)]:
            owners[t, -(-p // dilation) % slots] = p
        owners[t, -1] = t
    path = save_golden(
        tmp_path / "own.safetensors",
        {"outputs.layer.visible": visible, "outputs.layer.slot_owner_after": owners},
        {"entry": "kv_schedule", "config": {"layer": {"window": window, "dilation": dilation}}},
    )
    check(path)
    acts = run_kv_schedule(read_golden(path)).acts
    assert torch.equal(acts["layer.visible_at_cache_pass"], visible)


def test_autoencoder_of_another_configuration(tmp_path):
    part = {"channels": 4, "latent_channels": 2, "ch_0": 8, "ch_max": 8, "skip_logvar": True}
    part |= {"encoder_blocks_per_stage": [1, 1, 1], "decoder_blocks_per_stage": [2]}
    model = waypoint.Autoencoder(*[waypoint.AutoencoderConfig.from_dict(part)] * 2)
    weights = make_weights(model, 3)
    waypoint.load_weights(model, weights)
    inputs = {"image_u8": torch.arange(7 * 9 * 3, dtype=torch.uint8).view(7, 9, 3), "latent": torch.randn(1, 2, 5, 4)}
    seen = {}
    model.encoder.blocks[0].register_forward_hook(lambda module, args, out: seen.update(stage=out[..., ::8, ::8]))
    tensors = {
        **{f"weights.{name}": value for name, value in weights.items()},
        **{f"inputs.{name}": value for name, value in inputs.items()},
        "outputs.encoded": model.encode(inputs["image_u8"]),
        "outputs.decoded_raw_strided5": model.decode_raw(inputs["latent"])[..., ::5, ::5],
        "outputs.decoded_u8": model.decode(inputs["latent"])[::4, ::4],
        "outputs.n_baked": torch.tensor(sum(name.endswith("original0") for name in weights)),
        "acts.encoder.blocks.0": seen["stage"],
    }
    metadata = {"entry": "autoencoder", "config": {"encoder": part, "decoder": part}}
    assert len(check(save_golden(tmp_path / "own.safetensors", tensors, metadata)).checks) == 5


def test_units_of_other_sizes(tmp_path):
    """A wider noise embedding and another rotary grid than the recorded ones, both by their formulas."""
    golden = read_golden(GOLDEN / "units.safetensors")
    sigma = golden.inputs["noise.sigma"][0]
    fc1, fc2 = torch.randn(96, 512) / 20, torch.randn(24, 96) / 10
    phase = 1000 * sigma[:, None] * golden.outputs["noise.freq"]
    features = math.sqrt(2) * torch.cat([phase.sin(), phase.cos()], -1)
    column = torch.tensor([-0.8, -0.4, 0.0, 0.4, 0.8]).repeat(4)  # two frames of two rows
    first = (column * math.pi).cos()
    exact = torch.nn.functional.silu(features @ fc1.T) @ fc2.T
    weights = {name: value for name, value in golden.weights.items() if not name.startswith("noise.")}
    weights |= {"noise.mlp.fc1.weight": fc1, "noise.mlp.fc2.weight": fc2}
    tensors = {
        **{f"weights.{name}": value for name, value in weights.items()},
        **{f"inputs.{name}": value for name, value in golden.inputs.items()},
        "outputs.noise.fp32": exact[None],
        "outputs.noise.fc1_after_parent_to_bf16": fc1.bfloat16().float(),
        "outputs.rope.hd48_2x5.cos": rope.ortho_angles(2, 5, 2, 48).cos(),
    }
    assert torch.allclose(tensors["outputs.rope.hd48_2x5.cos"][:, 0], first, atol=1e-6)
    check(save_golden(tmp_path / "own.safetensors", tensors, golden.metadata))


# -- dtype and tolerance ----------------------------------------------------------------------------------------------


def make_golden(latents=None, **metadata):
    outputs = {} if latents is None else {"latents": torch.zeros(1, dtype=latents)}
    weights = {"w": torch.zeros(1, dtype=torch.bfloat16)}
    return Golden({}, None, metadata, weights=weights, inputs={}, outputs=outputs, acts={})


@pytest.mark.parametrize(
    ("golden", "dtype"),
    [
        (make_golden(), torch.float32),  # narrow weights alone mean nothing
        (make_golden(torch.bfloat16), torch.bfloat16),
        (make_golden(torch.float32, case="frames_bf16"), torch.bfloat16),
        (make_golden(torch.float32, case="frames_fp32"), torch.float32),
        (make_golden(torch.float32, case="bf16ish"), torch.float32),
        (make_golden(torch.bfloat16, dtype="float32"), torch.float32),
        (make_golden(dtype="bf16"), torch.bfloat16),
    ],
)
def test_deployed_dtype(golden, dtype):
    assert deployed_dtype(golden) is dtype


def test_unknown_dtype_is_an_error():
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        deployed_dtype(make_golden(dtype="int4"))


def test_half_precision_is_exact_on_the_recorded_kernels_only(monkeypatch):
    golden, wide = make_golden(torch.bfloat16), make_golden(torch.float32)
    monkeypatch.setattr(goldens, "same_kernels", lambda: True)
    assert goldens.tolerance(golden, "outputs.latents").exact
    assert not goldens.tolerance(wide, "outputs.latents").exact
    monkeypatch.setattr(goldens, "same_kernels", lambda: False)
    loose = goldens.tolerance(golden, "outputs.latents")
    assert (loose.exact, loose.absolute, loose.relative) == (False, 0.0, 0.02)
    assert goldens.tolerance(wide, "outputs.latents").relative == 1e-5


def test_a_byte_on_a_tie_may_be_either_neighbour_and_no_other():
    level = torch.tensor([100.5, 100.5, 100.5, 100.5 + 2 * RAW_TOLERANCE * 127.5, 100.2]).view(1, 5, 1).expand(1, 5, 3)
    raw = ((level.double() / 255 - 0.5) * 2).movedim(-1, 0)[None]
    pixels = torch.full((1, 5, 3), 100, dtype=torch.uint8)
    stored = torch.tensor([100, 101, 102, 101, 101], dtype=torch.uint8).view(1, 5, 1).expand(1, 5, 3)
    assert resolve_ties(pixels, raw, stored)[0, :, 0].tolist() == [100, 101, 100, 100, 100]


# -- what the entries produce beside -----------------------------------------------------------------------------------


def test_more_frames_than_the_table_has_rows(tmp_path):
    path = write_frames(tmp_path / "own.safetensors", odd(), torch.float32, frames=3)
    save_golden(path, load_file(path), {**read_golden(path).metadata, "config": {**odd(), "n_frames": 2}})
    with pytest.raises(TraceError, match="3 frames, the config's n_frames is 2"):
        check(path)


def test_the_keep_masks_of_a_frame_agree():
    """One name a frame stands for all its forwards."""
    acts = run_frames(read_golden(GOLDEN / "variants.safetensors")).acts
    frames = [name for name in acts if re.fullmatch(r"kv_cache\.layers\.\d+\.keep\.f\d+", name)]
    assert len(frames) == 3 * 7
    for name in frames:
        layer, frame = re.findall(r"\d+", name)
        forwards = [v for n, v in acts.items() if n.startswith(f"transformer.blocks.{layer}.attn.keep.f{frame}s")]
        assert len(forwards) == 4
        assert all(torch.equal(acts[name], v) for v in forwards)


def test_schedule_needs_no_frames():
    visible, _, owners = schedule(4, 2, 0)
    assert (visible.shape, owners.shape) == ((0, 0), (0, 5))


def test_odd_config_is_odd():
    """The windows wrap and both kinds of layer are there, or the tests above would show little."""
    config = waypoint.Config.from_dict(odd())
    assert config.head_dim == 48
    assert {config.is_global(i) for i in range(config.n_layers)} == {True, False}
    assert all(a > b for a, b in pairwise(config.scheduler_sigmas))
