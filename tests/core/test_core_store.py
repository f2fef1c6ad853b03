"""Traces on disk: whole or honestly incomplete, never unpickled, and one clear line for every file that is not what it should be."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from core_models import Net, noise, seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import parity
from parity.capture.recorder import Recorder
from parity.errors import TraceError
from parity.files import replacing, write_text
from parity.trace import KINDS, Manifest, Parameter, Record, Trace, store, writer
from parity.trace.fingerprint import digest, sketch, stats
from parity.trace.store import FileSource, TraceWriter, in_memory, load_trace, write_trace


def record(order: int = 0, site: str = "a", value: torch.Tensor | None = None, **fields) -> Record:
    value = noise(2, 3, seed=order) if value is None else value
    made = Record(
        site=site,
        coords={},
        kind="activation",
        order=order,
        shape=tuple(value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        stats=stats(value),
        digest=digest(value),
        sketch=sketch(value),
    )
    return replace(made, **fields)


def names_in(folder: Path) -> list[str]:
    """What lies in a trace folder; shards have their writer's own names."""
    return sorted(p.name.partition("-")[0] for p in folder.iterdir())


def assert_same(left: Trace, right: Trace) -> None:
    assert [r.key for r in left] == [r.key for r in right]
    for a, b in zip(left, right, strict=True):
        assert replace(a, sketch=None) == replace(b, sketch=None)
        assert (a.sketch is None) == (b.sketch is None)
        assert a.sketch is None or torch.equal(a.sketch, b.sketch)
        x, y = left.tensor(a.key), right.tensor(b.key)
        assert (x is None) == (y is None)
        assert x is None or (x.dtype == y.dtype and digest(x) == digest(y))


DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.bool,
    torch.uint8,
    torch.float16,
    torch.complex128,
)
SITES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(lambda s: "@" not in s)
COORDS = st.dictionaries(st.sampled_from(["frame", "step", "call", "cfg"]), st.integers(0, 99), max_size=3)


@settings(max_examples=20)
@given(data=st.data())
def test_a_trace_comes_back_as_it_was(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "t"
    manifest = Manifest(
        system="s",
        case="c",
        side="port",
        seed=7,
        dtype="bfloat16",
        notes=("one", "two"),
        environment={"torch": "x", "threads": 1},
        axes={"frame": 3},
        parameters={"head.weight": Parameter((2, 3), "bfloat16", stats(noise(2, 3)))},
    )
    trace = Trace(manifest=manifest)
    keys = data.draw(
        st.lists(st.tuples(SITES, COORDS), min_size=1, max_size=6, unique_by=lambda k: (k[0], *k[1].items()))
    )
    for i, (site, coords) in enumerate(keys):
        dtype = data.draw(st.sampled_from(DTYPES))
        value = (noise(2, 3, seed=i) * 3).to(dtype)
        full, kind = data.draw(st.booleans()), data.draw(st.sampled_from(KINDS))
        made = record(i, site, value, coords=coords, kind=kind, module="m", role="in", origin="o", layout="a -> a")
        trace.add(made, value if full else None)
    write_trace(trace, path)
    again = load_trace(path)
    assert_same(again, trace)
    assert again.manifest == manifest
    assert_same(in_memory(again), trace)


def test_records_that_kept_their_tensor_alone_are_completed(tmp_path):
    with Recorder([parity.Modules(model := seeded(Net))], digests=False) as recorder:
        model(noise(2, 3, 6))
    assert recorder.trace.get("head").stats is None
    write_trace(recorder.trace, tmp_path / "t")
    found = load_trace(tmp_path / "t").get("head")
    assert found.digest == digest(recorder.trace.tensor("head"))
    assert found.sketch is not None
    assert found.stats.count == 2 * 3 * 12


def test_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 100)
    trace = Trace()
    for i in range(9):
        trace.add(record(i, f"s{i}"), noise(2, 3, seed=i))
    write_trace(trace, tmp_path / "t")
    assert len(list((tmp_path / "t").glob("records-*.safetensors"))) == 2  # 24 bytes each: five, then four
    assert_same(load_trace(tmp_path / "t"), trace)


def test_a_writer_that_is_never_closed_leaves_an_incomplete_trace(tmp_path):
    """As after kill -9: what was flushed is there, and the trace says that it is not whole."""
    writer = TraceWriter(tmp_path / "t", Manifest(system="s")).__enter__()
    empty = load_trace(tmp_path / "t")
    assert not empty.manifest.complete
    assert len(empty) == 0
    writer.write(record(0), noise(2, 3))
    writer.flush()
    writer.write(record(1, "lost"), None)
    found = load_trace(tmp_path / "t")
    assert not found.manifest.complete
    assert [r.site for r in found] == ["a"]
    assert torch.equal(found.tensor("a"), noise(2, 3))


def test_a_run_that_raises_leaves_an_incomplete_trace_with_everything_seen(tmp_path):
    model, path = seeded(Net), tmp_path / "t"
    model.fail = True
    with pytest.raises(RuntimeError, match="inside forward"):
        parity.capture(model, (noise(2, 3, 6),), path=path)
    found = load_trace(path)
    assert not found.manifest.complete
    assert found.sites()[-1] == "blocks.1"


def test_an_incomplete_trace_stays_incomplete_when_it_is_written(tmp_path):
    trace = Trace([record(0)], Manifest(complete=False, notes=("cut",)))
    write_trace(trace, tmp_path / "t")
    found = load_trace(tmp_path / "t")
    assert not found.manifest.complete
    assert len(found) == 1


def test_writing_again_replaces_the_old_trace(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_RECORDS", 2)
    write_trace(Trace([record(i, f"old{i}") for i in range(5)]), tmp_path / "t")
    write_trace(Trace([record(0, "new")]), tmp_path / "t")
    assert load_trace(tmp_path / "t").sites() == ["new"]
    assert names_in(tmp_path / "t") == ["manifest.json", "records"]


def test_no_temporary_files_stay_behind(tmp_path):
    write_trace(Trace([record(0)]), tmp_path / "t")
    assert not [p for p in (tmp_path / "t").iterdir() if p.name.startswith(".") or p.suffix == ".part"]


def test_replacing_is_all_or_nothing(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "first")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        assert target.read_text(encoding="utf-8") == "first"
        _ = 1 / 0
    assert target.read_text(encoding="utf-8") == "first"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]
    write_text(target, "second")
    assert target.read_text(encoding="utf-8") == "second"
    assert target.stat().st_mode & 0o444 == target.parent.stat().st_mode & 0o444  # meant to be shared


# -- files that are not what they should be ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    write_trace(Trace([record(0), record(1, "b")], Manifest(system="s")), tmp_path / "t")
    return tmp_path / "t"


def assert_one_line(path: Path, expect: str) -> None:
    with pytest.raises(TraceError, match=expect) as caught:
        load_trace(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def change_manifest(folder: Path, **changes) -> None:
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_missing_path(tmp_path):
    assert_one_line(tmp_path / "absent", "no such file or folder")
    assert_one_line(tmp_path, "no manifest")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_shards(folder, share):
    shard = next(folder.glob("records-*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(len(whole) * share)])
    assert_one_line(folder, "no whole safetensors file")


def test_a_missing_shard(folder):
    next(folder.glob("records-*.safetensors")).unlink()
    assert_one_line(folder, "lists 1 shards, 0 are there")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "\ud800".encode("utf-8", "surrogatepass"), "{}", '{"format": "other"}']
)
def test_a_malformed_manifest(folder, text):
    (folder / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert_one_line(folder, "no JSON|no parity manifest")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(folder, version):
    change_manifest(folder, version=version)
    assert_one_line(folder, f"trace format {version}, this parity reads 1")


@pytest.mark.parametrize(
    "changes",
    [
        {"notes": 5},
        {"notes": None},
        {"shards": "many"},
        {"shards": None},
        {"shards": [1]},
        {"environment": 3},
        {"complete": "yes"},
        {"axes": []},
        {"system": 4},
    ],
    ids=str,
)
def test_a_manifest_with_values_of_other_types(folder, changes):
    change_manifest(folder, **changes)
    assert_one_line(folder, "manifest.json")


def test_unknown_manifest_entries_are_left_alone(folder):
    change_manifest(folder, future="something", notes=["kept"])
    assert load_trace(folder).manifest.notes == ("kept",)


def with_records(folder: Path, change) -> None:
    shard = next(folder.glob("records-*.safetensors"))
    with store.open_safetensors(shard) as handle:
        items = json.loads(handle.metadata()["records"])
        tensors = {k: handle.get_tensor(k) for k in handle.keys()}  # noqa: SIM118
    items = change(items)
    save_file(tensors, shard, {"records": items if isinstance(items, str) else json.dumps(items)})


def each(**changes):
    return lambda items: [item | changes for item in items]


@pytest.mark.parametrize(
    "change",
    [
        lambda items: "no json",
        lambda items: 5,
        lambda items: [5],
        lambda items: ["text"],
        lambda items: [{}],
        lambda items: [{k: v for k, v in item.items() if k != "site"} for item in items],
        each(kind="unheard of"),
        each(dtype="unheard"),
        each(dtype="Tensor"),
        each(dtype=5),
        each(shape=5),
        each(shape=["a"]),
        each(coords=[1]),
        each(coords="x"),
        each(coords=None),
        each(coords={"frame": "one"}),
        each(site=7),
        each(site=None),
        each(order="first"),
        each(stats=[1]),
        each(stats={"unknown": 1}),
        each(unknown=1),
        each(digest=3),
    ],
    ids=lambda change: "",
)
def test_a_malformed_record_list(folder, change):
    with_records(folder, change)
    assert_one_line(folder, "record list is (malformed|no JSON)")


def test_two_records_of_one_name(folder):
    with_records(folder, each(site="same"))
    assert_one_line(folder, "malformed.*same")


@pytest.mark.parametrize("name", ["trace.pt", "trace.safetensors", "shard"])
def test_a_pickle_is_never_loaded(tmp_path, folder, name):
    class Bomb:
        def __reduce__(self):
            return (Path(tmp_path / "exploded").touch, ())

    path = next(folder.glob("records-*")) if name == "shard" else tmp_path / name
    path.write_bytes(pickle.dumps(Bomb()))
    target = path if path.parent == tmp_path else folder
    assert_one_line(target, "no whole safetensors file")
    torch.save({"a": torch.ones(2)}, path)
    assert_one_line(target, "no whole safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_a_tensor_that_went_away_after_opening(folder, tmp_path):
    source = FileSource({"a": (tmp_path / "gone.safetensors", "t.0")})
    with pytest.raises(TraceError, match="no whole safetensors file"):
        source.get("a")
    assert source.get("b") is None


@pytest.mark.parametrize(
    "site", ["../../escape", "/etc/passwd", "a\nb", "<script>", "", "\x00", "[bold]x", "a" * 3000, "名前"]
)
def test_hostile_names_are_only_names(tmp_path, site):
    write_trace(Trace([record(0, site)]), tmp_path / "t")
    assert load_trace(tmp_path / "t").sites() == [site]
    assert names_in(tmp_path / "t") == ["manifest.json", "records"]
