"""Prompt encoder: cleaned text to padded UMT5 states (spec waypoint, section 7)."""

from __future__ import annotations

import html
import importlib
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase, UMT5EncoderModel

MAX_LENGTH = 512


def fix_text(text: str) -> str:
    """Repair broken Unicode with ftfy; the engine's only cleaning.

    Without ftfy this is an error: prompts would silently differ.
    """
    try:
        ftfy = importlib.import_module("ftfy")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the reference cleans prompts with ftfy.fix_text: install ftfy") from error
    return ftfy.fix_text(text)


def clean_text_diffusers(text: str) -> str:
    """Clean as the diffusers edition does: ftfy, HTML-unescape twice, collapse whitespace."""
    text = html.unescape(html.unescape(fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def mask_states(states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Zero the padded rows of states [B,S,P] and return them with the pad mask bool [B,S], True on padding."""
    return states * attention_mask.unsqueeze(-1).to(states.dtype), attention_mask == 0


class PromptEncoder(nn.Module):
    """Encode a prompt with a UMT5 encoder.

    UMT5 has a relative-position table in EVERY layer; plain T5 has one in layer 0 only, so the classes are not
    interchangeable.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, encoder: UMT5EncoderModel, max_length: int = MAX_LENGTH
    ) -> None:
        super().__init__()
        self.tokenizer, self.encoder, self.max_length = tokenizer, encoder.eval(), max_length

    @classmethod
    def from_folder(cls, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> PromptEncoder:
        """Load tokenizer and weights from a local folder; nothing is downloaded."""
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"no prompt encoder folder at {folder}")
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return cls(tokenizer, UMT5EncoderModel.from_pretrained(folder, dtype=dtype, local_files_only=True))

    def clean(self, text: str) -> str:
        """Clean the prompt before tokenising."""
        return fix_text(text)

    @torch.no_grad()
    def encode_prompt(self, text: str) -> tuple[Tensor, Tensor]:
        """Return the states [1, max_length, P], padded rows zero, and the pad mask bool [1, max_length]."""
        tokens = self.tokenizer(
            [self.clean(text)],
            max_length=self.max_length,
            padding="max_length",
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        states = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state
        return mask_states(states, tokens.attention_mask)

    def forward(self, text: str) -> tuple[Tensor, Tensor]:
        return self.encode_prompt(text)
