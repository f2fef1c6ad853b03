"""A name map that nobody wrote: two model trees aligned by weights, then order, names and values of one run.

Evidence, strongest first: (1) weights: equal content, also transposed, with permuted rows, or as blocks of a fused projection; (2) the containers that hold the same
aligned leaves; (3) values of one run; (4) the place between two aligned calls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parity.matching import Layouts, Matches, match_between, match_templates, match_values, moments, near
from parity.names import NameMap, Rule, Split
from parity.trace import Record, Trace


@dataclass(frozen=True)
class Fusion:
    """A port leaf whose output axis is several reference leaves, one after the other."""

    leaves: tuple[str, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class WeightMatch:
    """Leaf modules with the same weights."""

    leaves: Mapping[str, str]  # port leaf -> reference leaf
    fused: Mapping[str, Fusion]


def infer_names(reference: Trace, port: Trace, ref_root: nn.Module, port_root: nn.Module) -> tuple[NameMap, tuple[str, ...]]:
    """Return a map from port sites to reference sites, and notes on the evidence.

    Both traces come from one run of the two models on the same inputs; only the first record of each site is looked at.
    """
    ref_first = {r.site: r for r in reversed(reference.records)}
    port_first = {p.site: p for p in reversed(port.records)}
    refs, ports = _in_order(ref_first.values()), _in_order(port_first.values())
    weights = match_weights(ref_root, port_root)
    matches = Matches()
    fused = {leaf: f for leaf, f in weights.fused.items() if leaf in port_first and all(name in ref_first for name in f.leaves)}
    for fusion in fused.values():
        matches.taken.update(fusion.leaves)
    modules = match_containers(ref_root, port_root, weights)
    for site in port_first:
        if site in fused:
            continue
        if site in ref_first and _plausible(site, site, modules, ref_root, port_root):
            matches.add(site, site, "name")
    _match_modules(matches, modules, ref_first, port_first)
    match_templates(matches, list(ref_first), [s for s in port_first if s not in fused])
    loose_ports = [p for p in ports if p.site not in fused]
    match_values(matches, reference, port, [r for r in refs if r.site not in matches.taken], [p for p in loose_ports if p.site not in matches.found])
    match_templates(matches, list(ref_first), [p.site for p in loose_ports])
    match_between(matches, refs, loose_ports)
    return _write_map(matches, fused, ref_first, port_first, reference, port)


# -- weights ----------------------------------------------------------------------------------------------------------


def match_weights(ref_root: nn.Module, port_root: nn.Module) -> WeightMatch:
    """Pair leaf modules by the content of their weights; equal weights are paired in order of registration."""
    refs, ports = _weights(ref_root), _weights(port_root)
    pool: dict[int, list[str]] = {}
    for name, value in refs.items():
        pool.setdefault(value.numel(), []).append(name)
    prints = {name: moments(value) for name, value in refs.items()}
    leaves: dict[str, str] = {}
    used: set[str] = set()
    unmatched = []
    for name, value in ports.items():
        mine = moments(value)
        equal = [r for r in pool.get(value.numel(), []) if r not in used and near(mine, prints[r], 1e-5) and (value.numel() > 1 or r == name)]
        equal = [r for r in equal if _suffix(r) == _suffix(name)] or equal
        if not equal or mine[4] == 0:
            unmatched.append(name)
            continue
        best = max(equal, key=lambda r: (_same_shape(refs[r], value), r == name, leaves.get(_leaf(name)) == _leaf(r)))
        used.add(best)
        leaves.setdefault(_leaf(name), _leaf(best))
    fused = {}
    free = {n: v for n, v in refs.items() if n not in used and v.dim() >= 2}
    for name in unmatched:
        found = _unfuse(ports[name], free) if ports[name].dim() >= 2 else None
        if found is not None:
            fused[_leaf(name)] = Fusion(tuple(_leaf(n) for n in found), tuple(refs[n].shape[0] for n in found))
            for n in found:
                free.pop(n, None)
    return WeightMatch(leaves, fused)


def _weights(root: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in root.named_parameters(remove_duplicate=False) if p.numel() > 0 and not p.is_meta}


def _unfuse(whole: Tensor, parts: Mapping[str, Tensor]) -> list[str] | None:
    """Return the reference weights whose rows, one block after the other, are the rows of `whole`."""
    keys = _row_keys(whole)
    found: list[str] = []
    start = 0
    while start < len(keys):
        name = next(
            (n for n, p in parts.items() if n not in found and p.shape[1:] == whole.shape[1:] and _starts(keys, start, p)), None
        )
        if name is None:
            return None
        found.append(name)
        start += parts[name].shape[0]
    return found if len(found) >= 2 else None


def _starts(keys: Tensor, start: int, part: Tensor) -> bool:
    size = part.shape[0]
    if start + size > len(keys):
        return False
    own = _row_keys(part)
    return bool(torch.allclose(keys[start : start + size], own, rtol=1e-4, atol=1e-5 * float(own.abs().max())))


def _row_keys(value: Tensor) -> Tensor:
    """One number a row: its product with a fixed direction."""
    flat = value.detach().double().reshape(value.shape[0], -1)
    direction = torch.cos(1.7 * torch.arange(flat.shape[1], dtype=torch.float64))
    return flat @ direction


def _leaf(name: str) -> str:
    return name.rpartition(".")[0]


def _suffix(name: str) -> str:
    return name.rpartition(".")[2]


def _same_shape(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape


# -- containers -------------------------------------------------------------------------------------------------------


def match_containers(ref_root: nn.Module, port_root: nn.Module, weights: WeightMatch) -> dict[str, str]:
    """Pair modules (port path -> reference path): leaves by weights, containers by the set of aligned leaves that they hold."""
    found = dict(weights.leaves)
    held_port: dict[str, set[str]] = {}
    for leaf, ref in weights.leaves.items():
        _hold(held_port, leaf, {ref})
    for leaf, fusion in weights.fused.items():
        _hold(held_port, leaf, set(fusion.leaves))
    aligned = set(weights.leaves.values()) | {leaf for f in weights.fused.values() for leaf in f.leaves}
    held_ref: dict[str, set[str]] = {}
    for leaf in aligned:
        _hold(held_ref, leaf, {leaf})
    by_content: dict[frozenset[str], list[str]] = {}
    for path, content in held_ref.items():
        by_content.setdefault(frozenset(content), []).append(path)
    chains: dict[frozenset[str], list[str]] = {}
    for path, content in held_port.items():
        if path not in found and path not in weights.fused:
            chains.setdefault(frozenset(content), []).append(path)
    for content, paths in chains.items():
        partners = [p for p in by_content.get(content, []) if p not in found.values()]
        for port, ref in _zip_chain(sorted(paths, key=len), sorted(partners, key=len), port_root, ref_root):
            found[port] = ref
    return found


def _hold(held: dict[str, set[str]], leaf: str, content: set[str]) -> None:
    path = leaf
    while path:
        path = path.rpartition(".")[0]
        held.setdefault(path, set()).update(content)


def _zip_chain(ports: Sequence[str], refs: Sequence[str], port_root: nn.Module, ref_root: nn.Module) -> Iterable[tuple[str, str]]:
    """Pair nested modules that hold the same leaves: containers that never run (lists) stay out, the others pair from the outside."""
    ports = [p for p in ports if not isinstance(port_root.get_submodule(p), (nn.ModuleList, nn.ModuleDict))]
    refs = [r for r in refs if not isinstance(ref_root.get_submodule(r), (nn.ModuleList, nn.ModuleDict))]
    return zip(ports, refs, strict=False)


# -- sites ------------------------------------------------------------------------------------------------------------


def _match_modules(matches: Matches, modules: Mapping[str, str], refs: Mapping[str, Record], ports: Mapping[str, Record]) -> None:
    """Pair the sites of paired modules: outputs, inputs in order, and labels of functions that are equal."""
    by_module_ref, by_module_port = _by_module(refs), _by_module(ports)
    for port, ref in modules.items():
        port, ref = port or "model", ref or "model"
        left, right = by_module_ref.get(ref, []), by_module_port.get(port, [])
        for role in ("out", "in"):
            a = [r for r in left if r.role == role and r.site not in matches.taken]
            b = [p for p in right if p.role == role and p.site not in matches.found]
            for p in b:
                partner = _partner(p, a)
                if partner is not None and matches.add(p.site, partner.site, "weights"):
                    a.remove(partner)
        labels = {r.site.removeprefix(f"{ref}."): r for r in left if r.role in ("function", "state")}
        for p in right:
            r = labels.get(p.site.removeprefix(f"{port}."))
            if r is not None and p.role == r.role:
                matches.add(p.site, r.site, "weights")


def _partner(port: Record, candidates: Sequence[Record]) -> Record | None:
    """Return the first candidate of the same size, by preference of the same argument name and values."""
    import math

    size = math.prod(port.shape)
    fitting = [r for r in candidates if math.prod(r.shape) == size and r.is_float == port.is_float]
    same_name = [r for r in fitting if r.site.rpartition(".")[2] == port.site.rpartition(".")[2]]
    return (same_name or fitting or [None])[0]


def _by_module(records: Mapping[str, Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in _in_order(records.values()):
        found.setdefault(record.site.partition(".in.")[0] if record.role == "in" else record.module, []).append(record)
    return found


def _plausible(port: str, ref: str, modules: Mapping[str, str], ref_root: nn.Module, port_root: nn.Module) -> bool:
    """An equal name counts unless the weights say that this module is another one."""
    module = port.partition(".in.")[0]
    if module in modules:
        return modules[module] == ref.partition(".in.")[0]
    return True


def _in_order(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda r: r.order)


def _write_map(
    matches: Matches,
    fused: Mapping[str, Fusion],
    refs: Mapping[str, Record],
    ports: Mapping[str, Record],
    reference: Trace,
    port: Trace,
) -> tuple[NameMap, tuple[str, ...]]:
    layouts = Layouts()
    rules = []
    order = sorted(matches.found, key=lambda s: ports[s].order)
    for site in order:
        name, how = matches.found[site]
        r, p = refs[name], ports[site]
        pattern, sizes = layouts.find(name, r.shape, p.shape, reference.tensor(r.key), port.tensor(p.key))
        if site != name or pattern:
            rules.append(Rule(port=re.escape(site), reference=name.replace("\\", "\\\\"), layout=pattern, sizes=sizes, how=how))
    for leaf, fusion in fused.items():
        sizes_of = fusion.sizes if len(set(fusion.sizes)) > 1 else ()
        rules.append(Rule(port=re.escape(leaf), split=Split(-1, fusion.leaves, sizes_of), how="fused weights"))
    rules += [_renamed(site, matches, refs) for site in ports if site not in matches.found and site not in fused and site in refs]
    counts = Counter(how for _, how in matches.found.values())
    counts["fused weights"] += len(fused)
    text = ", ".join(f"{n} by {how}" for how, n in counts.most_common() if n)
    return NameMap(tuple(rules)), (f"aligned without a map: {text}",) if text else ()


def _renamed(site: str, matches: Matches, refs: Mapping[str, Record]) -> Rule:
    """A port site whose name belongs to another reference site: keep the two apart."""
    return Rule(port=re.escape(site), reference=f"port:{site}")
