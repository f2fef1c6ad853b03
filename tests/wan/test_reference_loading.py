"""Configurations, strict loading, and the list of kept quirks."""

import importlib
import json
from operator import attrgetter

import pytest
import torch
from safetensors.torch import save_file

from reference.wan import loading, quirks
from reference.wan.config import CLIPConfig, DiTConfig, T5Config, VAEConfig
from reference.wan.dit import WanDiT

TINY = {"model_type": "t2v", "dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 1, "freq_dim": 16, "text_dim": 8}


def write_checkpoint(folder, shards=1, dtype=torch.float32):
    """An official-looking folder; returns the state dict."""
    torch.manual_seed(2)
    state = {k: torch.randn_like(v).to(dtype) for k, v in WanDiT(DiTConfig(**TINY)).state_dict().items()}
    provenance = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "eps": 1e-06, "patch_size": [1, 2, 2]}
    (folder / "config.json").write_text(json.dumps(TINY | provenance))
    if shards == 1:
        save_file(state, folder / "diffusion_pytorch_model.safetensors")
        return state
    weight_map = {}
    for i in range(shards):
        name = f"diffusion_pytorch_model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {k: state[k] for k in sorted(state)[i::shards]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return state


@pytest.mark.parametrize("config", [DiTConfig, VAEConfig, T5Config, CLIPConfig])
def test_unknown_keys_are_refused(config):
    with pytest.raises(ValueError, match=rf"{config.__name__}: unknown keys \['windowsize'\]"):
        config.from_dict({"windowsize": 3})


def test_missing_and_impossible_values_are_refused():
    with pytest.raises(ValueError, match="num_layers"):
        DiTConfig.from_dict({k: v for k, v in TINY.items() if k != "num_layers"})
    for wrong, words in (
        ({"model_type": "vace"}, "vace"),
        ({"num_heads": 5}, "does not split"),
        ({"window_size": (5, 5)}, "globally"),
        ({"qk_norm": False}, "qk_norm"),
    ):
        with pytest.raises(ValueError, match=words):
            DiTConfig(**TINY | wrong)
    with pytest.raises(ValueError, match="attn_scales"):
        VAEConfig(attn_scales=(0.5,))
    with pytest.raises(ValueError, match="activation"):
        CLIPConfig(activation="quick_gelu")


def test_lists_become_tuples_and_provenance_is_skipped():
    config = DiTConfig.from_dict(TINY | {"patch_size": [1, 2, 2], "_class_name": "WanModel"})
    assert config == DiTConfig(**TINY)
    assert VAEConfig.from_dict({"dim_mult": [1, 2, 4, 4]}) == VAEConfig()


@pytest.mark.parametrize("shards", [1, 3])
def test_checkpoint_folder_loads_whole_or_sharded(tmp_path, shards):
    state = write_checkpoint(tmp_path, shards, dtype=torch.bfloat16)
    model = loading.load_dit(tmp_path)
    loaded = model.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k].float()) for k in state)
    assert all(v.dtype == torch.float32 and v.device.type == "cpu" for v in loaded.values())
    out = model([torch.zeros(16, 1, 2, 2)], torch.tensor([3]), [torch.zeros(1, 8)], seq_len=1)
    assert torch.isfinite(out[0]).all()


def test_all_disagreeing_keys_are_listed_in_one_error_and_nothing_is_loaded():
    model = WanDiT(DiTConfig(**TINY))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: torch.ones_like(v) for k, v in before.items()}
    del state["head.modulation"], state["blocks.0.norm3.bias"]
    state["blocks.1.norm3.bias"] = torch.ones(24)
    state["patch_embedding.weight"] = torch.ones(24, 36, 1, 2, 2)
    with pytest.raises(ValueError, match="state dict does not fit") as error:
        loading.load_strict(model, state)
    lines = str(error.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "missing: blocks.0.norm3.bias (24,)",
        "missing: head.modulation (1, 2, 24)",
        "unexpected: blocks.1.norm3.bias (24,)",
        "shape: patch_embedding.weight is (24, 36, 1, 2, 2), the model needs (24, 16, 1, 2, 2)",
    ]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_loaded_weights_are_copies(tmp_path):
    model = WanDiT(DiTConfig(**TINY))
    state = {k: torch.ones_like(v) for k, v in model.state_dict().items()}
    loading.load_strict(model, state)
    state["head.head.bias"].zero_()
    assert model.head.head.bias.min() == 1
    assert not model.head.head.bias.requires_grad


def test_index_and_shards_that_disagree(tmp_path):
    write_checkpoint(tmp_path, shards=2)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    first, second = sorted(set(content["weight_map"].values()))
    moved = next(k for k, v in content["weight_map"].items() if v == first)
    content["weight_map"][moved] = second
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="index and shards disagree") as error:
        loading.load_dit(tmp_path)
    assert f"{second} lacks {moved}" in str(error.value)
    assert f"{first} has {moved}, not in the index" in str(error.value)
    content["weight_map"][moved] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="not a file of this folder"):
        loading.load_dit(tmp_path)


def test_ambiguous_missing_and_pickled_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        loading.load_dit(tmp_path)
    write_checkpoint(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "second.safetensors")
    with pytest.raises(ValueError, match="expected one"):
        loading.read_state(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="never opened"):
        loading.load_vae(tmp_path / "model.pth")
    with pytest.raises(ValueError, match="no such file"):
        loading.read_state(tmp_path / "none.safetensors")


def test_prefix_selects_the_vision_tower(tmp_path):
    config = CLIPConfig(image_size=28, dim=16, num_heads=2, num_layers=2, out_dim=4)
    from reference.wan.clip import CLIPVision

    state = {f"visual.{k}": v for k, v in CLIPVision(config).state_dict().items()}
    save_file(state | {"textual.x": torch.zeros(1)}, tmp_path / "clip.safetensors")
    tower = loading.load_clip(tmp_path / "clip.safetensors", config)
    assert tower.head.dtype == torch.float16
    assert len(tower.state_dict()) == len(state)


def test_every_kept_quirk_points_at_code_that_exists():
    assert len({q.id for q in quirks.KEPT}) == len(quirks.KEPT)
    for quirk in quirks.KEPT:
        module, attribute = quirk.where.split(":")
        assert callable(attrgetter(attribute)(importlib.import_module(f"reference.wan.{module}"))), quirk.id
        assert quirk.what
        assert quirk.reason
        assert quirk.spec
    assert {"flf2v-81", "flf2v-crop", "unipc-duplicate"} <= {q.id for q in quirks.KEPT}
