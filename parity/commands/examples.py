"""What every `--help` ends with: examples that run; and the command that follows a brief answer (a template of the command's arguments)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """examples: whole command lines. following: what comes after the command, as its brief answer says it."""

    examples: tuple[str, ...]
    following: str


SHOWN: Mapping[str, Shown] = {
    "list": Shown(("parity list", "parity list waypoint --faults"), "parity run SYSTEM/CASE --brief"),
    "run": Shown(
        (
            "parity run waypoint/frames",
            "parity run waypoint --fault rope_halves --html reports",
            "parity run wan --jobs 2 --json result.json",
        ),
        "",
    ),
    "check": Shown(
        (
            "parity check theirs:make mine:make --inputs mine:inputs",
            "parity check theirs:make mine:make --inputs mine:inputs --zoom first",
        ),
        "",
    ),
    "init": Shown(
        (
            "parity init --reference theirs:make --port mine:make --inputs mine:inputs",
            "parity init --pytest --reference theirs:make --port mine:make --inputs mine:inputs",
        ),
        "the command that the last line names",
    ),
    "explain": Shown(("parity explain result.json",), ""),
    "mcp": Shown(("parity mcp --root .",), ""),
    "capture": Shown(
        (
            "parity capture run_official.py -o official.trace",
            "parity capture package.module:function -o port.trace --full",
        ),
        "parity compare REFERENCE {out} --brief",
    ),
    "align": Shown(
        ("parity align official.trace port.trace --write names.yaml",), "parity compare {reference} {port} --brief"
    ),
    "against": Shown(
        (
            "parity against official.trace run_port.py",
            "parity against official.trace case:wan/dit_t2v --fault rope_half_split",
        ),
        "",
    ),
    "compare": Shown(
        (
            "parity compare official.trace port.trace --html reports",
            "parity compare official.trace port.trace --map names.yaml --json result.json",
        ),
        "",
    ),
    "report": Shown(("parity report result.json --html reports",), "parity explain RESULT.json --brief"),
    "diagnose": Shown(("parity diagnose official.safetensors:q port.safetensors:q --kind rope",), ""),
    "nonfinite": Shown(
        ("parity nonfinite package.module:make", "parity nonfinite echomimic:port"), "edit the line that is named"
    ),
    "quant": Shown(
        ("parity quant package.module:make --limit 0.01 --plot ranking.svg",), "leave out the layers that are named"
    ),
    "video": Shown(
        ("parity video official.mp4 port.mp4 --html reports", "parity video frames_a frames_b --psnr 30"),
        "parity list --brief",
    ),
    "gauntlet": Shown(("parity gauntlet synthetic --jobs 2",), "parity run SYSTEM --fault NAME --brief"),
    "mutants": Shown(("parity mutants --half held --n 40 --jobs 2",), "parity mutants --verbose"),
    "bench": Shown(("parity bench", "parity bench echomimic"), "parity doctor --brief"),
    "doctor": Shown(("parity doctor",), "parity list --brief"),
    "verify": Shown(
        ("parity golden verify fixtures/wan/golden/wan_dit.safetensors",), "parity golden verify FILE --verbose"
    ),
}


def epilog(name: str) -> str:
    """Return the end of a command's help: its examples, one a line."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in SHOWN[name].examples)])
