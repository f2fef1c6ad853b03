"""Models of transformers and diffusers against a right rewriting of each: other leaves, layouts, names, root and attention kernel. No alarm, in fp32 and bf16."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from library_rewrites import rewritten
from torch import nn

import parity
from parity.lab.mutation.families import Family, families

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LARGE = ("autoencoder_wan", "autoencoder_cogvideox", "autoencoder_kl")  # once each is enough


def sides(family: Family, dtype: torch.dtype) -> tuple:
    """Return both sides and their inputs, in a dtype."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            model = family.build().to(dtype)
        finally:
            logging.disable(logging.NOTSET)
    given = {
        k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in family.inputs().items()
    }
    port: nn.Module = rewritten(model)
    return (model, port, given) if family.run is None else ((family.run, model), (family.run, port), given)


CASES = [(family, dtype) for family in families() for dtype in DTYPES if not (family.name in LARGE and dtype == "fp32")]


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=[f"{family.name}-{dtype}" for family, dtype in CASES])
def test_a_right_rewriting_is_no_alarm(family: Family, dtype: str) -> None:
    result = parity.check(*sides(family, DTYPES[dtype]))
    assert result.verdict == "match", str(result)
    assert result.coverage.compared >= 0.9 * result.coverage.reference


def test_there_are_enough_of_them() -> None:
    assert len(families()) >= 25


class Coarse(nn.Module):
    """Rounds to two bits of mantissa where it runs in half precision only: in float64 it is no difference at all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x)
        return y.to(torch.float8_e5m2).to(y.dtype) if y.dtype == torch.bfloat16 else y


def test_what_float64_hides_is_still_found_where_roundings_are_amplified() -> None:
    (family,) = families(name="autoencoder_dc")
    model, port, given = sides(family, torch.bfloat16)
    attention = port.body.encoder.down_blocks[1][0].attn
    attention.to_v = Coarse(attention.to_v)
    result = parity.check(model, port, given)
    assert result.verdict == "diverged"
    assert result.first is not None
    assert result.first.module == "encoder.down_blocks.1.0.attn"
    # Weights that are only kept in another layout, by submodules that agree, are no cause.
    assert not any(cause.class_id == "W9" for cause in result.causes), str(result)
