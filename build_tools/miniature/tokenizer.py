"""A small CLIP tokenizer made offline: byte-level BPE, its merges learned from a list of prompt words."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77
MERGES = 800
WORDS = """\
a an the of in on at with and by for from to near under over behind portrait photo picture painting drawing sketch
poster oil watercolor ink pencil comic cartoon style studio light dark soft warm cold bright sunny night day sunset
man woman boy girl person face smiling serious laughing young old hair short long curly straight blond brown black
red grey white blue green yellow orange purple pink eyes beard glasses hat scarf shirt suit dress jacket sweater
astronaut knight queen king sailor baker pilot dancer smith painter doctor farmer garden forest beach city street
mountain desert sea sky snow rain room kitchen library space stars flowers trees background plain striped dotted
pale fair tan skinned bald cropped parted fringe bob curly stubble moustache hazel thick thin full wide narrow
round brows lips nose wrinkles crew neck turtleneck checked gradient wall looking left right up down camera close
blurry low quality deformed text watermark
"""


def make_tokenizer() -> CLIPTokenizer:
    """Vocabulary in CLIP's order: bytes, bytes that end a word, merges, start, end. Any text can be encoded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = _learn_merges(alphabet)
    pieces = [*alphabet, *(letter + SUFFIX for letter in alphabet), *(a + b for a, b in merges), START, END]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def write_tokenizer(folder: Path) -> None:
    """Write what `CLIPTokenizer.from_pretrained` reads."""
    make_tokenizer().save_pretrained(folder)


def _learn_merges(alphabet: list[str]) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=SUFFIX))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + MERGES,
        initial_alphabet=alphabet,
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS.split(), trainer)
    return [(a, b) for a, b in json.loads(tokenizer.to_str())["model"]["merges"]]
