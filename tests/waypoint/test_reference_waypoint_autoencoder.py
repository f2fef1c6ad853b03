"""The Waypoint reference's autoencoder: shapes, weight norm, shortcuts, pixel rules."""

from __future__ import annotations

import pytest
import torch

from reference.waypoint import (
    WAYPOINT_1_SMALL_DECODER,
    WAYPOINT_1_SMALL_ENCODER,
    Autoencoder,
    AutoencoderConfig,
    bake_weight_norm,
    load_weights,
)
from reference.waypoint.autoencoder import Decoder, DecoderIn, Encoder, EncoderOut, ResBlock, to_uint8

TINY = AutoencoderConfig(3, 4, 4, 8, encoder_blocks_per_stage=(1, 1), decoder_blocks_per_stage=(2, 1))


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(TINY, TINY).eval()


def test_small_compresses_512_to_32_and_decodes_to_360_by_640():
    with torch.device("meta"):
        encoder, decoder = Encoder(WAYPOINT_1_SMALL_ENCODER), Decoder(WAYPOINT_1_SMALL_DECODER)
        assert encoder(torch.empty(1, 3, 360, 640)).shape == (1, 16, 32, 32)
        assert decoder(torch.empty(1, 16, 32, 32)).shape == (1, 3, 360, 640)
    widths = [tuple(r.proj.weight.shape[:2]) for r in decoder.residuals]
    assert widths == [(4096, 1024), (2048, 1024), (1024, 512), (512, 256)]
    assert decoder.blocks[0].up is None
    assert [b.blocks[0].conv1.weight.shape[1] for b in encoder.blocks] == [64, 128, 256, 256]


def test_keys_are_the_weight_norm_ones(autoencoder):
    keys = set(autoencoder.state_dict())
    assert "decoder.conv_in.proj.parametrizations.weight.original0" in keys
    assert "encoder.blocks.1.down.proj.parametrizations.weight.original1" in keys
    assert "decoder.blocks.1.blocks.0.conv2.bias" in keys
    assert "decoder.blocks.1.blocks.0.conv3.bias" not in keys
    assert "encoder.conv_out_logvar.bias" in keys
    assert not any("logvar" in k for k in Encoder(AutoencoderConfig(3, 4, 4, 8, (1,), (1,), True)).state_dict())


def test_baking_keeps_the_function_and_the_formula(autoencoder):
    baked = load_weights(Autoencoder(TINY, TINY), autoencoder.state_dict())
    conv = baked.decoder.conv_out.proj
    g, v = conv.parametrizations.weight.original0.detach().clone(), conv.parametrizations.weight.original1.detach()
    expected = g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    latent = torch.randn(1, 4, 3, 5)
    before = baked.decode_raw(latent)
    count = bake_weight_norm(baked)
    assert count == sum("original0" in k for k in autoencoder.state_dict())
    assert not any("parametrizations" in k for k in baked.state_dict())
    torch.testing.assert_close(conv.weight, expected)
    torch.testing.assert_close(baked.decode_raw(latent), before)


def test_shortcuts_group_channels_in_opposite_orders():
    wide, narrow = DecoderIn(2, 8), EncoderOut(8, 2)
    for module in (wide, narrow):
        torch.nn.init.zeros_(module.proj.bias)
        module.proj.parametrizations.weight.original0.data.zero_()
    z = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    assert (wide(z).flatten() * 2).tolist() == [1, 1, 1, 1, 2, 2, 2, 2]  # consecutive, times 4^-0.5
    x = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 9]).view(1, 8, 1, 1)
    assert narrow(x).flatten().tolist() == pytest.approx([8.0, 10.5])  # g-major means 4 and 5.25, times 2


@pytest.mark.parametrize(("ch", "groups"), [(4, 1), (8, 1), (16, 2), (64, 8)])
def test_the_middle_convolution_is_grouped(ch, groups):
    assert ResBlock(ch).conv2.groups == groups


def test_pixels_are_clamped_rounded_and_cut_to_three_channels():
    levels = torch.tensor([-2.0, -1.0, (2 * 99.4 / 255) - 1, (2 * 99.6 / 255) - 1, 1.0, 3.0])
    image = to_uint8(levels.view(1, 1, 1, 6).expand(1, 4, 1, 6))
    assert image.shape == (1, 6, 3)
    assert image[0, :, 0].tolist() == [0, 0, 99, 100, 255, 255]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_are_fitted_to_the_encoder(autoencoder, channels):
    image = torch.randint(0, 256, (20, 30, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    handle = autoencoder.encoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    latent = autoencoder.encode(image)
    handle.remove()
    assert latent.shape == (1, 4, 128, 128)
    torch.testing.assert_close(seen[0][0, 0], image[..., 0] / 127.5 - 1)
    if channels == 1:
        assert (seen[0][0, 1:] == 0).all()


def test_a_bad_config_is_refused():
    with pytest.raises(ValueError, match=r"unknown keys \['ch0'\]"):
        AutoencoderConfig.from_dict({"ch0": 3})
