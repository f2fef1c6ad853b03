"""Inputs that nobody wrote: valid ones, mutated. No traceback, no hang, no lie, one line where something is refused.

`make fuzz N=50000` runs as many; `PARITY_FUZZ_SEED=...` runs the same ones again.
"""

from __future__ import annotations

import io
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fuzz_case import CASE
from fuzzing import (
    HOSTILE,
    NUMBERS,
    broken,
    call,
    departed,
    fuzzed,
    json_text,
    mutated,
    odd_texts,
    tensors,
)  # fmt: skip
from hypothesis import assume
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

import parity
from parity.trace import Record, Trace
from parity.trace.store import load_trace, write_trace

FILES = Path(__file__).resolve().parents[1] / "edges" / "files"
RESULT = json.loads((FILES / "result.json").read_text())


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """A folder for every input of a test; what is in it is replaced by the next input."""
    return tmp_path_factory.mktemp("fuzz")


def assert_nothing_half(folder: Path) -> None:
    assert not list(folder.rglob("*.part"))


# -- results ----------------------------------------------------------------------------------------------------------


@fuzzed(0.14, value=mutated(RESULT) | st.lists(mutated(RESULT, 1), max_size=2).map(lambda found: {"results": found}))
def test_results(where, value):
    (where / "r.json").write_text(json_text(value), errors="replace")
    page = where / "pages" / "index.html"
    page.unlink(missing_ok=True)
    outcome = call("report", where / "r.json", "--html", where / "pages")
    assert page.exists() == (outcome.status != 2)
    if outcome.status == 2:
        return
    alone = value if "results" not in value else value["results"][0] if len(value["results"]) == 1 else None
    assert outcome.status == (0 if alone is None or alone["verdict"] == "match" else 1)
    for written in (where / "pages").glob("*.html"):
        assert "<img src=x" not in written.read_text()
    assert_nothing_half(where)


@fuzzed(0.03, data=broken((FILES / "result.json").read_bytes()))
def test_bytes_of_results(where, data):
    (where / "r.json").write_bytes(data)
    call("report", where / "r.json", "--html", where / "pages")


# -- traces -----------------------------------------------------------------------------------------------------------


class Blocks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    parity.capture(Blocks(), (torch.linspace(-1, 1, 16).reshape(2, 8),), path=folder / "t")
    parity.capture(Blocks(), (torch.linspace(-1, 1, 16).reshape(2, 8),), path=folder / "s", keep=False)
    return folder


def parts(folder: Path) -> tuple[dict, list, dict, str]:
    """Manifest, records, tensors and the name of the shard of a trace."""
    from safetensors import safe_open

    shard = next(folder.glob("records-*"))
    with safe_open(str(shard), framework="pt") as file:
        records = json.loads(file.metadata()["records"])
    return json.loads((folder / "manifest.json").read_text()), records, load_file(shard), shard.name


def written(folder: Path, manifest: object, records: object, held: dict, shard: str) -> Path:
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (folder / "manifest.json").write_text(json_text(manifest), errors="replace")
    save_file(held, folder / shard, {"records": json_text(records).encode("utf-8", "replace").decode()})
    return folder


@fuzzed(0.12, data=st.data())
def test_trace_folders(where, trace, data):
    whole = trace / data.draw(st.sampled_from(["t", "s"]))
    manifest, records, held, shard = parts(whole)
    which = data.draw(st.sampled_from(["manifest", "records", "tensors", "bytes"]))
    if which == "manifest":
        manifest = data.draw(mutated(manifest))
    elif which == "records":
        records = data.draw(mutated(records))
    elif which == "tensors":
        name = data.draw(st.sampled_from(sorted(held)))
        held[name] = data.draw(tensors())
    folder = written(where / "m", manifest, records, held, shard)
    if which == "bytes":
        file = folder / data.draw(st.sampled_from([shard, "manifest.json"]))
        file.write_bytes(data.draw(broken(file.read_bytes())))
    sides = [whole, folder] if data.draw(st.booleans()) else [folder, whole]
    found = call("compare", *sides, "--json", where / "x.json", *data.draw(st.sampled_from([(), ("--by-name",)])))
    if which == "tensors":
        assert found.status != 0
    if found.status != 2 and which == "manifest" and not load_trace(folder).manifest.complete:
        assert found.status == 1  # what is not whole is no pass
    assert_nothing_half(where)


@fuzzed(0.03, data=st.data())
def test_a_trace_with_a_changed_value_is_no_match(where, trace, data):
    whole = trace / data.draw(st.sampled_from(["t", "s"]))
    found = load_trace(trace / "t")
    start = data.draw(st.integers(0, len(found)))  # what is wrong somewhere is wrong in all that follows
    records = [r for r in found if r.role != "in" or r.order < start]
    lost = start < len(found) and data.draw(st.booleans())
    other = Trace([], found.manifest)
    for record in records[:-1] if lost else records:
        value = found.tensor(record.key)
        value = data.draw(departed(value)) if record.order >= start and not lost else value
        other.add(_described(record, value), value)
    write_trace(other if whole.name == "t" else _sketched(other), where / "c")
    assert call("compare", whole, where / "c").status == (0 if start == len(found) else 1)


def _described(record: Record, value: torch.Tensor) -> Record:
    from dataclasses import replace

    return replace(
        record,
        shape=tuple(value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        stats=None,
        digest="",
        sketch=None,
    )


def _sketched(trace):
    from parity.trace.writer import sketched

    return sketched(trace)


sites = st.lists(
    st.sampled_from(["a", "b.c", "blocks.0.x", "blocks.1.x", "freqs", "mask", "outputs.y", "acts.z"]) | odd_texts(), min_size=1, max_size=4, unique=True
)  # fmt: skip


@st.composite
def plain_files(draw):
    """Keys, tensors and order of a plain trace."""
    names = [n.encode("utf-8", "replace").decode() for n in draw(sites)]
    held = {}
    for name in names:
        coords = draw(st.sampled_from(["", "@step=0", "@frame=1,step=2", "@a=1,a=1", "@step=-1", "@step=x"]))
        held[name + coords] = draw(tensors())
    order = draw(st.none() | st.just(list(held)) | mutated(list(held), 1))
    return held, ({} if order is None else {"order": json_text(order)})


def saved(path: Path, held: dict, metadata: dict) -> Path:
    path.write_bytes(
        save(
            {k: v.contiguous() for k, v in held.items()},
            {k: v.encode("utf-8", "replace").decode() for k, v in metadata.items()},
        )
    )
    return path


@fuzzed(0.12, file=plain_files(), data=st.data())
def test_plain_traces(where, file, data):
    held, metadata = file
    left = saved(where / "r.safetensors", held, metadata)
    same = call("compare", left, left)
    if same.status == 2:
        return
    compared = [v for k, v in held.items() if not k.startswith(("weights.", "inputs."))]
    assert same.status == (
        0 if any(v.numel() for v in compared) else 1
    )  # where nothing has an element nothing was compared
    key = data.draw(st.sampled_from([k for k in held if not k.startswith(("weights.", "inputs."))]))
    right = saved(where / "p.safetensors", held | {key: data.draw(departed(held[key]))}, metadata)
    sides = [left, right] if data.draw(st.booleans()) else [right, left]
    assert call("compare", *sides).status == 1


@fuzzed(0.04, data=st.data())
def test_tolerances(where, data):
    name = data.draw(st.sampled_from(["--rtol", "--atol", "--allow-unaligned"]))
    text = data.draw(st.sampled_from([str(n) for n in NUMBERS]) | st.floats(0, 2).map(str) | odd_texts())
    assume("\x00" not in text)
    found = call("compare", FILES / "nan_option.r.safetensors", FILES / "nan_option.p.safetensors", f"{name}={text}")
    try:
        number = float(text)
    except ValueError:
        assert found.status == 2
        return
    right = math.isfinite(number) and (0 <= number <= 1 if name == "--allow-unaligned" else number >= 0)
    assert (found.status != 2) == right
    if right and number < 1.5:
        assert found.status == 1  # the two differ by 162 %, and by 4.1 at most


@fuzzed(0.04, data=broken((FILES / "half_missing.r.safetensors").read_bytes()))
def test_bytes_of_plain_traces(where, data):
    (where / "b.safetensors").write_bytes(data)
    call("compare", FILES / "half_missing.r.safetensors", where / "b.safetensors")


# -- name maps --------------------------------------------------------------------------------------------------------

MAP = [
    {"port": "(o)ut", "reference": r"\1ut", "layout": "a b -> a b", "sizes": {"a": 4}},
    {"port": "blocks.(\\d+).qkv", "split": {"axis": -1, "into": ["blocks.\\1.q", "blocks.\\1.k"], "sizes": [4, 4]}},
    {"port": "in.*", "ignore": "because"},
    {"reference": "x.*", "ignore": "never used"},
    {"port": "z", "reference": "y", "apart": True},
]
PATTERNS = (
    "(a+)+$", "(a|a)*b", "(.*)*out", "[", "(?P<x", "\\9", "a{99999999999}", "(?i)OUT", "(?=o)out", "(?<=x)y", ".*" * 40, "(" * 500, "\\p{L}+", "o(?R)?ut",
    "((a{0,5}){0,5}){0,5}[c]", "(?e)(?:out){e<=5}", "(x+x+)+y", "\\g<1>", "b h w -> (b h) w", "b ... -> ... b", "a b -> b a", "a b -> a b c", "-> ->", "(a b -> a b", "1 -> 1",
)  # fmt: skip


@st.composite
def maps(draw):
    rules = draw(mutated(MAP, 4))
    if isinstance(rules, list) and rules and draw(st.booleans()):
        rule = draw(st.sampled_from(rules))
        if isinstance(rule, dict):
            rule[draw(st.sampled_from(["port", "reference", "layout", "ignore"]))] = draw(st.sampled_from(PATTERNS))
    return rules


@fuzzed(0.1, rules=maps(), data=st.data())
def test_name_maps(where, rules, data):
    try:
        text = data.draw(st.sampled_from([json_text, yaml.safe_dump]))(rules)
    except (RecursionError, yaml.YAMLError):
        text = "- " * 5000
    raw = text.encode("utf-8", "replace")
    (where / "m.yaml").write_bytes(raw if data.draw(st.integers(0, 3)) else data.draw(broken(raw)))
    pair = data.draw(
        st.sampled_from([("map_base.r", "map_base.p"), ("aaaa", "aaaa"), ("half_missing.r", "half_missing.p")])
    )
    call("compare", *(FILES / f"{name}.safetensors" for name in pair), "--map", where / "m.yaml")


# -- goldens ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A whole golden and the cases folder that it belongs to."""
    root = tmp_path_factory.mktemp("golden")
    (root / "pyproject.toml").write_text('[tool.parity]\ncases = ["cases"]\n')
    (root / "cases" / "fuzzed").mkdir(parents=True)
    (root / "cases" / "fuzzed" / "case.py").write_text(CASE)
    torch.manual_seed(0)
    norm, proj, x = torch.nn.LayerNorm(8, eps=1e-6), torch.nn.Linear(8, 8), torch.randn(2, 3, 8)
    h = norm(x)
    held = {f"weights.norm.{k}": v for k, v in norm.state_dict().items()} | {
        f"weights.proj.{k}": v for k, v in proj.state_dict().items()
    }
    held |= {"inputs.x": x, "acts.norm": h, "outputs.y": torch.nn.functional.gelu(proj(h))}
    held = {k: v.detach() for k, v in held.items()}
    metadata = {
        "system": "fuzzed",
        "case": "one",
        "entry": "forward",
        "side": "reference",
        "config": '{"eps": 1e-6}',
        "seed": "0",
        "notes": "",
    }
    before = list(sys.path)
    yield root / "cases", held, metadata
    sys.path[:] = before


def verify(where, golden, held, metadata, allowed=None):
    file = saved(where / "g.safetensors", held, metadata)
    return call("golden", "verify", file, "--cases", golden[0], allowed=allowed or {0, 1, 2, 3})


@fuzzed(0.08, data=st.data())
def test_goldens(where, golden, data):
    _, held, metadata = golden
    held, metadata = dict(held), dict(metadata)
    name = data.draw(st.sampled_from(sorted(held)))
    how = data.draw(
        st.sampled_from(["changed", "gone", "odd", "more", "metadata", "config", "no field", "all gone", "nothing"])
    )
    if how == "changed":
        held[name] = data.draw(departed(held[name]))
    elif how == "gone":
        del held[name]
    elif how == "odd":
        held[name] = data.draw(tensors())
    elif how == "more":
        group = data.draw(st.sampled_from(["inputs.", "weights.", "outputs.", "acts.", ""]))
        held[group + data.draw(odd_texts()).encode("utf-8", "replace").decode()] = data.draw(tensors())
    elif how == "metadata":
        metadata[data.draw(st.sampled_from(["system", "entry", "side", "seed", "case", "notes"]))] = data.draw(
            odd_texts()
        )
    elif how == "config":
        metadata["config"] = json_text(data.draw(mutated({"eps": 1e-6})))
    elif how == "no field":
        del metadata[data.draw(st.sampled_from(sorted(metadata)))]
    elif how == "all gone":
        held = {k: v for k, v in held.items() if not k.startswith(("outputs.", "acts."))}
    found = verify(where, golden, held, metadata)
    if how == "nothing":
        assert found.status == 0
    told = how == "changed" and name.startswith(
        ("outputs.", "acts.")
    )  # a norm may not answer to a change of what goes in
    if told or how in ("all gone", "more"):
        assert found.status != 0
    if how == "gone" and not name.startswith(("outputs.", "acts.")):
        assert found.status == 2
    if how == "changed" and name.startswith(("outputs.", "acts.")):
        assert found.status == 1


@fuzzed(0.02, data=st.data())
def test_bytes_of_goldens(where, golden, data):
    file = saved(where / "g.safetensors", golden[1], golden[2])
    file.write_bytes(data.draw(broken(file.read_bytes())))
    call("golden", "verify", file, "--cases", golden[0], allowed={0, 1, 2, 3})


# -- clips ------------------------------------------------------------------------------------------------------------


def frames(seed: int = 0, count: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (count, 16, 12, 3)).astype(np.uint8)


def pictures(kind: str) -> bytes:
    """An animated picture of three frames, as a file of this kind."""
    from PIL import Image

    images, out = [Image.fromarray(f) for f in frames()], io.BytesIO()
    images[0].save(
        out, kind, save_all=kind != "JPEG", append_images=images[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    from parity.clips.frames import write_clip

    folder = tmp_path_factory.mktemp("clips")
    write_clip(frames(), folder / "c.mkv")
    np.save(folder / "c.npy", frames())
    save_file({"x": torch.tensor(frames())}, folder / "c.safetensors")
    for ending, kind in (("png", "PNG"), ("webp", "WEBP"), ("gif", "GIF"), ("jpg", "JPEG")):
        (folder / f"c.{ending}").write_bytes(pictures(kind))
    return folder


@fuzzed(0.08, data=st.data())
def test_bytes_of_clips(where, clips, data):
    ending = data.draw(st.sampled_from(["mkv", "npy", "safetensors", "png", "webp", "gif", "jpg"]))
    (where / f"b.{ending}").write_bytes(data.draw(broken((clips / f"c.{ending}").read_bytes())))
    call("video", clips / "c.npy", where / f"b.{ending}", "--json", where / "v.json")


@fuzzed(0.06, data=st.data())
def test_headers_of_arrays(where, clips, data):
    shape = data.draw(st.lists(st.sampled_from([-1, 0, 1, 3, 16, 10**6, 2**40, 2**63, 10**30]), max_size=6).map(tuple))
    kind = data.draw(
        st.sampled_from(
            ["|u1", "<f4", "<f8", ">f4", "<f2", "|O", "<c8", "|S5", "<U9", "<M8[s]", "|b1", "<i8", "zz", "|V8", "<u2"]
        )
    )
    order = data.draw(st.sampled_from(["False", "True", "0", "None"]))
    head = f"{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    head += b" " * (64 - (10 + len(head) + 1) % 64) + b"\n"
    body = data.draw(st.sampled_from([b"", b"\0" * 64, frames().tobytes()]))
    (where / "h.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body)
    call("video", clips / "c.npy", where / "h.npy")
    call("diagnose", where / "h.npy", clips / "c.npy")


@fuzzed(0.04, data=st.data())
def test_clips(where, data):
    shape = data.draw(
        st.sampled_from(
            [(3, 16, 12, 3), (3, 3, 16, 12), (2, 3, 8, 8), (1, 3, 4, 8, 8), (16, 12, 3), (4, 1, 16, 12), (2, 4, 16, 12)]
        )
    )
    kind = data.draw(st.sampled_from(["u1", "f4", "f2", "f8", "i8", "b1", "bf16"]))
    values = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 255, shape)
    low = data.draw(st.sampled_from([0.0, -1.0]))
    tensor = torch.tensor(values)
    if kind == "b1":
        tensor = tensor > 99
    elif kind not in ("u1", "i8"):
        tensor = (tensor / 255 * (1 - low) + low).to(
            {"f4": torch.float32, "f2": torch.float16, "f8": torch.float64, "bf16": torch.bfloat16}[kind]
        )
    elif kind == "u1":
        tensor = tensor.to(torch.uint8)
    other = tensor.clone()
    other[..., : other.shape[-1] // 2] = (
        ~other[..., : other.shape[-1] // 2]
        if kind == "b1"
        else other.float().flip(0).to(other.dtype)[..., : other.shape[-1] // 2] * 0
    )
    saved(where / "a.safetensors", {"x": tensor}, {})
    saved(where / "b.safetensors", {"x": other}, {})
    assert call("video", where / "a.safetensors", where / "a.safetensors").status == 0
    assert call("video", where / "a.safetensors", where / "b.safetensors").status == 1


# -- tensors ----------------------------------------------------------------------------------------------------------


@fuzzed(0.1, left=tensors(), data=st.data())
def test_tensors(where, left, data):
    right = data.draw(departed(left))
    saved(where / "l.safetensors", {"x": left}, {})
    saved(where / "q.safetensors", {"x": right}, {})
    kind = data.draw(st.sampled_from(["activation", "rope", "kv", "mask", "schedule", "latent", "frame", "weight"]))
    assert call("diagnose", where / "l.safetensors", where / "q.safetensors", "--kind", kind).status == 1
    assert call("diagnose", where / "l.safetensors", where / "l.safetensors", "--kind", kind).status == 0


# -- the command line -------------------------------------------------------------------------------------------------

COMMANDS = (
    ["list"], ["list", "nosuch"], ["run", "nosuch"], ["run", "wan/nosuch"], ["capture", "nosuch.py"], ["capture", "os:getcwd"], ["align", "A", "B"], ["compare", "A", "B"],
    ["report", "R"], ["diagnose", "T", "T"], ["nonfinite", "nosuch:f"], ["quant", "nosuch:f"], ["video", "C", "C"], ["gauntlet", "nosuch"], ["golden", "verify", "A"],
    ["golden"], ["doctor"], ["mutants", "--half", "nosuch"], ["bench", "nosuch"], [],
)  # fmt: skip
OPTIONS = (
    "--json", "--html", "--map", "--rtol", "--atol", "--allow-unaligned", "--by-name", "--by-value", "--device", "--dtype", "--seed", "--fault", "--variation", "--jobs", "--kind",
    "--modules", "--model", "--full", "-o", "--cases", "--only", "--limit", "--bits", "--order", "--top", "--plot", "--write", "--zoom", "--save", "--verbose", "--nosuch", "-x",
    "--version", "--half", "--family", "--n", "--repeats", "--isolate", "--alone", "--strict", "--markdown", "--fit", "--traceback=1", "--weights",
)  # fmt: skip


@fuzzed(0.1, data=st.data())
def test_arguments(where, trace, golden, clips, data, monkeypatch):
    names = {
        "A": FILES / "dtype.r.safetensors",
        "B": trace / "t",
        "R": FILES / "result.json",
        "T": FILES / "other.safetensors",
        "C": clips / "c.npy",
    }
    argv = [str(names.get(a, a)) for a in data.draw(st.sampled_from(COMMANDS))]
    monkeypatch.chdir(golden[0].parent)
    odd = (
        odd_texts()
        | st.sampled_from([str(n) for n in NUMBERS])
        | st.sampled_from([".", "/dev/null", "/proc/x", "/", str(where / "no" / "file"), "cpu", "", "1", "x.json"])
    )
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(argv)))
        what = data.draw(st.sampled_from(["option", "option", "value", "change", "remove"]))
        value = data.draw(odd).replace("\x00", "")
        if what == "option":
            argv[at:at] = [data.draw(st.sampled_from(OPTIONS)), value]
        elif what == "value":
            argv.insert(at, value)
        elif argv and what == "change":
            argv[min(at, len(argv) - 1)] = value
        elif argv:
            del argv[min(at, len(argv) - 1)]
    assume(not expensive(argv))
    call(*argv, allowed={0, 1, 2, 3})


def expensive(argv: list[str]) -> bool:
    """Tell whether a line might do an honest hour of work."""
    command = next((a for a in argv if not a.startswith("-")), "")
    return command in ("bench", "mutants", "gauntlet", "run") and "nosuch" not in " ".join(argv)


# -- models -----------------------------------------------------------------------------------------------------------


class Odd(torch.nn.Module):
    """A model whose parts have any names and that returns anything."""

    def __init__(self, names, wrap):
        super().__init__()
        torch.manual_seed(3)
        self.wrap, self.parts = wrap, []
        for name in names:
            self.add_module(name, torch.nn.Linear(4, 4))

    def forward(self, x):
        for child in self.children():
            x = torch.tanh(child(x))
        return self.wrap(x)


WRAPS = {
    "tensor": lambda x: x, "tuple": lambda x: (x, x * 2), "dict": lambda x: {1: x, "1": x * 2, "\x1b": x}, "list": lambda x: [x, [x, {"a": x}]], "none": lambda x: None,
    "float": lambda x: float(x.detach().sum()), "numpy": lambda x: x.detach().numpy(), "sparse": lambda x: x.detach().to_sparse(), "text": lambda x: "a\nb",
    "self": lambda x: (lambda held: (held.append(held), held)[1])([x]), "empty": lambda x: x[:0], "complex": lambda x: torch.complex(x, x), "half": lambda x: x.to(torch.bfloat16),
    "frames": lambda x: list(x.unbind(0)), "set": lambda x: {1, 2}, "nan": lambda x: x / 0 * 0, "bool": lambda x: x > 0, "scalar": lambda x: x.sum(),
}  # fmt: skip


@fuzzed(0.03, data=st.data())
def test_models(where, data):
    usual = [n for n in HOSTILE if n and "." not in n]
    names = data.draw(
        st.lists(st.sampled_from(["a", "b", "0", "q"]) | st.sampled_from(usual), min_size=1, max_size=3, unique=True)
    )
    how = data.draw(st.sampled_from(sorted(WRAPS)))
    wrap, same = WRAPS[how], 1 if how == "empty" else 0  # a result without elements compares nothing: no pass
    x, keep = torch.linspace(-1, 1, 8).reshape(2, 4), data.draw(st.booleans())
    model = Odd(names, wrap)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.random.get_rng_state()
    parity.capture(model, (x,), path=where / "o1", keep=keep)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert call("compare", where / "o1", where / "o1").status == same
    with torch.no_grad():
        model.get_submodule(data.draw(st.sampled_from(names))).weight.mul_(1.5)
    parity.capture(model, (x,), path=where / "o2", keep=keep)
    assert call("compare", where / "o1", where / "o2").status == 1
