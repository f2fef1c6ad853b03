"""Text encoding stage of the port's pipeline: a UMT5 encoder from a local folder (spec A7, B10).

Precision: the encoder runs in fp32; the denoising stage casts the embedding to the engine's dtype. The prompt is
tokenised as it is given: the port does no text cleaning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAX_LENGTH = 512


class TextEncodingStage(nn.Module):
    """`tokenizer` is a transformers tokenizer; `encoder` a UMT5EncoderModel (relative bias in every layer)."""

    def __init__(self, encoder: nn.Module, tokenizer: Any, max_length: int = MAX_LENGTH) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def from_folder(cls, folder: Path | str, max_length: int = MAX_LENGTH) -> TextEncodingStage:
        """Load encoder and tokenizer from a folder in transformers' layout, without asking a network."""
        from transformers import AutoTokenizer, UMT5EncoderModel

        encoder = UMT5EncoderModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(encoder.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True), max_length)

    def tokenise(self, prompt: str) -> tuple[Tensor, Tensor]:
        """(ids, attention mask), int64 [1, max_length] each, mask 1 on the prompt."""
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids, tokens.attention_mask

    def zero_padding(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return hidden * attention_mask.unsqueeze(-1).to(hidden.dtype)

    @torch.no_grad()
    def forward(self, prompt: str) -> tuple[Tensor, Tensor]:
        """(embedding [1, S, P] with zero rows on padding, padding mask bool [1, S], True on padding)."""
        ids, attention_mask = (t.to(self.encoder.device) for t in self.tokenise(prompt))
        hidden = self.encoder(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        return self.zero_padding(hidden, attention_mask), attention_mask == 0
