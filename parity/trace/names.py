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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from parity.errors import CaseError


@dataclass(frozen=True)
class Split:
    """A fused port tensor that is several reference tensors: equal parts of `axis`, or parts of `sizes`."""

    axis: int
    into: tuple[str, ...]
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    port: str = ""
    reference: str = ""
    layout: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    split: Split | None = None
    ignore: str = ""
    also: tuple[
        str, ...
    ] = ()  # further reference sites that are this same tensor (the input of each part of a fused projection)
    how: str = "map"  # the evidence, for maps that were inferred


@dataclass(frozen=True)
class Target:
    """Where a port tensor (or one part of it) belongs on the reference side."""

    site: str
    layout: str = ""
    sizes: Mapping[str, int] = field(default_factory=dict)
    axis: int = 0
    part: int = 0
    parts: tuple[int, ...] = ()  # sizes of all parts; () with of > 1 means equal parts
    of: int = 1

    def to_reference(self, value: Tensor) -> Tensor:
        """Return the port's `value` as a view in the reference's layout."""
        if self.of > 1:
            value = self._parts(value)[self.part]
        return rearrange(value, self.layout, self.sizes) if self.layout else value

    def to_port(self, value: Tensor, old: Tensor) -> Tensor:
        """Return the reference's `value` in the port's layout and dtype, laid over `old` (the port's own tensor)."""
        if self.layout:
            value = rearrange_back(value, self.layout, self.to_reference_shape(old), self.sizes)
        value = value.to(dtype=old.dtype, device=old.device)
        if self.of == 1:
            return value.reshape(old.shape)
        fused = old.clone()
        self._parts(fused)[self.part].copy_(value)
        return fused

    def to_reference_shape(self, old: Tensor) -> Tensor:
        return self._parts(old)[self.part] if self.of > 1 else old

    def _parts(self, value: Tensor) -> Sequence[Tensor]:
        if self.parts:
            pieces: Sequence[Tensor] = value.split(list(self.parts), dim=self.axis)
            return pieces
        return value.chunk(self.of, dim=self.axis)


@dataclass(frozen=True)
class NameMap:
    """An ordered list of rules. Sites that no rule matches keep their name."""

    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        compiled = [(re.compile(rule.port), rule) for rule in self.rules if rule.port]
        ignored = [(re.compile(rule.reference), rule.ignore) for rule in self.rules if rule.ignore and not rule.port]
        object.__setattr__(self, "_compiled", compiled)
        object.__setattr__(self, "_ignored", ignored)
        object.__setattr__(self, "_memo", {})

    def targets(self, site: str) -> tuple[Target, ...] | None:
        """Return where a port site belongs; an empty tuple means that it is ignored with a stated reason."""
        memo: dict[str, tuple[Target, ...]] = self._memo  # type: ignore[attr-defined]
        if site not in memo:
            memo[site] = self._targets(site)
        return memo[site]

    def _targets(self, site: str) -> tuple[Target, ...]:
        for pattern, rule in self._compiled:  # type: ignore[attr-defined]
            found = pattern.fullmatch(site)
            if not found:
                continue
            if rule.ignore:
                return ()
            if rule.split:
                names = rule.split.into
                return tuple(
                    Target(
                        found.expand(name), rule.layout, rule.sizes, rule.split.axis, i, rule.split.sizes, len(names)
                    )
                    for i, name in enumerate(names)
                )
            first = found.expand(rule.reference) if rule.reference else site
            return tuple(Target(name, rule.layout, rule.sizes) for name in (first, *map(found.expand, rule.also)))
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

    def evidence(self) -> dict[str, str]:
        """Return reference site -> how it was aligned, for inferred maps (whose references are plain names)."""
        return {
            name: rule.how
            for rule in self.rules
            for name in (rule.split.into if rule.split else (rule.reference, *rule.also))
            if rule.how != "map"
        }

    def ignored_reference(self, site: str) -> str | None:
        """Return the stated reason why a reference site has no counterpart, or None."""
        for pattern, reason in self._ignored:  # type: ignore[attr-defined]
            if pattern.fullmatch(site):
                return str(reason)
        return None


def parse_names(value: Any, where: str = "name map") -> NameMap:
    """Build a name map from plain data (a list of mappings).

    Raises CaseError with the place and the expectation when a rule is malformed.
    """
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise CaseError(
            f"{where}: expected a list of rules like {{port: REGEX, reference: TEMPLATE}}, got {type(value).__name__}"
        )
    rules = []
    for i, item in enumerate(value):
        rules.append(_parse_rule(item, f"{where}: rule {i + 1}"))
    return NameMap(tuple(rules))


def _parse_rule(item: Any, where: str) -> Rule:
    if not isinstance(item, Mapping):
        raise CaseError(f"{where}: expected a mapping like {{port: REGEX, reference: TEMPLATE}}, got {item!r}")
    unknown = set(item) - {"port", "reference", "layout", "sizes", "split", "ignore"}
    if unknown or not ({"port", "reference"} & set(item)):
        raise CaseError(f"{where}: unknown keys {sorted(unknown)} or neither 'port' nor 'reference' given")
    rule = Rule(
        port=str(item.get("port", "")),
        reference=str(item.get("reference", "")),
        layout=str(item.get("layout", "")),
        sizes=_parse_sizes(item.get("sizes", {}), where),
        split=_parse_split(item["split"], where) if "split" in item else None,
        ignore=str(item.get("ignore", "")),
    )
    templates = rule.split.into if rule.split else (rule.reference,) if rule.port else ()
    for pattern in (rule.port, rule.reference if rule.ignore and not rule.port else ""):
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise CaseError(f"{where}: {pattern!r} is no regular expression: {error}") from None
        wanted = max((int(n) for t in templates for n in re.findall(r"\\(\d+)", t)), default=0)
        if pattern == rule.port and wanted > groups:
            raise CaseError(f"{where}: {pattern!r} has {groups} groups, its target names group {wanted}")
    if rule.layout and rule.layout.count("->") != 1:
        raise CaseError(f"{where}: layout {rule.layout!r} is no einops pattern like 'b l h d -> b h l d'")
    return rule


def _parse_split(raw: Any, where: str) -> Split:
    if not isinstance(raw, Mapping) or "into" not in raw:
        raise CaseError(f"{where}: 'split' needs {{axis, into: [names]}}")
    axis, into, sizes = raw.get("axis", -1), raw["into"], raw.get("sizes", ())
    if not isinstance(axis, int):
        raise CaseError(f"{where}: 'axis' of a split must be a whole number, not {axis!r}")
    if not isinstance(into, (list, tuple)) or not into:
        raise CaseError(f"{where}: 'into' of a split must be a list of names, not {into!r}")
    if (
        not isinstance(sizes, (list, tuple))
        or not all(isinstance(n, int) for n in sizes)
        or len(sizes) not in (0, len(into))
    ):
        raise CaseError(
            f"{where}: 'sizes' of a split must be one whole number for each of {len(into)} names, not {sizes!r}"
        )
    return Split(axis, tuple(map(str, into)), tuple(sizes))


def _parse_sizes(raw: Any, where: str) -> dict[str, int]:
    if not isinstance(raw, Mapping) or not all(isinstance(v, int) for v in raw.values()):
        raise CaseError(f"{where}: 'sizes' must give axis lengths like {{h: 12}}, not {raw!r}")
    return {str(k): int(v) for k, v in raw.items()}


def load_names(path: Path) -> NameMap:
    """Read a name map from a YAML (or JSON) file."""
    import yaml

    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CaseError(f"cannot read the name map {path}: {str(error).splitlines()[0]}") from None
    return parse_names(value, str(path))


def rearrange(value: Tensor, pattern: str, sizes: Mapping[str, int]) -> Tensor:
    """Apply an einops pattern (einops is imported only where a map asks for a layout)."""
    import einops

    arranged: Tensor = einops.rearrange(value, pattern, **sizes)
    return arranged


def rearrange_back(value: Tensor, pattern: str, port: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """Undo an einops pattern; axis lengths are read off the port's own tensor."""
    import einops

    left, right = (side.strip() for side in pattern.split("->"))
    lengths = dict(sizes) | einops.parse_shape(port, left) if "(" not in left else dict(sizes)
    lengths.pop("_", None)
    used = {k: v for k, v in lengths.items() if k in re.findall(r"\w+", right)}
    arranged: Tensor = einops.rearrange(value, f"{right} -> {left}", **used)
    return arranged
