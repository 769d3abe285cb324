"""A small CLIP tokenizer: byte-level BPE with the merges in `data/merges.txt`.

The library's trainer learned the merges once, from the words of captions and prompts. It orders equally common merges
differently in each run, and the text encoders know one order only, so the merges are never learned again.
"""

from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77
MERGES = Path(__file__).parent / "data" / "merges.txt"


def make_tokenizer() -> CLIPTokenizer:
    """The vocabulary is in CLIP's order: bytes, bytes that end a word, merges, start, end. It encodes any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a, b in map(str.split, MERGES.read_text().splitlines())]
    pieces = [*alphabet, *(letter + SUFFIX for letter in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def write_tokenizer(folder: Path) -> None:
    """Write the files that `CLIPTokenizer.from_pretrained` reads."""
    make_tokenizer().save_pretrained(folder)
