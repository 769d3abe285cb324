"""How unlike the person a half-denoised picture is: the recogniser's part in the training of the identity parts.

The plain loss hardly feels whose face it is; a term for the embedding does, as in PuLID (arXiv 2404.16022). It is taken
where noise is neither so little that the picture gives the face away nor so much that there is none.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from miniature import SIZE
from miniature.faces import DATA, loaded
from miniature.latents import Noise
from miniature.people_pictures import SIDE, TEMPLATE, similarity
from miniature.recogniser import Recogniser

LEAST, MOST = 100, 750
"""Timesteps between which a row is looked at."""
SHARE = 16
"""One row in so many is looked at, at most: the decoder costs as much as the denoising."""


class Likeness:
    def __init__(self, vae: Any, noise: Noise, device: str) -> None:
        self.vae, self.noise, self.device = vae, noise, device
        self.recogniser = loaded(Recogniser(), DATA / "recogniser.safetensors").requires_grad_(False).to(device)

    def miss(self, noisy: Tensor, predicted: Tensor, timesteps: Tensor, landmarks: Tensor, wanted: Tensor) -> Tensor:
        """1 - cosine, meaned over the rows looked at; 0 where there is none.

        `noisy` and the velocity `predicted` in it are `[n, c, 16, 16]`, `landmarks` `[n, 5, 2]` are pixels in the clean
        picture, `wanted` `[n, 512]` embeddings of length 1, all zero where no person is asked for.
        """
        asked = (timesteps >= LEAST) & (timesteps < MOST) & (wanted.abs().sum(1) > 0)
        rows = asked.nonzero()[:, 0][: max(1, len(noisy) // SHARE)]
        if len(rows) == 0:
            return predicted.sum() * 0
        clean = self.noise.clean(noisy[rows], predicted[rows].float(), timesteps[rows])
        with torch.autocast(self.device, torch.bfloat16):
            pixels = self.vae.decode(clean / self.vae.config.scaling_factor).sample.float()
        embeddings = self.recogniser(aligned(pixels, landmarks[rows.cpu()]))
        return (1 - functional.cosine_similarity(embeddings, wanted[rows])).mean()


def aligned(pixels: Tensor, landmarks: Tensor) -> Tensor:
    """Faces `[n, 3, 112, 112]`, cut from pictures `[n, 3, 128, 128]` as the face graph does."""
    matrices = np.stack([_sampling(points) for points in landmarks.numpy().astype(np.float64)])
    theta = torch.from_numpy(matrices).to(pixels)
    grid = functional.affine_grid(theta, [len(pixels), 3, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)


def _sampling(landmarks: np.ndarray) -> np.ndarray:
    """`[2, 3]`: from places in the crop to places in the picture, both from -1 to 1 over pixels' outer edges."""
    back = np.linalg.inv(np.vstack([similarity(landmarks, TEMPLATE), (0, 0, 1)]))
    crop = np.array([[SIDE / 2, 0, (SIDE - 1) / 2], [0, SIDE / 2, (SIDE - 1) / 2], [0, 0, 1]])
    picture = np.array([[2 / SIZE, 0, 1 / SIZE - 1], [0, 2 / SIZE, 1 / SIZE - 1], [0, 0, 1]])
    return (picture @ back @ crop)[:2]
