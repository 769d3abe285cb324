"""Train the miniature's IdentityNet and adapter with all else frozen, as InstantID is trained (arXiv 2401.07519).

`python -m build_tools.miniature.train_identity WORK` needs the checkpoints of the VAE and the base and goes on from its
own. Captions say nothing of who it is; the embedding comes from another photo of the same person, the landmarks from
the picture itself.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import EulerDiscreteScheduler
from torch import Tensor, nn

from build_tools.miniature.latents import EMPTY, NOBODY, Captions, Noise, encode_album, encode_text, time_ids
from build_tools.miniature.networks import (
    LATENT_CHANNELS,
    make_identitynet,
    make_text_encoders,
    make_unet,
    resampler_tensors,
)
from build_tools.miniature.sdxl import SCHEDULER
from build_tools.miniature.training import Trainer, grid, load_averaged, to_pictures
from instantid.diffusion import attention
from instantid.diffusion.attention import FaceAttention, KeysValues
from instantid.diffusion.face_tokens import Resampler
from instantid.faces.landmark_picture import draw_landmarks

DROPPED = 0.1


class Adapter(nn.Module):
    """The file `ip-adapter.bin` as a module: the resampler, and a key and a value layer for each cross attention."""

    def __init__(self, layers: list[Any], scale: float) -> None:
        super().__init__()
        self.image_proj = Resampler(resampler_tensors(scale))
        self.keys = nn.ModuleList(_copied(layer.to_k) for layer in layers)
        self.values = nn.ModuleList(_copied(layer.to_v) for layer in layers)
        self.heads = [layer.heads for layer in layers]

    def published(self) -> dict[str, dict[str, Tensor]]:
        """What `ip-adapter.bin` holds."""
        pairs = zip(self.keys, self.values, strict=True)
        return {
            "image_proj": self.image_proj.state_dict(),
            "ip_adapter": {
                f"{2 * i + 1}.to_{kind}_ip.weight": layer.weight.detach()
                for i, pair in enumerate(pairs)
                for kind, layer in zip("kv", pair, strict=True)
            },
        }


def _copied(layer: Any) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, bias=False)
    made.load_state_dict(layer.state_dict())
    return made


class InstantID:
    """Base and identity parts together, as the serving code joins them."""

    def __init__(self, work: Path, scale: float, device: str) -> None:
        self.device = device
        self.unet, self.encoders = make_unet().to(device), make_text_encoders()
        names = ("unet", "text_encoder", "text_encoder_2")
        load_averaged(work / "base.pt", dict(zip(names, (self.unet, *self.encoders), strict=True)))
        self.identitynet = make_identitynet().to(device)
        _start_from(self.identitynet, self.unet)
        for module in (self.unet, *self.encoders):
            module.to(device).requires_grad_(False)
        self.layers = attention.install(self.unet)
        self.identity_layers = attention.install(self.identitynet)
        self.adapter = Adapter(self.layers, scale).to(device)

    def predict(
        self, latents: Tensor, timesteps: Tensor, text: tuple[Tensor, Tensor], embedding: Tensor, landmarks: Tensor
    ) -> Tensor:
        tokens, pooled = text
        added = {"text_embeds": pooled, "time_ids": time_ids(len(latents), self.device)}
        face_tokens = self.adapter.image_proj(embedding)
        down, middle = self.identitynet(
            latents,
            timesteps,
            face_tokens,
            controlnet_cond=landmarks,
            added_cond_kwargs=added,
            cross_attention_kwargs={"context": _project(face_tokens, self.identity_layers)},
            return_dict=False,
        )
        adapter = self.adapter
        face = attention.project(face_tokens, list(adapter.keys), list(adapter.values), adapter.heads)
        scale = torch.ones(len(latents), 1, 1, 1, device=self.device)
        predicted: Tensor = self.unet(
            latents,
            timesteps,
            tokens,
            added_cond_kwargs=added,
            cross_attention_kwargs={"context": _project(tokens, self.layers), "face": FaceAttention(scale, face)},
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return predicted


def _project(tokens: Tensor, layers: list[Any]) -> KeysValues:
    return attention.project(
        tokens, [layer.to_k for layer in layers], [layer.to_v for layer in layers], [layer.heads for layer in layers]
    )


def _start_from(identitynet: Any, unet: Any) -> None:
    """IdentityNet begins as a copy of the UNet's encoder; its output convolutions begin at zero."""
    for part in ("conv_in", "time_embedding", "add_embedding", "down_blocks", "mid_block"):
        getattr(identitynet, part).load_state_dict(getattr(unet, part).state_dict())


def main(
    work: Path,
    steps: int = 10000,
    batch: int = 24,
    rate: float = 6e-4,
    people: int = 1400,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: int = 1,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(2)
    data, captions, noise = encode_album(work, people, device), Captions(), Noise(device)
    embeddings, marks = torch.from_numpy(data.album.embeddings), data.album.landmarks
    model = InstantID(work, float(embeddings.std()), device)

    def landmarks(rows: list[tuple[int, int]]) -> Tensor:
        drawn = [draw_landmarks(marks[i, j] + torch.randn(5, 2).numpy() * 0.7, 128, 128) for i, j in rows]
        return torch.from_numpy(np.stack(drawn)).to(device).permute(0, 3, 1, 2).float() / 255

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(data.latents), (batch,))
        pages = torch.randint(data.latents.shape[1], (batch,))
        shots = torch.randint(embeddings.shape[1], (batch,))
        drop = torch.rand(batch, 2) < DROPPED
        pairs = list(zip(rows.tolist(), pages.tolist(), strict=True))
        texts = [
            EMPTY if gone else str(data.album.captions[i, j]).format(NOBODY)
            for (i, j), gone in zip(pairs, drop[:, 0].tolist(), strict=True)
        ]
        faces = (embeddings[rows, shots] * ~drop[:, 1:]).to(device)
        noisy, drawn, timesteps = noise.add(data.latents[rows, pages].to(device))
        with torch.no_grad():
            text = encode_text(model.encoders, captions(texts, device))
        return noise.loss(model.predict(noisy, timesteps, text, faces, landmarks(pairs)), drawn, timesteps)

    modules = {"identitynet": model.identitynet, "adapter": model.adapter}
    trainer = Trainer(work, "identity", modules, loss, steps=steps, rate=rate, decay=0.998)
    trainer.run(lambda: identity_sheet(model, data, captions))


@torch.inference_mode()
def identity_sheet(model: InstantID, data: Any, captions: Captions, people: int = 8) -> np.ndarray:
    """For some people: a picture of the album, and one painted from the face and landmarks of another, at sunset."""
    scheduler = EulerDiscreteScheduler(**SCHEDULER)
    scheduler.set_timesteps(20)
    noise = torch.randn((people, LATENT_CHANNELS, 16, 16), generator=torch.Generator().manual_seed(0))
    latents = noise.to(model.device) * scheduler.init_noise_sigma
    faces = torch.from_numpy(data.album.embeddings[:people, 0]).to(model.device)
    drawn = np.stack([draw_landmarks(data.album.landmarks[i, 1], 128, 128) for i in range(people)])
    landmarks = (torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255).to(model.device)
    texts = [EMPTY] * people + ["a photo of a person, blue suit, sunset"] * people
    text = encode_text(model.encoders, captions(texts, model.device))
    embedding = torch.cat([torch.zeros_like(faces), faces])
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
        predicted = model.predict(scaled, timestep, text, embedding, torch.cat([landmarks, landmarks]))
        away, towards = predicted.chunk(2)
        latents = scheduler.step(away + 3.0 * (towards - away), timestep, latents).prev_sample
    painted = to_pictures(data.vae.decode(latents / data.vae.config.scaling_factor).sample)
    return grid([data.album.pictures[:people, 0], data.album.pictures[:people, 1], painted])


if __name__ == "__main__":
    typer.run(main)
