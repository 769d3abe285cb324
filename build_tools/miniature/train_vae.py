"""Train the miniature's VAE on the album: errors of pixels, of their gradients and of colours by area, a trace of KL.

`python -m build_tools.miniature.train_vae WORK` goes on from its checkpoint. The VAE that ships was trained so for 2500
steps (`--steps 2500`), then on to 4500.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from build_tools.miniature.album import make_album
from build_tools.miniature.networks import LATENT_CHANNELS, make_vae
from build_tools.miniature.training import Trainer, grid, to_pictures

CROP, KL = 64, 2e-6
COLOUR, COLOUR_STEPS = (2.0, 0.1), 2500
"""Weight of the error of hues, up to that step and after it: it brings the colours in time but costs sharpness."""
SURE = -8.0
"""Logarithm of the latents' variance to begin with: noise of variance 1 would hide what the encoder has to say."""


def main(
    work: Path,
    steps: int = 4500,
    batch: int = 16,
    rate: float = 2e-3,
    people: int = 1400,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: int = 1,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    pictures = make_album(work, people, 8, 4, workers=2).pictures.reshape(-1, 128, 128, 3)
    vae = make_vae().to(device)
    nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], SURE)

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(pictures), (batch,)).tolist()
        corners = (torch.randint((128 - CROP) // 8 + 1, (batch, 2)) * 8).tolist()
        crops = np.stack([pictures[i, y : y + CROP, x : x + CROP] for i, (y, x) in zip(rows, corners, strict=True)])
        pixels = _pixels(crops, device)
        posterior = vae.encode(pixels).latent_dist
        drawn = posterior.mean + posterior.std * torch.randn(posterior.mean.shape).to(device)
        wrong = vae.decode(drawn).sample - pixels
        edges = sum(wrong.diff(dim=axis).abs().mean() for axis in (2, 3))
        return wrong.abs().mean() + edges + COLOUR[step >= COLOUR_STEPS] * _by_area(wrong) + KL * posterior.kl().mean()

    @torch.inference_mode()
    def sheet() -> np.ndarray:
        pixels = _pixels(pictures[:: len(pictures) // 10][:10], device)
        return grid([to_pictures(pixels), to_pictures(vae.decode(vae.encode(pixels).latent_dist.mode()).sample)])

    Trainer(work, "vae", {"vae": vae}, loss, steps=steps, rate=rate, decay=0.99).run(sheet)


def _by_area(wrong: Tensor) -> Tensor:
    """Error of hues over areas of 4x4 pixels: errors of pixels are nearly all of brightness and leave hues for last."""
    red, green, blue = functional.avg_pool2d(wrong, 4).unbind(1)
    return (red - green).abs().mean() + (blue - green).abs().mean()


def _pixels(pictures: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    typer.run(main)
