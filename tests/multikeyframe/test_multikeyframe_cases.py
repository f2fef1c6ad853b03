"""The cases match; what they measure is exact; faults and variations leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from fixtures.multikeyframe import runs, video
from fixtures.multikeyframe.case import SYSTEM
from parity.case import Setting
from parity.lab.golden import verify_golden
from parity.pipeline import prepare, run_case
from ported.multikeyframe import engines, film, joints, pipeline, plan, store, worker
from ported.multikeyframe.faults import FAULTS
from ported.multikeyframe.variations import VARIATIONS
from ported.wan import image

ROOT = Path(__file__).parents[2]
MODULES = (engines, film, joints, pipeline, plan, store, worker)
CLASSES = (worker.Worker, pipeline.Run, store.Progress, image.OfficialVideoProcessor, AutoencoderKLWan)


def values(trace, site):
    """Values of a site, by the number of its outermost axis."""
    return [trace.tensor(record.key) for record in trace if record.site == site]


@pytest.fixture(scope="module")
def prepared():
    """The reference's runs of each case, made once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = prepare(SYSTEM.case(name), Setting())
        return made[name]

    return get


def outcome(name, prepared, fault=None):
    chosen = next(f for f in SYSTEM.faults if f.name == fault) if fault else None
    return run_case(SYSTEM.case(name), Setting(), free=False, prepared=prepared(name), fault=chosen)[0]


@pytest.mark.parametrize("name", ["joints", "runs", "parallel", "video"])
def test_case_matches(name, prepared):
    result = outcome(name, prepared)
    assert result.verdict == "match", result.first
    assert result.coverage.compared >= {"joints": 36, "runs": 128, "parallel": 2, "video": 90}[name]


def test_golden_of_the_repository():
    path = ROOT / "fixtures/multikeyframe/golden/flf_two_segments_dpm.safetensors"
    report = verify_golden(path, {"multikeyframe": SYSTEM})
    assert report.ok
    assert len(report.checks) == 40


def test_what_the_reference_leaves_keeps_the_invariants(prepared):
    trace = prepared("video").reference
    (lengths,) = values(trace, "plan.lengths")
    (sources,) = values(trace, "joined.sources")
    assert lengths.tolist() == [5, 9, 5]
    expected = [(0, f) for f in range(5)] + [(1, f) for f in range(1, 9)] + [(2, f) for f in range(1, 5)]
    assert [tuple(row) for row in sources.tolist()] == expected, "no frame twice, none lost"
    (changed,) = values(trace, "smoothed.changed")
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6, 7, 11, 12, 13, 14, 15], "seams only"
    assert values(trace, "mp4.frames")[0].tolist() == [17]
    assert values(trace, "mp4.rate")[0].tolist() == [12000]
    duration, timeline = values(trace, "mp4.milliseconds")[0].item() / 1000, video.TIMES[-1] - video.TIMES[0]
    assert abs(duration - timeline) <= 2 / video.RATE + 1 / video.RATE, (
        "frame rounding of one segment, and the last frame"
    )
    assert values(trace, "flicker.seam")[0].item() > 0
    assert values(trace, "boundary.error")[0].shape == (3, 2)


def test_neighbours_share_their_keyframe(prepared):
    """I2 and I3: the pixels are equal to the bit, and the first latent is that of the keyframe alone."""
    trace = prepared("video").reference
    pictures = values(trace, "picture")
    assert all(torch.equal(pictures[2 * i + 1], pictures[2 * i + 2]) for i in range(2))
    model = SYSTEM.case("video").reference.build(Setting())
    for video_in, condition in zip(values(trace, "vae.in.video"), values(trace, "condition"), strict=True):
        alone = model.models.networks.vae.encode(video_in[:, :1])
        assert torch.equal(alone[:, 0], condition[:, 0])


def test_reference_runs_make_what_they_must(prepared):
    calls = values(prepared("runs").reference, "run.calls")
    made = {step.name: row.nonzero().flatten().tolist() for step, row in zip(runs.STEPS, calls, strict=True)}
    assert made["again"] == made["parallel again"] == made["no seed again"] == []
    assert made["a file is gone"] == [1]
    assert made["another keyframe"] == [1, 2]
    assert made["forced from 2"] == [2, 3]
    assert made["fails at 2"] == [0, 1]
    assert made["resumed"] == [2, 3]


@pytest.mark.parametrize(
    ("case", "fault", "site"),
    [
        ("joints", "windows_repeat_frames", "smoothed"),
        ("joints", "whole_video_smoothed", "smoothed"),
        ("runs", "progress_overwritten", "run.completed"),
        ("runs", "slots_shared", "run.one_task_a_device"),
        ("video", "mask_of_81_frames", "mask"),
        ("video", "keyframe_twice", "joined"),
    ],
)
def test_fault_is_found_where_it_is(case, fault, site, prepared):
    tries = 3 if fault == "slots_shared" else 1  # two tasks at once on one device are a matter of time: once is enough
    result = next((r for r in (outcome(case, prepared, fault) for _ in range(tries)) if r.verdict == "diverged"), None)
    assert result is not None
    assert result.first.site == site


def surface():
    """What faults and variations may change, by identity."""
    found = {}
    for owner in (*MODULES, *CLASSES):
        found |= {(owner, name): value for name, value in vars(owner).items() if not name.startswith("__")}
    return found


@pytest.mark.parametrize("name", [*FAULTS, *VARIATIONS])
def test_switch_leaves_nothing_behind(name):
    port = SYSTEM.case("video").port.build(Setting()).port()
    before, own = surface(), {part: dict(vars(part)) for part in (port.pipe, port.scheduler)}
    with (FAULTS | VARIATIONS)[name].inject(port):
        inside = surface()
        changed = inside != before or any(dict(vars(part)) != was for part, was in own.items())
        assert changed or name in WAN_FAULTS, "the switch does something"
    assert surface() == before
    assert all(dict(vars(part)) == was for part, was in own.items())


WAN_FAULTS = {fault.name for fault in FAULTS.values() if "ported.wan" in fault.inject.__module__}


def test_tables_are_complete():
    assert len(SYSTEM.faults) >= 30
    assert {fault.name for fault in SYSTEM.faults} == set(FAULTS)
    assert len(SYSTEM.variations) >= 20
    ids = {fault.spec_id for fault in FAULTS.values()}
    assert {
        f"M{i}" for i in (1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 24, 27, 28, 31, 32, 33)
    } <= ids


def test_the_checks_need_no_model():
    """Options, plan and store import neither torch nor diffusers: bad input is refused at once."""
    code = (
        "import sys; import ported.multikeyframe.cli, ported.multikeyframe.pipeline; "
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
        == "[]\n"
    )
