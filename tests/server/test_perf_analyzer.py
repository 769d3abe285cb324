"""The perf_analyzer of docs/calling.md, NVIDIA's own binary, against the running server."""

import base64
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

PIP = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, astronaut):
    """perf_analyzer, the libraries that it needs, and the photo of the page's block."""
    folder = tmp_path_factory.mktemp("perf_analyzer")
    for command in (
        [*PIP, "tritonclient==2.51.0"],
        [*PIP, "nvidia-cuda-runtime-cu12"],
        ["apt-get", "download", "libb64-0d"],
    ):
        subprocess.run(command, cwd=folder, check=True)
    for archive in [*folder.glob("*.whl")]:
        subprocess.run([sys.executable, "-m", "zipfile", "-e", archive, folder], check=True)
    subprocess.run(["dpkg-deb", "-x", *folder.glob("*.deb"), folder], check=True)
    (folder / "astronaut.png").write_bytes(astronaut)
    return folder


@pytest.mark.long
def test_the_page_s_input_file_and_command(server, folder, monkeypatch):
    section = (ROOT / "docs" / "calling.md").read_text().split("## perf_analyzer")[1]
    script, command = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("python", "sh"))
    monkeypatch.chdir(folder)
    exec(script, {"base64": base64, "json": json, "struct": struct, "Path": Path})
    (binary,) = folder.glob("*.data/data/bin/perf_analyzer")
    binary.chmod(0o755)
    libraries = [str(next(folder.rglob(name)).parent) for name in ("libcudart.so.12", "libb64.so.0*")]
    done = subprocess.run(
        command.replace("perf_analyzer", str(binary)).replace("127.0.0.1:8001", server.grpc_url).split(),
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "Successful request count: 20" in done.stdout
    assert "error" not in done.stdout.lower()
