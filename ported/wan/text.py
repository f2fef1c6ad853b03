"""Text features: the library's own prompt encoding, driven by token ids (spec A11, B3).

The pipeline turns prompts into features with `WanPipeline.encode_prompt`: tokenise, encode under the mask, keep the
rows of real tokens, pad with zeros to a fixed length. `IdTokenizer` lets that code run without a vocabulary: a prompt
is written as token ids, `"17 4 93"`.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import WanPipeline
from torch import Tensor
from transformers import UMT5EncoderModel

TEXT_LENGTH = 512
EOS, PAD = 1, 0


class IdTokenizer:
    """Read prompts made of token ids, with the UMT5 tokenizer's padding, truncation and end token."""

    def __call__(
        self, prompts: list[str], max_length: int, add_special_tokens: bool = True, **_: Any
    ) -> SimpleNamespace:
        rows = [[int(token) for token in prompt.split()] for prompt in prompts]
        if add_special_tokens:
            rows = [[*row[: max_length - 1], EOS] for row in rows]
        ids = torch.full((len(rows), max_length), PAD)
        mask = torch.zeros(len(rows), max_length, dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[i, : len(row)] = 1
        return SimpleNamespace(input_ids=ids, attention_mask=mask)


def text_hidden(encoder: UMT5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Full encoder output `(b, l, dim)` for ids and mask `(b, l)`, padded rows included."""
    return encoder(ids, mask).last_hidden_state


def text_pipeline(encoder: UMT5EncoderModel) -> WanPipeline:
    """A library pipeline that holds the text encoder alone, to reach its `encode_prompt`."""
    return WanPipeline(
        tokenizer=IdTokenizer(), text_encoder=encoder, vae=None, scheduler=None, transformer=None, transformer_2=None
    )


def encode_prompts(pipe: WanPipeline, prompts: list[str], length: int = TEXT_LENGTH) -> Tensor:
    """`(b, length, dim)` prompt features by the library's `encode_prompt`, zero beyond each prompt's tokens."""
    return pipe.encode_prompt(
        prompts, do_classifier_free_guidance=False, max_sequence_length=length, device=torch.device("cpu")
    )[0]


def pad_context(contexts: list[Tensor], length: int = TEXT_LENGTH) -> Tensor:
    """Stack official contexts of `(l_i, dim)` into `(b, length, dim)` with zero rows, as the pipeline hands them on."""
    too_long = [len(c) for c in contexts if len(c) > length]
    if too_long:
        raise ValueError(f"contexts of {too_long} tokens do not fit into {length}")
    return torch.stack([torch.cat([c, c.new_zeros(length - len(c), c.shape[1])]) for c in contexts])
