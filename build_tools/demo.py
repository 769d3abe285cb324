"""`make demo`: paints three people in two scenes each, through the whole ensemble on the embedded server."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc_client
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from build_tools.sheet import draw_sheet
from build_tools.weights import make_miniature
from instantid.profile import FILE_NAME
from instantid_client import GenerationResult, InstantIDClient
from miniature.album import draw_page
from miniature.drawing import as_png
from miniature.people import random_identity

PROMPTS = ("a photo of a person, blue suit, garden", "a photo of a person, smiling, red crew neck, night")
DRAWN = {"anna": 90001, "ben": 90013}
STAGES = ("intake", "face_analysis", "face_conditioning")


def run_demo(weights: Path, output: Path) -> None:
    """Make the weights if they are missing, serve, and write the pictures and `demo_sheet.png` into `output`."""
    console = Console(highlight=False)
    seconds: dict[str, float] = {}
    output.mkdir(parents=True, exist_ok=True)
    if not (weights / FILE_NAME).is_file():
        with _stage(console, seconds, "make the weights"):
            make_miniature(weights, console.print)
    server = EmbeddedServer(project_options(weights, output / "server"), console.print)
    with _stage(console, seconds, "start the server"):
        server.start()
    with server, InstantIDClient(server.grpc_url) as client:
        photos = demo_photos()
        requests = [(name, photo, prompt) for name, photo in photos.items() for prompt in PROMPTS]
        results: dict[str, list[GenerationResult]] = {name: [] for name in photos}
        with _stage(console, seconds, f"paint {len(requests)} pictures"):
            for name, photo, prompt in track(requests, "painting", console=console):
                results[name].append(client.generate(as_png(photo), prompt, seed=7))
        seconds |= _stage_seconds(server.grpc_url)
    _write(output, photos, results)
    _report(console, seconds, results)
    console.print(f"pictures {output}/demo_*.png\nsheet    {output}/demo_sheet.png\nlog      {server.log_path}")


def demo_photos() -> dict[str, np.ndarray]:
    """Head and shoulders, RGB: the astronaut, and two drawn people that no training used."""
    drawn = {name: draw_page(random_identity(person), person, 256, style="photo") for name, person in DRAWN.items()}
    return {"astronaut": data.astronaut()[20:220, 126:326], **{name: page.picture for name, page in drawn.items()}}


def _write(output: Path, photos: Mapping[str, np.ndarray], results: Mapping[str, list[GenerationResult]]) -> None:
    for name, painted in results.items():
        for i, result in enumerate(painted):
            (output / f"demo_{name}_{i}.png").write_bytes(result.images[0])
    draw_sheet([(photos[name], painted) for name, painted in results.items()], PROMPTS).save(output / "demo_sheet.png")


@contextmanager
def _stage(console: Console, seconds: dict[str, float], name: str) -> Iterator[None]:
    console.print(f"{name} ...")
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _stage_seconds(url: str) -> Mapping[str, float]:
    """Seconds that all requests together spent in the blocking stages, from Triton's statistics."""
    with grpc_client.InferenceServerClient(url) as client:
        statistics = {name: client.get_inference_statistics(name).model_stats[0] for name in STAGES}
    return {f"  {name}": stats.inference_stats.success.ns / 1e9 for name, stats in statistics.items()}


def _report(console: Console, seconds: Mapping[str, float], results: Mapping[str, list[GenerationResult]]) -> None:
    table = Table("stage", "seconds", box=None)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    for name, painted in results.items():
        face = painted[0].face
        console.print(f"{name}: face {face.score:.2f} at {[round(x) for x in face.box]}")
