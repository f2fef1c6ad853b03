"""Names of weights: the reference's state dict to the port's and back, as data (spec B11, A9).

A rule is (pattern for a whole key, replacement). A key that no rule takes, that the model lacks or that is left over is
an error; nothing is filled in and nothing is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .config import WaypointConfig
from .model import WaypointWorldModel

Rule = tuple[str, str]

_BLOCK = r"transformer\.blocks\.\d+"
_MLP_OWNER = rf"denoise_step_emb|ctrl_emb|{_BLOCK}|{_BLOCK}\.ctrl_mlpfusion"
_UNCHANGED: list[Rule] = [
    (rf"({_BLOCK}\.attn\.(?:q|k|v|out|gate)_proj\.weight)", r"\1"),
    (rf"({_BLOCK}\.prompt_cross_attn\.(?:q|k|v|out)_proj\.weight)", r"\1"),
    (rf"({_BLOCK}\.cond_head\.bias_in)", r"\1"),
    (rf"({_BLOCK}\.cond_head\.cond_proj\.[0-5]\.weight)", r"\1"),
    (r"(patchify\.weight|unpatchify\.(?:weight|bias)|out_norm\.fc\.weight|(?:ctrl|prompt)_cfg\.null_emb)", r"\1"),
]

REFERENCE_TO_PORT: list[Rule] = [
    (rf"({_MLP_OWNER})\.mlp\.fc1\.weight", r"\1.mlp.fc_in.weight"),
    (rf"({_MLP_OWNER})\.mlp\.fc2\.weight", r"\1.mlp.fc_out.weight"),
    *_UNCHANGED,
]
PORT_TO_REFERENCE: list[Rule] = [
    (rf"({_MLP_OWNER})\.mlp\.fc_in\.weight", r"\1.mlp.fc1.weight"),
    (rf"({_MLP_OWNER})\.mlp\.fc_out\.weight", r"\1.mlp.fc2.weight"),
    *_UNCHANGED,
]

# A patched reference: a fused tensor is split into these keys, or a set of keys is joined into one (spec A8).
MERGED_QKV = rf"({_BLOCK}\.attn)\.qkv_proj\.weight"
SPLIT_FUSION = rf"({_BLOCK}\.ctrl_mlpfusion)\.fc1_x\.weight"
SPLIT_FUSION_OUT: list[Rule] = [(rf"({_BLOCK}\.ctrl_mlpfusion)\.fc2\.weight", r"\1.mlp.fc2.weight")]

WEIGHT_NORM: list[Rule] = [
    (r"(.*)\.parametrizations\.weight\.original0", r"\1.weight_g"),
    (r"(.*)\.parametrizations\.weight\.original1", r"\1.weight_v"),
]


def rename(key: str, rules: Sequence[Rule]) -> str | None:
    """Return the key's new name by the first rule that takes it, or None."""
    for pattern, replacement in rules:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    return None


def expected_keys(config: WaypointConfig) -> list[str]:
    """Keys of the port's state dict, in its order; makes no weights."""
    with torch.device("meta"):
        return list(WaypointWorldModel(config).state_dict())


def unpatch(state_dict: Mapping[str, Tensor], config: WaypointConfig) -> dict[str, Tensor]:
    """Undo the reference's inference patches: qkv_proj into q, k, v rows; fc1_x and fc1_c into the columns of fc1."""
    out = dict(state_dict)
    rows = [n * config.head_dim for n in (config.n_heads, config.kv_heads, config.kv_heads)]
    for key in state_dict:
        if match := re.fullmatch(MERGED_QKV, key):
            for name, part in zip("qkv", out.pop(key).split(rows), strict=True):
                out[f"{match[1]}.{name}_proj.weight"] = part
        elif (match := re.fullmatch(SPLIT_FUSION, key)) and f"{match[1]}.fc1_c.weight" in out:
            halves = (out.pop(key), out.pop(f"{match[1]}.fc1_c.weight"))
            out[f"{match[1]}.mlp.fc1.weight"] = torch.cat(halves, dim=1)
        elif new := rename(key, SPLIT_FUSION_OUT):
            out[new] = out.pop(key)
    return out


def _check(unmapped: Iterable[str], missing: Iterable[str], unexpected: Iterable[str], what: str) -> None:
    problems = {"unmapped": sorted(unmapped), "missing": sorted(missing), "unexpected": sorted(unexpected)}
    text = "; ".join(f"{len(keys)} {name}: {', '.join(keys)}" for name, keys in problems.items() if keys)
    if text:
        raise ValueError(f"Waypoint port: {what}: {text}")


def _translate(
    state_dict: Mapping[str, Tensor], rules: Sequence[Rule], expected: Sequence[str], what: str
) -> dict[str, Tensor]:
    names = {key: rename(key, rules) for key in state_dict}
    out = {new: state_dict[key] for key, new in names.items() if new is not None}
    unmapped = [key for key, new in names.items() if new is None]
    _check(unmapped, set(expected) - set(out), set(out) - set(expected), what)
    return {key: out[key] for key in expected}


def from_reference(state_dict: Mapping[str, Tensor], config: WaypointConfig) -> dict[str, Tensor]:
    """Rename a reference state dict, plain or patched, to the port's keys.

    Raises ValueError that lists every unmapped, missing and unexpected key.
    """
    plain = unpatch(state_dict, config)
    return _translate(plain, REFERENCE_TO_PORT, expected_keys(config), "reference weights do not fit the config")


def to_reference(state_dict: Mapping[str, Tensor], config: WaypointConfig) -> dict[str, Tensor]:
    """Rename a port state dict to the reference's keys; the inverse of `from_reference`, as strict."""
    expected = [rename(key, PORT_TO_REFERENCE) for key in expected_keys(config)]
    names = [key for key in expected if key is not None]
    return _translate(state_dict, PORT_TO_REFERENCE, names, "port weights do not fit the config")


def bake_weight_norm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Autoencoder weights with every weight norm multiplied out: W = g v / ||v|| over all but the output axis.

    Tensors that carry no weight norm keep their names, so a baked state dict passes unchanged.
    """
    renamed = {rename(key, WEIGHT_NORM) or key: tensor for key, tensor in state_dict.items()}
    out = {key: t for key, t in renamed.items() if not key.endswith((".weight_g", ".weight_v"))}
    magnitudes = {key.removesuffix("_g") for key in renamed if key.endswith(".weight_g")}
    directions = {key.removesuffix("_v") for key in renamed if key.endswith(".weight_v")}
    _check((), magnitudes ^ directions, (), "autoencoder weight norm without its other half")
    for key in magnitudes:
        g, v = renamed[f"{key}_g"], renamed[f"{key}_v"]
        out[key] = v * (g / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    return out
