"""What calls mean that only one side makes: tiny programs that repeat, skip and keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from parity.capture.probes import Function, Modules, Scope, State
from parity.case import Case, Expectation, Fault, Setting, Side
from parity.pipeline import run_case
from parity.result import Cause, Result

WIDTH, CHUNKS = 8, 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.lin, self.norm, self.up = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: torch.Tensor, first: bool) -> torch.Tensor:
        h = self.norm(self.lin(x))
        return h if first else self.up(h)


class Program:
    """Requests of several chunks; text is encoded once a request, a context is kept from chunk to chunk."""

    norms, text_once, keep_context, up_first, chunks, hold = 1, False, False, False, CHUNKS, True

    def __init__(self) -> None:
        self.net, self.text, self.context = Net(), None, None

    def encode(self, prompt: torch.Tensor) -> torch.Tensor:
        return self.net.lin(prompt)

    def sigmas(self, u: torch.Tensor) -> torch.Tensor:
        return 5 * u / (1 + 4 * u)

    def chunk(self, x: torch.Tensor, index: int) -> torch.Tensor:
        y = self.net(self.mix(x[None], self.text), index == 0 and not self.up_first)
        for _ in range(self.norms - 1):
            y = self.net.norm(y)
        if self.context is not None:
            y = self.mix(y, self.context)
        if self.hold:
            self.context = y
        return y

    def mix(self, y: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return y + 0.5 * context

    def request(self, x: torch.Tensor, prompt: torch.Tensor) -> None:
        self.sigmas(torch.linspace(1, 0.1, 5))
        if not self.keep_context:
            self.context = None
        if self.text is None or not self.text_once:
            self.text = self.encode(prompt)
        for i in range(self.chunks):
            self.chunk(x[i], i)


def probes(program: Program) -> list[object]:
    return [
        Modules(program.net),
        Function(Program, "sigmas", "sigmas.out", "schedule", {"u": "sigmas.in"}),
        Function(Program, "encode", "text", args={"prompt": "prompt"}),
        Function(Program, "mix", "mixed", args={"context": "held"}),
        State(Program, "chunk", lambda call: {} if call["self"].context is None else {"context": call["self"].context}),
        Scope(Program, "request", "request"),
        Function(Program, "chunk", "made"),
        Scope(Program, "chunk", "chunk"),
    ]


def run(program: Program, inputs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for x, prompt in inputs:
        program.request(x, prompt)


def inputs(setting: Setting) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [tuple(torch.randn(n, WIDTH, generator=generator) for n in (CHUNKS, 1)) for _ in range(2)]


SIDE = Side(lambda setting: Program(), run, probes, lambda program: {"": program.net})
CASE = Case("tiny", "calls", "calls", SIDE, SIDE, inputs, axes=("request", "chunk"))


def outcome(change: Callable[[Program], None]) -> Result:
    fault = Fault("f", "f", lambda program: change(program), Expectation(".*"))
    return run_case(CASE, Setting(), fault=fault)[0]


def cause(**settings: object) -> Cause:
    result = outcome(lambda program: program.__dict__.update(settings))
    assert result.verdict == "diverged"
    assert result.causes, result.first
    return result.causes[0]


def twice(program: Program) -> None:
    program.sigmas = lambda u: Program.sigmas(program, Program.sigmas(program, u))  # type: ignore[method-assign]


def test_nothing_changed() -> None:
    assert outcome(lambda program: None).verdict == "match"


def test_a_module_applied_to_its_own_result() -> None:
    assert cause(norms=2).class_id == "N6"


def test_a_schedule_shifted_twice() -> None:
    assert outcome(twice).causes[0].class_id == "T3"


def test_the_text_of_the_first_request_is_kept() -> None:
    found = cause(text_once=True)
    assert (found.name, found.class_id) == ("state kept", "K4")
    assert "request=0" in found.text


def test_the_context_of_the_first_request_is_kept() -> None:
    found = cause(keep_context=True)
    assert (found.name, found.class_id) == ("state kept", "K4")


def test_the_first_chunk_is_treated_like_the_others() -> None:
    assert cause(up_first=True).class_id == "V1"


@pytest.mark.parametrize("chunks", [1, 2])
def test_the_last_chunks_are_dropped(chunks: int) -> None:
    found = cause(chunks=chunks)
    assert found.class_id == "V7"
    assert f"{chunks} passes of chunk" in found.text


def test_a_state_that_is_never_held() -> None:
    found = cause(hold=False)
    assert (found.name, found.class_id) == ("absent state", "K3")
