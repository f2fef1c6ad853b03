"""What the fuzz tests share: the command run in this process under limits, what every outcome must be, and generators that mutate valid inputs."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from parity import cli
from parity.boundary.limits import LINE

BUDGET = int(os.environ.get("PARITY_FUZZ", "600"))  # inputs in all
SEED = int(os.environ.setdefault("PARITY_FUZZ_SEED", str(int.from_bytes(os.urandom(4), "big"))))
CPU_SECONDS = 10
BYTES = 1_500_000_000
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]")


@dataclass(frozen=True)
class Outcome:
    """What one call of the command gave."""

    argv: tuple[str, ...]
    status: int
    out: str
    err: str


class Hang(BaseException):
    """A call took longer than it may."""


def fuzzed(share: float, **strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test on `share` of the budget; random on every run, with the seed in the message of a failure."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        chosen = settings(
            max_examples=max(5, round(BUDGET * share)),
            derandomize=False,
            deadline=None,
            database=None,
            phases=[Phase.generate] + [Phase.shrink] * bool(os.environ.get("PARITY_FUZZ_SHRINK")),
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        return chosen(seed(SEED)(given(**strategies)(test)))

    return decorate


def call(*given: object, allowed: set[int] | None = None) -> Outcome:
    """Run `parity` with these arguments, and check what must hold of every call: status, one line, CPU time, memory, no traceback."""
    argv = tuple(str(a) for a in given)
    out, err = io.StringIO(), io.StringIO()
    status: Any = None
    before = (sys.argv, list(sys.path))
    sys.argv = ["parity", *argv]
    resting = _high_water_reset()
    try:
        with _limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _to_stderr
            cli.main()
    except SystemExit as stop:
        status = stop.code
    except Hang:
        fail(argv, f"takes more than {CPU_SECONDS} s of CPU time", out, err)
    except BaseException as error:
        fail(argv, f"raises {type(error).__name__}: {error}", out, err)
    finally:
        sys.argv, sys.path[:] = before[0], before[1]
    used = _high_water() - resting
    if used > BYTES:
        fail(argv, f"takes {used / 1e9:.1f} GB", out, err)
    outcome = Outcome(argv, status, out.getvalue(), err.getvalue())
    problem = _problem(outcome, {0, 1, 2} if allowed is None else allowed)
    if problem:
        fail(argv, problem, out, err)
    return outcome


def fail(argv: tuple[str, ...], problem: str, out: Any, err: Any) -> None:
    """Fail with all that is needed to see it again."""
    shown = " ".join(a if len(a) < 200 else f"{a[:200]}…" for a in argv)
    pytest.fail(
        f"parity {shown!r} {problem}\nPARITY_FUZZ_SEED={SEED} PARITY_FUZZ={BUDGET}\n--- stdout\n{out.getvalue()[-1500:]}\n--- stderr\n{err.getvalue()[-3000:]}",
        pytrace=False,
    )


def _problem(outcome: Outcome, allowed: set[int]) -> str:
    if outcome.status not in allowed:
        return f"has status {outcome.status}, wanted {sorted(allowed)}"
    if "Traceback" in outcome.err or "parity: unexpected " in outcome.err:
        return "shows an error of its own"
    if _ACTING.search(outcome.out + outcome.err):
        return "prints control characters"
    golden = outcome.argv[:2] == ("golden", "verify")  # one line a file, on standard output
    told = outcome.out if golden and not outcome.err else outcome.err
    if outcome.status in (2, 3):
        most = len(outcome.argv) - 2 if golden and not outcome.err else 1
        if not 1 <= told.count("\n") <= most or not told.strip():
            return f"has status {outcome.status} and {told.count(chr(10))} lines"
        if any(len(line) > LINE for line in told.splitlines()):
            return f"says {len(told)} characters"
    elif outcome.err:
        return "prints to standard error"
    return ""


def _to_stderr(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    sys.stderr.write(f"{filename}:{lineno}: {category.__name__}: {message}\n")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Interrupt after CPU_SECONDS of this process's own time: a busy machine is no hang. Refuse memory far beyond the limit."""

    def stop(*_: object) -> None:
        raise Hang

    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    space = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError, ValueError):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * BYTES, space[1]))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)
        resource.setrlimit(resource.RLIMIT_AS, space)


def _high_water_reset() -> int:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _high_water()


def _high_water() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found.group(1)) * 1024 if found else 0


# -- generators -------------------------------------------------------------------------------------------------------

HOSTILE = (
    "", " ", ".", "..", "/", "../../x", "a\nb", "\x1b[31mred", "\x07", "\u202egnp", "<img src=x onerror=alert(1)>", "'\"&<>", "{{7*7}}", "%s%n", "$(id)",
    "a@call=1", "@", "a@b", "a@b=c", "a@call=99999999999999999999", "nan", "None", "é漢😀", "x" * 300, "\udcff", "\ufeff", "-", "--help", "~", "*", "index", "con",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 10**30, 0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
)  # fmt: skip


def odd_texts() -> st.SearchStrategy[str]:
    return st.sampled_from(HOSTILE) | st.text(max_size=12) | st.sampled_from(["y" * 5_000, "z" * 150_000, "a." * 900])


def odd_values() -> st.SearchStrategy[Any]:
    """Values of every JSON type, extreme ones, and nests that are too deep."""
    return st.one_of(
        st.sampled_from(NUMBERS),
        odd_texts(),
        st.booleans(),
        st.none(),
        st.lists(st.sampled_from([0, "a", None, 1.5]), max_size=4),
        st.dictionaries(odd_texts(), st.sampled_from([0, "a", None, [1]]), max_size=3),
        st.sampled_from([20, 45, 3000]).map(_deep),
    )


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@st.composite
def mutated(draw: st.DrawFn, valid: Any, most: int = 3) -> Any:
    """A valid tree of JSON values with one to `most` of its places replaced, removed, renamed, repeated or swapped."""
    tree = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, most))):
        places = list(_places(tree))
        if not places:
            return draw(odd_values())
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename", "repeat", "swap", "whole"]))
        if how == "replace":
            holder[key] = draw(odd_values())
        elif how == "remove":
            del holder[key]
        elif how == "rename" and isinstance(holder, dict):
            holder[draw(odd_texts())] = holder.pop(key)
        elif how == "repeat" and isinstance(holder, list):
            holder.extend([holder[key]] * draw(st.sampled_from([1, 2, 200])))
        elif how == "swap":
            other, there = places[draw(st.integers(0, len(places) - 1))]
            with contextlib.suppress(
                KeyError, IndexError, RecursionError
            ):  # what is nested too deep to be copied stays
                holder[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(holder[key])
        elif how == "whole" and draw(st.integers(0, 9)) == 0:
            return draw(odd_values())
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    level = [tree]
    while level:
        below = []
        for item in level:
            entries = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
            for key, value in entries:
                yield item, key
                below.append(value)
        level = below[:500]


def json_text(value: Any) -> str:
    """JSON with whatever a writer may put there: NaN, halves of character pairs, and nests deeper than `json` itself writes."""
    try:
        return json.dumps(value)
    except RecursionError:
        return "[" * 30_000


@st.composite
def broken(draw: st.DrawFn, data: bytes, at_least: int = 1) -> bytes:
    """Bytes of a file with some of them changed, cut, repeated or put in."""
    found = bytearray(data)
    for _ in range(draw(st.integers(at_least, 4))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        how = draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "repeat", "zero"]))
        if not found:
            break
        if how == "flip":
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set":
            found[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif how == "cut":
            del found[at : at + draw(st.sampled_from([1, 8, 10_000]))]
        elif how == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == "repeat":
            found[at:at] = found[at : at + 64]
        else:
            found[at : at + 8] = bytes(len(found[at : at + 8]))
    return bytes(found)


DTYPES = tuple(
    getattr(torch, name)
    for name in (
        "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool",
        "complex64",
    )
)  # fmt: skip
SHAPES = ((), (0,), (1,), (3,), (2, 3), (3, 0), (4, 8), (1, 2, 3), (2, 3, 4, 5), (7, 1))
SPECIAL = (float("nan"), float("inf"), float("-inf"), 0.0, 1e38, 6e4, 1e-40)


@st.composite
def tensors(draw: st.DrawFn, special: bool = True) -> torch.Tensor:
    """A small tensor of any dtype, with what is not finite in some."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(SHAPES))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.normal(size=shape)
    if special and values.size and draw(st.integers(0, 3)) == 0:
        values.flat[draw(st.integers(0, values.size - 1))] = draw(st.sampled_from(SPECIAL))
    if dtype.is_complex:
        return torch.complex(
            torch.tensor(values, dtype=torch.float32), torch.tensor(generator.normal(size=shape)).float()
        )
    if not dtype.is_floating_point:
        return torch.tensor(np.clip(np.nan_to_num(values * 9, nan=0), -99, 99).astype(np.int64) % 2**7).to(dtype)
    return torch.tensor(values, dtype=torch.float64).to(torch.float32).to(dtype)


@st.composite
def departed(draw: st.DrawFn, value: torch.Tensor) -> torch.Tensor:
    """The tensor changed by so much that no right port may: never a match."""
    if not value.numel():
        other = (
            torch.int64
            if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
            else torch.float16
        )
        return draw(st.sampled_from([torch.ones(2), value.to(other)]))
    how = draw(st.sampled_from(["scale", "one", "sign", "shape", "class", "nan", "empty"]))
    if how == "shape":
        return torch.cat([value.reshape(-1).view(torch.uint8)] * 2)
    if how == "empty":
        return value.reshape(-1)[:0]
    if how == "class":
        kind = torch.int32 if value.is_floating_point() or value.is_complex() else torch.float32
        return torch.zeros(value.shape, dtype=kind) + 3
    if value.dtype == torch.bool:
        return ~value
    if not (value.is_floating_point() or value.is_complex()):
        return (value.long() + 1).to(value.dtype)
    wide = torch.nan_to_num(value.to(torch.complex128 if value.is_complex() else torch.float64), 0.25, 0.5, -0.5)
    changed = {"scale": wide * 1.5 + 0.5, "one": wide.clone(), "sign": -wide - 0.5, "nan": wide.clone()}[how]
    if how == "one":
        changed.view(-1)[0] += 4 * wide.abs().max() + 1
    if how == "nan":
        changed.view(-1)[-1] = (
            float("nan")
            if not bool(
                torch.isnan(value.reshape(-1)[-1].float() if not value.is_complex() else value.reshape(-1)[-1].abs())
            )
            else 1.0
        )
    narrow = torch.clamp(changed, -400, 400) if not changed.is_complex() else changed
    return narrow.to(value.dtype)
