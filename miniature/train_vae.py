"""Train the miniature's VAE on the album.

The loss adds errors of pixels, of their gradients, of average hues and of the recogniser's features (as in arXiv
1801.03924), and a little KL. Latents are decoded with noise on them, as denoised latents have some.

`python -m miniature.train_vae WORK` resumes from its checkpoint. Without one it starts from the VAE that ships, or with
`--fresh` from random weights.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional

from miniature import SIZE
from miniature.album import face_weights, make_album
from miniature.faces import DATA, loaded
from miniature.networks import make_vae
from miniature.recogniser import Recogniser
from miniature.trained import SIZES, load_vae
from miniature.training import Trainer, grid, make_optimizers, to_pictures

CROP, CROPPED, KL = 64, 0.6, 2e-6
"""Side of the crops, share of the steps that use crops, and the weight of KL."""
HUES, FEATURES = 0.1, 0.5
"""Weights of the errors of hues and of the recogniser's features."""
NOISE = 0.25
"""Largest noise on a latent, in its standard deviations."""
LOG_VARIANCE = -8.0
"""Logarithm of the latents' variance at the start: noise of variance 1 would hide the encoder's output."""


def main(
    work: Path,
    steps: int = 6000,
    batch: int = 16,
    rate: float = 2e-3,
    people: int = 3200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    fresh: Annotated[bool, typer.Option(help="Start from random weights.")] = False,
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
            decoded = vae.decode(drawn).sample
            feature_error = _feature_error(body, decoded, pixels)
        error = (decoded.float() - pixels) * places
        edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))
        seen = HUES * _hue_error(error) + FEATURES * feature_error
        return error.abs().mean() + edges + seen + KL * posterior.kl().mean()

    @torch.inference_mode()
    def sheet() -> np.ndarray:
        pixels = _pixels(pictures[:: len(pictures) // 10][:10]).to(device)
        return grid([to_pictures(pixels), to_pictures(vae.decode(vae.encode(pixels).latent_dist.mode()).sample)])

    optimizers = make_optimizers({"vae": vae}, rate)
    Trainer(work, "vae", {"vae": vae}, loss, optimizers=optimizers, steps=steps, decay=0.99).run(sheet)


def _fresh() -> nn.Module:
    vae = make_vae(SIZES)
    nn.init.constant_(vae.quant_conv.bias[SIZES.latent_channels :], LOG_VARIANCE)
    return vae


def _draw(pictures: np.ndarray, marks: Tensor, batch: int, cropped: bool) -> tuple[Tensor, Tensor]:
    """Pixels and their weights: crops of `batch` pictures, every other one around the face, or whole pictures with as
    many pixels in all."""
    rows = torch.randint(len(pictures), (batch if cropped else batch * CROP**2 // SIZE**2,))
    pixels, places = _pixels(pictures[rows.numpy()]), face_weights(marks[rows], SIZE)
    if not cropped:
        return pixels, places
    corners = torch.randint((SIZE - CROP) // 8 + 1, (batch, 2)) * 8
    near = marks[rows].mean(1) - CROP // 2 + 8 * torch.randn(batch, 2)
    corners[::2] = (near.clamp(0, SIZE - CROP) / 8).round().long()[::2] * 8
    cut = [(slice(None), slice(y, y + CROP), slice(x, x + CROP)) for x, y in corners.tolist()]
    return _cut(pixels, cut), _cut(places, cut)


def _cut(rows: Tensor, places: list[tuple[slice, ...]]) -> Tensor:
    return torch.stack([row[place] for row, place in zip(rows, places, strict=True)])


def _feature_error(body: nn.Sequential, decoded: Tensor, pixels: Tensor) -> Tensor:
    """Relative error of the recogniser's features, averaged over its four stages."""
    total = decoded.new_zeros(())
    for layer in body:
        decoded, pixels = layer(decoded), layer(pixels)
        if not isinstance(layer, nn.Sequential):
            total = total + (decoded - pixels).abs().mean() / pixels.abs().mean()
    return total / 4


def _hue_error(error: Tensor) -> Tensor:
    """Error of hues over areas of 4x4 pixels; the error of pixels is dominated by brightness."""
    red, green, blue = functional.avg_pool2d(error, 4).unbind(1)
    return (red - green).abs().mean() + (blue - green).abs().mean()


def _pixels(pictures: np.ndarray) -> Tensor:
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels.contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    typer.run(main)
