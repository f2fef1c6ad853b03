"""Build the port's networks from official configs and weights."""

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
    levels, blocks = len(config.get("dim_mult", (1, 2, 4, 4))), config.get("num_res_blocks", 2)
    rules = keys.vae_rules(0, keys.vae_places(levels, blocks))
    named = {key: keys.rename(rules, key) for key in state}
    unknown = sorted(key for key, name in named.items() if name is None)
    if unknown:
        raise ValueError(f"vae: no rule for {len(unknown)} keys {unknown}")
    converted = {str(named[key]): value.float() for key, value in state.items()}
    keys.check_same_keys("vae", model.state_dict(), converted)
    model.load_state_dict(converted, strict=True)
    return model.eval().requires_grad_(False)


def build_transformer(config: Config, state: State, dtype: torch.dtype = torch.float32) -> DiTForward:
    """Build the transformer: 36 input channels, text tokens only (the block type of Wan 2.2)."""
    return DiTForward(build_dit(config, {name: value.float() for name, value in state.items()}, dtype))
