"""Small inputs that once gave a wrong status, a traceback, a hang or a page of text: the status, and one line of at most 300 characters."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from parity import cli
from parity.boundary.limits import LINE

FILES = Path(__file__).parent / "files"
ROOT = Path(__file__).resolve().parents[2]
SAME = "dtype.r.safetensors"
MAP = "map_base.r.safetensors map_base.p.safetensors --map"


@pytest.fixture
def parity(monkeypatch, capsys):
    """Run the command in this process, beside the files: `status, out, err = parity("compare a b")`."""
    monkeypatch.chdir(FILES)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *line.split()])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return int(stop.value.code or 0), seen.out, seen.err

    return run


def assert_one_line(err: str) -> None:
    assert err.startswith("parity: ")
    assert err.count("\n") == 1, err
    assert len(err) <= LINE + 1
    assert "unexpected" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize(
    "name", ["row_vs_empty", "both_empty", "batch1_vs_2", "output_missing", "half_missing", "dtype", "complex_vs_real"]
)
def test_what_differs_is_no_match(parity, name):
    assert parity(f"compare {name}.r.safetensors {name}.p.safetensors")[0] == 1


def test_one_huge_element_hides_nothing(tmp_path, parity):
    value = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    value[0, 0] = 1e7
    other = value * 1.1
    other[0, 0] = 1e7
    for name, tensor in (("r", value), ("p", other)):
        save_file({"a": tensor}, tmp_path / f"{name}.safetensors", {"order": '["a"]'})
    assert parity(f"compare {tmp_path}/r.safetensors {tmp_path}/p.safetensors")[0] == 1


@pytest.mark.parametrize(
    "line",
    [
        "diagnose nan.safetensors other.safetensors",
        "video anim_a.webp anim_b.webp",
        "video anim_a.png anim_b.png",
        "compare trace trace_no_complete",
    ],
)
def test_what_differs_elsewhere_is_no_match(parity, line):
    assert parity(line)[0] == 1


@pytest.mark.parametrize(
    "line",
    [
        *(f"compare nan_option.r.safetensors nan_option.p.safetensors {o}" for o in ("--rtol nan", "--atol nan", "--rtol inf", "--allow-unaligned nan")),
        f"compare {MAP} unused_layout.yaml",
        f"compare coord_5000_digits.safetensors {SAME}",
        *(f"compare trace trace_{n}" for n in ("pair_of_wrong_shape", "negative_shape", "huge_count", "deep_environment")),
        *(f"compare {MAP} {n}.yaml" for n in ("backref", "bad_escape", "mixed_keys", "date", "repeat", "laughs")),
        "compare aaaa.safetensors aaaa.safetensors --map catastrophic.yaml",
        *(f"report result_{n}.json --html OUT/h" for n in ("verdict", "error_text", "dtype_bool", "coords_list")),
        *(f"video clip.npy {n}" for n in ("huge_header.npy", "int_overflow.npy", "fp8_clip.safetensors")),
        *(f"compare {SAME} {SAME} {o}" for o in ("--json OUT/file/x", "--html OUT/file", "--json OUT", "--json /proc/x")),
        f"compare {SAME} {'x' * 300}",
        "capture :f -o OUT/q",
        "capture .m:f -o OUT/q",
        "nonfinite :f",
        "bench --device bogus",
        "bench --device cpu:7",
        "capture syn_edges:f -o OUT/q",
        "gauntlet waypoint --only (",
    ],
    ids=lambda line: line[:70],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_and_status_two(parity, tmp_path, line, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "syn_edges.py").write_text("def (:\n")
    monkeypatch.syspath_prepend(tmp_path)
    start = time.perf_counter()
    status, _, err = parity(line.replace("OUT", str(tmp_path)))
    assert status == 2
    assert_one_line(err)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("kind", ["manifest", "result", "order", "yaml"])
def test_deep_nesting_is_refused(parity, tmp_path, kind):
    deep = "[" * 50_000 + "]" * 50_000
    if kind == "manifest":
        (tmp_path / "t").mkdir()
        (tmp_path / "t" / "manifest.json").write_text(deep)
        line = f"compare trace {tmp_path}/t"
    elif kind == "result":
        (tmp_path / "r.json").write_text(deep)
        line = f"report {tmp_path}/r.json --html {tmp_path}/h"
    elif kind == "order":
        save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"order": deep})
        line = f"compare {tmp_path}/a.safetensors {SAME}"
    else:
        (tmp_path / "m.yaml").write_text("[" * 5_000)
        line = f"compare {MAP} {tmp_path}/m.yaml"
    status, _, err = parity(line)
    assert status == 2
    assert_one_line(err)


def test_a_picture_beyond_the_limit_is_not_decoded(parity, tmp_path):
    from PIL import Image

    Image.new("1", (12_000, 11_000)).save(tmp_path / "bomb.png")  # 132 megapixels in a few kilobytes
    start = time.perf_counter()
    status, _, err = parity(f"video {tmp_path}/bomb.png {tmp_path}/bomb.png")
    assert status == 2
    assert "megapixels" in err
    assert_one_line(err)
    assert time.perf_counter() - start < 5


def test_a_side_that_fails_is_status_three(parity, tmp_path, monkeypatch):
    (tmp_path / "edges_fail.py").write_text(
        "import torch\nclass R(torch.nn.Module):\n  def forward(s, x): raise RuntimeError('inside')\ndef f(): return R(), (torch.ones(1),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    status, _, err = parity("nonfinite edges_fail:f")
    assert status == 3
    assert "RuntimeError: inside" in err
    assert_one_line(err)


def test_goldens_show_names_as_text_and_refuse_what_they_do_not_use(parity):
    cases = f"--cases {ROOT / 'fixtures' / 'wan'}"
    status, out, _ = parity(f"golden verify golden_ansi.safetensors {cases}")
    assert status == 1
    assert "\x1b" not in out
    assert r"\x1b[31mRED" in out
    status, out, _ = parity(f"golden verify golden_newline.safetensors {cases}")
    assert status == 2
    assert out.count("\n") == 1
    status, out, _ = parity(f"golden verify golden_extra_input.safetensors {cases}")
    assert status == 2
    assert "does not use inputs.zzz" in out
    assert parity(f"golden verify golden_fp8.safetensors {cases}")[0] == 1


def test_a_saved_result_is_rendered(parity, tmp_path):
    assert parity(f"report result.json --html {tmp_path}/h")[0] == 1  # the status of the one result
    assert (tmp_path / "h" / "index.html").is_file()


def test_two_results_of_one_name_have_two_pages(parity, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.json").write_text((FILES / "result.json").read_text())
    parity(f"report {tmp_path}/a.json {tmp_path}/b.json --html {tmp_path}/h")
    assert len([p for p in (tmp_path / "h").iterdir() if p.name != "index.html"]) == 2


def test_a_header_that_is_no_python_is_refused(parity, tmp_path):
    raw = (FILES / "clip.npy").read_bytes()
    (tmp_path / "h.npy").write_bytes(raw.replace(b"}", b"(", 1))
    assert parity(f"video clip.npy {tmp_path}/h.npy")[0] == 2
    assert parity(f"diagnose clip.npy {tmp_path}/h.npy")[0] == 2


def test_a_clip_in_half_precision_is_read(tmp_path):
    from parity.clips.frames import load_clip

    save_file({"x": torch.rand(2, 3, 8, 8).bfloat16()}, tmp_path / "c.safetensors")
    assert len(load_clip(tmp_path / "c.safetensors")) == 2
    np.save(tmp_path / "c.npy", np.zeros((2, 8, 8, 3), np.float16))
    assert len(load_clip(tmp_path / "c.npy")) == 2


def test_numbers_beyond_64_bits_are_refused(parity, tmp_path):
    raw = json.loads((FILES / "result.json").read_text()) | {"seconds": {"total": 10**30}}
    (tmp_path / "r.json").write_text(json.dumps(raw))
    status, _, err = parity(f"report {tmp_path}/r.json --html {tmp_path}/h")
    assert status == 2
    assert "64 bits" in err


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.ones(3, dtype=torch.complex64), torch.ones(3)),
        (torch.ones(3).to(torch.float8_e5m2), 2 * torch.ones(3, dtype=torch.float64)),
        (torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float16)),
    ],
)
def test_tensors_of_other_classes_of_numbers_differ(parity, tmp_path, left, right):
    for name, value in (("l", left), ("r", right)):
        save_file({"x": value}, tmp_path / f"{name}.safetensors")
    assert parity(f"diagnose {tmp_path}/l.safetensors {tmp_path}/r.safetensors")[0] == 1


def test_a_golden_that_holds_nothing_says_so_and_its_config_is_bounded(parity, tmp_path):
    for name, config, wanted in (("deep", "[" * 50_000, 2), ("text", "{}", 2)):
        metadata = {"system": "wan", "entry": "solver", "config": config, "seed": "9" * 5_000}
        save_file({"inputs.x": torch.ones(2)}, tmp_path / f"{name}.safetensors", metadata)
        status, _, err = parity(f"golden verify {tmp_path}/{name}.safetensors --cases {ROOT / 'fixtures' / 'wan'}")
        assert status == wanted
        assert "unexpected" not in err


def test_a_map_of_slow_rules_is_stopped(parity, tmp_path):
    rules = "".join(f"- {{port: '(a|aa|a?a)+{i}b', reference: x}}\n" for i in range(200))
    (tmp_path / "slow.yaml").write_text(rules)
    start = time.process_time()
    assert parity(f"compare aaaa.safetensors aaaa.safetensors --map {tmp_path}/slow.yaml")[0] == 2
    assert time.process_time() - start < 10
