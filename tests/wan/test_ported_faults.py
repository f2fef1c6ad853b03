"""Every fault of the Wan port changes what it says, where it says, and leaves nothing behind."""

import dataclasses
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from torch import Tensor

from ported.wan import image, pipeline, solver, text, tiny, vae
from ported.wan.dit import DiTForward
from ported.wan.faults import FAULTS, NEEDS, Port, port_of

BY_PART = {part: [n for n, f in FAULTS.items() if f.part == part] for part in {f.part for f in FAULTS.values()}}


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dit_run(needs):
    """One forward; 3·3·5 = 45 tokens, every axis of another length."""
    kind = needs.get("model_type", "t2v")
    dtype = torch.bfloat16 if needs.get("dtype") == "bf16" else torch.float32
    model = tiny.dit(kind, needs.get("head_dim", 24), dtype)
    x, context = [randn(16, 3, 6, 10)], [randn(9, tiny.TEXT_DIM)]
    clip = None if kind == "t2v" else randn(2 if kind == "flf2v" else 1, tiny.CLIP_TOKENS, tiny.CLIP_DIM)
    y = None if kind == "t2v" else [randn(20, 3, 6, 10)]
    keys = []
    for block in model.blocks:
        block.attn2.to_k.register_forward_hook(lambda _, __, out: keys.append(out.float()))
    run = DiTForward(model)

    def outputs():
        keys.clear()
        return [run(x, torch.tensor([721]), context, clip, y)[0].float(), *keys]

    return Port(dit=model), outputs


def vae_run(needs):
    model = tiny.vae()
    video = randn(1, 3, 9, 16, 16).clamp(-1, 1)
    latents = randn(1, 16, 3, 3, 4)
    return Port(vae=model), lambda: [
        vae.encode(model, video),
        *(vae.decode(model, latents) for _ in range(needs.get("decodes", 1))),
    ]


def text_run(needs):
    encoder = tiny.text_encoder()
    pipe = text.text_pipeline(encoder)
    return Port(text=encoder, pipe=pipe), lambda: [text.encode_prompts(pipe, ["3 14 15 9 26", "5 3"], 12)]


def solver_run(needs):
    steps = needs.get("steps", 6)
    scheduler = solver.build_scheduler(needs.get("solver", "unipc"), needs.get("shift", 5.0))
    velocities = randn(steps, 1, 4, 2, 3, 5)

    def outputs():
        for _ in range(needs.get("requests", 1)):
            samples = solver.solve(
                scheduler, randn(1, 4, 2, 3, 5, seed=2), lambda i, x, t: velocities[i], steps, needs.get("begin")
            )
        return [*samples, scheduler.sigmas, scheduler.timesteps.double()]

    return Port(scheduler=scheduler), outputs


def condition_run(needs):
    """The condition and the first latents of the library's pipeline."""
    kind = needs.get("model_type", "i2v")
    pipe, request = tiny.pipe(kind), tiny.request(kind, steps=1)
    # 3072 pixels of 40 x 60 are 5 x 8 latents before rounding to patches
    square = image.unit_image(request.image)
    return port_of(pipe), lambda: [
        torch.tensor(image.official_size(square, 3072)).double(),
        pipeline.condition_latents(pipe, request),
        pipeline.image_features(pipe, request),
        pipeline.generate(pipe, request).latents[-1],
    ]


def pipeline_run(needs):
    pipe, request = tiny.pipe(), tiny.request(steps=2)
    request = dataclasses.replace(request, guidance=needs["guidance"])
    return port_of(pipe), lambda: pipeline.generate(pipe, request).latents


RUNS = {
    "dit": dit_run,
    "vae": vae_run,
    "text": text_run,
    "clip": condition_run,
    "solver": solver_run,
    "conditioning": condition_run,
    "pipeline": pipeline_run,
}


@cache
def right_run(build, needs):
    """A port, how to run it, and what it gives; faults of one kind share it, since they leave nothing behind."""
    port, outputs = build(dict(needs))
    right = outputs()
    assert all(map(torch.equal, right, outputs())), "the run itself does not repeat"
    return port, outputs, right


def differs(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or not torch.equal(a, b)


@pytest.mark.parametrize("name", FAULTS)
def test_fault_shows_and_is_undone(name):
    fault = FAULTS[name]
    port, outputs, right = right_run(RUNS[fault.part], tuple(sorted(fault.needs.items())))
    expected = pytest.raises((RuntimeError, AssertionError)) if fault.outcome == "error" else nullcontext()
    with expected, fault.inject(port):
        wrong = outputs()
    if fault.outcome != "error":
        changed = [(a, b) for a, b in zip(right, wrong, strict=True) if differs(a, b)]
        assert changed
        shapes = any(a.shape != b.shape for a, b in changed)
        assert shapes == (fault.outcome == "shape") or name in SHAPE_ON_THE_WAY
    if "decodes" in fault.needs or "requests" in fault.needs:
        right_run.cache_clear()  # what survives such a fault is its point
    else:
        assert all(map(torch.equal, right, outputs())), "the fault was not undone"


# faults of values that also change the shape of a tensor before the output, or of a size, never of the output
SHAPE_ON_THE_WAY = {"text_226_tokens", "context_split_over_ranks", "size_floored_to_8"}


def test_the_registry_is_complete():
    rows = {f.spec_id for f in FAULTS.values()}
    assert {f"D{i}" for i in range(1, 46)} <= rows
    assert sum(f.spec_id == "D+" for f in FAULTS.values()) >= 14
    assert rows - {f"D{i}" for i in range(1, 46)} == {"D+", "B"}
    assert all(name == fault.name for name, fault in FAULTS.items())
    assert {need for f in FAULTS.values() for need in f.needs} <= set(NEEDS)
    assert len({f.text for f in FAULTS.values()}) == len(FAULTS)


def first_changed(name, needs):
    """The first module whose output differs, by hooks on every module of the faulty part."""
    fault = FAULTS[name]
    port, outputs = RUNS[fault.part](needs)
    module = {"dit": port.dit, "vae": port.vae, "text": port.text, "clip": port.clip}[fault.part]
    seen: list[tuple[str, Tensor]] = []

    def keep(site):
        def hook(_, __, out):
            for part in out if isinstance(out, tuple) else (out,):
                if isinstance(part, Tensor):
                    seen.append((site, part.clone()))

        return hook

    handles = [child.register_forward_hook(keep(site)) for site, child in module.named_modules()]
    outputs()
    right = list(seen)
    seen.clear()
    with fault.inject(port):
        outputs()
    for handle in handles:
        handle.remove()
    return next(a[0] for a, b in zip(right, seen, strict=False) if a[0] != b[0] or differs(a[1], b[1]))


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("rope_split_thirds", "rope"),
        ("rope_tables_bf16", "rope"),
        ("rope_half_split", "blocks.0.attn1.to_out.0"),
        ("qk_norm_per_shard", "blocks.0.attn1.norm_q"),
        ("timestep_bf16", "condition_embedder.timesteps_proj"),
        ("layernorm_half", "blocks.0.norm1"),
        ("modulation_bf16", "blocks.0.attn1.to_q"),
        ("norms_exchanged", "blocks.0.norm2"),
        ("text_padding_masked", "blocks.0.attn2.to_out.0"),
        ("frame_positions_missing", "condition_embedder.image_embedder.norm1"),
        ("token_table_zero", "encoder.embed_tokens"),
        ("clip_causal_mask", "encoder.layers.0.self_attn.out_proj"),
        ("second_chunk_sees_first", "decoder.up_blocks.0.upsamplers.0.time_conv"),
        ("channel_norm_half", "encoder.down_blocks.0.norm1"),
        ("attention_head_dim_cut", "encoder.mid_block.attentions.0.proj"),
        ("downsample_padded_top_left", "encoder.down_blocks.2.resample.0"),
    ],
)
def test_fault_starts_where_the_specification_says(name, site):
    assert first_changed(name, FAULTS[name].needs) == site


def test_a_fault_that_raises_still_leaves():
    port, outputs = dit_run({})
    right = outputs()
    with pytest.raises(RuntimeError, match="must match"), FAULTS["rope_frames_times_ranks"].inject(port):
        outputs()
    assert all(map(torch.equal, right, outputs()))


def test_a_copy_made_inside_carries_the_fault():
    import copy

    port, outputs = dit_run({})
    right = outputs()[0]
    for name in ("qk_norm_per_head", "modulation_bf16", "rope_half_split", "rope_height_width_swapped"):
        with FAULTS[name].inject(port):
            wrong, inside = outputs()[0], copy.deepcopy(port.dit)
        context = [randn(9, tiny.TEXT_DIM)]
        copied = DiTForward(inside)([randn(16, 3, 6, 10)], torch.tensor([721]), context)[0]
        assert torch.equal(copied, wrong)
        assert differs(copied, right)
