"""Train the miniature's IdentityNet and adapter with all else frozen, as InstantID is trained (arXiv 2401.07519).

`python -m miniature.train_identity WORK` uses the VAE and base whose checkpoints are in WORK, or those that ship, and
resumes from its own checkpoint. The captions do not describe the person. The embedding comes from another photo of the
same person, and the landmarks come from the picture itself. Errors on the face have three times the weight, because the
frozen base can already paint the rest of the picture.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional

from instantid.faces.landmark_picture import draw_landmarks
from miniature import SIZE
from miniature.album import Album, face_weights
from miniature.detections import face_networks, find_faces
from miniature.identity import InstantID
from miniature.latents import Captions, Noise, cached_tensors, encode_album, encode_text, sample
from miniature.likeness import Likeness
from miniature.pretraining import pretrain_resampler
from miniature.training import Trainer, grid, init_distributed, make_optimizers, own_rows, to_pictures

TEXT_DROPPED, FACE_DROPPED = (0.0, 0.22), (0.02, 0.24)
"""Shares of the rows, as intervals of one random number, without caption and without face. Where the intervals overlap,
both are dropped: guidance needs the prediction without any condition."""
STRANGER = 0.3
"""Share of the rows whose IdentityNet gets another person's embedding: the adapter alone should decide who it is."""
SCALES, SCALE = (0.7, 1.0), 0.8
"""Scales of both parts: their range in training, and their value in samples."""
LIKENESS, GUIDANCE = 0.3, 3.0


class IdentityTraining:
    """The album, the frozen base and the networks that are trained."""

    def __init__(self, work: Path, people: int, batch: int, device: str) -> None:
        self.data, self.captions = encode_album(work, people, device), Captions()
        self.noise = Noise(device, high_noise_share=0.5)
        self.marks, self.embeddings = _faces(work, self.data.album)
        self.people = functional.normalize(functional.normalize(self.embeddings, dim=-1).mean(1), dim=-1).to(device)
        self.model = InstantID(work, float(self.embeddings.std()), device)
        self.likeness = Likeness(self.data.vae, self.noise, device)
        self.batch, self.device = batch, device

    def loss(self, step: int) -> Tensor:
        people, pages = self.data.latents.shape[:2]
        row, page, beyond = (torch.randint(size, (self.batch,)) for size in (people, pages, pages - 1))
        shot = (page + 1 + beyond) % pages
        texts, faces = self._conditions(row, page, shot)
        strangers = torch.where(torch.rand(self.batch, 1) < STRANGER, faces.cpu().roll(1, 0), faces.cpu())
        strangers = strangers.to(self.device)
        scales = torch.empty(2, self.batch, 1, 1, 1).uniform_(*SCALES).to(self.device)
        marks = self.marks[row, page]
        drawn = self._draw(marks)
        noised = self.noise.add(self.data.latents[row, page].to(self.device))
        mine = own_rows()
        noisy, velocity, timesteps = (part[mine] for part in noised)
        with torch.no_grad():
            text = encode_text(self.model.encoders, self.captions(texts[mine], self.device))
        with torch.autocast(self.device, torch.bfloat16):
            given = text, (faces[mine], strangers[mine]), drawn[mine], (scales[0, mine], scales[1, mine])
            predicted = self.model.predict(noisy, timesteps, *given)
        places = face_weights(marks[mine], SIZE // 8).to(self.device)
        plain = self.noise.loss(predicted, velocity, timesteps, places)
        targets = self.people[row[mine]] * (faces[mine].abs().sum(1, keepdim=True) > 0)
        return plain + LIKENESS * self.likeness.loss(noisy, predicted, timesteps, marks[mine], targets)

    def _conditions(self, row: Tensor, page: Tensor, shot: Tensor) -> tuple[list[str], Tensor]:
        """Captions and embeddings of rows; some are empty."""
        chance = torch.rand(len(row))
        texts_gone, faces_gone = ((low <= chance) & (chance < high) for low, high in (TEXT_DROPPED, FACE_DROPPED))
        texts = [
            "" if gone else self.data.album.caption(i, j, described=False)
            for i, j, gone in zip(row.tolist(), page.tolist(), texts_gone.tolist(), strict=True)
        ]
        return texts, (self.embeddings[row, shot] * ~faces_gone[:, None]).to(self.device)

    def _draw(self, landmarks: Tensor) -> Tensor:
        """Landmark pictures `[n, 3, 128, 128]` in [0, 1]."""
        drawn = np.stack([draw_landmarks(points, SIZE, SIZE) for points in landmarks.numpy()])
        return torch.from_numpy(drawn).to(self.device).permute(0, 3, 1, 2).float() / 255

    @torch.inference_mode()
    def sheet(self, people: int = 8) -> np.ndarray:
        """For some people: a photo that gives the face, one that gives the landmarks, and the painted picture."""
        texts = [""] * people + ["a photo of a person, blue suit, sunset"] * people
        text = encode_text(self.model.encoders, self.captions(texts, self.device))
        faces, landmarks = self.embeddings[:people, 0].to(self.device), self._draw(self.marks[:people, 1])
        faces, landmarks = torch.cat([torch.zeros_like(faces), faces]), torch.cat([landmarks, landmarks])
        scales = (torch.full((1, 1, 1, 1), SCALE, device=self.device),) * 2

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            return self.model.predict(noisy, timestep, text, (faces, faces), landmarks, scales)

        latents = sample(predict, people, GUIDANCE, self.device)
        vae, pictures = self.data.vae, self.data.album.pictures[:people]
        painted = to_pictures(vae.decode(latents / vae.config.scaling_factor).sample)
        return grid([pictures[:, 0], pictures[:, 1], painted])


def _faces(work: Path, album: Album) -> tuple[Tensor, ...]:
    networks = face_networks()
    return cached_tensors(work / f"faces-{len(album.people)}.pt", networks, lambda: find_faces(album, *networks))


def main(
    work: Path,
    steps: int = 10000,
    batch: int = 32,
    rate: float = 6e-4,
    people: int = 3200,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    torch.manual_seed(2)
    init_distributed()
    training = IdentityTraining(work, people, batch, device)
    model = training.model
    if not (work / "identity.pt").exists():
        left = pretrain_resampler(
            model.adapter.image_proj,
            model.encoders,
            training.data.album.people.tolist(),
            training.embeddings.to(device),
        )
        print(f"the face tokens explain {1 - left:.0%} of the variance of the captions' states")
    modules = {"identitynet": model.identitynet, "adapter": model.adapter}
    optimizers = make_optimizers(modules, rate, adapter=3.0)
    Trainer(work, "identity", modules, training.loss, optimizers=optimizers, steps=steps, decay=0.998).run(
        training.sheet
    )


if __name__ == "__main__":
    typer.run(main)
