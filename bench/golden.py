"""The same 48 requests before and after a change: seeds, faces and pixels must be the same to the last bit.

Take two checkouts on one machine (float sums differ between processors), one before the change and one after it. In
each run `make serve`, and beside it

    python bench/golden.py --url localhost:8001 --output before.json
    python bench/golden.py --url localhost:8001 --output after.json --compare before.json

Only tritonclient and the public contract are used, so that any commit can be asked. Exit code 1 if anything differs.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc as triton
import typer
from PIL import Image
from rich.progress import track
from skimage import data

KINDS = {"seed": "INT64", "num_inference_steps": "INT32", "width": "INT32", "height": "INT32"} | {
    "num_images_per_prompt": "INT32", "output_quality": "INT32",
}  # fmt: skip
SCHEDULERS = ("euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "unipc", "heun", "lcm")
"""Not ddim: its pictures were wrong before the faults of 2026-11 were mended."""
PROMPTS = ("a photo of a person, blue suit, garden", "a photo of a person, smiling, red crew neck, night", "a portrait")


def photos() -> list[bytes]:
    """The astronaut whole, cropped, mirrored and small, as PNG."""
    whole = data.astronaut()
    views = (whole, whole[:300, 80:380], whole[:, ::-1], whole[::2, ::2])
    return [_png(view) for view in views]


def requests() -> Iterator[dict[str, Any]]:
    """48 requests of all kinds; each is a dict of inputs by contract name."""
    seen = photos()
    for i in range(48):
        request: dict[str, Any] = {
            "photo": [seen[i % 4]] if i % 5 else seen[:2],
            "prompt": PROMPTS[i % 3],
            "seed": 1000 + i,
            "num_inference_steps": 3 + i % 6,
            "scheduler": SCHEDULERS[i % 7],
        }
        yield request | _special(i, seen)


def _special(i: int, seen: list[bytes]) -> dict[str, Any]:
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"pose_photo": seen[(i + 1) % 4]},
        {"width": 192, "height": 128},
        {"control_guidance_start": 0.2, "control_guidance_end": 0.7},
        {"num_images_per_prompt": 2},
        {"guidance_scale": 1.0, "negative_prompt": "blurry"},
        {"ip_adapter_scale": 0.3, "controlnet_conditioning_scale": 1.2},
        {"width": 64, "height": 192, "output_format": "webp", "output_quality": 80},
        {"output_format": "jpeg", "negative_prompt": "a hat", "guidance_scale": 7.5},
        {"controlnet_conditioning_scale": 0.0},
        {"ip_adapter_scale": 0.0, "width": 256, "height": 256},
    )
    return kinds[i % len(kinds)]


def fingerprints(client: triton.InferenceServerClient, request: dict[str, Any]) -> dict[str, Any]:
    """sha256 of each picture's pixels, with the seeds and the face report."""
    inputs = [_tensor(name, value) for name, value in request.items()]
    answer = client.infer("instantid", inputs, client_timeout=600)
    pictures = [np.asarray(Image.open(io.BytesIO(item))) for item in answer.as_numpy("image").reshape(-1)]
    return {
        "pixels": [hashlib.sha256(repr(p.shape).encode() + p.tobytes()).hexdigest() for p in pictures],
        "seeds": answer.as_numpy("seeds").reshape(-1).tolist(),
        "face": json.loads(answer.as_numpy("face").reshape(-1)[0]),
    }


def _tensor(name: str, value: Any) -> triton.InferInput:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], (str, bytes)):
        array = np.array([v.encode() if isinstance(v, str) else v for v in values], object)
        kind = "BYTES"
    else:
        kind = KINDS.get(name, "FP32")
        array = np.array(values, {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32}[kind])
    return triton.InferInput(name, list(array.shape), kind).set_data_from_numpy(array)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG")
    return buffer.getvalue()


def main(
    output: Annotated[Path, typer.Option(help="JSON of what the server answered.")],
    url: Annotated[str, typer.Option(help="gRPC address of a running server.")] = "localhost:8001",
    compare: Annotated[Path | None, typer.Option(help="JSON of an earlier run; differences are an error.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at once; 1 lets each run alone.", min=1)] = 1,
) -> None:
    with triton.InferenceServerClient(url) as client, ThreadPoolExecutor(concurrency) as pool:
        answers = pool.map(lambda request: fingerprints(client, request), requests())
        found = list(track(answers, "golden", total=48))
    output.write_text(json.dumps(found, indent=1) + "\n")
    if compare:
        pairs = list(zip(found, json.loads(compare.read_text()), strict=True))
        differing = [i for i, (now, before) in enumerate(pairs) if now != before]
        typer.echo(f"{len(pairs) - len(differing)} of {len(pairs)} equal; different: {differing}")
        raise typer.Exit(bool(differing))


if __name__ == "__main__":
    typer.run(main)
