"""InstantID at full size on one GPU: our model in each mode beside diffusers' pipeline, in one run.

`python bench/gpu.py` needs torch, diffusers, transformers and this repository on PYTHONPATH (`src:.`), no network: it
makes `weights/random-full` on the device where missing. `--toy` runs the same on a CPU with small weights. Parts, in
the order in which they matter on a lease of a few minutes:

    parity   final latents of ours and of diffusers' pipeline, both float32 without TF32
    speed    seconds a picture of the plain loop, eager, graphs and the other modes, and how far the latents are off
    costs    seconds of one step per area and rows, in the form that `bench/simulate.py --costs` reads
    memory   bytes of a request, of a step, of a decoding
    decode   float32 against bfloat16 decoding, milliseconds and levels of 255
    pieces   text, start, attention kernels
    cold     seconds from process start to the first picture

The JSON is written after every part, and after every mode of `speed`: a run that was cut off goes on where it stopped,
with `--resume`. Compiling takes minutes a mode: name those modes with `--modes`.
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
from gpu_jobs import paint, run_steps
from gpu_modes import MODES, Mode, use
from gpu_pieces import decoding, memory, pieces
from gpu_setup import Setup
from gpu_table import show
from plain_loop import PlainLoop

from instantid.errors import ServiceError
from instantid.models.measure import measure_costs, use_fastest_execution
from instantid.models.sdxl import SdxlModel

PARTS = ("parity", "speed", "costs", "memory", "decode", "pieces", "cold")
SPEED_MODES = tuple(name for name, mode in MODES.items() if not mode.compiled)
COLD_MODES = ("eager",)
TFLOP_A_PICTURE = 595.6
"""1024x1024, 30 steps with guidance, text and decoding included (counted; 1 multiply-add = 2)."""
PEAK_TFLOPS = 790.0
"""bfloat16 and float16 matrix products on an H100 or H200, as others measured them."""


def parity(setup: Setup) -> dict[str, Any]:
    """Relative error of final latents, ours against the pipeline, in float32 without TF32."""
    expected = setup.expected()
    found = run_steps(setup.model(torch.float32), setup.job(0)).latents.cpu()
    return {"float32": relative(found, expected), "steps": setup.steps, "size": setup.size}


def speed(setup: Setup, modes: dict[str, Mode]) -> dict[str, Any]:
    expected = setup.expected()
    setup.mark_memory()
    plain = PlainLoop(setup.weights, setup.device, setup.dtype)
    setup.reset_peak()
    plain.picture(setup.job(0))
    yardstick = {"error": relative(plain.latents(setup.job(0)), expected), "peak_gib": setup.peak()}
    setup.mark_memory()
    model = setup.model(setup.dtype)
    found: dict[str, Any] = {"size": setup.size, "steps": setup.steps, "dtype": str(setup.dtype), "plain": yardstick}
    found["fastest"] = use_fastest_execution(model, setup.size)
    for name, mode in modes.items():
        setup.say(name)
        found["modes"] = {name: _tried(lambda mode=mode: _speed_of(setup, mode, plain, model, expected))}
        setup.keep("speed", found)
    return found


def _speed_of(setup: Setup, mode: Mode, plain: PlainLoop, model: SdxlModel, expected: torch.Tensor) -> dict[str, float]:
    use(model, mode, [(setup.size, 2)])
    setup.free()
    setup.reset_peak()
    first = setup.timed(lambda: paint(model, setup.job(0)))
    error = relative(run_steps(model, setup.job(0)).latents.cpu(), expected)
    peak = setup.peak()
    pairs = [
        (setup.timed(lambda n=n: plain.picture(setup.job(n))), setup.timed(lambda n=n: paint(model, setup.job(n))))
        for n in range(1, setup.rounds + 1)
    ]
    state = model.start(*setup.job(0))
    steps = [model.work("step", [state]).wait() for _ in range(setup.steps)]
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


def costs(setup: Setup, name: str, mode: Mode) -> dict[str, Any]:
    """Writes `gpu_costs_<mode>.json`; steps of requests without guidance, one row each."""
    model = setup.model(setup.dtype)
    shapes = [(size, rows) for size in setup.cost_sizes for rows in setup.cost_rows]
    use(model, mode, shapes)
    table = measure_costs(model, setup.cost_sizes, setup.cost_rows)
    table.save(setup.output / f"gpu_costs_{name}.json")
    return {f"{kind} {round(area**0.5)}": dict(points) for (kind, area), points in table.measured.items()}


def _cold(setup: Setup, name: str) -> dict[str, Any]:
    choices = {"device": setup.device, "dtype": str(setup.dtype).removeprefix("torch."), "mode": name}
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
    rounds: Annotated[int, typer.Option(min=1, help="Pictures of each side, alternating.")] = 3,
    steps: Annotated[int, typer.Option(min=1, max=100)] = 30,
    output: Annotated[Path, typer.Option(help="Folder of the JSON.")] = Path("bench/results"),
    resume: Annotated[bool, typer.Option(help="Leave out parts that the JSON has already.")] = False,
) -> None:
    """Measure, print one table, keep the numbers as JSON; parts and modes of earlier runs are kept beside new ones."""
    setup = Setup.make(toy, weights, steps, rounds, output)
    chosen: Callable[[Sequence[str]], dict[str, Mode]] = lambda default: _chosen(modes, default, setup)  # noqa: E731
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "parity": lambda: parity(setup),
        "speed": lambda: speed(setup, chosen(SPEED_MODES)),
        "costs": lambda: {name: costs(setup, name, mode) for name, mode in chosen(setup.cost_modes).items()},
        "memory": lambda: memory(setup),
        "decode": lambda: decoding(setup),
        "pieces": lambda: pieces(setup),
        "cold": lambda: {name: _cold(setup, name) for name in chosen(COLD_MODES)},
    }
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    setup.make_weights()
    for part in _names(parts):
        if resume and part in setup.results:
            continue
        setup.say(part)
        setup.keep(part, work[part]())
        setup.free()
    show(setup.results)


def _chosen(modes: str, default: Sequence[str], setup: Setup) -> dict[str, Mode]:
    """The named modes, or those of the default that make sense on this device."""
    if modes:
        return {name: MODES[name] for name in _names(modes)}
    return {name: MODES[name] for name in default if setup.is_cuda or not MODES[name].needs_cuda}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
