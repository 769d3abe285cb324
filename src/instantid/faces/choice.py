"""Which of the faces that were found is meant."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instantid import contract
from instantid.errors import NoUsableFace


@dataclass(frozen=True, slots=True)
class Face:
    """One face: box [4] (x0, y0, x1, y1) and landmarks [5, 2] in pixels of the resized photo, raw embedding [512].

    Landmark order: image-left eye, image-right eye, nose, image-left mouth corner, image-right mouth corner.
    """

    box: NDArray[np.float32]
    score: float
    landmarks: NDArray[np.float32]
    embedding: NDArray[np.float32]
    faces_seen: int
    detection_size: int


@dataclass(frozen=True, slots=True)
class Faces:
    """All faces of all photos of one request, as `face_analysis` gives them (f faces, n photos)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    photo_index: NDArray[np.int64]
    detection_size: NDArray[np.int64]

    def largest(self, photo: int, field: str) -> Face:
        """The face with the largest `(x1 - x0) * (y1 - y0)` of one photo (InstantID reference, `infer.py`).

        Raises NoUsableFace, naming `field`, if the photo has none or the largest is under the contract's size.
        """
        found = np.flatnonzero(self.photo_index == photo)
        if not len(found):
            bound = "needs one clear face; a photo that lies on its side has to be turned upright"
            raise NoUsableFace(field, "no face found", bound)
        x0, y0, x1, y1 = self.boxes[found].T
        chosen = found[np.argmax((x1 - x0) * (y1 - y0))]
        _check_size(self.boxes[chosen], field)
        return Face(
            self.boxes[chosen],
            float(self.scores[chosen]),
            self.landmarks[chosen],
            self.embeddings[chosen],
            len(found),
            int(self.detection_size[photo]),
        )


def _check_size(box: NDArray[np.float32], field: str) -> None:
    width, height = (box[2:] - box[:2]).tolist()
    if min(width, height) < contract.MIN_FACE_SIDE:
        bound = f"must be at least {contract.MIN_FACE_SIDE:g} pixels a side"
        resized = f"once the photo's longer side is {contract.CANVAS}"
        raise NoUsableFace(field, f"largest face is {width:.0f}x{height:.0f} pixels", f"{bound} {resized}")
