"""Parallel, resumed and forced runs of the port give the bytes of an uninterrupted one; kill -9 at any point loses nothing finished."""

import json
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from keyframe_files import digests, draw_keyframe

from ported.multikeyframe import engines, film, pipeline, plan, store
from ported.multikeyframe.errors import GenerationError, InputError
from ported.multikeyframe.settings import make_settings


def progress(options):
    return json.loads(Path(options["output_dir"], "segments", "progress.json").read_text())


def made(result):
    return sorted(done.index for done in result.made)


def test_parallel_is_sequential_to_the_bit(options, uninterrupted):
    result = pipeline.run(make_settings(options))
    assert digests(options["output_dir"]) == uninterrupted[0]
    assert result.output.read_bytes() == uninterrupted[1]
    assert len({done.process for done in result.made}) == 2, "two workers"
    assert os.getpid() not in {done.process for done in result.made}
    stored = progress(options)
    assert (sorted(stored["completed_segments"]), stored["failed_segments"]) == (["0", "1", "2"], {})
    for a in result.made:
        for b in result.made:
            assert a is b or a.device != b.device or a.ended <= b.started or b.ended <= a.started, "one task a device"
    again = pipeline.run(make_settings(options), make_worker=no_model)
    assert made(again) == []
    assert again.output.read_bytes() == uninterrupted[1]


def no_model():
    raise AssertionError("the model was loaded although every segment is finished")


# -- killed -----------------------------------------------------------------------------------------------------------


def kill_parent_in_worker(monkey):
    """The parent dies while a worker encodes its first segment."""
    write = film.write_segment

    def killing(frames, path, fps):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(2)  # the worker ends here: its parent is gone
        write(frames, path, fps)

    monkey.setattr(film, "write_segment", killing)


def kill_in_progress(monkey, call):
    """The parent dies in a write of the progress file, between the new text and its name."""
    replace_file, count = os.replace, [0]

    def killing(source, target):
        if str(target).endswith("progress.json"):
            count[0] += 1
            if count[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)
        replace_file(source, target)

    monkey.setattr(os, "replace", killing)


def kill_while_joining(monkey):
    """The parent dies while the video is written; workers store their segments by the same function."""
    parent, write = os.getpid(), film.write_video

    def killing(*args, **kwargs):
        if os.getppid() == parent:
            return write(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
        return None

    monkey.setattr(film, "write_video", killing)


POINTS = {
    "a worker encodes": kill_parent_in_worker,
    "before the first segment is noted": lambda monkey: kill_in_progress(monkey, 2),
    "before the second segment is noted": lambda monkey: kill_in_progress(monkey, 3),
    "the video is written": kill_while_joining,
}


@pytest.mark.parametrize("point", POINTS)
def test_killed_run_goes_on_where_it_was(point, options, uninterrupted, monkeypatch):
    settings = make_settings(options)

    def victim():
        with pytest.MonkeyPatch.context() as monkey:
            POINTS[point](monkey)
            pipeline.run(settings)

    import ported.multikeyframe.worker  # noqa: F401  as heavy as it is, it is imported before the fork

    process = multiprocessing.get_context("fork").Process(target=victim)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not Path(options["output"]).exists()
    finished = set(progress(options)["completed_segments"])
    result = pipeline.run(settings)
    assert {str(i) for i in made(result)} == {"0", "1", "2"} - finished, "what was noted is not made again"
    assert digests(options["output_dir"]) == uninterrupted[0]
    assert result.output.read_bytes() == uninterrupted[1]
    left = [p.name for p in Path(options["output_dir"]).rglob("*.part")]
    assert all(name.startswith(("segment", "progress")) for name in left)


def test_command_line_killed_and_resumed(options, uninterrupted, tmp_path):
    """The real thing: a process group of its own, killed when its first segment is there."""
    import yaml

    config = tmp_path / "video.yaml"
    config.write_text(yaml.safe_dump({**options, "keyframes": [list(pair) for pair in options["keyframes"]]}))
    command = [sys.executable, "-m", "ported.multikeyframe", "--config", str(config)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("segment "):
            process.kill()
            break
    assert process.wait(30) == -signal.SIGKILL
    process.stderr.close()
    finished = set(progress(options)["completed_segments"])
    assert finished
    result = pipeline.run(make_settings(options))
    assert {str(i) for i in made(result)} == {"0", "1", "2"} - finished
    assert digests(options["output_dir"]) == uninterrupted[0]
    assert result.output.read_bytes() == uninterrupted[1]


# -- what a request depends on ----------------------------------------------------------------------------------------


class Counting:
    """A model that writes a grey clip at once."""

    def __init__(self, fail=()):
        self.fail = fail

    def run(self, task):
        if task.segment.index in self.fail:
            raise RuntimeError("CUDA out of memory")
        import numpy as np

        frames = np.full((task.segment.frames, 16, 16, 3), 10 * task.segment.index, np.uint8)
        film.write_segment(frames, Path(task.path), task.fps)
        return engines.Done(task.segment.index, task.path, os.getpid(), task.device, time.monotonic(), time.monotonic())


def run_counting(options, fail=(), **changed):
    settings = make_settings({**options, **changed})
    return pipeline.run(settings, engine=engines.run_serial, make_worker=lambda: Counting(fail))


@pytest.mark.parametrize(
    ("change", "remade"),
    [
        ({}, []),
        ({"base_seed": 43}, [0, 1, 2]),
        ({"prompt": "a wolf runs"}, [0, 1, 2]),
        ({"sub_prompts": ["through snow", "", "over sand"]}, [2]),
        ({"sample_steps": 3}, [0, 1, 2]),
        ({"size": "64*32"}, [0, 1, 2]),
        ({"fps": 16}, [0, 1, 2]),
        ({"joint": "keep"}, []),
        ({"smoothing_method": "none"}, []),
        ({"force_regenerate": True}, [0, 1, 2]),
        ({"force_regenerate": True, "resume_from": 1}, [1, 2]),
        ({"resume_from": 2}, []),
    ],
)
def test_what_is_made_again(options, change, remade):
    assert made(run_counting(options)) == [0, 1, 2]
    result = run_counting(options, **change)
    assert made(result) == remade
    assert [path.name for path in result.segments] == [f"segment_00{i}.mp4" for i in range(3)]


def test_a_changed_keyframe_makes_its_two_segments_again(options, tmp_path):
    pairs = [(draw_keyframe(tmp_path / f"n{i}.png", i), time) for i, (_, time) in enumerate(options["keyframes"])]
    assert made(run_counting({**options, "keyframes": pairs})) == [0, 1, 2]
    draw_keyframe(tmp_path / "n1.png", 9)
    assert made(run_counting({**options, "keyframes": pairs})) == [0, 1]
    (tmp_path / "out" / "segments" / "segment_002.mp4").unlink()
    assert made(run_counting({**options, "keyframes": pairs})) == [2]


def test_a_failure_is_noted_and_forgotten_on_success(options):
    with pytest.raises(GenerationError, match=r"Segment 1 generation failed: RuntimeError: CUDA out of memory"):
        run_counting(options, fail=(1,))
    assert (list(progress(options)["completed_segments"]), list(progress(options)["failed_segments"])) == (["0"], ["1"])
    assert made(run_counting(options)) == [1, 2]
    assert progress(options)["failed_segments"] == {}


def test_a_worker_that_dies_is_named(options):
    class Dying(Counting):
        def run(self, task):
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(GenerationError, match="worker process died"):
        pipeline.run(make_settings(options), make_worker=Dying)
    assert sorted(progress(options)["failed_segments"]) == ["0", "1", "2"]


def test_a_seed_that_nobody_gave_is_kept(options):
    run_counting(options, base_seed=-1)
    seed = progress(options)["base_seed"]
    assert seed is not None
    assert made(run_counting(options, base_seed=-1)) == []
    assert progress(options)["base_seed"] == seed


def test_two_runs_on_one_folder(options, monkeypatch):
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.2)
    settings = make_settings(options)
    store.open_folder(settings.segments_folder)
    with store.locked(settings.segments_folder), pytest.raises(InputError, match="another run is working"):
        run_counting(options)
    assert made(run_counting(options)) == [0, 1, 2]


def test_ray_gives_the_same_bytes(options, uninterrupted):
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        assert not os.environ.get("CI"), "CI installs Ray: this test must run there"
        pytest.skip("NOT RUN: Ray is not installed (pip install 'parity[ray]')")
    result = pipeline.run(make_settings({**options, "engine": "ray"}))
    assert digests(options["output_dir"]) == uninterrupted[0]
    assert result.output.read_bytes() == uninterrupted[1]
    assert os.getpid() not in {done.process for done in result.made}


def recorded(name):
    golden = Path(__file__).parents[2] / "fixtures/multikeyframe/golden"
    return json.loads((golden / f"{name}.json").read_text())["cases"]


def tasks_of(options, count, devices, ids=None):
    """The tasks of a plan of `count` segments."""
    pairs = [(options["keyframes"][0][0], i / 2) for i in range(count + 1)]
    settings = make_settings({**options, "keyframes": pairs, "num_gpus": devices, "gpu_ids": ids or []})
    current = pipeline.begin(settings, plan.make_plan(settings), "x" * (count + 1))
    return current.tasks(current.plan)


@pytest.mark.parametrize("case", recorded("distribution"))
def test_devices_of_the_original_program(case, options):
    """The same device for every segment; a list of the wrong length is refused instead of cut (M9)."""
    ids, devices = case["gpu_ids"], case["num_gpus"]
    if ids and len(ids) != devices:
        with pytest.raises(InputError, match=f"gpu_ids names {len(ids)} devices, num_gpus is {devices}"):
            tasks_of(options, case["segments"], devices, ids)
        return
    tasks = tasks_of(options, case["segments"], devices, ids)
    assert {t.segment.index: t.device for t in tasks} == {s["segment"]: s["gpu"] for s in case["submission_order"]}


@pytest.mark.parametrize("case", [c for c in recorded("progress_runs") if c["name"].startswith("parallel")])
def test_parallel_runs_of_the_original_program(case, options):
    """The same segments, devices and seeds; progress lists every finished segment, not only the last one (M5)."""
    (step,) = case["steps"]
    fail = int(step["step"]["env"].get("STUB_FAIL", -1))
    pairs = [(options["keyframes"][0][0], i / 2) for i in range(5)]
    changed = {"keyframes": pairs, "base_seed": 5, "sub_prompts": []}
    settings = make_settings({**options, **changed})
    calls = []

    def engine(tasks, make_worker):
        calls.extend({"segment": f"{t.segment.index:03d}", "gpu": str(t.device), "seed": str(t.seed)} for t in tasks)
        return engines.run_pool(tasks, make_worker)

    if "ok" in step["result"]:
        pipeline.run(settings, engine=engine, make_worker=Counting)
    else:
        message = f"Segment {fail} generation failed"
        assert step["result"]["message"].startswith(message)
        with pytest.raises(GenerationError, match=message):
            pipeline.run(settings, engine=engine, make_worker=lambda: Counting((fail,)))
    key = operator.itemgetter("segment")
    recorded_calls = sorted(step["model_calls"], key=key)
    assert [call for call in sorted(calls, key=key) if int(call["segment"]) != fail] == recorded_calls
    done = {f"{i:03d}" for i in map(int, progress(options)["completed_segments"])}
    assert done == {call["segment"] for call in recorded_calls}
    assert set(step["progress_json"]["completed_segments"]) <= {str(int(i)) for i in done}
