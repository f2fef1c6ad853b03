"""Bad input of the generator: one clear line, status 2, nothing written and nothing lost. And what good input means."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from keyframe_files import draw_keyframe
from PIL import Image

from ported.multikeyframe import cli, pipeline, plan
from ported.multikeyframe.settings import make_settings


@pytest.fixture
def run(options, tmp_path, capsys):
    """Run the command line on a YAML file of the options, changed; the status and the lines of standard error."""

    def call(*argv, **changed):
        values = {**options, **changed}
        values["keyframes"] = [list(pair) for pair in values["keyframes"]]
        config = tmp_path / "video.yaml"
        config.write_text(yaml.safe_dump(values))
        status = cli.main(["--config", str(config), *argv])
        return status, [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning")]

    return call


def refused(outcome, *words):
    """Status 2 and one line with these words."""
    status, lines = outcome
    assert status == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def with_keyframe(options, index, path=None, time=None):
    """The keyframes with one changed."""
    pairs = [list(pair) for pair in options["keyframes"]]
    pairs[index] = [str(path or pairs[index][0]), pairs[index][1] if time is None else time]
    return pairs


def picture(folder, mode):
    """A keyframe file in another mode."""
    path = folder / f"{mode.replace(';', '_')}.png"
    if mode == "CMYK":
        path = path.with_suffix(".tif")
        Image.new("CMYK", (60, 40)).save(path)
    elif mode == "I;16":
        Image.fromarray(np.full((40, 60), 40000, np.uint16)).save(path)
    else:
        draw_keyframe(path, 1, mode=mode)
    return path


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("RGBA", "it has transparency"),
        ("LA", "it has transparency"),
        ("I;16", "it is not 8 bits a channel"),
        ("CMYK", "it is CMYK"),
        ("P", "it has a palette"),
    ],
)
def test_picture_modes(mode, words, run, options, tmp_path):
    outcome = run(keyframes=with_keyframe(options, 1, picture(tmp_path, mode)))
    refused(outcome, "Keyframe 1", words, "save it as a plain 8-bit RGB picture")
    assert not Path(options["output_dir"]).exists(), "nothing is written"


def test_missing_unreadable_and_other_pictures(run, options, tmp_path):
    refused(run(keyframes=with_keyframe(options, 2, tmp_path / "none.png")), "Keyframe 2 not found", "none.png")
    (tmp_path / "text.png").write_text("no picture")
    refused(
        run(keyframes=with_keyframe(options, 2, tmp_path / "text.png")), "Error reading keyframe images", "keyframe 2"
    )
    whole = Path(options["keyframes"][0][0]).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    refused(
        run(keyframes=with_keyframe(options, 3, tmp_path / "half.png")), "Error reading keyframe images", "keyframe 3"
    )
    draw_keyframe(tmp_path / "large.png", 1, size=(64, 40))
    refused(
        run(keyframes=with_keyframe(options, 1, tmp_path / "large.png")),
        "Inconsistent frame sizes: keyframe 0 is 60x40, keyframe 1", "is 64x40",
    )  # fmt: skip
    assert not Path(options["output_dir"]).exists()


@pytest.mark.parametrize(
    ("index", "time", "words"),
    [
        (2, 0.25, "Keyframes must be in chronological order: keyframe 2 is at 0.25 s"),
        (2, 0.5, "Duplicate timestamps found: keyframes 1 and 2"),
        (1, float("nan"), "must be a finite number of seconds >= 0, got nan"),
        (3, float("inf"), "must be a finite number"),
        (0, -1.0, "got -1.0"),
        (1, 0.01, "segment 0 is too short: keyframes 0 and 1 both fall on frame 0 at 8 fps"),
        (3, 700.0, "segment 2 is too long"),
        (1, "soon", "Invalid keyframe format"),
    ],
)
def test_times(index, time, words, run, options):
    refused(run(keyframes=with_keyframe(options, index, time=time)), words)
    assert not Path(options["output_dir"]).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"keyframes": [["a.png", 0.0]]}, "At least 2 keyframes are required"),
        ({"size": "48x32"}, "Invalid size format: 48x32. Expected format: 'width*height'"),
        ({"size": "1*2*3"}, "Invalid size format"),
        ({"size": "0*32"}, "Invalid size dimensions: 0*32"),
        ({"size": "50*32"}, "multiples of 16"),
        ({"fps": 0}, "FPS must be positive: 0"),
        ({"fps": float("nan")}, "FPS must be positive"),
        ({"fps": "fast"}, "fps: expected a number"),
        ({"ckpt_dir": "/nowhere"}, "Checkpoint directory not found: /nowhere"),
        ({"prompt": ""}, "Required field missing: prompt"),
        ({"sample_steps": 0}, "sample_steps: must be at least 1"),
        ({"num_gpus": 3, "gpu_ids": [0, 1]}, "gpu_ids names 2 devices, num_gpus is 3"),
        ({"gpu_ids": [1, 1]}, "names a device twice"),
        ({"smoothing_method": "blur"}, "smoothing_method: 'blur' is not one of"),
        ({"enable_smoothing": "no"}, "expected true or false"),
        ({"resume_from": 3}, "resume_from: 3 is no segment; there are 0 to 2"),
        ({"min_frames": 9}, "segment 0 is too short: 5 frames, min_frames is 9"),
        ({"frames": 9}, "unknown option frames"),
    ],
)
def test_options_that_cannot_be(change, words, run, options):
    refused(run(**change), words)
    assert not Path(options["output_dir"]).exists()


def test_incomplete_checkpoints(run, tmp_path):
    folder = tmp_path / "ck"
    folder.mkdir()
    refused(run(ckpt_dir=str(folder)), "Required file not found: config.json")
    (folder / "config.json").write_text("{}")
    refused(run(ckpt_dir=str(folder)), "Required file not found: Wan2.1_VAE.safetensors")


def test_yaml_that_is_none(tmp_path, capsys):
    for text, words in (("[1, 2]", "expected options"), ("a: [", "config"), (None, "No such file")):
        path = tmp_path / "c.yaml"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        assert cli.main(["--config", str(path)]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert words in line
    with pytest.raises(SystemExit) as stop:
        cli.main(["--engine", "magic"])
    assert stop.value.code == 2


def test_folders_that_cannot_be_written(run, options, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(run(output_dir=str(tmp_path / "file" / "out")), "output folder", "cannot be written")
    refused(run(output=str(tmp_path)), "is a folder; name a file")
    refused(run(output=str(tmp_path / "file" / "film.mp4")), "cannot be written")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ['{"completed_segments": {"0": "/x/segm', "[]", '{"completed_segments": []}', "\x00\xff"]
)
def test_a_half_written_progress_file_loses_nothing(text, run, options):
    folder = Path(options["output_dir"], "segments")
    folder.mkdir(parents=True)
    (folder / "segment_000.mp4").write_bytes(b"an hour of work")
    (folder / "progress.json").write_text(text, encoding="latin-1")
    refused(run(), "progress.json is damaged", "the segments are untouched")
    assert (folder / "segment_000.mp4").read_bytes() == b"an hour of work"
    assert (folder / "progress.json").read_text(encoding="latin-1") == text


def test_a_second_run_on_the_folder(run, options, monkeypatch):
    from ported.multikeyframe import store

    monkeypatch.setattr(store, "LOCK_SECONDS", 0.1)
    settings = make_settings(options)
    store.open_folder(settings.segments_folder)
    with store.locked(settings.segments_folder):
        refused(run(), "another run is working in", "choose another output_dir")
    assert not (settings.segments_folder / "progress.json").exists()


# -- options ----------------------------------------------------------------------------------------------------------


def test_command_line_stands_over_yaml_over_defaults(options, tmp_path):
    config = tmp_path / "c.yaml"
    stored = {
        "fps": 12,
        "num_gpus": 4,
        "base_seed": 42,
        "enable_smoothing": False,
        "force_regenerate": True,
        "offload_model": True,
    }
    required = {k: options[k] for k in ("ckpt_dir", "prompt")} | {"keyframes": [list(p) for p in options["keyframes"]]}
    config.write_text(yaml.safe_dump({**required, **stored}))
    made = cli.read_settings(["--config", str(config), "--fps", "24", "--num_gpus", "1"])
    assert (made.fps, made.num_gpus, made.base_seed) == (24, 1, 42), "an explicit default overrides the file (M18)"
    assert (made.enable_smoothing, made.force_regenerate, made.offload_model) == (False, True, True), (
        "switches of the file hold (M17)"
    )
    assert cli.read_settings(["--config", str(config), "--enable_smoothing"]).enable_smoothing
    assert not cli.read_settings(["--config", str(config), "--no-force_regenerate"]).force_regenerate


def test_keyframes_and_lists_as_text(options):
    pairs = ",".join(f"{path}:{time}" for path, time in options["keyframes"])
    made = cli.read_settings(
        ["--keyframes", pairs, "--prompt", "p", "--ckpt_dir", options["ckpt_dir"], "--sub_prompts", "one | two|",
         "--num_gpus", "2", "--gpu_ids", "3, 1"]
    )  # fmt: skip
    assert list(made.keyframes) == [tuple(pair) for pair in options["keyframes"]]
    assert (made.sub_prompts, made.slots) == (("one", "two", ""), (3, 1))
    assert [s.prompt for s in plan.make_plan(made)] == ["p. one", "p. two", "p"]
    windows = make_settings({**options, "keyframes": r"C:\a.png:0,C:\b.png:1.5"})
    assert windows.keyframes == ((r"C:\a.png", 0.0), (r"C:\b.png", 1.5))


def recorded(name):
    golden = Path(__file__).parents[2] / "fixtures/multikeyframe/golden"
    return json.loads((golden / f"{name}.json").read_text())["cases"]


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in recorded("plans")])
def test_plans_of_the_original_program(case, tmp_path, monkeypatch, checkpoint):
    """Frame numbers, lengths and prompts; what the original lets through and cannot make is refused here."""
    monkeypatch.chdir(tmp_path)
    for name, size in case["fixtures"].items():
        if size == "corrupt":
            Path(name).write_text("no picture")
        elif size is not None:
            Image.new("RGB", tuple(size)).save(name)
    assert [plan.frame_number(time, case["fps"]) for _, time in case["keyframes"]] == case["frame_numbers"]

    def make():
        options = {
            "keyframes": case["keyframes"], "prompt": case["global_prompt"], "fps": case["fps"],
            "sub_prompts": case["sub_prompts"], "ckpt_dir": str(checkpoint), "size": "64*32",
        }  # fmt: skip
        settings = make_settings(options)
        made = plan.make_plan(settings)
        pipeline.pictures.read_pictures([path for path, _ in settings.keyframes])
        return made

    ok, message = case["validate"]
    short = isinstance(case["segments"], list) and any(s["num_frames"] < 5 for s in case["segments"])
    if not ok or short or case["frame_numbers"][0] < 0:
        with pytest.raises(ValueError, match=r".") as caught:
            make()
        known = ("Required field missing: keyframes", "is too short", "must be a finite number")
        assert message.split(":")[0].split(".")[0] in str(caught.value) or any(k in str(caught.value) for k in known)
        return
    made = make()
    assert [(s.index, s.frames, s.prompt) for s in made] == [
        (s["segment_id"], s["num_frames"], s["full_prompt"]) for s in case["segments"]
    ]
    lengths = [s.frames for s in made]
    assert plan.joint_frames(lengths, "keep") == case["true_junction_frames_concat"]
    assert plan.total_frames(lengths, "keep") == case["total_frames_concat"]
    assert plan.total_frames(lengths, "drop") == case["total_frames_dedup"]


def test_python_api(options):
    from test_ported_resume import run_counting

    run_counting(options)
    made = pipeline.MultiKeyframePipeline(
        **{k: v for k, v in options.items() if k not in ("keyframes", "prompt", "output")}
    )
    path = made.run(options["keyframes"], options["prompt"], options["sub_prompts"], options["output"])
    assert path.is_file(), "every segment was there: no model was loaded"
    status = made.get_status()
    assert status["completed_segments"] == [0, 1, 2]
    assert [d["frames"] for d in status["segments"]["details"]] == [5, 9, 5]
    assert status["segments"]["details"][0]["first_frame"] == "k0.png"
