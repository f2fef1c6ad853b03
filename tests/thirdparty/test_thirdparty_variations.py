"""Right ports that run otherwise: compiled, in chunks, row by row, token by token on a cache, with other masks, tables, layouts and kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from thirdparty_rebuild import SplitK, renamed, replace_linears, with_class, wrapped
from thirdparty_transformers import load
from thirdparty_unet import build_unet, build_vae, unet_inputs, vae_inputs
from thirdparty_wan import build_wan, wan_inputs
from torch import Tensor, nn

import parity


def check(reference, port, inputs):
    """Check a pair whose sides may each have inputs of their own."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(given, (dict, tuple)) for given in inputs):
        return parity.check(reference, port, inputs[0], port_inputs=inputs[1])
    return parity.check(reference, port, inputs)


Sides = tuple[Any, Any, Any]


def whole(model: nn.Module, input_ids: Tensor) -> Tensor:
    return model(input_ids=input_ids, use_cache=False).logits


def on_a_cache(*sizes: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """Decode in pieces of these lengths, each on the cache of those before it."""

    def run(model: nn.Module, input_ids: Tensor) -> Tensor:
        cache, logits = None, []
        for part in input_ids.split(list(sizes), 1):
            out = model(input_ids=part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits)
        return torch.cat(logits, 1)

    return run


def forgetful(model: nn.Module, input_ids: Tensor) -> Tensor:
    """The second piece counts its positions from zero again."""
    first = model(input_ids=input_ids[:, :6], use_cache=True)
    places = torch.arange(input_ids.shape[1] - 6)[None]
    rest = model(input_ids=input_ids[:, 6:], past_key_values=first.past_key_values, position_ids=places)
    return torch.cat([first.logits, rest.logits], 1)


def row_by_row(model: nn.Module, input_ids: Tensor) -> Tensor:
    return torch.cat([whole(model, row[None]) for row in input_ids])


def llama(run: Callable[..., Tensor]) -> Sides:
    (reference, inputs), (port, _) = load("llama"), load("llama", attention="sdpa")
    return (whole, reference), (run, port), {"input_ids": inputs["input_ids"]}


def llama_with(change: Callable[[nn.Module], nn.Module], mask: Tensor | None = None, **more: Any) -> Sides:
    (reference, inputs), (port, _) = load("llama"), load("llama", attention="sdpa")
    inputs = inputs if mask is None else inputs | {"attention_mask": mask}
    return reference, change(port), (inputs, inputs | more)


def unet_with(change: Callable[[Any], object]) -> Sides:
    reference = build_unet()
    port = copy.deepcopy(reference)
    change(port)
    return reference, port, unet_inputs()


def chunked(model: nn.Module) -> None:
    for module in model.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(5, 1)


def sliced_vae() -> Sides:
    reference = build_vae()
    port = copy.deepcopy(reference)
    port.enable_slicing()
    return reference, port, vae_inputs()


def compiled_block() -> Sides:
    reference = build_wan(layers=1)
    port = copy.deepcopy(reference)
    port.blocks[0].ffn = torch.compile(port.blocks[0].ffn, backend="eager")
    return reference, port, wan_inputs()


def same(model: nn.Module) -> nn.Module:
    return model


PADDED = torch.ones(2, 9, dtype=torch.long)
PADDED[1, 6:] = 0
NAMES = {"layers": "blocks", "self_attn": "mixer", "q_proj": "query", "mlp": "ff", "input_layernorm": "ln_a"}
RIGHT: dict[str, Callable[[], Sides]] = {
    "prompt, then the rest": lambda: llama(on_a_cache(6, 3)),
    "token by token": lambda: llama(on_a_cache(*[1] * 9)),
    "row by row": lambda: llama(row_by_row),
    "padded on the right": lambda: llama_with(same, PADDED),
    "tuple for a model output": lambda: llama_with(same, return_dict=False),
    "positions of every sample": lambda: llama_with(same, position_ids=torch.arange(9)[None].expand(2, -1)),
    "other names in a shell": lambda: llama_with(lambda port: wrapped(renamed(port, NAMES))),
    "sums in two halves": lambda: llama_with(lambda port: replace_linears(port, with_class(SplitK))),
    "feed-forward in chunks": lambda: unet_with(chunked),
    "attention in slices": lambda: unet_with(lambda port: port.set_attention_slice(1)),
    "attention by hand": lambda: unet_with(lambda port: port.set_attn_processor(AttnProcessor())),
    "channels last": lambda: unet_with(lambda port: port.to(memory_format=torch.channels_last)),
    "pictures one by one": sliced_vae,
    "compiled": compiled_block,
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_matches(name: str) -> None:
    reference, port, inputs = RIGHT[name]()
    result = check(reference, port, inputs)
    assert result.verdict == "match", [(d.key, d.metric, d.error, d.detail) for d in result.divergences[:4]]
    assert result.coverage.compared >= 0.88 * result.coverage.reference


def test_a_fault_of_the_second_piece_is_named() -> None:
    result = check(*llama(forgetful))
    assert result.first is not None
    assert result.first.site == "model.rotary_emb.in.position_ids"
    assert result.causes[0].class_id == "P2"
    assert "restart at 0 every 6" in result.causes[0].text


def test_a_fault_of_a_chunked_port_is_placed() -> None:
    def change(port: Any) -> None:
        chunked(port)
        port.mid_block.attentions[0].transformer_blocks[0].ff.net[0].gelu = lambda gate: nn.functional.silu(gate)

    result = check(*unet_with(change))
    assert [c.module for c in result.culprits] == ["mid_block.attentions.0.transformer_blocks.0.ff.net.0"]
    assert not result.causes or result.causes[0].class_id == "N2" or result.causes[0].confidence < 0.9


def test_padding_on_the_left_is_a_difference_of_rows_without_a_key() -> None:
    """Eager attention gives such rows the mean of the values, SDPA gives zero: no right port, and no sure cause either."""
    mask = PADDED.flip(1)
    result = check(*llama_with(same, mask))
    assert result.verdict == "diverged"
    assert all(cause.confidence < 0.9 for cause in result.causes)
