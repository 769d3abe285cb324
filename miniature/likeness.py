"""The identity loss: how far the recogniser's embedding of a half-denoised picture is from the person's.

The velocity loss is nearly blind to identity; a term for the embedding is not, as in PuLID (arXiv 2404.16022). It is
applied at medium noise: with less the noisy picture already shows the face, with more there is no face to recognise.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from miniature import SIZE
from miniature.aligned_faces import SIDE, TEMPLATE, similarity_matrix
from miniature.faces import DATA, loaded
from miniature.latents import Noise
from miniature.recogniser import Recogniser

LEAST, MOST = 100, 750
"""The range of timesteps with this loss."""
SHARE = 16
"""At most one row in so many has this loss, because the decoder costs as much as the denoising."""


class Likeness:
    def __init__(self, vae: Any, noise: Noise, device: str) -> None:
        self.vae, self.noise, self.device = vae, noise, device
        self.recogniser = loaded(Recogniser(), DATA / "recogniser.safetensors").requires_grad_(False).to(device)

    def loss(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor, landmarks: Tensor, targets: Tensor) -> Tensor:
        """Mean of 1 - cosine over the chosen rows; 0 if there are none.

        `noisy` latents and `predicted` velocities are `[n, c, 16, 16]`, `landmarks` `[n, 5, 2]` are in pixels of the
        clean picture, `targets` `[n, 512]` are embeddings of length 1, or zeros for rows without a person.
        """
        suitable = (timesteps >= LEAST) & (timesteps < MOST) & (targets.abs().sum(1) > 0)
        rows = suitable.nonzero()[:, 0][: max(1, len(noisy) // SHARE)]
        if len(rows) == 0:
            return predicted.sum() * 0
        clean = self.noise.clean(noisy[rows], predicted[rows].float(), timesteps[rows])
        with torch.autocast(self.device, torch.bfloat16):
            pixels = self.vae.decode(clean / self.vae.config.scaling_factor).sample.float()
        embeddings = self.recogniser(aligned(pixels, landmarks[rows.cpu()]))
        return (1 - functional.cosine_similarity(embeddings, targets[rows])).mean()


def aligned(pixels: Tensor, landmarks: Tensor) -> Tensor:
    """Faces `[n, 3, 112, 112]`, cut out of pictures `[n, 3, 128, 128]` as the face graph does it."""
    matrices = np.stack([_sampling(points) for points in landmarks.numpy().astype(np.float64)])
    theta = torch.from_numpy(matrices).to(pixels)
    grid = functional.affine_grid(theta, [len(pixels), 3, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)


def _sampling(landmarks: np.ndarray) -> np.ndarray:
    """Matrix `[2, 3]` from positions in the crop to positions in the picture, both in [-1, 1] from edge to edge."""
    back = np.linalg.inv(np.vstack([similarity_matrix(landmarks, TEMPLATE), (0, 0, 1)]))
    crop = np.array([[SIDE / 2, 0, (SIDE - 1) / 2], [0, SIDE / 2, (SIDE - 1) / 2], [0, 0, 1]])
    picture = np.array([[2 / SIZE, 0, 1 / SIZE - 1], [0, 2 / SIZE, 1 / SIZE - 1], [0, 0, 1]])
    return (picture @ back @ crop)[:2]
