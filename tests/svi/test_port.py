"""The SVI port by its rules: anchors, overlap, motion, versions, tasks, presets; the faults that make a run raise."""

import importlib

import pytest
import torch

from fixtures.svi.models import VAE, make_weights
from ported.svi import build, conditioning, frames, presets, quirks, sampling, task, versions, windows
from ported.svi import vae as vae_calls
from ported.svi.faults import FAULTS, Port


@pytest.fixture(scope="module")
def vae():
    return build.build_vae(VAE, make_weights("vae", VAE, 0))


def request(**changes):
    """An SVI window of 9 frames from one grey frame."""
    given = {
        "model_type": "i2v_2_2",
        "definition": {"svi2pro": True},
        "frame_num": 9,
        "input_video": torch.zeros(3, 1, 16, 16),
    }
    return conditioning.Request(**{**given, **changes})


def picture(level):
    return torch.full((16, 16, 3), level, dtype=torch.uint8)


def rows(mask):
    return " ".join("".join(str(int(v)) for v in latent) for latent in mask[:, :, 0, 0].T)


def test_sixty_three_bytes_lose_a_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(1, 256, 3)
    back = frames.to_picture(frames.to_tensor(levels)[:, 0])
    lost = (levels[0, :, 0].int() - back[0, :, 0].int()).nonzero().flatten().tolist()
    assert lost == list(range(1, 64))


def test_a_picture_is_eight_bits():
    with pytest.raises(ValueError, match="expected an 8-bit picture"):
        frames.to_tensor(torch.zeros(16, 16, 3))


def test_anchor_of_each_window():
    refs = (picture(1), picture(2))
    chosen = [int(conditioning.anchor(request(input_ref_images=refs, window_no=n)).max()) for n in (1, 2, 3)]
    assert chosen == [1, 2, 2]
    assert int(conditioning.anchor(request(pre_video_frame=picture(9))).max()) == 9
    with pytest.raises(ValueError, match="Missing Reference Image"):
        conditioning.anchor(request())


@pytest.mark.parametrize(("prefix", "overlap", "latents"), [(8, 4, None), (9, 4, 1), (13, 8, 2), (9, 9, None)])
def test_overlap_needs_five_frames_before_it(vae, prefix, overlap, latents):
    found = conditioning.overlap_of_prefix(
        vae, request(prefix_video=torch.zeros(3, prefix, 16, 16), overlap_size=overlap)
    )
    assert (None if found is None else found.shape[2]) == latents


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "1111 0000 1111"),
        ({"model_type": "i2v"}, "1111 0000 0000 1111"),
        ({"definition": {}}, "1111 0000 0001"),
        ({"version": versions.SINGLE_END}, "1111 0000 0001"),
        ({"version": versions.UPSTREAM}, "1111 0000 0001"),
        ({"image_end": None}, "1111 0000 0000"),
        ({"input_video": torch.zeros(3, 4, 16, 16), "frame_num": 13}, "1111 1110 0000 1111"),
    ],
)
def test_masks(vae, changes, text):
    given = {"image_end": torch.zeros(3, 16, 16), "input_ref_images": (picture(3),)}
    found = conditioning.condition(vae, request(**{**given, **changes}))
    assert rows(found.mask) == text
    assert found.y.shape[0] == 20


def test_keyword_overrides_the_definition():
    assert request(svi2pro=False).svi is False
    assert request(definition={}, svi2pro=True).svi is True


@pytest.mark.parametrize(("kind", "low", "high"), [(None, -1, 1), ("normal", -1, 1)])
def test_noise_frames(kind, low, high):
    torch.manual_seed(0)
    definition = {"svi2pro": True, "svi_empty_frames_mode": "noise", "svi_empty_frames_noise_type": kind}
    empty = conditioning.empty_frames(request(definition=definition), 4)
    assert empty.shape == (3, 4, 16, 16)
    assert low <= empty.min() < empty.max() <= high


def test_unknown_mode_is_one_line():
    definition = {"svi2pro": True, "svi_empty_frames_mode": "grey"}
    with pytest.raises(ValueError, match="'grey' is not one of zeros, anchor, noise"):
        conditioning.empty_frames(request(definition=definition), 1)


def test_motion_counts_latents_and_keeps_the_end():
    lat_y = torch.arange(5.0).view(1, 5, 1, 1) * torch.ones(16, 5, 2, 2)
    lat_y[0] *= 2
    leading = torch.zeros(3, 4, 16, 16)
    right = request(motion_amplitude=1.5, input_video=leading, image_end=torch.zeros(3, 16, 16))
    moved = conditioning.move(right, lat_y)
    assert torch.equal(moved[:, 0], lat_y[:, 0])
    assert torch.equal(moved[:, -1], lat_y[:, -1])
    assert (moved[:, 1:-1] != lat_y[:, 1:-1]).any()
    latest = request(motion_amplitude=1.5, input_video=leading, version=versions.LATEST)
    assert torch.equal(conditioning.move(latest, lat_y)[:, :4], lat_y[:, :4])


def test_reimposed_start_is_clean_at_the_end():
    latent, clean = torch.ones(1, 16, 3, 2, 2), torch.full((16, 1, 2, 2), 5.0)
    done = sampling.reimposed(latent, clean, 0.0)
    assert (done[:, :, :1] == 5).all()
    assert (done[:, :, 1:] == 1).all()


def test_a_task_needs_something_to_start_from():
    wish = task.Task({"video_length": 9}, 0, (torch.zeros(1, 1), None))
    with pytest.raises(ValueError, match="a source video or a start picture"):
        task.leading_of(wish, windows.plan({}, 9, 4, 81, 0), task.prefix_of(wish))


def test_end_frames_of_windows():
    ends = tuple(torch.full((3, 1, 1), float(i)) for i in range(2))
    plan = windows.plan({"sliding_window": True}, 21, 5, 13, 0)
    one, two = (task.Task({}, 0, (torch.zeros(1), None), images_end=ends[:n]) for n in (1, 2))
    assert plan.windows == 2
    assert [task.end_of(one, plan, n) is not None for n in (1, 2)] == [False, True]
    assert [float(task.end_of(two, plan, n).max()) for n in (1, 2)] == [0.0, 1.0]


def test_single_frame_with_the_end_flag(vae):
    assert vae_calls.encode(vae, torch.zeros(3, 1, 16, 16), True).shape == (16, 1, 2, 2)


def test_wrong_keys_are_listed():
    state = make_weights("vae", VAE, 0)
    with pytest.raises(ValueError, match=r"no name for 1 keys \['extra'\]"):
        build.build_vae(VAE, {**state, "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="Missing 1: .*quant_conv.bias"):
        build.build_vae(VAE, {key: value for key, value in state.items() if key != "conv1.bias"})


@pytest.mark.parametrize(
    ("strengths", "expected"),
    [
        ({}, ("1;0", "0;1", "1.2;0", "0;1")),
        ({"strength": 0.5}, ("0.5;0", "0;0.5", "1.2;0", "0;1")),
        ({"strength": 2, "strength_2": 0.333}, ("2;0", "0;0.33", "1.2;0", "0;1")),
        ({"strength_1": 0.75}, ("0.75;0", "0;1", "1.2;0", "0;1")),
    ],
)
def test_multipliers_of_the_preset(strengths, expected):
    assert presets.multipliers(**strengths) == expected


# -- faults that no comparison can show -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "error"),
    [
        ("both_ends_expanded", {"definition": {}}, RuntimeError),
        ("encode_skipped", {}, UnboundLocalError),
        ("empty_statistics", {"frame_num": 5}, RuntimeError),
    ],
)
def test_faults_that_raise(vae, name, changes, error):
    port = Port()
    given = {"image_end": torch.zeros(3, 16, 16), **changes}
    with FAULTS[name].inject(port), pytest.raises(error):
        conditioning.condition(vae, request(version=port.version, **given))
    assert conditioning.condition(vae, request(version=port.version, **given)).y.shape[0] == 20


@pytest.mark.parametrize("quirk", quirks.ACCEPTED, ids=lambda q: q.id)
def test_quirks_say_where_they_are(quirk):
    module, attribute = quirk.where.split(":")
    assert hasattr(importlib.import_module(f"ported.svi.{module}"), attribute)
    assert quirk.reason.endswith(".")
