"""The Wan cases: both sides match in float32 and bfloat16, faults show where they are, checkpoints are checked before they run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.wan import models_runs as runs
from fixtures.wan.case import SYSTEM
from fixtures.wan.case_weights import OFFICIAL, checkpoint_cases
from fixtures.wan.faults import FAULTS, NOT_BOUND
from fixtures.wan.models import CLIP, DITS, TEXT, VAE, make_weights, port_network
from parity.case import Setting
from parity.errors import CaseError
from parity.lab.gauntlet import Runner
from parity.pipeline import prepare, run_case
from ported.wan import keys
from ported.wan.faults import FAULTS as PORT_FAULTS

HALF = torch.bfloat16
PARTS = {"dit": DITS["t2v"], "vae": VAE, "text": TEXT, "image": CLIP}


# -- the cases --------------------------------------------------------------------------------------------------------


# The VAE is float32 in either deployment; of the three pipelines, which are run whole by `parity run wan`, each is run here in one dtype.
ONCE = {("vae", HALF), ("t2v", HALF), ("i2v", HALF), ("flf2v", torch.float32)}
MATCHED = [(case, dtype) for dtype in (torch.float32, HALF) for case in SYSTEM.cases if (case.name, dtype) not in ONCE]


@cache
def prepared_case(name):
    """The reference's runs of a case in float32, made once for all tests."""
    return prepare(SYSTEM.case(name), Setting())


@pytest.mark.parametrize(
    ("case", "dtype"), MATCHED, ids=[f"{case.name}-{str(dtype).removeprefix('torch.')}" for case, dtype in MATCHED]
)
def test_both_sides_match(case, dtype):
    shared = prepared_case(case.name) if dtype is torch.float32 and case.name in ("t2v", "dit_t2v") else None
    result, _ = run_case(case, Setting(dtype), free=False, prepared=shared)
    assert result.verdict == "match", (result.first, result.coverage)
    assert result.coverage.compared >= 0.95 * max(result.coverage.reference, 1)
    left_out = [note for note in result.notes if note.startswith("unaligned by design")]
    assert len(left_out) == 0 or case.name in ("clip", "i2v", "flf2v"), left_out
    assert result.coverage.compared + 30 >= result.coverage.port >= result.coverage.compared


def test_seventeen_frames():
    case = replace(SYSTEM.case("vae"), inputs=partial(runs.vae_inputs, frames=(17,), latents=(5,), size=(1, 2)))
    result, found = run_case(case, Setting(), isolate=False)
    assert result.verdict == "match"
    assert found.reference.at("latents", {"video": 0}).shape == (16, 5, 1, 2)
    assert found.reference.at("frame", {"video": 1}).shape == (3, 17, 8, 16)
    chunks = {row.coords["chunk"] for row in result.rows if row.site == "vae.decoder.conv1"}
    assert chunks == {0, 1, 2, 3, 4}


def test_pipelines_are_seen_by_step_and_branch():
    _, found = run_case(
        SYSTEM.case("t2v"), Setting(), isolate=False, free=False, diagnose=False, prepared=prepared_case("t2v")
    )
    seen = {tuple(r.coords.items()) for r in found.reference if r.site == "blocks.1"}
    assert seen == {(("step", i), ("branch", j)) for i in range(runs.STEPS) for j in (0, 1)}
    first = next(iter(found.reference))
    assert (first.site, first.kind) == ("noise", "latent")
    assert [r.site for r in found.reference if r.kind == "schedule"][:2] == ["sigmas", "timesteps"]
    assert [r.shape for r in found.port if r.kind == "frame"] == [(3, 9, 32, 48)]


@pytest.mark.parametrize("part", PARTS)
def test_both_sides_draw_the_same_weights(part):
    official = make_weights(part, PARTS[part], seed=3)
    port = keys.to_official(part, port_network(part, PARTS[part], 3, False).state_dict())
    assert port.keys() == official.keys() - set(keys.UNUSED.get(part, ()))
    assert all(torch.equal(port[key], official[key]) for key in port)
    assert all(value.float().std() > 0 for value in official.values() if value.numel() > 1)


# -- faults and variations --------------------------------------------------------------------------------------------


def test_every_fault_of_the_port_is_bound_or_says_why_not():
    bound = {fault.name: fault for fault in FAULTS}
    assert len(bound) == len(FAULTS) >= 40
    assert len(SYSTEM.variations) == len({v.name for v in SYSTEM.variations}) >= 25
    assert PORT_FAULTS.keys() == (bound.keys() - {"native_schedule"}) | NOT_BOUND.keys()
    for name, fault in bound.items():
        assert SYSTEM.case(fault.case)
        assert re.compile(fault.expect.site)
        assert all(re.compile(module) for module in fault.expect.modules)
        assert name == "native_schedule" or fault.expect.classes[0] == PORT_FAULTS[name].bug_class


@pytest.mark.parametrize(
    "name",
    [
        "rope_split_thirds",
        "rope_half_split",
        "qk_norm_per_head",
        "timestep_bf16",
        "layernorm_eps",
        "modulation_bf16",
        "text_padding_masked",
        "head_halves_swapped",
        "ffn_gelu_exact",
    ],
)
def test_faults_show_where_they_are(name):
    fault = next(f for f in FAULTS if f.name == name)
    shared = prepared_case("dit_t2v")
    result, _ = run_case(SYSTEM.case("dit_t2v"), Setting(), fault=fault, prepared=shared, diagnose=False)
    assert result.verdict == "diverged"
    assert re.fullmatch(fault.expect.site, result.first.site), result.first
    assert any(re.fullmatch(module, result.culprit.module) for module in fault.expect.modules), result.culprit


@pytest.mark.parametrize("name", ["mask_missing", "unipc_end_points", "history_survives"])
def test_faults_of_the_smaller_cases(name):
    fault = next(f for f in FAULTS if f.name == name)
    score = Runner(SYSTEM).score(fault)
    assert score.detected
    assert score.site, score.found


def test_the_library_schedule_is_a_schedule_difference():
    fault = next(f for f in FAULTS if f.name == "native_schedule")
    result, _ = run_case(SYSTEM.case("t2v"), Setting(), fault=fault, free=False, prepared=prepared_case("t2v"))
    first = result.first
    assert (first.site, first.kind) == ("sigmas", "schedule")
    assert first.index is not None
    assert list(dict.fromkeys(d.site for d in result.divergences))[:2] == ["sigmas", "timesteps"]
    assert result.causes[0].class_id == "T5"
    assert "end points" in result.causes[0].text


@pytest.mark.parametrize(
    "name", ["fused_projections_dit_i2v_bf16", "chunked_feed_forward_dit_t2v", "heads_in_two_dit_i2v"]
)
def test_what_a_right_port_may_change(name):
    variation = next(v for v in SYSTEM.variations if v.name == name)
    score = Runner(SYSTEM).score(variation)
    assert score.verdict == "match", score.found


# -- checkpoints ------------------------------------------------------------------------------------------------------


def write_official(folder, shards=2, parts=("dit",), kind="t2v"):
    """An official folder with the real names: an index over shards, its configuration, other networks in files of their own."""
    folder.mkdir(parents=True)
    state = make_weights("dit", DITS[kind], seed=5)
    provenance = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "patch_size": [1, 2, 2], "text_len": 512}
    (folder / "config.json").write_text(json.dumps(dict(DITS[kind]) | provenance))
    weight_map = {}
    for i in range(shards):
        name = f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: state[key] for key in sorted(state)[i::shards]}
        save_file(part, folder / (name if shards > 1 else "diffusion_pytorch_model.safetensors"))
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for part in parts:
        if part != "dit":
            prefix = "visual." if part == "image" else ""
            weights = {
                prefix + key: value.contiguous() for key, value in make_weights(part, PARTS[part], seed=5).items()
            }
            save_file(weights, folder / f"{OFFICIAL[part]}.safetensors")


def write_diffusers(folder, parts=("dit",), kind="t2v"):
    """The same model as the library saves it."""
    names = {"dit": "transformer", "vae": "vae", "text": "text_encoder", "image": "image_encoder"}
    for part in parts:
        config = DITS[kind] if part == "dit" else PARTS[part]
        size = {"max_shard_size": "300KB"} if part == "dit" else {}
        port_network(part, config, 5, False).save_pretrained(folder / names[part], **size)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """All four networks, the transformer in shards on both sides."""
    path = tmp_path_factory.mktemp("wan")
    write_official(path / "official", parts=tuple(PARTS))
    write_diffusers(path / "diffusers", parts=tuple(PARTS))
    return path


@pytest.fixture
def small(tmp_path):
    """The transformer alone, both layouts in one folder."""
    write_official(tmp_path / "all", shards=1)
    write_diffusers(tmp_path / "all")
    return tmp_path / "all"


def change(file, key, new):
    """Rewrite one tensor of a file; None removes it."""
    state = load_file(file)
    state[key] = new(state[key]) if key in state else new(None)
    save_file({k: v.contiguous() for k, v in state.items() if v is not None}, file, metadata={"format": "pt"})


def test_checkpoints_are_hashed_and_run(checkpoint):
    cases = SYSTEM.from_weights(checkpoint)
    assert [case.name for case in cases] == ["checkpoint-dit", "checkpoint-vae", "checkpoint-text", "checkpoint-image"]
    for case in cases:
        result, _ = run_case(case, Setting(), free=False)
        assert result.verdict == "match", (case.name, result.first, result.coverage)
        assert re.search(
            r"weights: \d+ official tensors, \d+ in the port, sha256 [0-9a-f]{16} on both sides", result.notes[0]
        )


def test_checkpoints_run_in_half_precision(checkpoint):
    case = next(case for case in SYSTEM.from_weights(checkpoint) if case.name == "checkpoint-dit")
    result, _ = run_case(case, Setting(HALF), free=False)
    assert result.verdict == "match", result.first


def test_one_folder_from_the_command_line(small, capsys):
    from parity.cli import app

    assert app(["run", "wan", "--weights", str(small)], standalone_mode=False) == 0
    printed = capsys.readouterr().out
    assert "checkpoint-dit" in printed


def test_an_image_model(tmp_path):
    write_official(tmp_path / "official", kind="flf2v")
    write_diffusers(tmp_path / "diffusers", kind="flf2v")
    (case,) = SYSTEM.from_weights(tmp_path)
    result, _ = run_case(case, Setting(), free=False)
    assert result.verdict == "match"
    assert "not run, for lack of safetensors on one side: vae, text, image" in result.notes


def stop(path, words):
    with pytest.raises(CaseError, match=words) as caught:
        checkpoint_cases(path, SYSTEM.case)
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there(tmp_path):
    stop(tmp_path / "no", "no such folder")
    stop(tmp_path, "official/config.json")
    write_official(tmp_path / "official")
    stop(tmp_path, "expected the diffusers folder")


def test_changed_weights_are_named(small):
    file = next((small / "transformer").glob("*00001-of*.safetensors"))
    key = next(k for k in load_file(file) if k.endswith("weight"))
    change(file, key, lambda value: value * 1.001)
    stop(small, r"1 of \d+ dit tensors differ from the official ones after mapping: \S+$")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config | {"num_layers": 1}, "leaves weights out: blocks.1.attn1.norm_k.weight"),
        (
            lambda config: config | {"num_layers": 3},
            "asks for weights that are not there: blocks.2.attn1.norm_k.weight",
        ),
        (lambda config: config | {"ffn_dim": 96}, r"other shapes than its weights: .*\[144\] for \[96\]"),
        (lambda config: config | {"patch_size": 2}, "the library builds no dit of this: "),
    ],
)
def test_the_port_configuration_must_fit_its_weights(small, change, words):
    """The library would load a part of them, or fail in the middle."""
    file = small / "transformer" / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    stop(small, words)


def test_shapes_missing_and_extra_keys_are_named(small):
    transformer = small / "transformer"
    port_network("dit", dict(DITS["t2v"]) | {"ffn_dim": 96}, 5, False).save_pretrained(transformer)
    for file in transformer.glob("*.safetensors*"):
        if "-of-" in file.name or file.name.endswith("index.json"):
            file.unlink()
    stop(
        small,
        r"the dit has other shapes: .*blocks\.0\.ffn\.net\.0\.proj\.weight \[96, 112\] for blocks\.0\.ffn\.0\.weight \[144, 112\]",
    )


def test_official_keys_must_fit_the_configuration(small):
    file = small / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file({k: v for k, v in state.items() if k != "head.modulation"} | {"vace.0": torch.ones(2)}, file)
    stop(small, r"missing: head\.modulation; unexpected: vace\.0")


def test_indices_and_shards_must_agree(tmp_path):
    write_official(tmp_path / "official")
    write_diffusers(tmp_path / "diffusers")
    index = tmp_path / "official" / "diffusion_pytorch_model.safetensors.index.json"
    good = json.loads(index.read_text())
    index.write_text(
        json.dumps(
            good | {"weight_map": good["weight_map"] | {"ghost": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
        )
    )
    stop(tmp_path, "does not hold what the index says: ghost")
    index.write_text(json.dumps(good | {"weight_map": good["weight_map"] | {"ghost": "../outside.safetensors"}}))
    stop(tmp_path, "not in this folder")
    index.write_text("{")
    stop(tmp_path, "no index of shards")
    index.write_text(json.dumps(good))
    (tmp_path / "official" / "diffusion_pytorch_model-00001-of-00002.safetensors").write_bytes(b"not tensors")
    stop(tmp_path, "not a readable safetensors file")
