"""From the reference network's banks to the denoiser's (spec 4.2)."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from .unet import DenoisingUNet, ReferenceUNet, UNet

BANK_DTYPE = torch.float16  # whatever the model computes in (quirk `bank-float16`)


def sorted_blocks(net: UNet) -> list[str]:
    """Paths of the transformer blocks, the widest first; blocks of one width in the order of registration.

    That order is down, up, mid, so the mid block comes last among the blocks of its width.
    """
    found = [(path, block.norm1.normalized_shape[0]) for path, block in net.transformer_blocks()]
    return [path for path, _ in sorted(found, key=lambda pair: -pair[1])]


def pair(writer: Iterable[str], reader: Iterable[str]) -> dict[str, str]:
    """Reader block -> writer block, by position."""
    return dict(zip(reader, writer, strict=True))


def reader_bank(bank: Tensor, doubled: bool, dtype: torch.dtype = BANK_DTYPE) -> Tensor:
    """What a reader block holds: (1, s, c) -> (2 or 1, s, c), float16."""
    return (torch.cat([bank, bank]) if doubled else bank).to(dtype)


def transfer(
    writer: ReferenceUNet,
    reader: DenoisingUNet,
    banks: Mapping[str, Tensor],
    doubled: bool,
    dtype: torch.dtype = BANK_DTYPE,
) -> dict[str, Tensor]:
    """Banks of the writer by its blocks -> banks of the reader by its blocks."""
    pairs = pair(sorted_blocks(writer), sorted_blocks(reader))
    return {path: reader_bank(banks[source], doubled, dtype) for path, source in pairs.items()}
