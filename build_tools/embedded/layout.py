"""Where the parts of the server lie: package, backend directory, environment and command line."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from build_tools.embedded import onnxruntime_backend
from build_tools.embedded.options import EmbeddedServerError, Ports, ServerOptions

ADMINISTRATION = "model-repository,model-config,shared-memory,trace,logging,statistics"
LIBPYTHON = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


def package_root() -> Path:
    """Folder of tritonserver in the installed `nvidia-pytriton`; raises EmbeddedServerError if that is absent."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError("nvidia-pytriton is not installed: run `pip install nvidia-pytriton==0.7.0`")
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


def server_binary() -> Path:
    return package_root() / "bin" / "tritonserver"


def stub_binary() -> Path:
    """Stub of the running Python's minor version; the file need not exist (see `preflight`)."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return package_root() / "python_backend_stubs" / version / "triton_python_backend_stub"


def make_backend_directory(folder: Path) -> Path:
    """Fill `folder` with the python backend, the fitting stub and our onnxruntime backend.

    Copies, because Triton refuses a Python-based backend whose library is a link to another folder.
    """
    python = package_root() / "backends" / "python"
    parts = {
        folder / "python" / "libtriton_python.so": python / "libtriton_python.so",
        folder / "python" / "triton_python_backend_utils.py": python / "triton_python_backend_utils.py",
        folder / "python" / "triton_python_backend_stub": stub_binary(),
        folder / "onnxruntime" / "model.py": Path(onnxruntime_backend.__path__[0]) / "model.py",
    }
    for copy, original in parts.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.unlink(missing_ok=True)
        shutil.copy2(original, copy)
    return folder


def _library_folders() -> list[Path]:
    candidates = [Path(sysconfig.get_config_var("LIBDIR") or ""), Path(sys.base_prefix) / "lib"]
    return list(dict.fromkeys(folder for folder in candidates if (folder / LIBPYTHON).is_file()))


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """Environment of the server: its libraries, and this interpreter's `bin` first on PATH.

    The stub of this release ignores PYTHONPATH and finds a virtual environment only through `python3` on PATH.
    """
    environment = {**os.environ, **extra}
    bundled = package_root().parents[1] / "nvidia_pytriton.libs"
    libraries = [str(bundled), environment.get("LD_LIBRARY_PATH", ""), *map(str, _library_folders())]
    environment["LD_LIBRARY_PATH"] = ":".join(filter(None, libraries))
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
    return environment


def command_line(
    options: ServerOptions, ports: Ports, backends: Path, shm_prefix: str, admin_key: str = ""
) -> list[str]:
    """Arguments of tritonserver; `extra_args` come last, where they override.

    With a key, administration is closed to whoever does not send it; other users of the machine can see it in here.
    """
    named = {
        "model-repository": options.repository.resolve(),
        "backend-directory": backends.resolve(),
        "backend-config": f"python,shm-region-prefix-name={shm_prefix}",
        "model-control-mode": "none",
        "exit-timeout-secs": options.exit_timeout,
        "log-format": "ISO8601",
        "log-verbose": options.log_verbosity,
        **dict.fromkeys(("grpc-header-forward-pattern", "http-header-forward-pattern"), "traceparent"),
        **{f"{kind}-address": options.host for kind in ("grpc", "http", "metrics")},
        **{f"{kind}-port": getattr(ports, kind) for kind in ("grpc", "http", "metrics")},
    }
    if options.config_name:
        named["model-config-name"] = options.config_name
    if admin_key:
        flags = ("grpc-restricted-protocol", "http-restricted-api")
        named |= dict.fromkeys(flags, f"{ADMINISTRATION}:admin-key={admin_key}")
    arguments = [f"--{name}={value}" for name, value in named.items()]
    if endpoint := {**os.environ, **options.environment}.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        url = f"opentelemetry,url={endpoint.rstrip('/')}/v1/traces"
        traced = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1", url, "opentelemetry,resource=service.name=triton")
        arguments += [f"--trace-config={setting}" for setting in traced]
    return [str(server_binary()), *arguments, "--disable-auto-complete-config", *options.extra_args]
