"""Sessions, the sampler and the prompt encoder of the Waypoint reference."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from reference.waypoint import Autoencoder, AutoencoderConfig, Config, Controls, Engine, WorldModel
from reference.waypoint import text as text_module
from reference.waypoint.engine import euler_step
from reference.waypoint.text import PromptEncoder

CONFIG = Config(
    d_model=64,
    n_heads=2,
    n_kv_heads=1,
    n_layers=2,
    mlp_ratio=2,
    channels=4,
    height=3,
    width=4,
    patch=(2, 1),
    tokens_per_frame=12,
    n_frames=10,
    local_window=2,
    global_window=4,
    global_attn_period=2,
    global_pinned_dilation=2,
    gated_attn=True,
    n_buttons=5,
    ctrl_conditioning_period=1,
    prompt_conditioning_period=2,
    prompt_embedding_dim=64,
)


def noise(frame: int) -> torch.Tensor:
    return torch.randn(1, 1, 4, 6, 4, generator=torch.Generator().manual_seed(100 + frame))


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(2)
    return WorldModel(CONFIG).eval()


@pytest.fixture
def engine(model: WorldModel) -> Engine:
    made = Engine(model)
    made.set_prompt_embeds(torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(9)))
    return made


def test_a_frame_is_four_euler_steps_and_a_cache_pass(engine, model, monkeypatch):
    calls = []
    plain = type(model).forward

    def spy(self, x, sigma, frame_timestamp, *rest, kv_cache, **named):
        v = plain(self, x, sigma, frame_timestamp, *rest, kv_cache=kv_cache, **named)
        calls.append((x, sigma.item(), frame_timestamp.item(), kv_cache.frozen, v))
        return v

    monkeypatch.setattr(type(model), "forward", spy)
    frame = engine.gen_frame(noise=noise(0))
    sigmas = list(CONFIG.scheduler_sigmas)
    assert [c[1] for c in calls] == pytest.approx([*sigmas[:-1], 0.0])
    assert [c[2] for c in calls] == [0] * 5
    assert [c[3] for c in calls] == [True] * 4 + [False]
    x = noise(0)
    for k in range(4):
        assert torch.equal(calls[k][0], x)
        x = x + (torch.tensor(sigmas[k + 1]) - torch.tensor(sigmas[k])) * calls[k][4]
    assert torch.equal(calls[4][0], x)
    assert torch.equal(frame.latent, x)
    assert frame.image is None
    assert engine.frame_ts.item() == 1
    assert not engine.kv_cache.frozen  # until the next denoise pass


def test_history_matters_and_reset_forgets_it(engine):
    first = [engine.gen_frame(noise=noise(f)).latent for f in range(6)]
    alone = [engine.reset() or engine.gen_frame(noise=noise(f)).latent for f in range(6)]
    assert torch.equal(first[0], alone[0])
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in zip(first[1:], alone[1:], strict=True))
    engine.reset()
    assert engine.frame_ts.item() == 0
    assert all(torch.equal(engine.gen_frame(noise=noise(f)).latent, first[f]) for f in range(6))


def test_reset_keeps_the_prompt_and_a_prompt_switch_acts_at_once(engine):
    a = engine.gen_frame(noise=noise(0)).latent
    engine.reset()
    assert torch.equal(engine.gen_frame(noise=noise(0)).latent, a)
    engine.reset()
    engine.set_prompt_embeds(torch.randn(1, 3, 64))
    assert not torch.allclose(engine.gen_frame(noise=noise(0)).latent, a, atol=1e-4)


def test_controls_become_one_hot_raw_and_sign(engine):
    inputs = engine.prep_inputs(Controls(frozenset({0, 3}), (1.5, -20.0), -7.0))
    assert inputs.button.tolist() == [[[1, 0, 0, 1, 0]]]
    assert inputs.mouse.tolist() == [[[1.5, -20.0]]]
    assert inputs.scroll.tolist() == [[[-1.0]]]
    later = engine.prep_inputs(Controls())
    assert (inputs.frame_timestamp.item(), later.frame_timestamp.item()) == (0, 1)
    assert later.button.sum() == later.mouse.abs().sum() == later.scroll.abs().sum() == 0
    with pytest.raises(IndexError):
        engine.prep_inputs(Controls(frozenset({5})))


@pytest.mark.parametrize("change", [{"button": frozenset({2})}, {"mouse": (0.4, 0.0)}, {"scroll_wheel": 1.0}])
def test_every_control_reaches_the_frame(engine, change):
    idle = engine.gen_frame(noise=noise(0)).latent
    engine.reset()
    assert not torch.allclose(engine.gen_frame(Controls(**change), noise(0)).latent, idle, atol=1e-6)


def test_append_is_a_cache_pass_only(engine):
    latent = torch.randn(1, 4, 6, 4)
    engine.append_latent(latent)
    assert engine.frame_ts.item() == 1
    assert [int(layer.written.sum()) for layer in engine.kv_cache.layers] == [24, 24]
    after = engine.gen_frame(noise=noise(1)).latent
    engine.reset()
    engine.append_latent(latent + 1)
    assert not torch.allclose(engine.gen_frame(noise=noise(1)).latent, after, atol=1e-5)


def test_noise_is_drawn_from_the_given_generator(model):
    def first(seed: int) -> torch.Tensor:
        made = Engine(model, generator=torch.Generator().manual_seed(seed))
        made.set_prompt_embeds(torch.zeros(1, 2, 64))
        return made.gen_frame().latent

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_a_float64_engine_follows_the_float32_one(engine, model):
    wide = Engine(copy.deepcopy(model).double())
    wide.set_prompt_embeds(engine.prompt_emb)
    for f in range(4):
        a, b = (e.gen_frame(Controls(mouse=(0.5, f)), noise(f)).latent for e in (engine, wide))
        assert b.dtype == torch.float64
        assert torch.linalg.norm(a - b) / torch.linalg.norm(b) < 1e-4


def test_euler_moves_against_the_falling_sigma():
    x, v = torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)
    sigma, nxt = torch.tensor([0.859375, 0.73046875], dtype=torch.bfloat16)
    out = euler_step(x, v, sigma, nxt)
    assert out.dtype == torch.bfloat16
    assert out.tolist() == [0.73046875 - 0.859375] * 2


def test_images_go_through_the_autoencoder(model):
    sizes = AutoencoderConfig(3, 4, 4, 8, (1,), (1,))
    engine = Engine(model, Autoencoder(sizes, sizes))
    engine.set_prompt_embeds(torch.zeros(1, 2, 64))
    frame = engine.gen_frame(noise=noise(0))
    assert frame.image.dtype == torch.uint8
    assert frame.image.shape == (360, 640, 3)
    assert engine.encode(frame.image).shape == (1, 4, 256, 256)


def test_what_is_missing_is_said(model):
    with pytest.raises(ValueError, match="no prompt encoder"):
        Engine(model).gen_frame(noise=noise(0))
    with pytest.raises(ValueError, match="no autoencoder"):
        Engine(model).append_frame(torch.zeros(4, 4, 3, dtype=torch.uint8))


def test_the_default_prompt_is_set_on_the_first_frame(model):
    asked = []

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(text)
        return torch.ones(1, 2, 64), torch.zeros(1, 2, dtype=torch.bool)

    engine = Engine(model, prompt_encoder=encode)
    engine.gen_frame(noise=noise(0))
    engine.gen_frame(noise=noise(1))
    assert asked == ["An explorable world"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> str:
    """Save a random two-layer UMT5 and a word tokenizer."""
    folder = tmp_path_factory.mktemp("umt5")
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "an", "explorable", "world", "a&b"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = UMT5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    UMT5EncoderModel(sizes).save_pretrained(folder)
    return str(folder)


def test_prompts_are_padded_zeroed_and_masked(encoder_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", types.SimpleNamespace(fix_text=str.lower))
    encoder = PromptEncoder.from_folder(encoder_folder)
    states, pad_mask = encoder("AN Explorable World")
    assert states.shape == (1, 512, 32)
    assert states.dtype == torch.bfloat16
    assert pad_mask.shape == (1, 512)
    assert (~pad_mask).sum() == 3
    assert (states[pad_mask] == 0).all()
    assert (states[~pad_mask].abs().sum(-1) > 0).all()
    assert torch.equal(encoder("an explorable world")[0], states)  # the cleaned text is what is encoded
    truncated, mask = encoder("world " * 600)
    assert truncated.shape == (1, 512, 32)
    assert not mask.any()


def test_umt5_has_a_position_table_in_every_layer(encoder_folder):
    encoder = PromptEncoder.from_folder(encoder_folder, torch.float32).encoder
    tables = [k for k in encoder.state_dict() if "relative_attention_bias" in k]
    assert len(tables) == 2


def test_cleaning_without_ftfy_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ModuleNotFoundError, match=r"ftfy\.fix_text"):
        text_module.fix_text("a")


def test_the_diffusers_edition_also_unescapes_and_collapses(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", types.SimpleNamespace(fix_text=lambda t: t))
    assert text_module.clean_text_diffusers("  a &amp;amp; b \n\t c ") == "a & b c"
    assert text_module.fix_text("  a &amp; b ") == "  a &amp; b "


def test_a_missing_encoder_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompt encoder folder"):
        PromptEncoder.from_folder(tmp_path / "absent")
