"""Golden files of configurations that are not recorded, written with a plain loop and plain hooks; verification."""

import json
from itertools import pairwise

import torch
from safetensors.torch import save_file

from fixtures.waypoint.goldens import GOLDENS
from fixtures.waypoint.models import make_weights
from parity.case import System
from parity.lab.golden import verify_golden
from reference.waypoint import Config, Controls, Engine, WorldModel, load_weights, to_engine_dtype

SYSTEMS = {"waypoint": System("waypoint", "", (), goldens=GOLDENS)}


def odd():
    """head_dim 48, five layers of which one is global, a clock that wraps a dilated ring of two slots."""
    return {
        "d_model": 144, "n_heads": 3, "n_kv_heads": 1, "n_layers": 5, "mlp_ratio": 1, "channels": 2, "height": 2,
        "width": 3, "patch": [2, 1], "tokens_per_frame": 6, "n_frames": 9, "local_window": 2, "global_window": 6,
        "global_attn_period": 3, "global_attn_offset": -1, "global_pinned_dilation": 3, "value_residual": True,
        "gated_attn": True, "n_buttons": 3, "ctrl_conditioning_period": 2, "prompt_conditioning_period": 4,
        "prompt_embedding_dim": 96, "noise_conditioning": "dit_air", "scheduler_sigmas": [1.0, 0.6, 0.25, 0.0],
    }  # fmt: skip


def no_prompt():
    """Equal head counts by default, neither prompt nor control guidance in the state dict, two steps."""
    config = {
        **odd(),
        "d_model": 64,
        "n_heads": 2,
        "n_layers": 3,
        "prompt_conditioning": None,
        "ctrl_conditioning": None,
    }
    del config["n_kv_heads"], config["patch"]
    return {**config, "noise_conditioning": "wan", "gated_attn": False, "scheduler_sigmas": [1.0, 0.5, 0.0]}


def write_frames(path, config, dtype, frames=7):
    """Write a golden of entry `frames`: latents, and activations seen by plain hooks."""
    draw = torch.Generator().manual_seed(11)
    c = Config.from_dict(config)
    model = WorldModel(c)
    weights = {name: value.clone() for name, value in make_weights(model, 4).items()}
    load_weights(model, weights)
    inputs = {
        "noise": torch.randn(frames, 1, 1, *c.latent_shape, generator=draw),
        "mouse": torch.randn(frames, 2, generator=draw),
        "button": (torch.rand(frames, c.n_buttons, generator=draw) < 0.5).float(),
        "scroll": torch.tensor([3.0, -7, 0, 0.5, -0.25, 1, 0])[:frames],
    }
    if c.prompt_conditioning is not None:
        inputs["prompt_emb"] = torch.randn(1, 5, c.prompt_embedding_dim, generator=draw)
    engine = Engine(to_engine_dtype(model.eval(), dtype))
    if "prompt_emb" in inputs:
        engine.set_prompt_embeds(inputs["prompt_emb"])
    latents, acts = witness(engine, inputs, range(frames))
    tensors = {f"weights.{name}": value for name, value in weights.items()}
    tensors |= {f"inputs.{name}": value for name, value in inputs.items()}
    tensors |= {f"acts.{name}": value for name, value in acts.items()}
    return save_golden(
        path, {**tensors, "outputs.latents": torch.stack(latents)}, {"entry": "frames", "config": config}
    )


def save_golden(path, tensors, metadata):
    """Save tensors with a golden's metadata; a config that is no text becomes JSON."""
    config = metadata["config"]
    whole = {"system": "waypoint", "side": "reference", "case": "own", "seed": "0", "notes": "", **metadata}
    whole["config"] = config if isinstance(config, str) else json.dumps(config)
    save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path, whole)
    return path


@torch.no_grad()
def witness(engine, inputs, indices):
    """Generate frames in a loop of its own; returns latents and what plain hooks and the cache show of each forward."""
    acts, tag, removals = {}, [""], []

    def hook(path, pick):
        def seen(module, args, out):
            acts[f"{path}.{tag[0]}"] = pick(out).clone()

        removals.append(engine.model.get_submodule(path).register_forward_hook(seen))

    for path, pick in _hooks(engine.model).items():
        hook(path, pick)
    latents = []
    for number, i in enumerate(indices):
        pressed = frozenset(b for b in range(engine.config.n_buttons) if inputs["button"][i, b])
        state = engine.prep_inputs(Controls(pressed, tuple(inputs["mouse"][i].tolist()), float(inputs["scroll"][i])))
        x = inputs["noise"][i].to(engine.dtype)
        sigmas = engine.model.scheduler_sigmas

        def forward(x, sigma, step):
            tag[0] = f"f{number:02d}s{step}"  # noqa: B023 (called at once)
            v = engine.velocity(x, sigma, state)  # noqa: B023
            acts.update({f"x_in.{tag[0]}": x, f"sigma_in.{tag[0]}": sigma.view(1, 1), f"v_pred.{tag[0]}": v})
            acts.update(_tails(engine, tag[0]))
            return v

        engine.kv_cache.set_frozen(True)
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            x = x + (after - sigma) * forward(x, sigma, step)
        engine.kv_cache.set_frozen(False)
        forward(x, torch.zeros((), dtype=engine.dtype), "c")
        for n, layer in enumerate(engine.kv_cache.layers):
            acts[f"kv_cache.layers.{n}.kv.after_f{number:02d}"] = layer.kv.clone()
            acts[f"kv_cache.layers.{n}.written.after_f{number:02d}"] = layer.written.clone()
        latents.append(x)
    for removal in removals:
        removal.remove()
    return latents, acts


def _hooks(model):
    last = len(model.transformer.blocks) - 1
    whole, first = (lambda out: out), (lambda out: out[0])
    return {
        "denoise_step_emb": whole,
        "ctrl_emb": whole,
        "patchify": whole,
        "transformer.blocks.0.attn.q_proj": whole,
        "transformer.blocks.0.ctrl_mlpfusion": whole,
        "transformer.blocks.1.attn": first,
        f"transformer.blocks.{last}.cond_head": torch.stack,
        f"transformer.blocks.{last}.mlp": whole,
        f"transformer.blocks.{last}": first,
        "out_norm": whole,
    }


def _tails(engine, tag):
    """The tail of a layer's buffer holds the keys and values of the frame that has just run."""
    found = {}
    for n, layer in enumerate(engine.kv_cache.layers):
        keys, values = layer.kv[:, :, :, layer.ring_tokens :].clone()
        found |= {f"transformer.blocks.{n}.attn.k_rope.{tag}": keys, f"transformer.blocks.{n}.attn.v.{tag}": values}
    return found


def check(path):
    """Verify one file; the report, after a failure message that names what failed."""
    report = verify_golden(path, SYSTEMS)
    failed = [f"{c.name} {c.relative:.1e} {c.detail}" for c in report.checks if not c.ok]
    assert report.ok, f"{path.name}: failed {failed[:5]}, not produced {report.missing[:5]}"
    return report


def failures(path):
    """Names of the values that disagree."""
    return [c.name for c in verify_golden(path, SYSTEMS).checks if not c.ok]
