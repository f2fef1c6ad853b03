"""Where it starts: the first divergence in the reference's order of execution, and the innermost module whose inputs agree and whose output does not."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from parity.result import Culprit, Divergence
from parity.trace import Record, Trace

_MOST = 0.9  # of the parameters: a few may have no gradient, or one that is clipped to nothing


def first_divergence(divergences: Sequence[Divergence]) -> Divergence | None:
    """Return the earliest divergence in the reference's order."""
    return min(divergences, key=lambda d: (d.order, d.metric == "extra"), default=None)


def owner(divergence: Divergence, reference: Trace, compared: Container[str] | None = None) -> str:
    """Return the module whose own code computed the diverging record.

    Everything recorded before it agrees. So an output of module M points at M (its children and inputs agree), an input of M at M's caller, and
    something seen inside a module call (a function, a state) at that module. Outside every module it is the program itself: the record's own name.
    compared: the keys that have a partner. An input that the reference had just made, or was just handed, at sites without one is theirs.
    """
    record = reference.get(divergence.key)
    if record is None:
        return divergence.module or divergence.site
    if compared is not None and record.role == "in":
        record = _maker(record, reference, compared)
    if record.role == "gradient" and divergence.metric == "missing" and ".in." in record.site:
        return _caller(record, reference)  # what is handed to a module without its history is handed so by the caller
    return record.module or record.site.partition(".in.")[0]


def training_owner(first: Divergence, divergences: Sequence[Divergence], reference: Trace) -> str:
    """Return the root's name when all that a training step takes or leaves diverges at once: then the step did it, no module. Else nothing."""
    record = reference.get(first.key)
    if record is None or record.role != "parameter" or ".in." in record.site:
        return ""
    ending = record.site.rpartition(".")[2]
    alike = [r for r in reference if r.role == "parameter" and r.coords == record.coords and r.site.endswith(ending)]
    alike = [r for r in alike if ".in." not in r.site and r.site.partition(".")[0] == record.site.partition(".")[0]]
    wrong = {d.key for d in divergences}
    if len({r.module for r in alike}) < 2 or sum(r.key in wrong for r in alike) < _MOST * len(alike):
        return ""
    return next((r.module for r in reference if r.role == "gradient" and ".in." not in r.site), record.module)


def _caller(record: Record, reference: Trace) -> str:
    """Return the innermost recorded module around the one whose input a gradient is of."""
    known, module = {r.module for r in reference} | set(reference.sites()), record.site.partition(".in.")[0]
    while "." in module:
        module = module.rpartition(".")[0]
        if module in known:
            return module
    return next(
        (r.module for r in reference if r.module and "." not in r.module and r.module != record.module), record.module
    )


def _maker(record: Record, reference: Trace, compared: Container[str]) -> Record:
    """Return the earliest of the lone records just before `record` that hold the same numbers; `record` itself when none does."""
    value, found = reference.tensor(record.key), record
    for earlier in reversed(reference.records[: record.order]):
        if earlier.key in compared or value is None:
            break
        other = reference.tensor(earlier.key) if earlier.shape == record.shape else None
        if other is not None and other.dtype == value.dtype and bool((other == value).all()):
            found = earlier
    return found


def culprits(
    divergences: Iterable[Divergence], reference: Trace, compared: Container[str] | None = None
) -> tuple[Culprit, ...]:
    """Return one culprit a module, in order of execution, for divergences that do not depend on each other (isolation)."""
    found: dict[str, Culprit] = {}
    for divergence in sorted(divergences, key=lambda d: d.order):
        module = owner(divergence, reference, compared)
        if module not in found:
            found[module] = Culprit(module=module, site=divergence.site, coords=dict(divergence.coords))
    return tuple(found.values())


def without_echoes(divergences: Sequence[Divergence]) -> list[Divergence]:
    """Drop divergences that repeat an earlier one of the same value: an input that is the output just seen."""
    kept: list[Divergence] = []
    last: Mapping[str, object] = {}
    for divergence in divergences:
        fingerprint = {
            "error": divergence.error,
            "shape": divergence.shape,
            "value": divergence.port_value,
            "index": divergence.index,
        }
        if fingerprint != last or divergence.metric in ("missing", "extra"):
            kept.append(divergence)
        last = fingerprint
    return kept
