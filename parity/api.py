"""One call on any two models, two traces or two tensors: the public functions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parity.align.gradients import with_parameter_rules, without_gradients
from parity.align.inference import Inferred, infer_names
from parity.align.listed import aligned
from parity.align.trials import SAME
from parity.boundary.arguments import function, limit, number, share, text
from parity.boundary.arguments import names as list_of
from parity.boundary.arrays import read_npy
from parity.boundary.text import one_line, reason
from parity.capture.probes import Probe
from parity.case import Case, Rounded, Setting
from parity.case.index import did_you_mean
from parity.compare.floors import FIXED, Floors, is_low_precision
from parity.compare.foreign import floors_in
from parity.compare.plain import idle_rules, refuse_unfit_records
from parity.compare.returned import known_rules
from parity.diagnose import diagnose as _diagnose
from parity.diagnose.evidence import Evidence
from parity.errors import CaseError, ParityFailure, SideError, TraceError
from parity.locate.nonfinite import find_nonfinite
from parity.result import Coverage, Divergence, Result
from parity.run.backward import with_backward
from parity.run.double import run_double
from parity.run.given import Arguments, Given, as_model, dtype_of, module_of, pair_of_inputs, side_of
from parity.run.side import grafting, run_side
from parity.trace import KINDS, Trace
from parity.trace.names import NameMap, load_names, parse_names

__all__ = ["assert_parity", "check", "compare", "diagnose_tensors", "find_nonfinite", "load_tensor"]

Names = NameMap | Sequence[Mapping[str, Any]] | str | Path | None


def check(
    reference: Given,
    port: Given,
    inputs: Any,
    *,
    names: Names = None,
    floor: str | float = "auto",
    isolate: bool = True,
    probes: Callable[[Any], Sequence[Probe]] | None = None,
    port_probes: Callable[[Any], Sequence[Probe]] | None = None,
    port_inputs: Any = None,
    allow_unaligned: float | None = None,
    relax: Sequence[str] = (),
    label: str = "check",
    zoom: str = "",
    backward: bool = False,
) -> Result:
    """Run two implementations on the same inputs and tell whether the port computes what the reference computes.

    reference, port: modules, plain functions, or pairs (function, module) where `function(module, *inputs)` runs it.
    inputs: a tuple or dict of arguments. port_inputs: the port's, where it takes others (a pair (reference's, port's) as `inputs` is understood
        too, when it cannot mean two arguments).
    names: a name map (rules, or a YAML file), whole or in part: its rules win, `{port: REGEX, apart: true}` forbids a pair, and what it leaves open is
        aligned by names, weights, order, shapes and values. `Result.alignment` lists every pair with its evidence.
    floor: "auto" measures what a right port may be off by; a number is a fixed relative tolerance.
    isolate: also compare every site alone in float64, which finds faults below the noise and all independent ones at once.
    allow_unaligned: share of the reference's sites that may stay without a partner; half of them when not given, and any where the results of both
        sides agree in float64 (then the whole is known to be right, however little of its inside can be compared).
    relax: rules of "the same result" (docs/floors.md) that do not hold here: "names", "extra", "missing", "dtype", "empty", "left".
    zoom: a site ("first" for the first divergence): list the operations of both sides that lead to it.
    backward: also go backward, from the loss that is returned or from the same random cotangents on both sides, and compare the gradients of every
        module's outputs, inputs and parameters; a function that takes training steps itself is compared in what its optimisers get and leave.

    >>> parity.check(official, mine, (x, t)).verdict
    'match'
    """
    if (
        isinstance(floor, float) and floor != floor
    ):  # computed from nothing: there is no judging by it, and no reason to stop a suite
        note = "floor: nan is no tolerance: give a finite number, 0 or larger"
        return Result("incomparable", None, None, (), Coverage(0, 0, 0), notes=(note,), case=label, system="check")
    text("label", label), text("zoom", zoom)
    for name, given in (("probes", probes), ("port_probes", port_probes)):
        function(name, given, "a function that takes the model and returns a list of probes")
    fixed = None if floor == "auto" else limit("floor", number("floor", floor))
    if allow_unaligned is not None:
        share("allow_unaligned", allow_unaligned)
    reference, port = as_model("reference", reference), as_model("port", port)
    left, right = pair_of_inputs(reference, port, inputs, port_inputs)
    dtypes = dtype_of(reference), dtype_of(port)
    excused = dict.fromkeys(list_of("relax", relax), "as asked for")
    if dtypes[0] != dtypes[1]:
        excused |= {"dtype": f"the weights are {dtypes[0]} (reference), {dtypes[1]} (port)".replace("torch.", "")}
    ours = Arguments(left)
    case = Case(
        system="check",
        name=label,
        text="two modules",
        reference=side_of(reference, ours, probes),
        port=side_of(port, ours if right is left else Arguments(right), port_probes or probes),
        inputs=lambda setting: None,
        names=names_of(names),
        allow_dtypes={".*": "two models given as they are: their dtypes are their own"},
        relax=known_rules(excused),
    )
    setting = Setting(dtype=dtypes[0])
    if backward:
        case = replace(case, reference=with_backward(case.reference), port=with_backward(case.port))
    pairs = (lambda found: with_parameter_rules(found, module_of(reference), module_of(port))) if backward else None
    result = judge_unnamed(
        case, setting, allow_unaligned, pairs, label, isolate=isolate, free=False, fixed=fixed, zoom=zoom
    )
    command = (
        f"parity.assert_parity(..., zoom={result.first.site if result.first else 'first'!r}) lists the operations there"
    )
    return replace(result, command=command)


def judge_unnamed(
    case: Case,
    setting: Setting,
    allow_unaligned: float | None,
    pairs: Callable[[NameMap], NameMap] | None = None,
    label: str = "check",
    **options: Any,
) -> Result:
    """Align two sides that nobody wrote a (whole) map for, and judge the port. pairs: adds rules to what was inferred. options: those of `run_case`."""
    from parity.pipeline import run_case

    given = case.names
    case, inferred, precise = _with_inferred_names(case, setting)
    if allow_unaligned is None and inferred.whole <= _agreeing(setting.dtype, inferred):
        allow_unaligned = 1.0
    if pairs is not None:
        case = replace(case, names=pairs(case.names))
    result, runs = run_case(
        case, setting, allowance=0.5 if allow_unaligned is None else allow_unaligned, precise=precise, **options
    )
    listed = aligned(result.rows, inferred.wrong)
    notes = (*inferred.notes, *idle_rules(given, runs.reference, runs.port), *result.notes)
    return replace(result, case=label, notes=notes, alignment=listed)


def assert_parity(reference: Given, port: Given, inputs: Any, **options: Any) -> Result:
    """Do the same as `check`, and raise ParityFailure with a message to act on when the verdict is not `match`."""
    __tracebackhide__ = True  # pytest shows the caller's line
    result = check(reference, port, inputs, **options)
    if result.verdict != "match":
        from parity.report.text import failure_message

        raise ParityFailure(failure_message(result))
    return result


def compare(
    reference: Trace | str | Path,
    port: Trace | str | Path,
    *,
    names: Names = None,
    rtol: float | None = None,
    atol: float = 0.0,
    allow_unaligned: float | None = None,
    by_value: bool = True,
    relax: Sequence[str] = (),
    label: str = "compare",
) -> Result:
    """Compare two traces that were made anywhere, given as they are or by their paths.

    Floors that a trace carries count. Without them the precision is read off the values and the first divergence is the onset: a jump over the noise before it.
    rtol, atol: tolerances instead. names: a name map (rules, or a YAML file); it is meant as it says. Without one every pair is a hypothesis that later values may veto.
    allow_unaligned: share of the reference's sites that may stay without a partner; half of them when not given, and any where the results agree.

    Raises TraceError when a trace holds nothing.
    """
    from parity.pipeline import Terms, compare_traces

    if rtol is not None:
        limit("rtol", rtol)
    limit("atol", atol)
    if allow_unaligned is not None:
        share("allow_unaligned", allow_unaligned)
    reference, port = _trace("reference", reference), _trace("port", port)
    excused = known_rules(dict.fromkeys(list_of("relax", relax), "as asked for"))
    terms = Terms(None if names is None else names_of(names), relax=excused, by_value=by_value)
    floors = Floors(fixed=rtol, absolute=atol) if rtol is not None or atol else floors_in(reference, port)
    return compare_traces(reference, port, terms, floors, allow_unaligned, label)


def diagnose_tensors(reference: Tensor, port: Tensor, kind: str = "activation") -> Result:
    """Compare two tensors and test every hypothesis on them. kind: what they are, a name of `parity.trace.KINDS`."""
    if kind not in KINDS:
        raise CaseError(
            f"unknown kind {one_line(repr(kind), 40)}; there are: {', '.join(KINDS)}{did_you_mean(str(kind), KINDS)}"
        )
    from parity.compare.measure import relative_l2, worst
    from parity.compare.plain import same_numbers
    from parity.diagnose.locality import describe

    floor = FIXED.get(str(reference.dtype).removeprefix("torch."), 0.0)
    evidence = Evidence(reference=reference, port=port, site="tensor", kind=kind, floor=floor)
    same = reference.shape == port.shape
    apart = reference.is_complex() != port.is_complex()
    error = relative_l2(port, reference) if same and not apart else float("inf")
    agree = error <= floor or (same and reference.dtype == port.dtype and torch.equal(reference, port))
    if agree and same_numbers(reference, port, kind):
        return Result("match", None, None, (), Coverage(1, 1, 1), case="diagnose")
    metric, detail = "rel_l2", ""
    if not same:
        metric, detail = "shape", f"shape {list(reference.shape)} (reference), {list(port.shape)} (port)"
    elif agree or apart:
        metric, detail = "dtype", f"{reference.dtype} (reference), {port.dtype} (port)".replace("torch.", "")
    index, left, right = worst(reference, port) if not detail and reference.numel() else (None, None, None)
    first = Divergence(
        site="tensor", coords={}, kind=kind, metric=metric, error=error, floor=floor, order=0, detail=detail,
        index=index, reference_value=left, port_value=right, shape=tuple(reference.shape), locality=() if apart else tuple(describe(evidence)),
    )  # fmt: skip
    return Result(
        "diverged", first, None, _diagnose(evidence), Coverage(1, 1, 1), divergences=(first,), case="diagnose"
    )


def load_tensor(text: str) -> Tensor:
    """Read `FILE.safetensors[:KEY]` or `FILE.npy` (never unpickled)."""
    from parity.trace.store import open_safetensors

    path, _, key = text.partition(".safetensors:")
    if key or text.endswith(".safetensors"):
        handle = open_safetensors(Path(f"{path}.safetensors" if key else text))
        keys = list(handle.keys())
        if key and key not in keys:
            raise TraceError(f"{path}.safetensors has no tensor '{key}'; there are: {', '.join(keys[:8])}")
        if not key and len(keys) != 1:
            raise TraceError(f"{text} holds {len(keys)} tensors; name one, as in {text}:{keys[0] if keys else 'KEY'}")
        return handle.get_tensor(key or keys[0])  # type: ignore[no-any-return]
    import numpy as np

    try:
        return torch.from_numpy(np.array(read_npy(Path(text), f"cannot read the tensor {text}")))
    except TypeError as error:  # numpy knows wider numbers than torch
        raise TraceError(f"cannot read the tensor {text}: {reason(error)}") from None


# -- pieces -----------------------------------------------------------------------------------------------------------


def _trace(side: str, given: Trace | str | Path) -> Trace:
    """Return a trace, read where it is given by its path. Raises TraceError for what is none, or holds nothing."""
    from parity.trace.store import load_trace

    if isinstance(given, (str, Path)):
        given = load_trace(Path(given))
    if not isinstance(given, Trace):
        raise TraceError(
            f"the {side} is a {type(given).__name__}: give a trace or its path (parity.check takes models)"
        )
    if not len(given):
        raise TraceError(f"the {side} trace holds no record")
    return given


def names_of(names: Names) -> NameMap:
    """Return a name map from rules, a file or a map."""
    if names is None or isinstance(names, NameMap):
        return names or NameMap()
    if isinstance(names, (str, Path)):
        return load_names(Path(names))
    return parse_names(names)


def _with_inferred_names(case: Case, setting: Setting) -> tuple[Case, Inferred, Trace | None]:
    """Align two models that nobody wrote a map for: from names, weights, values, order and shapes of one run, in float64 where they can.

    Returns the reference's trace in float64, too.
    """
    from parity.align.by_values import NEAR

    upcast, tolerance = True, 1e-5
    try:
        case, reference = run_double(case, "reference", setting)
        case, port = run_double(case, "port", setting)
    except SideError:
        upcast, tolerance = False, NEAR
        reference, port = (run_side(case, which, setting) for which in ("reference", "port"))
    refuse_unfit_records(port.trace)

    graft = grafting(reference.trace)

    def rerun(names: NameMap, sites: Collection[str] | None) -> Trace:
        def some(site: str, coords: Mapping[str, int], value: Tensor) -> Tensor | None:
            return graft(site, coords, value) if sites is None or site in sites else None

        again = run_side(replace(case, names=names), "port", setting, upcast=upcast, override=some).trace
        return without_gradients(again)

    ref_modules, port_modules = case.reference.modules(reference.model), case.port.modules(port.model)
    found = infer_names(
        without_gradients(reference.trace),
        without_gradients(port.trace),
        ref_modules[""],
        port_modules[""],
        rerun,
        tolerance,
        case.names,
    )
    tables = any(
        buffer.is_floating_point() and buffer.itemsize == 2
        for side in (case.reference, case.port)
        for root in side.modules(side.build(setting)).values()
        for buffer in root.buffers()
    )
    rounded = Rounded(tables, found.lone) if tables or found.lone else None
    return replace(case, names=found.names, rounded=rounded), found, reference.trace if upcast else None


def _agreeing(dtype: torch.dtype, found: Inferred) -> float:
    """Return what results may differ by in float64 for the whole to be known to be right: what one rounding of folded weights does, where there are such."""
    folded = is_low_precision(dtype) and bool(found.lone)
    return torch.finfo(dtype).eps / 2 if folded else SAME
