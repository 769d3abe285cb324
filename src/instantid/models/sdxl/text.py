"""SDXL's text encoding (arXiv 2307.01952; diffusers' `encode_prompt`), in chunks of 75 tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instantid import contract
from instantid.errors import InvalidArgument
from instantid.models.sdxl.attention import KeysValues
from instantid.models.sdxl.prompts import CompelPrompt, CompelSyntax, Fragment, check_weights, parse_a1111

CACHED_CHUNKS = 512
"""Chunks whose states are kept; at SDXL's size one takes 0.3 MB in float16."""
CACHED_TEXTS = 256
"""Texts of which the tokens are kept."""

Chunk = tuple[tuple[int, float], ...]
"""Up to 75 token ids, each with its weight."""


@dataclass(frozen=True, slots=True)
class TextEmbedding:
    """`tokens` [1, 77 n, d]: penultimate states of both encoders side by side, chunk after chunk; `pooled` [1, p]: the
    second's of the first chunk."""

    tokens: Tensor
    pooled: Tensor


class TextPart(NamedTuple):
    """For every row: text [rows, 77 n, d], pooled text [rows, p], size conditioning [rows, 6], and the text's keys and
    values for the UNet."""

    tokens: Tensor
    pooled: Tensor
    time_ids: Tensor
    context: KeysValues


class ChunkedText(NamedTuple):
    """A text as each of the tokenizers cuts it into chunks."""

    parts: tuple[tuple[Chunk, ...], ...]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.parts[0]))

    @property
    def chunks(self) -> int:
        return max(map(len, self.parts))


class TextEncoder:
    """Both tokenizers and encoders. `read` can be called from any thread, `encode` from the device's own.

    The same chunk gives the same tensors; nobody may write into them.
    """

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any], device: torch.device) -> None:
        self._parts = list(zip(tokenizers, encoders, strict=True))
        self._device = device
        self._length = tokenizers[0].model_max_length
        self.read = lru_cache(CACHED_TEXTS)(self._read)
        """Text, `prompt_syntax` and the option's name to its tokens; raises InvalidArgument."""
        self.encode_chunk = lru_cache(CACHED_CHUNKS)(self._encode_chunk)
        """Token ids for each encoder to both encoders' states and the pooled text."""

    @torch.inference_mode()
    def encode(self, text: str, syntax: str = "plain", chunks: int = 1, field: str = "prompt") -> TextEmbedding:
        """A text in at least so many chunks; those beyond its own hold no text."""
        read = self.read(text, syntax, field)
        if isinstance(read, CompelPrompt):
            pooled = self.encode(text).pooled  # of the text as it is written, as compel has it
            return TextEmbedding(self._compel.encode(read, max(chunks, read.chunks)), pooled)
        rows = [[part[i] if i < len(part) else () for part in read.parts] for i in range(max(chunks, read.chunks))]
        encoded = [self.encode_chunk(*(tuple(token for token, _ in chunk) for chunk in row)) for row in rows]
        tokens = [
            torch.cat([_weighted(*pair) for pair in zip(states, row, strict=True)], dim=-1)
            for (states, _), row in zip(encoded, rows, strict=True)
        ]
        return TextEmbedding(torch.cat(tokens, dim=1), encoded[0][1])

    def _read(self, text: str, syntax: str, field: str) -> ChunkedText | CompelPrompt:
        if syntax == "compel":
            read: ChunkedText | CompelPrompt = self._compel.read(text, field)
        else:
            fragments = parse_a1111(text) if syntax == "a1111" else [Fragment(text)]
            check_weights(field, [fragment.weight for fragment in fragments])
            read = ChunkedText(tuple(self._chunks(tokenizer, fragments) for tokenizer, _ in self._parts))
        if read.chunks > contract.MAX_PROMPT_CHUNKS:
            bound = f"must fit into {contract.MAX_PROMPT_CHUNKS} chunks of {self._length - 2}"
            raise InvalidArgument(field, f"{read.tokens} tokens in {read.chunks} chunks", bound)
        return read

    def _chunks(self, tokenizer: Any, fragments: Sequence[Fragment]) -> tuple[Chunk, ...]:
        """Nothing is cut and nothing padded by the tokenizer, whose settings threads share."""
        sections: list[list[tuple[int, float]]] = [[]]
        for text, weight, ends_chunk in fragments:
            if ends_chunk:
                sections.append([])
            else:
                sections[-1] += [(token, weight) for token in tokenizer(text, verbose=False).input_ids[1:-1]]
        size = self._length - 2
        return tuple(tuple(x[i : i + size]) for x in sections for i in range(0, max(len(x), 1), size))

    @torch.inference_mode()
    def _encode_chunk(self, *ids: tuple[int, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        outputs = [
            encoder(self._padded(tokenizer, own), output_hidden_states=True)
            for (tokenizer, encoder), own in zip(self._parts, ids, strict=True)
        ]
        return tuple(output.hidden_states[-2] for output in outputs), outputs[-1].text_embeds

    def _padded(self, tokenizer: Any, ids: tuple[int, ...]) -> Tensor:
        """Token ids [1, 77] between begin and end, padded as CLIP was trained."""
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
        row += [tokenizer.pad_token_id] * (self._length - len(row))
        return torch.tensor([row], device=self._device)

    @cached_property
    def _compel(self) -> CompelSyntax:
        return CompelSyntax(*zip(*self._parts, strict=True))


def _weighted(states: Tensor, chunk: Chunk) -> Tensor:
    """States [1, 77, d], each moved from the chunk's last by its weight, as the reference's `_full` pipeline does."""
    if all(weight == 1 for _, weight in chunk):
        return states
    weights = torch.ones(states.shape[1], dtype=states.dtype)
    weights[1 : len(chunk) + 1] = torch.tensor([weight for _, weight in chunk])
    return torch.lerp(states[:, -1:], states, weights[:, None].to(states.device))


def time_ids(height: int, width: int, device: torch.device) -> Tensor:
    """SDXL's size conditioning [1, 6]: original size, crop corner (0, 0), target size, as diffusers' defaults."""
    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=device)
