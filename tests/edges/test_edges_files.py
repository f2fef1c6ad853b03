"""What is there stays until the new is whole; what is not ours is never touched; killed and concurrent writers leave honest traces."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest
import torch

import parity
from parity import cli
from parity.errors import CaseError, ParityError
from parity.files import check_target, replacing, write_text
from parity.trace import Manifest, Record
from parity.trace.store import TraceWriter, load_trace

FILES = Path(__file__).parent / "files"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *map(str, args)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), capsys.readouterr().err

    return run


def entry(i: int, value: float) -> tuple[Record, torch.Tensor]:
    return Record("x", {"call": i}, "activation", i, (1,), "float32"), torch.tensor([value])


def test_two_writers_do_not_mix(tmp_path):
    first, second = (TraceWriter(tmp_path / "t", Manifest(system=name)) for name in "AB")
    first.__enter__()
    for i in range(2000):
        first.write(*entry(i, 1.0))
    second.__enter__()
    for i in range(1000):
        second.write(*entry(i, 2.0))
    second.__exit__(None, None, None)
    found = load_trace(tmp_path / "t")
    assert {float(found.tensor(r.key)) for r in found} == {2.0}
    for i in range(2000, 2500):
        first.write(*entry(i, 1.0))
    first.__exit__(None, None, None)
    found = load_trace(tmp_path / "t")
    assert found.manifest.complete
    assert len(found) == 2500
    assert {float(found.tensor(r.key)) for r in found} == {1.0}
    assert len(list((tmp_path / "t").iterdir())) == 3  # two shards and the manifest


def test_a_whole_trace_stays_when_a_new_run_fails(tmp_path, run):
    (tmp_path / "ok.py").write_text("import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))\n")
    (tmp_path / "bad.py").write_text("import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))\nimport nosuch\n")
    assert run("capture", tmp_path / "ok.py", "-o", tmp_path / "good")[0] == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "good").iterdir()}
    status, err = run("capture", tmp_path / "bad.py", "-o", tmp_path / "good")
    assert status == 3
    assert "the earlier trace stays" in err
    assert {p.name: p.read_bytes() for p in (tmp_path / "good").iterdir()} == before
    status, err = run("capture", tmp_path / "bad.py", "-o", tmp_path / "new")
    assert status == 3
    assert not load_trace(tmp_path / "new").manifest.complete


def test_a_folder_that_is_no_trace_is_left_alone(tmp_path, run):
    site = tmp_path / "site"
    site.mkdir()
    (site / "manifest.json").write_text('{"name": "my app"}')
    (site / "records-2024.safetensors").write_text("data")
    (tmp_path / "ok.py").write_text("import torch\ntorch.nn.Linear(2, 2)(torch.ones(1, 2))\n")
    status, err = run("capture", tmp_path / "ok.py", "-o", site)
    assert status == 2
    assert "is no trace" in err
    assert sorted(p.name for p in site.iterdir()) == ["manifest.json", "records-2024.safetensors"]
    assert (site / "records-2024.safetensors").read_text() == "data"


def test_an_input_is_no_target(tmp_path, run):
    given = tmp_path / "in.safetensors"
    given.write_bytes((FILES / "dtype.r.safetensors").read_bytes())
    assert run("compare", given, given, "--json", given)[0] == 2
    assert given.read_bytes() == (FILES / "dtype.r.safetensors").read_bytes()
    link = tmp_path / "link.json"
    link.symlink_to(given)
    assert run("compare", given, given, "--json", link)[0] == 2
    with pytest.raises(CaseError, match="one of the inputs"):
        check_target(tmp_path / "t" / "manifest.json", [tmp_path, tmp_path / "t"])


def test_pipes_and_devices_are_written_to(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen: list[str] = []
    reader = threading.Thread(target=lambda: seen.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "text")
    reader.join(10)
    assert seen == ["text"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_text(Path(os.devnull), "text")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    target = tmp_path / "r.json"
    target.write_text("old")
    with pytest.raises(ParityError, match=r"cannot write .*No space left"), replacing(target) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_what_the_dead_left_goes(tmp_path):
    (tmp_path / ".r.json.dead.part").write_text("half")
    write_text(tmp_path / "r.json", "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_a_broken_module_name_can_be_read_back(tmp_path):
    class At(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("q", torch.nn.Linear(4, 4))
            self.add_module("q@call=1", torch.nn.Linear(4, 4))

        def forward(self, a):
            return self.q(self.q(a)) + getattr(self, "q@call=1")(a)

    assert len(parity.capture(At(), (torch.ones(1, 4),), path=tmp_path / "t")) > 5
