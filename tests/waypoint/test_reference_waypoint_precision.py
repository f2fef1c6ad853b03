"""Engine dtype, inference patches and quantised linears of the Waypoint reference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reference.waypoint import Config, Controls, Engine, WorldModel, apply_inference_patches, quantize, to_engine_dtype
from reference.waypoint.layers import NoiseConditioner
from reference.waypoint.quant import FP8Linear, NVFP4Linear, W8A8Linear, nvfp4, round_e2m1

CONFIG = Config(
    d_model=64,
    n_heads=2,
    n_kv_heads=1,
    n_layers=3,
    mlp_ratio=2,
    channels=4,
    height=3,
    width=4,
    patch=(2, 1),
    tokens_per_frame=12,
    n_frames=8,
    local_window=2,
    global_window=4,
    global_attn_period=2,
    global_pinned_dilation=2,
    gated_attn=True,
    n_buttons=5,
    ctrl_conditioning_period=2,
    prompt_conditioning_period=2,
    prompt_embedding_dim=64,
)
BF16 = torch.bfloat16


def build(dtype: torch.dtype = torch.float32, no_cast: str = "rounded") -> WorldModel:
    torch.manual_seed(5)
    return to_engine_dtype(WorldModel(CONFIG).eval(), dtype, no_cast)


def run(model: WorldModel, frames: int = 4) -> torch.Tensor:
    """Generate frames from fixed noise; returns the latents as float32."""
    engine = Engine(model)
    generator = torch.Generator().manual_seed(1)
    engine.set_prompt_embeds(torch.randn(1, 6, 64, generator=generator))
    latents = []
    for f in range(frames):
        noise = torch.randn(1, 1, 4, 6, 4, generator=generator)
        latents.append(engine.gen_frame(Controls(frozenset({f % 5}), (0.1 * f, -0.2), f - 1.0), noise).latent)
    return torch.stack(latents).float()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return (torch.linalg.norm(a.double() - b.double()) / torch.linalg.norm(b.double())).item()


def floats(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]


def test_casting_the_parent_rounds_no_cast_modules_and_keeps_their_storage():
    exact, cast = build(), build(BF16)
    for name in ("denoise_step_emb", "transformer.blocks.0.attn.rope"):
        pairs = list(zip(floats(exact.get_submodule(name)), floats(cast.get_submodule(name)), strict=True))
        assert pairs
        for before, after in pairs:
            assert after.dtype == torch.float32
            assert torch.equal(after, before.to(BF16).float())
    error = ((cast.denoise_step_emb.freq - exact.denoise_step_emb.freq) / exact.denoise_step_emb.freq).abs().max()
    assert 0.003 < error < 0.0038  # spec: up to 0.37 %
    assert {p.dtype for n, p in cast.named_parameters() if "denoise_step_emb" not in n} == {BF16}


def test_the_exact_option_skips_no_cast_modules():
    exact, cast = build(), build(BF16, "exact")
    for name in ("denoise_step_emb", "transformer.blocks.2.attn.rope"):
        for before, after in zip(floats(exact.get_submodule(name)), floats(cast.get_submodule(name)), strict=True):
            assert torch.equal(after, before)
    assert cast.patchify.weight.dtype == BF16
    sigma = torch.ones(1, 1, dtype=BF16)
    apart = relative(cast.denoise_step_emb(sigma), build(BF16).denoise_step_emb(sigma))
    assert 0.1 < apart < 1.0  # the two "official" behaviours differ visibly (spec: 15 to 63 %)
    with pytest.raises(ValueError, match="'rounded' or 'exact'"):
        to_engine_dtype(exact, BF16, "none")


def test_a_direct_cast_of_a_no_cast_module_is_exact():
    noise = NoiseConditioner(16)
    before = [t.clone() for t in floats(noise)]
    noise.to(BF16)
    assert all(torch.equal(a, b) for a, b in zip(floats(noise), before, strict=True))
    assert noise(torch.tensor([[0.5]], dtype=BF16)).dtype == BF16
    assert noise.to(torch.float64).freq.dtype == torch.float64


def test_bf16_stays_bf16_from_end_to_end():
    model = build(BF16)
    seen = set()

    def note(_module: nn.Module, _args: object, out: object) -> None:
        seen.update(t.dtype for t in (out if isinstance(out, tuple) else (out,)) if t is not None)

    for name, module in model.named_modules():
        if not name.startswith("denoise_step_emb."):  # inside it float32 is right
            module.register_forward_hook(note)
    engine = Engine(model)
    engine.set_prompt_embeds(torch.randn(1, 6, 64))
    assert engine.gen_frame().latent.dtype == BF16
    assert engine.kv_cache.layers[0].kv.dtype == BF16
    assert seen == {BF16}


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (BF16, 0.05)])
def test_patches_are_neutral_up_to_rounding(dtype, limit):
    plain = build(dtype)
    patched = apply_inference_patches(copy.deepcopy(plain))
    assert relative(run(patched), run(plain)) < limit


def test_patches_replace_what_they_name():
    patched = apply_inference_patches(build(BF16))
    names = {n for n, _ in patched.named_parameters()}
    assert "transformer.blocks.1.attn.qkv_proj.weight" in names
    assert not any(f"{p}_proj" in n for p in "qkv" for n in names if ".attn." in n and "qkv" not in n)
    assert "transformer.blocks.0.ctrl_mlpfusion.fc1_c.weight" in names
    assert patched.denoise_step_emb.table.shape == (5, 64)
    assert patched.transformer.blocks[0].cond_head.cache.shape == (6, 5, 64)


def test_an_unknown_sigma_is_an_index_error():
    patched = apply_inference_patches(build(BF16))
    known = patched.denoise_step_emb(torch.tensor([[0.8609585762023926]], dtype=BF16))
    assert torch.equal(known[0, 0], patched.denoise_step_emb.table[1])
    with pytest.raises(IndexError):
        patched.denoise_step_emb(torch.tensor([[0.5]], dtype=BF16))


def test_sigmas_that_collide_in_bf16_cannot_key_a_table():
    config = Config(**{**vars(CONFIG), "scheduler_sigmas": (1.0, 0.5, 0.5001, 0.0)})
    apply_inference_patches(WorldModel(config))  # distinct in float32
    with pytest.raises(ValueError, match=r"distinct in torch.bfloat16"):
        apply_inference_patches(to_engine_dtype(WorldModel(config), BF16))


def test_a_float64_copy_of_a_patched_model_runs():
    patched = apply_inference_patches(build(BF16))
    assert relative(run(patched), run(copy.deepcopy(patched).double())) < 0.05


@pytest.mark.parametrize(("quant", "kind"), [("w8a8", W8A8Linear), ("fp8", FP8Linear), ("nvfp4", NVFP4Linear)])
def test_quantisation_replaces_eligible_linears_and_stays_near(quant, kind):
    plain = apply_inference_patches(build(BF16))
    quantised = quantize(copy.deepcopy(plain), quant)
    replaced = {n for n, m in quantised.named_modules() if isinstance(m, kind)}
    kept = {n for n, m in quantised.named_modules() if isinstance(m, nn.Linear)}
    assert "transformer.blocks.0.attn.qkv_proj" in replaced
    assert "transformer.blocks.0.ctrl_mlpfusion.fc1_x" in replaced
    # gate 2x2, controls 8 wide, 8 outputs: not divisible by 32
    assert kept == {f"transformer.blocks.{i}.attn.gate_proj" for i in range(3)} | {"ctrl_emb.mlp.fc1", "unpatchify"}
    error = relative(run(quantised, 2), run(plain, 2))
    assert 0 < error < 0.5


def test_quantisation_needs_split_fusions_and_a_known_name():
    with pytest.raises(ValueError, match="inference patches first"):
        quantize(build(BF16), "w8a8")
    with pytest.raises(ValueError, match="'int4'"):
        quantize(build(BF16), "int4")
    model = build(BF16)
    assert quantize(model, None) is model
    assert any(isinstance(m, nn.Linear) for m in model.modules())


def linear(bias: bool = True) -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(64, 32, bias=bias).to(BF16), torch.randn(7, 64).to(BF16)


def test_w8a8_is_within_e4m3_rounding_and_scale_free():
    source, x = linear()
    quantised = W8A8Linear(source)
    assert quantised.weight.float().abs().max() == 448
    assert 0.005 < relative(quantised(x), source(x)) < 0.06
    assert quantised(x).dtype == BF16
    assert W8A8Linear(nn.Linear(32, 32, bias=False).to(BF16))(torch.zeros(1, 32, dtype=BF16)).abs().max() == 0


def test_fp8_scales_by_the_signed_maximum():
    source, x = linear()
    with torch.no_grad():
        source.weight[0, 0] = -4.0  # max|W| = 4, signed maximum about 0.125
    quantised = FP8Linear(source)
    assert quantised.weight_scale == source.weight.amax()
    assert quantised.weight.float().min() == pytest.approx(-4.0 / source.weight.amax().item(), rel=0.07)
    assert 0.005 < relative(quantised(x), source(x)) < 0.06
    clipped = (x * 1000).clamp(-448, 448)  # activations are cast unscaled
    assert torch.equal(quantised(x * 1000), quantised(clipped))


def test_e2m1_rounds_to_nearest_even_and_saturates():
    given = torch.tensor([0, 0.25, 0.26, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 5.01, 9.0, -0.75, -2.4])
    want = torch.tensor([0, 0.0, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 6.0, -1.0, -2.0])
    assert torch.equal(round_e2m1(given), want)


def test_nvfp4_scales_each_block():
    x = torch.randn(3, 64) * torch.tensor([0.1, 1.0, 10.0, 0.0]).repeat_interleave(16)
    y = nvfp4(x, 1.0)
    for block in range(3):
        part = slice(16 * block, 16 * block + 16)
        assert 0.02 < relative(y[:, part], x[:, part]) < 0.2  # the small block is as good as the large one
    assert (y[:, 48:] == 0).all()
    source, inputs = linear()
    assert 0.02 < relative(NVFP4Linear(source)(inputs), source(inputs)) < 0.25
    with torch.no_grad():
        source.weight.zero_()
    assert torch.equal(NVFP4Linear(source)(inputs), source(inputs))
