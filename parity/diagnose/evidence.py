"""What a hypothesis may look at: tensors, coordinates and structure. Never the name of a fault."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from parity.capture.operations import Op

UNTOUCHED = 1e-9  # of the largest difference
SIGNED = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)  # with the operations of all integers
FEWEST = 48  # numbers: an identity of fewer may be chance


@dataclass(frozen=True)
class Evidence:
    """One divergence, with its surroundings. All tensors are in the reference's layout where a name map gives one.

    reference, port: the two values of the first diverging record, same logical shape unless `same_shape` is False.
    precise: the reference's value in higher precision, if it was run.
    inputs: what went into the computation, as the reference saw it and in order: earlier records of the same module call and the inputs of
        that module, by site; both sides agree on them (within floors) unless they are in `port_inputs` with another value.
    port_inputs: the port's values of the same sites (in isolation these equal the reference's).
    ref_at / port_at: look up any other record, by site and coordinates, on either side; None when it was not recorded.
    sites: every site recorded on the reference side, in order of first appearance.
    parameters: parameters and buffers of the culprit module (and its children), by name: (reference, port), either may be None.
    settings: scalar attributes and arguments of the aligned module: name -> (reference, port), e.g. {"eps": (1e-6, 1e-5)}.
    ref_ops, port_ops: the operations that each side ran between the last agreeing record and this one (may be empty).
    earlier: the reference's own values of the same site at other coordinates (stale, frozen or shifted state): key -> tensor.
    weights: the reference's parameters of all modules, by full name.
    port_sites: every site recorded on the port's side.
    table: errors of all compared records in order: (site, coords, relative error, floor); says which frames/steps/branches are hit.
    detour: what the port recorded between the last record that is where the reference has it and this one: (site, kind, value).
    overflow: the first later site at which the deployed port is not finite and the reference is.
    """

    reference: Tensor
    port: Tensor
    site: str = ""
    coords: Mapping[str, int] = field(default_factory=dict)
    kind: str = "activation"
    module: str = ""
    floor: float = 0.0
    precise: Tensor | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    port_inputs: Mapping[str, Tensor] = field(default_factory=dict)
    ref_at: Callable[[str, Mapping[str, int]], Tensor | None] = lambda site, coords: None
    port_at: Callable[[str, Mapping[str, int]], Tensor | None] = lambda site, coords: None
    sites: Sequence[str] = ()
    parameters: Mapping[str, tuple[Tensor | None, Tensor | None]] = field(default_factory=dict)
    settings: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    ref_ops: Sequence[Op] = ()
    port_ops: Sequence[Op] = ()
    earlier: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    port_sites: Sequence[str] = ()
    table: Sequence[tuple[str, Mapping[str, int], float, float]] = ()
    detour: Sequence[tuple[str, str, Tensor]] = ()
    overflow: str = ""
    words: Mapping[str, int] = field(default_factory=dict)  # what the case calls axes of a conditioning mask
    said: list[str] = field(default_factory=list)  # what the result should tell of the search itself
    held: Sequence[Tensor] = ()  # weights, buffers and constants of the modules in the window, of both sides

    @property
    def same_shape(self) -> bool:
        return tuple(self.reference.shape) == tuple(self.port.shape)

    @cached_property
    def r(self) -> Tensor:
        """The reference's value in float64 (complex is viewed as real pairs)."""
        return as_float64(self.reference)

    @cached_property
    def p(self) -> Tensor:
        """The port's value in float64."""
        return as_float64(self.port)

    @cached_property
    def d(self) -> Tensor:
        """p - r. Only when both have the same shape."""
        return self.p - self.r

    @cached_property
    def error(self) -> float:
        """Relative L2 error ‖p − r‖ / ‖r‖ (‖p‖ when r is zero)."""
        return relative_error(self.p, self.r)

    def residual(self, explained: Tensor) -> float:
        """Share of the difference that remains when the port is taken to be `explained`: ‖p − explained‖ / ‖p − r‖."""
        whole = float(torch.linalg.vector_norm(self.d))
        return float(torch.linalg.vector_norm(self.p - explained)) / whole if whole > 0 else float("nan")


def narrowed(ev: Evidence) -> Evidence | None:
    """Return the values where they differ, if those are at most half of the indices of some axes; None where they are not, or too few.

    What was done to the end frame alone shows in its frame as an identity, and in the whole clip as nothing at all.
    """
    if any(not t.is_floating_point() and t.dtype not in SIGNED for t in (ev.reference, ev.port)):
        return None
    if not ev.same_shape or not bool(torch.isfinite(ev.d).all()) or not bool(ev.d.any()):
        return None
    reference, port, differs = ev.reference, ev.port, ev.d.abs() > UNTOUCHED * float(ev.d.abs().max())
    for axis, n in enumerate(reference.shape):
        rest = [i for i in range(differs.dim()) if i != axis]
        hit = (differs.any(dim=rest) if rest else differs).nonzero().flatten()
        if 2 * len(hit) <= n:
            reference, port, differs = (t.index_select(axis, hit.to(t.device)) for t in (reference, port, differs))
    if not FEWEST <= reference.numel() <= ev.reference.numel() // 2:
        return None
    return Evidence(reference, port, ev.site, ev.coords, ev.kind, ev.module, ev.floor, said=ev.said)


@dataclass(frozen=True)
class Explanation:
    """One hypothesis that fits: what it says, how well, how sure."""

    text: str
    residual: float
    confidence: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    class_id: str = ""  # only when one test can name several classes; else the hypothesis's own


@dataclass(frozen=True)
class Hypothesis:
    """A named test on the evidence. `test` yields explanations (usually none or one) and must be cheap: milliseconds on a million elements."""

    name: str
    class_id: str
    test: Callable[[Evidence], Iterable[Explanation]]
    simplicity: float = 0.5  # in [0, 1]; breaks ties between equally good residuals (an identity is simpler than a fit)


def as_float64(value: Tensor) -> Tensor:
    """Return `value` detached, on the CPU and in float64; complex values as a trailing axis of 2."""
    value = value.detach().to("cpu")
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.to(torch.float64)


def relative_error(p: Tensor, r: Tensor) -> float:
    """‖p − r‖₂ / ‖r‖₂ in float64; relative to ‖p‖ when r is all zero, 0 when both are."""
    scale = float(torch.linalg.vector_norm(r)) or float(torch.linalg.vector_norm(p))
    return float(torch.linalg.vector_norm(p - r)) / scale if scale > 0 else 0.0
