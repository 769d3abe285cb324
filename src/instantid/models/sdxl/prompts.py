"""Prompt syntaxes: how the text of a prompt says what each of its words weighs (docs/prompts.md)."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from instantid import contract
from instantid.errors import InvalidArgument

MAX_WEIGHT = 10.0
"""Beyond it the encoders' states leave float16."""
BRACKETS = {"(": 1.1, "[": 1 / 1.1}
"""What a pair of brackets without a number multiplies by."""
A1111 = re.compile(
    r"\\(?P<literal>[\\()\[\]])|(?P<open>[(\[])|(?::\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*)?\)|\]"
    r"|\s*\b(?P<ends>BREAK)\b\s*|[\\:]|(?:(?!\bBREAK\b)[^\\:()\[\]])+"
)


class Fragment(NamedTuple):
    """A piece of a prompt whose words all have one weight, or the end of a chunk."""

    text: str
    weight: float = 1.0
    ends_chunk: bool = False


def parse_a1111(text: str) -> list[Fragment]:
    """Attention syntax of AUTOMATIC1111's web UI: (more), [less], (word:1.3), BREAK, and a backslash before a bracket
    that is meant.

    A bracket that is never closed reaches to the end; one that was never opened is text.
    """
    fragments: list[Fragment] = []
    opened: list[tuple[str, int]] = []

    def close(weight: str | None = None) -> None:
        bracket, start = opened.pop()
        factor = float(weight) if weight else BRACKETS[bracket]
        fragments[start:] = [fragment._replace(weight=fragment.weight * factor) for fragment in fragments[start:]]

    for match in A1111.finditer(text):
        pair = {")": "(", "]": "["}.get(match[0][-1]) if not match["literal"] else None
        if match["open"]:
            opened.append((match["open"], len(fragments)))
        elif pair and opened and opened[-1][0] == pair:
            close(match["weight"])
        else:
            fragments.append(Fragment(match["literal"] or match[0], ends_chunk=bool(match["ends"])))
    while opened:
        close()
    alike = groupby(fragments, key=lambda fragment: fragment[1:])
    return [Fragment("".join(fragment.text for fragment in run), *key) for key, run in alike]


def check_weights(field: str, weights: Sequence[float]) -> None:
    """Raises InvalidArgument, naming the weight and the bound."""
    for weight in weights:
        if not abs(weight) <= MAX_WEIGHT:
            raise InvalidArgument(field, f"a weight of {weight:g}", f"must be within {-MAX_WEIGHT:g}..{MAX_WEIGHT:g}")


class CompelPrompt(NamedTuple):
    """A prompt as compel read it, and the tokens and chunks that it takes."""

    conjunction: Any
    tokens: int
    chunks: int


class CompelSyntax:
    """The package compel (https://github.com/damian0815/compel): word++, (words)1.3, ("a", "b").blend(1, 2), .and()."""

    def __init__(self, tokenizers: Sequence[Any], encoders: Sequence[Any]) -> None:
        from compel import Compel, ReturnedEmbeddingsType  # loads pipelines of diffusers that nothing else needs
        from compel.prompt_parser import PromptParser
        from pyparsing import ParseBaseException, ParserElement

        ParserElement.enable_packrat(cache_size_limit=None)  # else its time doubles several times with every bracket
        kind = ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED
        self._compels = [
            Compel(tokenizer, encoder, truncate_long_prompts=False, returned_embeddings_type=kind)
            for tokenizer, encoder in zip(tokenizers, encoders, strict=True)
        ]
        self._chunk = tokenizers[0].model_max_length
        self._errors = (PromptParser.ParsingException, ParseBaseException, RuntimeError, ValueError, TypeError)

    def read(self, text: str, field: str) -> CompelPrompt:
        """Parse a prompt; `field` is its name in errors.

        Raises InvalidArgument for what compel cannot parse in good time, or what is no text: `.swap()`, `withLora()`.
        """
        _check_effort(text, field)
        try:
            conjunction = self._compels[0].parse_prompt_string(text)
        except self._errors as error:
            raise InvalidArgument(field, repr(text)[:64], f"compel cannot parse it: {error}"[:200]) from None
        flat = _flat(conjunction)
        if conjunction.type != "AND" or conjunction.lora_weights or any(p.wants_cross_attention_control for p in flat):
            raise InvalidArgument(field, repr(text)[:64], "must not use .swap(), .or() or withLora()")
        weights = [child.weight for prompt in flat for child in prompt.children]
        check_weights(field, [*weights, *conjunction.weights])
        lengths = [self._lengths(compel.conditioning_provider, conjunction) for compel in self._compels]
        return CompelPrompt(conjunction, lengths[0][0], max(chunks for _, chunks in lengths))

    def encode(self, prompt: CompelPrompt, chunks: int) -> Tensor:
        """States [1, 77 chunks, d] of both encoders, side by side; chunks beyond the prompt's own hold no text."""
        parts = []
        for compel in self._compels:
            part = compel.build_conditioning_tensor_for_conjunction(prompt.conjunction)[0]
            missing = chunks - part.shape[1] // self._chunk
            parts.append(torch.cat([part, *[compel.conditioning_provider.empty_z] * missing], dim=1))
        return torch.cat(parts, dim=-1)

    def _lengths(self, provider: Any, conjunction: Any) -> tuple[int, int]:
        """Tokens and chunks: the parts of a conjunction follow one another, those of a blend lie over one another."""
        tokens = chunks = 0
        for part in conjunction.prompts:
            sizes = []
            for prompt in getattr(part, "prompts", [part]):
                texts, weights = zip(*((child.text, child.weight) for child in prompt.children), strict=True)
                tokens += sum(map(len, provider.get_token_ids(list(texts), include_start_and_end_markers=False)))
                sizes.append(len(provider.get_token_ids_and_expand_weights(list(texts), list(weights), "cpu")[0]))
            chunks += max(sizes) // self._chunk
        return tokens, chunks


def _check_effort(text: str, field: str) -> None:
    if len(text) > contract.MAX_COMPEL_CHARACTERS:
        bound = f"must have at most {contract.MAX_COMPEL_CHARACTERS} with prompt_syntax compel"
        raise InvalidArgument(field, f"{len(text)} characters", bound)
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    if deepest > contract.MAX_COMPEL_DEPTH:
        bound = f"must have at most {contract.MAX_COMPEL_DEPTH} inside one another with prompt_syntax compel"
        raise InvalidArgument(field, f"{deepest} open brackets", bound)


def _flat(conjunction: Any) -> list[Any]:
    """The flat prompts of a conjunction, those in blends too."""
    return [prompt for part in conjunction.prompts for prompt in getattr(part, "prompts", [part])]
