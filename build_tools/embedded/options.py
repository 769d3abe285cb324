"""What a caller may set for one embedded server, and the errors that starting it can raise."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


class EmbeddedServerError(RuntimeError):
    """The server cannot start, did not become ready, or ended; the message says what to do or shows the log."""


class PreflightError(EmbeddedServerError):
    """This machine lacks something the server needs; one line for each thing that is missing."""


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports; 0 takes a free one."""

    grpc: int = 0
    http: int = 0
    metrics: int = 0


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """One server on one model repository.

    `run_dir` receives the backend directory, the log and the state file; two running servers cannot share one.
    `exit_timeout` in seconds is how long requests in flight may take to finish when the server stops.
    `ready_model` is the model that must be ready before `start` returns; None waits for the whole server.
    `host` is the address to listen on; on another than loopback, administration is closed by a key that is drawn.
    `config_name` chooses configs/NAME.pbtxt of each model; empty takes config.pbtxt, which is for GPUs.
    `supervise` starts a server again that ended by itself.
    `minimum_memory` is in bytes; less available memory than that is reported before the start.
    """

    repository: Path
    run_dir: Path
    config_name: str = "cpu"
    ready_model: str | None = None
    host: str = "127.0.0.1"
    ports: Ports = Ports()
    log_path: Path | None = None
    log_verbosity: int = 0
    exit_timeout: int = 30
    ready_timeout: float = 600.0
    supervise: bool = False
    minimum_memory: int = 1 << 30
    extra_args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        return self.log_path or self.run_dir / "server.log"
