"""The UMT5 encoder, prompts, and the CLIP vision tower (spec A11, A12)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reference.wan import clip, t5, text
from reference.wan.config import CLIPConfig, T5Config

T5 = {"vocab": 50, "dim": 24, "dim_attn": 16, "dim_ffn": 40, "num_heads": 2, "num_layers": 2}
CLIP = {"image_size": 28, "dim": 24, "num_heads": 2, "num_layers": 3, "out_dim": 6}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(7)
    return t5.UMT5Encoder(T5Config(**T5)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(8)
    return clip.CLIPVision(CLIPConfig(**CLIP)).eval().requires_grad_(False)


@given(st.integers(-2000, 2000))
def test_buckets_follow_the_formula(relative):
    distance = abs(relative)
    far = 8 if distance < 8 else min(8 + math.floor(math.log(distance / 8) / math.log(16) * 8), 15)
    want = 16 * (relative > 0) + (distance if distance < 8 else far)
    assert t5.bucket(torch.tensor([relative]), 32, 128).item() == want


def test_buckets_at_the_edges():
    relative = torch.tensor([0, 1, -1, 7, 8, -8, 15, 16, 32, 64, -64, 128, -100000])
    assert t5.bucket(relative, 32, 128).tolist() == [0, 17, 1, 23, 24, 8, 25, 26, 28, 30, 14, 31, 15]


def test_each_block_owns_its_position_table(encoder):
    keys = [k for k in encoder.state_dict() if "pos_embedding" in k]
    assert keys == [f"blocks.{i}.pos_embedding.embedding.weight" for i in range(2)]
    with pytest.raises(ValueError, match="shared_pos"):
        T5Config(**T5, shared_pos=True)


def test_position_bias_looks_from_query_to_key(encoder):
    block = encoder.blocks[0].pos_embedding
    bias = block(5, 5)
    assert bias.shape == (1, 2, 5, 5)
    assert torch.equal(bias[0, :, 1, 4], block.embedding.weight[16 + 3])  # key 4, query 1: relative +3
    assert torch.equal(bias[0, :, 4, 1], block.embedding.weight[3])


def test_masked_keys_do_not_reach_real_rows(encoder):
    ids, mask = torch.randint(2, 50, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, 4:] = 0
    changed = ids.clone()
    changed[0, 4:] = 1
    a, b = encoder(ids, mask), encoder(changed, mask)
    assert torch.equal(a[0, :4], b[0, :4])
    assert torch.equal(a[1], b[1])
    assert not torch.equal(encoder(ids, torch.ones_like(mask))[0, :4], a[0, :4])


def test_attention_is_not_scaled(encoder):
    q, k, v = (torch.randn(1, 3, 2, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    got = encoder.blocks[0].attn.attend(q, k, v, torch.zeros(1, 2, 3, 3))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    assert torch.allclose(got.view(1, 3, 2, 8), torch.einsum("bhqk,bkhd->bqhd", weights, v), atol=1e-6)


def test_half_precision_runs_in_the_dtype_of_the_weights():
    torch.manual_seed(7)
    encoder = t5.UMT5Encoder(T5Config(**T5)).to(torch.bfloat16)
    hidden = encoder(torch.tensor([[3, 4, 1, 0]]), torch.tensor([[1, 1, 1, 0]]))
    assert hidden.dtype == torch.bfloat16
    assert torch.isfinite(hidden).all()


def test_float16_infinities_are_clamped():
    x = torch.tensor([float("inf"), -float("inf"), 3.0], dtype=torch.float16)
    assert t5.limit_half(x).tolist() == [64512.0, -64512.0, 3.0]
    assert torch.isinf(t5.limit_half(x.float())[:2]).all()


def test_text_is_unescaped_twice_and_whitespace_collapses():
    assert text.clean_text("  x &amp;amp; b\n\t c ", fix=lambda s: s.replace("x", "A")) == "A & b c"


def test_prompts_become_contexts_of_their_own_length(encoder):
    calls = []

    def tokenizer(prompts, **options):
        calls.append((prompts, options))
        ids, mask = torch.zeros(len(prompts), 6, dtype=torch.long), torch.zeros(len(prompts), 6, dtype=torch.long)
        for i, prompt in enumerate(prompts):
            n = len(prompt.split()) + 1  # and the end token
            ids[i, :n], mask[i, :n] = 1, 1
        return {"input_ids": ids, "attention_mask": mask}

    contexts = text.encode_prompts(encoder, tokenizer, ["one", " one  two three"], fix=str)
    assert [c.shape for c in contexts] == [(2, 24), (4, 24)]
    prompts, options = calls[0]
    assert prompts == ["one", "one two three"]
    assert options["max_length"] == 512
    assert options["padding"] == "max_length"
    assert options["truncation"] is True
    assert text.FLF2V_NEGATIVE_PREFIX == "镜头切换，镜头晃动，"


def test_clip_returns_all_tokens_of_the_last_but_one_block(tower):
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    feature = tower(pixels)
    assert feature.shape == (2, 5, 24)
    assert torch.equal(feature, tower.transformer[1](tower.transformer[0](tower.embed(pixels))))
    assert not torch.allclose(feature, tower.run_blocks(tower.embed(pixels), 3))
    assert CLIPConfig().tokens == 257


def test_clip_squashes_overshoots_and_normalises():
    config = CLIPConfig(**CLIP)
    image = torch.ones(3, 20, 12)
    image[:, :, :6] = -1  # an edge, which bicubic interpolation overshoots
    pixels = clip.preprocess([image, torch.zeros(3, 40, 10)], config)
    assert pixels.shape == (2, 3, 28, 28)
    assert pixels[1, :, 5, 5].tolist() == pytest.approx(
        [(0.5 - m) / s for m, s in zip(config.mean, config.std, strict=True)], abs=1e-6
    )
    restored = pixels[0] * torch.tensor(config.std)[:, None, None] + torch.tensor(config.mean)[:, None, None]
    assert restored.max() > 1.001  # not clamped
    assert restored.min() < -0.001


def test_clip_features_take_the_dtype_of_the_tower():
    torch.manual_seed(8)
    tower = clip.CLIPVision(CLIPConfig(**CLIP)).to(torch.bfloat16)
    feature = tower.encode_images([torch.zeros(3, 9, 14)])
    assert feature.dtype == torch.bfloat16
    assert feature.shape == (1, 5, 24)
