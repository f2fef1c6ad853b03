"""The port's own rules: settings, poses, files, non-finite values, requests at the same time."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from ported.echomimic import files, pipeline, poses, settings, windows
from ported.echomimic.nonfinite import NonFiniteError
from ported.echomimic.tiny import tiny_networks

SMALL = settings.Settings(width=64, height=64, length=13, steps=2)


@pytest.fixture(scope="module")
def networks():
    return tiny_networks()


@pytest.fixture(scope="module")
def request_of():
    generator = torch.Generator().manual_seed(1)
    picture = torch.randint(0, 255, (40, 50, 3), generator=generator, dtype=torch.uint8)
    maps = torch.randint(0, 255, (17, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return picture, torch.randn(40, 5, 16, generator=generator), maps


def a_pose(**changes):
    generator = np.random.default_rng(0)
    values = {
        "hands": generator.uniform(0.1, 0.9, (2, 21, 2)),
        "scores": generator.uniform(0.5, 1, (2, 21)),
        "params": (48, 48, 0, 48, 0, 48),
    }
    return poses.Pose(**(values | changes))


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("width", 100, "width"),
        ("height", 8, "size 768x8"),
        ("width", 99968, "size"),
        ("length", 0, "length"),
        ("steps", 10**6, "steps"),
        ("cfg", float("nan"), "cfg"),
        ("fps", 0, "fps"),
        ("nonfinite", "hide", "nonfinite"),
    ],
)
def test_settings_name_the_field_that_is_wrong(field, value, named):
    with pytest.raises(ValueError, match=named):
        settings.Settings(**{field: value}).check()


def test_fields_of_a_request_are_read_and_never_ignored():
    assert settings.settings_from_fields({"width": "512", "cfg": "2.5"}).cfg == 2.5
    with pytest.raises(ValueError, match="widht"):
        settings.settings_from_fields({"widht": "512"})
    with pytest.raises(ValueError, match="steps"):
        settings.settings_from_fields({"steps": "many"})


@pytest.mark.parametrize(
    "changes",
    [
        {"hands": np.full((2, 21, 2), np.nan)},
        {"hands": np.zeros((2, 20, 2))},
        {"params": (48, 48, 10, 10, 0, 48)},
        {"scores": np.full((2, 21), -1.0)},
    ],
    ids=["nan", "shape", "empty box", "score"],
)
def test_poses_that_cannot_be_drawn_are_refused(changes):
    with pytest.raises(ValueError, match="pose 7"):
        poses.check_pose(a_pose(**changes), "7")


def test_a_drawing_is_cut_skipped_or_squeezed():
    pose = a_pose(params=(48, 48, 30, 78, -10, 38))
    cut = poses.pose_map(pose, 64, 56)
    whole = poses.draw_hands(pose, 800)
    assert (cut[30:, :38] == whole[:26, 10:]).all()
    assert not cut[:30].any()
    assert poses.pose_map(pose, 64, 56, poses.Policy("skip")) is None
    squeezed = poses.pose_map(pose, 64, 56, poses.Policy("clamp"))
    assert (squeezed != cut).any()
    with pytest.raises(ValueError, match="outside"):
        poses.pose_map(a_pose(params=(48, 48, 100, 148, 0, 48)), 64, 56)


def test_windows_cover_every_frame_at_every_step():
    for length in (5, 12, 13, 20, 31):
        found = windows.closed_windows(length, 12, 3)
        for step in range(4):
            assert {i for window in windows.windows_at(found, step, length) for i in window} == set(range(length))


def test_an_uncovered_frame_is_named(networks, request_of, monkeypatch):
    monkeypatch.setattr(pipeline, "closed_windows", lambda length, size, overlap: [list(range(size))])
    with pytest.raises(NonFiniteError, match=r"0/0: no window holds frames \[12\]") as e:
        pipeline.animate(networks, *request_of, SMALL)
    assert e.value.finding.stage == "noise_pred"


def test_progress_ends_at_the_total(networks, request_of):
    seen = []
    done = pipeline.animate(networks, *request_of, SMALL, progress=seen.append)
    assert done.frames.shape == (13, 64, 64, 3)
    passes = [p for p in seen if p.stage == "denoising"]
    assert [p.done for p in passes] == list(range(1, 5))
    assert passes[-1].done == passes[-1].total


def test_requests_at_the_same_time_do_not_mix(networks, request_of):
    picture, features, maps = request_of
    other = 255 - picture
    alone = [pipeline.animate(networks, p, features, maps, SMALL).frames for p in (picture, other)]
    with ThreadPoolExecutor(2) as pool:
        together = list(
            pool.map(lambda p: pipeline.animate(networks, p, features, maps, SMALL).frames, (picture, other))
        )
    assert (alone[0] == together[0]).all()
    assert (alone[1] == together[1]).all()
    assert (alone[0] != alone[1]).any()


def test_a_file_is_read_back(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3)).astype(np.uint8)
    path = tmp_path / "clip.mp4"
    files.write_mp4(frames, path, 24, torch.randn(16000) * 0.1)
    facts = files.check_file(path, frames, 24, sound=True)
    assert (facts.frames, facts.width, facts.height, facts.fps) == (12, 64, 48, 24)
    assert 0.4 < facts.audio_seconds < 0.7
    files.write_mp4(frames * 0, path, 8)
    with pytest.raises(ValueError, match=r"8 frames a second.*no audio.*black"):
        files.check_file(path, frames, 24, sound=True)
