"""State-dict keys of the official Wan2.1 checkpoints and of the diffusers / transformers port, as data (spec B1-B3).

Four components: `dit`, `vae`, `text` (UMT5) and `image` (CLIP vision tower). Each has three tables:

* `RENAMES`: ordered pairs (official regex, port template) and, for the way back, (port regex, official template). The
  first rule that matches the whole key wins; a key that no rule matches is an error, never passed through.
* `RESHAPES`: keys whose shape differs (only the CLIP class and position embeddings); `SPLITS`: one official tensor
  that is several port tensors (only the fused CLIP projection); `COPIES`: one official tensor stored under two port
  keys.
* `UNUSED`: official keys that the port has no place for and never reads.

No DiT, VAE or UMT5 tensor is transposed or reshaped, so those conversions are bit-exact and lossless both ways.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

COMPONENTS = ("dit", "vae", "text", "image")
Rules = tuple[tuple[str, str], ...]

_BLOCK = r"(blocks\.\d+)"
_WB = r"(weight|bias)"

# Every official tensor of the DiT, in the order of spec A2. `\1` is the block prefix where there is one.
_DIT: Rules = (
    (rf"patch_embedding\.{_WB}", r"patch_embedding.\1"),
    (rf"time_embedding\.0\.{_WB}", r"condition_embedder.time_embedder.linear_1.\1"),
    (rf"time_embedding\.2\.{_WB}", r"condition_embedder.time_embedder.linear_2.\1"),
    (rf"time_projection\.1\.{_WB}", r"condition_embedder.time_proj.\1"),
    (rf"text_embedding\.0\.{_WB}", r"condition_embedder.text_embedder.linear_1.\1"),
    (rf"text_embedding\.2\.{_WB}", r"condition_embedder.text_embedder.linear_2.\1"),
    (rf"img_emb\.proj\.0\.{_WB}", r"condition_embedder.image_embedder.norm1.\1"),
    (rf"img_emb\.proj\.1\.{_WB}", r"condition_embedder.image_embedder.ff.net.0.proj.\1"),
    (rf"img_emb\.proj\.3\.{_WB}", r"condition_embedder.image_embedder.ff.net.2.\1"),
    (rf"img_emb\.proj\.4\.{_WB}", r"condition_embedder.image_embedder.norm2.\1"),
    (r"img_emb\.emb_pos", r"condition_embedder.image_embedder.pos_embed"),
    (r"head\.modulation", r"scale_shift_table"),  # before the generic modulation (spec B1)
    (rf"head\.head\.{_WB}", r"proj_out.\1"),
    (rf"{_BLOCK}\.modulation", r"\1.scale_shift_table"),
    (rf"{_BLOCK}\.norm3\.{_WB}", r"\1.norm2.\2"),  # the port calls the affine norm norm2: names are exchanged
    (rf"{_BLOCK}\.self_attn\.([qkv])\.{_WB}", r"\1.attn1.to_\2.\3"),
    (rf"{_BLOCK}\.self_attn\.o\.{_WB}", r"\1.attn1.to_out.0.\2"),
    (rf"{_BLOCK}\.self_attn\.norm_([qk])\.weight", r"\1.attn1.norm_\2.weight"),
    (rf"{_BLOCK}\.cross_attn\.([qkv])\.{_WB}", r"\1.attn2.to_\2.\3"),
    (rf"{_BLOCK}\.cross_attn\.o\.{_WB}", r"\1.attn2.to_out.0.\2"),
    (rf"{_BLOCK}\.cross_attn\.norm_([qk])\.weight", r"\1.attn2.norm_\2.weight"),
    (rf"{_BLOCK}\.cross_attn\.([kv])_img\.{_WB}", r"\1.attn2.add_\2_proj.\3"),
    (rf"{_BLOCK}\.cross_attn\.norm_k_img\.weight", r"\1.attn2.norm_added_k.weight"),
    (rf"{_BLOCK}\.ffn\.0\.{_WB}", r"\1.ffn.net.0.proj.\2"),
    (rf"{_BLOCK}\.ffn\.2\.{_WB}", r"\1.ffn.net.2.\2"),
)
_DIT_BACK: Rules = (
    (rf"patch_embedding\.{_WB}", r"patch_embedding.\1"),
    (rf"condition_embedder\.time_embedder\.linear_1\.{_WB}", r"time_embedding.0.\1"),
    (rf"condition_embedder\.time_embedder\.linear_2\.{_WB}", r"time_embedding.2.\1"),
    (rf"condition_embedder\.time_proj\.{_WB}", r"time_projection.1.\1"),
    (rf"condition_embedder\.text_embedder\.linear_1\.{_WB}", r"text_embedding.0.\1"),
    (rf"condition_embedder\.text_embedder\.linear_2\.{_WB}", r"text_embedding.2.\1"),
    (rf"condition_embedder\.image_embedder\.norm1\.{_WB}", r"img_emb.proj.0.\1"),
    (rf"condition_embedder\.image_embedder\.ff\.net\.0\.proj\.{_WB}", r"img_emb.proj.1.\1"),
    (rf"condition_embedder\.image_embedder\.ff\.net\.2\.{_WB}", r"img_emb.proj.3.\1"),
    (rf"condition_embedder\.image_embedder\.norm2\.{_WB}", r"img_emb.proj.4.\1"),
    (r"condition_embedder\.image_embedder\.pos_embed", r"img_emb.emb_pos"),
    (r"scale_shift_table", r"head.modulation"),
    (rf"proj_out\.{_WB}", r"head.head.\1"),
    (rf"{_BLOCK}\.scale_shift_table", r"\1.modulation"),
    (rf"{_BLOCK}\.norm2\.{_WB}", r"\1.norm3.\2"),
    (rf"{_BLOCK}\.attn1\.to_([qkv])\.{_WB}", r"\1.self_attn.\2.\3"),
    (rf"{_BLOCK}\.attn1\.to_out\.0\.{_WB}", r"\1.self_attn.o.\2"),
    (rf"{_BLOCK}\.attn1\.norm_([qk])\.weight", r"\1.self_attn.norm_\2.weight"),
    (rf"{_BLOCK}\.attn2\.to_([qkv])\.{_WB}", r"\1.cross_attn.\2.\3"),
    (rf"{_BLOCK}\.attn2\.to_out\.0\.{_WB}", r"\1.cross_attn.o.\2"),
    (rf"{_BLOCK}\.attn2\.norm_([qk])\.weight", r"\1.cross_attn.norm_\2.weight"),
    (rf"{_BLOCK}\.attn2\.add_([kv])_proj\.{_WB}", r"\1.cross_attn.\2_img.\3"),
    (rf"{_BLOCK}\.attn2\.norm_added_k\.weight", r"\1.cross_attn.norm_k_img.weight"),
    (rf"{_BLOCK}\.ffn\.net\.0\.proj\.{_WB}", r"\1.ffn.0.\2"),
    (rf"{_BLOCK}\.ffn\.net\.2\.{_WB}", r"\1.ffn.2.\2"),
)


# The VAE is mapped by prefix (where the module sits) and suffix (which tensor of the module), spec B2. The decoder is
# flat on the official side and grouped by level (Res blocks, one upsampler) in the port.
def vae_places(levels: int = 4, res_blocks: int = 2) -> tuple[tuple[str, str], ...]:
    """(official, port) prefix of every module of a VAE with so many levels and Res blocks a level."""
    group = res_blocks + 2  # one Res block more than the encoder, and the upsampler
    return (
        ("conv1", "quant_conv"),
        ("conv2", "post_quant_conv"),
        *((f"{net}.conv1", f"{net}.conv_in") for net in ("encoder", "decoder")),
        *((f"{net}.head.0", f"{net}.norm_out") for net in ("encoder", "decoder")),
        *((f"{net}.head.2", f"{net}.conv_out") for net in ("encoder", "decoder")),
        *((f"{net}.middle.0", f"{net}.mid_block.resnets.0") for net in ("encoder", "decoder")),
        *((f"{net}.middle.1", f"{net}.mid_block.attentions.0") for net in ("encoder", "decoder")),
        *((f"{net}.middle.2", f"{net}.mid_block.resnets.1") for net in ("encoder", "decoder")),
        *((f"encoder.downsamples.{j}", f"encoder.down_blocks.{j}") for j in range(levels * (res_blocks + 1) - 1)),
        *(
            (
                f"decoder.upsamples.{j}",
                f"decoder.up_blocks.{j // group}."
                + ("upsamplers.0" if j % group == group - 1 else f"resnets.{j % group}"),
            )
            for j in range(levels * group - 1)
        ),
    )


VAE_PLACES = vae_places()
VAE_TENSORS: tuple[tuple[str, str], ...] = (
    ("", ""),
    (".residual.0", ".norm1"),
    (".residual.2", ".conv1"),
    (".residual.3", ".norm2"),
    (".residual.6", ".conv2"),
    (".shortcut", ".conv_shortcut"),
    (".resample.1", ".resample.1"),
    (".time_conv", ".time_conv"),
    (".norm", ".norm"),
    (".to_qkv", ".to_qkv"),
    (".proj", ".proj"),
)


def _vae_rules(source: int) -> Rules:
    """Every (place, tensor) pair as one rule; `source` 0 reads official keys, 1 reads port keys."""
    rules = []
    for place in VAE_PLACES:
        for tensor in VAE_TENSORS:
            left, right = place[source] + tensor[source], place[1 - source] + tensor[1 - source]
            rules.append((rf"{re.escape(left)}\.(weight|bias|gamma)", rf"{right}.\1"))
    return tuple(rules)


_TEXT_LAYER = r"blocks\.(\d+)"
_TEXT: Rules = (
    (r"token_embedding\.weight", r"shared.weight"),
    (r"norm\.weight", r"encoder.final_layer_norm.weight"),
    (rf"{_TEXT_LAYER}\.norm1\.weight", r"encoder.block.\1.layer.0.layer_norm.weight"),
    (rf"{_TEXT_LAYER}\.attn\.([qkvo])\.weight", r"encoder.block.\1.layer.0.SelfAttention.\2.weight"),
    (
        rf"{_TEXT_LAYER}\.pos_embedding\.embedding\.weight",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (rf"{_TEXT_LAYER}\.norm2\.weight", r"encoder.block.\1.layer.1.layer_norm.weight"),
    (rf"{_TEXT_LAYER}\.ffn\.gate\.0\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wi_0.weight"),
    (rf"{_TEXT_LAYER}\.ffn\.fc1\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wi_1.weight"),
    (rf"{_TEXT_LAYER}\.ffn\.fc2\.weight", r"encoder.block.\1.layer.1.DenseReluDense.wo.weight"),
)
_PORT_BLOCK = r"encoder\.block\.(\d+)\.layer"
_TEXT_BACK: Rules = (
    (r"shared\.weight", r"token_embedding.weight"),
    (r"encoder\.final_layer_norm\.weight", r"norm.weight"),
    (rf"{_PORT_BLOCK}\.0\.layer_norm\.weight", r"blocks.\1.norm1.weight"),
    (rf"{_PORT_BLOCK}\.0\.SelfAttention\.([qkvo])\.weight", r"blocks.\1.attn.\2.weight"),
    (
        rf"{_PORT_BLOCK}\.0\.SelfAttention\.relative_attention_bias\.weight",
        r"blocks.\1.pos_embedding.embedding.weight",
    ),
    (rf"{_PORT_BLOCK}\.1\.layer_norm\.weight", r"blocks.\1.norm2.weight"),
    (rf"{_PORT_BLOCK}\.1\.DenseReluDense\.wi_0\.weight", r"blocks.\1.ffn.gate.0.weight"),
    (rf"{_PORT_BLOCK}\.1\.DenseReluDense\.wi_1\.weight", r"blocks.\1.ffn.fc1.weight"),
    (rf"{_PORT_BLOCK}\.1\.DenseReluDense\.wo\.weight", r"blocks.\1.ffn.fc2.weight"),
)

_IMAGE: Rules = (
    (r"cls_embedding", r"embeddings.class_embedding"),
    (r"pos_embedding", r"embeddings.position_embedding.weight"),
    (r"patch_embedding\.weight", r"embeddings.patch_embedding.weight"),
    (rf"pre_norm\.{_WB}", r"pre_layrnorm.\1"),  # the library's spelling
    (rf"post_norm\.{_WB}", r"post_layernorm.\1"),
    (rf"transformer\.(\d+)\.norm([12])\.{_WB}", r"encoder.layers.\1.layer_norm\2.\3"),
    (rf"transformer\.(\d+)\.attn\.proj\.{_WB}", r"encoder.layers.\1.self_attn.out_proj.\2"),
    (rf"transformer\.(\d+)\.mlp\.0\.{_WB}", r"encoder.layers.\1.mlp.fc1.\2"),
    (rf"transformer\.(\d+)\.mlp\.2\.{_WB}", r"encoder.layers.\1.mlp.fc2.\2"),
)
_IMAGE_BACK: Rules = (
    (r"embeddings\.class_embedding", r"cls_embedding"),
    (r"embeddings\.position_embedding\.weight", r"pos_embedding"),
    (r"embeddings\.patch_embedding\.weight", r"patch_embedding.weight"),
    (rf"pre_layrnorm\.{_WB}", r"pre_norm.\1"),
    (rf"post_layernorm\.{_WB}", r"post_norm.\1"),
    (rf"encoder\.layers\.(\d+)\.layer_norm([12])\.{_WB}", r"transformer.\1.norm\2.\3"),
    (rf"encoder\.layers\.(\d+)\.self_attn\.out_proj\.{_WB}", r"transformer.\1.attn.proj.\2"),
    (rf"encoder\.layers\.(\d+)\.mlp\.fc1\.{_WB}", r"transformer.\1.mlp.0.\2"),
    (rf"encoder\.layers\.(\d+)\.mlp\.fc2\.{_WB}", r"transformer.\1.mlp.2.\2"),
)


@dataclass(frozen=True)
class Split:
    """One official tensor = equal parts, along dimension 0, of several port tensors (regex and templates both ways)."""

    official: str
    port: tuple[str, ...]
    port_regex: tuple[str, ...]
    official_template: str


RENAMES: dict[str, Rules] = {"dit": _DIT, "vae": _vae_rules(0), "text": _TEXT, "image": _IMAGE}
RENAMES_BACK: dict[str, Rules] = {"dit": _DIT_BACK, "vae": _vae_rules(1), "text": _TEXT_BACK, "image": _IMAGE_BACK}
SPLITS: dict[str, tuple[Split, ...]] = {
    "image": (
        Split(
            rf"transformer\.(\d+)\.attn\.to_qkv\.{_WB}",
            tuple(rf"encoder.layers.\1.self_attn.{x}_proj.\2" for x in "qkv"),
            tuple(rf"encoder\.layers\.(\d+)\.self_attn\.{x}_proj\.{_WB}" for x in "qkv"),
            r"transformer.\1.attn.to_qkv.\2",
        ),
    )
}
# official key -> einops pattern official -> port
RESHAPES: dict[str, dict[str, str]] = {
    "image": {"cls_embedding": "1 1 d -> d", "pos_embedding": "1 n d -> n d"},
}
# port key -> the port key of which it is a second name
COPIES: dict[str, dict[str, str]] = {"text": {"encoder.embed_tokens.weight": "shared.weight"}}
UNUSED: dict[str, tuple[str, ...]] = {"image": ("head",)}


def to_port(component: str, official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert an official state dict into the port's keys and shapes (spec B1-B3).

    Raises ValueError, listing the keys, when a key matches no rule or two keys meet in one.
    """
    _known(component)
    out: dict[str, Tensor] = {}
    unknown, clashes = [], []
    for key, tensor in official.items():
        if key in UNUSED.get(component, ()):
            continue
        pieces = _split(component, key, tensor)
        if pieces is None:
            name = _rename(RENAMES[component], key)
            pattern = RESHAPES.get(component, {}).get(key)
            pieces = [] if name is None else [(name, rearrange(tensor, pattern) if pattern else tensor)]
            unknown += [key] if name is None else []
        for name, piece in pieces:
            clashes += [name] if name in out else []
            out[name] = piece
    _refuse(component, "official", unknown, clashes)
    return out | {copy: out[of] for copy, of in COPIES.get(component, {}).items() if of in out}


def to_official(component: str, port: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a port state dict back into official keys and shapes; the inverse of `to_port` but for `UNUSED` keys."""
    _known(component)
    out: dict[str, Tensor] = {}
    unknown, clashes = [], []
    joined: dict[str, list[Tensor | None]] = {}
    back = {_rename(RENAMES[component], key): (key, p) for key, p in RESHAPES.get(component, {}).items()}
    for key, tensor in port.items():
        if key in COPIES.get(component, {}):
            continue
        part = _part(component, key)
        if part is not None:
            name, index, count = part
            joined.setdefault(name, [None] * count)[index] = tensor
            continue
        name = _rename(RENAMES_BACK[component], key)
        if name is None:
            unknown.append(key)
            continue
        clashes += [name] if name in out else []
        pattern = back[key][1] if key in back else None
        out[name] = rearrange(tensor, " -> ".join(reversed(pattern.split(" -> ")))) if pattern else tensor
    unknown += [f"{name} (a part is missing)" for name, parts in joined.items() if any(p is None for p in parts)]
    _refuse(component, "port", unknown, clashes)
    return out | {name: torch.cat([p for p in parts if p is not None]) for name, parts in joined.items()}


def check_same_keys(what: str, expected: Iterable[str], found: Iterable[str]) -> None:
    """Raise one ValueError that lists every missing and every unexpected key, or return."""
    expected, found = set(expected), set(found)
    if expected == found:
        return
    raise ValueError(
        f"{what}: state dict does not fit. Missing {len(expected - found)}: {sorted(expected - found)}. "
        f"Unexpected {len(found - expected)}: {sorted(found - expected)}."
    )


def _known(component: str) -> None:
    if component not in COMPONENTS:
        raise ValueError(f"unknown component {component!r}; choose one of {', '.join(COMPONENTS)}")


def _rename(rules: Rules, key: str) -> str | None:
    for pattern, template in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(template)
    return None


def _split(component: str, key: str, tensor: Tensor) -> list[tuple[str, Tensor]] | None:
    for split in SPLITS.get(component, ()):
        match = re.fullmatch(split.official, key)
        if match:
            names = [match.expand(template) for template in split.port]
            return list(zip(names, tensor.chunk(len(names)), strict=True))
    return None


def _part(component: str, key: str) -> tuple[str, int, int] | None:
    for split in SPLITS.get(component, ()):
        for index, pattern in enumerate(split.port_regex):
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(split.official_template), index, len(split.port)
    return None


def _refuse(component: str, side: str, unknown: list[str], clashes: list[str]) -> None:
    if unknown or clashes:
        raise ValueError(
            f"cannot convert the {side} state dict of {component}: "
            f"no rule for {len(unknown)} keys {sorted(unknown)}; several keys for {sorted(set(clashes))}"
        )
