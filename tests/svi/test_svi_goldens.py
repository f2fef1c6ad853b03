"""Goldens of SVI: the recorded files, the relation of the two sides in a pair, and what a wrong file is told."""

import filecmp
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fixtures.svi.goldens import GOLDENS
from fixtures.svi.goldens_pair import compare, within
from parity.case import System
from parity.errors import TraceError
from parity.lab.golden import read_golden, verify_golden

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "fixtures/svi/golden"
SHARED = ROOT.parent / "shared/goldens/svi"
SYSTEMS = {"svi": System("svi", "", (), goldens=GOLDENS)}
OWN = sorted(GOLDEN.glob("*.safetensors"))
ALL = sorted(SHARED.glob("*.safetensors"))
OTHERS = [path for path in ALL if not (GOLDEN / path.name).exists()]
NO_SHARED = pytest.mark.skipif(not ALL, reason="NOT RUN: no folder shared/goldens/svi beside the checkout")
EQUAL = {"pair_inline", "pair_inline_start4", "pair_pro_cont", "pair_svi_anchorpad", "pair_svi_end4", "pair_u8_inputs"}


def check(path):
    """Verify one file; the report, after a failure message that names what failed."""
    report = verify_golden(path, SYSTEMS)
    failed = [f"{c.name} {c.relative:.1e} {c.detail}" for c in report.checks if not c.ok]
    failed += [f"{r.stage}: stated {r.stated}, found {r.found}" for r in report.relations if not r.ok]
    assert report.ok, f"{path.name}: failed {failed[:5]}, not produced {report.missing[:5]}"
    return report


def edit(source, target, change=lambda tensors: None, /, **metadata):
    """Write a changed copy: `change` edits the dict of tensors, `metadata` replaces header entries."""
    tensors = load_file(source)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, target, {**read_golden(source).metadata, **metadata})
    return target


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_file_of_the_repository(path):
    report = check(path)
    assert len(report.checks) == sum(key[:2] in ("ou", "ac") for key in load_file(path))
    assert bool(report.relations) == (report.side == "pair")


@NO_SHARED
def test_files_of_the_repository_are_the_shared_ones():
    kept = [path for path in GOLDEN.iterdir() if path.suffix != ".md"]
    assert all(filecmp.cmp(path, SHARED / path.name, shallow=False) for path in kept)
    assert sum(path.stat().st_size for path in kept) < 1_500_000


@NO_SHARED
@pytest.mark.parametrize("path", OTHERS or [SHARED / "none"], ids=lambda p: p.stem)
def test_shared_file(path):
    report = check(path)
    if path.stem in EQUAL:
        found = {r.stage: r.found for r in report.relations}
        assert {stage for stage, value in found.items() if value == "equal"} >= {"latents", "mask"}
        assert found["first_divergence"] == "None"


@pytest.mark.parametrize(
    ("stage", "stated"),
    [
        ("mask", "max_abs 1"),
        ("latents", "shape (16, 6, 4, 6) vs (16, 5, 4, 6)"),
        ("vae_end_flag", [1, [0]]),
        ("decoded_frames", [17, 17, 17]),
        ("first_divergence", "mask"),
    ],
)
def test_a_relation_that_does_not_hold_fails(tmp_path, stage, stated):
    source = GOLDEN / "pair_svi_end4.safetensors"
    relation = json.loads(read_golden(source).metadata["relation"])
    relation[stage] = stated
    report = verify_golden(edit(source, tmp_path / "p.safetensors", relation=json.dumps(relation)), SYSTEMS)
    assert [r.stage for r in report.relations if not r.ok] == [stage]
    assert all(c.ok for c in report.checks)
    assert not report.ok


def test_a_changed_side_of_a_pair_is_named(tmp_path):
    def change(tensors):
        tensors["outputs.port.mask"][2, 3] = 0.5

    report = verify_golden(edit(GOLDEN / "pair_svi_end4.safetensors", tmp_path / "p.safetensors", change), SYSTEMS)
    assert [c.name for c in report.checks if not c.ok] == ["outputs.port.mask"]


def test_unknown_snapshot_is_one_line(tmp_path):
    with pytest.raises(TraceError, match="snapshot 'port_1' of the port is not one of port_head"):
        verify_golden(edit(GOLDEN / "port_svi21_end.safetensors", tmp_path / "p.safetensors", source="port_1"), SYSTEMS)


def test_equal_means_equal_bits():
    a = torch.tensor([1.0, 2.0])
    assert compare(a, a.clone()) == "equal"
    assert compare(a, a + torch.tensor([0.0, 2.4e-7])) == "max_abs 2.38e-07"
    assert compare(a, a[:1]) == "shape (2,) vs (1,)"
    assert within("max_abs 2.38e-07", 1e-6)
    assert not within("max_abs 2.38e-07", 0.0)
    assert within("equal", 1e-6)
    assert not within("shape (2,) vs (1,)", 1.0)
