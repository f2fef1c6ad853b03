"""Goldens: build an implementation from a file's own config, load its weights strictly, run the entry, compare everything that the file holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from parity.boundary.json import parse_json
from parity.case import Golden, GoldenEntry, GoldenRun, Relation, System, Tolerance
from parity.case.discovery import get_system
from parity.compare.measure import relative_l2
from parity.errors import ParityError, SideError, TraceError
from parity.lab.golden_used import unread_fields, unused, watched
from parity.trace.store import open_safetensors


@dataclass(frozen=True)
class GoldenCheck:
    """One value of a golden: how far it is from what was computed."""

    name: str
    absolute: float
    relative: float
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class GoldenReport:
    """The outcome of one file."""

    path: Path
    system: str
    entry: str
    side: str
    checks: tuple[GoldenCheck, ...]
    omitted: Mapping[str, str]  # activations with a stated reason
    missing: tuple[str, ...]  # values of the file that were not produced
    relations: tuple[Relation, ...] = ()  # of the two sides of a pair, as the file states them and as computed here
    unread: str = ""  # fields of the configuration that the entry left alone

    @property
    def ok(self) -> bool:
        checked = not self.missing and bool(self.checks) and all(check.ok for check in self.checks)
        return checked and all(relation.ok for relation in self.relations)

    @property
    def worst(self) -> GoldenCheck | None:
        """The failing value with the largest error; without failures, the largest relative error."""
        pool = [c for c in self.checks if not c.ok] or list(self.checks)
        return max(pool, key=lambda c: c.relative if c.relative == c.relative else float("inf"), default=None)


def read_golden(path: Path) -> Golden:
    """Read a golden file. Raises TraceError with one line when it is unreadable or its metadata is wrong."""
    path = Path(path)
    handle = open_safetensors(path)
    metadata = dict(handle.metadata() or {})
    for field in ("system", "entry", "config"):
        if field not in metadata:
            raise TraceError(f"{path} is no golden: its metadata has no '{field}'")
    config = parse_json(metadata["config"], f"{path}: its config")
    if not isinstance(config, dict):
        raise TraceError(f"{path}: its config is no JSON object")
    groups: dict[str, dict[str, Tensor]] = {"weights": {}, "inputs": {}, "outputs": {}, "acts": {}}
    for key in handle.keys():  # noqa: SIM118 (safe_open is no mapping)
        group, _, name = key.partition(".")
        if group not in groups or not name:
            raise TraceError(f"{path}: unknown key '{key}' (expected weights., inputs., outputs. or acts.)")
        groups[group][name] = handle.get_tensor(key)
    seed = metadata.get("seed", "")
    return Golden(
        config=config, seed=int(seed) if re.fullmatch(r"-?[0-9]{1,18}", seed) else None, metadata=metadata, **groups
    )


def verify_golden(path: Path, systems: Mapping[str, System]) -> GoldenReport:
    """Reproduce one golden and compare all its outputs and activations.

    Raises TraceError for a file that cannot be used and SideError when the implementation fails to build, load or run.
    """
    golden = watched(read_golden(path))
    system = get_system(dict(systems), golden.metadata["system"])
    side = golden.metadata.get("side", "reference")
    entry = _entry(system, golden.metadata["entry"], side, path)
    try:
        with torch.no_grad():
            run = entry.run(golden)
    except ParityError:
        raise
    except Exception as error:
        if isinstance(error, (ValueError, KeyError, TypeError)) or "loading state_dict" in str(error):
            raise TraceError(f"{path}: config, weights or inputs do not fit: {_one_line(error)}") from error
        raise SideError(f"{path}: running '{entry.name}' failed: {type(error).__name__}: {_one_line(error)}") from error
    if left := unused(golden, entry.describes):
        raise TraceError(f"{path}: the entry '{entry.name}' does not use {left}: it would not be what was recorded")
    return replace(_compare(path, golden, entry, run, side), unread=unread_fields(golden, entry.describes))


def _entry(system: System, name: str, side: str, path: Path) -> GoldenEntry:
    for entry in system.goldens:
        if entry.name == name and side in entry.sides:
            return entry
    known = ", ".join(f"{e.name} ({'/'.join(e.sides)})" for e in system.goldens) or "none"
    raise TraceError(f"{path}: system {system.name} has no golden entry '{name}' for side '{side}'; there are: {known}")


def _compare(path: Path, golden: Golden, entry: GoldenEntry, run: GoldenRun, side: str) -> GoldenReport:
    checks, missing, omitted = [], [], {}
    for group, expected, got in (("outputs", golden.outputs, run.outputs), ("acts", golden.acts, run.acts)):
        for name, value in expected.items():
            full = f"{group}.{name}"
            if name in got:
                checks.append(_check(full, value, got[name], entry.tolerance(golden, full)))
                continue
            reason = next((why for pattern, why in entry.omitted.items() if re.fullmatch(pattern, full)), None)
            if reason is None:
                missing.append(full)
            else:
                omitted[full] = reason
    return GoldenReport(
        path, golden.metadata["system"], entry.name, side, tuple(checks), omitted, tuple(missing), run.relations
    )


def _check(name: str, expected: Tensor, got: Tensor, tolerance: Tolerance) -> GoldenCheck:
    if expected.shape != got.shape:
        detail = f"shape {list(expected.shape)} in the file, {list(got.shape)} computed"
        return GoldenCheck(name, float("inf"), float("inf"), False, detail)
    exact = tolerance.exact or not (expected.is_floating_point() or expected.is_complex())
    if _numbers(expected) != _numbers(got):
        return GoldenCheck(
            name, float("inf"), float("inf"), False, f"{expected.dtype} in the file, {got.dtype} computed"
        )
    if exact:
        same = _same(expected, got)
        if tolerance.levels and not expected.is_floating_point():
            same |= (expected.long() - got.long()).abs() <= tolerance.levels
        share = float((~same).double().mean()) if expected.numel() else 0.0
        return GoldenCheck(
            name,
            share,
            share,
            share == 0,
            "" if share == 0 else f"{share:.2%} of the elements differ, {_asked(tolerance)}",
        )
    wide = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in (expected, got)]
    left, right = (t.detach().to(torch.float64) for t in wide)
    finite = torch.isfinite(left) & torch.isfinite(right)
    if not bool(_same(left, right)[~finite].all()):
        return GoldenCheck(name, float("inf"), float("inf"), False, "other non-finite values, or at other places")
    left, right = torch.where(finite, left, 0.0), torch.where(finite, right, 0.0)
    absolute = float((right - left).abs().max()) if left.numel() else 0.0
    relative = relative_l2(right, left) if left.numel() else 0.0
    return GoldenCheck(name, absolute, relative, absolute <= tolerance.absolute or relative <= tolerance.relative)


def _numbers(value: Tensor) -> str:
    """Return what kind of numbers a tensor holds: float8 is no picture of a float32, though both are floats."""
    if value.is_complex():
        return "complex"
    return ("float8" if value.element_size() == 1 else "float") if value.is_floating_point() else "whole"


def _asked(tolerance: Tolerance) -> str:
    return f"expected within {tolerance.levels}" if tolerance.levels else "expected exactly equal"


def _same(left: Tensor, right: Tensor) -> Tensor:
    return (left == right) | (left != left) & (right != right)


def _one_line(error: Exception) -> str:
    """Return the whole message on one line: a strict load names its keys below the first one."""
    return " ".join(str(error).split())[:300] or "no message"
