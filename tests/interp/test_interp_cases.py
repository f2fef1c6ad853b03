"""The cases of interp: both sides agree; declared invariants are judged with and without a reference."""

import pytest
import torch

from fixtures.interp.case import SYSTEM
from fixtures.interp.invariants import INVARIANTS
from parity.alone import run_alone
from parity.case import Setting
from parity.pipeline import run_case


def fault(name):
    return next(f for f in SYSTEM.faults if f.name == name)


@pytest.mark.parametrize("name", ["masks", "corrupt", "flow", "train_wan"])
def test_the_port_matches(name):
    result, _ = run_case(SYSTEM.case(name))
    assert result.verdict == "match", (result.first, result.coverage)


def test_the_port_matches_in_bfloat16():
    result, _ = run_case(SYSTEM.case("flow"), Setting(dtype=torch.bfloat16))
    assert result.verdict == "match", result.first


def test_gradients_are_compared():
    result, runs = run_case(SYSTEM.case("train_wan"), isolate=False)
    kinds = {record.kind for record in runs.port}
    assert "gradient" in kinds
    assert result.coverage.kinds["gradient"] > 20


@pytest.mark.parametrize("name", ["masks", "corrupt", "flow"])
def test_laws_hold_on_the_port_alone(name):
    result = run_alone(SYSTEM.case(name))
    assert result.verdict == "match"
    assert result.coverage.compared > 10
    assert result.coverage.reference == 0


@pytest.mark.parametrize(
    ("name", "site", "law"),
    [
        ("noise_on_given_keyframes", r"corrupted.z_s", "given_keyframes_untouched"),
        ("smooth_unrestored", "interp", "keyframes_exact"),
        ("clamp_mask_of_level", None, None),
    ],
)
def test_a_broken_law_is_reported_without_a_reference(name, site, law):
    switch = fault(name)
    result = run_alone(SYSTEM.case(switch.case), fault=switch)
    if law is None:  # frames of finer levels are held too: no law is broken
        assert result.verdict == "match"
        return
    assert result.verdict == "diverged"
    assert result.first.site == site
    assert result.first.tier == "invariant"
    assert law in result.first.detail
    assert result.first.index is not None
    assert result.exit_status == 1


def test_a_broken_law_stands_beside_the_divergences():
    switch = fault("noise_on_given_keyframes")
    result, _ = run_case(SYSTEM.case(switch.case), fault=switch, isolate=False, diagnose=False)
    assert any(d.tier == "invariant" for d in result.divergences)
    assert len(INVARIANTS) >= 12


def test_a_value_fault_is_found_at_its_site():
    switch = fault("flow_alpha_twice")
    result, _ = run_case(SYSTEM.case(switch.case), fault=switch, diagnose=False)
    assert result.verdict == "diverged"
    assert result.first.site == "blended.0"
