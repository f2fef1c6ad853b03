"""`parity bench`: what capturing and comparing cost on this machine, as ratios against the plain run, interleaved, median of several."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
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
from parity.lab.bench_card import Size, work_of, wrong_on_card
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
    """Serve `parity bench`. On a card also check its kernel, and time a transformer of real size; status 1 when the kernel is wrong."""
    check_device(device)
    if repeats < 1:
        raise CaseError("--repeats must be at least 1")
    wrong: list[str] = []
    if device != "cpu":
        count, wrong = wrong_on_card(device)
        out.print(f"fingerprints on {device} against the processor's: {count} compared, {len(wrong)} differences")
        for text in wrong:
            out.print(f"  {text}", markup=False)
    bandwidth = measured_bandwidth(device)
    out.print(
        f"measured bandwidth: {bandwidth / 1e9:.1f} GB/s (one core)"
        if device == "cpu"
        else f"measured bandwidth: {bandwidth / 1e9:.0f} GB/s"
    )
    rows = run_bench(device, repeats, bandwidth)
    _print("six blocks, 1 024 tokens of width 384", rows, out)
    if device != "cpu":
        large = run_large(Size(), device, torch.bfloat16, repeats, bandwidth)
        _print("a transformer of 1.3 B at 32 760 tokens, bf16, all outputs of its leaf modules", large, out)
        rows |= {f"1.3b: {name}": row for name, row in large.items()}
    if as_json is not None:
        fields = {
            "device": device,
            "environment": describe_environment(),
            "bandwidth": bandwidth,
            "rows": rows,
            "wrong": wrong,
        }
        write_text(as_json, json.dumps(fields, indent=1) + "\n")
    return 1 if wrong else 0


def _print(title: str, rows: Mapping[str, Mapping[str, float]], out: Console) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False, title=title, title_justify="left")
    extra = [name for name in ("kept MB", "extra MB") if any(name in row for row in rows.values())]
    for name in ("what", "seconds", "ratio to the plain run", "limit", *extra):
        table.add_column(name, justify="left" if name == "what" else "right")
    for name, row in rows.items():
        cells = [f"{row[key]:.1f}" if key in row else "" for key in extra]
        table.add_row(name, f"{row['seconds']:.4f}", f"{row['ratio']:.2f}", f"{row['limit']:.3f}", *cells)
    out.print(table)


def measured_bandwidth(device: str) -> float:
    """Return the bytes a second that reading memory once takes here: a sum of 256 MB, on a card the copy of 4 GB (read and written)."""
    if device == "cpu":
        values = np.ones(1 << 26, dtype=np.float32)
        return float(max(values.nbytes / _timed(values.sum, device) for _ in range(5)))
    source = torch.empty(1 << 32, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return max(2 * source.numel() / _timed(lambda: target.copy_(source), device) for _ in range(5))


def run_bench(device: str, repeats: int, bandwidth: float) -> dict[str, dict[str, float]]:
    """Time each way of running once a round, round after round; return median seconds, ratio and limit of each."""
    torch.manual_seed(0)
    model = nn.Sequential(*(_Block() for _ in range(_DEPTH))).to(device).eval()
    x = torch.randn(1, _TOKENS, _WIDTH, device=device)
    with tempfile.TemporaryDirectory() as folder:
        ways, size = _ways(model, x, Path(folder))
        rows = interleaved(ways, repeats, device)
    read = {"capture, full tensors": 2, "capture, statistics + hash + sketch": 1, "capture, sketches to disk": 1}
    return with_limits(
        rows, {name: times * size for name, times in read.items()}, {"compare, full tensors": 2 * size}, bandwidth
    )


def run_large(
    size: Size, device: str, dtype: torch.dtype, repeats: int, bandwidth: float
) -> dict[str, dict[str, float]]:
    """Time capturing all leaf outputs of a transformer against the plain run, statistics hooks and clones."""
    work = work_of(size, device, dtype)
    rows = interleaved(work.ways, repeats, device)
    rows["capture, fingerprints"]["kept MB"] = work.kept() / 1e6
    rows["clones"]["kept MB"] = work.bytes_out / 1e6
    read = {"capture, fingerprints": 1, "statistics hooks": 1, "clones": 2}
    return with_limits(rows, {name: times * work.bytes_out for name, times in read.items()}, {}, bandwidth)


def interleaved(ways: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, dict[str, float]]:
    """Run each way once a round; return the median seconds and ratio to the plain run, and on a card the peak memory over the plain run's."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks = dict.fromkeys(ways, 0)
    for work in ways.values():  # warm up
        work()
    for _ in range(repeats):
        for name, work in ways.items():
            if device != "cpu":
                torch.cuda.reset_peak_memory_stats(device)
            times[name].append(_timed(work, device))
            peaks[name] = 0 if device == "cpu" else torch.cuda.max_memory_allocated(device)
    rows = {
        name: {
            "seconds": statistics.median(t),
            "ratio": statistics.median(a / b for a, b in zip(t, times["plain"], strict=True)),
        }
        for name, t in times.items()
    }
    if device != "cpu":
        for name, row in rows.items():
            row["extra MB"] = (peaks[name] - peaks["plain"]) / 1e6
    return rows


def with_limits(
    rows: dict[str, dict[str, float]], beside: Mapping[str, float], alone: Mapping[str, float], bandwidth: float
) -> dict[str, dict[str, float]]:
    """Add to each row the ratio that its bytes alone would cost at the measured bandwidth, beside the plain run or alone."""
    plain = rows["plain"]["seconds"]
    for name, row in rows.items():
        row["limit"] = (
            alone[name] / bandwidth / plain if name in alone else 1 + beside.get(name, 0.0) / bandwidth / plain
        )
    return rows


def _ways(model: nn.Module, x: Tensor, folder: Path) -> tuple[dict[str, Callable[[], object]], int]:
    """Return the ways of running, and how many bytes are recorded."""
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
    size = sum(t.numel() * t.element_size() for r in left if (t := left.tensor(r.key)) is not None)
    ways: dict[str, Callable[[], object]] = {
        "plain": plain,
        "capture, full tensors": lambda: captured(True, False),
        "capture, statistics + hash + sketch": lambda: captured(False, True),
        "capture, sketches to disk": written,
        "compare, full tensors": lambda: measure(align(left, right).pairs, left, right, Floors()),
    }
    return ways, size


def _timed(work: Callable[[], object], device: str) -> float:
    """Return the seconds of one call: of this process's own time on the processor, of the clock on a card."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start
