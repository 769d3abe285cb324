"""Third stage: from the faces found to what the denoiser is given, and to the caller's face report."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instantid.faces.choice import Face, Faces
from instantid.faces.landmark_picture import draw_landmarks
from instantid.faces.placement import place
from instantid.request import GenerationRequest, PhotoSize


@dataclass(frozen=True, slots=True)
class Conditioning:
    """`embedding` float32 [512] raw (not normalised); `landmark_picture` HWC RGB uint8 of the picture's size.

    `report` is the JSON of the output `face`, in pixels of the photos as they were sent.
    """

    embedding: NDArray[np.float32]
    landmark_picture: NDArray[np.uint8]
    report: bytes


def condition(request: GenerationRequest, faces: Faces) -> Conditioning:
    """Mean embedding of the person's photos, and the landmarks of the pose photo (or the first) in the picture.

    Raises NoUsableFace, naming the photo, if one has no face or only too small ones.
    """
    persons = len(request.photos) - request.has_pose_photo
    found = [faces.largest(i, f"photo[{i}]") for i in range(persons)]
    pose_index = persons if request.has_pose_photo else 0
    pose = faces.largest(pose_index, "pose_photo") if request.has_pose_photo else found[0]
    embedding = np.stack([face.embedding for face in found]).mean(axis=0, dtype=np.float64)
    placement = place(_resized(request.photos[pose_index]), (request.width, request.height))
    picture = draw_landmarks(placement.apply(pose.landmarks), request.width, request.height)
    photos = [describe(face, request.photos[i], i) for i, face in enumerate(found)]
    report = {**describe(pose, request.photos[pose_index], pose_index), "photos": photos}
    return Conditioning(embedding.astype(np.float32), picture, json.dumps(report).encode())


def describe(face: Face, photo: PhotoSize, index: int) -> dict[str, Any]:
    """One face as the caller sees it: coordinates in pixels of the photo as sent, upright."""
    scale = np.array([photo.width / photo.resized_width, photo.height / photo.resized_height])
    return {
        "box": (face.box.reshape(2, 2) * scale).round(2).reshape(-1).tolist(),
        "landmarks": (face.landmarks * scale).round(2).tolist(),
        "score": round(face.score, 4),
        "detection_size": face.detection_size,
        "faces_seen": face.faces_seen,
        "photo_index": index,
    }


def _resized(photo: PhotoSize) -> tuple[int, int]:
    return photo.resized_width, photo.resized_height
