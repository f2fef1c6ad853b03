"""Who sees whom: the ring cache and the rotary positions of the Waypoint reference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.waypoint import Config, LayerKVCache, StaticKVCache
from reference.waypoint.rope import OrthoRope, PositionIds, ortho_angles


def see(cache: LayerKVCache, frame: int, frozen: bool) -> list[int]:
    """Pass a frame whose keys carry its own number; return the frames that it sees, sorted, with repeats."""
    tokens = torch.full((1, 1, cache.tokens_per_frame, 1), float(frame + 1))
    kv, keep = cache.upsert(tokens, -tokens, frame, frozen)
    assert torch.equal(kv[0], -kv[1])
    frames = kv[0, 0, 0, keep, 0].view(-1, cache.tokens_per_frame)
    assert (frames == frames[:, :1]).all()  # whole frames only
    return sorted(int(f) - 1 for f in frames[:, 0])


def expected(frame: int, window: int, dilation: int) -> list[int]:
    """State the rule in closed form: the current frame and the last pinned ones (spec section 6)."""
    count = window // dilation - (frame % dilation == 0)
    pinned = [p for p in range(frame) if p % dilation == 0]
    return [*(pinned[-count:] if count else []), frame]


@settings(max_examples=60, deadline=None)
@given(buckets=st.integers(1, 5), dilation=st.integers(1, 5), tokens=st.integers(1, 3), frames=st.integers(1, 40))
def test_every_pass_sees_exactly_the_specified_frames(buckets, dilation, tokens, frames):
    window = buckets * dilation
    cache = LayerKVCache(tokens, window, dilation, 1, 1)
    for frame in range(frames):
        for frozen in (True, True, False):  # denoise passes, then the cache pass
            assert see(cache, frame, frozen) == expected(frame, window, dilation)


@pytest.mark.parametrize(
    ("window", "dilation", "frame", "past"),
    [
        (16, 1, 17, list(range(2, 17))),
        (128, 8, 17, [0, 8, 16]),
        (16, 1, 128, list(range(113, 128))),
        (128, 8, 128, list(range(8, 121, 8))),
        (128, 8, 2, [0]),  # the first frame whose dilated view is not everything
    ],
)
def test_the_real_model_sees_what_the_specification_lists(window, dilation, frame, past):
    cache = LayerKVCache(1, window, dilation, 1, 1)
    for earlier in range(frame):
        see(cache, earlier, frozen=False)
    assert see(cache, frame, frozen=True) == [*past, frame]


@settings(max_examples=30, deadline=None)
@given(frames=st.integers(1, 20), denoise=st.integers(0, 4))
def test_frozen_passes_leave_no_trace(frames, denoise):
    quiet, busy = (LayerKVCache(2, 4, 2, 1, 1) for _ in range(2))
    for frame in range(frames):
        for _ in range(denoise):
            see(busy, frame, frozen=True)
        see(busy, frame, frozen=False)
        see(quiet, frame, frozen=False)
        assert torch.equal(quiet.kv, busy.kv)
        assert torch.equal(quiet.written, busy.written)


def test_a_frozen_pass_writes_the_tail_only():
    cache = LayerKVCache(2, 3, 1, 1, 1)
    see(cache, 0, frozen=True)
    assert (cache.kv[..., :6, :] == 0).all()
    assert (cache.kv[0, ..., 6:, :] == 1).all()
    assert cache.written.tolist() == [False] * 6 + [True] * 2


def test_a_dilated_layer_never_writes_the_rest_of_its_ring():
    cache = LayerKVCache(2, 12, 4, 1, 1)
    for frame in range(50):
        see(cache, frame, frozen=False)
    assert cache.num_buckets == 3
    assert cache.written.nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 24, 25]
    assert (cache.kv[..., 6:24, :] == 0).all()


def test_keep_is_a_copy():
    cache = LayerKVCache(1, 2, 1, 1, 1)
    _, keep = cache.upsert(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0, frozen=True)
    keep.zero_()
    assert cache.written.tolist() == [False, False, True]


def test_bad_cache_arguments_are_refused():
    with pytest.raises(ValueError, match="dilation 3 does not divide"):
        LayerKVCache(1, 4, 3, 1, 1)
    with pytest.raises(ValueError, match="must not be negative"):
        see(LayerKVCache(1, 4, 2, 1, 1), -1, frozen=True)


def config(**changes: object) -> Config:
    base = {
        "d_model": 64,
        "n_heads": 2,
        "n_kv_heads": 1,
        "n_layers": 4,
        "mlp_ratio": 1,
        "channels": 1,
        "height": 3,
        "width": 4,
        "tokens_per_frame": 12,
        "n_frames": 6,
        "local_window": 2,
        "global_window": 6,
        "global_attn_period": 2,
        "global_pinned_dilation": 3,
        "n_buttons": 1,
        "prompt_embedding_dim": 32,
    }
    return Config.from_dict({**base, **changes})


def test_layers_get_their_windows_and_share_one_flag():
    cache = StaticKVCache(config(global_attn_offset=-1), torch.bfloat16)
    assert [(c.ring_tokens // 12, c.dilation) for c in cache.layers] == [(2, 1), (6, 3)] * 2
    assert [tuple(c.kv.shape) for c in cache.layers[:2]] == [(2, 1, 1, 36, 32), (2, 1, 1, 84, 32)]
    assert cache.frozen
    assert not cache.state_dict()  # nothing of it belongs to a checkpoint

    k = torch.randn(1, 1, 12, 32)
    pos = PositionIds(torch.zeros(1, 12, dtype=torch.int64), *torch.zeros(2, 1, 12, dtype=torch.int64))
    cache.set_frozen(False)
    cache.upsert(k, k, pos, 1)
    assert cache.layers[1].written[:12].all()
    assert not cache.layers[0].written[:24].any()
    cache.reset()
    assert cache.frozen
    assert all((c.kv == 0).all() and c.written.sum() == 12 for c in cache.layers)


def positions(frame: int, height: int = 3, width: int = 4) -> PositionIds:
    token = torch.arange(height * width)[None]
    return PositionIds(torch.full_like(token, frame), token // width, token % width)


def test_angles_have_three_bands_with_doubled_frequencies():
    angles = ortho_angles(3, 5, 4, 32).view(4, 3, 5, 16)
    x_band, y_band, t_band = angles.split([4, 4, 8], dim=-1)
    assert torch.equal(angles[..., 0::2], angles[..., 1::2])
    for band, axis in ((x_band, 2), (y_band, 1), (t_band, 0)):
        others = [d for d in range(3) if d != axis]
        assert all((band == band.select(d, 0).unsqueeze(d)).all() for d in others)
    torch.testing.assert_close(x_band[0, 0, :, 0], torch.pi * torch.tensor([-0.8, -0.4, 0, 0.4, 0.8]))
    torch.testing.assert_close(x_band[0, 0, 4, 2] / x_band[0, 0, 4, 0], torch.tensor(0.4 * 3))
    torch.testing.assert_close(t_band[3, 0, 0, 0::2], 3 * 10000 ** (-torch.arange(4) * 2 / 8))


def test_rotation_is_complex_multiplication_of_adjacent_pairs():
    rope, x = OrthoRope(config()), torch.randn(1, 2, 12, 32)
    angles = ortho_angles(3, 4, 6, 32)[5 * 12 : 6 * 12]
    turned = torch.view_as_complex(x.view(1, 2, 12, 16, 2)) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([turned.real, turned.imag], dim=-1)  # de-interleaved
    torch.testing.assert_close(rope(x, positions(5)), expected)


def test_scores_depend_on_relative_time_only():
    rope = OrthoRope(config())
    q, k = torch.randn(2, 1, 2, 12, 32).double()
    wide = rope.double()

    def scores(t_q: int, t_k: int) -> torch.Tensor:
        return wide(q, positions(t_q)) @ wide(k, positions(t_k)).mT

    torch.testing.assert_close(scores(3, 1), scores(5, 3), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores(3, 1), scores(3, 2), atol=1e-2)


@pytest.mark.parametrize(("axis", "value"), [("t", 6), ("t", -1), ("y", 3), ("x", 4), ("x", -1)])
def test_positions_outside_the_table_are_refused(axis, value):
    bad = positions(0)._replace(**{axis: torch.full((1, 12), value)})
    with pytest.raises(IndexError, match=f"rotary position {axis}"):
        OrthoRope(config())(torch.randn(1, 2, 12, 32), bad)
