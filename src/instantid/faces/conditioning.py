"""Third stage: from the faces found to what the denoiser is given, and to the caller's face report."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instantid.errors import InvalidArgument
from instantid.faces.choice import Face, Faces
from instantid.faces.landmark_picture import draw_landmarks, place_landmarks
from instantid.photos import PhotoSize
from instantid.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Conditioning:
    """`embeddings` float32 [persons, 512] raw (not normalised), of one person today.

    `pictures` uint8 RGB [k, height, width, 3], by the names in the request; the landmark picture is the last.
    `report` is the JSON of the output `face`, in pixels of the photos as they were sent.
    """

    embeddings: NDArray[np.float32]
    pictures: NDArray[np.uint8]
    report: bytes


def condition(request: GenerationRequest, faces: Faces, input_pictures: NDArray[np.uint8]) -> Conditioning:
    """Mean embedding of the person's photos, and the landmarks of the pose photo (or the first) in the picture.

    `input_pictures` uint8 RGB [k, height, width, 3] are passed on. Raises NoUsableFace, naming the photo, if one has no
    face or only too small ones, and InvalidArgument if pictures or photos are not those of the request.
    """
    _check_given(request, input_pictures)
    count = len(request.photos) - request.has_pose_photo
    found = [faces.largest(i, f"photo[{i}]") for i in range(count)]
    pose_index = count if request.has_pose_photo else 0
    pose = faces.largest(pose_index, "pose_photo") if request.has_pose_photo else found[0]
    embedding = np.stack([face.embedding for face in found]).mean(axis=0, dtype=np.float64)
    posed = request.photos[pose_index]
    size = request.width, request.height
    placed = place_landmarks(pose.landmarks, (posed.resized_width, posed.resized_height), size)
    landmarks = draw_landmarks(placed, *size)
    photos = [describe(face, request.photos[i], i) for i, face in enumerate(found)]
    report = {**describe(pose, posed, pose_index), "photos": photos}
    pictures = np.concatenate([input_pictures, landmarks[None]])
    return Conditioning(embedding.astype(np.float32)[None], pictures, json.dumps(report).encode())


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
        "notes": list(photo.notes),
    }


def _check_given(request: GenerationRequest, input_pictures: NDArray[np.uint8]) -> None:
    if len(request.photos) <= request.has_pose_photo:
        raise InvalidArgument("request.photos", f"{len(request.photos)} photos", "must hold one of the person")
    expected = (len(request.pictures) - 1, request.height, request.width, 3)
    if input_pictures.shape != expected:
        raise InvalidArgument("input_pictures", f"shape {list(input_pictures.shape)}", f"must be {list(expected)}")
