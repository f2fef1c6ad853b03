"""A name map that nobody wrote: two model trees aligned by weights, then names, values and order of one run.

Evidence, strongest first: (1) weights: equal content, also transposed, with permuted rows, or as blocks of a fused projection; (2) the containers that hold the same
aligned leaves; (3) values of one run; (4) the same values once the port runs on the reference's own (a fault no longer hides what follows it); (5) the place
between two aligned calls, only where the result of that stretch differs: other ways to the same result are left alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from parity.align.by_values import (
    NEAR,
    Matches,
    agree,
    match_between,
    match_siblings,
    match_templates,
    match_values,
    module_of,
)
from parity.align.by_weights import Fusion, WeightMatch, changed_leaves, held_leaves, match_weights
from parity.align.trials import Hypothesis, renamed, try_pairs
from parity.align.written import Known, Sides, write_map
from parity.capture.probes import root_label
from parity.trace import ENDS, Record, Trace
from parity.trace.names import NameMap

Rerun = Callable[
    [NameMap, Collection[str] | None], Trace
]  # under a map, with the reference's values at some of its sites (None: at all)


@dataclass(frozen=True)
class Inferred:
    """A map that nobody wrote.

    whole: in float64, the largest error of a result of the port, with nothing exchanged. lone: reference modules some weight of which the port does not hold.
    """

    names: NameMap
    notes: tuple[str, ...]
    whole: float
    lone: frozenset[str] = frozenset()
    wrong: tuple[Hypothesis, ...] = ()  # what values have vetoed


def infer_names(
    reference: Trace,
    port: Trace,
    ref_root: nn.Module,
    port_root: nn.Module,
    rerun: Rerun | None = None,
    tolerance: float = NEAR,
    given: NameMap | None = None,
) -> Inferred:
    """Return a map from port sites to reference sites, with notes on the evidence.

    Both traces come from one run of the two models on the same inputs; only the first record of each site is looked at. `rerun` runs the port again under a
    map, with the reference's value put in place of each that the map aligns. `tolerance` is what moments of equal values may be off by. `given`: rules
    of the user; they win, and only what they leave open is inferred.
    """
    given = given or NameMap()
    open_ports = {site: record for site, record in _firsts(port).items() if not given.names_site(site)}
    sides = Sides(reference, port, _firsts(reference), open_ports, tolerance, port, given)
    labels = tuple(root_label(name for name, _ in root.named_children()) for root in (ref_root, port_root))
    ref_ran, port_ran = _ran(reference, labels[0]), _ran(port, labels[1])
    weights = match_weights(ref_root, port_root, ref_ran, port_ran)
    fused = {leaf: f for leaf, f in weights.fused.items() if _is_fused(leaf, f, sides)}
    modules = match_containers(weights, _can_run(ref_root), _can_run(port_root))
    matches = Matches(given=given)
    for site in _firsts(port).keys() - open_ports.keys():
        matches.taken.update(target.site for target in given.targets(site) or ())
    for fusion in fused.values():
        matches.taken.update(fusion.leaves)
    for site in sides.ports:
        if site in sides.refs and site not in fused and _plausible(site, modules):
            matches.add(site, site, "name")
    match_modules(matches, modules, sides.refs, sides.ports, labels)
    match_templates(matches, list(sides.refs), [s for s in sides.ports if s not in fused])
    if (
        rerun is None or not modules
    ):  # values of a free run are all that there is; a fault may have changed every one that follows it
        _match_what_is_left(matches, fused, sides, reference, port)
    layouts: Known = {}
    notes: list[str] = []
    wrong: list[Hypothesis] = []
    tested: set[str] = set()
    whole = math.inf
    if rerun is not None:
        changed = changed_leaves(ref_root, port_root, WeightMatch(weights.leaves, fused))
        sides, layouts, wrong, whole = _test(matches, fused, sides, rerun, changed)
        tested |= set(matches.found)
        _match_what_is_left(matches, fused, sides, reference, sides.port)
    _match_places(matches, fused, sides)
    if rerun is not None:
        wrong += _test_rest(matches, fused, sides, rerun, tested, layouts)
        notes = _said(wrong)
    names, _ = write_map(matches, fused, sides, layouts)
    return Inferred(
        replace(names, inferred=True), (*_counted(matches, fused), *notes), whole, weights.lone, tuple(wrong)
    )


def _counted(matches: Matches, fused: Mapping[str, Fusion]) -> tuple[str, ...]:
    counts = Counter(how for _, how in matches.found.values())
    counts["fused weights"] += len(fused)
    text = ", ".join(f"{n} by {how}" for how, n in counts.most_common() if n)
    return (f"aligned without a map: {text}",) if text else ()


# -- trials -----------------------------------------------------------------------------------------------------------


def _test(
    matches: Matches, fused: dict[str, Fusion], sides: Sides, rerun: Rerun, changed: set[str]
) -> tuple[Sides, Known, list[Hypothesis], float]:
    """Let values veto what was paired. Returns the sides after the differences that they confirm are taken out of the way, and the layouts of that run."""
    names, layouts = write_map(matches, fused, sides, {})
    hypotheses = [
        replace(h, changed=module_of(sides.ports[h.port]) in changed and sides.ports[h.port].role == "out")
        for h in _hypotheses(matches, fused, sides)
    ]
    under = renamed(sides.free, names)
    found = try_pairs(hypotheses, names, sides.reference, under, rerun, results_of(sides.reference), sides.same)
    for one in found.wrong:
        if one.port in fused:
            matches.taken.difference_update(fused.pop(one.port).leaves)
        for site in one.references:
            matches.bar(one.port, site)
    wrong = list(found.wrong)
    if found.unclear and _loose(matches, fused, sides):  # a difference that no trial explains hides what follows it
        names, layouts = write_map(matches, fused, sides, {}, sure=True)
        return replace(sides, port=_under_port_names(rerun(names, None))), layouts, wrong, found.whole
    if found.healed is not None:
        return replace(sides, port=_under_port_names(found.healed)), layouts, wrong, found.whole
    return sides, {}, wrong, found.whole


def _test_rest(
    matches: Matches, fused: Mapping[str, Fusion], sides: Sides, rerun: Rerun, tested: set[str], layouts: Known
) -> list[Hypothesis]:
    """Keep what was paired by its place, or by moments, only where its values agree or where the reference's value heals what follows."""
    new = set(matches.found) - tested
    if not new:
        return []
    names, _ = write_map(matches, fused, sides, layouts)
    hypotheses = [h for h in _hypotheses(matches, {}, sides) if h.port in new]
    under = renamed(sides.free, names)
    found = try_pairs(hypotheses, names, sides.reference, under, rerun, results_of(sides.reference), sides.same)
    kept = {h.port for h in (*found.confirmed, *(h for h in hypotheses if h.how == "name pattern"))}
    dropped = [h for h in hypotheses if h in found.wrong or (h.port not in kept and h in found.unclear)]
    for one in dropped:
        matches.bar(one.port, one.references[0])
    return dropped


def _hypotheses(matches: Matches, fused: Mapping[str, Fusion], sides: Sides) -> list[Hypothesis]:
    found = [Hypothesis(port, (ref,), how, sides.refs[ref].order) for port, (ref, how) in matches.found.items()]
    whole = [
        Hypothesis(leaf, fusion.leaves, "fused weights", sides.refs[fusion.leaves[0]].order)
        for leaf, fusion in fused.items()
    ]
    return found + whole


def results_of(trace: Trace) -> tuple[str, ...]:
    """Return the sites of what a run returns: of its program, or of its outermost module."""
    sites = trace.sites()
    program = tuple(dict.fromkeys(r.site for r in trace if r.role == "return"))
    root = trace.records[0].site.partition(".in.")[0] if trace.records else ""
    return program or tuple(s for s in sites if (s == root or s.startswith(f"{root}.")) and ".in." not in s)


def _said(wrong: Sequence[Hypothesis]) -> list[str]:
    """Write one note a template of what values have vetoed."""
    by_template: dict[tuple[str, str], list[Hypothesis]] = {}
    for one in wrong:
        by_template.setdefault(one.template, []).append(one)
    return [
        f"{group[0].port} is not {', '.join(group[0].references)} (paired by {group[0].how}"
        f"{f', and {len(group) - 1} like it' if len(group) > 1 else ''}): later values agree without it; not compared"
        for group in by_template.values()
    ]


# -- containers -------------------------------------------------------------------------------------------------------


Runs = Callable[[str], bool]


def match_containers(weights: WeightMatch, ref_runs: Runs, port_runs: Runs) -> dict[str, str]:
    """Pair modules (port path -> reference path): leaves by weights, containers by the set of aligned leaves that they hold.

    Of nested modules that hold the same leaves those that never run (lists) stay out, the others pair from the outside.
    """
    found = dict(weights.leaves)
    pairs = [(leaf, {ref}) for leaf, ref in weights.leaves.items()]
    pairs += [(leaf, set(fusion.leaves)) for leaf, fusion in weights.fused.items()]
    pairs += [(weight, {ref}) for weight, ref in weights.spread.items()]
    held_port = held_leaves(pairs)
    held_ref = held_leaves((leaf, {leaf}) for _, content in pairs for leaf in content)
    by_content: dict[frozenset[str], list[str]] = {}
    for path, content in held_ref.items():
        by_content.setdefault(frozenset(content), []).append(path)
    chains: dict[frozenset[str], list[str]] = {}
    for path, content in held_port.items():
        if path not in found and path not in weights.fused:
            chains.setdefault(frozenset(content), []).append(path)
    for held, paths in chains.items():
        partners = [p for p in by_content.get(held, []) if p not in found.values()]
        ports, refs = (sorted(filter(port_runs, paths), key=len), sorted(filter(ref_runs, partners), key=len))
        found.update(zip(ports, refs, strict=False))
    return found


def _can_run(root: nn.Module) -> Runs:
    return lambda path: not isinstance(root.get_submodule(path), (nn.ModuleList, nn.ModuleDict))


def _is_fused(leaf: str, fusion: Fusion, sides: Sides) -> bool:
    """A fused weight is a fused site only when the module's output is as wide as its parts together (a whole attention owns such weights, too)."""
    record = sides.ports.get(leaf)
    if record is None or any(n not in sides.refs or sides.given.forbids(leaf, n) for n in fusion.leaves):
        return False
    return sum(fusion.sizes) in record.shape[-1:]


# -- sites ------------------------------------------------------------------------------------------------------------


def match_modules(
    matches: Matches,
    modules: Mapping[str, str],
    refs: Mapping[str, Record],
    ports: Mapping[str, Record],
    labels: tuple[str, ...] = ("model", "model"),
) -> None:
    """Pair the sites of paired modules: outputs, inputs in order, and labels of functions that are equal. labels: what the roots are called."""
    by_module_ref, by_module_port = _by_module(refs), _by_module(ports)
    for port, ref in modules.items():
        port, ref = port or labels[1], ref or labels[0]
        left, right = by_module_ref.get(ref, []), by_module_port.get(port, [])
        for role in ("out", "in"):
            a = [r for r in left if r.role == role and r.site not in matches.taken]
            b = [p for p in right if p.role == role and p.site not in matches.found]
            for p in b:
                partner = _partner(p, a)
                if partner is not None and matches.add(p.site, partner.site, "weights"):
                    a.remove(partner)
        called = {r.site.removeprefix(f"{ref}."): r for r in left if r.role in ("function", "state")}
        for p in right:
            r = called.get(p.site.removeprefix(f"{port}."))
            if r is not None and p.role == r.role:
                matches.add(p.site, r.site, "weights")


def _partner(port: Record, candidates: Sequence[Record]) -> Record | None:
    """Return the first candidate of the same size, by preference of the same argument name."""
    fitting = [r for r in candidates if math.prod(r.shape) == math.prod(port.shape) and r.is_float == port.is_float]
    same_name = [r for r in fitting if r.site.rpartition(".")[2] == port.site.rpartition(".")[2]]
    return next(iter(same_name or fitting), None)


def _match_what_is_left(
    matches: Matches, fused: Mapping[str, Fusion], sides: Sides, reference: Trace, port: Trace
) -> None:
    """Pair by values, then carry the pairs over to the same place in other blocks and to the other sites of the same module."""
    loose = [p for p in sides.ports.values() if p.site not in fused]
    left = [r for r in sides.refs.values() if r.site not in matches.taken]
    match_values(matches, reference, port, left, [p for p in loose if p.site not in matches.found], sides.tolerance)
    match_templates(matches, list(sides.refs), [p.site for p in loose])
    match_siblings(matches, sides.refs, {p.site: p for p in loose})


def _match_places(matches: Matches, fused: Mapping[str, Fusion], sides: Sides) -> None:
    """Pair what lies between aligned calls, in stretches whose result differs; in all before a difference that has no such stretch."""
    refs, ports = list(sides.refs.values()), [p for p in sides.ports.values() if p.site not in fused]
    echoes = _echoes(sides.port, ports, set(matches.found)), _echoes(sides.reference, refs, matches.taken)
    ports, refs = [p for p in ports if p.site not in echoes[0]], [r for r in refs if r.site not in echoes[1]]
    right: dict[str, bool] = {}

    def differs(port_site: str) -> bool:
        if port_site not in right:
            right[port_site] = agree(
                sides.reference, sides.refs[matches.found[port_site][0]], sides.port, sides.ports[port_site]
            )
        return not right[port_site]

    anchors = [p for p in ports if p.site in matches.found]
    explained = match_between(matches, refs, ports, differs)
    lone = next((p for p in anchors if p.role == "in" and p.site not in explained and differs(p.site)), None)
    if lone is not None:
        match_between(matches, refs, [p for p in ports if p.order < lone.order])


def _echoes(trace: Trace, records: Sequence[Record], paired: set[str]) -> set[str]:
    """Return the lone outputs that are an earlier paired output once more, as a container returns its last part: no place of their own."""
    outputs: dict[tuple[int, ...], list[Record]] = {}
    found = set()
    for record in records:
        if record.role != "out":
            continue
        if record.site in paired:
            outputs.setdefault(record.shape, []).append(record)
            continue
        value = trace.tensor(record.key)
        earlier = (trace.tensor(other.key) for other in reversed(outputs.get(record.shape, [])[-4:]))
        if value is not None and any(other is not None and torch.equal(value, other) for other in earlier):
            found.add(record.site)
    return found


def _loose(matches: Matches, fused: Mapping[str, Fusion], sides: Sides) -> bool:
    ports = any(s not in matches.found and s not in fused for s in sides.ports)
    return ports and any(s not in matches.taken for s in sides.refs)


def _firsts(trace: Trace) -> dict[str, Record]:
    """Return the first record of each site, in order of execution; results of the whole run have rules of their own."""
    found: dict[str, Record] = {}
    for record in trace.records:
        if record.role not in ENDS:
            found.setdefault(record.site, record)
    return found


def _ran(trace: Trace, label: str) -> set[str]:
    """Return the paths of the modules that ran (the root, called `label`, has the empty path)."""
    return {"" if module_of(record) == label else module_of(record) for record in trace}


def _by_module(records: Mapping[str, Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records.values():
        found.setdefault(module_of(record), []).append(record)
    return found


def _plausible(site: str, modules: Mapping[str, str]) -> bool:
    """An equal name counts unless the weights say that this module, or the reference's of that name, is another one."""
    module = site.partition(".in.")[0]
    return modules[module] == module if module in modules else module not in modules.values()


def _under_port_names(trace: Trace) -> Trace:
    """Return a trace that was recorded under a map with the port's own names again (the first part of what was split)."""
    plain = Trace(manifest=trace.manifest)
    for record in trace.records:
        own = replace(record, site=record.origin or record.site, order=len(plain), origin="")
        if own.key not in plain:
            plain.add(own, trace.tensor(record.key))
    return plain
