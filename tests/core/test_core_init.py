"""`parity init`: what it writes for a user's own two models runs as it is, and finds the bug that is in them."""

from __future__ import annotations

import runpy
import sys
import tomllib
from itertools import count
from pathlib import Path

import pytest

import parity
from parity import cli

NUMBER = count()
THEIRS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x, t):
        return torch.tanh(self.proj(self.norm(x))) + t


def make():
    torch.manual_seed(0)
    return Net()


def inputs():
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)), 3
"""
MINE = """
import torch
from torch import nn
import {theirs} as theirs


class Port(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.ModuleDict({{"ln": nn.LayerNorm(8, eps={eps}), "fc": nn.Linear(8, 8)}})

    def forward(self, x, t):
        return torch.tanh(self.tower["fc"](self.tower["ln"](x))) + t


def make():
    right, port = theirs.make(), Port()
    port.tower["ln"].load_state_dict(right.norm.state_dict())
    port.tower["fc"].load_state_dict(right.proj.state_dict())
    return port
"""


@pytest.fixture(params=["1e-5", "1e-2"])
def names(request, tmp_path, monkeypatch) -> tuple[str, str, int]:
    """Two modules of a user in the working folder, and the status that is right for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    number = next(NUMBER)
    theirs, mine = f"theirs_{number}", f"mine_{number}"
    Path(f"{theirs}.py").write_text(THEIRS)
    Path(f"{mine}.py").write_text(MINE.format(theirs=theirs, eps=request.param))
    return theirs, mine, int(request.param != "1e-5")


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["parity", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        seen = capsys.readouterr()
        return int(stop.value.code or 0), seen.out, seen.err

    return run


def given(theirs: str, mine: str) -> list[str]:
    return ["--reference", f"{theirs}:make", "--port", f"{mine}:make", "--inputs", f"{theirs}:inputs"]


def test_a_case_runs_as_it_is_written(names, command):
    theirs, mine, wrong = names
    name = f"system_{theirs}"
    status, out, _ = command("init", *given(theirs, mine), "--name", name, "--folder", f"cases_{theirs}")
    assert status == 0
    assert tomllib.loads(Path("pyproject.toml").read_text())["tool"]["parity"]["cases"] == [f"cases_{theirs}"]
    assert r"tower\.ln" in Path(f"cases_{theirs}", name, "names.yaml").read_text()
    words = out.strip().splitlines()[-1].removeprefix("next: parity ").split()
    status, out, _ = command(*words)
    assert (status, "norm" in out) == (wrong, bool(wrong))
    status, _, err = command("init", *given(theirs, mine), "--name", name, "--folder", f"cases_{theirs}")
    assert (status, "is there already" in err) == (2, True)


def test_a_pytest_file_runs_as_it_is_written(names, command):
    theirs, mine, wrong = names
    assert command("init", "--pytest", *given(theirs, mine))[0] == 0
    test = runpy.run_path("tests/test_parity_mine.py")["test_mine"]
    if wrong:
        with pytest.raises(AssertionError, match="DIVERGED"):
            test(parity.assert_parity)
    else:
        test(parity.assert_parity)


def test_wrong_names_are_one_line(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ([], "give --reference package.module:callable"),
        (given("absent", "absent"), "cannot load absent:make"),
        ([*given("math", "math"), "--name", "a b"], "letters, digits and underscores"),
    ):
        status, _, err = command("init", *words)
        assert status == 2
        assert message in err
        assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
