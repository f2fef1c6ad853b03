"""Prompts to context: cleaning, token ids, encoding, cutting (spec A11, A14)."""

import html
import re
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from .t5 import UMT5Encoder

TOKENIZER = "google/umt5-xxl"
TEXT_LEN = 512
# What stands in front of the fixed negative prompt; flf2v has both, its own first.
I2V_NEGATIVE_PREFIX = "镜头晃动，"
FLF2V_NEGATIVE_PREFIX = "镜头切换，" + I2V_NEGATIVE_PREFIX


class Tokenizer(Protocol):
    """The call of a Hugging Face tokenizer that is used here."""

    def __call__(
        self, text: list[str], *, padding: str, truncation: bool, max_length: int, add_special_tokens: bool,
        return_tensors: str,
    ) -> dict[str, Tensor]: ...  # fmt: skip


def clean_text(text: str, fix: Callable[[str], str] | None = None) -> str:
    """Fix the encoding, unescape HTML twice, collapse whitespace.

    `fix` is `ftfy.fix_text` unless given; ModuleNotFoundError when ftfy is then not installed.
    """
    if fix is None:
        from ftfy import fix_text as fix  # optional dependency, needed only to clean real prompts
    text = html.unescape(html.unescape(fix(text))).strip()
    return re.sub(r"\s+", " ", text).strip()


def tokenize(tokenizer: Tokenizer, prompts: list[str], length: int = TEXT_LEN) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 `(b, length)` each: padded (0) and truncated to `length`, end token (1) added."""
    batch = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=length, add_special_tokens=True, return_tensors="pt"
    )
    return batch["input_ids"], batch["attention_mask"]


def cut_contexts(hidden: Tensor, mask: Tensor) -> list[Tensor]:
    """Keep the first `mask.sum()` rows of every prompt: `(b, l, dim)` -> list of `(L_i, dim)`."""
    lengths = mask.gt(0).sum(dim=1).tolist()
    return [rows[:length] for rows, length in zip(hidden, lengths, strict=True)]


@torch.no_grad()
def encode_prompts(
    encoder: UMT5Encoder, tokenizer: Tokenizer, prompts: list[str], fix: Callable[[str], str] | None = None
) -> list[Tensor]:
    """Prompts to contexts of different lengths, `(L_i ≤ 512, dim)` each, in the dtype of the encoder."""
    ids, mask = tokenize(tokenizer, [clean_text(prompt, fix) for prompt in prompts])
    device = encoder.token_embedding.weight.device
    ids, mask = ids.to(device), mask.to(device)
    return cut_contexts(encoder(ids, mask), mask)
