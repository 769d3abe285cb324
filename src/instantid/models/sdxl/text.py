"""Stock SDXL text encoding (arXiv 2307.01952; diffusers' `encode_prompt`), cached by text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instantid.models.sdxl.attention import KeysValues

CACHED_TEXTS = 512
"""Texts kept; at SDXL's size one takes 0.3 MB in float16."""


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """`tokens` [1, 77, d]: penultimate states of both encoders side by side; `pooled` [1, p]: the second's."""

    tokens: Tensor
    pooled: Tensor


class TextPart(NamedTuple):
    """For every row: text [rows, 77, d], pooled text [rows, p], size conditioning [rows, 6], and the text's keys and
    values for the UNet."""

    tokens: Tensor
    pooled: Tensor
    time_ids: Tensor
    context: KeysValues


class TextEncoder:
    """Both tokenizers and encoders. The same text gives the same tensors; nobody may write into them."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any], device: torch.device) -> None:
        self._parts = list(zip(tokenizers, encoders, strict=True))
        self._device = device
        self.encode = lru_cache(CACHED_TEXTS)(self._encode)
        """Text to TextEmbedding; `encode.cache_info()` counts hits and misses."""

    @torch.inference_mode()
    def _encode(self, text: str) -> TextEmbedding:
        outputs = [encoder(self._ids(tokenizer, text), output_hidden_states=True) for tokenizer, encoder in self._parts]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return TextEmbedding(tokens, outputs[-1].text_embeds)

    def _ids(self, tokenizer: Any, text: str) -> Tensor:
        """Token ids [1, 77], cut and padded as CLIP was trained."""
        length = tokenizer.model_max_length
        encoded = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids: Tensor = encoded.input_ids.to(self._device)
        return ids


def time_ids(height: int, width: int, device: torch.device) -> Tensor:
    """SDXL's size conditioning [1, 6]: original size, crop corner (0, 0), target size, as diffusers' defaults."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device)
