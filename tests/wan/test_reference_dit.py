"""The diffusion transformer: structure, padding, precision (spec A1-A4, A6-A8)."""

import copy

import pytest
import torch

from reference.wan import attention, embeddings
from reference.wan.config import DIT_CONFIGS, DiTConfig
from reference.wan.dit import WanDiT

TINY = {"dim": 48, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "freq_dim": 32, "text_dim": 20, "text_len": 24}


def tiny(model_type="t2v", **changes):
    """A small model with every parameter set to noise: fresh ones have a zero head."""
    torch.manual_seed(3)
    image = {} if model_type == "t2v" else {"in_dim": 36, "clip_dim": 12, "clip_tokens": 5}
    model = WanDiT(DiTConfig(model_type=model_type, **TINY | image | changes)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model


def text(length, seed=0):
    return torch.randn(length, TINY["text_dim"], generator=torch.Generator().manual_seed(seed))


def latent(*size, seed=1):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "tensors", "parameters"),
    [
        ("T2V-1.3B", 825, 1_418_996_800),
        ("T2V-14B", 1095, 14_288_491_584),
        ("I2V-14B", 1303, 16_394_878_784),
        ("FLF2V-14B-720P", 1304, 16_395_536_704),
    ],
)
def test_official_sizes(name, tensors, parameters):
    with torch.device("meta"):
        model = WanDiT(DIT_CONFIGS[name])
    assert len(model.state_dict()) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_keys_that_only_image_models_have():
    keys = {kind: tiny(kind).state_dict().keys() for kind in ("t2v", "i2v", "flf2v")}
    extra = {k for k in keys["i2v"] - keys["t2v"] if not k.startswith("blocks.1.")}
    cross = {f"blocks.0.cross_attn.{m}.{p}" for m in ("k_img", "v_img") for p in ("weight", "bias")}
    image = {f"img_emb.proj.{i}.{p}" for i in (0, 1, 3, 4) for p in ("weight", "bias")}
    assert extra == cross | image | {"blocks.0.cross_attn.norm_k_img.weight"}
    assert keys["flf2v"] - keys["i2v"] == {"img_emb.emb_pos"}
    assert not any("norm1" in k or "norm2" in k or "freqs" in k or k.startswith("head.norm") for k in keys["flf2v"])


def test_fresh_model_is_silent_until_reinitialised():
    model = WanDiT(DiTConfig(model_type="t2v", **TINY))
    assert model.head.head.weight.abs().max() == 0
    assert model.blocks[0].modulation.abs().max() > 0


def test_sequence_padding_and_the_other_sample_change_nothing():
    model, x = tiny(), [latent(16, 2, 4, 6), latent(16, 3, 2, 4, seed=2)]
    context = [text(7), text(24, seed=4)]
    t = torch.tensor([713, 5])
    both = model(x, t, context, seq_len=17)
    for i in range(2):
        alone = model([x[i]], t[i : i + 1], [context[i]], seq_len=(12, 6)[i])
        assert torch.allclose(both[i], alone[0], atol=2e-5)
        assert both[i].shape == x[i].shape


def test_padding_rows_are_exact_zeros_after_the_convolution():
    tokens, lengths, grids = tiny().embed_patches([latent(16, 2, 4, 6)], seq_len=20)
    assert lengths.tolist() == [12]
    assert grids.tolist() == [[2, 2, 3]]
    assert tokens[0, 12:].abs().max() == 0
    assert tokens[0, :12].abs().min(dim=1).values.max() > 0


def test_pad_keys_are_masked_in_self_attention_but_text_pads_are_not():
    q, k, v = (torch.randn(1, 6, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    limited = attention.attention(q, k, v, torch.tensor([4]))
    assert torch.allclose(limited, attention.attention(q, k[:, :4], v[:, :4]), atol=1e-6)
    assert not torch.allclose(limited, attention.attention(q, k, v), atol=1e-3)
    context = tiny().embed_context([text(7)], None)
    assert torch.equal(context[0, 7], context[0, 23])
    assert context[0, 7].abs().max() > 0


def test_long_sequences_attend_in_parts_with_the_same_result(monkeypatch):
    q, k, v = (torch.randn(2, 9, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    whole = attention.attention(q, k, v, torch.tensor([9, 5]))
    monkeypatch.setattr(attention, "QUERY_ROWS", 4)
    assert torch.allclose(attention.attention(q, k, v, torch.tensor([9, 5])), whole, atol=1e-6)


def test_text_longer_than_text_len_and_video_longer_than_seq_len_are_refused():
    with pytest.raises(ValueError, match=r"\[25\] tokens do not fit into text_len 24"):
        tiny()([latent(16, 1, 2, 2)], torch.tensor([1]), [text(25)], seq_len=1)
    with pytest.raises(ValueError, match=r"\[12\] tokens do not fit into seq_len 11"):
        tiny()([latent(16, 2, 4, 6)], torch.tensor([1]), [text(2)], seq_len=11)


@pytest.mark.parametrize("model_type", ["i2v", "flf2v"])
def test_image_models_need_clip_features_and_y(model_type):
    model = tiny(model_type)
    arguments = ([latent(16, 1, 2, 2)], torch.tensor([1]), [text(2)], 1)
    with pytest.raises(ValueError, match="needs clip_fea"):
        model(*arguments, y=[latent(20, 1, 2, 2)])
    with pytest.raises(ValueError, match="needs y"):
        model(*arguments, clip_fea=latent(2, 5, 12))
    with pytest.raises(ValueError, match="takes no clip_fea"):
        tiny()(*arguments, clip_fea=latent(2, 5, 12))


def test_flf2v_merges_consecutive_feature_rows_and_adds_positions_before_the_norm():
    model = tiny("flf2v")
    features = latent(4, 5, 12)  # first0, last0, first1, last1
    tokens = model.img_emb(features)
    assert tokens.shape == (2, 10, TINY["dim"])
    assert torch.allclose(tokens[1], model.img_emb(features[2:])[0], atol=1e-6)
    assert not torch.allclose(tokens[1], model.img_emb(features[[3, 2]])[0], atol=1e-2)  # order matters
    context = model.embed_context([text(3), text(5)], features)
    assert context.shape == (2, 10 + 24, TINY["dim"])
    assert torch.equal(context[:, :10], tokens)  # image tokens in front


def test_time_sinusoid_has_cosines_first_and_float64_angles():
    s = embeddings.sinusoid(8, torch.tensor([999]))
    angles = 999 * 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    assert s.dtype == torch.float32
    assert torch.equal(s[0], torch.cat([angles.cos(), angles.sin()]).float())


def test_unpatchify_puts_each_row_back_with_channels_fastest():
    model = tiny()
    rows = torch.arange(2 * 8 * 64, dtype=torch.float32).view(2, 8, 64)
    first, second = model.unpatchify(rows, torch.tensor([[1, 2, 3], [2, 1, 2]]))
    assert first.shape == (16, 1, 4, 6)
    assert second.shape == (16, 2, 2, 4)
    c, p, q, r, f, h, w = 5, 0, 1, 0, 1, 0, 1
    assert second[c, f + p, 2 * h + q, 2 * w + r] == rows[1, (f * 1 + h) * 2 + w, ((p * 2 + q) * 2 + r) * 16 + c]


def dtypes_under_autocast(model, image):
    seen = {}
    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda m, args, out, name=name: (
                seen.__setitem__(name, (args[0].dtype, out.dtype))
                if isinstance(out, torch.Tensor) and isinstance(args[0], torch.Tensor)
                else None
            )
        )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model([latent(16, 1, 4, 6)], torch.tensor([500]), [text(6)], 6, **image)
    return seen, out[0].dtype


@pytest.mark.parametrize("model_type", ["t2v", "i2v"])
def test_precision_map_under_autocast(model_type):
    half, single = torch.bfloat16, torch.float32
    image = {} if model_type == "t2v" else {"clip_fea": latent(1, 5, 12), "y": [latent(20, 1, 4, 6)]}
    seen, result = dtypes_under_autocast(tiny(model_type), image)
    assert result == single
    outputs = {
        "patch_embedding": half, "text_embedding": half, "time_embedding": single, "time_projection": single,
        "blocks.0.norm1": half, "blocks.1.norm1": single, "blocks.0.self_attn.q": half,
        "blocks.0.self_attn.norm_q": single, "blocks.0.self_attn.v": half, "blocks.0.self_attn": half,
        "blocks.0.cross_attn": half, "blocks.0.ffn": half, "blocks.0": single, "blocks.0.norm3": single, "head": single,
    }  # fmt: skip
    assert {name: seen[name][1] for name in outputs} == outputs
    assert seen["blocks.0"][0] == half  # the stream before block 0
    assert seen["blocks.0.self_attn"][0] == single  # modulated input
    if model_type == "i2v":
        assert seen["img_emb"][1] == single
        assert seen["blocks.0.cross_attn.k_img"] == (single, half)


def test_half_precision_weights_keep_time_and_head_in_float32():
    model = tiny().to(torch.bfloat16)  # as under parameter sharding
    seen, result = dtypes_under_autocast(model, {})
    assert result == torch.float32
    assert seen["time_embedding"][1] == seen["time_projection"][1] == seen["head"][1] == torch.float32
    assert model.freqs.dtype == torch.complex128


def test_upcast_copy_is_untouched_by_autocast():
    model = copy.deepcopy(tiny()).double()
    block, d = model.blocks[0], TINY["dim"]
    arguments = (
        latent(1, 6, d).double(), latent(1, 6, d, seed=2).double(), torch.tensor([6]), torch.tensor([[1, 2, 3]]),
        model.freqs, latent(1, 24, d, seed=3).double(),
    )  # fmt: skip
    ffn = block.ffn(arguments[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(block.ffn(arguments[0]), ffn)
    assert ffn.dtype == torch.float64
