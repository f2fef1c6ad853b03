"""The pairs that were found, written as a name map: which rule a pair becomes, and in which layout the port's value is read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from parity.align.by_values import Layouts, Matches
from parity.align.by_weights import Fusion
from parity.align.trials import SAME
from parity.trace import Record, Trace
from parity.trace.names import NameMap, Rule, Split

Known = Mapping[str, tuple[str, Mapping[str, int]]]  # port site -> einops pattern and sizes


@dataclass(frozen=True)
class Sides:
    """What one run of both models showed: the first record of each site, in order."""

    reference: Trace
    port: Trace
    refs: Mapping[str, Record]
    ports: Mapping[str, Record]
    tolerance: float  # of moments of equal values
    free: Trace  # the port's run with nothing of the reference in it
    given: NameMap = field(default_factory=NameMap)  # the user's rules

    @property
    def same(self) -> float:
        """The relative error up to which two values are one."""
        return max(self.tolerance, SAME)


def write_map(
    matches: Matches, fused: Mapping[str, Fusion], sides: Sides, before: Known, sure: bool = False
) -> tuple[NameMap, Known]:
    """Write the pairs as rules. Returns the map and the layouts in it.

    before: layouts that the port's run was recorded under. sure: write only layouts that values have shown.
    """
    layouts = _learn(matches, sides, before)
    rules, written = [], dict(before)
    for site in sorted(matches.found, key=lambda s: sides.ports[s].order):
        name, how = matches.found[site]
        r, p = sides.refs[name], sides.ports[site]
        if site not in before and (layouts.known(r.shape, p.shape) or not sure):
            written[site] = layouts.find(
                name, r.shape, p.shape, sides.reference.tensor(r.key), sides.port.tensor(p.key)
            )
        pattern, sizes = written.get(site, ("", {}))
        also = _same_input(site, fused, matches, sides)
        if site != name or pattern or also:
            rules.append(
                Rule(port=re.escape(site), reference=_literal(name), layout=pattern, sizes=sizes, also=also, how=how)
            )
    for leaf, fusion in fused.items():
        sizes_of = fusion.sizes if len(set(fusion.sizes)) > 1 else ()
        rules.append(Rule(port=re.escape(leaf), split=Split(-1, fusion.leaves, sizes_of), how="fused weights"))
    rules += [
        _renamed(site) for site in sides.ports if site not in matches.found and site not in fused and site in sides.refs
    ]
    return NameMap((*sides.given.rules, *rules)), {site: found for site, found in written.items() if found[0]}


def _learn(matches: Matches, sides: Sides, before: Known) -> Layouts:
    layouts = Layouts()
    for site, (name, _) in matches.found.items():
        if site not in before:
            layouts.learn(sides.reference.tensor(sides.refs[name].key), sides.port.tensor(sides.ports[site].key))
    return layouts


def _same_input(site: str, fused: Mapping[str, Fusion], matches: Matches, sides: Sides) -> tuple[str, ...]:
    """Return the inputs of the other parts of a fused projection: they are the same tensor as the one that is paired."""
    leaf, found, argument = site.partition(".in.")
    if not found or leaf not in fused:
        return ()
    shape = sides.ports[site].shape
    same = [f"{part}.in.{argument}" for part in fused[leaf].leaves]
    same = [s for s in same if s in sides.refs and s not in matches.taken and sides.refs[s].shape == shape]
    return tuple(_literal(s) for s in same)


def _literal(name: str) -> str:
    return name.replace("\\", "\\\\")


def _renamed(site: str) -> Rule:
    """A port site whose name belongs to another reference site: keep the two apart."""
    return Rule(port=re.escape(site), reference=f"port:{site}")
