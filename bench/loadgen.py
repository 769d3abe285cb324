"""MLPerf LoadGen (scenarios Server and Offline) against a running server. Unverified: no result of MLCommons.

    python bench/loadgen.py server --target-qps 0.4      Poisson arrivals; valid if the latency limit is kept
    python bench/loadgen.py offline --expected-qps 0.4   everything at once; pictures a second

LoadGen draws arrivals and samples, times and judges them; samples are prompts with one photo, and each response is the
picture as it comes from the server. The rules of MLPerf for text-to-image (5,000 COCO prompts, 20 steps of SDXL, p99 of
20 s, FID and CLIP bounds, 10 minutes) do not cover InstantID, so figures compare only with others of this script.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import mlperf_loadgen as loadgen
import numpy as np
import typer
from rich.console import Console

from instantid_client import InstantIDClient, InstantIDError

PHOTO = Path(__file__).parents[1] / "loadtest" / "data" / "astronaut.jpg"
NOTICE = "Unverified: MLPerf LoadGen without the benchmark's rules; not a result of MLCommons."
app = typer.Typer(add_completion=False, help=__doc__)
console = Console(stderr=True, highlight=False)

Url = Annotated[str, typer.Option(help="The server's gRPC address.")]
Seconds = Annotated[float, typer.Option(help="Least length of the run.")]
Queries = Annotated[int, typer.Option(help="Fewest queries of the run.")]
Steps = Annotated[int, typer.Option(help="Steps of a picture.")]
Output = Annotated[Path, typer.Option(help="Receives LoadGen's logs.")]


@dataclass
class Server:
    """The system under test: each sample is one request on a thread of its own, up to `most` at once."""

    url: str
    steps: int
    most: int = 256
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._client = InstantIDClient(self.url, timeout=3600)
        self._threads = ThreadPoolExecutor(self.most)
        self._photo = PHOTO.read_bytes()
        self._lock = threading.Lock()

    def issue(self, samples: Sequence[Any]) -> None:
        for sample in samples:
            self._threads.submit(self._answer, sample.id, sample.index)

    def close(self) -> None:
        self._threads.shutdown()
        self._client.close()

    def generate(self, index: int) -> bytes:
        result = self._client.generate(
            self._photo, f"portrait number {index}", num_inference_steps=self.steps, seed=index
        )
        return result.images[0]

    def _answer(self, identity: int, index: int) -> None:
        """Complete a sample in every case: LoadGen waits for each, and a failure makes the run invalid."""
        try:
            image = np.frombuffer(self.generate(index), np.uint8)
        except InstantIDError as error:
            image = np.zeros(1, np.uint8)
            with self._lock:
                self.failures.append(f"{type(error).__name__}: {error}")
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(identity, image.ctypes.data, image.nbytes)])


@contextmanager
def system(server: Server, samples: int) -> Iterator[tuple[Any, Any]]:
    """LoadGen's handles of the system under test and of the library of samples."""
    sut = loadgen.ConstructSUT(server.issue, lambda: None)
    library = loadgen.ConstructQSL(samples, samples, lambda indices: None, lambda indices: None)
    try:
        yield sut, library
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(sut)
        server.close()


def drive(settings: Any, server: Server, output: Path, samples: int = 64) -> str:
    """Run LoadGen and return its summary. Exits with 1 if it calls the run invalid or a request failed."""
    output.mkdir(parents=True, exist_ok=True)
    log = loadgen.LogSettings()
    log.log_output.outdir = str(output)
    log.log_output.copy_summary_to_stdout = False
    log.enable_trace = False
    console.print("one request before the run")
    server.generate(samples)
    with system(server, samples) as (sut, library):
        console.print(f"LoadGen runs for {settings.min_duration_ms / 1000:g} s at least; its logs: {output}")
        loadgen.StartTestWithLogSettings(sut, library, settings, log, "")
    summary = (output / "mlperf_log_summary.txt").read_text()
    print(f"{NOTICE}\n{summary}")
    if server.failures:
        print(f"{len(server.failures)} requests failed, so this run says nothing; the first: {server.failures[0]}")
    if server.failures or "Result is : VALID" not in summary:
        raise typer.Exit(1)
    return summary


@app.command("server")
def run_server(
    target_qps: Annotated[float, typer.Option(help="Requests a second of the Poisson process.")],
    url: Url = "localhost:8001",
    latency: Annotated[float, typer.Option(help="Seconds that the percentile may take.")] = 20.0,
    percentile: Annotated[float, typer.Option(help="Which percentile.")] = 0.99,
    seconds: Seconds = 60.0,
    queries: Queries = 20,
    steps: Steps = 20,
    output: Output = Path("out/loadgen/server"),
) -> None:
    """Poisson arrivals; latency counts from when LoadGen issues a query."""
    settings = _settings(loadgen.TestScenario.Server, seconds, queries)
    settings.server_target_qps = target_qps
    settings.server_target_latency_ns = int(latency * 1e9)
    settings.server_target_latency_percentile = percentile
    drive(settings, Server(url, steps), output)


@app.command("offline")
def run_offline(
    expected_qps: Annotated[float, typer.Option(help="From which the number of samples follows.")],
    url: Url = "localhost:8001",
    seconds: Seconds = 60.0,
    queries: Queries = 20,
    steps: Steps = 20,
    most: Annotated[int, typer.Option(help="Requests in progress; the rest waits here.")] = 16,
    output: Output = Path("out/loadgen/offline"),
) -> None:
    """All samples in one query; the result is pictures a second."""
    settings = _settings(loadgen.TestScenario.Offline, seconds, queries)
    settings.offline_expected_qps = expected_qps
    drive(settings, Server(url, steps, most), output)


def _settings(scenario: Any, seconds: float, queries: int) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario, settings.mode = scenario, loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = int(1000 * seconds), queries
    return settings


if __name__ == "__main__":
    app()
