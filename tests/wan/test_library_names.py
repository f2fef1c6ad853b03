"""Two traces under their own names, the official modules' and the library's: aligned without a map, judged as with one."""

from __future__ import annotations

import json
import re

import pytest
import torch

import parity
from fixtures.wan import models_runs as runs
from fixtures.wan.case import SYSTEM
from fixtures.wan.faults import FAULTS
from fixtures.wan.models import DITS, build_port, build_reference
from parity.align.traces import align
from parity.case import Setting
from parity.trace.store import load_trace
from ported.wan import text


def captured(folder, dtype=torch.float32, fault=None):
    """Both transformers on one sample, captured by anybody who has only the models."""
    setting = Setting(dtype)
    inputs = runs.dit_inputs(setting, "t2v")
    x, t, context = inputs.x[0], inputs.t[:1], inputs.context[:1]
    reference, port = (build({"dit": DITS["t2v"]}, setting) for build in (build_reference, build_port))
    with torch.autocast("cpu", torch.bfloat16, enabled=reference.half):
        parity.capture(reference.dit, ([x], t, context, x[0].numel() // 4), path=folder / "official")
    arguments = {
        "hidden_states": x[None].to(dtype),
        "timestep": t,
        "encoder_hidden_states": text.pad_context(context).to(dtype),
        "return_dict": False,
    }
    if fault is None:
        parity.capture(port.dit, arguments, path=folder / "library")
    else:
        with next(f for f in FAULTS if f.name == fault).inject(port):
            parity.capture(port.dit, arguments, path=folder / "library")
    return folder / "official", folder / "library"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_library_names_against_official_names(tmp_path, dtype):
    """Of the sites that the written map pairs, nine in ten are found without it, each with the value that the map means."""
    reference, port = map(load_trace, captured(tmp_path, dtype))
    names = SYSTEM.case("dit_t2v").names
    written: dict[str, str] = {}
    for site in port.sites():
        for target in names.targets(site):
            if target.site in reference.sites():
                written.setdefault(target.site, site)
    found = {pair.reference.site: pair.port.site for pair in align(reference, port, by_value=True).pairs}

    def same(site):
        mine, right = port.at(found[site], {}), port.at(written[site], {})
        return found[site] == written[site] or (
            mine.numel() == right.numel() and torch.equal(mine.flatten(), right.flatten())
        )

    assert len(written) > 100
    assert sum(site in found and same(site) for site in written) >= 0.9 * len(written)
    assert not [site for site in written if site in found and not same(site)]


def test_the_verdict_of_a_right_port(tmp_path):
    from parity.cli import app

    reference, port = captured(tmp_path)
    out = tmp_path / "result.json"
    assert app(["compare", str(reference), str(port), "--json", str(out)], standalone_mode=False) == 0
    result = json.loads(out.read_text())
    assert re.search(r"\d{3} by weights", " ".join(result["notes"]))
    assert not [note for note in result["notes"] if "without an equal" in note]


def test_half_precision_under_its_own_tolerance(tmp_path):
    reference, port = map(load_trace, captured(tmp_path, torch.bfloat16))
    assert parity.compare(reference, port, rtol=2e-2).verdict == "match"


@pytest.mark.parametrize("official", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("fault", "first"), [(None, None), ("head_halves_swapped", "head.head.in.x")])
def test_the_library_in_half_precision(tmp_path, official, fault, first):
    """Against the official transformer in either dtype, without a tolerance: weights that are rounded once are the same weights."""
    reference = load_trace(captured(tmp_path / "r", official)[0])
    port = load_trace(captured(tmp_path / "p", torch.bfloat16, fault)[1])
    result = parity.compare(reference, port)
    assert result.verdict == ("diverged" if fault else "match"), result.first
    assert (result.first.site if result.first else None) == first


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        ("qk_norm_per_head", r"blocks.0.self_attn.norm_q"),
        ("head_halves_swapped", r"head.head.in.x"),
    ],
)
def test_the_verdict_of_a_wrong_port(tmp_path, fault, first):
    reference, port = map(load_trace, captured(tmp_path, fault=fault))
    result = parity.compare(reference, port)
    assert (result.verdict, result.first.site) == ("diverged", first)
    assert all(cause.confidence < 0.8 for cause in result.causes)  # no operations are known: no edit, and no sure fact
