"""The laws of the specification (section 12.1, P1-P20) on both sides, on drawn sizes and numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fixtures.interp.sides import PORT, REFERENCE

SIDES = pytest.mark.parametrize("api", [REFERENCE, PORT], ids=("reference", "port"))
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCHEDULES = st.sampled_from(("doubling", "linear", "geom"))
SEEDS = st.integers(0, 2**31)


def noise(seed, *shape):
    """Reproducible normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks_of(api, batch, frames, k_min, levels, seed, schedule="geom"):
    """Random nested masks."""
    return api.masks.nested_masks(batch, frames, k_min, levels, api.draws.Draws.seeded(seed, seed), schedule)


@SIDES
@FEW
@given(st.integers(2, 40), st.integers(1, 9), st.integers(0, 7), SCHEDULES)
def test_p1_counts_grow_to_all_frames(api, frames, k_min, levels, schedule):
    counts = api.schedules.k_list(frames, k_min, levels, schedule)
    assert len(counts) == levels + 1
    assert counts[-1] == min(k_min, frames)
    for fine, coarse in itertools.pairwise(counts):
        assert coarse <= fine <= frames
        assert fine > coarse or coarse == frames


@SIDES
@FEW
@given(st.integers(1, 4), st.integers(4, 24), st.integers(2, 5), st.integers(1, 5), SEEDS, SCHEDULES)
def test_p2_p3_p5_masks_are_nested_keep_their_ends_and_repeat(api, batch, frames, k_min, levels, seed, schedule):
    masks, idx = masks_of(api, batch, frames, k_min, levels, seed, schedule)
    again, _ = masks_of(api, batch, frames, k_min, levels, seed, schedule)
    assert torch.equal(masks, again)
    assert masks[..., 0].all()
    assert masks[..., -1].all()
    assert not (masks[:, 1:] & ~masks[:, :-1]).any()
    for s, rows in enumerate(idx):
        assert torch.equal(torch.zeros_like(masks[:, s]).scatter(1, rows, True), masks[:, s])


@SIDES
@FEW
@given(st.integers(6, 24), st.integers(2, 5), st.floats(0, 1), SEEDS)
def test_p4_base_keyframes_increase_and_stay_kept(api, frames, count, jitter, seed):
    draws = api.draws.Draws.seeded(seed, 0)
    idx = api.schedules.uniform_indices(3, frames, count, draws, jitter=jitter)
    assert (idx[:, 1:] > idx[:, :-1]).all()
    assert (idx[:, 0] == 0).all()
    assert (idx[:, -1] == frames - 1).all()
    masks, _ = api.masks.nested_masks_from_base(idx, frames, 3, draws, "geom")
    assert masks.gather(2, idx[:, None].expand(-1, 4, -1)).all()


@SIDES
@FEW
@given(
    st.integers(5, 20), SEEDS, st.sampled_from(("linear", "smooth")), st.sampled_from((torch.float32, torch.bfloat16))
)
def test_p6_p7_keyframes_come_back_and_lines_stay_in_their_hull(api, frames, seed, mode, dtype):
    _, levels = masks_of(api, 2, frames, 3, 2, seed)
    idx = levels[2]
    values = noise(seed, 2, idx.shape[1], 4).to(dtype)
    video = api.temporal.interpolate(idx, values, frames, mode)
    rows = torch.arange(2)[:, None]
    assert torch.equal(video[rows, idx], values)
    assert video.dtype == dtype
    weight = api.temporal.distance_weight(idx, frames)
    assert ((weight >= 0) & (weight <= 1)).all()
    assert (weight[rows, idx] == 0).all()
    if mode == "linear" and dtype == torch.float32:
        low, high = values.amin(dim=1, keepdim=True), values.amax(dim=1, keepdim=True)
        assert ((video >= low - 1e-6) & (video <= high + 1e-6)).all()
        line = api.temporal.interpolate(idx, idx[..., None].float(), frames)
        assert torch.allclose(line[..., 0], torch.arange(frames).float().expand(2, -1), atol=1e-4)


def corrupt(api, z0, seed, levels=2, masks_seed=0, s_idx=None, **options):
    """An adjacent token batch on fixed masks."""
    masks, idx = masks_of(api, len(z0), z0.shape[1], 3, levels, masks_seed)
    chosen = api.corruption.Corruption(**options)
    s_idx = torch.tensor([1 + b % levels for b in range(len(z0))]) if s_idx is None else s_idx
    return api.corruption.corrupt_tokens(
        z0, api.draws.Draws.seeded(seed, seed + 1), 3, levels, chosen, True, masks, idx, s_idx
    )


@SIDES
@FEW
@given(SEEDS, st.sampled_from((("none", 0.5), ("dist", 0.5), ("gauss", 0.0))), st.floats(0.01, 1.0))
def test_p8_given_keyframes_are_never_perturbed(api, seed, mode, sigma):
    z0 = noise(seed, 3, 8, 2, 4)
    out = corrupt(api, z0, seed, mode=mode[0], sigma=sigma, anchor_noise_frac=mode[1], student_replace_prob=0.0)
    for z, mask in ((out.z_s, out.mask_s), (out.z_prev, out.mask_prev)):
        assert torch.equal(z[mask], z0[mask])


@SIDES
@FEW
@given(SEEDS)
def test_p9_p11_p12_only_keyframes_count_and_confidence_is_known(api, seed):
    z0 = noise(seed, 2, 7, 2, 3)
    out = corrupt(api, z0, seed, mode="gauss")
    other = torch.where(out.mask_s[..., None] | out.mask_prev[..., None], z0, z0 + 1)
    again = corrupt(api, other, seed, mode="gauss")
    assert torch.equal(again.z_s, out.z_s)
    assert set(out.conf_s.unique().tolist()) <= {0.0, 0.5, 0.949999988079071}
    assert (out.mask_s == out.mask_s[..., :1]).all()
    assert out.conf_s.dtype == torch.float32
    clean = corrupt(api, z0, seed, levels=1, s_idx=torch.tensor([1, 1]), mode="none", student_replace_prob=0.0)
    if clean.mask_prev.all():
        assert torch.equal(clean.z_prev, z0)


@SIDES
@FEW
@given(SEEDS)
def test_p10_samples_do_not_see_each_other(api, seed):
    z0, idx = noise(seed, 3, 8, 4, 8, 8), torch.tensor([[0, 3, 7], [0, 4, 7], [0, 2, 7]])
    model = api.sinkhorn.SinkhornWarpInterpolator(4, 2, 3, global_mode="phasecorr", sinkhorn_iters=4, sinkhorn_tau=0.2)
    whole, _ = model.interpolate(z0, idx)
    alone, _ = model.interpolate(z0[1:2], idx[1:2])
    assert torch.allclose(whole[1:2], alone, atol=1e-5)
    values = noise(seed, 3, 3, 4)
    swapped = api.temporal.interpolate(idx[[2, 0, 1]], values[[2, 0, 1]], 8)
    assert torch.equal(swapped, api.temporal.interpolate(idx, values, 8)[[2, 0, 1]])


@SIDES
@FEW
@given(st.integers(2, 8), st.integers(1, 12), SEEDS)
def test_p13_plans_are_balanced(api, n, iterations, seed):
    plan = api.matching.sinkhorn_log(2 * noise(seed, 2, n + 1, n + 1), iterations).exp()
    assert torch.allclose(plan.sum(dim=-2), torch.ones(2, n + 1), atol=1e-4)
    assert (plan[:, :-1, -1].sum(dim=-1) <= 1 + 1e-4).all()


@SIDES
@FEW
@given(SEEDS)
def test_p13_warped_clips_hold_their_keyframes_in_any_order(api, seed):
    clip, idx = noise(seed, 2, 6, 4, 8, 8), torch.tensor([[5, 0, 2], [1, 4, 0]])
    model = api.sinkhorn.SinkhornWarpInterpolator(4, 2, 3, global_mode="none", sinkhorn_iters=3, sinkhorn_tau=0.2)
    video, conf = model.interpolate(clip, idx)
    sorted_video, _ = model.interpolate(clip, idx.sort(dim=1).values)
    rows = torch.arange(2)[:, None]
    assert torch.equal(video, sorted_video)
    assert torch.equal(video[rows, idx], clip[rows, idx])
    assert ((conf >= 0) & (conf <= 1 + 1e-6)).all()


@SIDES
@FEW
@given(st.integers(3, 70), st.floats(0.05, 1.0), SEEDS)
def test_p14_sparse_attention(api, length, topk, seed):
    q, k, v = (noise(seed + i, 1, length, 2, 16) for i in range(3))
    model = api.sla.SparseLinearAttention(16, topk, BLKQ=16, BLKK=8, compute_dtype=torch.float32)
    out = model(q, k, v)
    assert torch.isfinite(out).all()
    kept = model.select(q.transpose(1, 2), k.transpose(1, 2)).kept
    assert (kept.sum(dim=-1) == model.kept_blocks(kept.shape[-1])).all()
    full = api.sla.SparseLinearAttention(16, 1.0, BLKQ=16, BLKK=8, compute_dtype=torch.float32)(q, k, v)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert torch.allclose(full, dense, atol=1e-5)
    moved = model.select(q.transpose(1, 2), (k + 3.0).transpose(1, 2)).score
    assert torch.allclose(moved, model.select(q.transpose(1, 2), k.transpose(1, 2)).score, atol=1e-3)


@SIDES
@FEW
@given(st.integers(2, 9))
def test_p15_absolute_time_from_zero_is_the_base(api, frames):
    rope, latents = api.rope.AbsoluteTimeRope(16, (1, 2, 2), 32), torch.zeros(2, 4, frames, 4, 6)
    base = rope(latents)
    rope.set_frame_indices(torch.arange(frames))
    assert all(torch.equal(a.expand_as(b), b) for a, b in zip(base, rope(latents), strict=True))
    with pytest.raises(ValueError, match="frame indices"):
        rope.set_frame_indices(torch.arange(frames + 1))
        rope(latents)


@SIDES
@FEW
@given(st.integers(1, 4), SEEDS)
def test_p16_adapters(api, rank, seed):
    torch.manual_seed(seed % 1000)
    layer, x = api.lora.LoRALinear(torch.nn.Linear(6, 5), rank, 3.0), noise(seed, 4, 6)
    assert torch.equal(layer(x), layer.base(x))
    layer.lora_B.weight.data.normal_()
    merged = torch.nn.functional.linear(x, layer.merged_weight(), layer.base.bias)
    assert torch.allclose(layer(x), merged, atol=1e-5)
    model = torch.nn.Sequential()
    model.attn = torch.nn.Linear(3, 3)
    assert api.lora.inject_lora(model, rank, 2.0) == ["attn"]
    assert all(p.requires_grad == ("lora_" in n) for n, p in model.named_parameters())


class Still:
    """A refiner that predicts a given change."""

    def __init__(self, change):
        self.change = change

    def delta(self, x, *rest):
        return self.change.expand_as(x)


@SIDES
@FEW
@given(SEEDS, st.sampled_from(("none", "all_anchors", "all_anchors_level")), st.floats(0, 1))
def test_p17_sampling(api, seed, policy, most):
    masks, _ = masks_of(api, 2, 8, 3, 3, seed)
    start = noise(seed, 2, 8, 4)
    options = api.sampling.Sampling(levels=3, clamp_policy=policy, soft_clamp_max=most)
    assert torch.equal(api.sampling.refine(Still(torch.zeros(1)), start, masks, options), start)
    for level in api.sampling.refine_levels(Still(torch.ones(1)), start, masks, options):
        if policy == "all_anchors":
            assert torch.equal(level.x_out[masks[:, 3]], start[masks[:, 3]])
        if level.level == 3:
            assert level.strength == 0


@SIDES
@FEW
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), SEEDS)
def test_p18_patches_are_exact_inverses(api, patch, rows, columns, seed):
    latents = noise(seed, 2, 3, 4, rows * patch, columns * patch)
    tokens, shape = api.patches.patchify(latents, patch)
    assert torch.equal(api.patches.unpatchify(tokens, patch, shape), latents)
    with pytest.raises(ValueError, match="divi"):
        api.patches.patchify(torch.zeros(1, 1, 1, rows * patch + 1, 2 * patch + 1), patch + 1 if patch == 1 else patch)


@SIDES
@FEW
@given(SEEDS, st.floats(0.1, 10))
def test_p19_loss(api, seed, scale):
    delta, target, weights = noise(seed, 2, 5, 3), noise(seed + 1, 2, 5, 3), noise(seed + 2, 2, 5).abs() + 0.1
    loss = api.training.weighted_loss(delta, target, weights)
    assert loss >= 0
    assert math.isclose(float(loss), float(api.training.weighted_loss(delta, target, scale * weights)), rel_tol=1e-4)


@SIDES
@FEW
@given(st.integers(1, 9), st.sampled_from(("linear", "cosine")), SEEDS)
def test_p20_annealing(api, levels, mode, seed):
    conf = noise(seed, 1, 6).sigmoid().repeat(levels + 1, 1)
    annealed = api.conditioning.anneal_confidence(conf, torch.arange(levels + 1), levels, mode)
    assert torch.allclose(annealed[levels], conf[0], atol=1e-6)
    assert torch.allclose(annealed[0], torch.ones(6), atol=1e-6)
    assert (annealed[1:] <= annealed[:-1] + 1e-6).all()


def test_laws_that_only_look_true_are_not_asserted():
    z0 = noise(0, 1, 6, 1, 3)
    out = corrupt(PORT, z0, 1, s_idx=torch.tensor([2]), mode="gauss", student_replace_prob=0.0)
    assert not torch.equal(out.z_s[out.mask_s], z0[out.mask_s])  # a quarter of the noise at keyframes by default
