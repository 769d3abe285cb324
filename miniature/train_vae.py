"""Train the miniature's VAE on the album: errors of pixels, of their gradients, of hues by area and of what the
recogniser sees in them (as arXiv 1801.03924), a trace of KL.

`python -m miniature.train_vae WORK` goes on from its checkpoint; where there is none it begins with the VAE
that ships, or with `--fresh` from nothing. Latents are decoded with noise on them, as denoised ones have.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from miniature import SIZE
from miniature.album import face_places, make_album
from miniature.faces import DATA, loaded
from miniature.networks import make_vae
from miniature.recogniser import Recogniser
from miniature.trained import SIZES, load_vae
from miniature.training import Trainer, grid, make_optimizers, to_pictures

CROP, CROPPED, KL = 64, 0.6, 2e-6
"""Side of the crops, part of the training with them, and the weight of KL."""
HUES, SEEN = 0.1, 0.5
"""Weights of the error of hues and of the recogniser's."""
NOISE = 0.25
"""Most noise on a latent, in its standard deviations."""
SURE = -8.0
"""Logarithm of the latents' variance to begin with: noise of variance 1 would hide what the encoder has to say."""


def main(
    work: Path,
    steps: int = 6000,
    batch: int = 16,
    rate: float = 2e-3,
    people: int = 3200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    fresh: Annotated[bool, typer.Option(help="Begin from nothing.")] = False,
) -> None:
    torch.manual_seed(0)
    album = make_album(work, people)
    pictures, marks = album.pictures.reshape(-1, SIZE, SIZE, 3), torch.from_numpy(album.landmarks).reshape(-1, 5, 2)
    vae = _fresh() if fresh else load_vae().requires_grad_(True).train()
    vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    body = loaded(Recogniser(), DATA / "recogniser.safetensors").requires_grad_(False).body.to(device)

    def loss(step: int) -> Tensor:
        pixels, places = _draw(pictures, marks, batch, cropped=step < CROPPED * steps)
        pixels, places = pixels.to(device), places.to(device)
        with torch.autocast(device, torch.bfloat16):
            posterior = vae.encode(pixels).latent_dist
            noise = posterior.mean.detach().std() * NOISE * torch.rand(len(pixels), 1, 1, 1).to(device)
            spread = (posterior.std.square() + noise.square()).sqrt()
            drawn = posterior.mean + spread * torch.randn(posterior.mean.shape).to(device)
            shown = vae.decode(drawn).sample
            unlike = _unlike(body, shown, pixels)
        wrong = (shown.float() - pixels) * places
        edges = sum(wrong.diff(dim=axis).abs().mean() for axis in (2, 3))
        return wrong.abs().mean() + edges + HUES * _by_area(wrong) + SEEN * unlike + KL * posterior.kl().mean()

    @torch.inference_mode()
    def sheet() -> np.ndarray:
        pixels = _pixels(pictures[:: len(pictures) // 10][:10]).to(device)
        return grid([to_pictures(pixels), to_pictures(vae.decode(vae.encode(pixels).latent_dist.mode()).sample)])

    optimizers = make_optimizers({"vae": vae}, rate)
    Trainer(work, "vae", {"vae": vae}, loss, optimizers=optimizers, steps=steps, decay=0.99).run(sheet)


def _fresh() -> nn.Module:
    vae = make_vae(SIZES)
    nn.init.constant_(vae.quant_conv.bias[SIZES.latent_channels :], SURE)
    return vae


def _draw(pictures: np.ndarray, marks: Tensor, batch: int, cropped: bool) -> tuple[Tensor, Tensor]:
    """Crops of `batch` pictures, every other one around the face; or as many pixels in whole pictures. And how much
    each pixel counts."""
    rows = torch.randint(len(pictures), (batch if cropped else batch * CROP**2 // SIZE**2,))
    pixels, places = _pixels(pictures[rows.numpy()]), face_places(marks[rows], SIZE)
    if not cropped:
        return pixels, places
    corners = torch.randint((SIZE - CROP) // 8 + 1, (batch, 2)) * 8
    near = marks[rows].mean(1) - CROP // 2 + 8 * torch.randn(batch, 2)
    corners[::2] = (near.clamp(0, SIZE - CROP) / 8).round().long()[::2] * 8
    cut = [(slice(None), slice(y, y + CROP), slice(x, x + CROP)) for x, y in corners.tolist()]
    return _cut(pixels, cut), _cut(places, cut)


def _cut(rows: Tensor, places: list[tuple[slice, ...]]) -> Tensor:
    return torch.stack([row[place] for row, place in zip(rows, places, strict=True)])


def _unlike(body: nn.Sequential, shown: Tensor, pixels: Tensor) -> Tensor:
    """Error of the recogniser's features after each of its four stages, relative to their size."""
    total = shown.new_zeros(())
    for layer in body:
        shown, pixels = layer(shown), layer(pixels)
        if not isinstance(layer, nn.Sequential):
            total = total + (shown - pixels).abs().mean() / pixels.abs().mean()
    return total / 4


def _by_area(wrong: Tensor) -> Tensor:
    """Error of hues over areas of 4x4 pixels: errors of pixels are nearly all of brightness and leave hues for last."""
    red, green, blue = functional.avg_pool2d(wrong, 4).unbind(1)
    return (red - green).abs().mean() + (blue - green).abs().mean()


def _pixels(pictures: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    typer.run(main)
