"""The reference's plans, checks, commands and options against the values recorded from upstream (JSON goldens)."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from reference.multikeyframe import command, config, keyframes, options, plan
from reference.wan import conditioning

GOLDEN = Path(__file__).parents[2] / "fixtures/multikeyframe/golden"


def cases(name):
    """The cases of one JSON golden."""
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def named(name):
    return [pytest.param(case, id=case.get("name", str(i))) for i, case in enumerate(cases(name))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_pictures(fixtures):
    """The pictures of a plan: a size, None (no file) or "corrupt"."""
    for name, size in fixtures.items():
        if size == "corrupt":
            Path(name).write_text("no picture")
        elif size is not None:
            Image.new("RGB", tuple(size)).save(name)


def sets(message):
    """A message, with the set that it prints apart: its order is not specified."""
    found = re.search(r"\{.*\}", message)
    return message, None if found is None else ast.literal_eval(found[0])


@pytest.mark.parametrize("case", named("plans"))
def test_plan(case, here):
    make_pictures(case["fixtures"])
    frames = keyframes.make_keyframes(case["keyframes"], case["fps"])
    assert [k.frame_number for k in frames] == case["frame_numbers"]
    ok, message = keyframes.validate_keyframes(frames)
    expected, printed = sets(case["validate"][1])
    assert ok == case["validate"][0]
    assert sets(message)[1] == printed
    assert message == expected or printed is not None
    assert plan.suggest_frame_adjustments(frames, case["fps"], **case["suggest_args"]) == case["suggestions"]
    if isinstance(case["segments"], dict):
        with pytest.raises(ValueError, match=re.escape(case["segments"]["message"])):
            plan.make_segments(frames, case["global_prompt"], case["sub_prompts"])
        return
    segments = plan.make_segments(frames, case["global_prompt"], case["sub_prompts"])
    for made, recorded in zip(segments, case["segments"], strict=True):
        assert {name: getattr(made, name) for name in recorded} == recorded | {
            "first_frame": Path(recorded["first_frame"]),
            "last_frame": Path(recorded["last_frame"]),
        }
    lengths = [segment.num_frames for segment in segments]
    assert plan.upstream_junctions(lengths) == case["pipeline_junction_frames"]
    assert plan.junctions(lengths, drop_shared=False) == case["true_junction_frames_concat"]
    assert plan.total_frames(lengths, False) == case["total_frames_concat"]
    assert plan.total_frames(lengths, True) == case["total_frames_dedup"]


@pytest.mark.parametrize("case", named("config_validation"))
def test_configuration(case, here):
    if case["ckpt_exists"]:
        Path("ckpt").mkdir()
        for name in case["ckpt_files"]:
            Path("ckpt", name).touch()
    ok, message = config.GenerationConfig("ckpt", **case["kwargs"]).validate()
    assert [ok, message] == [case["validate"][0], case["validate"][1].replace("<ckpt>", "ckpt")]
    assert Path("outputs").is_dir(), "the output folder is made before anything is checked"


@pytest.mark.parametrize("case", named("commands"))
def test_command(case, here):
    made = config.GenerationConfig("ckpt", output_dir="o2", **case["config"])
    segment = plan.SegmentConfig(2, Path("a.png"), Path("b.png"), 33, "G", "S")
    output = made.output_dir / "segments" / "segment_002.mp4"
    if isinstance(case["command"], dict):
        with pytest.raises(IndexError, match=re.escape(case["command"]["message"])):
            command.build_command(made, segment, output, case["override"])
        return
    assert command.build_command(made, segment, output, case["override"]) == case["command"]


def plain(value):
    """JSON's view of a value: tuples are lists."""
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("case", named("cli_merge"))
def test_options(case, here):
    parsed = vars(options.make_parser().parse_args(case["argv"]))
    merged = options.merge(case["yaml"] or {}, parsed)
    if case.get("merged") is not None:
        assert plain(merged) == case["merged"]
    if case["exit"]:
        with pytest.raises(ValueError, match="Required field missing|Invalid keyframe format"):
            options.read_options(case["argv"], case["yaml"])
        return
    made, run = options.read_options(case["argv"], case["yaml"])
    captured = config.GenerationConfig(**made)
    fields = {name: getattr(captured, name) for name in case["captured"]["config"]}
    assert {k: str(v) if isinstance(v, os.PathLike) else v for k, v in fields.items()} == case["captured"]["config"]
    assert plain(run) == case["captured"]["run"]


@pytest.mark.parametrize("case", named("mask81"))
def test_literal_mask_fits_81_frames_only(case, here):
    frames = case["frame_num"]
    latents = conditioning.torch.zeros(16, conditioning.latent_frames(frames), 2, 2)
    mask = conditioning.flf2v_mask(frames, 2, 2)
    if "error" not in case:
        assert case["ok"][1] == frames
        assert conditioning.condition_tensor(mask, latents).shape[0] == 20
        return
    sizes = [int(size) for size in re.findall(r"size (\d+)", case["error"])]
    assert [mask.shape[1], latents.shape[1]] == sizes
    with pytest.raises(ValueError, match="do not fit together"):
        conditioning.condition_tensor(mask, latents)
