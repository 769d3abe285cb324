"""Runs the face graph and insightface on the same files and pictures, and compares their results."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from insightface.app import FaceAnalysis
from numpy.typing import NDArray

from build_tools.face_graph.detection import Detection
from instantid.contract import CANVAS, DETECTION_SIZES

Picture = NDArray[np.uint8]
SAME_FACE = 0.5
"""Two boxes with a larger overlap (IoU) are the same face."""
SCORE_MARGIN = 1e-3
"""Faces whose score is this close to the threshold may be missing on either side."""


@dataclass(frozen=True)
class Found:
    """Faces of one picture: boxes [f, 4], scores [f], landmarks [f, 5, 2], embeddings [f, 512], best first."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    landmarks: NDArray[np.float32]
    embeddings: NDArray[np.float32]
    detection_size: int

    @property
    def areas(self) -> NDArray[np.float32]:
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        areas: NDArray[np.float32] = sides[:, 0] * sides[:, 1]
        return areas


@dataclass
class Differences:
    """For each matched face the largest differences of box and landmarks in pixels and of scores, and the cosine."""

    boxes: list[float] = field(default_factory=list)
    landmarks: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    missed: int = 0
    extra: int = 0
    other_largest: int = 0
    pictures: int = 0
    sizes: dict[int, int] = field(default_factory=dict)

    def add(self, ours: Found, theirs: Found, threshold: float) -> None:
        pairs = match(ours, theirs)
        for i, j in pairs:
            self.boxes.append(float(np.abs(ours.boxes[i] - theirs.boxes[j]).max()))
            self.landmarks.append(float(np.abs(ours.landmarks[i] - theirs.landmarks[j]).max()))
            self.scores.append(float(abs(ours.scores[i] - theirs.scores[j])))
            self.cosines.append(cosine(ours.embeddings[i], theirs.embeddings[j]))
        self.missed += _clear(theirs, {j for _, j in pairs}, threshold)
        self.extra += _clear(ours, {i for i, _ in pairs}, threshold)
        self.other_largest += not _same_largest(ours, theirs, dict(pairs))
        self.pictures += 1
        self.sizes[ours.detection_size] = self.sizes.get(ours.detection_size, 0) + 1


class FusedGraph:
    """The fused graph in onnxruntime."""

    def __init__(self, path: Path, providers: list[str], threads: int) -> None:
        self.session = onnxruntime.InferenceSession(str(path), _options(threads), providers=providers)
        self.names = [output.name for output in self.session.get_outputs()]

    def run(self, images: Picture, sizes: NDArray[np.int64]) -> dict[str, Any]:
        arrays = self.session.run(self.names, {"images": images, "sizes": sizes})
        return dict(zip(self.names, arrays, strict=True))

    def find(self, picture: Picture) -> Found:
        """Faces of one RGB picture of at most 1280 pixels a side."""
        return photo_faces(self.run(*on_canvas([picture])), 0)


class Insightface:
    """insightface's FaceAnalysis at 640 and at 128. Which of the two counts is decided as in `build_face_graph`."""

    def __init__(
        self,
        detector: Path,
        recogniser: Path,
        folder: Path,
        providers: list[str],
        threads: int,
        detection: Detection = "surest",
    ) -> None:
        self.detection = detection
        cv2.setNumThreads(threads)
        for path in (detector, recogniser):
            shutil.copy(path, folder / path.name)
        self.analyses: dict[int, FaceAnalysis] = {}
        for size in DETECTION_SIZES:
            analysis = FaceAnalysis(name=str(folder), providers=providers, sess_options=_options(threads))
            analysis.prepare(ctx_id=0, det_size=(size, size))
            self.analyses[size] = analysis

    def get(self, picture: Picture) -> list[Any]:
        """`FaceAnalysis.get` at 640 on a BGR picture: detection and recognition."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return list(self.analyses[DETECTION_SIZES[0]].get(picture))

    def find(self, picture: Picture) -> Found:
        """Faces of one RGB picture."""
        bgr = np.ascontiguousarray(picture[:, :, ::-1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            looks = [_stack(analysis.get(bgr), size) for size, analysis in self.analyses.items()]
        found = [look for look in looks if len(look.scores)] or [_stack([], 0)]
        if self.detection == "reference" or len(found) == 1:
            return found[0]
        return max(found, key=lambda look: look.scores[look.areas.argmax()])


def on_canvas(pictures: list[Picture]) -> tuple[Picture, NDArray[np.int64]]:
    """Make the graph's inputs from RGB pictures of at most 1280 pixels a side."""
    images = np.zeros((len(pictures), CANVAS, CANVAS, 3), np.uint8)
    for image, picture in zip(images, pictures, strict=True):
        image[: picture.shape[0], : picture.shape[1]] = picture
    return images, np.array([picture.shape[:2] for picture in pictures], np.int64).reshape(-1, 2)


def photo_faces(outputs: Mapping[str, Any], photo: int) -> Found:
    """Select the faces of one photo from the graph's outputs."""
    chosen = outputs["photo_index"] == photo
    boxes, scores, landmarks, embeddings = (
        outputs[name][chosen] for name in ("boxes", "scores", "landmarks", "embeddings")
    )
    return Found(boxes, scores, landmarks, embeddings, int(outputs["detection_size"][photo]))


def match(ours: Found, theirs: Found) -> list[tuple[int, int]]:
    """Pair equal faces (ours, theirs), best score first. Each face is used once."""
    pairs: list[tuple[int, int]] = []
    free = set(range(len(ours.boxes)))
    for j, box in enumerate(theirs.boxes):
        i = max(free, key=lambda k: overlap(ours.boxes[k], box), default=None)
        if i is not None and overlap(ours.boxes[i], box) > SAME_FACE:
            pairs.append((i, j))
            free.remove(i)
    return pairs


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = float(np.prod(np.clip(high - low, 0, None)))
    return shared / (float(np.prod(a[2:] - a[:2])) + float(np.prod(b[2:] - b[:2])) - shared)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def _same_largest(ours: Found, theirs: Found, partner: dict[int, int]) -> bool:
    if not len(ours.areas) or not len(theirs.areas):
        return len(ours.areas) == len(theirs.areas)
    return partner.get(int(ours.areas.argmax())) == int(theirs.areas.argmax())


def _clear(found: Found, matched: set[int], threshold: float) -> int:
    return sum(i not in matched and score > threshold + SCORE_MARGIN for i, score in enumerate(found.scores))


def _stack(faces: list[Any], size: int) -> Found:
    def stack(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.array([face[key] for face in faces], np.float32).reshape(-1, *shape)

    return Found(stack("bbox", (4,)), stack("det_score", ()), stack("kps", (5, 2)), stack("embedding", (512,)), size)


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options
