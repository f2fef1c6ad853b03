"""A tiny checkpoint, four keyframes, and an uninterrupted run of the port, once for all tests of this folder."""

import pytest
from keyframe_files import digests, draw_keyframe

TIMES = (0.0, 0.5, 1.5, 2.0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A tiny FLF2V checkpoint folder."""
    from ported.multikeyframe.tiny import official_weights, write_checkpoint

    folder = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(folder, official_weights())
    return folder


@pytest.fixture(scope="session")
def keyframes(tmp_path_factory):
    """Four keyframe files with their times."""
    folder = tmp_path_factory.mktemp("keyframes")
    return [(draw_keyframe(folder / f"k{i}.png", i), time) for i, time in enumerate(TIMES)]


@pytest.fixture
def options(checkpoint, keyframes, tmp_path):
    """Options of a run of three tiny segments on two workers."""
    return {
        "keyframes": keyframes,
        "prompt": "a fox runs",
        "sub_prompts": ["through snow", "", "over ice"],
        "ckpt_dir": str(checkpoint),
        "size": "48*32",
        "fps": 8,
        "sample_steps": 2,
        "base_seed": 42,
        "num_gpus": 2,
        "dtype": "float32",
        "output": str(tmp_path / "out" / "film.mp4"),
        "output_dir": str(tmp_path / "out"),
    }


@pytest.fixture(scope="session")
def uninterrupted(checkpoint, keyframes, tmp_path_factory):
    """Digests of the segments, and the bytes of the video, of a run that nothing disturbed: one process, in order."""
    from ported.multikeyframe import pipeline
    from ported.multikeyframe.settings import make_settings

    folder = tmp_path_factory.mktemp("uninterrupted")
    settings = make_settings(
        {
            "keyframes": keyframes, "prompt": "a fox runs", "sub_prompts": ["through snow", "", "over ice"],
            "ckpt_dir": str(checkpoint), "size": "48*32", "fps": 8, "sample_steps": 2, "base_seed": 42,
            "dtype": "float32", "engine": "serial", "output": str(folder / "film.mp4"), "output_dir": str(folder),
        }
    )  # fmt: skip
    result = pipeline.run(settings)
    return digests(folder), result.output.read_bytes()
