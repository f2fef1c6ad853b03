"""Traces of sides that can run again: floors, limits, declared noise; in an old environment, and with three packages only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from two_scripts import SCRIPT

import parity
from parity.capture.command import capture_command, noise_of
from parity.errors import CaseError, TraceError

ROOT = Path(__file__).resolve().parents[2]
BARE = "import sys; sys.modules.update(dict.fromkeys('einops pydantic typer rich yaml regex scipy click'.split())); "


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def captured(script: Path, eps: str, out: Path, **options: object) -> parity.Trace:
    capture_command(str(script), [eps], out, **options)
    return parity.load_trace(out)


def test_a_script_that_runs_again_stores_floors_and_limits(script: Path, tmp_path: Path) -> None:
    """The eps is below the fixed tolerance; the side's own noise is far below the eps."""
    ours = captured(script, "1e-6", tmp_path / "r", full=True, floors=True)
    assert {"own", "levels", "isolation", "rounding"} == set(ours.manifest.floors)
    assert 0 < ours.manifest.floors["own"]["n"] < 1e-6
    assert set(ours.manifest.parameters) == {f"{m}.{n}" for m in "anb" for n in ("weight", "bias")}
    port = captured(script, "3e-6", tmp_path / "p", full=True)
    assert [r.key for r in ours] == [r.key for r in port]
    assert "model.in.gain" in ours  # of the first call, too
    assert parity.compare(captured(script, "1e-6", tmp_path / "q", full=True), port).verdict == "match"
    result = parity.compare(ours, port)
    assert (result.verdict, result.first.key) == ("diverged", "n")
    for right in (captured(script, "1e-6", tmp_path / "q", full=True), ours):
        assert parity.compare(ours, right).verdict == "match"


def test_declared_noise_is_carried_in_the_trace(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), torch.randn(3, 8)
    plain = parity.capture(model, (x,), path=tmp_path / "r", noise={"0|1.*|model|return": 0.05})
    with torch.no_grad():
        model[0].weight.mul_(1.01)
    port = parity.capture(model, (x,))
    assert parity.compare(plain.with_manifest(floors={}), port).verdict == "diverged"
    values = [d for d in parity.compare(plain, port).divergences if d.tier == "run"]
    assert values == []
    assert any("declared noise: 0|1" in note for note in parity.compare(plain, port).notes)
    assert noise_of(["unet.*=0.03"]) == {"unet.*": 0.03}
    for wrong in ("unet", "x=much", "x=-1", "x=nan", "(=1"):
        with pytest.raises(CaseError, match="--noise"):
            noise_of([wrong])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1", True, None])
def test_floors_that_are_no_errors_are_refused(tmp_path: Path, value: object) -> None:
    parity.capture(nn.Linear(2, 2), (torch.ones(1, 2),), path=tmp_path / "t", floors=True)
    file = tmp_path / "t" / "manifest.json"
    raw = json.loads(file.read_text())
    raw["floors"]["own"]["model"] = value
    file.write_text(json.dumps(raw))
    with pytest.raises(TraceError, match="floors"):
        parity.load_trace(tmp_path / "t")


def run(python: str, *words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_capture_needs_three_packages_only(script: Path, tmp_path: Path) -> None:
    code = BARE + "from parity.capture.__main__ import main; sys.exit(main())"
    done = run(sys.executable, "-c", code, "-o", "t", "--floors", script, "1e-6", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "records in t" in done.stdout
    assert parity.load_trace(tmp_path / "t").manifest.floors["own"]["n"] > 0
    done = run(sys.executable, "-m", "parity.capture", "absent.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (2, "parity: no script at absent.py\n")


def test_an_old_torch_records_what_this_one_reads(script: Path, tmp_path: Path) -> None:
    python = os.environ.get("PARITY_OLD_PYTHON", "")
    if not python:
        pytest.skip("NOT RUN: PARITY_OLD_PYTHON names no interpreter with an older torch (docs/two_environments.md)")
    done = run(python, "-m", "parity.capture", "-o", "old", "--floors", "--full", script, "1e-6", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    old = parity.load_trace(tmp_path / "old")
    assert old.manifest.environment["torch"] != torch.__version__
    for eps, verdict in (("1e-6", "match"), ("1e-4", "diverged")):
        result = parity.compare(old, captured(script, eps, tmp_path / eps, full=True))
        assert result.verdict == verdict
