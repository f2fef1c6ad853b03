"""The port's stages: sessions, controls, noise, text, decoding."""

import copy

import pytest
import torch
from transformers import T5Config, T5EncoderModel
from waypoint_port_tiny import CONFIG, HALF, random_weights, tiny_inputs, tiny_port, tiny_run, tiny_text, tiny_vae

from ported.waypoint import StreamingOutput, build_pipeline
from ported.waypoint.autoencoder import Decoder, Encoder, HalfConfig
from ported.waypoint.build import build_vae
from ported.waypoint.text import TextEncodingStage


def start(port, **extra):
    inputs = tiny_inputs()
    port.streaming_reset(prompt_emb=inputs["prompt_emb"], prompt_pad_mask=inputs["prompt_pad_mask"], **extra)
    return inputs


def step(port, inputs, frames):
    names = ("keyboard", "mouse", "scroll")
    return port.streaming_step(*(inputs[name][:, frames] for name in names), noise=inputs["noise"][frames]).latents


def test_frames_do_not_depend_on_how_they_are_grouped_into_calls():
    port = tiny_port()
    one_by_one, _ = tiny_run(port)
    inputs = start(port)
    grouped = torch.cat([step(port, inputs, slice(0, 2)), step(port, inputs, slice(2, 5))], dim=2)
    assert grouped.shape == (1, 4, 5, 2, 6)
    assert torch.equal(grouped, one_by_one)


def test_reset_forgets_everything():
    port = tiny_port()
    first, _ = tiny_run(port)
    second, _ = tiny_run(port)
    assert torch.equal(first, second)
    port.streaming_clear()
    assert port.denoising.frame_index == 0
    assert port.denoising.prompt_emb is None
    assert all(layer.kv.abs().sum() == 0 for layer in port.kv_cache.layers)


def test_history_matters():
    port = tiny_port()
    inputs = start(port)
    step(port, inputs, slice(0, 1))
    with_history = step(port, inputs, slice(1, 2))
    inputs = start(port)
    port.denoising.frame_index = 1
    assert not torch.allclose(with_history, step(port, inputs, slice(1, 2)), rtol=1e-3)


def test_shortest_control_sets_the_number_of_frames():
    port, inputs = tiny_port(), tiny_inputs()
    start(port)
    out = port.streaming_step(inputs["keyboard"][:, :4], inputs["mouse"][:, :2], inputs["scroll"][:, :3])
    assert isinstance(out, StreamingOutput)
    assert out.latents.shape[2] == 2
    assert out.video is None
    assert port.denoising.frame_index == 2


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1, 5, 1)])
def test_scroll_is_taken_in_three_shapes_and_reduced_to_its_sign(shape):
    port, inputs = tiny_port(), tiny_inputs()
    scroll = inputs["scroll"].reshape(shape)
    controls = port.denoising.prepare_controls(inputs["keyboard"], inputs["mouse"], scroll)
    assert controls.scroll.flatten().tolist() == [1, 0, -1, 1, -1]
    assert controls.scroll.shape == (1, 5, 1)
    assert port.denoising.prepare_controls(inputs["keyboard"], inputs["mouse"], None).scroll.abs().sum() == 0


def test_controls_go_by_the_place_in_the_call():
    port, inputs = tiny_port(), tiny_inputs()
    start(port)
    port.denoising.frame_index = 3
    controls = port.denoising.prepare_controls(inputs["keyboard"], inputs["mouse"], inputs["scroll"])
    mouse, button, scroll = port.denoising.controls_at(1, controls)
    assert torch.equal(mouse, inputs["mouse"][:, 1:2])
    assert torch.equal(button, inputs["keyboard"][:, 1:2])
    assert scroll.shape == (1, 1, 1)


def test_noise_is_drawn_per_frame_from_seed_plus_index():
    port, inputs = tiny_port(), tiny_inputs()
    start(port, seed=40)
    free = port.streaming_step(inputs["keyboard"][:, :2], inputs["mouse"][:, :2]).latents
    noise = [torch.randn(1, 1, 4, 2, 6, generator=torch.Generator().manual_seed(40 + i)) for i in range(2)]
    start(port)
    given = port.streaming_step(inputs["keyboard"][:, :2], inputs["mouse"][:, :2], noise=torch.stack(noise)).latents
    assert torch.equal(free, given)
    with pytest.raises(ValueError, match="noise for 1 frames, controls for 2"):
        port.streaming_step(inputs["keyboard"][:, :2], inputs["mouse"][:, :2], noise=torch.stack(noise[:1]))


def test_sigmas_and_latents_are_in_the_engine_dtype():
    port = tiny_port({"dtype": "bf16"})
    assert port.denoising.sigmas.tolist() == [1.0, 0.859375, 0.73046875, 0.3203125, 0.0]
    latents, _ = tiny_run(port)
    assert latents.dtype == torch.bfloat16
    assert port.kv_cache.layers[0].kv.dtype == torch.bfloat16
    exact, _ = tiny_run(tiny_port())
    assert 0 < (latents.float() - exact).norm() < exact.norm()


def test_initial_image_becomes_frame_0_with_zero_controls():
    port, inputs = tiny_port(), tiny_inputs()
    calls = []
    port.model.register_forward_pre_hook(lambda _m, args: calls.append(args))
    start(port, image_latent=torch.ones(1, *CONFIG.latent_shape))
    (x, sigma, timestamp, _, _, mouse, button, scroll, _) = calls[0]
    assert len(calls) == 1
    assert (x == 1).all()
    assert (float(sigma), int(timestamp)) == (0.0, 0)
    assert all(c.abs().sum() == 0 for c in (mouse, button, scroll))
    assert port.denoising.frame_index == 1
    assert port.kv_cache.layers[1].written.sum() == 12
    step(port, inputs, slice(0, 1))
    assert [int(c[2]) for c in calls[1:]] == [1] * 5
    assert [round(float(c[1]), 2) for c in calls[1:]] == [1.0, 0.86, 0.73, 0.32, 0.0]


def test_prompt_may_change_between_frames():
    port = tiny_port()
    inputs = start(port)
    step(port, inputs, slice(0, 1))
    kept = copy.deepcopy(port)
    port.denoising.set_prompt(inputs["prompt_emb"].flip(1), None)
    assert not torch.equal(step(port, inputs, slice(1, 2)), step(kept, inputs, slice(1, 2)))
    with pytest.raises(ValueError, match="conditioned on a prompt"):
        port.denoising.set_prompt(None, None)


def test_pipeline_without_stages_says_so():
    port = tiny_port()
    with pytest.raises(ValueError, match="without a text encoder"):
        port.streaming_reset("a red world")
    with pytest.raises(ValueError, match="without an autoencoder"):
        start(port, image=torch.zeros(9, 16, 3, dtype=torch.uint8))


def test_text_stage_zeroes_padding_and_marks_it():
    stage = tiny_text()
    emb, pad_mask = stage("a red world")
    assert emb.shape == (1, 7, 64)
    assert pad_mask.tolist() == [[False] * 3 + [True] * 4]
    assert (emb[pad_mask] == 0).all()
    assert (emb[~pad_mask].abs().sum(-1) > 0).all()


def test_text_stage_is_read_from_a_folder(tmp_path):
    stage = tiny_text()
    stage.encoder.save_pretrained(tmp_path)
    stage.tokenizer.save_pretrained(tmp_path)
    loaded = TextEncodingStage.from_folder(tmp_path, max_length=7)
    assert torch.equal(loaded("red red a")[0], stage("red red a")[0])


def test_every_layer_of_the_text_encoder_has_its_own_position_bias():
    encoder = tiny_text().encoder
    tables = {key for key in encoder.state_dict() if "relative_attention_bias" in key}
    plain = T5EncoderModel(T5Config(vocab_size=8, d_model=64, d_kv=16, d_ff=64, num_layers=3, num_heads=4))
    assert len(tables) == 3
    assert len([key for key in plain.state_dict() if "relative_attention_bias" in key]) == 1


def test_decoding_gives_floats_of_bytes():
    port = tiny_port({"vae": True})
    latents, video = tiny_run(port, {"vae": True})
    assert video.shape == (1, 3, 1, 360, 640)
    expected = port.vae.decode(latents[:, :, 0])
    assert expected.dtype == torch.uint8
    assert torch.equal(video[0, :, 0].permute(1, 2, 0) * 255, expected.float())


def test_bytes_are_rounded_and_clamped():
    raw = torch.tensor([-1.5, -1.0, 2 * 0.6 / 255 - 1, 1.0, 7.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert tiny_vae().to_uint8(raw)[0, :, 0].tolist() == [0, 0, 1, 255, 255]


def test_image_is_encoded_whatever_its_channels():
    vae = tiny_vae()
    image = torch.randint(0, 256, (20, 30, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert vae.encode(image).shape == (1, 4, 256, 256)
    assert torch.equal(vae.encode(image), vae.encode(image[..., :3]))


def test_autoencoder_widths_follow_the_config():
    config = HalfConfig(3, 16, 128, 1024, (1, 1, 1, 1), (1, 1, 1, 1))
    with torch.device("meta"):
        decoder, encoder = Decoder(config), Encoder(HalfConfig(3, 16, 64, 256, (1, 1, 1, 1), (1, 1, 1, 1)))
    assert [b.up is None for b in decoder.blocks] == [True, False, False, False]
    assert [r.proj.in_channels for r in decoder.residuals] == [1024, 1024, 512, 256]
    assert [r.proj.in_channels for r in encoder.residuals] == [64, 128, 256, 256]


def test_autoencoder_is_built_from_weight_normed_keys():
    vae = tiny_vae()
    normed = {}
    for key, tensor in vae.state_dict().items():
        if key.endswith(".weight"):
            norm = tensor.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            stem = key.removesuffix("weight") + "parametrizations.weight.original"
            normed |= {f"{stem}0": norm, f"{stem}1": 3 * tensor}
        else:
            normed[key] = tensor
    config = {half: vars(HALF) for half in ("encoder", "decoder")}
    built = build_vae(config, normed)
    latent = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(built.decoder(latent), vae.decoder(latent), atol=1e-5, rtol=1e-5)


def test_copy_of_a_pipeline_stands_alone():
    port = tiny_port()
    inputs = start(port)
    step(port, inputs, slice(0, 1))
    twin = copy.deepcopy(port)
    ahead = step(port, inputs, slice(1, 2))
    assert twin.denoising.frame_index == 1
    assert torch.equal(step(twin, inputs, slice(1, 2)), ahead)


def test_config_may_be_the_files_mapping():
    port = build_pipeline(vars(CONFIG), random_weights())
    assert port.model.config == CONFIG
