"""Compares the fused face graph with insightface's `FaceAnalysis.get`, on the same ONNX files and photos in one run.

`python bench/face_analysis.py` prints the speed table: SCRFD-10GF and IResNet-100 with random weights, whose score
bias is set so that 1 or 6 "faces" are found in the photo. `--parity` prints how far the results differ instead.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import onnxruntime
import random_faces
import skimage
import typer
from face_parity import Differences, FusedGraph, Insightface, Picture, on_canvas
from insightface.data import get_image
from insightface.model_zoo.scrfd import SCRFD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from build_tools.face_graph import build_face_graph
from instantid.contract import CANVAS
from miniature import faces as miniature_faces
from miniature.crowds import draw_crowd

THRESHOLD = 0.5
FIRST_BIAS = -10.0
"""With this score bias a random detector's highest scores are exact, because they are far from 0 and from 1."""
PHOTOS = ("astronaut", "camera", "chelsea", "coffee", "rocket", "colorwheel", "immunohistochemistry", "retina")
SHARES = (("drawn", 0.5), ("t1.jpg", 0.25), ("scikit-image", 0.25))
QUANTILES = (0.5, 0.9, 0.99)
CONSOLE = Console(stderr=True)


@dataclass(frozen=True)
class Row:
    """Median milliseconds of both sides, and medians of the ratios of neighbouring runs, in time and in CPU time.

    On a machine with other work, the CPU time of one thread varies less.
    """

    provider: str
    threads: int
    faces: int
    graph_ms: float
    insightface_ms: float
    ratio: float
    cpu_ratio: float


def measure_speed(folder: Path, faces: int, provider: str, threads: int, rounds: int) -> Row:
    """Measure both sides on one photo with about `faces` faces; raises RuntimeError if their counts differ."""
    photo = six_people() if faces > 1 else astronaut()
    detector, recogniser, fused = networks(folder, photo, faces)
    graph = FusedGraph(fused, [provider], threads)
    reference = Insightface(detector, recogniser, _empty_folder(folder / "reference"), [provider], threads)
    canvas = on_canvas([photo])
    bgr = np.ascontiguousarray(photo[:, :, ::-1])
    found, theirs_found = len(graph.run(*canvas)["scores"]), len(reference.get(bgr))
    if found != theirs_found:
        raise RuntimeError(f"the graph found {found} faces and insightface {theirs_found} in the same photo")
    turns = track(range(rounds), f"{found} faces, {threads} threads, {provider}", console=CONSOLE)
    pairs = np.array([(_timed(lambda: graph.run(*canvas)), _timed(lambda: reference.get(bgr))) for _ in turns])
    ours, theirs = np.median(pairs[:, :, 0], axis=0) * 1000
    ratio, cpu_ratio = np.median(pairs[:, 1] / pairs[:, 0], axis=0)
    return Row(provider, threads, found, float(ours), float(theirs), float(ratio), float(cpu_ratio))


def networks(folder: Path, photo: Picture, faces: int) -> tuple[Path, Path, Path]:
    """Write full-size detector, recogniser and fused graph. The detector finds about `faces` faces in the photo."""
    detector, recogniser = folder / f"detector-{faces}.onnx", folder / "recogniser.onnx"
    fused = folder / f"fused-{faces}.onnx"
    if not fused.exists():
        CONSOLE.print(f"making full-size networks with random weights that find {faces} faces; half a minute")
        if not recogniser.exists():
            random_faces.write_random_recogniser(recogniser)
        random_faces.write_random_detector(detector, score_bias=FIRST_BIAS)
        random_faces.write_random_detector(detector, score_bias=FIRST_BIAS - middle_logit(detector, photo, faces))
        build_face_graph(detector, recogniser, fused, detection="reference")
    return detector, recogniser, fused


def middle_logit(detector: Path, photo: Picture, faces: int) -> float:
    """The mean logit of face number `faces` and the next one, in insightface's order by score."""
    bgr = np.ascontiguousarray(photo[:, :, ::-1])
    boxes = SCRFD(str(detector)).detect(bgr, (640, 640), det_thresh=np.finfo(np.float32).tiny)[0]
    scores = boxes[faces - 1 : faces + 1, 4].astype(np.float64)
    return float(np.log(scores / (1 - scores)).mean())


def astronaut() -> Picture:
    return np.asarray(cv2.resize(skimage.data.astronaut(), (CANVAS, CANVAS)), np.uint8)


def six_people() -> Picture:
    """insightface's t1.jpg at the size that intake gives it: 1280x832."""
    return np.asarray(cv2.resize(get_image("t1")[:, :, ::-1], (CANVAS, 832)), np.uint8)


def pictures(count: int, seed: int) -> Iterator[Picture]:
    """Drawn crowds, t1.jpg and scikit-image's photos, randomly cropped and scaled. Equal seeds give equal pictures."""
    rng = np.random.default_rng(seed)
    people = get_image("t1")[:, :, ::-1]
    for kind, share in SHARES:
        for number in range(round(count * share)):
            if kind == "drawn":
                source = draw_crowd(seed + number).picture
            elif kind == "t1.jpg":
                source = people
            else:
                source = rgb(getattr(skimage.data, PHOTOS[number % len(PHOTOS)])())
            yield crop(source, rng, whole=number < len(PHOTOS))


def crop(source: Picture, rng: np.random.Generator, whole: bool) -> Picture:
    """A random part of the picture, of at least a third of each side, resized to 160..1280 pixels."""
    height, width = source.shape[:2]
    part = (1.0, 1.0) if whole else rng.uniform(1 / 3, 1, 2)
    rows, columns = (max(16, int(side * share)) for side, share in zip((height, width), part, strict=True))
    top, left = int(rng.integers(0, height - rows + 1)), int(rng.integers(0, width - columns + 1))
    long = CANVAS if rng.random() < 0.5 else int(rng.integers(160, CANVAS + 1))
    scale = long / max(rows, columns)
    size = (max(16, round(columns * scale)), max(16, round(rows * scale)))
    return np.asarray(cv2.resize(source[top : top + rows, left : left + columns], size), np.uint8)


def rgb(picture: np.ndarray) -> Picture:
    return np.repeat(picture[:, :, None], 3, axis=2) if picture.ndim == 2 else np.ascontiguousarray(picture[:, :, :3])


def differences(folder: Path, full: bool, count: int, seed: int, provider: str) -> Differences:
    """Compare both sides on `count` pictures, with the miniature's trained networks or full-size random ones."""
    if full:
        detector, recogniser, fused = networks(folder, six_people(), 6)
    else:
        detector, recogniser, fused = (folder / f"{name}.onnx" for name in ("detector", "recogniser", "fused"))
        miniature_faces.write_detector(detector)
        miniature_faces.write_recogniser(recogniser)
        build_face_graph(detector, recogniser, fused, detection="reference")
    graph = FusedGraph(fused, [provider], os.cpu_count() or 1)
    reference = Insightface(
        detector, recogniser, _empty_folder(folder / "reference"), [provider], os.cpu_count() or 1, "reference"
    )
    total = Differences()
    for picture in track(pictures(count, seed), "comparing pictures", total=count, console=CONSOLE):
        total.add(graph.find(picture), reference.find(picture), THRESHOLD)
    return total


def show_differences(total: Differences) -> Table:
    table = Table(title=f"{total.pictures} pictures, {len(total.cosines)} faces")
    for column in ("difference", *(f"{q:.0%}" for q in QUANTILES), "worst"):
        table.add_column(column, justify="right")
    worse = {"box, px": total.boxes, "landmarks, px": total.landmarks, "score": total.scores}
    for name, values in {**worse, "1 - cosine": [1 - value for value in total.cosines]}.items():
        table.add_row(name, *(f"{np.quantile(values, q):.2e}" for q in (*QUANTILES, 1.0)))
    sizes = ", ".join(f"{size}: {number}" for size, number in sorted(total.sizes.items(), reverse=True))
    table.caption = (
        f"missed {total.missed}, extra {total.extra}, other largest face {total.other_largest}; "
        f"pictures by detection size {sizes}"
    )
    return table


def show_speed(rows: list[Row]) -> Table:
    table = Table(title="one photo, detection and recognition, milliseconds; ratio: insightface / face graph")
    for column in (
        "provider",
        "threads",
        "faces",
        "face graph",
        "insightface",
        "insightface / face graph",
        "in CPU time",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        times = f"{row.graph_ms:.1f}", f"{row.insightface_ms:.1f}", f"{row.ratio:.3f}", f"{row.cpu_ratio:.3f}"
        table.add_row(row.provider.removesuffix("ExecutionProvider"), str(row.threads), str(row.faces), *times)
    return table


def main(
    parity: Annotated[bool, typer.Option(help="Print differences instead of times.")] = False,
    full: Annotated[bool, typer.Option(help="With --parity: full-size random networks.")] = False,
    pictures: Annotated[int, typer.Option(min=1, help="With --parity: how many pictures.")] = 240,
    seed: Annotated[int, typer.Option(help="With --parity: of the pictures.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Interleaved runs of each side.")] = 21,
    faces: Annotated[list[int], typer.Option(help="About how many faces the detector finds.")] = [1, 6],  # noqa: B006
    threads: Annotated[list[int], typer.Option(help="Threads of either side on a CPU.")] = [1, 2],  # noqa: B006
    output: Annotated[Path, typer.Option(help="Folder of the JSON.")] = Path("bench/results"),
) -> None:
    """Print one table and write its numbers as JSON."""
    cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: Any
        if parity:
            provider = "CUDAExecutionProvider" if cuda else "CPUExecutionProvider"
            total = differences(folder, full, pictures, seed, provider)
            table, result = show_differences(total), asdict(total)
        else:
            cases = [("CPUExecutionProvider", count) for count in threads]
            cases += [("CUDAExecutionProvider", 1)] if cuda else []
            rows = [measure_speed(folder, count, *case, rounds) for count in faces for case in cases]
            table, result = show_speed(rows), [asdict(row) for row in rows]
    Console().print(table)
    (output / f"face_{'parity' if parity else 'speed'}.json").write_text(json.dumps(result, indent=1))


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds and CPU seconds of one call."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def _empty_folder(folder: Path) -> Path:
    """Make the folder, or empty it."""
    for path in folder.glob("*"):
        path.unlink()
    folder.mkdir(exist_ok=True)
    return folder


if __name__ == "__main__":
    typer.run(main)
