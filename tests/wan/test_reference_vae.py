"""The causal VAE: structure, chunks, cache rules (spec A10)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.wan import vae as vae_module
from reference.wan import vae_layers
from reference.wan.config import VAEConfig
from reference.wan.vae import WanVAE, causal_convs, chunk_bounds, slot_names
from reference.wan.vae_cache import REPEAT, FeatureCache, recent_frames


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(5)
    model = WanVAE(VAEConfig(dim=4)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.ndim > 1:
            parameter.normal_(std=1.2 / parameter[0].numel() ** 0.5)
        else:
            parameter.normal_(std=0.1)
    return model


def video(frames, seed=0, size=(16, 24)):
    return torch.rand(3, frames, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latents(frames, seed=0):
    return torch.randn(16, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def caches_after_each_chunk(monkeypatch, name):
    """Copies of the slots after every encode_chunk or decode_chunk."""
    seen, original = [], getattr(WanVAE, name)

    def observed(self, x, cache):
        out = original(self, x, cache)
        seen.append([slot.clone() if isinstance(slot, torch.Tensor) else slot for slot in cache.slots])
        return out

    monkeypatch.setattr(WanVAE, name, observed)
    return seen


def test_official_sizes():
    with torch.device("meta"):
        model = WanVAE(VAEConfig())
    assert len(model.state_dict()) == 194
    assert sum(p.numel() for p in model.parameters()) == 126_892_531


def test_slots_are_the_causal_convolutions_without_the_shortcuts(vae):
    assert (len(causal_convs(vae.encoder)), len(causal_convs(vae.decoder))) == (26, 33)
    encoder, decoder = slot_names(vae.encoder), slot_names(vae.decoder)
    assert (len(encoder), len(decoder)) == (24, 32)
    assert encoder[:2] == ["conv1", "downsamples.0.residual.2"]
    assert [encoder.index(f"downsamples.{j}.time_conv") for j in (5, 8)] == [9, 14]
    assert encoder[-5:] == [f"middle.{b}.residual.{r}" for b in (0, 2) for r in (2, 6)] + ["head.2"]
    assert [decoder.index(f"upsamples.{j}.time_conv") for j in (3, 7)] == [11, 18]
    assert decoder[1:5] == [f"middle.{b}.residual.{r}" for b in (0, 2) for r in (2, 6)]


@given(st.integers(1, 200))
def test_chunks_are_1_4_4_and_drop_the_rest(frames):
    bounds = chunk_bounds(frames)
    assert bounds[0] == (0, 1)
    assert all(b - a == 4 for a, b in bounds[1:])
    assert [b for _, b in bounds[:-1]] == [a for a, _ in bounds[1:]]
    assert frames - 4 < bounds[-1][1] <= frames


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (7, 2), (9, 3)])
def test_encode_and_decode_lengths(vae, frames, latent_frames):
    z = vae.encode(video(frames))
    assert z.shape == (16, latent_frames, 2, 3)
    assert vae.decode(z).shape == (3, 1 + 4 * (latent_frames - 1), 16, 24)


def test_trailing_frames_are_not_seen(vae):
    clip = video(7)
    assert torch.equal(vae.encode(clip), vae.encode(clip[:, :5]))


def test_encoder_and_decoder_are_causal_and_remember(vae):
    clip, other = video(13), video(13)
    other[:, 5:] = video(8, seed=9)
    a, b = vae.encode(clip), vae.encode(other)
    assert torch.equal(a[:, :2], b[:, :2])
    assert (a[:, 2:] - b[:, 2:]).abs().amax(dim=(0, 2, 3)).min() > 1e-3
    other = clip.clone()
    other[:, :1] = video(1, seed=9)
    assert (vae.encode(clip)[:, 1] - vae.encode(other)[:, 1]).abs().max() > 1e-3  # through the cache
    z, changed = latents(3), latents(3)
    changed[:, 2] += 1
    assert torch.equal(vae.decode(z)[:, :5], vae.decode(changed)[:, :5])


def test_no_state_survives_an_encode_or_decode(vae):
    first = vae.encode(video(5)), vae.decode(latents(2))
    vae.encode(video(9, seed=3))
    vae.decode(latents(3, seed=3))
    assert torch.equal(vae.encode(video(5)), first[0])
    assert torch.equal(vae.decode(latents(2)), first[1])


def test_encoder_cache_lengths(vae, monkeypatch):
    seen = caches_after_each_chunk(monkeypatch, "encode_chunk")
    vae.encode(video(9))
    names = slot_names(vae.encoder)
    assert [[s.shape[2] for s in slots[:24]] for slots in seen] == [
        [1] * 24,
        *[[1 if n.endswith("time_conv") else 2 for n in names]] * 2,
    ]
    assert all(slot is None for slots in seen for slot in slots[24:])


def test_decoder_cache_marker_then_zeros_then_frames(vae, monkeypatch):
    seen = caches_after_each_chunk(monkeypatch, "decode_chunk")
    vae.decode(latents(3))
    marked = [i for i, name in enumerate(slot_names(vae.decoder)) if name.endswith("time_conv")]
    assert [i for i, slot in enumerate(seen[0]) if isinstance(slot, str)] == marked
    assert all(seen[0][i] == REPEAT for i in marked)
    low = marked[0]  # one frame a chunk arrives here
    assert seen[1][low].shape[2] == seen[2][low].shape[2] == 2
    assert seen[1][low][:, :, 0].abs().max() == 0
    assert seen[1][low][:, :, 1].abs().max() > 0
    assert torch.equal(seen[2][low][:, :, 0], seen[1][low][:, :, 1])


def test_second_chunk_does_not_see_the_first_frame_in_time_upsampling(vae):
    layer = vae.decoder.upsamples[3]
    x = torch.randn(1, 16, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    cache = FeatureCache(1)
    first = layer.double_time(torch.randn(1, 16, 1, 2, 3), cache)
    assert first.shape[2] == 1
    cache.restart()
    second = layer.double_time(x, cache)
    alone = layer.time_conv(torch.cat([torch.zeros_like(x), torch.zeros_like(x), x], dim=2)[:, :, -1:])
    assert torch.equal(second, layer.interleave(alone))
    assert torch.equal(second[:, :, 0], alone[:, :16, 0])
    assert torch.equal(second[:, :, 1], alone[:, 16:, 0])


@pytest.mark.parametrize(("frames", "past", "kept"), [(1, None, 1), (2, None, 2), (4, None, 2), (1, 1, 2), (1, 2, 2)])
def test_what_a_slot_keeps(frames, past, kept):
    x = torch.arange(frames, dtype=torch.float32).view(1, 1, frames, 1, 1) + 10
    old = None if past is None else torch.arange(past, dtype=torch.float32).view(1, 1, past, 1, 1)
    new = recent_frames(x, old)
    assert new.shape[2] == kept
    assert new[0, 0, -1] == x[0, 0, -1]
    if frames == 1 and past:
        assert new[0, 0, 0] == old[0, 0, -1]


@pytest.mark.parametrize("past", [None, 1, 2])
def test_past_frames_replace_the_zero_padding(past):
    conv = vae_layers.CausalConv3d(2, 3, 3, padding=1)
    x = torch.randn(1, 2, 4, 5, 6)
    old = None if past is None else torch.randn(1, 2, past, 5, 6)
    frames = [x] if old is None else [old, x]
    front = torch.zeros(1, 2, 2 - (past or 0), 5, 6)
    whole = torch.nn.functional.pad(torch.cat([front, *frames], dim=2), (1, 1, 1, 1))
    want = torch.nn.functional.conv3d(whole, conv.weight, conv.bias)
    assert torch.allclose(conv(x, old), want, atol=1e-6)
    assert conv(x, old).shape == (1, 3, 4, 5, 6)


def test_downsampling_pads_right_and_bottom_only():
    layer = vae_layers.Resample(1, "downsample2d")
    layer.resample[1].weight.data.zero_()[0, 0, 0, 0] = 1  # takes the top left of every window
    layer.resample[1].bias.data.zero_()
    x = torch.arange(16.0).view(1, 1, 1, 4, 4)
    assert layer.resample_frames(x)[0, 0, 0].tolist() == [[0, 2], [8, 10]]


def test_channel_norm_and_its_smallest_norm():
    norm = vae_layers.RMSNorm(4)
    x = torch.tensor([3.0, 0.0, 4.0, 0.0]).view(1, 4, 1, 1, 1)
    assert norm(x).flatten().tolist() == pytest.approx([1.2, 0, 1.6, 0])
    assert norm(torch.zeros_like(x)).abs().max() == 0


def test_latents_are_normalised_without_sampling_and_video_is_clamped(vae):
    mean = vae.encode_moments(video(5)[None])[0, :16]
    config = VAEConfig()
    want = (mean - torch.tensor(config.latents_mean)[:, None, None, None]) / torch.tensor(config.latents_std).view(
        -1, 1, 1, 1
    )
    assert torch.allclose(vae.encode(video(5)), want, rtol=1e-6, atol=1e-6)
    assert torch.allclose(vae.denormalise(vae.normalise(mean)), mean, atol=1e-5)
    loud = latents(2) * 50
    raw = vae.decode_unclamped(loud)
    assert raw.abs().max() > 1
    assert torch.equal(vae.decode(loud), raw.clamp(-1, 1))


def test_attention_treats_frames_alone(vae):
    block = vae.encoder.middle[1]
    x = torch.randn(1, 16, 3, 2, 3, generator=torch.Generator().manual_seed(2))
    frames = torch.cat([block(x[:, :, i : i + 1]) for i in range(3)], dim=2)
    assert torch.allclose(block(x), frames, atol=1e-6)
    assert not any("attention" in name for name in vae_module.slot_names(vae.encoder))
