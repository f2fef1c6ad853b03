"""For coding agents: brief answers within their limits, and a session over the Model Context Protocol with the SDK's own client."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from report_samples import HOSTILE, diverged, match

from parity.report.brief import CHARACTERS, LINES, brief_causes, brief_result, brief_results, fitted
from parity.result import Result

ROOT = Path(__file__).resolve().parents[2]
MODELS = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.proj, self.scale = nn.Linear(8, 8), scale

    def forward(self, x):
        return torch.tanh(self.proj(x)) * self.scale


def make(scale=2.0):
    torch.manual_seed(0)
    return nn.Sequential(Block(scale), nn.Linear(8, 8))


def inputs():
    return (torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1)),)
"""
PORT = "from theirs import make as right\n\n\ndef make():\n    return right(scale=3.0)\n"


def within(text: str) -> bool:
    lines = text.splitlines()
    return len(lines) <= LINES == 40 and len(text) <= CHARACTERS == 2_000 and lines[-1].startswith("next: ")


def long_one() -> Result:
    """A result whose every text is as long as a file from outside may make it."""
    result = diverged()
    first = dataclasses.replace(result.first, site="x" * 5_000, detail=HOSTILE * 50)
    causes = tuple(dataclasses.replace(c, text="because " * 500, patch="a.py:1: b → c" * 90) for c in result.causes * 9)
    many = tuple(f"! op{i}(f32[{i}]) at a.py:{i}" for i in range(300))
    return dataclasses.replace(result, first=first, causes=causes, notes=("note " * 300,) * 50, operations=many)


@pytest.mark.parametrize("result", [match(), diverged(), long_one(), dataclasses.replace(long_one(), operations=())])
def test_a_brief_answer_keeps_its_limits(result):
    for text in (
        brief_result(result, "r.json"),
        brief_causes(result),
        brief_results([result] * 70, {"a/b": "no " * 99}),
    ):
        assert within(text), text
        assert text.startswith("verdict: ")


@given(st.lists(st.text(max_size=400), max_size=90), st.text(max_size=400))
def test_lines_are_counted_where_they_do_not_fit(lines, following):
    text = fitted(lines, following)
    kept = text.split("\n")
    assert within(text)
    left = next((int(line.split()[1]) for line in kept if line.startswith("more: ")), 0)
    assert left >= len(lines) - (len(kept) - 1) or not left


def test_a_brief_answer_says_what_to_act_on():
    text = brief_result(diverged(), "r.json").splitlines()
    keys = [line.partition(":")[0] for line in text]
    assert keys[:2] == ["verdict", "case"]
    assert {"first", "error", "culprit", "line", "cause", "class", "proof", "confidence", "coverage", "result"} <= set(
        keys
    )
    assert text[-1] == "next: parity explain r.json --brief"
    assert brief_result(match()).splitlines()[-1] == "next: nothing to do: every verdict is match"


def facts(text: str) -> dict[str, str]:
    return dict(reversed([line.split(": ", 1) for line in text.splitlines()]))


@pytest.fixture
def pair(tmp_path) -> Path:
    (tmp_path / "theirs.py").write_text(MODELS)
    (tmp_path / "mine.py").write_text(PORT)
    return tmp_path


def test_a_session_from_a_failing_pair_to_the_verified_cause_in_three_calls(pair):
    """check says where, zoom which operation, explain why; and no path leads out of the root, no name is an option."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "parity", "mcp", "--root", str(pair)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )

    async def session() -> None:
        async with Client(stdio_client(server)) as client:

            async def call(tool: str, **given: object) -> tuple[bool, str]:
                answer = await client.call_tool(tool, given)
                return bool(answer.is_error), answer.content[0].text

            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert tools == {"list", "check", "run", "compare", "zoom", "explain", "diagnose"}

            failed, text = await call("check", reference="theirs:make", port="mine:make", inputs="theirs:inputs")
            seen = facts(text)
            assert not failed
            assert within(text)
            assert (seen["verdict"], seen["first"], seen["culprit"]) == ("diverged", "0", "0")
            assert seen["line"].startswith("theirs.py:")
            failed, text = await call("zoom", result=seen["result"], site=seen["first"])
            assert not failed, text
            assert within(text)
            assert "alone: mul(f64[2,5,8], other=3" in text
            failed, text = await call("explain", result=seen["result"])
            assert not failed, text
            assert within(text)
            assert facts(text)["proof 1"] == "verified"

            for tool, wrong in (
                ("explain", {"result": "../outside.json"}),
                ("compare", {"reference": "/etc/passwd", "port": "a"}),
                ("run", {"case": "--cases=/tmp"}),
                ("check", {"reference": "theirs:make", "port": "os.system('x'):f", "inputs": "theirs:inputs"}),
                ("zoom", {"result": "never made", "site": "0"}),
                ("run", {"case": "absent"}),
            ):
                failed, text = await call(tool, **wrong)
                assert failed, (tool, text)

    anyio.run(session)
