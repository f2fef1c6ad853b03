"""The SVI reference by its rules: masks, chunks, pixels, tiles, the loop."""

import importlib

import pytest
import torch

from fixtures.svi.models import VAE, make_weights
from reference.svi import encode, images, masks, quirks, sampler, segment
from reference.svi import vae as vae_calls
from reference.wan.config import VAEConfig
from reference.wan.loading import load_strict
from reference.wan.vae import WanVAE


@pytest.fixture(scope="module")
def vae():
    return load_strict(WanVAE(VAEConfig.from_dict(dict(VAE))), make_weights("vae", VAE, 0)).requires_grad_(False)


def rows(mask):
    """Sub-frames of consecutive latents: "1111 0000 …"."""
    return " ".join("".join(str(int(v)) for v in latent) for latent in mask[:, :, 0, 0].T)


@pytest.mark.parametrize(
    ("frames", "start", "end", "split", "text"),
    [
        (9, 1, 1, False, "1111 0000 0001"),
        (10, 1, 1, True, "1111 0000 0000 1111"),
        (17, 4, 4, False, "1111 1110 0000 0000 1111"),
        (10, 1, 4, True, "1111 0000 0111 1111"),
        (13, 0, 0, False, "0000 0000 0000 0000"),
    ],
)
def test_masks_of_the_specification(frames, start, end, split, text):
    assert rows(masks.to_sub_frames(masks.pixel_mask(frames, start, end, 1, 1), split)) == text


def test_entries_that_fill_no_latent_are_an_error():
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        masks.to_sub_frames(masks.pixel_mask(9, 1, 1, 1, 1), isolated_end=True)


def test_temporal_mask_is_cut_or_filled():
    given = torch.ones(3, 4, 4)
    assert masks.fit_temporal_mask(given, 5, 2, 2)[0, :, 0, 0].tolist() == [1, 1, 1, 0, 0]
    assert masks.fit_temporal_mask(given, 2, 2, 2).shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("frames", "chunks"),
    [
        (2, [(0, 1), (1, 2)]),
        (6, [(0, 1), (1, 5), (5, 6)]),
        (9, [(0, 1), (1, 5), (8, 9)]),
        (10, [(0, 1), (1, 5), (5, 9), (9, 10)]),
    ],
)
def test_chunks_with_the_end_flag(frames, chunks):
    assert vae_calls.end_chunks(frames) == chunks


def test_end_flag_on_one_frame_is_an_error(vae):
    with pytest.raises(ValueError, match="two frames or more, got 1"):
        vae_calls.encode(vae, torch.zeros(3, 1, 16, 16), end=True)
    with pytest.raises(ValueError, match="two latent frames or more, got 1"):
        vae_calls.decode(vae, torch.zeros(16, 1, 2, 2), end=True)


def test_isolated_end_is_encoded_as_a_clip_of_its_own(vae):
    video = torch.linspace(-1, 1, 3 * 10 * 16 * 16).view(3, 10, 16, 16)
    both = vae_calls.encode(vae, video, end=True)
    assert torch.allclose(both[:, -1:], vae_calls.encode(vae, video[:, -1:]), atol=1e-6)
    assert torch.allclose(both[:, :-1], vae_calls.encode(vae, video[:, :9]), atol=1e-6)


@pytest.mark.parametrize("latents", [2, 3, 4])
def test_frames_of_a_decode(vae, latents):
    z = torch.ones(16, latents, 2, 2)
    assert vae_calls.decode(vae, z).shape[1] == 4 * latents - 3
    assert vae_calls.decode(vae, z, end=True).shape[1] == 4 * latents - 6


def test_tiles():
    assert vae_calls.tile_starts(64, 32, 16) == [0, 16, 32]
    assert vae_calls.tile_starts(40, 32, 16) == [0, 16]
    assert vae_calls.ramp(4, 2, first=True, last=False).tolist() == [1, 1, 1, 0.5]
    assert vae_calls.ramp(4, 2, first=False, last=True).tolist() == [0.5, 1, 1, 1]


def test_byte_values_have_one_float():
    values = torch.arange(256).float()
    ours = images.to_pixels((values / 255).view(1, 1, 256, 1).expand(1, 1, 256, 3), 1, 256)[0, 0, 0]
    assert torch.equal(ours, values / 127.5 - 1)
    assert torch.equal(ours, (values / 255 - 0.5) / 0.5)


def test_resize_truncates_to_bytes_and_drops_alpha():
    picture = torch.full((1, 4, 4, 4), 0.999)
    assert images.to_pixels(picture, 2, 2).shape == (3, 1, 2, 2)
    assert images.resize(picture[..., :3], 2, 2).unique().tolist() == [torch.tensor(254 / 255).item()]


def test_noise_spares_black():
    torch.manual_seed(0)
    noisy = images.add_noise(torch.tensor([-1.0, 0.0, 1.0]), 0.5)
    assert noisy[0] == -1
    assert (noisy[1:] != torch.tensor([0.0, 1.0])).all()


def test_pad_picture_goes_where_nothing_is_known(vae):
    request = encode.I2VRequest(
        16, 16, 9, torch.ones(2, 16, 16, 3), torch.ones(1, 16, 16, 3), fun_or_fl2v_model=True,
        empty_frame_pad_image=torch.full((1, 16, 16, 3), 0.75),
    )  # fmt: skip
    known = encode.frame_mask(request, 9, 2, 1)
    pixels = encode.pixel_concat(request, 9, torch.ones(3, 2, 16, 16), torch.ones(3, 1, 16, 16), split=False)
    padded = encode.pad_empty_frames(request, pixels, known, 2, 1)
    assert padded[0, :, 0, 0].tolist() == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1]


def test_condition_of_other_transformers():
    embeds = encode.svi_pro_embeds(torch.ones(1, 16, 1, 2, 2), 9)
    assert sampler.condition(embeds).shape == (20, 3, 2, 2)
    assert rows(embeds.mask) == "1111 0000 0000"
    unmasked = sampler.condition(embeds, 48)
    assert unmasked.shape == (16, 3, 2, 2)
    assert unmasked[:, 1:].abs().max() == 0
    with pytest.raises(ValueError, match="takes no image condition"):
        sampler.condition(embeds, 16)


def test_time_steps():
    assert sampler.timesteps(3, 5.0).tolist() == pytest.approx([1000.0, 833.6109, 4.98008], rel=1e-6)
    x = sampler.euler_step(torch.ones(2), torch.ones(2), torch.tensor(1000.0), torch.tensor(400.0))
    assert x.tolist() == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    ("wanted", "svi", "frames", "leading"), [(9, True, 17, 4), (9, False, 13, 1), (81, True, 89, 4)]
)
def test_segments_are_as_long_as_accounted(wanted, svi, frames, leading):
    clip = segment.segment_clip(torch.zeros(11, 2, 2, 3), wanted, svi)
    assert (clip.frames, clip.leading, clip.previous.shape[0]) == (frames, leading, 9)


def test_join_repeats_no_frame():
    before = torch.arange(9.0)[:, None, None, None].expand(9, 1, 1, 3)
    clip = segment.Clip(17, 4, True, before, before[-1:], before[-1:])
    joined = segment.join(clip, torch.arange(5.0, 22.0)[:, None, None, None].expand(17, 1, 1, 3))
    assert joined[:, 0, 0, 0].tolist() == list(range(22))


@pytest.mark.parametrize("quirk", quirks.KEPT, ids=lambda q: q.id)
def test_quirks_say_where_they_are(quirk):
    module, attribute = quirk.where.split(":")
    assert hasattr(importlib.import_module(f"reference.svi.{module}"), attribute)
    assert quirk.what.endswith(".")
    assert quirk.reason.endswith(".")
