"""What the trainings of base and identity share: the encoded album, captions, noise, and a sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler
from torch import Tensor, nn
from tqdm import tqdm

from miniature import SIZE
from miniature.album import Album, make_album
from miniature.tokenizer import make_tokenizer
from miniature.trained import SIZES, VELOCITY_SCHEDULER, load_vae
from miniature.training import main_process_first

Tensors = tuple[Tensor, ...]


@dataclass
class Encoded:
    """The album and its latents `[people, pages, c, 16, 16]`. They are white: each channel has mean 0 and standard
    deviation 1, and the channels are uncorrelated."""

    album: Album
    vae: Any
    latents: Tensor


def encode_album(work: Path, people: int, device: str) -> Encoded:
    """Encode by the VAE whose checkpoint is in `work`, or else by the one that ships; cache the latents in `work`."""
    vae = load_vae(work / "vae.pt").to(device)
    with main_process_first():
        album = make_album(work, people)
    kept = cached_tensors(work / f"latents-{people}.pt", (vae,), lambda: (_encode(vae, album.pictures, device),))[0]
    mean, matrix = moments(kept)
    whiten(vae, mean.to(device), matrix.to(device))
    return Encoded(album, vae, torch.einsum("cd,npdhw->npchw", matrix, kept.float() - mean.view(-1, 1, 1)))


@main_process_first()
def cached_tensors(path: Path, models: Sequence[nn.Module], make: Callable[[], Tensors]) -> Tensors:
    """What `make` returns. The file `path` caches it until the weights of `models` change."""
    stamp = [float(next(model.parameters()).detach().sum()) for model in models]
    kept: dict[str, Any] = torch.load(path, weights_only=True) if path.exists() else {}
    if kept.get("stamp") != stamp:
        kept = {"stamp": stamp, "tensors": tuple(part.clone() for part in make())}
        torch.save(kept, path)
    return tuple(kept["tensors"])


def moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[c]` of the channels, and the matrix `[c, c]` that whitens them with the smallest change."""
    rows = latents.float().flatten(0, 1).permute(0, 2, 3, 1).flatten(0, 2)
    values, vectors = torch.linalg.eigh(rows.T.cov().double())
    return rows.mean(0), ((vectors * values.rsqrt()) @ vectors.T).float()


@torch.no_grad()
def whiten(vae: Any, mean: Tensor, matrix: Tensor) -> None:
    """Change the VAE's two 1x1 convolutions so that it encodes to `matrix @ (latent - mean)` and decodes from it.

    The predicted variance, which is not used here, keeps its numbers.
    """
    into, back, channels = vae.quant_conv, vae.post_quant_conv, len(mean)
    into.weight[:channels] = torch.einsum("cd,dehw->cehw", matrix, into.weight[:channels])
    into.bias[:channels] = matrix @ (into.bias[:channels] - mean)
    back.bias += back.weight[:, :, 0, 0] @ mean
    back.weight.copy_(torch.einsum("cdhw,de->cehw", back.weight, matrix.inverse()))
    vae.register_to_config(scaling_factor=1.0)


@torch.inference_mode()
def _encode(vae: Any, pictures: np.ndarray, device: str) -> Tensor:
    rows = []
    for pages in tqdm(pictures, "encoding", mininterval=5):
        pixels = torch.from_numpy(pages).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(device, torch.bfloat16):
            rows.append(vae.encode(pixels).latent_dist.mode().half().cpu())
    return torch.stack(rows)


class Captions:
    """Converts captions to token ids `[n, 77]`."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer()

    def __call__(self, texts: list[str], device: str) -> Tensor:
        options = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        ids: Tensor = self.tokenizer(texts, **options).input_ids
        return ids.to(device)


def encode_text(encoders: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """SDXL's encoding: the concatenated penultimate states, and the second encoder's pooled output."""
    outputs = [encoder(ids, output_hidden_states=True) for encoder in encoders]
    return torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[-1].text_embeds


def time_ids(rows: int, device: str) -> Tensor:
    return torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=torch.float32, device=device).expand(rows, -1)


HIGH_NOISE = (600, 1000)
"""Timesteps at which a picture's composition and its person are decided."""


class Noise:
    """Adds noise, and computes the loss of predicted velocities: the error of the clean latents, weighted by the
    signal-to-noise ratio plus 1, at most 6 (after arXiv 2303.09556)."""

    def __init__(self, device: str, high_noise_share: float = 0.0) -> None:
        """`high_noise_share` is the share of rows whose timestep is drawn from HIGH_NOISE."""
        self.scheduler = DDPMScheduler(**VELOCITY_SCHEDULER)
        self.device, self.high_noise_share = device, high_noise_share
        cumulative = self.scheduler.alphas_cumprod
        self.weights = (6 * (1 - cumulative)).clamp(max=1).to(device)

    def add(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, velocities and timesteps."""
        noise = torch.randn(latents.shape).to(self.device)
        rows = (len(latents),)
        anywhere, late = torch.randint(0, 1000, rows), torch.randint(*HIGH_NOISE, rows)
        timesteps = torch.where(torch.rand(rows) < self.high_noise_share, late, anywhere).to(self.device)
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy, self.scheduler.get_velocity(latents, noise, timesteps), timesteps

    def clean(self, noisy: Tensor, velocity: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents that a predicted velocity implies."""
        kept = self.scheduler.alphas_cumprod.to(self.device)[timesteps].view(-1, 1, 1, 1)
        return kept.sqrt() * noisy - (1 - kept).sqrt() * velocity

    def loss(self, predicted: Tensor, velocity: Tensor, timesteps: Tensor, places: Tensor | None = None) -> Tensor:
        """`places` `[n, 1, h, w]` weighs the error of each place."""
        wrong = (predicted.float() - velocity).square()
        if places is not None:
            wrong = wrong * places
        return (self.weights[timesteps] * wrong.mean((1, 2, 3))).mean()


@torch.inference_mode()
def sample(predict: Callable[[Tensor, Tensor], Tensor], rows: int, scale: float, device: str) -> Tensor:
    """Sample `rows` latents in 20 Euler steps with guidance `scale`.

    `predict` gets noisy latents of twice as many rows and a timestep. It returns their velocities: the first half
    without a condition, the second half with it.
    """
    scheduler = EulerDiscreteScheduler(**VELOCITY_SCHEDULER)
    scheduler.set_timesteps(20)
    noise = torch.randn((rows, SIZES.latent_channels, SIZE // 8, SIZE // 8), generator=torch.Generator().manual_seed(0))
    latents = noise.to(device) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        away, towards = predict(noisy, timestep).chunk(2)
        latents = scheduler.step(away + scale * (towards - away), timestep, latents).prev_sample
    return latents
