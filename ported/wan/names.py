"""Site names of the port in the official names, as data: `{port: REGEX, reference: TEMPLATE}` rules, first match wins.

A port site is a module path (its output), `<path>.in.<argument>` (an input), `<path>.<i>` (part i of a tuple result) or
a label of `seams.SEAMS`. Reference sites are official module paths (spec A2, A10-A12) and labels of spec Part E.
`layout` is an einops pattern, port -> reference, where they differ; `split` names the parts of a fused port tensor;
`ignore` says why a port site has no counterpart. Sites that no rule matches keep their name (`patch_embedding`).
"""

from collections.abc import Sequence
from typing import Any

from ported.wan.keys import VAE_PLACES

Rule = dict[str, Any]

_B = r"blocks\.(\d+)"
_IN = r"(\.in\.input)?"  # a leaf and its input in one rule
_EMB = r"condition_embedder\."


def rule(port: str, reference: str = "", **others: Any) -> Rule:
    """One rule; without a reference it must carry `split` or `ignore`."""
    return {"port": port, **({"reference": reference} if reference else {}), **others}


def attention(port: str, official: str) -> list[Rule]:
    """Rules of one attention module of a block."""
    p, o = rf"{_B}\.{port}", rf"blocks.\1.{official}"
    return [
        rule(rf"{p}\.to_([qkv]){_IN}", rf"{o}.\2\3"),
        rule(rf"{p}\.to_out\.0{_IN}", rf"{o}.o\2"),
        rule(rf"{p}\.to_out\.1.*", ignore="dropout, inactive"),
        rule(rf"{p}\.norm_([qk])(\.in\.x)?", rf"{o}.norm_\2\3"),
        rule(rf"{p}\.add_([kv])_proj{_IN}", rf"{o}.\2_img\3"),
        rule(rf"{p}\.norm_added_k(\.in\.x)?", rf"{o}.norm_k_img\2"),
        rule(rf"{p}\.to_qkv", split={"axis": -1, "into": [rf"{o}.{x}" for x in "qkv"]}),
        rule(rf"{p}\.to_kv", split={"axis": -1, "into": [rf"{o}.{x}" for x in "kv"]}),
        rule(rf"{p}\.to_added_kv", split={"axis": -1, "into": [rf"{o}.{x}_img" for x in "kv"]}),
        rule(rf"{p}\.to_(?:qkv|kv|added_kv)\.in\.input", ignore="the input of a fused projection is that of its parts"),
        rule(rf"{p}\.in\.hidden_states", rf"{o}.in.x"),
        rule(rf"{p}\.in\.encoder_hidden_states", rf"{o}.in.context"),
        rule(rf"{p}\.in\.rotary_emb\.[01]", ignore="real tables; compare seams.rope_pairs with rope.grid"),
        rule(rf"{p}\.(q_rope|k_rope)", rf"{o}.\2"),  # both (b, s, heads, d)
        rule(rf"{p}\.(attn|attn_img|attn_text)", rf"{o}.\2", layout="b s h d -> b s (h d)"),
        rule(p, o),
    ]


DIT: list[Rule] = [
    rule(rf"{_EMB}timesteps_proj", "time_sinusoid"),
    rule(rf"{_EMB}timesteps_proj\.in\.timesteps", "t"),
    rule(rf"{_EMB}time_embedder", "time_embedding"),
    rule(rf"{_EMB}time_embedder\.linear_1\.in\.input", "time_embedding.0.in.x"),
    rule(rf"{_EMB}time_embedder\.linear_2\.in\.input", "time_embedding.2.in.x"),
    rule(rf"{_EMB}time_embedder\.linear_1", "time_embedding.0"),
    rule(rf"{_EMB}time_embedder\.act{_IN}", r"time_embedding.1\1"),
    rule(rf"{_EMB}time_embedder\.linear_2", "time_embedding.2"),
    rule(rf"{_EMB}time_embedder\.in\.sample", "time_embedding.in.input"),
    rule(rf"{_EMB}act_fn{_IN}", r"time_projection.0\1"),
    rule(rf"{_EMB}time_proj", "time_projection"),
    rule(rf"{_EMB}time_proj\.in\.input", "time_projection.1.in.x"),
    rule(rf"{_EMB}text_embedder", "text_embedding"),
    rule(rf"{_EMB}text_embedder\.linear_1{_IN}", r"text_embedding.0\1"),
    rule(rf"{_EMB}text_embedder\.act_1{_IN}", r"text_embedding.1\1"),
    rule(rf"{_EMB}text_embedder\.linear_2{_IN}", r"text_embedding.2\1"),
    rule(rf"{_EMB}text_embedder\.in\.caption", "text_embedding.in.input"),
    rule(rf"{_EMB}image_embedder", "img_emb"),
    rule(rf"{_EMB}image_embedder\.norm1", "img_emb.proj.0"),
    rule(rf"{_EMB}image_embedder\.norm1\.in\.inputs", "img_emb.proj.0.in.x"),
    rule(rf"{_EMB}image_embedder\.ff\.net\.0\.proj{_IN}", r"img_emb.proj.1\1"),
    rule(rf"{_EMB}image_embedder\.ff\.net\.0", "img_emb.proj.2"),
    rule(rf"{_EMB}image_embedder\.ff\.net\.2{_IN}", r"img_emb.proj.3\1"),
    rule(rf"{_EMB}image_embedder\.norm2", "img_emb.proj.4"),
    rule(rf"{_EMB}image_embedder\.norm2\.in\.inputs", "img_emb.proj.4.in.x"),
    rule(rf"{_EMB}image_embedder\.in\.encoder_hidden_states_image", "img_emb.in.features"),
    rule(rf"{_EMB}image_embedder\.ff.*", ignore="a wrapper of proj.1 to proj.3, and an inactive dropout"),
    rule(r"condition_embedder.*", ignore="a wrapper of time, text and image embedding"),
    rule(r"rope.*", ignore="real tables; compare seams.rope_pairs with rope.grid"),
    *attention("attn1", "self_attn"),
    *attention("attn2", "cross_attn"),
    rule(rf"{_B}\.norm1", r"blocks.\1.norm1"),
    rule(rf"{_B}\.norm2", r"blocks.\1.norm3"),  # names are exchanged (spec B1)
    rule(rf"{_B}\.norm3", r"blocks.\1.norm2"),
    rule(rf"{_B}\.norm1\.in\.inputs", r"blocks.\1.norm1.in.x"),
    rule(rf"{_B}\.norm2\.in\.inputs", r"blocks.\1.norm3.in.x"),
    rule(rf"{_B}\.norm3\.in\.inputs", r"blocks.\1.norm2.in.x"),
    rule(rf"{_B}\.ffn\.net\.0\.proj{_IN}", r"blocks.\1.ffn.0\2"),
    rule(rf"{_B}\.ffn\.net\.0", r"blocks.\1.ffn.1"),
    rule(rf"{_B}\.ffn\.net\.0\.in\.hidden_states", ignore="equals the input of its projection"),
    rule(rf"{_B}\.ffn\.net\.1.*", ignore="dropout, inactive"),
    rule(rf"{_B}\.ffn\.net\.2{_IN}", r"blocks.\1.ffn.2\2"),
    rule(rf"{_B}\.ffn\.in\.hidden_states", r"blocks.\1.ffn.in.input"),
    rule(rf"{_B}\.in\.hidden_states", r"blocks.\1.in.x"),
    rule(rf"{_B}\.in\.encoder_hidden_states", r"blocks.\1.in.context"),
    rule(rf"{_B}\.in\.temb", r"blocks.\1.in.e0"),
    rule(rf"{_B}\.in\.rotary_emb\.[01]", ignore="real tables; compare seams.rope_pairs with rope.grid"),
    rule(r"norm_out", "head.norm"),
    rule(r"norm_out\.in\.inputs", "head.norm.in.x"),
    rule(r"proj_out", "head.head"),
    rule(r"proj_out\.in\.input", "head.head.in.x"),
]

# module of a place -> what the official code calls it; SiLU is one shared module in the port, without a site of its own
_VAE_PARTS = (
    ("norm1", "residual.0"),
    ("conv1", "residual.2"),
    ("norm2", "residual.3"),
    ("conv2", "residual.6"),
    ("conv_shortcut", "shortcut"),
    (r"resample\.0", "resample.0"),
    (r"resample\.1", "resample.1"),
    ("resample", "resample"),
    ("time_conv", "time_conv"),
    ("norm", "norm"),
    ("to_qkv", "to_qkv"),
    ("proj", "proj"),
)


def vae_rules(places: Sequence[tuple[str, str]] = VAE_PLACES) -> list[Rule]:
    """Every module of the VAE: its place (spec B2), its parts, and the inputs of both."""
    rules = [
        rule(r".*\.nonlinearity.*", ignore="one SiLU module serves the whole network"),
        rule(r".*\.dropout.*", ignore="dropout, inactive"),
        rule(r".*\.mid_block(\.in\..*)?", ignore="a wrapper of three modules"),
        rule(r"decoder\.up_blocks\.\d+(\.in\..*)?", ignore="a wrapper of three residual blocks and an upsampler"),
        rule(r".*\.in\.feat_cache.*", ignore="the cache is read slot by slot"),
    ]
    for official, port in places:
        escaped = port.replace(".", r"\.")
        for part, reference in (("", ""), *((rf"\.{a}", f".{b}") for a, b in _VAE_PARTS)):
            rules.append(rule(rf"{escaped}{part}\.in\.cache_x", rf"{official}{reference}.in.past"))
            rules.append(rule(rf"{escaped}{part}(\.in\..*)?", rf"{official}{reference}\1"))
    return rules


_T = r"encoder\.block\.(\d+)"
TEXT: list[Rule] = [
    rule(r"encoder\.embed_tokens(\.in\.input)?", r"token_embedding\1"),
    rule(r"encoder\.final_layer_norm", "norm"),
    rule(r"encoder\.final_layer_norm\.in\.hidden_states", "norm.in.x"),
    rule(rf"{_T}\.layer\.0\.layer_norm", r"blocks.\1.norm1"),
    rule(rf"{_T}\.layer\.1\.layer_norm", r"blocks.\1.norm2"),
    rule(rf"{_T}\.layer\.0\.layer_norm\.in\.hidden_states", r"blocks.\1.norm1.in.x"),
    rule(rf"{_T}\.layer\.1\.layer_norm\.in\.hidden_states", r"blocks.\1.norm2.in.x"),
    rule(rf"{_T}\.layer\.0\.SelfAttention\.([qkvo]){_IN}", r"blocks.\1.attn.\2\3"),
    rule(rf"{_T}\.layer\.0\.SelfAttention\.0", r"blocks.\1.attn"),
    rule(rf"{_T}\.layer\.0\.SelfAttention\.pos_bias", r"blocks.\1.pos_embedding"),
    rule(rf"{_T}\.layer\.0\.SelfAttention\.relative_attention_bias{_IN}", r"blocks.\1.pos_embedding.embedding\2"),
    rule(rf"{_T}\.layer\.0\.SelfAttention\.in\.hidden_states", r"blocks.\1.attn.in.x"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense\.wi_0{_IN}", r"blocks.\1.ffn.gate.0\2"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense\.act", r"blocks.\1.ffn.gate.1"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense\.act\.in\.input", r"blocks.\1.ffn.gate.1.in.x"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense\.wi_1{_IN}", r"blocks.\1.ffn.fc1\2"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense\.wo{_IN}", r"blocks.\1.ffn.fc2\2"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense", r"blocks.\1.ffn"),
    rule(rf"{_T}\.layer\.1\.DenseReluDense\.in\.hidden_states", r"blocks.\1.ffn.in.x"),
    rule(_T, r"blocks.\1"),
    rule(rf"{_T}\.in\.hidden_states", r"blocks.\1.in.x"),
    rule(r"encoder.*", ignore="wrappers, inactive dropouts, and masks in the library's additive form"),
]

_L = r"encoder\.layers\.(\d+)"
IMAGE: list[Rule] = [
    rule(rf"embeddings\.patch_embedding{_IN}", r"patch_embedding\1"),
    rule(r"pre_layrnorm", "pre_norm"),
    rule(r"pre_layrnorm\.in\.input", "pre_norm.in.x"),
    rule(rf"{_L}\.layer_norm([12])", r"transformer.\1.norm\2"),
    rule(rf"{_L}\.layer_norm([12])\.in\.input", r"transformer.\1.norm\2.in.x"),
    rule(rf"{_L}\.self_attn\.[qkv]_proj.*", ignore="a third of the official fused projection"),
    rule(rf"{_L}\.self_attn\.out_proj{_IN}", r"transformer.\1.attn.proj\2"),
    rule(rf"{_L}\.self_attn\.0", r"transformer.\1.attn"),
    rule(rf"{_L}\.self_attn\.in\.hidden_states", r"transformer.\1.attn.in.x"),
    rule(rf"{_L}\.mlp\.fc1{_IN}", r"transformer.\1.mlp.0\2"),
    rule(rf"{_L}\.mlp\.activation_fn{_IN}", r"transformer.\1.mlp.1\2"),
    rule(rf"{_L}\.mlp\.fc2{_IN}", r"transformer.\1.mlp.2\2"),
    rule(rf"{_L}\.mlp", r"transformer.\1.mlp"),
    rule(rf"{_L}\.mlp\.in\.hidden_states", r"transformer.\1.mlp.in.input"),
    rule(_L, r"transformer.\1"),
    rule(rf"{_L}\.in\.hidden_states", r"transformer.\1.in.x"),
    rule(r"(embeddings|post_layernorm|encoder).*", ignore="wrappers, and the pooled output that Wan does not use"),
]

NAMES: dict[str, list[Rule]] = {"dit": DIT, "vae": vae_rules(), "text": TEXT, "image": IMAGE}
