"""`make demo`: one photo through the whole ensemble on the embedded server."""

import io
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc as grpc_client
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage import data

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from build_tools.sheet import draw_sheet
from build_tools.weights import make_miniature
from instantid.profile import FILE_NAME
from instantid_client import GenerationResult, InstantIDClient

PROMPT = "a portrait of an astronaut in a garden, oil painting"
STAGES = ("intake", "face_analysis", "face_conditioning")


def run_demo(weights: Path, output: Path) -> None:
    """Make what is missing, serve, generate, and write `demo.png` and `demo_sheet.png` into `output`."""
    console = Console()
    seconds: dict[str, float] = {}
    output.mkdir(parents=True, exist_ok=True)
    if not (weights / FILE_NAME).is_file():
        with _stage(console, seconds, "make the weights"):
            make_miniature(weights)
    photo = data.astronaut()
    server = EmbeddedServer(project_options(weights, output / "server"))
    with _stage(console, seconds, "start the server"):
        server.start()
    with server, InstantIDClient(server.grpc_url) as client:
        with _stage(console, seconds, "request"):
            result = client.generate(_encode(photo), PROMPT, seed=7)
        seconds |= _stage_seconds(server.grpc_url, result.seconds)
    picture, sheet = output / "demo.png", output / "demo_sheet.png"
    picture.write_bytes(result.images[0])
    draw_sheet(photo, result).save(sheet)
    _report(console, seconds, result)
    console.print(f"picture {picture}\nsheet   {sheet}\nlog     {server.log_path}", highlight=False)


@contextmanager
def _stage(console: Console, seconds: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    with console.status(name):
        yield
    seconds[name] = time.perf_counter() - start


def _encode(photo: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "PNG")
    return buffer.getvalue()


def _stage_seconds(url: str, total: float) -> Mapping[str, float]:
    """Seconds inside the blocking stages by Triton's own count; the rest is the denoiser's, transport included."""
    with grpc_client.InferenceServerClient(url) as client:
        statistics = {name: client.get_inference_statistics(name).model_stats[0] for name in STAGES}
    spent = {f"  {name}": stats.inference_stats.success.ns / 1e9 for name, stats in statistics.items()}
    return {**spent, "  denoiser": total - sum(spent.values())}


def _report(console: Console, seconds: Mapping[str, float], result: GenerationResult) -> None:
    table = Table("stage", "seconds", box=None)
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    face = result.face
    console.print(f"face {face.score:.2f} at {[round(x) for x in face.box]}, seed {result.seeds[0]}", highlight=False)
