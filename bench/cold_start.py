"""From process start to the first picture, stage by stage, on whatever machine this runs.

`python bench/cold_start.py weights/miniature` starts two processes: one with nothing in memory (the files of the
weights are dropped from the page cache) and nothing kept, one that finds files and step costs of the first.
`--server` adds the embedded server, from its start until it is ready. On a GPU: `--device cuda`.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

STARTS = ("nothing kept", "files and caches kept")


def main(
    weights: Annotated[Path, typer.Argument(help="A set; bench/random_full.py makes one of SDXL's size.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    side: Annotated[int, typer.Option(help="Of the first picture, in pixels.")] = 0,
    steps: Annotated[int, typer.Option(min=1, max=100)] = 4,
    calibrate: Annotated[bool, typer.Option(help="Measure step costs as serving does.")] = True,
    server: Annotated[bool, typer.Option(help="Also the embedded server.")] = False,
) -> None:
    """Print seconds for each stage of both starts."""
    options = ["--device", device, "--dtype", dtype, "--side", str(side), "--steps", str(steps)]
    found = starts(weights, [*options, "--calibrate" if calibrate else "--no-calibrate"])
    if server:
        for name in STARTS:
            found[name]["embedded server, until ready"] = _serve(weights, keep=name == STARTS[1])
    table = Table("seconds", *STARTS, title=f"{weights}, {device}, {dtype}")
    for stage in found[STARTS[0]]:
        table.add_row(stage, *(f"{found[name][stage]:.2f}" for name in STARTS))
    Console(width=100).print(table)


def starts(weights: Path, options: list[str]) -> dict[str, dict[str, float]]:
    """Seconds of each stage in two new processes, each with the options of `first_picture.py`."""
    with tempfile.TemporaryDirectory() as cache:
        return {name: _start(weights, [*options, "--cache", cache], keep=name == STARTS[1]) for name in STARTS}


def _start(weights: Path, options: list[str], keep: bool) -> dict[str, float]:
    if not keep:
        _forget(weights)
    cache = options[options.index("--cache") + 1]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    Console(stderr=True).print(f"a new process, {STARTS[keep]}")
    begun = time.time()
    command = [sys.executable, str(Path(__file__).with_name("first_picture.py")), str(weights), *options]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    total = time.time() - begun
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {"interpreter, torch, diffusers": found.pop("imported") - begun, **found, "whole process": total}


def _forget(folder: Path) -> None:
    """Drop a folder's files from the page cache; files that another process has mapped stay."""
    for path in filter(Path.is_file, folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _serve(weights: Path, keep: bool) -> float:
    from build_tools.embedded.serve import project_options
    from build_tools.embedded.server import EmbeddedServer

    with tempfile.TemporaryDirectory() as run:
        options = project_options(weights, Path(run), environment={} if keep else {"INSTANTID_CACHE": run})
        begun = time.perf_counter()
        with EmbeddedServer(options):
            return time.perf_counter() - begun


if __name__ == "__main__":
    typer.run(main)
