"""InstantID at full size on one GPU: our denoiser in each mode beside diffusers' pipeline, in one run.

`python bench/gpu.py` needs torch, diffusers, transformers and this repository on PYTHONPATH (`src:.`), no network: it
makes `weights/random-full` on the device where missing. `--toy` runs the same on a CPU with small weights. Parts:

    parity   final latents of ours and of diffusers' pipeline, both float32
    speed    seconds a picture per mode, each beside the plain float16 loop, and how far the latents are off
    pieces   text, start, decoding, attention kernels, memory of one request
    costs    seconds of one step per size and rows, in the form that `bench/simulate.py --costs` reads
    cold     seconds from process start to the first picture, with an empty and with a filled compile cache

Compiling takes minutes a mode: `--parts` and `--modes` split the work; later runs add to the JSON.
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import diffusers
import torch
import transformers
import typer
from cold_start import starts
from gpu_jobs import run_steps
from gpu_modes import BY_NAME, Mode, use
from gpu_pieces import pieces
from gpu_setup import Setup
from gpu_table import show
from plain_loop import PlainLoop

from instantid.engine.calibrate import measure_costs
from instantid.errors import ServiceError
from instantid.models.sdxl import SdxlDenoiser

PARTS = ("parity", "speed", "pieces", "costs", "cold")
SPEED_MODES = tuple(BY_NAME)
COST_MODES = ("eager", "graphs")
COLD_MODES = ("eager", "compiled_graphs")
TFLOP_A_PICTURE = 595.6
"""1024x1024, 30 steps with guidance, text and decoding included (counted; 1 multiply-add = 2)."""
PEAK_TFLOPS = 790.0
"""bfloat16 and float16 matrix products on an H100 or H200, as others measured them."""


def parity(setup: Setup) -> dict[str, Any]:
    """Relative error of final latents, ours against the pipeline, in float32 without TF32."""
    expected = setup.expected()
    denoiser = setup.denoiser(torch.float32)
    found = run_steps(denoiser, setup.job(0)).latents.cpu()
    return {"float32": relative(found, expected), "steps": setup.steps, "size": setup.size}


def speed(setup: Setup, modes: list[Mode]) -> dict[str, Any]:
    expected = setup.expected()
    setup.mark_memory()
    plain = PlainLoop(setup.weights, setup.device, setup.dtype)
    setup.reset_peak()
    plain.picture(setup.job(0))
    yardstick = {"error": relative(plain.latents(setup.job(0)), expected), "peak_gib": setup.peak()}
    setup.mark_memory()
    denoiser = setup.denoiser(setup.dtype)
    rows = {}
    for mode in modes:
        setup.say(mode.name)
        rows[mode.name] = _tried(lambda mode=mode: _speed_of(setup, mode, plain, denoiser, expected))
    choices = {"size": setup.size, "steps": setup.steps, "dtype": str(setup.dtype)}
    return {**choices, "plain": yardstick, "modes": rows}


def _speed_of(
    setup: Setup, mode: Mode, plain: PlainLoop, denoiser: SdxlDenoiser, expected: torch.Tensor
) -> dict[str, float]:
    use(denoiser, mode)
    setup.free()
    setup.reset_peak()
    first = setup.timed(lambda: denoiser.decode(run_steps(denoiser, setup.job(0))))
    error = relative(run_steps(denoiser, setup.job(0)).latents.cpu(), expected)
    peak = setup.peak()
    pairs = [
        (
            setup.timed(lambda n=n: plain.picture(setup.job(n))),
            setup.timed(lambda n=n: denoiser.decode(run_steps(denoiser, setup.job(n)))),
        )
        for n in range(1, setup.rounds + 1)
    ]
    state = denoiser.start(setup.job(0))
    steps = [setup.timed(lambda: denoiser.step([state])) for _ in range(setup.steps)]
    ours = statistics.median(b for _, b in pairs)
    return {
        "seconds": ours,
        "plain_seconds": statistics.median(a for a, _ in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "step_ms": statistics.median(steps) * 1000,
        "first_seconds": first,
        "error": error,
        "peak_gib": peak,
        "share": TFLOP_A_PICTURE / ours / PEAK_TFLOPS if setup.is_standard else float("nan"),
    }


def costs(setup: Setup, mode: Mode) -> dict[str, Any]:
    """Writes `gpu_costs_<mode>.json`; steps of requests without guidance, one row each."""
    denoiser = setup.denoiser(setup.dtype)
    use(denoiser, mode)
    table = measure_costs(denoiser, setup.row_job, setup.cost_sizes, setup.cost_rows)
    table.save(setup.output / f"gpu_costs_{mode.name}.json")
    return {f"{height}x{width}": dict(points) for (height, width), points in table.seconds.items()}


def _cold(setup: Setup, mode: Mode) -> dict[str, Any]:
    choices = {"device": setup.device, "dtype": str(setup.dtype).removeprefix("torch."), "mode": mode.name}
    choices |= {"side": setup.size[0], "steps": setup.steps}
    return starts(setup.weights, ["--no-calibrate", *(f"--{name}={value}" for name, value in choices.items())])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """||found - expected|| / ||expected||; NaN if anything is not finite."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _tried(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A mode that this GPU cannot run is reported, and the others go on."""
    try:
        return call()
    except (RuntimeError, ServiceError) as error:
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}


def main(
    toy: Annotated[bool, typer.Option(help="Small weights and pictures; runs on a CPU.")] = False,
    weights: Annotated[Path | None, typer.Option(help="A set of weights; made where missing.")] = None,
    parts: Annotated[str, typer.Option(help="Which, separated by commas.")] = ",".join(PARTS),
    modes: Annotated[str, typer.Option(help="Of speed, costs and cold, by name.")] = "",
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32; float16 on a GPU.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Pictures of each side, alternating.")] = 5,
    steps: Annotated[int, typer.Option(min=1, max=100)] = 30,
    output: Annotated[Path, typer.Option(help="Folder of the JSON.")] = Path("bench/results"),
) -> None:
    """Measure, print one table, keep the numbers as JSON; parts and modes of earlier runs are kept beside new ones."""
    setup = Setup.make(toy, weights, dtype, steps, rounds, output)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "parity": lambda: parity(setup),
        "speed": lambda: speed(setup, _chosen(modes, SPEED_MODES, setup)),
        "pieces": lambda: pieces(setup),
        "costs": lambda: {mode.name: costs(setup, mode) for mode in _chosen(modes, COST_MODES, setup)},
        "cold": lambda: {mode.name: _cold(setup, mode) for mode in _chosen(modes, COLD_MODES, setup)},
    }
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    setup.make_weights()
    for part in _names(parts):
        setup.say(part)
        setup.keep(part, work[part]())
        setup.free()
    show(setup.results)


def _chosen(modes: str, default: Sequence[str], setup: Setup) -> list[Mode]:
    """The named modes, or those of the default that make sense on this device."""
    if modes:
        return [BY_NAME[name] for name in _names(modes)]
    return [
        mode for mode in map(BY_NAME.__getitem__, default) if setup.is_cuda or not (mode.needs_cuda or mode.compiled)
    ]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
