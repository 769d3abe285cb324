"""A small CLIP tokenizer made offline: byte-level BPE whose merges are in `data/merges.txt`.

They were learned once, by the library's trainer, from the words that captions and prompts use. Trained again it takes
merges that are equally common in another order at each run, and the text encoders know one order only.
"""

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77
MERGES = Path(__file__).parent / "data" / "merges.txt"


def make_tokenizer() -> CLIPTokenizer:
    """Vocabulary in CLIP's order: bytes, bytes that end a word, merges, start, end. Any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a, b in map(str.split, MERGES.read_text().splitlines())]
    pieces = [*alphabet, *(letter + SUFFIX for letter in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def write_tokenizer(folder: Path) -> None:
    """Write what `CLIPTokenizer.from_pretrained` reads."""
    make_tokenizer().save_pretrained(folder)
