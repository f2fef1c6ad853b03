"""The reference's progress, joining and smoothing against what upstream's program did with a stub model (JSON goldens)."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from reference.multikeyframe import plan, smoothing, stitching, video
from reference.multikeyframe.config import GenerationConfig
from reference.multikeyframe.generator import Generator, ModelError
from reference.multikeyframe.pipeline import Request, run
from reference.multikeyframe.rules import REPAIRED, UPSTREAM

GOLDEN = Path(__file__).parents[2] / "fixtures/multikeyframe/golden"
LOSSY = 3  # levels that the codec and its colours cost


def cases(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())["cases"]


def named(name, **kept):
    found = [case for case in cases(name) if kept.get("only", lambda case: True)(case)]
    return [pytest.param(case, id=case["name"]) for case in found]


def clip(levels, size=(16, 16)):
    """Grey frames of the given levels, uint8 `(f, h, w, 3)`."""
    return torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, *size, 3).contiguous()


def levels(frames):
    return frames.double().mean(dim=(1, 2, 3))


def near(frames, recorded):
    assert len(frames) == len(recorded)
    assert (levels(frames) - torch.tensor(recorded, dtype=torch.float64)).abs().max() <= LOSSY


# -- joining and smoothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", named("stitching"))
def test_stitching(case):
    if case["result"] != "ok":
        assert case["result"]["message"] == "Unknown stitching method: fade", "fading is no method of the pipeline"
        return
    clips, rate, target = [clip(part) for part in case["input_levels"]], case["segment_fps"], case["target_fps"]
    if case["method"] == "blend" and len(clips) == 2:
        near(stitching.crossfade(*clips, rate), case["stitched"]["levels"])
        return
    raw = stitching.concat(clips, drop_shared=False)
    if case["raw"] is not None:
        near(raw, case["raw"]["levels"])
        raw = stitching.retime(raw, rate, target)
    near(raw, case["stitched"]["levels"])


@pytest.mark.parametrize("case", named("smoothing"))
def test_smoothing(case):
    made = smoothing.smooth(
        clip(case["input_levels"]),
        case["junction_frames"],
        case["method"],
        case["junction_window"],
        centred=False,
        merge=False,
        junctions_only=False,
    )
    near(made, case["output"]["levels"])


@pytest.mark.parametrize("case", json.loads((GOLDEN / "smoothing.json").read_text())["tmix"]["cases"])
def test_filter_to_the_bit(case):
    assert levels(smoothing.mix_late(clip(case["input"]))).tolist() == case["output"]


def test_index_map_names_every_frame_once():
    kept, dropped = (stitching.index_map([5, 9, 5], drop) for drop in (False, True))
    assert len(kept) == 19
    assert len(dropped) == plan.total_frames([5, 9, 5], True) == 17
    assert dropped[5].tolist() == [1, 1]
    assert plan.junctions([5, 9, 5], drop_shared=True) == [5, 13]


# -- the generator with a stub model ----------------------------------------------------------------------------------


def sequential(case):
    """Cases of one process. A relative folder needs two working directories (M25), which one process does not have."""
    return all("gpus" not in step["step"] and "output_dir" not in step["step"] for step in case["steps"])


class Stub:
    """Writes the frame count into the file, or fails, as told."""

    def __init__(self, generator_seed, env):
        self.seed, self.env, self.calls = generator_seed, env, []

    def __call__(self, segment, path):
        number = f"{segment.segment_id:03d}"
        if self.env.get("STUB_FAIL") == number:
            raise ModelError(self.env["STUB_ERR"])
        self.calls.append(
            {"segment": number, "gpu": None, "seed": str(plan.segment_seed(self.seed, segment.segment_id))}
        )
        if "STUB_NOFILE" not in self.env:
            path.write_text(f"{segment.num_frames} frames, seed {self.calls[-1]['seed']}")


@pytest.mark.parametrize("case", named("progress_runs", only=sequential))
def test_progress(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(f"run_{case['name']}")
    for step in case["steps"]:
        options, recorded = step["step"], step["result"]
        if "pre" in options:
            (folder / "segments" / options["pre"].removeprefix("delete:")).unlink()
        segments = [plan.SegmentConfig(i, Path("a"), Path("b"), options.get("frames", 5), "p") for i in range(4)]
        stub = Stub(options.get("seed", 5), options.get("env", {}))
        generator = Generator(folder, stub, rules=UPSTREAM)
        before = {path.name: path.read_text() for path in generator.folder.glob("*.mp4")}
        try:
            if "single" in options:
                paths = [generator.generate_segment(segments[options["single"]], options["force"])]
            else:
                paths = generator.generate_batch_sequential(segments, options.get("resume_from"))
            done, failed = ([int(k) for k in table] for table in (generator.completed, generator.failed))
            outcome = {"ok": {"returned": [p.name for p in paths], "completed": done, "failed": failed}}
        except RuntimeError as error:
            outcome = {"error": "RuntimeError", "message": str(error)}
        assert outcome == recorded
        stored = json.loads(generator.progress_file.read_text()) if generator.progress_file.exists() else None
        assert stored == step["progress_json"]
        assert stub.calls == step["model_calls"]
        after = {path.name: path.read_text() for path in generator.folder.glob("*.mp4")}
        written = {f"segment_{call['segment']}.mp4" for call in stub.calls} if after else set()
        assert sorted(written) == step["changed_files"]
        assert {name for name in after if after[name] != before.get(name)} <= written


def test_memory_errors_are_tried_three_times(tmp_path):
    waits, calls = [], []

    def broken(segment, path):
        calls.append(segment.segment_id)
        raise ModelError("CUDA error: uncorrectable ECC error")

    segment = plan.SegmentConfig(0, Path("a"), Path("b"), 5, "p")
    generator = Generator(tmp_path, broken, wait=waits.append)
    with pytest.raises(RuntimeError, match="Segment 0 generation failed"):
        generator.generate_segment(segment)
    assert (calls, waits) == ([0, 0, 0], [5.0, 5.0])
    assert generator.failed == {"0": str(generator.path(0))}


def test_repaired_rules_of_progress(tmp_path):
    """A changed request is made again, success clears a failure, a resumed run returns everything."""
    segments = [plan.SegmentConfig(i, Path("a"), Path("b"), 5, "p") for i in range(3)]
    stub = Stub(5, {"STUB_FAIL": "002", "STUB_ERR": "boom"})
    first = Generator(tmp_path, stub, rules=REPAIRED, fingerprint=lambda s: s.full_prompt)
    with pytest.raises(RuntimeError, match="boom"):
        first.generate_batch_sequential(segments)
    stub.env = {}
    again = Generator(tmp_path, stub, rules=REPAIRED, fingerprint=lambda s: s.full_prompt)
    paths = again.generate_batch_sequential(segments, resume_from=2)
    assert [p.name for p in paths] == ["segment_000.mp4", "segment_001.mp4", "segment_002.mp4"]
    assert (list(again.completed), again.failed, again.calls) == (["0", "1", "2"], {}, [2])
    other = Generator(tmp_path, stub, rules=REPAIRED, fingerprint=lambda s: s.full_prompt + "!")
    other.generate_batch_sequential(segments)
    assert other.calls == [0, 1, 2]
    other.generate_batch_sequential(segments, resume_from=1, force=True)
    assert other.calls == [0, 1, 2, 1, 2]


# -- the pipeline with a stub model -----------------------------------------------------------------------------------


class Films:
    """Writes grey clips at 16 fps; fails at one segment when told."""

    def __init__(self, fail=""):
        self.fail, self.calls = fail, []

    def __call__(self, segment, path):
        number = f"{segment.segment_id:03d}"
        if number == self.fail:
            raise ModelError("boom")
        self.calls.append(number)
        video.write_mp4(clip([20 + i for i in range(segment.num_frames)]), path, 16)


def info(path):
    frames, rate = video.read_video(path)
    return {"frames": len(frames), "fps": f"{rate:g}"}


@pytest.mark.parametrize("case", named("pipeline_runs", only=lambda case: case["name"] != "parallel"))
def test_pipeline(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ckpt").mkdir()
    for name in ("ckpt/config.json", "ckpt/Wan2.1_VAE.pth"):
        Path(name).touch()
    pairs = [(f"k{i}.png", t) for i, t in enumerate(case["timestamps"])]
    for name, _ in pairs:
        Image.new("RGB", (16, 16)).save(name)
    for recorded in case["runs"]:
        keywords = recorded["args"].get("kw", {})
        films = Films(recorded["args"].get("env", {}).get("STUB_FAIL", ""))
        config = GenerationConfig("ckpt", fps=case["fps"], output_dir="out", base_seed=recorded["args"].get("seed", 5))
        request = Request(
            pairs,
            "p",
            smoothing_method="temporal_filter" if keywords.get("enable_smoothing", True) else "none",
            force_regenerate=keywords.get("force_regenerate", False),
            resume_from=keywords.get("resume_from"),
        )
        made = []

        def generator_of(config, request, rules, films=films, made=made):
            made.append(Generator(Path(config.output_dir), films, rules=rules))
            return made[0]

        result = recorded["result"]
        if "error" in result:
            with pytest.raises(RuntimeError, match=re.escape(result["message"])):
                run(config, request, Path("final.mp4"), generator_of, UPSTREAM)
        else:
            film = run(config, request, Path("final.mp4"), generator_of, UPSTREAM)
            assert info("final.mp4") == result["final"]
            if recorded["smoothing"]:
                assert film.junctions == recorded["smoothing"]["junction_frames"]
                assert len(film.joined) == recorded["smoothing"]["before"]["frames"]
            assert [int(k) for k in made[0].completed] == result["status"]["completed_segments"]
            assert [int(k) for k in made[0].failed] == result["status"]["failed_segments"]
        assert films.calls == recorded["model_calls"]
        assert {p.name: info(p) for p in made[0].folder.glob("*.mp4")} == recorded["segment_frames"]
