"""What a machine must have before the server can start, each with what to do about it."""

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import psutil

from build_tools.embedded.layout import LIBPYTHON, child_environment, server_binary, stub_binary
from build_tools.embedded.options import PreflightError, ServerOptions

OLDEST_GLIBC = (2, 35)
SMALLEST_SHARED_MEMORY = 256 << 20
SHARED_MEMORY = Path("/dev/shm")


def check(options: ServerOptions) -> None:
    """Raise PreflightError naming everything this machine lacks."""
    problems = [*_platform()] or [*_python(), *_libraries(), *_resources(options), *_ports(options)]
    if problems:
        raise PreflightError("this machine cannot run the embedded server:\n- " + "\n- ".join(problems))


def _platform() -> Iterator[str]:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        yield f"it needs Linux on x86-64; this is {sys.platform} on {platform.machine()}"
        return
    name, found = (os.confstr("CS_GNU_LIBC_VERSION") or "no 0.0").split()
    if name != "glibc" or tuple(map(int, found.split("."))) < OLDEST_GLIBC:
        needed = ".".join(map(str, OLDEST_GLIBC))
        yield f"it needs glibc >= {needed} (Ubuntu 22.04, Debian 12); found {name} {found}"


def _python() -> Iterator[str]:
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub_binary().is_file():
        has = ", ".join(sorted(folder.name for folder in stub_binary().parents[1].iterdir()))
        yield f"nvidia-pytriton has no stub for Python {running}; it has {has}"
    if int(version("numpy").split(".")[0]) >= 2:
        yield f"its stub turns tensors empty with numpy {version('numpy')}: pip install 'numpy<2'"
    python3 = Path(sys.executable).parent / "python3"
    if not python3.exists() or not python3.samefile(sys.executable):
        yield f"its stub finds packages through {python3}, not {sys.executable}: use a virtual environment"


def missing_libraries(binary: Path, environment: dict[str, str]) -> list[str]:
    """Names of the shared libraries that the dynamic loader cannot find for `binary` in this environment."""
    traced = {**environment, "LD_TRACE_LOADED_OBJECTS": "1"}
    output = subprocess.run([str(binary)], env=traced, capture_output=True, text=True, timeout=60).stdout
    return [line.split("=>")[0].strip() for line in output.splitlines() if "not found" in line]


def _libraries() -> Iterator[str]:
    environment = child_environment({})
    binaries = [binary for binary in (server_binary(), stub_binary()) if binary.is_file()]
    absent = dict.fromkeys(name for binary in binaries for name in missing_libraries(binary, environment))
    for name in absent:
        if name == LIBPYTHON:
            package = name.removesuffix(".so.1.0")
            yield f"{name} cannot be loaded: apt-get install {package}, or a Python built with --enable-shared"
        else:
            yield f"the library {name} cannot be loaded"


def _resources(options: ServerOptions) -> Iterator[str]:
    if not SHARED_MEMORY.is_dir():
        yield f"{SHARED_MEMORY} does not exist; the Python models pass their tensors through it"
    elif (free := shutil.disk_usage(SHARED_MEMORY).free) < SMALLEST_SHARED_MEMORY:
        yield (
            f"{SHARED_MEMORY} has {free >> 20} MiB free, {SMALLEST_SHARED_MEMORY >> 20} MiB are needed: "
            "mount it larger (docker run --shm-size=1g)"
        )
    if (available := psutil.virtual_memory().available) < options.minimum_memory:
        yield f"{available >> 20} MiB of memory are available, {options.minimum_memory >> 20} MiB are needed"


def _ports(options: ServerOptions) -> Iterator[str]:
    for name in ("grpc", "http", "metrics"):
        port = getattr(options.ports, name)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((options.host, port))
            except OSError as error:
                yield f"the {name} port {options.host}:{port} cannot be taken: {error.strerror}"
