"""Which parameter's gradient of the port is which of the reference: rules from the weights, also transposed or as rows of a fused one."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from parity.align.by_values import moments
from parity.align.by_weights import Print, leaf_of, match_weights, pair_prints
from parity.capture.probes import root_label
from parity.trace import Record, Trace
from parity.trace.names import NameMap, Rule, Split

_ENDINGS = (".grad", ".after")


def with_parameter_rules(names: NameMap, reference: nn.Module, port: nn.Module) -> NameMap:
    """Return the map with rules, tried first, for what is recorded of parameters: their gradients and their values after a step."""
    left, right = dict(reference.named_parameters()), dict(port.named_parameters())
    roots = _root(reference), _root(port)
    prints = [{n: Print(tuple(v.shape), moments(v.detach())) for n, v in side.items()} for side in (left, right)]
    rules: list[Rule] = []
    for own, other in pair_prints(*prints).items():
        layout = _layout(left[other], right[own])
        if layout is not None:
            rules += [
                Rule(
                    port=re.escape(_site(own, roots[1]) + end),
                    reference=_site(other, roots[0]) + end,
                    layout=layout,
                    how="weights",
                )
                for end in _ENDINGS
            ]
    for leaf, fusion in match_weights(reference, port).fused.items():
        for own in (n for n in right if leaf_of(n) == leaf):
            parts = tuple(f"{part}.{own.rpartition('.')[2]}" for part in fusion.leaves)
            if all(n in left for n in parts):
                rules += [
                    Rule(
                        port=re.escape(own + end),
                        split=Split(0, tuple(n + end for n in parts), fusion.sizes),
                        how="fused weights",
                    )
                    for end in _ENDINGS
                ]
    return NameMap((*rules, *names.rules))


def _layout(reference: Tensor, port: Tensor) -> str | None:
    """Return the einops pattern from the port's layout to the reference's ("" for none); None when there is no plain one."""
    if reference.shape == port.shape and torch.allclose(reference.double(), port.double(), rtol=1e-2, atol=1e-6):
        return ""
    if (
        reference.dim() == 2
        and reference.shape == port.shape[::-1]
        and torch.allclose(reference.double(), port.t().double(), rtol=1e-2, atol=1e-6)
    ):
        return "a b -> b a"
    if reference.shape == port.shape:
        return ""
    return None


def _root(module: nn.Module) -> str:
    return root_label(name for name, _ in module.named_children())


def _site(name: str, root: str) -> str:
    return name if "." in name else f"{root}.{name}"


def without_gradients(trace: Trace) -> Trace:
    """Return the records of the forward pass alone: gradients follow the values that they are of."""
    if not any(record.role in ("gradient", "parameter") for record in trace):
        return trace
    forward = Trace(manifest=trace.manifest)
    for record in trace:
        if record.role not in ("gradient", "parameter"):
            forward.add(replace(record, order=len(forward)), trace.tensor(record.key))
    return forward


def stopped(alone: Sequence[Record], sites: Collection[str], others: Sequence[Record]) -> set[str]:
    """Return the keys of lone gradient records whose value the other side has, too: there no gradient arrives.

    sites: what is paired one to one, in the reference's names. others: what is alone on the other side. Where that holds gradients that found no partner
    in the same module, the two may be the same parameter under another name, and nothing is said.
    """
    found = set()
    unsure = {_holder(other.site) for other in others if other.role == "parameter"}
    for record in alone:
        value, _, suffix = record.site.rpartition(".")
        if suffix != "grad":
            continue
        holder = _holder(record.site)
        if (record.role == "gradient" and value in sites) or (
            record.role == "parameter" and holder in sites and holder not in unsure
        ):
            found.add(record.key)
    return found


def _holder(site: str) -> str:
    """Return the module that holds the parameter whose gradient a site is."""
    return site.rpartition(".")[0].rpartition(".")[0]
