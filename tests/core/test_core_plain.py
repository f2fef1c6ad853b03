"""Plain safetensors as traces: keys, coordinates, order; and the ten lines of the documentation, exactly as they are printed there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from core_imports import ROOT
from core_models import noise
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import parity
from parity.errors import TraceError
from parity.result import format_key, parse_key
from parity.trace.store import load_trace, natural_key

EXAMPLE = ROOT / "docs" / "examples" / "ten_line_trace.py"
PAGE = ROOT / "docs" / "plain_traces.md"


def save(path: Path, keys: list[str] | dict[str, torch.Tensor], **metadata: str) -> Path:
    tensors = keys if isinstance(keys, dict) else {k: noise(2, 3, seed=i) for i, k in enumerate(keys)}
    save_file(tensors, path, metadata or None)
    return path


# -- keys -------------------------------------------------------------------------------------------------------------

WORD = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="@,="), min_size=1, max_size=8)


@given(
    site=st.text(max_size=20).filter(lambda s: "@" not in s),
    coords=st.dictionaries(WORD, st.integers(-5, 10**6), max_size=4),
)
def test_a_key_is_parsed_back(site, coords):
    assert parse_key(format_key(site, coords)) == (site, coords)


@given(key=st.text(max_size=40) | st.from_regex(r"[a-z@=,0-9²٣-]{1,20}", fullmatch=True))
def test_any_text_is_some_key(key):
    """A tail that is no coordinates belongs to the site; nothing is lost and nothing fails."""
    site, coords = parse_key(key)
    assert site == key or (coords and key.startswith(f"{site}@"))


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("blocks.3.attn@frame=5,step=2", ("blocks.3.attn", {"frame": 5, "step": 2})),
        ("plain", ("plain", {})),
        ("a@b", ("a@b", {})),
        ("a@b=", ("a@b=", {})),
        ("a@=3", ("a@=3", {})),
        ("a@x=1@y=2", ("a@x=1", {"y": 2})),
        ("a@x=--5", ("a@x=--5", {})),
        ("a@x=-5", ("a", {"x": -5})),
        ("a@x=²", ("a@x=²", {})),
        ("a@x=1.5", ("a@x=1.5", {})),
    ],
)
def test_keys_by_example(key, expected):
    assert parse_key(key) == expected


@given(keys=st.lists(st.text(max_size=12), max_size=8))
def test_natural_order_is_an_order_of_any_names(keys):
    assert sorted(sorted(keys, key=natural_key, reverse=True), key=natural_key) == sorted(keys, key=natural_key)


def test_natural_order_counts():
    keys = ["blocks.10.fc", "blocks.2.fc", "blocks.2", "embed", "a@step=10", "a@step=9", "a²", "1²3"]
    expected = ["1²3", "a@step=9", "a@step=10", "a²", "blocks.2", "blocks.2.fc", "blocks.10.fc", "embed"]
    assert sorted(keys, key=natural_key) == expected


# -- files ------------------------------------------------------------------------------------------------------------


def test_the_order_entry_is_the_order(tmp_path):
    keys = ["z", "blocks.10", "blocks.2", "a@step=1"]
    trace = load_trace(save(tmp_path / "t.safetensors", keys, order=json.dumps(keys)))
    assert [r.key for r in trace] == keys
    assert not trace.manifest.order_assumed
    assert [r.order for r in trace] == [0, 1, 2, 3]
    assert trace.get("a@step=1").coords == {"step": 1}
    assert torch.equal(trace.tensor("blocks.2"), noise(2, 3, seed=2))


def test_without_it_natural_order_is_assumed_and_said(tmp_path):
    trace = load_trace(save(tmp_path / "t.safetensors", ["z", "blocks.10", "blocks.2"]))
    assert trace.sites() == ["blocks.2", "blocks.10", "z"]
    assert trace.manifest.order_assumed
    port = load_trace(
        save(tmp_path / "p.safetensors", {k: noise(2, 3, seed=9) for k in ("z", "blocks.10", "blocks.2")})
    )
    result = parity.compare(trace, port)
    assert result.first.site == "blocks.2"
    assert any("natural order of its keys was assumed" in note for note in result.notes)


def test_an_order_that_leaves_keys_out_counts_as_assumed(tmp_path):
    trace = load_trace(save(tmp_path / "t.safetensors", ["c", "b", "a"], order='["c"]'))
    assert trace.sites() == ["c", "a", "b"]
    assert trace.manifest.order_assumed


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("no json", "its 'order' metadata is no JSON"),
        ('{"a": 1}', "no JSON list of keys"),
        ("[1]", "no JSON list of keys"),
        ('["absent"]', "lists 'absent', which the file does not hold"),
    ],
)
def test_a_wrong_order_is_one_line(tmp_path, order, message):
    with pytest.raises(TraceError, match=message):
        load_trace(save(tmp_path / "t.safetensors", ["a"], order=order))


def test_the_activations_of_a_golden_are_a_trace(tmp_path):
    keys = ["weights.w", "inputs.x", "acts.blocks.0@frame=1", "outputs.video"]
    meta = {"system": "wan", "case": "tiny", "side": "port", "order": '["blocks.0@frame=1", "outputs.video"]'}
    trace = load_trace(save(tmp_path / "g.safetensors", keys, **meta))
    assert [r.key for r in trace] == ["blocks.0@frame=1", "outputs.video"]
    assert [r.kind for r in trace] == ["activation", "output"]
    assert (trace.manifest.system, trace.manifest.case, trace.manifest.side) == ("wan", "tiny", "port")
    assert not trace.manifest.order_assumed
    assert torch.equal(trace.tensor("blocks.0@frame=1"), noise(2, 3, seed=2))


def test_a_file_of_weights_alone_is_no_trace(tmp_path):
    with pytest.raises(TraceError, match="holds no record"):
        load_trace(save(tmp_path / "g.safetensors", ["weights.w", "inputs.x"]))


def test_two_keys_of_one_record(tmp_path):
    with pytest.raises(TraceError, match="two keys name the record a"):
        load_trace(save(tmp_path / "t.safetensors", ["a", "acts.a"]))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.float8_e8m0fnu, torch.complex64,
    ],
    ids=str,
)  # fmt: skip
def test_every_dtype_that_a_file_can_hold(tmp_path, dtype):
    value = torch.ones(2, 3).to(dtype)
    path = save(tmp_path / "t.safetensors", {"a": value, "scalar": torch.ones(()).to(dtype)})
    trace = load_trace(path)
    assert {r.dtype for r in trace} == {str(dtype).removeprefix("torch.")}
    assert [r.shape for r in trace] == [(2, 3), ()]
    result = parity.compare(trace, load_trace(path))
    assert result.verdict == "match"
    assert result.coverage.compared == 2
    assert all(row.bitwise for row in result.rows)


def test_integers_of_a_plain_file_compare_exactly(tmp_path):
    one = {"ids": torch.arange(100000, 100006).to(torch.uint32)}
    other = {"ids": one["ids"].long().add(torch.tensor([0, 0, 1, 0, 0, 0])).to(torch.uint32)}
    result = parity.compare(
        load_trace(save(tmp_path / "a.safetensors", one)), load_trace(save(tmp_path / "b.safetensors", other))
    )
    assert result.verdict == "diverged"
    assert result.first.metric == "mismatches"
    assert result.first.index == (2,)


def test_kinds_are_guessed_from_names(tmp_path):
    kinds = {
        "mask": "attn.keep_mask",
        "schedule": "sigmas",
        "rope": "rope.freqs_cos",
        "latent": "latents",
        "activation": "x",
    }
    trace = load_trace(save(tmp_path / "t.safetensors", list(kinds.values())))
    assert {r.site: r.kind for r in trace} == {site: kind for kind, site in kinds.items()}


# -- the documented script --------------------------------------------------------------------------------------------


def example(tmp_path: Path, *args: str) -> Path:
    out = tmp_path / f"{'-'.join(args) or 'plain'}.safetensors"
    command = [sys.executable, str(EXAMPLE), str(out), *args]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_script_knows_nothing_of_parity_and_is_ten_lines():
    source = EXAMPLE.read_text(encoding="utf-8")
    tree = ast.parse(source)
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= {"json", "sys", "torch", "safetensors.torch"}
    recording = source.split("# -- recording")[1].split("# --")[0]
    assert 5 <= len([line for line in recording.splitlines()[1:] if line.strip()]) <= 10


def test_the_page_prints_the_script_as_it_is():
    recording = EXAMPLE.read_text(encoding="utf-8").split("# -- recording")[1].split("\n", 1)[1].split("# --")[0]
    assert recording.strip() in PAGE.read_text(encoding="utf-8")


def test_traces_of_the_documented_script_are_compared_by_the_command(tmp_path, capsys, monkeypatch):
    from parity import cli

    def status(*args: object) -> int:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code or 0

    right, wrong = example(tmp_path), example(tmp_path, "1e-2")
    trace = load_trace(right)
    assert not trace.manifest.order_assumed
    assert trace.sites()[0] == "norm"
    assert {tuple(r.coords.items()) for r in trace} == {(("step", s),) for s in range(3)}
    assert status("compare", right, right) == 0
    assert status("compare", right, wrong, "--json", tmp_path / "result.json") == 1
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["verdict"] == "diverged"
    assert (result["first"]["site"], result["first"]["coords"]) == ("norm", {"step": 0})
    assert "norm @ step=0" in capsys.readouterr().out
