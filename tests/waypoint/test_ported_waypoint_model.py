"""The port's layers, rotary, cache and attention against their definitions."""

import dataclasses
import math

import pytest
import torch
from waypoint_port_tiny import CONFIG, random_weights, tiny_inputs, tiny_port, tiny_run

from ported.waypoint import PortOptions, WaypointConfig, build_model, build_pipeline
from ported.waypoint.attention import BACKENDS
from ported.waypoint.cache import LayerCache, WaypointKVCache
from ported.waypoint.layers import CFG, MLPFusion, ReplicatedLinear, SplitFusion, fold_patches
from ported.waypoint.noise import NoiseEmbedding
from ported.waypoint.rotary import Rotary


def rotary(config=CONFIG, **options):
    return Rotary(config, PortOptions(**options))


def positions(t=3, config=CONFIG):
    idx = torch.arange(config.tokens_per_frame).unsqueeze(0)
    return {"t": torch.full_like(idx, t), "y": idx // config.width, "x": idx % config.width, "frame_t": t}


def test_linear_returns_output_and_no_bias():
    out, bias = ReplicatedLinear(3, 2, bias=True)(torch.ones(1, 3))
    assert out.shape == (1, 2)
    assert bias is None


def test_rotary_turns_adjacent_pairs_as_complex_numbers():
    rope, pos = rotary(), positions(t=5)
    x = torch.randn(1, 6, 2, 32)
    angle_x = (pos["x"][0] - 1.0) * 2 / 3
    angle_y = (pos["y"][0] - 0.5) * 1.0
    spatial = [math.pi, math.pi * 0.8]
    time = [10000 ** (-2 * i / 8) for i in range(4)]
    bands = [angle_x * f for f in spatial], [angle_y * f for f in spatial], [pos["t"][0] * f for f in time]
    phases = torch.stack([band for axis in bands for band in axis for _ in range(2)], dim=-1)
    expected = torch.view_as_complex(x.unflatten(-1, (16, 2))) * torch.exp(1j * phases).unsqueeze(1)
    out = rope(x, pos)
    torch.testing.assert_close(out, torch.cat((expected.real, expected.imag), dim=-1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("head_dim", [32, 48, 64, 128])
def test_time_frequencies_follow_the_general_formula(head_dim):
    rope = rotary(dataclasses.replace(CONFIG, d_model=head_dim * 4))
    got = rope.time_frequencies(torch.device("cpu"))
    expected = torch.tensor([10000 ** (-2 * i / (head_dim / 4)) for i in range(head_dim // 8)])
    torch.testing.assert_close(got, expected)
    hard_coded = 10.0 ** (-torch.arange(head_dim // 8) / 2)
    assert torch.allclose(got, hard_coded) == (head_dim == 64)


def test_angles_are_kept_for_one_position_dict_only():
    rope, pos = rotary(), positions(t=1)
    first = rope.angles(pos)
    assert rope.angles(pos) is first
    later = rope.angles(positions(t=2))
    assert not torch.equal(first[0], later[0])


@pytest.mark.parametrize("options", [{"rotary_positions": "linspace"}, {"rotary_angles": "rounded"}])
def test_other_ways_to_the_angles(options):
    exact, other = rotary(), rotary(**options)
    if "rotary_angles" in options:
        other.round_tables(torch.device("cpu"))
    for a, b in zip(exact.angles(positions()), other.angles(positions()), strict=True):
        torch.testing.assert_close(b, a, atol=4e-3 if "rotary_angles" in options else 1e-6, rtol=0)
        assert torch.equal(b, b.bfloat16().float()) == ("rotary_angles" in options)


def test_fold_puts_channel_row_column_in_place():
    vectors = torch.arange(6 * 2 * 3 * 2).float().view(1, 6, 12)
    out = fold_patches(vectors, 2, 3, (3, 2))
    for token, c, i, j in [(0, 0, 0, 0), (4, 1, 2, 1), (5, 0, 1, 1)]:
        row, column = divmod(token, 3)
        assert out[0, c, row * 3 + i, column * 2 + j] == vectors[0, token, c * 6 + i * 2 + j]


def test_noise_features_are_sines_then_cosines_of_1000_sigma():
    embedding = NoiseEmbedding(8)
    sigma = torch.tensor([[0.3]])
    features = embedding.features(embedding.phase(sigma))[0, 0]
    for i in (0, 100, 255):
        phase = 300.0 * 10000 ** (-i / 255)
        assert features[i] == pytest.approx(2**0.5 * math.sin(phase), abs=1e-3)
        assert features[256 + i] == pytest.approx(2**0.5 * math.cos(phase), abs=1e-3)


def test_engine_dtype_rounds_the_noise_table_and_keeps_it_in_fp32():
    exact = NoiseEmbedding(8).frequency_table
    model = build_model(CONFIG, random_weights(), dtype=torch.bfloat16)
    table = model.denoise_step_emb.frequency_table
    assert table.dtype == torch.float32
    assert torch.equal(table, exact.bfloat16().float())
    assert not torch.equal(table, exact)
    assert model.denoise_step_emb.mlp.fc_in.weight.dtype == torch.float32
    assert model.patchify.weight.dtype == torch.bfloat16


def test_every_buffer_of_a_built_model_is_filled():
    # The frequency table is in no checkpoint: a model laid out on the meta device must get it afterwards.
    for buffer in build_model(CONFIG, random_weights()).buffers():
        assert not buffer.is_meta
        assert buffer.abs().sum() > 0


def test_split_fusion_equals_the_mlp_of_the_concatenation():
    torch.manual_seed(0)
    fusion = MLPFusion(16)
    x, cond = torch.randn(1, 5, 16), torch.randn(1, 1, 16)
    expected = fusion.mlp(torch.cat((x, cond.expand_as(x)), dim=-1))
    torch.testing.assert_close(fusion(x, cond), expected)
    torch.testing.assert_close(SplitFusion(fusion)(x, cond), expected)


def test_cfg_flags():
    torch.manual_seed(0)
    helper = CFG(4, dropout=0.0)
    helper.null_emb.data.fill_(9.0)
    x = torch.randn(64, 1, 4)
    assert helper(x, None) is x
    assert helper(x, True) is x
    assert (helper(x, False) == 9).all()
    helper.dropout = 0.5
    replaced = (helper.eval()(x, None) == 9).all(dim=-1).sum()
    assert 16 <= replaced <= 48


def visible_frames(cache, t):
    """Frames that frame t sees, read from keys that hold the frame's number plus one."""
    k = torch.full((1, 1, 1, 1), float(t + 1))
    cache.upsert(k, k, t, frozen=True)
    key, _, keep = cache.upsert(k, k, t, frozen=False)
    return sorted(int(f) - 1 for f in key[0, 0, :, 0][keep.flatten()].tolist())


def written_down(t, window, dilation):
    """The rule as the specification's table has it."""
    pinned = [p for p in range(t) if p % dilation == 0]
    kept = window // dilation - (1 if t % dilation == 0 else 0)
    return [*(pinned[-kept:] if kept else []), t]


@pytest.mark.parametrize(("window", "dilation"), [(16, 1), (128, 8), (3, 1), (4, 2), (3, 3)])
def test_who_sees_whom(window, dilation):
    cache = LayerCache(window, dilation, tokens=1, kv_heads=1, head_dim=1)
    last = cache.tail().start
    for t in range(300):
        seen = visible_frames(cache, t)
        if t % dilation == 0:  # the cache pass has just written the ring: the frame itself is seen in the tail, once
            assert cache.kv[0, 0, 0, last, 0] == t + 1
        assert seen == written_down(t, window, dilation)


def test_dilated_layer_uses_the_first_places_of_its_ring_only():
    cache = LayerCache(8, 4, tokens=2, kv_heads=1, head_dim=1)
    for t in range(40):
        k = torch.ones(1, 1, 2, 1)
        cache.upsert(k, k, t, frozen=False)
    assert cache.written.tolist() == [True] * 4 + [False] * 12 + [True] * 2


def test_frozen_cache_writes_the_tail_only_and_reset_empties_it():
    cache = WaypointKVCache(CONFIG, PortOptions())
    k = torch.randn(1, 2, 6, 32)
    key, value, keep = cache.upsert(k, -k, 0, layer=1)
    assert torch.equal(key[:, :, -6:], k)
    assert torch.equal(value[:, :, -6:], -k)
    assert keep.shape == (1, 1, 1, 24)
    assert keep.sum() == 6
    assert cache.layers[1].kv[:, :, :, :-6].abs().sum() == 0
    cache.frozen = False
    cache.upsert(k, -k, 0, layer=1)
    assert cache.layers[1].written.sum() == 12
    cache.reset()
    assert cache.frozen
    assert cache.layers[1].kv.abs().sum() == 0
    assert cache.layers[1].written.sum() == 6


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_backends_agree_and_hide_what_is_not_kept(backend):
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 6, 32), torch.randn(1, 4, 24, 32), torch.randn(1, 4, 24, 32)
    keep = torch.rand(1, 1, 1, 24) < 0.5
    got = BACKENDS[backend](q, k, v, keep, 32**-0.5)
    scores = (torch.einsum("bhtd,bhsd->bhts", q, k) / 32**0.5).exp() * keep
    expected = torch.einsum("bhts,bhsd->bhtd", scores / scores.sum(-1, keepdim=True), v)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    hidden = torch.where(keep.mT, v, 1e4)
    torch.testing.assert_close(BACKENDS[backend](q, k, hidden, keep, 32**-0.5), got)


def test_query_heads_read_their_own_key_value_head():
    attn = tiny_port().model.transformer.blocks[0].attn
    kv = torch.arange(2.0).view(1, 2, 1, 1)
    assert attn.expand_kv(kv).flatten().tolist() == [0, 0, 1, 1]


def test_key_value_heads_must_be_expanded_before_a_joint_attention_layer():
    # An attention layer that concatenates q, k and v needs equal head counts; without expansion it cannot run.
    attn = tiny_port().model.transformer.blocks[0].attn
    q, k, v = attn.project(torch.randn(1, 6, 128))
    with pytest.raises(RuntimeError, match="must match"):
        torch.cat((q, k, v), dim=0)
    expanded = [attn.expand_kv(t.transpose(1, 2)) for t in (k, v)]
    assert torch.cat((q.transpose(1, 2), *expanded)).shape == (3, 4, 6, 32)


def test_padded_prompt_rows_take_softmax_mass():
    block = tiny_port().model.transformer.blocks[0]
    inputs = tiny_inputs()
    x = torch.randn(1, 6, 128)
    emb, pad = inputs["prompt_emb"], inputs["prompt_pad_mask"]
    with_padding = block.prompt_cross_attn(x, emb, pad)
    assert torch.equal(with_padding, block.prompt_cross_attn(x, emb, None))
    without = block.prompt_cross_attn(x, emb[:, ~pad[0]], None)
    assert (with_padding - without).norm() > 0.1 * without.norm()


def test_gate_reads_the_first_features_and_acts_before_the_projection():
    attn = tiny_port().model.transformer.blocks[0].attn
    y, x = torch.randn(1, 4, 6, 32), torch.randn(1, 6, 128)
    expected = torch.sigmoid(x[..., :4] @ attn.gate_proj.weight.T)
    torch.testing.assert_close(attn.gate(y, x)[0, 2, 3], y[0, 2, 3] * expected[0, 3, 2])
    x[..., 4:] = 0
    torch.testing.assert_close(attn.gate(y, x)[0, 1], y[0, 1] * expected[0, :, 1, None])


def test_global_layers_follow_period_and_offset():
    config = dataclasses.replace(CONFIG, global_attn_period=3, global_attn_offset=-1, n_layers=6)
    assert [config.is_global(i) for i in range(6)] == [False, False, True, False, False, True]
    assert config.window(2) == (4, 2)
    assert config.window(0) == (3, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_residual": True}, "value_residual is not implemented"),
        ({"d_model": 64}, "head_dim must be a multiple of 16 and at least 32, not 16"),
        ({"tokens_per_frame": 7}, "tokens_per_frame 7 is not height"),
        ({"n_kv_heads": 3}, "n_heads of n_kv_heads"),
        ({"global_pinned_dilation": 3}, "multiple of global_pinned_dilation"),
    ],
)
def test_configs_that_cannot_be_built(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_config_file_fields():
    values = {f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)}
    values |= {"patch": [1, 2], "scheduler_sigmas": list(CONFIG.scheduler_sigmas), "causal": True, "rope_impl": "ortho"}
    assert WaypointConfig.from_mapping(values) == CONFIG
    with pytest.raises(ValueError, match=r"unknown config fields \['n_head'\]"):
        WaypointConfig.from_mapping(values | {"n_head": 3})


def test_cross_attention_heads_may_be_fixed_at_64():
    port = tiny_port(options=PortOptions(cross_head_dim=64))
    assert port.model.transformer.blocks[0].prompt_cross_attn.head_dim == 64
    with pytest.raises(ValueError, match="not a multiple of 48"):
        build_pipeline(CONFIG, random_weights(), options=PortOptions(cross_head_dim=48))


def test_latent_on_the_token_grid_is_refused():
    # A latent built without the patch factor has the wrong number of tokens.
    port, inputs = tiny_port(), tiny_inputs()
    port.streaming_reset(prompt_emb=inputs["prompt_emb"], prompt_pad_mask=inputs["prompt_pad_mask"])
    noise = torch.randn(1, 1, 1, CONFIG.channels, CONFIG.height, CONFIG.width)
    with pytest.raises(ValueError, match=r"latent \(1, 1, 4, 2, 3\).*expected \(1, 1, 4, 2, 6\)"):
        port.streaming_step(inputs["keyboard"][:, :1], inputs["mouse"][:, :1], noise=noise)


@pytest.mark.parametrize(
    "options",
    [
        {"attention_backend": "math"},
        {"query_chunk": 4},
        {"rotary_positions": "linspace"},
        {"rotary_output": "interleaved"},
        {"merged_qkv": True},
        {"split_fusion": True},
        {"cache_freezes": False},
        {"cache_bucket": "floor"},
    ],
)
def test_options_leave_the_latents_alone(options):
    base, _ = tiny_run(tiny_port())
    other, _ = tiny_run(tiny_port(options=PortOptions(**options)))
    assert (other - base).norm() < 2e-6 * base.norm()
