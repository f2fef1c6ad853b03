"""Configuration, state dict, loading, modules and the whole forward of the Waypoint reference."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from safetensors.torch import save_file

from reference.waypoint import WAYPOINT_1_SMALL, Config, StaticKVCache, WorldModel, load_weights
from reference.waypoint.attention import CrossAttention, softmax_attention
from reference.waypoint.layers import CFG, AdaLN, MLPFusion, NoiseConditioner, ada_gate, ada_rmsnorm, rms

TINY = {
    "d_model": 64,
    "n_heads": 2,
    "n_kv_heads": 1,
    "n_layers": 3,
    "mlp_ratio": 2,
    "channels": 4,
    "height": 3,
    "width": 5,
    "patch": [1, 2],
    "tokens_per_frame": 15,
    "n_frames": 8,
    "local_window": 2,
    "global_window": 4,
    "global_attn_period": 2,
    "global_pinned_dilation": 2,
    "gated_attn": True,
    "n_buttons": 6,
    "ctrl_conditioning_period": 2,
    "prompt_conditioning_period": 2,
    "prompt_embedding_dim": 64,
}


def build(**changes: object) -> WorldModel:
    """Build a small model with every parameter random and non-zero."""
    model = WorldModel(Config.from_dict({**TINY, **changes})).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = max(parameter.shape[-1], 1) ** -0.5 if parameter.ndim else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def inputs(config: Config, frame: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Draw what one forward takes, without the cache."""
    g = torch.Generator().manual_seed(frame)
    prompt = torch.randn(1, 7, config.prompt_embedding_dim, generator=g)
    prompt[:, 4:] = 0
    pad = torch.arange(7)[None] >= 4
    return {
        "x": torch.randn(1, 1, *config.latent_shape, generator=g).to(dtype),
        "sigma": torch.tensor([[0.75]], dtype=dtype),
        "frame_timestamp": torch.tensor([[frame]]),
        "prompt_emb": prompt.to(dtype),
        "prompt_pad_mask": pad,
        "mouse": torch.randn(1, 1, 2, generator=g).to(dtype),
        "button": torch.eye(config.n_buttons)[None, 1:2].to(dtype),
        "scroll": torch.tensor([[[-1.0]]], dtype=dtype),
    }


def history(model: WorldModel, frames: int = 4) -> list[torch.Tensor]:
    """Run some frames with an unfrozen cache; returns the velocities."""
    dtype = model.patchify.weight.dtype
    cache = StaticKVCache(model.config, dtype)
    cache.set_frozen(False)
    with torch.no_grad():
        return [model(**inputs(model.config, f, dtype), kv_cache=cache) for f in range(frames)]


def test_small_has_the_published_keys_and_parameters():
    with torch.device("meta"):
        model = WorldModel(WAYPOINT_1_SMALL)
    state = model.state_dict()
    assert len(state) == 366
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(2.303e9, rel=3e-4)
    assert sum(t.numel() for t in state.values()) == pytest.approx(3.129e9, rel=3e-4)
    shapes = {
        "denoise_step_emb.mlp.fc1.weight": (10240, 512),
        "ctrl_emb.mlp.fc1.weight": (12800, 259),
        "prompt_cfg.null_emb": (1, 1, 2048),
        "transformer.blocks.21.attn.k_proj.weight": (1280, 2560),
        "transformer.blocks.21.attn.gate_proj.weight": (40, 40),
        "transformer.blocks.21.cond_head.cond_proj.5.weight": (2560, 2560),
        "transformer.blocks.21.prompt_cross_attn.q_proj.weight": (2048, 2560),
        "transformer.blocks.18.ctrl_mlpfusion.mlp.fc1.weight": (2560, 5120),
        "patchify.weight": (2560, 16, 2, 2),
        "unpatchify.bias": (64,),
        "out_norm.fc.weight": (5120, 2560),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_optional_modules_follow_the_config():
    def keys(**changes: object) -> set[str]:
        return set(build(**changes).state_dict())

    base = keys()
    assert not any("v_lamb" in k for k in base)
    assert keys(value_residual=True) - base == {f"transformer.blocks.{i}.attn.v_lamb" for i in range(3)}
    assert {k.split(".")[-2] for k in base - keys(gated_attn=False)} == {"gate_proj"}
    assert base - keys(ctrl_conditioning=None) == {"ctrl_cfg.null_emb"}  # the fusions stay
    assert all("prompt" in k for k in base - keys(prompt_conditioning=None))
    assert not any("prompt" in k for k in keys(prompt_conditioning=None))
    assert all(k.endswith("bias_in") for k in base - keys(noise_conditioning="dit_air"))
    assert keys(noise_conditioning="dit_air") == keys(noise_conditioning="none")


def test_condition_projections_are_shared_only_where_specified():
    def distinct(noise_conditioning: str) -> int:
        blocks = build(noise_conditioning=noise_conditioning).transformer.blocks
        return len({id(b.cond_head.cond_proj[2].weight) for b in blocks})

    assert (distinct("wan"), distinct("dit_air"), distinct("none")) == (1, 1, 3)
    cast = copy.deepcopy(build()).to(torch.bfloat16)  # neither a copy nor a cast may break the tie
    assert len({id(b.cond_head.cond_proj[2].weight) for b in cast.transformer.blocks}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 3, "rope": 1}, r"unknown keys \['n_layer', 'rope'\]"),
        ({"tokens_per_frame": 16}, "tokens_per_frame 16 != height\\*width 15"),
        ({"n_heads": 4}, "head_dim 16"),
        ({"global_pinned_dilation": 3}, "does not divide global_window"),
        ({"n_heads": 2, "n_kv_heads": 3}, "n_kv_heads 3"),
        ({"prompt_conditioning": "concat"}, "prompt_conditioning 'concat'"),
        ({"prompt_embedding_dim": 48}, "prompt_embedding_dim 48"),
    ],
)
def test_a_bad_config_is_refused_in_words(changes, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({**TINY, **changes})


def test_missing_config_keys_are_listed():
    with pytest.raises(ValueError, match=r"missing keys \['d_model', 'width'\]"):
        Config.from_dict({k: v for k, v in TINY.items() if k not in ("d_model", "width")})


def test_config_defaults_and_yaml(tmp_path):
    config = Config.from_dict({k: v for k, v in TINY.items() if k not in ("n_kv_heads", "patch", "gated_attn")})
    assert (config.n_kv_heads, config.patch, config.gated_attn, config.value_residual) == (2, (1, 1), False, False)
    (tmp_path / "c.yaml").write_text("\n".join(f"{k}: {v}" for k, v in TINY.items()))
    assert Config.from_yaml(tmp_path / "c.yaml") == Config.from_dict(TINY)


@pytest.mark.parametrize(("offset", "layers"), [(0, [0, 3]), (1, [1, 4]), (-1, [2, 5]), (-4, [2, 5]), (5, [2, 5])])
def test_global_layers_follow_period_and_offset(offset, layers):
    config = Config.from_dict({**TINY, "global_attn_period": 3, "global_attn_offset": offset})
    assert [i for i in range(6) if config.is_global(i)] == layers


def test_loading_is_strict_and_lists_everything():
    model = build()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    del state["patchify.weight"]
    state["transformer.blocks.0.mlp.fc_in.weight"] = torch.zeros(2)
    state["unpatchify.bias"] = torch.zeros(3)
    state["transformer.blocks.2.cond_head.cond_proj.0.weight"] += 1
    before = model.out_norm.fc.weight.clone()
    with pytest.raises(ValueError, match="cannot load Waypoint weights strictly") as error:
        load_weights(model, {k: v + 1 for k, v in state.items()})
    text = str(error.value)
    assert "missing: patchify.weight [64, 4, 1, 2]" in text
    assert "unexpected: transformer.blocks.0.mlp.fc_in.weight [2]" in text
    assert "shape: unpatchify.bias is [3], expected [8]" in text
    assert "tied: transformer.blocks.2.cond_head.cond_proj.0.weight must equal transformer.blocks.0" in text
    assert torch.equal(model.out_norm.fc.weight, before)  # nothing was loaded


def test_half_precision_files_are_upcast(tmp_path):
    source, target = build(), WorldModel(Config.from_dict(TINY))
    save_file({k: v.to(torch.bfloat16) for k, v in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert target.patchify.weight.dtype == torch.float32
    assert torch.equal(target.patchify.weight, source.patchify.weight.to(torch.bfloat16).float())


def test_a_meta_model_cannot_be_loaded():
    with torch.device("meta"):
        model = WorldModel(Config.from_dict(TINY))
    with pytest.raises(ValueError, match="meta device"):
        load_weights(model, build().state_dict())


def test_forward_is_deterministic_and_finite():
    model = build()
    first, second = history(model), history(model)
    for a, b in zip(first, second, strict=True):
        assert a.shape == (1, 1, 4, 3, 10)
        assert torch.equal(a, b)
        assert a.isfinite().all()
        assert a.std() > 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value_residual": True, "gated_attn": False},
        {"noise_conditioning": "none", "ctrl_conditioning": None},
        {"noise_conditioning": "dit_air", "prompt_conditioning": None},
        {"global_attn_offset": -1, "global_attn_period": 3},
    ],
)
def test_a_float64_copy_computes_the_same_function(changes):
    model = build(**changes)
    wide = copy.deepcopy(model).double()
    assert wide.denoise_step_emb.freq.dtype == wide.transformer.blocks[0].attn.rope.cos.dtype == torch.float64
    for a, b in zip(history(model), history(wide), strict=True):
        assert b.dtype == torch.float64
        assert torch.linalg.norm(a - b) / torch.linalg.norm(b) < 1e-5


def test_a_float64_copy_of_a_bf16_model_keeps_the_rounded_constants():
    half = build().to(torch.bfloat16)
    wide = copy.deepcopy(half).double()
    assert torch.equal(wide.scheduler_sigmas, half.scheduler_sigmas.double())
    assert half.scheduler_sigmas.tolist() == [1.0, 0.859375, 0.73046875, 0.3203125, 0.0]
    assert torch.equal(wide.denoise_step_emb.freq, half.denoise_step_emb.freq.double())


def test_value_residual_changes_later_layers_only():
    model = build(value_residual=True)
    seen: list[torch.Tensor] = []
    for block in model.transformer.blocks:
        block.attn.register_forward_hook(lambda _m, _i, out: seen.append(out[1]))
    history(model, 1)
    assert seen[0] is not None
    assert all(v1 is seen[0] for v1 in seen)  # layer 0 sets v1, the others pass it on
    attn = model.transformer.blocks[1].attn
    v, v1 = torch.randn(1, 1, 5, 32), torch.randn(1, 1, 5, 32)
    torch.testing.assert_close(attn.mix_values(v, v1)[0], torch.lerp(v, v1, attn.v_lamb.detach()))


def test_the_gate_reads_the_first_features_of_its_input():
    attn = build().transformer.blocks[0].attn
    z, y = torch.randn(1, 15, 64), torch.randn(1, 2, 15, 32)
    other = z.clone()
    other[..., 2:] = torch.randn(1, 15, 62)
    assert torch.equal(attn.gate(y, z), attn.gate(y, other))
    expected = y[:, 1] * torch.sigmoid(z[..., :2] @ attn.gate_proj.weight[1])[..., None]
    torch.testing.assert_close(attn.gate(y, z)[:, 1], expected)


def test_query_heads_read_consecutive_groups_of_kv_heads():
    config = Config.from_dict({**TINY, "d_model": 128, "n_heads": 4, "n_kv_heads": 2})
    attn = WorldModel(config).transformer.blocks[0].attn
    q, (k, v) = torch.randn(1, 4, 15, 32), torch.randn(2, 1, 2, 30, 32)
    keep = torch.arange(30) % 3 > 0
    y = attn.attend(q, k, v, keep)
    for head in range(4):
        mine = slice(head // 2, head // 2 + 1)
        one = torch.nn.functional.scaled_dot_product_attention(
            q[:, head : head + 1], k[:, mine], v[:, mine], attn_mask=keep.expand(1, 1, 15, 30)
        )
        torch.testing.assert_close(y[:, head : head + 1], one)


def test_hidden_keys_contribute_exactly_nothing():
    q, k, v = torch.randn(3, 1, 2, 6, 32)
    keep = torch.tensor([True, False, True, True, False, True])
    loud = v.clone()
    loud[:, :, ~keep] = 1e30
    assert torch.equal(softmax_attention(q, k, v, keep), softmax_attention(q, k, loud, keep))


def test_cross_attention_ignores_the_mask_and_padding_takes_mass():
    cross = CrossAttention(64, 96, 32)
    x, context = torch.randn(1, 5, 64), torch.randn(1, 9, 96)
    context[:, 4:] = 0
    pad = torch.arange(9)[None] >= 4
    assert torch.equal(cross(x, context, pad), cross(x, context))
    assert not torch.allclose(cross(x, context), cross(x, context[:, :4]), atol=1e-2)


def test_modulation_is_per_group():
    x, s, b = torch.randn(1, 6, 8), torch.randn(1, 2, 8), torch.randn(1, 2, 8)
    whole = ada_rmsnorm(x, s, b)
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        mine = rms(x[:, rows]) * (1 + s[:, group : group + 1]) + b[:, group : group + 1]
        torch.testing.assert_close(whole[:, rows], mine)
        torch.testing.assert_close(ada_gate(x, s)[:, rows], x[:, rows] * s[:, group : group + 1])
    norm = AdaLN(8)
    scale, shift = (torch.nn.functional.silu(s) @ norm.fc.weight.T).split(8, -1)
    torch.testing.assert_close(norm(x, s), ada_rmsnorm(x, scale, shift))


def test_rms_uses_the_float32_epsilon_in_every_dtype():
    x = torch.full((1, 4), 1e-4)
    expected = 1e-4 / math.sqrt(1e-8 + 2**-23)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
        assert rms(x.to(dtype))[0, 0].item() == pytest.approx(expected, rel=tolerance)


def test_fusion_is_an_mlp_of_the_concatenation():
    fusion = MLPFusion(8)
    x, cond = torch.randn(1, 6, 8), torch.randn(1, 2, 8)
    stacked = torch.cat([x, cond.repeat_interleave(3, 1)], -1)
    torch.testing.assert_close(fusion(x, cond), fusion.mlp(stacked))


def test_noise_features_are_sines_then_cosines_of_a_thousand_sigma():
    noise = NoiseConditioner(16)
    features = noise.features(torch.tensor([[0.0, 0.3]]))[0]
    assert noise.freq[0] == 1
    assert noise.freq[-1].item() == pytest.approx(1e-4, rel=1e-5)
    assert noise.freq[0].item() / noise.freq[1].item() == pytest.approx(10000 ** (1 / 255), rel=1e-5)
    torch.testing.assert_close(features[0], torch.cat([torch.zeros(256), torch.full((256,), 2**0.5)]))
    assert features[1, 0].item() == pytest.approx(2**0.5 * math.sin(300.0), abs=1e-4)
    assert features[1, 256].item() == pytest.approx(2**0.5 * math.cos(300.0), abs=1e-4)


def test_cfg_replaces_as_its_flag_says():
    cfg, x = CFG(8, 0.0), torch.randn(6, 3, 8)
    with torch.no_grad():
        cfg.null_emb.fill_(7.0)
    assert cfg(x) is x
    assert cfg(x, True) is x
    assert (cfg(x, False) == 7).all()
    random = CFG(8, 0.5).eval()
    out = random(x, generator=torch.Generator().manual_seed(0))
    replaced = (out == random.null_emb).all(-1).all(-1)
    assert 0 < replaced.sum() < 6  # random although in eval mode, one draw a sample
    assert torch.equal(out[~replaced], x[~replaced])


def test_wrong_shapes_are_named():
    model = build()
    cache = StaticKVCache(model.config)
    given = inputs(model.config)
    with pytest.raises(ValueError, match=r"x must be \(1, 1, 4, 3, 10\), got \(1, 1, 4, 3, 5\)"):
        model(**{**given, "x": given["x"][..., :5]}, kv_cache=cache)
    with pytest.raises(ValueError, match="prompt_emb is needed"):
        model(**{**given, "prompt_emb": None}, kv_cache=cache)
    with pytest.raises(IndexError, match="rotary position t"):
        model(**{**given, "frame_timestamp": torch.tensor([[8]])}, kv_cache=cache)


def test_patches_are_cut_channel_first():
    model = build()
    latent = torch.arange(120.0).view(1, 1, 4, 3, 10)
    tokens = torch.stack(
        [latent[0, 0, :, i, 2 * j : 2 * j + 2].flatten() for i in range(3) for j in range(5)]
    )  # token order row-major, feature order (c, ph, pw)
    assert torch.equal(model.unpatch(tokens[None]), latent)


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WAYPOINT_1_SMALL.d_model = 1
