"""What a fault and a variation of the port are, and how a method of one instance is replaced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

from ..attention import CrossAttention, GatedSelfAttention
from ..pipeline import WaypointPipeline

Inject = Callable[[WaypointPipeline], None]


@dataclass(frozen=True)
class PortFault:
    """A real bug that `inject` puts into a freshly built port, in place.

    spec_id is the specification's id ("M1", "K6", or "17" for its table of further faults); bug_class is the id of the
    bug taxonomy that fits best. `needs` says what a run must have for the fault to show:
      dtype "bf16"; frames n: at least n frames; wraps "local" or "global": more frames than that window
      frames_per_call n: n frames in one streaming step; calls n: streaming steps
      scroll n: a wheel value of magnitude n or more; injected_noise False: the port draws its own noise
      prompt_padding: padded prompt rows; text_encoder: the prompt goes through the text stage; vae: frames are decoded
      kv_heads_min, group_min: key/value heads, query heads per key/value head
      head_dim_not, patch_not: any other value; gated, noise_conditioning: that value; tokens_not_multiple_of n
    """

    name: str
    spec_id: str
    bug_class: str | None
    text: str
    inject: Inject
    needs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PortVariation:
    """A change that a right port may make; `inject` makes it in place. `needs` as in PortFault."""

    name: str
    spec_id: str
    text: str
    inject: Inject
    needs: Mapping[str, Any] = field(default_factory=dict)


def fault(inject: Inject, spec_id: str, bug_class: str | None, **needs: Any) -> PortFault:
    """Describe a fault function by its own name and the first line of its docstring."""
    return PortFault(inject.__name__, spec_id, bug_class, first_line(inject), inject, needs)


def variation(inject: Inject, spec_id: str, **needs: Any) -> PortVariation:
    return PortVariation(inject.__name__, spec_id, first_line(inject), inject, needs)


def first_line(inject: Inject) -> str:
    return (inject.__doc__ or "").strip().splitlines()[0]


def rebind(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace a method on one instance; the function takes self, so that a deep copy binds it to the copy."""
    if not hasattr(owner, name):
        raise AttributeError(f"{type(owner).__name__} has no {name} to replace")
    setattr(owner, name, MethodType(function, owner))


def self_attentions(port: WaypointPipeline) -> list[GatedSelfAttention]:
    return [block.attn for block in port.model.transformer.blocks]


def cross_attentions(port: WaypointPipeline) -> list[CrossAttention]:
    blocks = port.model.transformer.blocks
    return [block.prompt_cross_attn for block in blocks if block.prompt_cross_attn is not None]
