"""Faults of the image encoder and its preprocessing (spec D17, D18, D28 and the list below)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import WanImageToVideoPipeline
from torch import Tensor
from transformers import CLIPImageProcessor
from transformers.activations import QuickGELUActivation

from ported.wan import image
from ported.wan.faults.record import Port, PortFault, patched


@contextmanager
def last_hidden_state(port: Port) -> Iterator[None]:
    """The output of the last block instead of the one before it."""

    def encode_image(self: WanImageToVideoPipeline, images: Any, device: torch.device | None = None) -> Tensor:
        pixels = self.image_processor(images=images, return_tensors="pt")
        return self.image_encoder(**pixels, output_hidden_states=True).hidden_states[-1]

    with patched(WanImageToVideoPipeline, "encode_image", encode_image):
        yield


@contextmanager
def causal_mask(port: Port) -> Iterator[None]:
    """The vision tower is configured with causal attention."""
    with ExitStack() as stack:
        for layer in port.clip.encoder.layers:
            stack.enter_context(patched(layer.self_attn, "is_causal", True))
        yield


@contextmanager
def quick_gelu(port: Port) -> Iterator[None]:
    """The x·sigmoid(1.702x) approximation, the library's default activation, instead of the exact GELU."""
    with ExitStack() as stack:
        for layer in port.clip.encoder.layers:
            exact = layer.mlp.activation_fn
            layer.mlp.activation_fn = QuickGELUActivation()
            stack.callback(setattr, layer.mlp, "activation_fn", exact)
        yield


@contextmanager
def first_last_exchanged(port: Port) -> Iterator[None]:
    """Features of last and first image in the wrong order."""
    encode = WanImageToVideoPipeline.encode_image

    def encode_image(self: WanImageToVideoPipeline, images: Any, device: torch.device | None = None) -> Tensor:
        return encode(self, images, device).flip(0)

    with patched(WanImageToVideoPipeline, "encode_image", encode_image):
        yield


@contextmanager
def clip_centre_crop(port: Port) -> Iterator[None]:
    """Shortest edge to 224 and a centre crop, instead of squashing the whole picture."""

    def shortest_edge(self: image.OfficialClipProcessor, picture: Tensor) -> Tensor:
        height, width = picture.shape[-2:]
        scale = self.size / min(height, width)
        size = max(self.size, round(height * scale)), max(self.size, round(width * scale))
        resized = torch.nn.functional.interpolate(picture, size=size, mode="bicubic", align_corners=False)
        return image.centre_crop(resized, self.size, self.size)

    with patched(image.OfficialClipProcessor, "squash", shortest_edge):
        yield


@contextmanager
def clip_antialias(port: Port) -> Iterator[None]:
    """The resize filters before it samples."""
    with patched(port.pipe.image_processor, "antialias", True):
        yield


@contextmanager
def clip_library_processor(port: Port) -> Iterator[None]:
    """The library's own image processor: 8-bit PIL resize of the shortest edge, centre crop."""
    size = port.clip.config.image_size
    native: CLIPImageProcessor = image.native_clip_processor(size)

    def pil(self: image.OfficialClipProcessor, images: Any, return_tensors: str = "pt", **_: Any) -> Any:
        images = images if isinstance(images, list) else [images]
        pictures = [((picture.squeeze(0) + 1) * 127.5).round().to(torch.uint8) for picture in images]
        return native(images=pictures, return_tensors=return_tensors)

    with patched(image.OfficialClipProcessor, "__call__", pil):
        yield


_OBLONG = {"not_square": True}
FAULTS: tuple[PortFault, ...] = (
    PortFault(
        "last_hidden_state", "D17", "C2", "last CLIP hidden state instead of the penultimate", last_hidden_state, "clip"
    ),
    PortFault("clip_causal_mask", "D18", "A1", "causal mask in the vision tower", causal_mask, "clip"),
    PortFault("clip_quick_gelu", "D+", "N2", "quick GELU in the vision tower", quick_gelu, "clip"),
    PortFault(
        "clip_first_last_exchanged",
        "D+",
        "C5",
        "first and last image features exchanged",
        first_last_exchanged,
        "clip",
        {"model_type": "flf2v"},
    ),
    PortFault(
        "clip_centre_crop", "D28", "C6", "CLIP input cropped instead of squashed", clip_centre_crop, "clip", _OBLONG
    ),
    PortFault("clip_antialias", "D28", "C6", "CLIP input resized with antialiasing", clip_antialias, "clip"),
    PortFault(
        "clip_library_processor",
        "D28",
        "C6",
        "CLIP input by the library's PIL resize and crop",
        clip_library_processor,
        "clip",
        _OBLONG,
    ),
)
