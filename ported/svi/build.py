"""Build the port's networks from official configs and weights."""

from functools import cache

import torch
from diffusers import AutoencoderKLWan

from ported.wan import configs, keys
from ported.wan.build import Config, State, build_dit
from ported.wan.dit import DiTForward


def build_vae(config: Config, state: State) -> AutoencoderKLWan:
    """Build `AutoencoderKLWan` for any number of levels and Res blocks, load strictly, keep it in float32.

    Errors: ValueError that lists the keys which do not fit.
    """
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in configs.vae_arguments(config).items()}
    model = AutoencoderKLWan(**arguments)
    names = vae_names(len(config.get("dim_mult", (1, 2, 4, 4))), config.get("num_res_blocks", 2))
    unknown = sorted(key for key in state if key not in names)
    if unknown:
        raise ValueError(f"vae: no name for {len(unknown)} keys {unknown}")
    converted = {names[key]: value.float() for key, value in state.items()}
    keys.check_same_keys("vae", model.state_dict(), converted)
    model.load_state_dict(converted, strict=True)
    return model.eval().requires_grad_(False)


@cache
def vae_names(levels: int, res_blocks: int) -> dict[str, str]:
    """Official key of every tensor that such a VAE may have -> the library's key."""
    return {
        f"{official}{inside}.{kind}": f"{port}{name}.{kind}"
        for official, port in keys.vae_places(levels, res_blocks)
        for inside, name in keys.VAE_TENSORS
        for kind in ("weight", "bias", "gamma")
    }


def build_transformer(config: Config, state: State, dtype: torch.dtype = torch.float32) -> DiTForward:
    """Build the transformer: 36 input channels, text tokens only (the block type of Wan 2.2)."""
    return DiTForward(build_dit(config, {name: value.float() for name, value in state.items()}, dtype))
