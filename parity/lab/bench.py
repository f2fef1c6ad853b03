"""`parity bench`: what capturing and comparing cost on this machine, as ratios against the plain run, interleaved, median of several."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from parity.align.traces import align
from parity.boundary.device import check_device
from parity.capture import Modules, Recorder
from parity.capture.environment import describe_environment
from parity.compare.floors import Floors
from parity.compare.measure import measure
from parity.errors import CaseError
from parity.files import write_text
from parity.trace import Manifest
from parity.trace.store import TraceWriter

_WIDTH, _DEPTH, _TOKENS = 384, 6, 1024


class _Block(nn.Module):
    """One pre-norm transformer block: enough leaf modules and bytes to be like the real thing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.qkv, self.out = nn.Linear(_WIDTH, 3 * _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.up, self.act, self.down = nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (12, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        down: Tensor = self.down(self.act(self.up(self.norm2(x))))
        return x + down


def bench_command(device: str, repeats: int, as_json: Path | None, out: Console) -> int:
    """Serve `parity bench`."""
    check_device(device)
    if repeats < 1:
        raise CaseError("--repeats must be at least 1")
    rows = run_bench(device, repeats)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("what", "seconds", "ratio to the plain run"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, row in rows.items():
        table.add_row(name, f"{row['seconds']:.4f}", f"{row['ratio']:.2f}")
    out.print(table)
    if as_json is not None:
        write_text(
            as_json,
            json.dumps({"device": device, "environment": describe_environment(), "rows": rows}, indent=1) + "\n",
        )
    return 0


def run_bench(device: str, repeats: int) -> dict[str, dict[str, float]]:
    """Time each way of running once a round, round after round; return the median seconds and the median ratio of each."""
    torch.manual_seed(0)
    model = nn.Sequential(*(_Block() for _ in range(_DEPTH))).to(device).eval()
    x = torch.randn(1, _TOKENS, _WIDTH, device=device)
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(model, x, Path(folder))
        times: dict[str, list[float]] = {name: [] for name in ways}
        for work in ways.values():  # warm up
            work()
        for _ in range(repeats):
            for name, work in ways.items():
                times[name].append(_timed(work, device))
    plain = times["plain"]
    return {
        name: {
            "seconds": statistics.median(t),
            "ratio": statistics.median(a / b for a, b in zip(t, plain, strict=True)),
        }
        for name, t in times.items()
    }


def _ways(model: nn.Module, x: Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    probe = Modules(model, inputs=False)

    def plain() -> object:
        with torch.no_grad():
            return model(x)

    def captured(keep: bool, digests: bool) -> Recorder:
        with torch.no_grad(), Recorder([probe], keep=keep, digests=digests) as recorder:
            model(x)
        return recorder

    def written() -> None:
        with (
            torch.no_grad(),
            TraceWriter(folder / "trace", Manifest()) as writer,
            Recorder([probe], keep=False, sink=writer),
        ):
            model(x)

    left, right = captured(True, False).trace, captured(True, False).trace
    return {
        "plain": plain,
        "capture, full tensors": lambda: captured(True, False),
        "capture, statistics + hash + sketch": lambda: captured(False, True),
        "capture, sketches to disk": written,
        "compare, full tensors": lambda: measure(align(left, right).pairs, left, right, Floors()),
    }


def _timed(work: Callable[[], object], device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - start
