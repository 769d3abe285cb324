"""The project's own models on an embedded server, as a call and as the command behind `make serve`."""

import dataclasses
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from build_tools.embedded.repository import assemble_repository
from build_tools.embedded.server import EmbeddedServer, EmbeddedServerError, Ports, ServerOptions

MODEL = "instantid"


def project_options(
    weights: Path, run_dir: Path, repository: Path = Path("model_repository"), **changes: Any
) -> ServerOptions:
    """Options of a server with one set of weights; assembles `run_dir/repository` from the literal folders.

    `changes` are fields of ServerOptions. Raises FileNotFoundError if the weights have no `face_analysis.onnx`.
    """
    assembled = assemble_repository(repository, weights / "face_analysis.onnx", run_dir / "repository")
    environment = {"INSTANTID_WEIGHTS": str(weights.resolve()), **changes.pop("environment", {})}
    options = ServerOptions(assembled, run_dir, ready_model=MODEL, environment=environment)
    return dataclasses.replace(options, **changes)


def serve_command(
    weights: Annotated[Path, typer.Option(help="Folder of one set of weights.")] = Path("weights/miniature"),
    repository: Annotated[Path, typer.Option(help="Model folders.")] = Path("model_repository"),
    run_dir: Annotated[Path, typer.Option(help="Receives repository, log and state.")] = Path("run"),
    config_name: Annotated[str, typer.Option(help="configs/NAME.pbtxt of each model; empty for GPUs.")] = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    first_port: Annotated[int, typer.Option(help="HTTP; gRPC and metrics take the next two.")] = 8000,
    supervise: Annotated[bool, typer.Option(help="Start a server again that ended by itself.")] = True,
    log_verbosity: Annotated[int, typer.Option(help="Triton's --log-verbose.", min=0)] = 0,
) -> None:
    """Serve one set of weights in the foreground until Ctrl-C or SIGTERM; a second one waits for no request."""
    console = Console(stderr=True)
    ports = Ports(grpc=first_port + 1, http=first_port, metrics=first_port + 2)
    try:
        options = project_options(
            weights, run_dir, repository, config_name=config_name, host=host, ports=ports,
            supervise=supervise, log_verbosity=log_verbosity,
        )  # fmt: skip
        code = serve(options, console)
    except (EmbeddedServerError, FileNotFoundError, FileExistsError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def serve(options: ServerOptions, console: Console) -> int:
    """Run the server until it ends for good (its exit code) or this process is told to stop (0)."""
    previous = {number: signal.signal(number, _interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with console.status("starting") as status:
            server = EmbeddedServer(options, lambda message: status.update(message))
            server.start()
        with server:
            _announce(server, console)
            return server.wait()
    except KeyboardInterrupt:
        console.print("stopped")
        return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _announce(server: EmbeddedServer, console: Console) -> None:
    console.print(f"gRPC {server.grpc_url}  metrics {server.metrics_url}  log {server.log_path}", highlight=False)
    call = f'instantid generate PHOTO --prompt "a portrait" --url {server.grpc_url} -o out.png'
    console.print(f"\n  {call}\n\nCtrl-C stops the server.", highlight=False, soft_wrap=True)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
