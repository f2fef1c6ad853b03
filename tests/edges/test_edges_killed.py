"""Killed at any moment: what is there can be read and says what it is, the next start tidies up, no page is half a page.

The children are forks of this process, which has torch already: a kill costs what its work costs.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import parity
from parity import cli
from parity.trace.store import load_trace

SEED = int.from_bytes(os.urandom(4), "big")
SCRIPT = """
import torch
net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))
x = torch.linspace(-1, 1, 8).reshape(2, 4)
for i in range(12):
    x = net(x)
"""
CASE = """
import torch
from torch import nn

from parity.capture.probes import Modules
from parity.case import Case, Side, System


def side():
    return Side(
        build=lambda setting: nn.Sequential(nn.LayerNorm(8), nn.GELU()),
        run=lambda model, x: model(x),
        probes=lambda model: [Modules(model)],
        modules=lambda model: {"": model},
    )


SYSTEM = System(
    name="killed",
    text="what is killed",
    cases=(Case(system="killed", name="one", text="one", reference=side(), port=side(), inputs=lambda setting: torch.ones(2, 8)),),
)
"""


def start(*given: object, folder: Path) -> int:
    """Fork a child that runs the command in a folder; return its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        sys.argv = ["parity", *map(str, given)]
        import parity.trace.writer

        parity.trace.writer.SHARD_RECORDS = 10  # several shards of a short run
        cli.main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    finally:
        os._exit(status)


def finish(*given: object, folder: Path) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(start(*given, folder=folder), 0)[1])


def killed(count: int, given: list[object], folder: Path, check: Callable[[], None]) -> None:
    """Kill the command `count` times, each at a random moment of what it takes; check after each kill."""
    moments, begin = random.Random(SEED), time.perf_counter()
    finish(*given, folder=folder)
    takes = time.perf_counter() - begin
    for _ in range(count):
        child = start(*given, folder=folder)
        time.sleep(moments.uniform(0, takes))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        check()


def warm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do here once what the children do, so that what they need is imported."""
    for name, factor in (("r", 1.0), ("p", 2.0)):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU())
        parity.capture(model, (torch.ones(2, 4) * factor,), path=folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["parity", *COMPARE])
    with pytest.raises(SystemExit):
        cli.main()


COMPARE = ["compare", "r", "p", "--json", "r.json", "--html", "pages"]


def left(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".lock"))]


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "over a whole one"])
def test_capture_is_killed(tmp_path, earlier):
    (tmp_path / "s.py").write_text(SCRIPT)
    command = ["capture", "s.py", "-o", "t"]
    assert finish("capture", "s.py", "-o", "whole", folder=tmp_path) == 0
    whole, trace = load_trace(tmp_path / "whole"), tmp_path / "t"
    seen = []

    def check() -> None:
        if (trace / "manifest.json").exists():
            found = load_trace(trace)
            seen.append(found.manifest.complete)
            assert [r.key for r in found] == [r.key for r in whole][: len(found)], SEED
            assert len(found) == len(whole) or not found.manifest.complete, SEED
            if len(found) and not found.manifest.complete:
                result = parity.compare(whole, found)
                assert result.verdict in ("incomplete", "diverged"), SEED
                assert any("incomplete" in note or "up to record" in note for note in result.notes), result.notes
        else:
            assert not earlier
        if not earlier:  # the next one starts from nothing that is whole
            (trace / "manifest.json").unlink(missing_ok=True)
            for file in trace.glob("records-*") if trace.exists() else ():
                file.unlink()

    killed(10, command, tmp_path, check)
    assert earlier <= all(seen), SEED  # the whole one stayed
    assert finish(*command, folder=tmp_path) == 0
    assert not left(tmp_path), SEED
    manifest = json.loads((trace / "manifest.json").read_text())
    assert sorted(p.name for p in trace.iterdir()) == sorted(["manifest.json", *manifest["files"]]), SEED


def assert_whole_files(folder: Path) -> None:
    for page in folder.rglob("*.html"):
        assert page.read_text().rstrip().endswith("</html>"), (page, SEED)
    for file in folder.rglob("*.json"):
        json.loads(file.read_text())


def test_run_is_killed(tmp_path, monkeypatch):
    warm(tmp_path, monkeypatch)
    (tmp_path / "pyproject.toml").write_text('[tool.parity]\ncases = ["cases"]\n')
    (tmp_path / "cases" / "killed").mkdir(parents=True)
    (tmp_path / "cases" / "killed" / "case.py").write_text(CASE)
    command = ["run", "killed", "--json", "r.json", "--html", "pages", "--save", "saved"]
    killed(10, command, tmp_path, lambda: assert_whole_files(tmp_path))
    assert finish(*command, folder=tmp_path) == 0
    assert not left(tmp_path), SEED
    assert load_trace(tmp_path / "saved" / "killed-one" / "port").manifest.complete


def test_compare_is_killed(tmp_path, monkeypatch):
    warm(tmp_path, monkeypatch)
    killed(10, COMPARE, tmp_path, lambda: assert_whole_files(tmp_path))
    assert finish(*COMPARE, folder=tmp_path) == 1
    assert not left(tmp_path), SEED
    assert load_trace(tmp_path / "r").manifest.complete


def test_shards_of_others_stay(tmp_path):
    """What a trace folder holds beside its own shards is somebody's."""
    (tmp_path / "s.py").write_text(SCRIPT)
    assert finish("capture", "s.py", "-o", "t", folder=tmp_path) == 0
    (tmp_path / "t" / "records-mine.safetensors").write_text("mine")
    assert finish("capture", "s.py", "-o", "t", folder=tmp_path) == 0
    assert (tmp_path / "t" / "records-mine.safetensors").read_text() == "mine"
