"""The failure message and the summary table, word by word, and within one screen whatever the result holds."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_samples import HOSTILE, diverged, hostile, incomparable, match
from rich.console import Console

from parity.report.text import failure_message, summary_table
from parity.report.wording import clip, exact, measured, number, percent, times_floor
from parity.result import Cause, Coverage, Culprit, Divergence, Result

DIVERGED = """\
parity DIVERGED: waypoint/tiny [fault=rope_half_split] at blocks.2.attn.q_rope: rotary_pairing [P1]
            The port departs from the reference.
  first     blocks.2.attn.q_rope @ frame=1, step=0  (rope, run)
  error     relative L2 0.0547, floor 6.5e-06 (8,409x)
  element   [0, 5, 12, 3] of [2, 60, 4, 16]  reference 0.123456789  port -0.0912345678
  culprit   blocks.2.attn.rope, operation aten.cat, at ported/waypoint/rope.py:41
            > return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)
            the reference has aten.stack here, at reference/waypoint/rope.py:33
            independent culprits besides: blocks.4.mlp.act
  cause     The port rotates half-split channel pairs (i, i + d/2), the reference interleaved ones (2i, 2i + 1). [P1,
            confidence 0.97, leaves 0.04%]
  or        The port's channels are the reference's in another order. [V11, confidence 0.40, leaves 21%]
            The positions are shifted by one frame. [P2, confidence 0.12, leaves 64%]
  locality  all heads alike; channels 8..15 of 16; frames >= 1
  coverage  600 compared, of 602 in the reference and 605 in the port
            unaligned in the reference: blocks.5.extra
            unaligned in the port: blocks.0.attn.to_qkv
  notes     accepted quirk: keys are stored after rotation
            benign permutation of heads at blocks.0.attn.out
  report    reports/waypoint-tiny.html
  zoom in   parity run waypoint/tiny --fault rope_half_split --html reports"""

INCOMPARABLE = """\
parity INCOMPARABLE: wan/renamed
            The two runs could not be compared: this is not a pass.
  coverage  0 compared, of 405 in the reference and 352 in the port
            unaligned in the reference: transformer.blocks.0.attn, transformer.blocks.1.attn, transformer.blocks.2.attn
            and 37 more
            unaligned in the port: dit.layers.0.sa, dit.layers.0.sa, dit.layers.0.sa and 27 more
  notes     no site of the port has a counterpart in the reference: give a name map (--map)
  zoom in   parity compare reference.trace port.trace --map names.yaml"""


def fits_one_screen(message: str) -> bool:
    lines = message.split("\n")
    return len(lines) <= 40 and max(map(len, lines)) <= 120


def test_a_divergence_says_everything() -> None:
    assert failure_message(diverged()) == DIVERGED


def test_incomparable_says_what_was_not_aligned() -> None:
    assert failure_message(incomparable()) == INCOMPARABLE


def test_incomplete_is_no_pass() -> None:
    message = failure_message(replace(match(), verdict="incomplete"))
    assert message.startswith(
        "parity INCOMPLETE: waypoint/tiny\n            Not everything could be compared: this is not a pass."
    )


def test_no_cause_is_said() -> None:
    assert "  cause     unexplained: no hypothesis fits the numbers" in failure_message(replace(diverged(), causes=()))


@pytest.mark.parametrize(
    ("metric", "words"),
    [("missing", "missing in the port"), ("extra", "only in the port"), ("shape", "shape")],
)
def test_records_without_a_number(metric: str, words: str) -> None:
    first = Divergence("a", {}, "activation", metric, math.inf, 0.0, detail="[2, 3] against [3, 2]")
    message = failure_message(replace(diverged(), first=first))
    assert f"  error     {words}\n" in message
    assert "[2, 3] against [3, 2]" in message
    assert "inf" not in message


@pytest.mark.parametrize(
    ("metric", "error", "floor", "words"),
    [
        ("rel_l2", math.nan, 1e-6, "relative L2 nan, floor 1e-06"),
        ("max_abs", math.inf, 1e-6, "max abs inf, floor 1e-06"),
        ("mismatches", 3.0, 0.0, "mismatching values 3, floor 0"),
        ("bitwise", 1.0, 0.0, "bits 1, floor 0"),
        ("nonfinite", 12.0, 0.0, "non-finite values 12, floor 0"),
        ("rel_l2", 1.5e-5, 1e-6, "relative L2 1.5e-05, floor 1e-06 (15x)"),
    ],
)
def test_measures(metric: str, error: float, floor: float, words: str) -> None:
    assert measured(Divergence("a", {}, "activation", metric, error, floor)) == words


def test_numbers() -> None:
    assert [number(v) for v in (0.0, 1.0, 0.012345, 1e-9, math.nan, math.inf)] == [
        "0",
        "1",
        "0.0123",
        "1e-09",
        "nan",
        "inf",
    ]
    assert exact(None) == "?"
    assert exact(0.1 + 2**-27) != exact(0.1)
    shares = {0.0: "0%", 1e-7: "<0.01%", 4e-4: "0.04%", 0.02: "2.0%", 0.21: "21%", 0.995: "99.50%", 1.0: "100%"}
    assert {share: percent(share) for share in shares} == shares
    assert times_floor(1.0, 0.0) == times_floor(math.nan, 1.0) == times_floor(0.0, 1.0) == ""
    assert times_floor(1.0, 1e-9) == "1.0e+09x"


def test_clip_keeps_both_ends() -> None:
    cut = clip("transformer.blocks.12.attn.to_out", 20)
    assert len(cut) == 20
    assert cut.startswith("transform")
    assert cut.endswith("tn.to_out")


def test_long_texts_fit_and_keep_the_command() -> None:
    long = "a_very_long_name." * 60
    result = replace(
        diverged(),
        case=long,
        first=Divergence(
            long, {f"axis{i}": i for i in range(30)}, long, long, 1.0, 0.5, detail=long, locality=(long,) * 9
        ),
        culprit=Culprit(long, long, long, long, long),
        causes=tuple(Cause(long, "P1", long, {}, 0.1, 0.9) for _ in range(5)),
        coverage=Coverage(1, 10**9, 10**9, (long,) * 50, (long,) * 50),
        notes=(long,) * 50,
        command="parity run " + "--flag value " * 18 + "--last",
    )
    message = failure_message(result)
    assert fits_one_screen(message)
    assert message.endswith("--last")
    assert "report" in message


def test_hostile_text_stays_on_its_line() -> None:
    evil = "x\n  culprit   forged\x1b[31m\r\u202e" + HOSTILE
    result = replace(hostile(), case=evil, notes=(evil,), first=Divergence(evil, {}, evil, "rel_l2", 1.0, 0.5))
    message = failure_message(result)
    assert "\x1b" not in message
    assert "\r" not in message
    assert "\u202e" not in message
    assert fits_one_screen(message)
    assert not any(line.startswith("  culprit   forged") for line in message.split("\n"))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400), st.floats(), st.floats(), st.lists(st.text(max_size=200), max_size=8))
def test_any_result_fits_one_screen(text: str, error: float, floor: float, names: list[str]) -> None:
    first = Divergence(
        text, {text: 1}, text, text, error, floor, detail=text, index=(1,), reference_value=error, port_value=floor
    )
    result = Result(
        "diverged",
        first,
        Culprit(text),
        (Cause(text, text, text),),
        Coverage(0, 0, 0, tuple(names)),
        notes=tuple(names),
    )
    assert fits_one_screen(failure_message(result))


def printed(*args: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(*args)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_summary_table() -> None:
    text = printed(summary_table([match(), diverged(), incomparable()], {"svi/cuda": "no CUDA device"}))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines == [
        "case verdict first divergence error culprit, top cause coverage seconds",
        "waypoint/tiny match 600/600 3.0",
        "waypoint/tiny diverged blocks.2.attn.q_rope 0.0547 blocks.2.attn.rope aten.cat 600/602 9.2",
        "[fault=rope_half_split] frame=1, step=0 8,409x P1 rotary_pairing (0.97)",
        "wan/renamed incomparable 0/405 4.0",
        "svi/cuda not run no CUDA device",
        "1 match, 1 diverged, 1 incomparable, 1 not run",
    ]
    assert max(len(line.rstrip()) for line in printed(summary_table([diverged()]), width=80).splitlines()) <= 80


def test_summary_of_nothing() -> None:
    assert "no results" in printed(summary_table([]))


def test_names_are_no_markup() -> None:
    assert "[red]tiny[/red]" in printed(summary_table([replace(match(), case="[red]tiny[/red]", system="")]))
