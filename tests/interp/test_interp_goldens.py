"""Goldens of interp: every recorded file by the reference, and the same files by the port."""

import os
from pathlib import Path

import pytest

from fixtures.interp.goldens import GOLDENS, RECIPES, entries
from fixtures.interp.sides import PORT
from parity.case import System
from parity.lab.golden import read_golden, verify_golden

ROOT = Path(__file__).parents[2]
OWN = sorted((ROOT / "fixtures/interp/golden").glob("*.safetensors"))
SHARED = sorted((ROOT.parent / "shared/goldens/interp").glob("*.safetensors"))
REFERENCE_SYSTEM = {"interp": System("interp", "", (), goldens=GOLDENS)}
PORT_SYSTEM = {"interp": System("interp", "", (), goldens=entries(PORT, ("reference",)))}


def check(path, systems):
    """Verify one file and name what failed."""
    report = verify_golden(path, systems)
    failed = [f"{c.name} {c.relative:.1e} {c.detail}" for c in report.checks if not c.ok]
    assert report.ok, f"{path.name}: failed {failed[:5]}, not produced {report.missing[:5]}"
    return report


@pytest.mark.parametrize("path", OWN, ids=lambda p: p.stem)
def test_reference_reproduces_the_golden(path):
    check(path, REFERENCE_SYSTEM)


@pytest.mark.parametrize("path", [p for p in OWN if not p.stem.startswith(("fault", "port_"))], ids=lambda p: p.stem)
def test_port_reproduces_the_golden(path):
    check(path, PORT_SYSTEM)


def test_every_shared_golden_is_reproduced():
    if not SHARED:
        if os.environ.get("CI"):
            pytest.fail("no folder shared/goldens/interp beside the checkout")
        pytest.skip("NOT RUN: no folder shared/goldens/interp beside the checkout")
    for path in SHARED:
        if path.name not in {own.name for own in OWN}:
            check(path, REFERENCE_SYSTEM)
            if not path.stem.startswith(("fault", "port_")):
                check(path, PORT_SYSTEM)


def test_every_entry_has_a_recipe_and_a_file():
    used = {read_golden(path).metadata["entry"] for path in OWN}
    assert used <= set(RECIPES) | {"fault", "loop_vs_vectorised"}
    assert len(used) >= 15, sorted(used)


@pytest.mark.parametrize("path", [p for p in OWN if p.stem.startswith("fault")][:3], ids=lambda p: p.stem)
def test_fault_goldens_tell_both_halves_apart(path):
    golden = read_golden(path)
    names = {name.partition(".")[2] for name in golden.outputs}
    assert any(not golden.outputs[f"healthy.{n}"].equal(golden.outputs[f"faulty.{n}"]) for n in names)
