"""Building, loading and running the Wan port: the library's precision, folders, and the official call signature."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from ported.wan import build, configs, keys, load, pipeline, text, tiny, vae
from ported.wan.dit import DiTForward


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["transformer", "text_encoder"])
def test_cast_is_what_from_pretrained_does(tmp_path, part, dtype):
    component, model = {"transformer": ("dit", tiny.dit("flf2v")), "text_encoder": ("text", tiny.text_encoder())}[part]
    model.save_pretrained(tmp_path / part)
    library = tensors(load.load_diffusers(tmp_path, component, dtype))
    ours = tensors(build.cast_like_library(model, dtype))
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in library.items()}
    assert all(torch.equal(ours[k], v) for k, v in library.items())
    assert {v.dtype for v in ours.values()} >= {dtype}


def test_plain_cast_takes_the_rotary_tables_too():
    model = build.build_dit(dict(configs.REAL_DIT["T2V-1.3B"], num_layers=1, dim=48, num_heads=2, ffn_dim=8), None)
    assert model.rope.freqs_cos.dtype == torch.float32
    assert build.cast_like_library(model, torch.bfloat16).rope.freqs_cos.dtype == torch.float32
    assert model.to(torch.bfloat16).rope.freqs_cos.dtype == torch.bfloat16


def test_official_folder(tmp_path):
    model = tiny.dit("i2v")
    config = {"model_type": "i2v", "dim": 80, "num_heads": 2, "ffn_dim": 96, "num_layers": 2, "freq_dim": 32}
    config |= {"in_dim": 36, "text_dim": tiny.TEXT_DIM, "clip_dim": tiny.CLIP_DIM, "clip_tokens": tiny.CLIP_TOKENS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = {k: v.contiguous() for k, v in keys.to_official("dit", model.state_dict()).items()}
    names = sorted(state)
    for i, part in enumerate((names[:40], names[40:])):
        shard = tmp_path / f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, shard)
    loaded = load.load_official(tmp_path, "dit")
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    save_file({"head.modulation": state["head.modulation"]}, tmp_path / "diffusion_pytorch_model-00003.safetensors")
    with pytest.raises(ValueError, match=r"repeats keys of an earlier shard: \['head.modulation'\]"):
        load.load_official(tmp_path, "dit")


def test_official_image_encoder_is_found_behind_its_prefix(tmp_path):
    model = tiny.image_encoder()
    state = {f"visual.{k}": v.contiguous() for k, v in keys.to_official("image", model.state_dict()).items()}
    state |= {"textual.token_embedding.weight": torch.zeros(2), "log_scale": torch.zeros(1)}
    save_file(state, tmp_path / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.safetensors")
    config = {"dim": tiny.CLIP_DIM, "heads": 2, "layers": 3, "image_size": tiny.IMAGE_SIZE, "patch": 14}
    loaded = load.load_official(tmp_path, "image", config=config)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_pickles_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(b"no")
    with pytest.raises(ValueError, match="is a pickle and is not read: convert it first"):
        load.load_official(tmp_path, "vae")
    with pytest.raises(ValueError, match=r"no config\.json: not an official Wan folder"):
        load.load_official(tmp_path, "dit")
    with pytest.raises(ValueError, match="not a diffusers folder with a dit"):
        load.load_diffusers(tmp_path, "dit")


def test_configs_refuse_what_is_not_covered():
    with pytest.raises(ValueError, match="'vace' is not covered"):
        configs.dit_arguments({"model_type": "vace"})
    with pytest.raises(ValueError, match="not a multiple"):
        configs.dit_arguments({"model_type": "t2v", "dim": 50, "num_heads": 4})
    with pytest.raises(ValueError, match="one position table a block"):
        configs.text_arguments({"shared_pos": True})


def test_samples_of_unequal_size_run_one_by_one():
    model = DiTForward(tiny.dit("flf2v"))
    sizes = [(3, 4, 6), (2, 6, 4)]
    x = [torch.randn(16, *size) for size in sizes]
    y = [torch.randn(20, *size) for size in sizes]
    t, context = torch.tensor([999, 417]), [torch.randn(7, tiny.TEXT_DIM), torch.randn(12, tiny.TEXT_DIM)]
    clip = torch.randn(4, tiny.CLIP_TOKENS, tiny.CLIP_DIM)
    both = model(x, t, context, clip, y)
    assert [v.shape for v in both] == [u.shape for u in x]
    for i in range(2):
        alone = model(x[i : i + 1], t[i : i + 1], context[i : i + 1], clip[2 * i : 2 * i + 2], y[i : i + 1])[0]
        assert torch.equal(both[i], alone)
    assert isinstance(model.model, WanTransformer3DModel)


def test_samples_of_equal_size_run_as_a_batch():
    model, calls = DiTForward(tiny.dit()), []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    x, context = list(torch.randn(2, 16, 3, 4, 6)), [torch.randn(7, tiny.TEXT_DIM), torch.randn(12, tiny.TEXT_DIM)]
    batch = model(x, torch.tensor([999, 417]), context)
    assert len(calls) == 1
    alone = model(x[1:], torch.tensor([417]), context[1:])[0]
    torch.testing.assert_close(batch[1], alone, rtol=1e-5, atol=1e-5)


def test_contexts_are_padded_with_zeros_and_never_cut():
    padded = text.pad_context([torch.ones(3, 4), torch.ones(1, 4)], 5)
    assert padded.sum(-1).tolist() == [[4, 4, 4, 0, 0], [4, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"contexts of \[6\] tokens do not fit into 5"):
        text.pad_context([torch.ones(6, 4)], 5)


def test_prompts_go_through_the_library_with_zero_padding():
    encoder = tiny.text_encoder()
    features = text.encode_prompts(text.text_pipeline(encoder), ["3 4 5", "7"], 8)
    assert (features.abs().sum(-1) > 0).tolist() == [[True] * 4 + [False] * 4, [True] * 2 + [False] * 6]
    ids = torch.tensor([[3, 4, 5, 1]])
    torch.testing.assert_close(features[0, :4], text.text_hidden(encoder, ids, torch.ones_like(ids))[0])


def test_tokenizer_truncates_and_keeps_the_end_token():
    found = text.IdTokenizer()(["3 4 5 6", "9"], max_length=3)
    assert found.input_ids.tolist() == [[3, 4, 1], [9, 1, 0]]
    assert found.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]


def test_vae_statistics_are_applied_outside_the_vae():
    model = tiny.vae()
    video = torch.rand(1, 3, 7, 16, 24) * 2 - 1
    latents = vae.encode(model, video)
    assert latents.shape == (1, 16, 2, 2, 3)  # the two trailing frames of 7 are dropped
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (model.config.latents_mean, model.config.latents_std))
    torch.testing.assert_close(latents * std + mean, model.encode(video).latent_dist.mode(), rtol=1e-5, atol=1e-5)
    decoded = vae.decode(model, latents)
    assert decoded.shape == (1, 3, 5, 16, 24)
    assert decoded.abs().max() <= 1


def test_the_pipeline_returns_every_latent_and_a_video():
    request = tiny.request("t2v", steps=3)
    out = pipeline.generate(tiny.pipe("t2v"), request)
    assert len(out.latents) == 4
    assert torch.equal(out.latents[0][0], request.noise)
    assert out.video.shape == (1, 3, tiny.FRAMES, 32, 48)
    torch.testing.assert_close(out.video, vae.decode(tiny.vae(), out.latents[-1]), rtol=0, atol=1e-6)


def test_an_image_model_needs_its_parts():
    with pytest.raises(ValueError, match="needs a VAE and an image encoder"):
        pipeline.build_pipeline(tiny.dit("i2v"), None)
