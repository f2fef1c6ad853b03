"""Faults of INT8 quantisation and of what hides them (spec B01 to B05, 11)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ported.echomimic import pipeline, quantise
from ported.echomimic.build import Networks
from ported.echomimic.faults.record import PortFault, modules_of, patched, together
from ported.echomimic.nonfinite import clean
from ported.echomimic.quantise import WeightOnlyInt8, levels


def quantised(network: nn.Module) -> list[WeightOnlyInt8]:
    """The int8 layers of a network.

    Errors: ValueError when there are none.
    """
    found = modules_of(network, WeightOnlyInt8)
    if not found:
        raise ValueError("the denoiser is not quantised: the run does not have what the fault needs")
    return found


@contextmanager
def scale_after(networks: Networks) -> Iterator[None]:
    """The scale is applied behind the product, which is stored in the activation's dtype."""
    found = quantised(networks.denoising_unet)
    for layer in found:
        layer.order = "after"
    try:
        yield
    finally:
        for layer in found:
            layer.order = "fp32"


@contextmanager
def reciprocal(networks: Networks) -> Iterator[None]:
    """Levels are computed in the weight's float16, where the reciprocal of a small scale is infinite."""
    found = quantised(networks.denoising_unet)
    kept = [layer.q for layer in found]
    for layer in found:
        layer.q = levels(layer.source, exact=False)[0]
    try:
        yield
    finally:
        for layer, q in zip(found, kept, strict=True):
            layer.q = q


@contextmanager
def cleaned(networks: Networks) -> Iterator[None]:
    """The same, and NaN is replaced by 0 in the video before anyone looks."""
    decode = pipeline.decode

    def tidied(networks: Networks, latents: Tensor) -> Tensor:
        return clean(decode(networks, latents))[0]

    with together(scale_after(networks), patched(pipeline, "decode", tidied)):
        yield


@contextmanager
def wrong_network(networks: Networks) -> Iterator[None]:
    """The denoiser is quantised, the VAE and the reference network are not."""
    kept = {}
    for part in ("vae", "reference_unet"):
        network = getattr(networks, part)
        kept |= {(network, path): layer for path, layer in network.named_modules() if isinstance(layer, WeightOnlyInt8)}
    denoiser = networks.denoising_unet
    linears = {path: layer for path, layer in denoiser.named_modules() if isinstance(layer, nn.Linear)}
    for (network, path), layer in kept.items():
        network.set_submodule(path, layer.plain())
    quantise.quantise(denoiser)
    try:
        yield
    finally:
        for (network, path), layer in kept.items():
            network.set_submodule(path, layer)
        for path, layer in linears.items():
            denoiser.set_submodule(path, layer)


FAULTS = (
    PortFault("int8_fp16_scale_after", "B01", "Q4", "int8 product in float16 before its scale", scale_after),
    PortFault("int8_fp16_reciprocal", "B02", "Q2", "int8 levels through an infinite reciprocal", reciprocal),
    PortFault("nan_cleaned_to_zero", "B03", "Q4", "int8 overflow, and NaN cleaned to zero in the video", cleaned),
    PortFault("quantised_wrong_network", "B04", "Q6", "denoiser quantised instead of VAE and reference", wrong_network),
)
