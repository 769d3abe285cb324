"""Train the miniature's text encoders and UNet: caption to picture, as SDXL.

`python -m miniature.train_base WORK` uses the VAE whose checkpoint is in WORK, or the one that ships, and resumes from
its own checkpoint. Seven captions in ten describe the person; one in ten is empty, for guidance.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn

from miniature.latents import Captions, Noise, encode_album, encode_text, sample, time_ids
from miniature.networks import make_text_encoders, make_unet
from miniature.scenery import SCENERY
from miniature.trained import SIZES
from miniature.training import Trainer, grid, init_distributed, make_optimizers, own_rows, to_pictures

NAMED, DROPPED = 0.7, 0.1


def main(
    work: Path,
    steps: int = 12000,
    batch: int = 32,
    rate: float = 8e-4,
    people: int = 3200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    torch.manual_seed(1)
    init_distributed()
    data, captions, noise = encode_album(work, people, device), Captions(), Noise(device)
    unet, encoders = make_unet(SIZES).to(device), make_text_encoders(SIZES)
    modules: dict[str, nn.Module] = {"unet": unet, "text_encoder": encoders[0], "text_encoder_2": encoders[1]}
    for encoder in encoders:
        encoder.to(device)
    unet.set_attn_processor(AttnProcessor())

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(data.latents), (batch,))
        pages = torch.randint(data.latents.shape[1], (batch,))
        chance = torch.rand(batch, 2)
        texts = [
            "" if drop < DROPPED else data.album.caption(i, j, name < NAMED)
            for i, j, (drop, name) in zip(rows.tolist(), pages.tolist(), chance.tolist(), strict=True)
        ]
        noised = noise.add(data.latents[rows, pages].to(device))
        noisy, velocity, timesteps = (part[own_rows()] for part in noised)
        tokens, pooled = encode_text(encoders, captions(texts[own_rows()], device))
        added = {"text_embeds": pooled, "time_ids": time_ids(len(noisy), device)}
        with torch.autocast(device, torch.bfloat16):
            predicted = unet(noisy, timesteps, tokens, added_cond_kwargs=added).sample
        return noise.loss(predicted, velocity, timesteps)

    @torch.inference_mode()
    def sheet() -> np.ndarray:
        texts = [f"a photo of {data.album.people[i]}, blue suit, {place}" for i, place in enumerate(SCENERY)]
        texts += [f"a photo of a person, smiling, red crew neck, {place}" for place in SCENERY]
        tokens, pooled = encode_text(encoders, captions([""] * len(texts) + texts, device))
        added = {"text_embeds": pooled, "time_ids": time_ids(2 * len(texts), device)}
        latents = sample(lambda *noisy: unet(*noisy, tokens, added_cond_kwargs=added).sample, len(texts), 4.0, device)
        painted = to_pictures(data.vae.decode(latents / data.vae.config.scaling_factor).sample)
        return grid([painted[: len(SCENERY)], painted[len(SCENERY) :]])

    optimizers = make_optimizers(modules, rate)
    Trainer(work, "base", modules, loss, optimizers=optimizers, steps=steps, decay=0.998).run(sheet)


if __name__ == "__main__":
    typer.run(main)
