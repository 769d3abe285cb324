"""Train the miniature's IdentityNet and adapter with all else frozen, as InstantID is trained (arXiv 2401.07519).

`python -m build_tools.miniature.train_identity WORK` needs the checkpoints of the VAE and the base and goes on from its
own. Captions say nothing of who it is; the embedding comes from another photo of the same person, the landmarks from
the picture itself. Errors on the face count three times: the rest of the picture the frozen base can paint already.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import EulerDiscreteScheduler
from torch import Tensor

from build_tools.miniature.identity import InstantID
from build_tools.miniature.latents import EMPTY, NOBODY, Captions, Noise, encode_album, encode_text
from build_tools.miniature.networks import LATENT_CHANNELS, SIZE
from build_tools.miniature.sdxl import SCHEDULER
from build_tools.miniature.training import Trainer, grid, join_others, own_share, to_pictures
from build_tools.miniature.words import begin_with_words
from instantid.faces.landmark_picture import draw_landmarks

TEXT_DROPPED, FACE_DROPPED = (0.0, 0.12), (0.05, 0.17)
"""Parts of the draws: both are dropped where they overlap, for guidance."""
FACE_COUNTS = 3.0


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
    join_others()
    data, captions, noise = encode_album(work, people, device), Captions(), Noise(device, coarse=True)
    embeddings, marks = torch.from_numpy(data.album.embeddings), data.album.landmarks
    model = InstantID(work, float(embeddings.std()), device)
    if not (work / "identity.pt").exists():
        left = begin_with_words(model.adapter.image_proj, model.encoders, data.album, device)
        print(f"face tokens begin with {1 - left:.0%} of what captions say")

    def landmarks(rows: list[tuple[int, int]]) -> Tensor:
        drawn = [draw_landmarks(marks[i, j] + torch.randn(5, 2).numpy() * 0.7, 128, 128) for i, j in rows]
        return torch.from_numpy(np.stack(drawn)).to(device).permute(0, 3, 1, 2).float() / 255

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(data.latents), (batch,))
        pages = torch.randint(data.latents.shape[1], (batch,))
        shots = torch.randint(embeddings.shape[1], (batch,))
        chance = torch.rand(batch)
        texts_gone, faces_gone = ((low <= chance) & (chance < high) for low, high in (TEXT_DROPPED, FACE_DROPPED))
        pairs = list(zip(rows.tolist(), pages.tolist(), strict=True))
        texts = [
            EMPTY if gone else str(data.album.captions[i, j]).format(NOBODY)
            for (i, j), gone in zip(pairs, texts_gone.tolist(), strict=True)
        ]
        faces = (embeddings[rows, shots] * ~faces_gone[:, None]).to(device)
        marked, places = landmarks(pairs), face_places(torch.from_numpy(marks)[rows, pages]).to(device)
        noised = noise.add(data.latents[rows, pages].to(device))
        mine = own_share()
        noisy, drawn, timesteps = (part[mine] for part in noised)
        with torch.no_grad():
            text = encode_text(model.encoders, captions(texts[mine], device))
        predicted = model.predict(noisy, timesteps, text, faces[mine], marked[mine])
        return noise.loss(predicted, drawn, timesteps, places[mine])

    modules = {"identitynet": model.identitynet, "adapter": model.adapter}
    trainer = Trainer(work, "identity", modules, loss, steps=steps, rate=rate, decay=0.998, faster={"adapter": 3.0})
    trainer.run(lambda: identity_sheet(model, data, captions))


def face_places(landmarks: Tensor) -> Tensor:
    """How much each latent `[n, 1, 16, 16]` counts: FACE_COUNTS around the landmarks `[n, 5, 2]`, 1 elsewhere."""
    side = SIZE // 8
    eyes, mouth = landmarks[:, :2].mean(1), landmarks[:, 3:].mean(1)
    apart = torch.linalg.vector_norm(landmarks[:, 0] - landmarks[:, 1], dim=-1)
    radius = 1.7 * torch.maximum(apart, torch.linalg.vector_norm(eyes - mouth, dim=-1))
    centres = (torch.arange(side) + 0.5) * 8
    grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), -1)
    distance = torch.linalg.vector_norm(grid - landmarks.mean(1)[:, None, None], dim=-1)
    return torch.where(distance <= radius[:, None, None], FACE_COUNTS, 1.0)[:, None]


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
