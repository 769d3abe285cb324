"""Measures the scheduler on the real server, where `bench/simulate.py` predicts it.

Two embedded servers with the miniature weights, one with the engine's policy and one that serves first come, first
served, get the same requests at the same times, one server after the other. So do a server with a flooding tenant and
one without. Requests go to the denoiser itself, so that only it is measured,
signed with the server's key, which this user can read. Every figure is a ratio to the time that
a request of the same number of steps took alone on the first server. `python bench/scheduling.py --help`.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tritonclient.grpc as triton
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tritonclient.utils import InferenceServerException

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from instantid.request import GenerationRequest
from instantid.serving.board import server_folder
from instantid.serving.signing import Signer

ROOT = Path(__file__).parents[1]
FIRST_COME = """
from instantid.engine import Policy
from instantid.serving.denoiser import DenoiserModel


class FirstCome(Policy):
    def first(self, tasks, now):
        return min(tasks, key=lambda task: task.arrived)

    def pick(self, tasks, now):
        return [self.first(tasks, now)]


class TritonPythonModel(DenoiserModel):
    make_policy = FirstCome
"""


@dataclass(frozen=True)
class Class:
    """A kind of request: its share of the load, its steps, its tenant, and the load that it sends beyond its share."""

    name: str
    share: float
    steps: int
    tenant: str = "default"
    flood: float = 0.0


STEPS = (Class("30 steps", 0.8, 30), Class("8 steps", 0.2, 8))
TENANTS = tuple(Class(f"tenant {name}", 0.2, 10, name) for name in "abcde")
FLOOD = (*TENANTS[:-1], replace(TENANTS[-1], flood=1.8))
"""The last of five tenants sends ten times its share; the others send the same as in TENANTS."""
RUNS = (
    ("steps, this engine", STEPS, False),
    ("steps, first come", STEPS, True),
    ("five tenants", TENANTS, False),
    ("the fifth floods", FLOOD, False),
)
"""Title, mix, and whether the server serves first come, first served."""
CONSOLE = Console(stderr=True)


class Caller:
    """Sends requests to one server's denoiser at given times and notes the seconds until each answer."""

    def __init__(self, server: EmbeddedServer, size: int) -> None:
        self.client = triton.InferenceServerClient(server.grpc_url)
        self.signer = Signer(server_folder(server.pid))
        self.size = size

    def send(self, kind: Class, seed: int) -> Future[float]:
        """The future seconds to the answer; its exception is the server's refusal."""
        future: Future[float] = Future()
        began = time.perf_counter()

        def answered(result: Any, error: InferenceServerException | None) -> None:
            if error is None:
                future.set_result(time.perf_counter() - began)
            else:
                future.set_exception(error)

        self.client.async_infer("denoiser", self._inputs(kind, seed), answered)
        return future

    def solo(self, kind: Class, repeats: int = 7) -> float:
        """Median seconds of a request that is alone on the server."""
        turns = track(range(repeats), f"{kind.steps} steps alone", console=CONSOLE)
        return float(np.median([self.send(kind, seed).result() for seed in turns]))

    def _inputs(self, kind: Class, seed: int) -> list[triton.InferInput]:
        request = GenerationRequest(
            prompt="a portrait", height=self.size, width=self.size, num_inference_steps=kind.steps, seed=seed,
            tenant=kind.tenant,
        )  # fmt: skip
        text, embeddings = request.to_json(), np.ones((1, 1, 512), np.float32)
        pictures = np.zeros((1, 1, self.size, self.size, 3), np.uint8)
        conditioned = self.signer.sign(text, embeddings, pictures)
        return [
            _tensor("request", np.array([[self.signer.sign(text)]], object), "BYTES"),
            _tensor("conditioned_request", np.array([[conditioned]], object), "BYTES"),
            _tensor("embeddings", embeddings, "FP32"),
            _tensor("pictures", pictures, "UINT8"),
        ]


def _tensor(name: str, values: Any, datatype: str) -> triton.InferInput:
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def arrivals(mix: Sequence[Class], solo: Mapping[int, float], load: float, seconds: float) -> list[Any]:
    """Poisson arrivals of each class over `seconds`; the shares are `load` of what the device can do, floods on top.

    `solo` gives the seconds of a request alone by its number of steps.
    """
    work = []
    base = load / sum(kind.share * solo[kind.steps] for kind in mix)
    for i, kind in enumerate(mix):
        rng, now = random.Random(i), 0.0
        while (now := now + rng.expovariate(base * (kind.share + kind.flood))) < seconds:
            work.append((now, kind))
    return sorted(work, key=lambda item: item[0])


def drive(
    caller: Caller, work: Sequence[tuple[float, Class]], name: str, warm_up: float
) -> tuple[dict[str, list[float]], int]:
    """Send the work; returns the seconds of answered requests by class and the number of refused ones, both without
    those sent during the warm-up."""
    sent = []
    began = time.perf_counter()
    for seed, (at, kind) in enumerate(track(work, name, console=CONSOLE)):
        time.sleep(max(0.0, began + at - time.perf_counter()))
        sent.append((at, kind, caller.send(kind, seed)))
    seconds: dict[str, list[float]] = {}
    refused = 0
    for at, kind, future in sent:
        if at < warm_up:
            continue
        if future.exception() is None:
            seconds.setdefault(kind.name, []).append(future.result())
        else:
            refused += 1
    return seconds, refused


@contextmanager
def serving(weights: Path, first_come: bool) -> Iterator[EmbeddedServer]:
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name) / "models"
        shutil.copytree(ROOT / "model_repository", repository)
        if first_come:
            (repository / "denoiser" / "1" / "model.py").write_text(FIRST_COME)
        with EmbeddedServer(project_options(weights, Path(name) / "run", repository)) as server:
            yield server


def main(
    weights: Annotated[Path, typer.Option(help="Folder of one set of weights.")] = Path("weights/miniature"),
    seconds: Annotated[float, typer.Option(help="Length of each of the four runs.")] = 180.0,
    load: Annotated[float, typer.Option(help="Share of what the device can do.")] = 0.8,
    warm_up: Annotated[float, typer.Option(help="Seconds at the start that do not count: a flood has credit.")] = 60.0,
    mixes: Annotated[str, typer.Option(help="steps, tenants or all.")] = "all",
    size: Annotated[int, typer.Option(help="Side of the pictures.")] = 128,
) -> None:
    """Print, for each class, times relative to its solo time."""
    solo: dict[int, float] = {}
    table = Table("run", "class", "requests", "mean / solo", "p50 / solo", "p95 / solo", "p99 / solo")
    for title, mix, first_come in RUNS:
        if mixes not in ("all", "steps" if mix is STEPS else "tenants"):
            continue
        CONSOLE.print(f"{title}: starting the server, then {seconds:.0f} s of requests")
        with serving(weights, first_come) as server:
            caller = Caller(server, size)
            for steps, kind in {kind.steps: kind for kind in mix}.items():
                solo[steps] = solo.get(steps) or caller.solo(kind)
            found, refused = drive(caller, arrivals(mix, solo, load, seconds), title, warm_up)
        show(table, title, {k.name: np.array(found[k.name]) / solo[k.steps] for k in mix if k.name in found}, refused)
    Console().print(table)


def show(table: Table, run: str, ratios: Mapping[str, Any], refused: int) -> None:
    together = [values for name, values in ratios.items() if name in {f"tenant {tenant}" for tenant in "abcd"}]
    rows = {**ratios, "a to d": np.concatenate(together)} if together else ratios
    for name, values in rows.items():
        row = (values.mean(), *np.percentile(values, (50, 95, 99)))
        table.add_row(run, name, str(len(values)), *(f"{value:.2f}" for value in row))
    table.add_row(run, f"{refused} refused", end_section=True)


if __name__ == "__main__":
    typer.run(main)
