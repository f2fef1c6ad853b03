"""Both sides with the same weights, and latents: what `parity check` and the clips are made from."""

import numpy as np
import torch
from myport import FastDecoder
from upstream import Decoder, decode


def reference():
    torch.manual_seed(0)
    decoder = Decoder()
    decoder.planes.weight.data = decoder.planes.weight.data.abs() * 2.5
    return decode, decoder


def port():
    decoder = FastDecoder()
    decoder.load_state_dict(reference()[1].state_dict())
    return decode, decoder


def inputs():
    draw = torch.Generator().manual_seed(1)
    scene = 158 * torch.randn(1, 8, 1, 1, generator=draw)
    return (scene + 2 * torch.randn(5, 8, 12, 20, generator=draw),)


if __name__ == "__main__":
    for name, side in (("official", reference), ("port", port)):
        run, decoder = side()
        with torch.no_grad():
            np.save(f"{name}.npy", run(decoder, *inputs()).numpy())
