"""Judges painted pictures: whose face they show (by the miniature's recogniser), where it is, and at which place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from instantid.contract import CANVAS
from miniature import FloatArray, ImageArray
from miniature.scenery import SCENERY, draw_scenery

BORDER, BANDS = 0.09, 8
"""Width of the left and right borders that show the place, in sides, and number of bands in their upper half."""


@dataclass(frozen=True)
class DetectedFace:
    """The largest face: landmarks `[5, 2]` in pixels, and the embedding `[512]` of length 1."""

    landmarks: FloatArray
    embedding: FloatArray


class Judge:
    def __init__(self, face_graph: Path) -> None:
        """`face_graph` is the file `face_analysis.onnx` of a set."""
        self.session = onnxruntime.InferenceSession(str(face_graph), providers=["CPUExecutionProvider"])
        self.places = np.stack([_average_border(name) for name in SCENERY])

    def largest_face(self, picture: ImageArray) -> DetectedFace | None:
        """The largest face of a `[h, w, 3]` uint8 RGB picture; None if no face is found."""
        boxes, landmarks, embeddings = self._run(picture, "boxes", "landmarks", "embeddings")
        if not len(boxes):
            return None
        largest = np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(1))
        embedding = embeddings[largest]
        return DetectedFace(landmarks[largest], embedding / np.linalg.norm(embedding))

    def detect(self, picture: ImageArray) -> FloatArray:
        """All boxes `[n, 4]` in pixels, at the served threshold."""
        return self._run(picture, "boxes")[0]

    def _run(self, picture: ImageArray, *outputs: str) -> list[FloatArray]:
        height, width = picture.shape[:2]
        canvas = np.zeros((1, CANVAS, CANVAS, 3), np.uint8)
        canvas[0, :height, :width] = picture
        sizes = np.array([[height, width]], np.int64)
        answers: list[FloatArray] = self.session.run(list(outputs), {"images": canvas, "sizes": sizes})
        return answers

    def place(self, picture: ImageArray) -> str:
        """The place of SCENERY with the nearest colours in the left and right borders, above the shoulders."""
        return SCENERY[int(np.linalg.norm(self.places - _border(picture), axis=-1).mean(-1).argmin())]


def auc(same: FloatArray, different: FloatArray) -> float:
    """Area under the ROC curve: the probability that a cosine of one person exceeds a cosine of two people."""
    return float((same[:, None] > different[None]).mean())


def _border(picture: ImageArray) -> FloatArray:
    """Mean colour `[BANDS, 3]` of each band."""
    height, width = picture.shape[:2]
    edge = round(BORDER * width)
    columns = np.concatenate([picture[: height // 2, :edge], picture[: height // 2, -edge:]], 1).astype(np.float32)
    return np.stack([band.mean((0, 1)) for band in np.array_split(columns, BANDS)])


def _average_border(name: str) -> FloatArray:
    rng = np.random.default_rng(0)
    return np.mean([_border(draw_scenery(name, 128, rng)) for _ in range(20)], axis=0)
