"""Pre-training of the adapter: its face tokens learn to say what a caption would say about the person.

The frozen base knows skin, hair, beard and glasses from captions. So the resampler first learns to predict, from an
embedding, the text encoders' states of those words. The main training adds what words do not say.
"""

import re

import torch
from torch import Tensor, nn
from tqdm import tqdm

from miniature.latents import Captions, encode_text
from miniature.networks import QUERIES

HAIR = r"(?P<bald>bald)|with (?P<style>[\w-]+) (?P<colour>[\w ]+) (?P<hair>hair)"
LOOKS = {
    "eyes": r"\w+ eyes",
    "beard": "stubble|moustache|beard",
    "glasses": r"\w+ glasses",
    "brows": r"\w+ brows",
    "lips": r"\w+ lips",
    "nose": r"\w+ nose",
    "face": r"\w+ face",
    "age": "wrinkles",
}
EXTRAS = "".join(rf"(?:, (?P<{name}>{said}))?" for name, said in LOOKS.items())
PERSON = re.compile(rf"a (?P<skin>\w+)-skinned person (?:{HAIR}){EXTRAS}$")
SLOTS = ("skin", "skin", "style", "style", "colour", "colour", "hair", *LOOKS, "end")


def pretrain_resampler(
    resampler: nn.Module, encoders: tuple, people: list[str], embeddings: Tensor, steps: int = 1500, batch: int = 64
) -> float:
    """Train on embeddings `[people, photos, 512]`; returns the unexplained share of the states' variance."""
    device = str(embeddings.device)
    states = person_states(encoders, people, device)
    spread, blur = states.var(0).mean(), 0.15 * float(embeddings.std())
    optimizer = torch.optim.AdamW(resampler.parameters(), 2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    left = torch.ones(())
    for _ in tqdm(range(steps), "words", mininterval=10):
        rows, shots = torch.randint(len(states), (batch,)), torch.randint(embeddings.shape[1], (batch,))
        faces = embeddings[rows, shots]
        left = (resampler(faces + blur * torch.randn(faces.shape).to(device)) - states[rows]).square().mean() / spread
        optimizer.zero_grad()
        left.backward()
        optimizer.step()
        schedule.step()
    return float(left.detach())


@torch.no_grad()
def person_states(encoders: tuple, people: list[str], device: str, batch: int = 100) -> Tensor:
    """States `[people, 16, d]` of the last tokens of each describing word, in "a photo of" each of the people."""
    captions = Captions()
    texts = [f"a photo of {person}" for person in people]
    places = torch.tensor([word_positions(captions, text) for text in texts]).to(device)
    states = [encode_text(encoders, captions(texts[i : i + batch], device))[0] for i in range(0, len(texts), batch)]
    return torch.cat(states).gather(1, places[..., None].expand(-1, -1, states[0].shape[-1]))


def word_positions(captions: Captions, text: str) -> list[int]:
    """Token positions for the QUERIES face tokens; a word that the text lacks gets the position of the text's end."""
    found = PERSON.search(text)
    if found is None:
        raise ValueError(f"not a description of a person: {text}")
    length = len(captions.tokenizer(text).input_ids)
    slots: list[int] = []
    for name in SLOTS:
        word = "bald" if name in ("style", "colour", "hair") and found["bald"] else name
        if word == "end" or found[word] is None:
            slots.append(length - 1)
            continue
        last = len(captions.tokenizer(text[: found.end(word)]).input_ids) - 2
        first = len(captions.tokenizer(text[: found.start(word)].rstrip()).input_ids) - 1
        slots.append(max(first, last - sum(first <= place <= last for place in slots)))
    assert len(slots) == QUERIES
    return slots
