"""Start, await and stop one embedded Triton server."""

import contextlib
import fcntl
import ipaddress
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

import tritonclient.grpc as grpc_client

from build_tools.embedded import layout, log, preflight
from build_tools.embedded.guard import EXIT_MARGIN_SECONDS, GuardSpec, GuardState, sweep
from build_tools.embedded.options import EmbeddedServerError, Ports, PreflightError, ServerOptions

__all__ = ["EmbeddedServer", "EmbeddedServerError", "Ports", "PreflightError", "ServerOptions"]

Progress = Callable[[str], None]
POLL_SECONDS = 0.1


def choose_ports(host: str, wanted: Ports) -> Ports:
    """Replace each 0 by a port that is free now."""
    with contextlib.ExitStack() as held:
        return Ports(*(port or _free_port(host, held) for port in (wanted.grpc, wanted.http, wanted.metrics)))


def _free_port(host: str, held: contextlib.ExitStack) -> int:
    probe = held.enter_context(socket.socket())
    probe.bind((host, 0))
    return int(probe.getsockname()[1])


class EmbeddedServer:
    """A Triton server for as long as the `with` block runs.

    It stops when the block ends, also by an exception or Ctrl-C, and when this process dies, also by SIGKILL.
    `progress` is called with a short sentence whenever the start gets further.

    Raises PreflightError if the machine lacks something, EmbeddedServerError if the server does not become ready.
    """

    def __init__(self, options: ServerOptions, progress: Progress = lambda message: None) -> None:
        self.options = options
        self.ports = options.ports
        self.log_path = options.log
        self._progress = progress
        self._guard: subprocess.Popen | None = None
        self._lock: IO[str] | None = None
        loopback = ipaddress.ip_address(socket.gethostbyname(options.host)).is_loopback
        self._admin_key = "" if loopback else secrets.token_hex(32)

    def __enter__(self) -> "EmbeddedServer":
        if not self.is_running():
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def grpc_url(self) -> str:
        return f"{self._reachable_host}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        return f"http://{self._reachable_host}:{self.ports.http}"

    @property
    def metrics_url(self) -> str:
        return f"http://{self._reachable_host}:{self.ports.metrics}/metrics"

    @property
    def pid(self) -> int:
        """Process id of the running tritonserver; 0 while there is none."""
        return self.state.pid if self.is_running() else 0

    @property
    def state(self) -> GuardState:
        try:
            return GuardState(**json.loads(self._state_path.read_text()))
        except FileNotFoundError:
            return GuardState()

    def is_running(self) -> bool:
        """False once the server has ended for good (a supervised one may be between two runs)."""
        return self._guard is not None and self._guard.poll() is None

    def start(self) -> None:
        """Start the server and return when `options.ready_model`, or every model, is ready."""
        preflight.check(self.options)
        self.options.run_dir.mkdir(parents=True, exist_ok=True)
        self._take_run_dir()
        try:
            self._launch()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise

    def wait_ready(self) -> None:
        """Wait until the model is ready; fail at once, with the model's own error, if that cannot happen."""
        deadline = time.monotonic() + self.options.ready_timeout
        seen: list[str] = []
        while not self._is_ready():
            if not self.is_running():
                raise EmbeddedServerError(self._failure("tritonserver ended before it was ready"))
            if time.monotonic() > deadline:
                waited = f"{self.options.ready_timeout:g} s"
                raise EmbeddedServerError(self._failure(f"tritonserver is not ready after {waited}"))
            seen = self._report(seen)
            time.sleep(POLL_SECONDS)
        self._report(seen)
        self._progress(f"ready at {self.grpc_url}")

    def wait(self) -> int:
        """Exit code of the server once it has ended for good; 0 if it was never started."""
        if self._guard is None:
            return 0
        while (code := self._guard.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def stop(self) -> None:
        """Let requests in flight finish within the exit timeout, then end every process of the server.

        KeyboardInterrupt, a second Ctrl-C, ends them at once.
        """
        try:
            if self._guard is not None and self._guard.poll() is None:
                self._end(self._guard)
        finally:
            if self._lock is not None:
                sweep(self._spec_path)
                self._lock.close()
                self._lock = None

    def _end(self, guard: subprocess.Popen) -> None:
        guard.terminate()
        try:
            guard.wait(self.options.exit_timeout + 2 * EXIT_MARGIN_SECONDS)
        except subprocess.TimeoutExpired:
            guard.kill()
            guard.wait()
        except KeyboardInterrupt:
            guard.terminate()
            guard.wait()
            raise

    @property
    def _reachable_host(self) -> str:
        return "127.0.0.1" if self.options.host == "0.0.0.0" else self.options.host

    @property
    def _state_path(self) -> Path:
        return self.options.run_dir / "state.json"

    @property
    def _spec_path(self) -> Path:
        return self.options.run_dir / "guard.json"

    def _take_run_dir(self) -> None:
        lock = open(self.options.run_dir / "lock", "w")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.close()
            raise EmbeddedServerError(f"another server runs in {self.options.run_dir}") from error
        self._lock = lock
        sweep(self._spec_path)

    def _launch(self) -> None:
        self.ports = choose_ports(self.options.host, self.options.ports)
        self._state_path.unlink(missing_ok=True)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        self.log_path.write_bytes(b"")
        self._guard_spec().save(self._spec_path)
        self._guard = subprocess.Popen(
            [sys.executable, "-m", "build_tools.embedded.guard", str(self._spec_path)],
            env=layout.child_environment(dict(self.options.environment)),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock.fileno()] if self._lock else [],
        )

    def _guard_spec(self) -> GuardSpec:
        options = self.options
        shm_prefix = f"triton_embedded_{os.getpid()}_{secrets.token_hex(4)}_"
        backends = layout.make_backend_directory(options.run_dir / "backends")
        return GuardSpec(
            command=layout.command_line(options, self.ports, backends, shm_prefix, self._admin_key),
            log=str(self.log_path.resolve()),
            state=str(self._state_path.resolve()),
            shm_prefix=shm_prefix,
            address=(self._reachable_host, self.ports.grpc),
            parent=os.getpid(),
            exit_timeout=options.exit_timeout,
            supervise=options.supervise,
        )

    def _is_ready(self) -> bool:
        if not self.state.ready:
            return False
        with contextlib.closing(grpc_client.InferenceServerClient(self.grpc_url)) as client:
            try:
                if self.options.ready_model is None:
                    return bool(client.is_server_ready(client_timeout=5))
                if client.is_model_ready(self.options.ready_model, client_timeout=5):
                    return True
                self._refuse_unavailable(client, self.options.ready_model)
            except grpc_client.InferenceServerException as error:
                if error.status() == "StatusCode.UNAVAILABLE":
                    return False
                raise EmbeddedServerError(f"asking for readiness failed: {error}") from error
        return False

    def _refuse_unavailable(self, client: grpc_client.InferenceServerClient, model: str) -> None:
        key = {"triton-grpc-protocol-admin-key": self._admin_key}
        index = client.get_model_repository_index(headers=key, client_timeout=5).models
        found = {entry.name: entry for entry in index}
        if model not in found:
            raise EmbeddedServerError(f"the repository has no model {model!r}; it has {', '.join(sorted(found))}")
        if found[model].state == "UNAVAILABLE":
            raise EmbeddedServerError(f"model {model!r} is UNAVAILABLE: {found[model].reason}")

    def _report(self, seen: list[str]) -> list[str]:
        now = log.loaded_models(log.read(self.log_path))
        for model in now[len(seen) :]:
            self._progress(f"loaded {model}")
        return now

    def _failure(self, what: str) -> str:
        text = log.read(self.log_path)
        causes = [f"model {name!r}: {reason}" for name, reason in log.load_errors(text).items()]
        shown = causes or log.errors(text) or ["the last lines of the log:", log.tail(self.log_path)]
        return "\n".join([f"{what} (log: {self.log_path})", *shown])
