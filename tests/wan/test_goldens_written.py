"""Goldens of Wan of configurations that no recorded file has, with values from the port or from plain formulas.

The reference must reproduce what it had no hand in, and the entries must not depend on the recorded files' shapes.
"""

import itertools
import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fixtures.wan.goldens import GOLDENS
from parity.case import System
from parity.lab.golden import verify_golden
from reference.wan import clip, dit, t5, vae
from reference.wan.config import CLIPConfig, DiTConfig, T5Config, VAEConfig

SYSTEMS = {"wan": System("wan", "", (), goldens=GOLDENS)}


def check(path, values):
    """Verify one file of so many values."""
    report = verify_golden(path, SYSTEMS)
    assert report.ok, [f"{c.name} {c.relative:.1e} {c.detail}" for c in report.checks if not c.ok] or report.missing
    assert len(report.checks) == values
    assert not report.omitted


def draw(make, seed=0):
    """Random weights under the official keys, as in recorded files (spec Part E), float32 but exact in half."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in make().state_dict().items()}
    weights = {}
    for key, shape in shapes.items():
        values = torch.randn(shape, generator=generator)
        if "modulation" in key or "pos" in key or "cls" in key:
            weights[key] = 0.3 * values
        elif key.endswith("bias"):
            weights[key] = 0.1 * values
        elif len(shape) < 2 or key.endswith("gamma"):
            weights[key] = 1 + 0.2 * values
        else:
            weights[key] = values * 1.2 / math.sqrt(shape[1:].numel())
    return {key: value.half().float() for key, value in weights.items()}


def write(path, entry, config, inputs, outputs, weights=None, acts=None):
    """Write a golden file."""
    groups = {"weights": weights or {}, "inputs": inputs, "outputs": outputs, "acts": acts or {}}
    tensors = {f"{group}.{name}": v.contiguous().clone() for group, vs in groups.items() for name, v in vs.items()}
    header = {"system": "wan", "case": path.stem, "entry": entry, "side": "reference", "seed": "0", "notes": ""}
    save_file(tensors, path, {**header, "config": json.dumps(config)})
    return path


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def angles(head_dim, positions):
    """Rotary angles by the formula of spec A5: positions (t, h, w) to float64 (n, head_dim/2)."""
    space = 2 * (head_dim // 6)
    widths = (head_dim - 2 * space, space, space)
    theta = [(axis, 10000.0 ** (-j / n)) for axis, n in enumerate(widths) for j in range(0, n, 2)]
    return torch.tensor([[p[axis] * t for axis, t in theta] for p in positions], dtype=torch.float64)


def tokens(grid):
    """Positions of the tokens of a grid, w fastest."""
    return list(itertools.product(*map(range, grid)))


def test_rope_of_another_head_width(tmp_path):
    x, grids = noise(2, 40, 3, 44), [(3, 2, 6), (19, 1, 2)]
    y = x.double().clone()
    for b, grid in enumerate(grids):
        turn = angles(44, tokens(grid))[:, None]
        even, odd = (x[b, : len(turn), :, part::2].double() for part in (0, 1))
        y[b, : len(turn), :, 0::2] = even * turn.cos() - odd * turn.sin()
        y[b, : len(turn), :, 1::2] = even * turn.sin() + odd * turn.cos()
    inputs, table = {"x.0": x, "grid.0": torch.tensor(grids)}, angles(44, [(p, p, p) for p in range(7)])
    acts = {"freqs.0.re": table.cos(), "freqs.0.im": table.sin()}
    check(write(tmp_path / "rope.safetensors", "rope", {}, inputs, {"y.0": y.float()}, acts=acts), 3)


DIT = {
    "model_type": "flf2v", "dim": 84, "ffn_dim": 100, "num_heads": 3, "num_layers": 3, "in_dim": 36, "freq_dim": 48,
    "text_dim": 20, "text_len": 512, "clip_dim": 24, "clip_tokens": 10,
}  # fmt: skip
T2V = {
    "model_type": "t2v", "dim": 60, "ffn_dim": 72, "num_heads": 2, "num_layers": 2, "in_dim": 16, "freq_dim": 32,
    "text_dim": 20,
}  # fmt: skip


@torch.no_grad()
def test_transformer_of_another_configuration(tmp_path):
    from ported.wan import build
    from ported.wan.dit import DiTForward

    weights, grids = draw(lambda: dit.WanDiT(DiTConfig.from_dict(DIT))), [(2, 3, 5), (4, 2, 3)]
    x = [noise(16, f, 2 * h, 2 * w) for f, h, w in grids]
    y = [noise(20, f, 2 * h, 2 * w, seed=2) for f, h, w in grids]
    context, features, t = [noise(31, 20), noise(7, 20)], noise(4, 10, 24), torch.tensor([3, 41])
    v = DiTForward(build.build_dit(DIT, weights))(x, t, context, features, y)
    phase = t.double()[:, None] * 10000.0 ** (-torch.arange(24, dtype=torch.float64) / 24)
    kernel, bias = weights["patch_embedding.weight"], weights["patch_embedding.bias"]
    acts = {
        "time_sinusoid": torch.cat([phase.cos(), phase.sin()], dim=1).float(),
        "patch_embedding.1": F.conv3d(torch.cat([x[1], y[1]])[None], kernel, bias, stride=(1, 2, 2)),
        "rope.grid.1.im": angles(28, tokens(grids[1])).sin(),
        "blocks.2.e": weights["blocks.2.modulation"] + time_projection(weights, phase),
    }
    inputs = {f"{name}.{i}": u for name, us in (("x", x), ("y", y), ("context", context)) for i, u in enumerate(us)}
    config = {**DIT, "grids": grids, "seq_len": 34, "context_lens": [31, 7], "precision": "fp32"}
    outputs = {f"v.{i}": u for i, u in enumerate(v)}
    inputs |= {"t": t, "clip_fea": features}
    check(write(tmp_path / "dit.safetensors", "dit", config, inputs, outputs, weights, acts), 6)


def time_projection(weights, phase):
    """e0 (b, 6, d) by spec A3."""
    x = torch.cat([phase.cos(), phase.sin()], dim=1).float()
    for i, name in enumerate(("time_embedding.0", "time_embedding.2", "time_projection.1")):
        x = F.linear(x if i == 0 else F.silu(x), weights[f"{name}.weight"], weights[f"{name}.bias"])
    return x.view(len(phase), 6, -1)


@torch.no_grad()
def test_encoders_of_other_configurations(tmp_path):
    from ported.wan import build, image, text

    config = {"dim": 24, "image_size": 42, "patch_size": 14, "num_heads": 3, "num_layers": 5, "mlp_ratio": 3}
    weights = draw(lambda: clip.CLIPVision(CLIPConfig.from_dict({**config, "out_dim": 9})))
    images = [noise(3, 30, 50).clamp(-1, 1), noise(3, 61, 44, seed=2).clamp(-1, 1)]
    pixels = image.OfficialClipProcessor(42)(images)["pixel_values"]
    states = build.build_image_encoder(config, weights)(pixels, output_hidden_states=True).hidden_states
    outputs = {"clip_fea": states[-2], "full_last": states[-1]}
    acts = {"pixel_values": pixels, "transformer.1": states[2]}
    inputs = {f"image.{i}": picture for i, picture in enumerate(images)}
    path = write(tmp_path / "clip.safetensors", "clip_vision", config, inputs, outputs, weights, acts)
    check(path, 4)

    config = {"vocab": 33, "dim": 20, "dim_attn": 24, "dim_ffn": 28, "num_heads": 3, "num_layers": 2, "num_buckets": 16}
    weights = draw(lambda: t5.UMT5Encoder(T5Config.from_dict(config)))
    ids, mask = torch.arange(2 * 70).view(2, 70) * 7 % 33, torch.ones(2, 70, dtype=torch.long)
    mask[0, 51:] = 0
    hidden = text.text_hidden(build.build_text_encoder(config, weights), ids, mask)
    outputs = {"hidden": hidden, "context.0": hidden[0, :51], "context.1": hidden[1]}
    path = write(tmp_path / "text.safetensors", "text_encoder", config, {"ids": ids, "mask": mask}, outputs, weights)
    check(path, 3)


@torch.no_grad()
def test_pipeline_of_another_configuration(tmp_path):
    from ported.wan import build, pipeline, solver

    networks = {"dit": lambda: dit.WanDiT(DiTConfig.from_dict(T2V)), "vae": lambda: vae.WanVAE(VAEConfig(dim=6))}
    state = {name: draw(make) for name, make in networks.items()}
    decoder, scheduler = build.build_vae({"dim": 6}, state["vae"]), solver.build_scheduler("dpmpp", 4.0)
    port = pipeline.build_pipeline(build.build_dit(T2V, state["dit"]), scheduler, decoder)
    inputs = {"noise": noise(16, 4, 2, 6), "text.pos": noise(18, 20), "text.neg": noise(4, 20, seed=2)}
    done = pipeline.generate(port, pipeline.Request(*inputs.values(), steps=5, guidance=3.5))
    generate = {"frame_num": 13, "guide_scale": 3.5, "sample_solver": "dpm++", "sampling_steps": 5, "shift": 4.0}
    config = {"kind": "t2v", "dit": T2V, "vae": {"dim": 6}, "generate": {**generate, "size": [48, 16]}}
    # stored in half precision without loss, as some recorded files are
    weights = {f"{name}.{key}": value.half() for name, values in state.items() for key, value in values.items()}
    acts = {f"latent.{i}": latent[0] for i, latent in enumerate(done.latents[:-1])}
    outputs = {"latent": done.latents[-1][0], "video": done.video[0, :, [0, 5, 12]]}
    path = tmp_path / "pipeline.safetensors"
    check(write(path, "pipeline", {**config, "video_frames": [0, 5, 12]}, inputs, outputs, weights, acts), 7)


def test_a_solver_of_third_order(tmp_path):
    """Values from diffusers' multistep solver, on velocities of no model."""
    from ported.wan.solver import build_scheduler

    steps, x = 16, noise(1, 2, 3, 2, 2)
    velocities = [noise(1, 2, 3, 2, 2, seed=i + 2) for i in range(steps)]
    scheduler, latent = build_scheduler("dpmpp", 4.0, order=3), x
    scheduler.set_timesteps(steps)
    for t, velocity in zip(scheduler.timesteps, velocities, strict=True):
        latent = scheduler.step(velocity, t, latent, return_dict=False)[0]
    config = {"kind": "dpmpp", "steps": steps, "shift": 4.0, "solver_order": 3}
    acts = {f"v.{i}": velocity for i, velocity in enumerate(velocities)}
    path = write(tmp_path / "third.safetensors", "solver", config, {"x_T": x}, {"x_0": latent}, acts=acts)
    report = verify_golden(path, SYSTEMS)
    assert [c.ok for c in report.checks if c.name == "outputs.x_0"] == [True]
    second = write(
        tmp_path / "second.safetensors", "solver", config | {"solver_order": 2}, {"x_T": x}, {"x_0": latent}, acts=acts
    )
    assert not verify_golden(second, SYSTEMS).ok


def test_a_field_that_is_not_read_is_named(tmp_path):
    config = {"kind": "euler", "steps": 1, "shift": 4.0, "heads": 7}
    path = write(tmp_path / "x.safetensors", "solver", config, {"x_T": noise(1, 2)}, {}, acts={"v.0": noise(1, 2)})
    assert verify_golden(path, SYSTEMS).unread == "config.heads"
