"""What is in a painted picture: whose face (the miniature's own recogniser), where it is, and before which place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from miniature import FloatArray, ImageArray
from miniature.scenery import SCENERY, draw_scenery

CANVAS = 1280
BORDER, BANDS = 0.09, 8
"""Part of the side on the left and on the right that shows the place, and how many bands of the upper half."""


@dataclass(frozen=True)
class Seen:
    """The largest face: landmarks `[5, 2]` in pixels, and the embedding `[512]` of length 1."""

    landmarks: FloatArray
    embedding: FloatArray


class Judge:
    def __init__(self, face_graph: Path) -> None:
        """`face_graph` is a set's `face_analysis.onnx`."""
        self.session = onnxruntime.InferenceSession(str(face_graph), providers=["CPUExecutionProvider"])
        self.places = np.stack([_average_border(name) for name in SCENERY])

    def look(self, picture: ImageArray) -> Seen | None:
        """At `[h, w, 3]` uint8 RGB; None where no face is found."""
        boxes, landmarks, embeddings = self._run(picture, "boxes", "landmarks", "embeddings")
        if not len(boxes):
            return None
        largest = np.argmax((boxes[:, 2:] - boxes[:, :2]).prod(1))
        embedding = embeddings[largest]
        return Seen(landmarks[largest], embedding / np.linalg.norm(embedding))

    def detect(self, picture: ImageArray) -> FloatArray:
        """All boxes `[n, 4]` at the served threshold, in pixels."""
        return self._run(picture, "boxes")[0]

    def _run(self, picture: ImageArray, *outputs: str) -> list[FloatArray]:
        height, width = picture.shape[:2]
        canvas = np.zeros((1, CANVAS, CANVAS, 3), np.uint8)
        canvas[0, :height, :width] = picture
        sizes = np.array([[height, width]], np.int64)
        answers: list[FloatArray] = self.session.run(list(outputs), {"images": canvas, "sizes": sizes})
        return answers

    def place(self, picture: ImageArray) -> str:
        """The one of `SCENERY` whose colours down the left and right border, above the shoulders, are nearest."""
        return SCENERY[int(np.linalg.norm(self.places - _border(picture), axis=-1).mean(-1).argmin())]


def auc(same: FloatArray, different: FloatArray) -> float:
    """Chance that a pair of one person is closer than a pair of two people."""
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
