"""JSON goldens: definitions around tasks, window accounting, shapes and errors."""

import json
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from fixtures.svi.models import VAE, make_weights
from ported.svi import build, conditioning, definition, versions, windows
from ported.svi.faults.tasks import patched_first, patched_latest
from reference.svi import encode
from reference.wan.config import VAEConfig
from reference.wan.loading import load_strict
from reference.wan.vae import WanVAE

GOLDEN = Path(__file__).parents[2] / "fixtures/svi/golden"
STATES = {
    name: json.loads((GOLDEN / f"patch_states_{name}.json").read_text())["scenarios"] for name in ("first", "latest")
}
SCENARIOS = sorted(STATES["latest"])
ROWS = json.loads((GOLDEN / "window_accounting.json").read_text())["rows"]
SHAPES = json.loads((GOLDEN / "shape_errors.json").read_text())


# -- definitions ------------------------------------------------------------------------------------------------------


def one_object(name):
    """Whether registry and pipeline shared one definition: what the first snapshot wrote into the one shows in the other."""
    asked = [s["during"] for s in STATES["first"][name][1:] if s["task"]["params"].get("svi2pro")]
    return any(during["instance"] is not None and during["instance"] == during["registry"] for during in asked)


def play(scenario, name, patch):
    """Run a scenario's tasks; yield (recorded step, definitions during and after)."""
    before = scenario[0]
    registry = deepcopy(before["registry"])
    loaded = registry if one_object(name) else deepcopy(before["instance"])
    for step in scenario[1:]:
        parameters = dict(step["task"]["params"])
        flag = definition.take_flag(parameters)
        during = None
        try:
            with patch(registry, loaded) if flag else nullcontext():
                during = deepcopy((registry, loaded))
                if step["task"].get("raise"):
                    raise RuntimeError("generation failed")
        except RuntimeError:
            assert step["error"] == "RuntimeError"
        yield step, during, (registry, loaded), parameters


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize(("snapshot", "patch"), [("first", patched_first), ("latest", patched_latest)])
def test_history_is_reproduced(snapshot, patch, name):
    for step, during, after, parameters in play(STATES[snapshot][name], name, patch):
        assert during == (step["during"]["registry"], step["during"]["instance"])
        assert after == (step["after"]["registry"], step["after"]["instance"])
        assert set(parameters) == set(step["generate_params"]) - {"svi2pro"}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_contract_restores_every_definition_to_its_own_state(name):
    scenario = STATES["latest"][name]
    before = (scenario[0]["registry"], scenario[0]["instance"])
    for step, during, after, _ in play(scenario, name, definition.svi_mode):
        assert after == before
        if step["task"]["params"].get("svi2pro"):
            assert all(d is None or definition.SETTINGS.items() <= d.items() for d in during)
        else:
            assert during == before


def test_nested_modes_unwind_in_order():
    outer = {"sliding_window": False, "sliding_window_defaults": {"overlap_default": 1}}
    kept = deepcopy(outer)
    with definition.svi_mode(outer, outer):
        outer["sliding_window_defaults"]["overlap_default"] = 7  # a task may write into what it finds
        with pytest.raises(ZeroDivisionError), definition.svi_mode(outer):
            assert outer["sliding_window_defaults"] == {"overlap_default": 4}
            _ = 1 / 0
        assert outer["sliding_window_defaults"] == {"overlap_default": 7}
    assert outer == kept
    assert definition.SETTINGS["sliding_window_defaults"] == {"overlap_default": 4}


def test_two_definitions_share_no_value():
    a, b = {}, {}
    with definition.svi_mode(a, b):
        a["sliding_window_defaults"]["overlap_default"] = 9
        assert b["sliding_window_defaults"] == {"overlap_default": 4}
    assert a == b == {}


def test_a_segment_has_the_last_word():
    assert definition.wanted({"use_svi": True}, {"use_svi": False}) is False
    assert definition.wanted({"use_svi": True}, {}) is True
    assert definition.wanted({"use_svi": False}, {"use_svi": True}) is True
    assert definition.wanted({}, {}) is None


# -- windows ----------------------------------------------------------------------------------------------------------

FIELDS = {
    "video_length": "aligned_video_length",
    "overlap": "aligned_overlap",
    "current": "current_video_length",
    "sliding": "sliding_window",
    "reuse": "reuse_frames",
    "windows": "total_windows",
    "first_window": "first_window_frames",
    "frame_num": "frame_num",
}


def test_window_accounting():
    assert len(ROWS) == 720
    for row in ROWS:
        settings = {"sliding_window": row["sliding_window_flag"]}
        if row["overlap_default"] is not None:
            settings["sliding_window_defaults"] = {"overlap_default": row["overlap_default"]}
        source = row["source_frames"]
        plan = windows.plan(
            settings, row["video_length"], row["sliding_window_overlap"], row["sliding_window_size"], source
        )
        assert {key: getattr(plan, key) for key in FIELDS} == {key: row[name] for key, name in FIELDS.items()}, row
        leading = windows.leading_frames(torch.zeros(3, source, 1, 1), plan.reuse).shape[1]
        assert leading == row["control_frames"], row


# -- shapes and errors ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference_vae():
    return load_strict(WanVAE(VAEConfig.from_dict(dict(VAE))), make_weights("vae", VAE, 0))


@pytest.fixture(scope="module")
def port_vae():
    return build.build_vae(VAE, make_weights("vae", VAE, 0))


def grey(frames):
    return torch.full((frames, 16, 16, 3), 0.25) if frames else None


@pytest.mark.parametrize("row", SHAPES["reference_i2v"], ids=lambda row: row["name"])
def test_shapes_of_the_reference(row, reference_vae):
    request = encode.I2VRequest(
        16, 16, row["num_frames"], grey(row["start"]), grey(row["end"]), row["fun_or_fl2v_model"],
        empty_frame_pad_image=grey(row["pad"]),
    )  # fmt: skip
    vae = reference_vae if row["vae"] else None
    with torch.no_grad():
        if "error" in row:
            with pytest.raises(
                {"IndexError": IndexError, "RuntimeError": RuntimeError, "ValueError": ValueError}[row["error"]]
            ):
                encode.i2v_encode(vae, request)
            return
        found = encode.i2v_encode(vae, request)
    expected = row["ok"]
    assert list(found.image_embeds.shape) == expected["image_embeds"]
    assert list(found.mask.shape) == expected["mask"]
    assert (found.num_frames, found.max_seq_len) == (expected["num_frames"], expected["max_seq_len"])
    assert (found.mask.shape[1:] == found.image_embeds.shape[1:]) == expected["concat_possible"]


@pytest.mark.parametrize("row", SHAPES["reference_pro"], ids=lambda row: row["name"])
def test_shapes_of_the_continuation(row):
    anchor, prev = (torch.zeros(1, 16, row[name], 2, 2) for name in ("anchor", "prev"))
    call = (anchor, row["num_frames"], prev if row["prev"] else None, row["count"])
    if "error" in row:
        with pytest.raises(RuntimeError):
            encode.svi_pro_embeds(*call)
        return
    found = encode.svi_pro_embeds(*call)
    assert [list(found.image_embeds.shape), list(found.mask.shape)] == row["ok"]


@pytest.mark.parametrize("row", SHAPES["port"], ids=lambda row: row["name"])
def test_shapes_of_the_port(row, port_vae):
    request = conditioning.Request(
        model_type=row["model_type"],
        definition={"svi2pro": row["svi2pro"]},
        frame_num=row["frame_num"],
        input_video=torch.zeros(3, row["control"], 16, 16),
        image_end=torch.zeros(3, 16, 16) if row["end"] else None,
        version=versions.LATEST,
    )
    if "error" in row:
        with pytest.raises(RuntimeError):
            conditioning.condition(port_vae, request)
        return
    found = conditioning.condition(port_vae, request)
    assert list(found.y.shape) == row["ok"]["y"]
    entries = found.mask[:, :, 0, 0].T.flatten().int().tolist()
    assert "".join(map(str, entries)) == row["ok"]["mask"]
