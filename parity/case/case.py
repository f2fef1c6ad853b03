"""What is run: a case binds both sides, inputs, probes, names, faults and variations. Written in `fixtures/<system>/`, never here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from parity.capture.probes import Probe
from parity.case.invariants import Invariant
from parity.trace import Trace
from parity.trace.names import NameMap


@dataclass(frozen=True)
class Setting:
    """What one run is asked for: the deployed dtype, the device and the seed."""

    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Held:
    """A module of one side that refuses float64: its site, the dtype in which its code computes in such a run, and what it said."""

    side: str
    site: str
    dtype: torch.dtype
    reason: str


@dataclass(frozen=True)
class Side:
    """One implementation.

    build(setting) returns the model (any object that holds the modules), weights loaded, in the deployed dtype.
    run(model, inputs) runs it; `inputs` is what the case made; it must not change them.
    probes(model) says what is seen of it.
    modules(model) names its root modules (for upcasting, weights and settings): site prefix -> module.
    upcast(model) returns a copy in float64 that keeps every rounded constant; the default deep-copies the model and casts its modules.
    inputs(setting) makes this side's own inputs, where the two sides take different ones.
    held: modules that refuse float64, by site (found out by the harness).
    recorded: stands for the runs of a side that is not there (parity/run/recorded.py); then nothing else of it is used.
    """

    build: Callable[[Setting], Any]
    run: Callable[[Any, Any], Any]
    probes: Callable[[Any], Sequence[Probe]]
    modules: Callable[[Any], Mapping[str, torch.nn.Module]]
    upcast: Callable[[Any], Any] | None = None
    inputs: Callable[[Setting], Any] | None = None
    held: Mapping[str, Held] = field(default_factory=dict)
    recorded: Any = None


@dataclass(frozen=True)
class Expectation:
    """What the harness should find for a fault. Only the scorer of the gauntlet reads it.

    site: regular expression for the first diverging site (full match); coords: the coordinates that must agree; modules: regular
    expressions of which one must match the culprit module; classes: bug class ids that are a right answer (the first is the best one).
    reason: why it differs from the specification, where it does. lines: where the code of the defect is, "file:first-last" for each
        place, separated by spaces; empty for a defect in weights or settings.
    """

    site: str
    coords: Mapping[str, int] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    reason: str = ""
    lines: str = ""


@dataclass(frozen=True)
class Fault:
    """A real bug, re-created as a switch of the port. `inject` changes a freshly built port; a context manager is entered around its run."""

    name: str
    text: str
    inject: Callable[[Any], AbstractContextManager[Any] | None]
    expect: Expectation
    case: str | None = None  # the case that shows it; None: the system's first case
    spec_id: str = ""
    dtype: torch.dtype | None = None  # the deployed dtype that shows it, when the default one does not


@dataclass(frozen=True)
class Variation:
    """A change that a right port may make; the verdict must stay `match`.

    names, allow_unaligned: what the change renames or leaves without a counterpart; they are tried before those of the case. noise: what it is known to
    move values by (quantised weights): regular expression for sites -> relative L2 error that is no divergence there.
    """

    name: str
    text: str
    inject: Callable[[Any], AbstractContextManager[Any] | None] | None = None
    case: str | None = None
    dtype: torch.dtype | None = None
    side: str = "port"  # "port", or "both" for things like another seed or dtype
    names: NameMap = field(default_factory=NameMap)
    allow_unaligned: Mapping[str, str] = field(default_factory=dict)
    noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rounded:
    """What a half-precision deployment may have rounded on one side alone.

    tables: a side holds floating buffers in half precision. weights: reference modules whose weights the port does not hold as they are (folded, merged).
    """

    tables: bool = False
    weights: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Case:
    """One runnable comparison.

    reseat: sites at which the port continues with the reference's value once its own is recorded (the model's input at each forward), so that
        every step is judged from the same state; regular expressions.
    allow_unaligned: sites that have no counterpart, with the reason (regular expression -> reason), on either side.
    relax: rules of "the same result" (docs/floors.md) that do not hold here, with the reason (rule -> reason).
    allow_dtypes: sites that the port may keep in a coarser dtype than the reference does in a half-precision run, with the reason.
    axes: the coordinates' axes in nesting order.
    axis_words: what the axes of a mask are called, in the order in which they are spoken (regular expression for sites -> name -> axis): a difference
        there is said in words.
    """

    system: str
    name: str
    text: str
    reference: Side
    port: Side
    inputs: Callable[[Setting], Any]
    names: NameMap = field(default_factory=NameMap)
    reseat: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    allow_unaligned: Mapping[str, str] = field(default_factory=dict)
    allow_dtypes: Mapping[str, str] = field(default_factory=dict)
    relax: Mapping[str, str] = field(default_factory=dict)
    axis_words: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    frames: Callable[[Trace], Any] | None = None  # frames [F,H,W,3] uint8 from a trace, for pictures
    rounded: Rounded | None = None
    quirks: tuple[str, ...] = ()  # accepted differences, with reason; printed as notes
    invariants: tuple[Invariant, ...] = ()  # what must hold of the port's run, with or without a reference
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    noise: Mapping[str, float] = field(default_factory=dict)  # declared: as a Variation's

    @property
    def label(self) -> str:
        return f"{self.system}/{self.name}"

    def under(self, variation: Variation | None) -> Case:
        """Return the case with what a variation says of names and of sites without a counterpart."""
        if variation is None or not (variation.names.rules or variation.allow_unaligned or variation.noise):
            return self
        return replace(
            self,
            names=NameMap((*variation.names.rules, *self.names.rules)),
            allow_unaligned={**variation.allow_unaligned, **self.allow_unaligned},
            noise={**variation.noise, **self.noise},
        )


@dataclass(frozen=True)
class Relation:
    """What a golden of both sides states of the two at one stage, and what was found ("equal" means equal bits)."""

    stage: str
    stated: str
    found: str
    ok: bool


@dataclass(frozen=True)
class GoldenRun:
    """What running a golden's entry gave.

    outputs: by the golden's output names. acts: by the golden's activation names, as many as can be produced. relations: of the two sides
    of a pair, as computed here.
    """

    outputs: Mapping[str, torch.Tensor]
    acts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    relations: tuple[Relation, ...] = ()


@dataclass(frozen=True)
class Golden:
    """A golden file as an entry sees it: tensors by name without their group prefix, and the metadata."""

    config: Mapping[str, Any]
    seed: int | None
    metadata: Mapping[str, str]
    weights: Mapping[str, torch.Tensor]
    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]  # what is expected; entries read shapes and names from it, never values
    acts: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Tolerance:
    """A value agrees when max|p − r| <= absolute or ‖p − r‖/‖r‖ <= relative; `exact` asks for equal bits.

    Integers always are exact, or within `levels` (bytes of a picture behind a truncation).
    """

    absolute: float = 1e-5
    relative: float = 1e-5
    exact: bool = False
    levels: int = 0


@dataclass(frozen=True)
class GoldenEntry:
    """How goldens of one entry are reproduced.

    run(golden) builds from the golden's config, loads its weights strictly, runs and returns outputs and activations.
    omitted: activations that the implementation cannot produce (regular expression -> reason).
    tolerance(golden, name) gives the tolerance of an output or activation; the default is 1e-5 absolute or relative.
    side: which sides this entry serves ("reference", "port", ...).
    describes: fields of the config that say what the tensors show and decide nothing; any other field that run does not read is refused.
    """

    name: str
    run: Callable[[Golden], GoldenRun]
    omitted: Mapping[str, str] = field(default_factory=dict)
    tolerance: Callable[[Golden, str], Tolerance] = lambda golden, name: Tolerance()
    sides: tuple[str, ...] = ("reference",)
    describes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """The same work on both sides, to be timed. Each builds what it needs and returns what is to be run."""

    name: str
    text: str
    reference: Callable[[], Callable[[], Any]]
    port: Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class System:
    """One system: its cases, faults, variations and golden entries. A `case.py` in a cases folder defines `SYSTEM`."""

    name: str
    text: str
    cases: tuple[Case, ...]
    faults: tuple[Fault, ...] = ()
    variations: tuple[Variation, ...] = ()
    goldens: tuple[GoldenEntry, ...] = ()
    benches: tuple[Bench, ...] = ()  # for `parity bench SYSTEM`
    # Cases made from real checkpoints: path -> cases (for `parity run SYSTEM --weights PATH`).
    from_weights: Callable[[Any], Sequence[Case]] | None = None

    def case(self, name: str | None) -> Case:
        """Return a case by name (None: the first)."""
        if name is None:
            return self.cases[0]
        for case in self.cases:
            if case.name == name:
                return case
        from parity.errors import CaseError

        raise CaseError(f"system {self.name} has no case '{name}'; there are {', '.join(c.name for c in self.cases)}")
