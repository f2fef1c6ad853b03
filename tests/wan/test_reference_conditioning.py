"""Sizes, masks, condition videos and the three pipelines (spec A14)."""

import pytest
import torch

from reference.wan import conditioning, pipeline
from reference.wan.clip import CLIPVision
from reference.wan.config import CLIPConfig, DiTConfig, VAEConfig
from reference.wan.dit import WanDiT
from reference.wan.vae import WanVAE


def models(model_type):
    torch.manual_seed(11)
    image = {} if model_type == "t2v" else {"in_dim": 36, "clip_dim": 16, "clip_tokens": 5}
    dit = WanDiT(
        DiTConfig(
            model_type=model_type, dim=24, ffn_dim=32, num_heads=2, num_layers=1, freq_dim=16, text_dim=8, text_len=12,
            **image,
        )
    )  # fmt: skip
    for parameter in dit.parameters():
        parameter.data.normal_(std=0.2)
    clip = CLIPVision(CLIPConfig(image_size=28, dim=16, num_heads=2, num_layers=2, out_dim=4))
    return pipeline.Models(dit.eval(), WanVAE(VAEConfig(dim=4)).eval(), None if model_type == "t2v" else clip.eval())


def prompts():
    generator = torch.Generator().manual_seed(12)
    return pipeline.Prompts(torch.randn(7, 8, generator=generator), torch.randn(3, 8, generator=generator))


SAMPLING = pipeline.Sampling(steps=2, shift=3.0, guide_scale=4.0)


def image(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("frames", [1, 5, 9, 81])
def test_i2v_mask_knows_all_four_channels_of_latent_frame_zero(frames):
    mask = conditioning.i2v_mask(frames, 2, 3)
    assert mask.shape == (4, (frames - 1) // 4 + 1, 2, 3)
    assert mask.dtype == torch.float32
    assert mask[:, 0].min() == 1
    assert mask[:, 1:].sum() == 0


def test_flf2v_mask_adds_sub_channel_three_of_the_last_latent_frame_only():
    mask = conditioning.flf2v_mask(13, 2, 3, fixed_frames=True)
    assert mask.shape == (4, 4, 2, 3)
    assert mask[:, 0].min() == 1
    assert mask[:3, 1:].sum() == 0
    assert mask[3, 1:, 0, 0].tolist() == [0, 0, 1]


def test_flf2v_mask_is_81_frames_long_unless_fixed():
    assert conditioning.flf2v_mask(17, 1, 1).shape[1] == 21
    assert conditioning.flf2v_mask(17, 1, 1, fixed_frames=True).shape[1] == 5
    assert torch.equal(conditioning.flf2v_mask(81, 1, 1), conditioning.flf2v_mask(81, 1, 1, fixed_frames=True))


def test_sizes():
    assert conditioning.t2v_latent_shape((832, 480), 81) == (16, 21, 60, 104)
    assert conditioning.sequence_length((16, 21, 60, 104)) == 32760
    assert conditioning.sequence_length((16, 21, 60, 104), sp_size=7) == 32760
    assert conditioning.sequence_length((16, 21, 60, 104), sp_size=16) == 32768
    assert conditioning.image_latent_shape((1080, 1920), 720 * 1280, 81)[2:] == (90, 160)
    assert conditioning.image_latent_shape((1000, 700), 480 * 832, 5)[2:] == (94, 66)  # even, floored
    with pytest.raises(ValueError, match="4n"):
        conditioning.t2v_latent_shape((64, 64), 80)


def test_condition_video_is_mid_grey_between_the_images():
    first, last = image(10, 14), image(10, 14, seed=1)
    video = conditioning.condition_video(first, last, 9, 16, 24)
    assert video.shape == (3, 9, 16, 24)
    assert torch.equal(video[:, 0], conditioning.resize(first, 16, 24))
    assert torch.equal(video[:, 8], conditioning.resize(last, 16, 24))
    assert video[:, 1:8].abs().max() == 0
    assert conditioning.condition_video(first, None, 9, 16, 24)[:, 1:].abs().max() == 0


def test_y_is_mask_then_latents():
    mask, latents = conditioning.i2v_mask(5, 2, 3), torch.randn(16, 2, 2, 3)
    y = conditioning.condition_tensor(mask, latents)
    assert torch.equal(y[:4], mask)
    assert torch.equal(y[4:], latents)
    with pytest.raises(ValueError, match="flf2v masks 81 frames unless fixed_frames"):
        conditioning.condition_tensor(conditioning.flf2v_mask(5, 2, 3), latents)


def test_last_image_of_the_same_size_passes_untouched():
    first, last = image(40, 56), image(40, 56, seed=1)
    assert conditioning.match_last_image(first, last) is last


def test_last_image_of_another_size_is_cropped_with_exchanged_axes():
    last = image(60, 70, seed=1)
    got = conditioning.match_last_image(image(40, 56), last)
    # ratio max(56/70, 40/60) = 0.8; target [56, 48] is read as height 56, width 48; nothing is resized
    assert torch.equal(got, last[:, 2:58, 11:59])


def test_crop_larger_than_the_image_is_padded_with_grey():
    got = conditioning.match_last_image(image(20, 50), image(10, 20, seed=1) * 0 + 1)
    # ratio 2.5: target height 50, width 25
    assert got.shape == (3, 50, 25)
    assert got[:, 20:30, 2:22].min() == 1
    assert got.sum() == 3 * 10 * 20


def test_images_and_video_change_range_without_rounding_up():
    pixels = torch.tensor([[[0, 127, 255]]], dtype=torch.uint8)
    assert conditioning.image_to_tensor(pixels).flatten().tolist() == pytest.approx([-1, -1 / 255, 1])
    assert pipeline.to_uint8(torch.tensor([-1.0, 0.0, 0.9999, 1.0])).tolist() == [0, 127, 254, 255]


def test_guidance_formula_and_two_passes_conditional_first(monkeypatch):
    seen, original = [], pipeline.GuidedModel.predict

    def observed(self, latent, timestep, context):
        seen.append(context.shape[0])
        return original(self, latent, timestep, context)

    monkeypatch.setattr(pipeline.GuidedModel, "predict", observed)
    sampling = pipeline.Sampling(steps=2, shift=3.0, guide_scale=1.0)
    pipeline.t2v(models("t2v"), prompts(), (32, 16), 5, sampling, noise=3)
    assert seen == [7, 3, 7, 3]
    c, u = torch.tensor([3.0]), torch.tensor([1.0])
    assert pipeline.guide(c, u, 5.0).item() == 11.0


def test_t2v_shapes_seed_and_given_noise():
    m, p = models("t2v"), prompts()
    out = pipeline.t2v(m, p, (32, 16), 5, SAMPLING, noise=42)
    assert out.latent.shape == (16, 2, 2, 4)
    assert out.video.shape == (3, 5, 16, 32)
    assert out.video.abs().max() <= 1
    assert out.latent.dtype == torch.float32
    noise = pipeline.draw_noise((16, 2, 2, 4), 42, torch.device("cpu"))
    assert torch.equal(pipeline.t2v(m, p, (32, 16), 5, SAMPLING, noise).latent, out.latent)
    assert not torch.equal(pipeline.t2v(m, p, (32, 16), 5, SAMPLING, 43).latent, out.latent)
    with pytest.raises(ValueError, match="noise has shape"):
        pipeline.t2v(m, p, (32, 16), 9, SAMPLING, noise)


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_autocast_moves_latents_by_rounding_only(solver):
    m, p = models("t2v"), prompts()
    run = [
        pipeline.t2v(m, p, (32, 16), 5, pipeline.Sampling(3, 3.0, 4.0, solver, dtype), 1).latent
        for dtype in (None, torch.bfloat16)
    ]
    relative = ((run[0] - run[1]).norm() / run[0].norm()).item()
    assert 0 < relative < 0.05
    assert run[1].dtype == torch.float32


def test_i2v_condition_reaches_the_model():
    m, p = models("i2v"), prompts()
    a, b = (pipeline.i2v(m, p, image(20, 30, seed), 16 * 32, 5, SAMPLING, noise=1) for seed in (0, 1))
    assert a.video.shape == (3, 5, 16, 16)
    assert not torch.equal(a.latent, b.latent)
    with pytest.raises(ValueError, match="CLIP"):
        pipeline.i2v(pipeline.Models(m.dit, m.vae), p, image(20, 30), 512, 5, SAMPLING, noise=1)


def test_flf2v_needs_81_frames_or_the_fixed_form_and_feeds_the_cropped_image_to_clip(monkeypatch):
    m, p = models("flf2v"), prompts()
    first, last = image(20, 30), image(26, 30, seed=2)
    with pytest.raises(ValueError, match="flf2v masks 81 frames"):
        pipeline.flf2v(m, p, first, last, 512, 5, SAMPLING, noise=1)
    seen, original = [], CLIPVision.encode_images

    def observed(self, images):
        seen.extend(tuple(i.shape[1:]) for i in images)
        return original(self, images)

    monkeypatch.setattr(CLIPVision, "encode_images", observed)
    out = pipeline.flf2v(m, p, first, last, 512, 5, SAMPLING, noise=1, fixed_frames=True)
    assert out.latent.shape == (16, 2, 2, 2)
    assert seen == [(20, 30), (30, 26)]  # ratio 1: axes exchanged


def test_official_defaults():
    assert pipeline.default_sampling("t2v") == pipeline.Sampling(50, 5.0, 5.0)
    assert pipeline.default_sampling("i2v", (832, 480)).shift == 3.0
    assert pipeline.default_sampling("i2v", (1280, 720)) == pipeline.Sampling(40, 5.0, 5.0)
    assert pipeline.default_sampling("flf2v") == pipeline.Sampling(50, 16.0, 5.5)
