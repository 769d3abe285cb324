"""Landmarks and embeddings that the shipped face networks find in the album: what the service would use.

InstantID is trained on the results of its face analysis, too. A systematic error of the detector then cancels out: it
has the same effect on the landmarks that are asked for and on those that are found in the painted picture.
"""

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from miniature import ImageArray
from miniature.album import Album
from miniature.aligned_faces import align
from miniature.detector import INPUT_MEAN, INPUT_STD, STRIDES, Detector, anchor_centres
from miniature.faces import DATA, loaded
from miniature.recogniser import INPUT_MEAN as FACE_MEAN
from miniature.recogniser import INPUT_STD as FACE_STD
from miniature.recogniser import Recogniser

SIDE, MARGIN = 640, 64
"""Pages are enlarged as in the face graph. Their outermost pixels, which show no face, are left out."""


def face_networks() -> tuple[Detector, Recogniser]:
    detector = loaded(Detector(), DATA / "detector.safetensors")
    detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector, loaded(Recogniser(), DATA / "recogniser.safetensors")


@torch.inference_mode()
def find_faces(album: Album, detector: Detector, recogniser: Recogniser) -> tuple[Tensor, Tensor]:
    """Landmarks `[people, pages, 5, 2]` in pixels of the pages and raw embeddings `[people, pages, 512]`, float32."""
    marks, embeddings = [], []
    for pages in tqdm(album.pictures, "finding faces", mininterval=5):
        found = find_landmarks(detector, pages)
        faces = np.stack([align(*each) for each in zip(pages, found.numpy(), strict=True)])
        pixels = torch.from_numpy(faces).permute(0, 3, 1, 2).float()
        marks.append(found)
        embeddings.append(recogniser((pixels - FACE_MEAN) / FACE_STD))
    return torch.stack(marks), torch.stack(embeddings)


@torch.inference_mode()
def find_landmarks(detector: Detector, pictures: ImageArray) -> Tensor:
    """Landmarks `[n, 5, 2]` in pixels, of the face with the highest score in each picture `[side, side, 3]`."""
    inside = slice(MARGIN, SIDE - MARGIN)
    large = np.stack([cv2.resize(picture, (SIDE, SIDE))[inside, inside] for picture in pictures])
    images = (torch.from_numpy(large).permute(0, 3, 1, 2).float() - INPUT_MEAN) / INPUT_STD
    with torch.autocast("cpu", torch.bfloat16):
        outputs = detector(images.contiguous(memory_format=torch.channels_last))
    scores, offsets = torch.cat(outputs[:3], 1)[..., 0].float(), torch.cat(outputs[6:], 1).float()
    levels = anchor_centres(*images.shape[2:])
    centres = torch.cat(levels)
    strides = torch.cat([torch.full((len(level),), float(s)) for level, s in zip(levels, STRIDES, strict=True)])
    best, rows = scores.argmax(1), torch.arange(len(pictures))
    places = centres[best][:, None] + strides[best][:, None, None] * offsets[rows, best].view(-1, 5, 2)
    return (places + MARGIN) * pictures.shape[1] / SIDE
