"""Waypoint through the harness: every case matches, every fault is found where the specification says, every harmless change is silent."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from fixtures.waypoint.case import SYSTEM
from fixtures.waypoint.faults import NOT_RUN
from fixtures.waypoint.models import TINY, make_inputs
from parity.case import Fault, Setting, Variation
from parity.case.jobs import Job
from parity.pipeline import Prepared, prepare, run_case
from parity.result import Result
from parity.session import Options, run_jobs
from ported.waypoint.faults import FAULTS as PORT_FAULTS

DTYPES = (torch.float32, torch.bfloat16)
KINDS = {"input", "activation", "rope", "mask", "latent", "schedule", "kv"}


@pytest.fixture(scope="module")
def prepared() -> dict[tuple[str, torch.dtype], Prepared]:
    """The reference's runs, made once a case, length and dtype."""
    return {}


def _run(
    item: Fault | Variation, prepared: dict[tuple[str, torch.dtype], Prepared], isolate: bool, frames: int | None = None
) -> Result:
    """frames: run that many frames of the case only (what shows in the first frame needs no six of them; `parity gauntlet` runs them all)."""
    case = SYSTEM.case(item.case)
    if frames is not None and case.name == "frames":
        case = replace(case, name=f"{frames} frames", inputs=partial(make_inputs, TINY, frames=frames))
    setting = Setting(item.dtype or case.dtypes[0])
    key = (case.name, setting.dtype)
    if key not in prepared:
        prepared[key] = prepare(case, setting)
    kind = {"fault": item} if isinstance(item, Fault) else {"variation": item}
    result, _ = run_case(case, setting, prepared=prepared[key], isolate=isolate, diagnose=False, free=False, **kind)
    return result


def _chosen(variation: Variation) -> bool:
    """One dtype of each rewrite a case: float32 of the long one, bfloat16 of the small ones and of what exists only there. The gauntlet runs all."""
    name = variation.name
    only_half = name.startswith(("rope_rounded", "schedule_documented"))
    return not name.startswith("plain_") and (only_half or not name.endswith(("frames_bfloat16", "variant_float32")))


def _needs_history(variation: Variation) -> bool:
    return (
        variation.name.startswith(("cache", "attention_visible", "attention_flex")) and variation.dtype == torch.float32
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SYSTEM.cases, ids=lambda c: c.name)
def test_the_port_without_faults_matches(case, dtype) -> None:
    result, runs = run_case(case, Setting(dtype), diagnose=False, free=dtype == torch.float32)
    assert result.verdict == "match", [d.key for d in result.divergences[:5]]
    assert set(result.coverage.kinds) >= KINDS - ({"schedule"} if case.name == "none" else set())
    assert result.coverage.compared > 0.75 * result.coverage.reference
    assert not result.coverage.unaligned_reference
    assert not result.coverage.unaligned_port
    assert (runs.free is not None) == (dtype == torch.float32)
    if case.name == "video":
        assert result.coverage.kinds["frame"] == 2


@pytest.mark.parametrize("fault", SYSTEM.faults, ids=lambda f: f.name)
def test_a_fault_is_found_where_the_specification_says(fault, prepared) -> None:
    frames = 2 if fault.expect.coords.get("frame") == 0 else None
    result = _run(fault, prepared, isolate=False, frames=frames)
    if result.verdict == "match":  # below the noise: isolation must see it
        result = _run(fault, prepared, isolate=True, frames=frames)
    assert result.verdict == "diverged"
    assert result.exit_status == 1
    assert result.first is not None
    assert re.fullmatch(fault.expect.site, result.first.site), result.first.key
    for axis, index in fault.expect.coords.items():
        assert result.first.coords.get(axis) == index, result.first.key


@pytest.mark.parametrize("variation", [v for v in SYSTEM.variations if _chosen(v)], ids=lambda v: v.name)
def test_a_harmless_change_is_silent(variation, prepared) -> None:
    result = _run(variation, prepared, isolate=True, frames=None if _needs_history(variation) else 2)
    assert result.verdict == "match", [(d.key, d.error, d.floor, d.tier) for d in result.divergences[:5]]


def test_every_fault_of_the_port_is_bound_or_has_a_reason() -> None:
    bound = {fault.name for fault in SYSTEM.faults}
    left = set(PORT_FAULTS) - bound - set(NOT_RUN)
    assert not left
    assert not bound & set(NOT_RUN)
    assert len(bound) >= 70


def test_a_report_and_a_result_are_written(tmp_path: Path) -> None:
    case = SYSTEM.case("square")
    outcome = run_jobs([Job(case, Setting())], Options(html=tmp_path / "reports", save=tmp_path / "traces"))
    assert outcome.exit_status == 0
    index = (tmp_path / "reports" / "index.html").read_text()
    assert "waypoint/square" in index
    page = (tmp_path / "reports" / "waypoint-square.html").read_text()
    assert len(page) > 50_000
    outcome.results[0].write_json(tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["verdict"] == "match"
    from parity.api import compare
    from parity.trace.store import load_trace

    traces = [load_trace(tmp_path / "traces" / "waypoint-square" / side) for side in ("reference", "port")]
    assert compare(*traces).verdict == "match"
