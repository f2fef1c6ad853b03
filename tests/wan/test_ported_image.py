"""Picture preparation and conditioning of the Wan port (spec A12, A14)."""

import pytest
import torch
from PIL import Image

from ported.wan import image, pipeline, tiny


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def test_unit_image_ends():
    pixels = torch.zeros(2, 3, 3, dtype=torch.uint8)
    pixels[0, 0] = 255
    found = image.unit_image(pixels)
    assert found.shape == (3, 2, 3)
    assert (found[:, 0, 0] == 1).all()
    assert (found[:, 1, 2] == -1).all()
    with pytest.raises(ValueError, match=r"expected uint8 \(H, W, 3\), got torch.float32"):
        image.unit_image(torch.zeros(2, 3, 3))


@pytest.mark.parametrize(
    ("shape", "area", "expected"),
    [
        ((40, 56), 3072, (32, 64)),
        ((832, 480), 832 * 480, (832, 480)),
        # 480/832 rounds down in float64, so that the side is 479.99...: the official code loses a patch row
        ((480, 832), 480 * 832, (464, 832)),
    ],
)
def test_official_size(shape, area, expected):
    assert image.official_size(torch.zeros(3, *shape), area) == expected


def test_last_image_of_the_same_size_passes():
    last = torch.randn(3, 8, 12)
    assert image.match_last_image(torch.zeros(3, 8, 12), last) is last


def test_last_image_is_cropped_with_exchanged_axes():
    first, last = torch.zeros(3, 40, 56), torch.randn(3, 60, 70)
    # ratio = max(56/70, 40/60) = 0.8, target [56, 48]: read as height 56 and width 48
    found = image.match_last_image(first, last)
    assert found.shape == (3, 56, 48)
    assert torch.equal(found, last[:, 2:58, 11:59])


def test_crop_larger_than_the_image_is_padded_with_grey():
    found = image.centre_crop(torch.ones(3, 4, 4), 6, 2)
    assert found.shape == (3, 6, 2)
    assert found[0, :, 0].tolist() == [0, 1, 1, 1, 1, 0]


def test_squash_keeps_the_whole_picture():
    wide = torch.zeros(3, 56, 224)
    wide[:, :, :20] = 1  # a stripe at the left edge, which a centre crop would lose
    official = image.OfficialClipProcessor(56)(wide)["pixel_values"]
    picture = Image.fromarray((wide.permute(1, 2, 0) * 255).byte().numpy())
    native = torch.as_tensor(image.native_clip_processor(56)(images=picture, return_tensors="pt")["pixel_values"])
    assert official.shape == native.shape == (1, 3, 56, 56)
    assert official[0, 0, :, 0].mean() > official[0, 0, :, 30].mean() + 1
    assert native.flatten(2).std(-1).max() < 1e-6


def test_mask_of_i2v_and_flf2v():
    for kind, last in (("i2v", [0, 0, 0, 0]), ("flf2v", [0, 0, 0, 1])):
        condition = pipeline.condition_latents(tiny.pipe(kind), tiny.request(kind))[0]
        assert condition.shape == (20, *tiny.LATENT)
        mask = condition[:4]
        assert (mask == mask[:, :, :1, :1]).all()
        assert mask[:, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], last]


def test_image_features_are_the_penultimate_state():
    for kind, count in (("i2v", 1), ("flf2v", 2)):
        pipe, request = tiny.pipe(kind), tiny.request(kind)
        features = pipeline.image_features(pipe, request)
        assert features.shape == (count, tiny.CLIP_TOKENS, tiny.CLIP_DIM)
        pictures = list(pipeline.condition_images(pipe, request).values())
        states = pipe.image_encoder(**pipe.image_processor(pictures), output_hidden_states=True).hidden_states
        assert len(states) == 4
        assert torch.equal(features, states[2])


def test_native_preparation_is_the_librarys():
    official, request = tiny.pipe("flf2v"), tiny.request("flf2v")
    parts = (official.transformer, official.scheduler, official.vae, official.image_encoder)
    native = pipeline.build_pipeline(*parts, images="native")
    assert isinstance(pipeline.condition_images(native, request)["last_image"], Image.Image)
    ours, theirs = (pipeline.condition_latents(p, request)[0] for p in (official, native))
    assert torch.equal(ours[:4], theirs[:4])
    assert not torch.allclose(ours[4:], theirs[4:], atol=1e-2)
