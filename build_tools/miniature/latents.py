"""What the second and third training share: encoded album, captions, noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from build_tools.miniature.album import Album, make_album
from build_tools.miniature.networks import SIZE
from build_tools.miniature.sdxl import SCHEDULER
from build_tools.miniature.tokenizer import make_tokenizer
from build_tools.miniature.trained import load_vae
from build_tools.miniature.training import first_alone

NOBODY, EMPTY = "a person", ""


@dataclass
class Encoded:
    """The album behind the VAE: `latents` `[people, pages, c, 16, 16]` with a standard deviation of 1."""

    album: Album
    vae: Any
    latents: Tensor


def encode_album(work: Path, people: int, device: str) -> Encoded:
    """By the VAE whose checkpoint is in `work`, else by the one that ships; the latents are kept in `work`."""
    vae = load_vae(work / "vae.pt").to(device)
    with first_alone():
        album = make_album(work, people, 8, 4, workers=2)
        kept = _kept(work / "latents.pt", vae, album, device)
    factor = 1 / float(kept["latents"].float().std())
    vae.register_to_config(scaling_factor=factor)
    return Encoded(album, vae, kept["latents"].float() * factor)


def _kept(path: Path, vae: Any, album: Album, device: str) -> dict[str, Any]:
    kept: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {}
    stamp = float(next(vae.parameters()).sum())
    if kept.get("stamp") != stamp:
        kept = {"stamp": stamp, "latents": _encode(vae, album.pictures, device)}
        torch.save(kept, path)
    return kept


@torch.inference_mode()
def _encode(vae: Any, pictures: np.ndarray, device: str) -> Tensor:
    rows = []
    for pages in pictures:
        pixels = torch.from_numpy(pages).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows.append(vae.encode(pixels).latent_dist.mode().half().cpu())
    return torch.stack(rows)


class Captions:
    """Token ids of captions, `[n, 77]`."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()

    def __call__(self, texts: list[str], device: str) -> Tensor:
        options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(texts, **options).input_ids
        return ids.to(device)


def encode_text(encoders: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """SDXL's encoding: the penultimate states side by side, and the second encoder's pooled output."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    return torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[-1].text_embeds


def time_ids(rows: int, device: str) -> Tensor:
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device).expand(rows, -1)


class Noise:
    """Noised latents, and the loss with weights bounded at a signal-to-noise ratio of 5 (arXiv 2303.09556).

    `coarse` raises those of ratios below 1, where it is decided who it is, by their inverse root, up to 3 times
    (after arXiv 2310.08442).
    """

    def __init__(self, device: str, coarse: bool = False) -> None:
        self.scheduler = DDPMScheduler(**SCHEDULER)
        self.device = device
        cumulative = self.scheduler.alphas_cumprod
        ratio = cumulative / (1 - cumulative)
        weights = (5 / ratio).clamp(max=1)
        self.weights = (weights * ratio.rsqrt().clamp(1, 3) if coarse else weights).to(device)

    def add(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise = torch.randn(latents.shape).to(self.device)
        timesteps = torch.randint(0, 1000, (len(latents),)).to(self.device)
        return self.scheduler.add_noise(latents, noise, timesteps), noise, timesteps

    def loss(self, predicted: Tensor, noise: Tensor, timesteps: Tensor, places: Tensor | None = None) -> Tensor:
        """`places` `[n, 1, h, w]` says how much each place counts; all the same where it is not given."""
        wrong = (predicted - noise).square()
        if places is not None:
            wrong = wrong * places
        return (self.weights[timesteps] * wrong.mean((1, 2, 3))).mean()
