"""The SVI cases: both sides match, every fault shows where it is expected and leaves nothing behind."""

import re
from functools import cache

import pytest
import torch

from fixtures.svi.case import SYSTEM
from fixtures.svi.faults import FAULTS, NOT_BOUND, VARIATIONS
from parity.case import Setting
from parity.pipeline import prepare, run_case
from ported.svi.faults import FAULTS as PORT_FAULTS
from ported.svi.variations import VARIATIONS as PORT_VARIATIONS

HALF = torch.bfloat16


@cache
def prepared_case(name):
    """The reference's runs of a case in float32, made once for all tests."""
    return prepare(SYSTEM.case(name), Setting(), isolate=False)


def run(name, **options):
    """Run a case without isolation and diagnosis."""
    found, runs = run_case(
        SYSTEM.case(name), Setting(), isolate=False, diagnose=False, free=False, prepared=prepared_case(name), **options
    )
    return found, runs


@pytest.mark.parametrize("case", SYSTEM.cases, ids=lambda case: case.name)
def test_both_sides_match(case):
    result, _ = run(case.name)
    assert result.verdict == "match", (result.first, result.coverage)
    assert result.coverage.compared == result.coverage.reference == result.coverage.port


@pytest.mark.parametrize("name", ["inline", "generate_split", "native"])
def test_both_sides_match_in_bfloat16(name):
    result, _ = run_case(SYSTEM.case(name), Setting(HALF), isolate=False, free=False)
    assert result.verdict == "match", (result.first, result.coverage)


@pytest.mark.parametrize("name", ["inline", "inline_start4", "end", "anchor", "first"])
def test_what_the_specification_calls_equal_has_equal_bits(name):
    result, _ = run(name)
    rows = {row.key: row for row in result.rows}
    assert {row.site for row in rows.values()} >= {"mask", "latents", "cond", "decoded"}
    differing = sorted({row.site for row in rows.values() if not row.bitwise})
    assert differing in ([], ["returned"]), "the frames that are returned are mapped to [0, 1] and back on one side"


def test_every_stage_of_the_specification_is_seen():
    _, runs = run("generate_split")
    sites = {record.site for record in runs.reference}
    assert sites >= {
        "pixels", "vae_end_flag", "enc_chunk", "encoded", "latents", "mask", "cond", "noise", "timesteps", "dit_input",
        "flow", "x_next", "decoded", "returned",
    }  # fmt: skip
    assert runs.port.at("cond", {}).shape == (20, 4, 4, 6)
    assert runs.port.at("dit_input", {}).shape == (36, 4, 4, 6)
    assert runs.port.at("returned", {}).shape == (3, 9, 32, 48)


# -- faults -----------------------------------------------------------------------------------------------------------


def test_every_fault_is_bound_or_says_why_not():
    assert {fault.name for fault in FAULTS} | set(NOT_BOUND) == set(PORT_FAULTS)
    assert len(FAULTS) >= 30
    assert len(VARIATIONS) >= 20


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_shows_first_where_it_is(fault):
    result, _ = run(fault.case, fault=fault)
    assert result.verdict == "diverged"
    assert re.fullmatch(fault.expect.site, result.first.site), result.first
    coords = dict(result.first.coords)
    assert {axis: coords.get(axis) for axis in fault.expect.coords} == dict(fault.expect.coords)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("end_not_marked", "latent frame 3, sub-frame 3 is 0, should be 1"),
        ("end_one_sub_frame", "latent frame 4, sub-frames 0 to 2 are 0, should be 1"),
        ("leading_one_short", "latent frame 1, sub-frame 2 is 0, should be 1"),
        ("first_in_last_channel", "latent frame 0, sub-frames 0 to 2 are 0, should be 1"),
        ("motion_marked_known", "latent frame 1, sub-frames 0 to 3 are 1, should be 0"),
    ],
)
def test_masks_are_told_in_words(name, text):
    fault = next(fault for fault in FAULTS if fault.name == name)
    result, _ = run(fault.case, fault=fault)
    assert result.first.detail == text


@pytest.mark.parametrize("name", ["inline", "segments"])
def test_faults_leave_nothing_behind(name):
    result, _ = run(name)
    assert result.verdict == "match"


@pytest.mark.parametrize("variation", [v for v in VARIATIONS if v.dtype is None], ids=lambda v: v.name)
def test_right_port_is_not_accused(variation):
    result, _ = run(variation.case, variation=variation)
    assert result.verdict == "match", (result.first, result.coverage)


@pytest.mark.parametrize("name", [name for name, v in PORT_VARIATIONS.items() if v.exact])
def test_exact_variations_keep_the_bits(name):
    variation = next(v for v in VARIATIONS if v.name.startswith(name))
    result, _ = run(variation.case, variation=variation)
    assert all(row.bitwise for row in result.rows if row.site in ("pixels", "mask", "cond"))
