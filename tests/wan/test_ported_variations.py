"""What a right port may do differently stays within the rounding of its precision; and what its seams show."""

import pytest
import torch

from ported.wan import names, seams, text, tiny, vae
from ported.wan.dit import DiTForward
from ported.wan.faults import Port
from ported.wan.variations import VARIATIONS

# relative L2 error that the precision may cost (spec Part C: bf16 3e-2 on outputs, 5e-2 on text; fp32 5e-5)
LIMIT = {"exact": 0.0, "fp32": 1e-5, "bf16": 5e-2}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dit_run():
    model = tiny.dit("flf2v")
    run = DiTForward(model)
    x, y = list(randn(2, 16, 3, 6, 10)), list(randn(2, 20, 3, 6, 10))
    context = [randn(9, tiny.TEXT_DIM), randn(4, tiny.TEXT_DIM)]
    clip = randn(4, tiny.CLIP_TOKENS, tiny.CLIP_DIM)
    return Port(dit=model), lambda: torch.stack(run(x, torch.tensor([721, 999]), context, clip, y)).float()


def vae_run():
    model = tiny.vae()
    video = randn(2, 3, 5, 16, 24).clamp(-1, 1)
    return Port(vae=model), lambda: vae.decode(model, vae.encode(model, video))


def text_run():
    encoder = tiny.text_encoder()
    pipe = text.text_pipeline(encoder)
    return Port(text=encoder), lambda: text.encode_prompts(pipe, ["3 14 15 9 26", "5 3"], 12).float()


def clip_run():
    model = tiny.image_encoder()
    pixels = randn(2, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    return Port(clip=model), lambda: model(pixels, output_hidden_states=True).hidden_states[-2]


RUNS = {"dit": dit_run, "vae": vae_run, "text": text_run, "clip": clip_run}


@pytest.mark.parametrize("name", VARIATIONS)
def test_variation_is_rounding_and_is_undone(name):
    variation = VARIATIONS[name]
    port, output = RUNS[variation.part]()
    right = output()
    with variation.inject(port):
        varied = output()
    assert varied.shape == right.shape
    assert ((varied - right).norm() / right.norm()).item() <= LIMIT[variation.precision]
    assert torch.equal(output(), right)


@pytest.mark.parametrize("name", ["dit_bf16", "text_bf16"])
def test_lower_precision_is_really_lower(name):
    port, output = RUNS[VARIATIONS[name].part]()
    right = output()
    with VARIATIONS[name].inject(port):
        error = (output() - right).norm() / right.norm()
    assert error > 1e-3


def test_fused_and_offloaded_runs_take_their_own_path():
    port, output = dit_run()
    with VARIATIONS["fused_projections"].inject(port):
        assert port.dit.blocks[0].attn1.to_qkv.weight.shape == (240, 80)
        output()
    assert not hasattr(port.dit.blocks[0].attn1, "to_qkv")
    with VARIATIONS["group_offload"].inject(port):
        assert any(m._diffusers_hook.hooks for m in port.dit.modules() if hasattr(m, "_diffusers_hook"))
        output()
    assert not any(m._diffusers_hook.hooks for m in port.dit.modules() if hasattr(m, "_diffusers_hook"))


def test_rope_pairs_are_the_official_multipliers():
    """Spec A5 for head dim 40: 8, 6 and 6 pairs for time, height, width."""
    model = tiny.dit(head_dim=40)
    pairs = seams.rope_pairs(*model.rope(torch.zeros(1, 16, 3, 4, 10)))
    found = torch.complex(pairs["rope.grid.re"], pairs["rope.grid.im"])
    f, h, w = 2, 1, 3
    angles = [p * 10000.0 ** (-2 * j / width) for p, width in ((f, 16), (h, 12), (w, 12)) for j in range(width // 2)]
    expected = torch.polar(torch.ones(20, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
    torch.testing.assert_close(found[(f * 2 + h) * 5 + w], expected.to(torch.complex64), rtol=0, atol=1e-6)
    assert seams.rope_table(model.rope)["rope.freqs.re"].shape == (1024, 20)


def test_tables_read_off_the_modules_are_what_the_block_uses():
    model = tiny.dit()
    block, temb = model.blocks[0], randn(1, 6, 80)
    shift, scale = seams.modulation_table(block, temb)[:, :2].chunk(2, dim=1)
    caught = []
    block.attn1.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    x = randn(1, 6, 80, seed=2)
    block(x, randn(1, 512, 80, seed=3), temb, model.rope(torch.zeros(1, 16, 1, 4, 6)))
    torch.testing.assert_close(caught[0], block.norm1(x) * (1 + scale) + shift)
    assert seams.head_table(model, randn(1, 80)).shape == (1, 2, 80)


def test_every_module_of_the_port_has_a_name_rule():
    import re

    # called alike on both sides
    same = {"patch_embedding", "encoder", "decoder", *(f"blocks.{i}{x}" for i in (0, 1) for x in ("", ".ffn"))}
    models = {"dit": tiny.dit("flf2v"), "vae": tiny.vae(), "text": tiny.text_encoder(), "image": tiny.image_encoder()}
    containers = (torch.nn.ModuleList, torch.nn.Sequential)
    for component, model in models.items():
        rules = [re.compile(rule["port"]) for rule in names.NAMES[component]]
        for path, module in model.named_modules():
            if (
                not path
                or path in same
                or path == "shared"
                or (isinstance(module, containers) and "resample" not in path)
            ):
                continue
            sites = (path, f"{path}.0") if path.endswith(("SelfAttention", "self_attn")) else (path,)
            assert any(rule.fullmatch(site) for rule in rules for site in sites), (component, path)


def test_names_exchange_the_two_norms():
    import re

    def official(site):
        for rule in names.NAMES["dit"]:
            match = re.fullmatch(rule["port"], site)
            if match:
                return match.expand(rule["reference"])
        return site

    assert official("blocks.7.norm2") == "blocks.7.norm3"
    assert official("blocks.7.norm3") == "blocks.7.norm2"
    assert official("blocks.7.attn2.add_k_proj.in.input") == "blocks.7.cross_attn.k_img.in.input"
    assert official("patch_embedding") == "patch_embedding"


def test_feature_slots_hold_tensors_only():
    model, taken = tiny.vae(), []
    forward = type(model.decoder).forward

    def watched(self, x, feat_cache, feat_idx, **kwargs):
        out = forward(self, x, feat_cache, feat_idx, **kwargs)
        taken.append(seams.feature_slots(feat_cache))
        return out

    type(model.decoder).forward = watched
    try:
        vae.decode(model, randn(1, 16, 2, 2, 2))
    finally:
        type(model.decoder).forward = forward
    first, second = taken
    assert sorted(map(int, second)) == list(range(32))
    assert sorted(set(second) - set(first)) == ["11", "18"]  # 'Rep' after the first chunk
