"""Name maps: which site of the port is which site of the reference, and in which layout.

A map is a list of rules, tried in order, the first that matches the whole port site wins::

    - {port: 'blocks\\.(\\d+)\\.attn1\\.to_q', reference: 'blocks.\\1.self_attn.q', layout: 'b l h d -> b h l d'}
    - {port: 'blocks\\.(\\d+)\\.qkv', split: {axis: -1, into: ['blocks.\\1.q', 'blocks.\\1.k', 'blocks.\\1.v']}}
    - {port: 'dropout.*', ignore: 'no counterpart: inactive in eval mode'}
    - {reference: 'ctrl_cfg.*', ignore: 'loaded, never used'}

`layout` is an einops pattern from the port's layout to the reference's; `sizes` may give its axis lengths.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parity.boundary.limits import NAME, PATTERN, RULES
from parity.boundary.patterns import Patience, Pattern, expanded
from parity.boundary.text import one_line
from parity.boundary.yaml import read_yaml
from parity.errors import CaseError
from parity.trace.rules import Rule, Split, Target, rearrange, rearrange_back

__all__ = ["NameMap", "Rule", "Split", "Target", "load_names", "parse_names", "rearrange", "rearrange_back"]


@dataclass(frozen=True)
class NameMap:
    """An ordered list of rules. Sites that no rule matches keep their name.

    inferred: nobody gave this map as a whole: a site without a rule of the user's own is paired by a hypothesis, which promises nothing.
    """

    rules: tuple[Rule, ...] = ()
    inferred: bool = False

    def __post_init__(self) -> None:
        patience = Patience()
        compiled = [(_compiled(rule, rule.port, patience), rule) for rule in self.rules if rule.port]
        ignored = [
            (_compiled(rule, rule.reference, patience), rule.ignore)
            for rule in self.rules
            if rule.ignore and not rule.port
        ]
        object.__setattr__(self, "_compiled", compiled)
        object.__setattr__(self, "_ignored", ignored)
        object.__setattr__(self, "_memo", {})

    def targets(self, site: str) -> tuple[Target, ...] | None:
        """Return where a port site belongs; an empty tuple means that it is ignored with a stated reason."""
        memo: dict[str, tuple[Target, ...]] = self._memo  # type: ignore[attr-defined]
        if site not in memo:
            memo[site] = self._targets(site)
        return memo[site]

    @property
    def asked(self) -> frozenset[str]:
        """The port sites that were looked up, also those that the map leaves out of a trace."""
        return frozenset(self._memo)  # type: ignore[attr-defined]

    def _targets(self, site: str) -> tuple[Target, ...]:
        for pattern, rule in self._compiled:  # type: ignore[attr-defined]
            found = pattern.fullmatch(site)
            if not found or (rule.apart and rule.reference):
                continue
            if rule.apart:
                return (Target(f"port:{site}"),)
            if rule.ignore:
                return ()
            if rule.split:
                names = rule.split.into
                return tuple(
                    Target(
                        expanded(found, name), rule.layout, rule.sizes, rule.split.axis, i, rule.split.sizes, len(names)
                    )
                    for i, name in enumerate(names)
                )
            first = expanded(found, rule.reference) if rule.reference else site
            rest = (expanded(found, name) for name in rule.also)
            return tuple(Target(name, rule.layout, rule.sizes) for name in (first, *rest))
        return self._gradient_targets(site) or (Target(site),)

    def _gradient_targets(self, site: str) -> tuple[Target, ...]:
        """A gradient lies where its value lies; that of a parameter, or what a step makes of it, where its module lies."""
        value, dot, suffix = site.rpartition(".")
        if suffix not in ("grad", "after") or not value:
            return ()
        found = self.targets(value) or ()
        into, inside, _ = value.partition(".in.")
        homes = {target.site for target in self.targets(into) or ()}
        if any(
            (".in." in target.site) != bool(inside) or (inside and homes != {target.site.partition(".in.")[0]})
            for target in found
        ):
            return (Target(f"port:{site}"),)  # an equal value elsewhere; what parts get together is the share of none
        if found != (Target(value),):
            return tuple(replace(target, site=f"{target.site}.{suffix}") for target in found)
        module, dot, own = value.rpartition(".")
        places = self.targets(module) if dot else ()
        if not places or any(target.of > 1 for target in places) or len(places) != 1:
            return ()
        return (Target(f"{places[0].site}.{own}.{suffix}"),)

    def forbids(self, port: str, reference: str) -> bool:
        """Tell whether a rule of the user keeps a port site and a reference site apart."""
        return any(
            rule.apart
            and pattern.fullmatch(port)
            and (not rule.reference or _compiled(rule, rule.reference).fullmatch(reference))
            for pattern, rule in self._compiled  # type: ignore[attr-defined]
        )

    def names_site(self, site: str) -> bool:
        """Tell whether a rule says where a port site belongs."""
        return any(
            pattern.fullmatch(site) and not (rule.apart and rule.reference)
            for pattern, rule in self._compiled  # type: ignore[attr-defined]
        )

    def promises(self, site: str) -> bool:
        """Tell whether the pair of a port site was given: then each of its calls has a counterpart. One that was inferred says nothing of that."""
        if not self.inferred:
            return True
        matching = (rule for pattern, rule in self._compiled if pattern.fullmatch(site))  # type: ignore[attr-defined]
        rule = next((rule for rule in matching if not (rule.apart and rule.reference)), None)
        return rule is not None and rule.how == "map"

    def evidence(self) -> dict[str, str]:
        """Return reference site -> how it was aligned, for inferred maps (whose references are plain names)."""
        return {
            name: rule.how
            for rule in self.rules
            for name in (rule.split.into if rule.split else (rule.reference, *rule.also))
            if rule.how != "map"
        }

    def idle(self, port: Collection[str], reference: Collection[str]) -> list[str]:
        """Return the patterns of the rules that match no site of two traces."""
        ours: list[tuple[Any, str]] = [(pattern, rule.port) for pattern, rule in self._compiled]  # type: ignore[attr-defined]
        theirs = [(pattern, pattern.text) for pattern, _ in self._ignored if isinstance(pattern, Pattern)]  # type: ignore[attr-defined]
        found = [text for pattern, text in ours if not any(pattern.fullmatch(site) for site in port)]
        return found + [text for pattern, text in theirs if not any(pattern.fullmatch(site) for site in reference)]

    def ignored_reference(self, site: str) -> str | None:
        """Return the stated reason why a reference site has no counterpart, or None."""
        for pattern, reason in self._ignored:  # type: ignore[attr-defined]
            if pattern.fullmatch(site):
                return str(reason)
        return None


def _compiled(rule: Rule, text: str, patience: Patience | None = None) -> Pattern | re.Pattern[str]:
    """Compile a pattern: a given one is stopped when it takes too long, an inferred one is an escaped name."""
    return Pattern(text, "name map", patience) if rule.how == "map" else re.compile(text)


def parse_names(value: Any, where: str = "name map") -> NameMap:
    """Build a name map from plain data (a list of mappings).

    Raises CaseError with the place and the expectation when a rule is malformed.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise CaseError(
            f"{where}: expected a list of rules like {{port: REGEX, reference: TEMPLATE}}, got {type(value).__name__}"
        )
    if len(value) > RULES:
        raise CaseError(f"{where}: {len(value)} rules; {RULES} are read at most")
    return NameMap(tuple(_parse_rule(item, f"{where}: rule {i + 1}") for i, item in enumerate(value)))


def _parse_rule(item: Any, where: str) -> Rule:
    if not isinstance(item, Mapping):
        raise CaseError(
            f"{where}: expected a mapping like {{port: REGEX, reference: TEMPLATE}}, got {one_line(repr(item), 60)}"
        )
    unknown = [name for name in item if name not in _RULE]
    if unknown or not ({"port", "reference"} & set(item)):
        listed = one_line(", ".join(map(repr, unknown[:3])), 80)
        raise CaseError(f"{where}: unknown keys [{listed}] or neither 'port' nor 'reference' given")
    rule = Rule(
        port=_parse_text(item, "port", where),
        reference=_parse_text(item, "reference", where),
        layout=_parse_text(item, "layout", where),
        sizes=_parse_sizes(item.get("sizes", {}), where),
        split=_parse_split(item["split"], where) if "split" in item else None,
        ignore=_parse_text(item, "ignore", where),
        apart=_parse_apart(item, where),
    )
    _check_patterns(rule, where)
    if rule.layout and rule.layout.count("->") != 1:
        raise CaseError(f"{where}: layout {one_line(rule.layout, 60)!r} is no einops pattern like 'b l h d -> b h l d'")
    return rule


_RULE = ("port", "reference", "layout", "sizes", "split", "ignore", "apart")


def _check_patterns(rule: Rule, where: str) -> None:
    """Compile what will be matched, and check that every target names groups that are there."""
    port = Pattern(rule.port, where)
    if rule.apart or (rule.ignore and not rule.port):
        Pattern(rule.reference, where)
    elif rule.port:
        for template in rule.split.into if rule.split else (rule.reference,):
            port.check_template(template)


def _parse_text(item: Mapping[str, Any], name: str, where: str) -> str:
    value = item.get(name, "")
    if not isinstance(value, str):
        raise CaseError(f"{where}: {name!r} must be text, not {type(value).__name__}: put it in quotes")
    if len(value) > PATTERN:
        raise CaseError(f"{where}: {name!r} has more than {PATTERN} characters")
    return value


def _parse_apart(item: Mapping[str, Any], where: str) -> bool:
    apart = item.get("apart", False)
    if not isinstance(apart, bool):
        raise CaseError(f"{where}: 'apart' must be true or false, not {one_line(repr(apart), 40)}")
    if apart and (not item.get("port") or {"layout", "split", "ignore"} & set(item)):
        raise CaseError(f"{where}: 'apart' needs a port, may name a reference, and stands with nothing else")
    return apart


def _parse_split(raw: Any, where: str) -> Split:
    if not isinstance(raw, Mapping) or "into" not in raw:
        raise CaseError(f"{where}: 'split' needs {{axis, into: [names]}}")
    axis, into, sizes = raw.get("axis", -1), raw["into"], raw.get("sizes", ())
    if not _is_number(axis):
        raise CaseError(f"{where}: 'axis' of a split must be a whole number, not {one_line(repr(axis), 40)}")
    if not isinstance(into, (list, tuple)) or not into or not all(isinstance(n, str) and len(n) <= NAME for n in into):
        raise CaseError(f"{where}: 'into' of a split must be a list of names, not {one_line(repr(into), 60)}")
    if (
        not isinstance(sizes, (list, tuple))
        or not all(_is_number(n) for n in sizes)
        or len(sizes) not in (0, len(into))
    ):
        raise CaseError(
            f"{where}: 'sizes' of a split must be one whole number for each of {len(into)} names, not {one_line(repr(sizes), 60)}"
        )
    return Split(axis, tuple(into), tuple(sizes))


def _parse_sizes(raw: Any, where: str) -> dict[str, int]:
    if not isinstance(raw, Mapping) or not all(isinstance(k, str) and _is_number(v) for k, v in raw.items()):
        raise CaseError(f"{where}: 'sizes' must give axis lengths like {{h: 12}}, not {one_line(repr(raw), 60)}")
    return dict(raw)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31


def load_names(path: Path) -> NameMap:
    """Read a name map from a YAML (or JSON) file."""
    return parse_names(read_yaml(path, "name map"), str(path))
