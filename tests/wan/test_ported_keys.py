"""Key maps of the Wan port: lossless both ways on every real configuration, and strict."""

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

from ported.wan import build, configs, keys, tiny

REAL = [
    ("T2V-1.3B", 825, 1_418_996_800),
    ("T2V-14B", 1095, 14_288_491_584),
    ("I2V-14B", 1303, 16_394_878_784),
    ("FLF2V-14B-720P", 1304, 16_395_536_704),
]


def meta_state(make):
    with torch.device("meta"):
        return make().state_dict()


def assert_round_trip(component, port):
    official = keys.to_official(component, port)
    again = keys.to_port(component, official)
    assert again.keys() == port.keys()
    assert {k: v.shape for k, v in again.items()} == {k: v.shape for k, v in port.items()}
    assert keys.to_official(component, again).keys() == official.keys()
    return official


@pytest.mark.parametrize(("name", "tensors", "parameters"), REAL)
def test_real_dit_round_trip(name, tensors, parameters):
    arguments = configs.dit_arguments(configs.REAL_DIT[name])
    official = assert_round_trip("dit", meta_state(lambda: WanTransformer3DModel(**arguments)))
    assert len(official) == tensors
    assert sum(v.numel() for v in official.values()) == parameters
    dim = configs.REAL_DIT[name]["dim"]
    assert official["head.modulation"].shape == (1, 2, dim)
    assert official["blocks.0.modulation"].shape == (1, 6, dim)
    assert official["blocks.0.norm3.weight"].shape == (dim,)
    assert ("img_emb.emb_pos" in official) == (name == "FLF2V-14B-720P")


def test_real_vae_round_trip():
    official = assert_round_trip("vae", meta_state(lambda: AutoencoderKLWan(**configs.vae_arguments(configs.REAL_VAE))))
    assert len(official) == 194
    assert sum(v.numel() for v in official.values()) == 126_892_531
    assert official["decoder.upsamples.4.shortcut.weight"].shape == (384, 192, 1, 1, 1)
    assert official["decoder.upsamples.7.time_conv.weight"].shape == (768, 384, 3, 1, 1)
    assert official["encoder.middle.1.norm.gamma"].shape == (384, 1, 1)


def test_real_text_round_trip():
    config = UMT5Config(**configs.text_arguments(configs.REAL_TEXT))
    official = assert_round_trip("text", meta_state(lambda: UMT5EncoderModel(config)))
    assert len(official) == 24 * 10 + 2
    assert official["token_embedding.weight"].shape == (256384, 4096)
    assert official["blocks.23.pos_embedding.embedding.weight"].shape == (32, 64)


def test_real_image_round_trip():
    config = CLIPVisionConfig(**configs.image_arguments(configs.REAL_IMAGE))
    official = assert_round_trip("image", meta_state(lambda: CLIPVisionModel(config)))
    assert official["transformer.31.attn.to_qkv.weight"].shape == (3840, 1280)
    assert official["cls_embedding"].shape == (1, 1, 1280)
    assert official["pos_embedding"].shape == (1, 257, 1280)


@pytest.mark.parametrize("component", ["dit", "vae", "text", "image"])
def test_values_survive_the_round_trip(component):
    make = {
        "dit": lambda: tiny.dit("flf2v"),
        "vae": tiny.vae,
        "text": tiny.text_encoder,
        "image": tiny.image_encoder,
    }
    port = make[component]().state_dict()
    again = keys.to_port(component, keys.to_official(component, port))
    assert all(torch.equal(again[k], v) for k, v in port.items())


def test_qkv_of_the_image_encoder_is_split_in_order():
    official = keys.to_official("image", tiny.image_encoder().state_dict())
    q, k, v = official["transformer.1.attn.to_qkv.weight"].chunk(3)
    port = keys.to_port("image", official)
    for name, part in zip("qkv", (q, k, v), strict=True):
        assert torch.equal(port[f"encoder.layers.1.self_attn.{name}_proj.weight"], part)


def test_the_unused_head_is_dropped():
    official = keys.to_official("image", tiny.image_encoder().state_dict()) | {"head": torch.zeros(20, 8)}
    assert "head" not in keys.to_port("image", official)


def test_unknown_keys_are_listed():
    state = {"blocks.0.modulation": torch.zeros(1), "blocks.0.mystery": torch.zeros(1), "extra.bias": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"no rule for 2 keys \['blocks.0.mystery', 'extra.bias'\]"):
        keys.to_port("dit", state)
    with pytest.raises(ValueError, match="port state dict of vae: no rule for 1 keys"):
        keys.to_official("vae", {"decoder.up_blocks.0.resnets.7.conv1.weight": torch.zeros(1)})


def test_a_missing_third_of_qkv_is_an_error():
    port = tiny.image_encoder().state_dict()
    del port["encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"transformer\.0\.attn\.to_qkv\.bias \(a part is missing\)"):
        keys.to_official("image", port)


def test_unknown_component():
    with pytest.raises(ValueError, match="choose one of dit, vae, text, image"):
        keys.to_port("clip", {})


def test_missing_and_unexpected_keys_come_in_one_error():
    official = keys.to_official("dit", tiny.dit().state_dict())
    official["blocks.2.modulation"] = official.pop("blocks.1.modulation")
    with pytest.raises(ValueError, match=r"Missing 1: \['blocks.1.scale_shift_table'\]. Unexpected 1: \['blocks.2"):
        build.load_official("dit", tiny.dit(), official)


def test_wrong_shapes_are_listed():
    official = keys.to_official("dit", tiny.dit(head_dim=40).state_dict())
    with pytest.raises(
        ValueError, match=r"shapes \(given, expected\) differ: .*'patch_embedding.bias': \(\(80,\), \(48,\)\)"
    ):
        build.load_official("dit", tiny.dit(head_dim=24), official)


def test_only_image_models_have_image_keys():
    def has_image(kind):
        return "blocks.1.cross_attn.norm_k_img.weight" in keys.to_official("dit", tiny.dit(kind).state_dict())

    assert [has_image(kind) for kind in ("t2v", "i2v", "flf2v")] == [False, True, True]


def test_official_dit_keys_are_those_of_the_specification():
    """Spec A2, written out independently of the rules."""
    both = ("weight", "bias")
    attention = [*(f"{x}.{p}" for x in "qkvo" for p in both), "norm_q.weight", "norm_k.weight"]
    image = [*(f"{x}_img.{p}" for x in "kv" for p in both), "norm_k_img.weight"]
    block = ["modulation", *(f"{x}.{p}" for x in ("norm3", "ffn.0", "ffn.2") for p in both)]
    block += [*(f"self_attn.{x}" for x in attention), *(f"cross_attn.{x}" for x in attention + image)]
    top = [f"{x}.{p}" for x in ("patch_embedding", "time_projection.1", "head.head") for p in both]
    top += [f"{x}_embedding.{i}.{p}" for x in ("text", "time") for i in (0, 2) for p in both]
    top += [*(f"img_emb.proj.{i}.{p}" for i in (0, 1, 3, 4) for p in both), "img_emb.emb_pos", "head.modulation"]
    expected = {*top, *(f"blocks.{i}.{x}" for i in range(2) for x in block)}
    assert set(keys.to_official("dit", tiny.dit("flf2v").state_dict())) == expected
