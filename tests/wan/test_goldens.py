"""Goldens of Wan: the recorded files, and what happens to wrong files and wrong implementations."""

import filecmp
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.wan.goldens import GOLDENS
from fixtures.wan.goldens_recording import record, rename
from parity.capture import Function, Modules
from parity.case import System
from parity.errors import TraceError
from parity.lab.golden import read_golden, verify_golden
from reference.wan import conditioning, embeddings, rope, solvers, t5, vae_layers

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "fixtures/wan/golden"
SHARED = ROOT.parent / "shared/goldens/wan"
SYSTEMS = {"wan": System("wan", "", (), goldens=GOLDENS)}
ENTRIES = {entry.name: entry for entry in GOLDENS}
OWN = sorted(GOLDEN.glob("*.safetensors"))
ALL = sorted(SHARED.glob("*.safetensors"))
OTHERS = [path for path in ALL if not (GOLDEN / path.name).exists()]
NO_SHARED = pytest.mark.skipif(not ALL, reason="NOT RUN: no folder shared/goldens/wan beside the checkout")


def check(path):
    """Verify one file; the report, after a failure message that names what failed."""
    report = verify_golden(path, SYSTEMS)
    failed = [f"{c.name} {c.relative:.1e} {c.detail}" for c in report.checks if not c.ok]
    assert report.ok, f"{path.name}: failed {failed[:5]}, not produced {report.missing[:5]}"
    return report


def failures(path):
    """Names of the values that disagree, in the order of the file."""
    return [c.name for c in verify_golden(path, SYSTEMS).checks if not c.ok]


def edit(source, target, change, **metadata):
    """Write a changed copy: `change` edits the dict of tensors, `metadata` replaces header entries."""
    tensors = load_file(source)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, target, {**read_golden(source).metadata, **metadata})
    return target


# -- recorded files ---------------------------------------------------------------------------------------------------


def test_every_entry_of_the_specification_is_there():
    assert set(ENTRIES) == {
        "dit", "vae", "text_encoder", "clip_vision", "rope", "schedule_tables", "solver", "conditioning", "pipeline",
    }  # fmt: skip
    assert all(entry.sides == ("reference",) for entry in GOLDENS)


def test_files_of_the_repository_are_few_and_varied():
    assert sum(path.stat().st_size for path in OWN) < 7_000_000
    entries = {read_golden(path).metadata["entry"] for path in OWN}
    assert entries == set(ENTRIES) - {"rope", "clip_vision"}, "these two are tested in test_goldens_written.py"


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_file_of_the_repository(path):
    report = check(path)
    given = r"acts.v." if report.entry == "solver" else "acts.rel_pos"
    assert all(name.startswith(given) for name in report.omitted), "only inputs are left out"
    assert len(report.checks) + len(report.omitted) == sum(k[:2] in ("ou", "ac") for k in load_file(path))


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_values_have_the_dtype_of_the_file(path):
    golden = read_golden(path)
    with torch.no_grad():
        run = ENTRIES[golden.metadata["entry"]].run(golden)
    for stored, made in ((golden.outputs, run.outputs), (golden.acts, run.acts)):
        assert [k for k in stored.keys() & made.keys() if made[k].dtype != stored[k].dtype] == []


@NO_SHARED
def test_files_of_the_repository_are_the_shared_ones():
    assert all(filecmp.cmp(path, SHARED / path.name, shallow=False) for path in OWN)


@NO_SHARED
@pytest.mark.parametrize("path", OTHERS or [SHARED / "none"], ids=lambda p: p.stem)
def test_shared_file(path):
    check(path)


def test_cache_slots_without_a_tensor_are_the_markers_of_the_file():
    golden = read_golden(GOLDEN / "vae_t07_trailing.safetensors")
    acts = ENTRIES["vae"].run(golden).acts
    for place, slots in json.loads(golden.metadata["cache_state"]).items():
        network, chunk = place.split(".")
        found = [acts.get(f"{network}.cache.{chunk}.{slot}") for slot in range(len(slots))]
        assert [slot if slot == "Rep" else tuple(slot) for slot in slots] == [
            "Rep" if value is None else tuple(value.shape) for value in found
        ]
        assert f"{network}.cache.{chunk}.{len(slots)}" not in acts


@pytest.mark.parametrize("name", ["unipc_2", "unipc_6", "unipc_20"])
def test_orders_are_those_of_the_file(name):
    golden = read_golden(GOLDEN / f"sched_traj_{name}.safetensors")
    acts = ENTRIES["solver"].run(golden).acts
    for which, first in (("order_p", 0), ("order_c", 1)):
        expected = json.loads(golden.metadata[which])
        assert [int(acts[f"{which}.{i + first}"]) for i in range(len(expected))] == expected


# -- wrong files and wrong implementations ----------------------------------------------------------------------------


def test_changed_value_is_found_alone(tmp_path):
    def change(tensors):
        tensors["acts.blocks.1.self_attn.q_rope"][1, 7, 2, 11] += 0.02

    path = edit(GOLDEN / "dit_t2v_varlen.safetensors", tmp_path / "x.safetensors", change)
    assert failures(path) == ["acts.blocks.1.self_attn.q_rope"]


def test_changed_weight_is_found_from_its_layer_on(tmp_path):
    def change(tensors):
        tensors["weights.blocks.1.ffn.0.bias"][3] += 0.5

    failed = failures(edit(GOLDEN / "dit_t2v_varlen.safetensors", tmp_path / "x.safetensors", change))
    assert set(failed) == {"acts.blocks.1.ffn", "acts.blocks.1", "acts.head", "outputs.v.0", "outputs.v.1"}


def test_changed_mask_is_found_exactly(tmp_path):
    def change(tensors):
        tensors["outputs.flf2v.F81"][3, 20, 1, 2] = 1 - 1e-6

    path = edit(GOLDEN / "cond_masks.safetensors", tmp_path / "x.safetensors", change)
    assert failures(path) == ["outputs.flf2v.F81"]


def test_value_that_nobody_makes_is_missing(tmp_path):
    def change(tensors):
        tensors["acts.blocks.2.ffn"] = tensors["acts.blocks.1.ffn"].clone()

    report = verify_golden(edit(GOLDEN / "dit_t2v_varlen.safetensors", tmp_path / "x.safetensors", change), SYSTEMS)
    assert not report.ok
    assert report.missing == ("acts.blocks.2.ffn",)


def drop(key):
    return lambda tensors: tensors.pop(key)


def rename_key(old, new):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dit_t2v_varlen", drop("weights.blocks.1.norm3.bias"), r"the state dict does not fit"),
        ("dit_t2v_varlen", rename_key("inputs.context.1", "inputs.context.2"), r"are there for i = \[0, 2\]"),
        ("dit_t2v_varlen", drop("inputs.context.1"), r"for i = \[0\], expected 2 of them"),
        ("vae_t07_trailing", rename_key("weights.conv1.bias", "weights.conv3.bias"), r"the state dict does not fit"),
        ("e2e_flf2v_81", rename_key("weights.clip.head", "weights.text.head"), r"no known network: text.head"),
        ("sched_traj_unipc_6", drop("acts.v.5"), r"v.<i> are there .* expected 6 of them"),
        ("traj_t2v_bf16_vs_fp32", rename_key("outputs.latent_fp32", "outputs.latent_fp8"), r"latent_fp8"),
    ],
)
def test_file_that_does_not_fit_is_refused(tmp_path, name, change, message):
    with pytest.raises(TraceError, match=message):
        verify_golden(edit(GOLDEN / f"{name}.safetensors", tmp_path / "x.safetensors", change), SYSTEMS)


@pytest.mark.parametrize(
    ("name", "entry", "message"),
    [
        ("dit_t2v_varlen", {"rope_base": 5000}, r"unknown keys \['rope_base'\]"),
        ("e2e_flf2v_81", {"kind": "vace"}, r"kind 'vace' is not one of"),
        ("sched_traj_dpmpp_6", {"kind": "heun"}, r"solver 'heun' is not one of"),
        ("sched_traj_dpmpp_6", {"solver_order": 4}, r"orders 1, 2 and 3, not 4"),
        ("sched_tables", {"combos": [["ddim", 6, 5.0]]}, r"schedule 'ddim' is not one of"),
    ],
)
def test_config_that_does_not_fit_is_refused(tmp_path, name, entry, message):
    source = GOLDEN / f"{name}.safetensors"
    config = json.dumps({**read_golden(source).config, **entry})
    with pytest.raises(TraceError, match=message):
        verify_golden(edit(source, tmp_path / "x.safetensors", lambda tensors: None, config=config), SYSTEMS)


def test_an_output_of_no_known_name_is_not_produced(tmp_path):
    change = rename_key("outputs.i2v.F9", "outputs.t2v.F9")
    report = verify_golden(edit(GOLDEN / "cond_masks.safetensors", tmp_path / "x.safetensors", change), SYSTEMS)
    assert not report.ok
    assert [name for name in report.missing if "t2v.F9" in name]


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((GOLDEN / "cond_masks.safetensors").read_bytes()[:-100])
    with pytest.raises(TraceError, match="no whole safetensors file"):
        verify_golden(path, SYSTEMS)


def sine_first(width, t, original=embeddings.sinusoid):
    return original(width, t).roll(width // 2, dims=1)


def unshifted(steps, shift, original=solvers.unipc_schedule):
    return original(steps, 1.0)


def whole_grid(freqs, grid, original=rope.grid_frequencies):
    f, h, w = grid
    return original(freqs, (f, w, h))


def last_four(known, frames, height, width, original=conditioning.frame_mask):
    return original(known + [frames - 4] * (len(known) > 1), frames, height, width)


def forget(x, old):
    return x[:, :, -2:].clone()


@pytest.mark.parametrize(
    ("owner", "function", "wrong", "name", "first"),
    [
        (embeddings, "sinusoid", sine_first, "dit_t2v_varlen", "acts.time_sinusoid"),
        (rope, "grid_frequencies", whole_grid, "dit_t2v_varlen", "acts.rope.grid.0.im"),
        (vae_layers, "recent_frames", forget, "vae_t07_trailing", "acts.dec.cache.1.0"),
        (conditioning, "frame_mask", last_four, "e2e_flf2v_81", "acts.mask"),
        (conditioning, "frame_mask", last_four, "cond_masks", "outputs.flf2v.F13"),
        (t5, "limit_half", lambda x: x * 1.05, "t5_enc_bf16", "acts.blocks.0"),
    ],
)
def test_wrong_implementation_fails(monkeypatch, owner, function, wrong, name, first):
    monkeypatch.setattr(owner, function, wrong)
    assert first in failures(GOLDEN / f"{name}.safetensors")


def test_wrong_schedule_fails(monkeypatch):
    monkeypatch.setattr(solvers, "unipc_schedule", unshifted)
    failed = failures(GOLDEN / "sched_traj_unipc_2.safetensors")
    assert {"acts.sigmas", "acts.timesteps", "acts.x.1", "outputs.x_0"} <= set(failed)


# -- names ------------------------------------------------------------------------------------------------------------


def test_renaming_uses_groups_and_coordinates():
    rules = ((r"(enc)\.cache\.(\d+)", r"\1.cache.{chunk}.\2"), (r"patch", "patch.{call}"))
    assert rename("enc.cache.7", {"chunk": 2}, rules) == "enc.cache.2.7"
    assert rename("patch", {}, rules) == "patch.0"
    assert rename("patches", {}, rules) is None


def test_two_records_of_one_name_are_refused():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="two records of this run are called layer"):
        record((Modules(layer, name="layer"),), ((r"layer", "layer"),), lambda: [layer(torch.ones(1, 2)) for _ in "ab"])


def test_complex_records_come_in_parts():
    probes = (Function(rope, "axis_table", site="table"),)
    table, found = record(probes, ((r"table", "table.{call}"),), lambda: rope.axis_table(6, 4))
    assert torch.equal(found["table.0.re"], table.real)
    assert torch.equal(found["table.0.im"], table.imag)
