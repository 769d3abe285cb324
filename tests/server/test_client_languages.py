"""docs/languages.md: each program is compiled, run against the real server, and gives the same bytes.

Needs node and npm with its registry, and of Debian's packages: golang-go, golang-google-grpc-dev,
golang-goprotobuf-dev, protobuf-compiler; default-jdk-headless, libgrpc-java, libnetty-java, libperfmark-java,
protobuf-compiler-grpc-java-plugin.
"""

import glob
import os
import re
import shutil
import subprocess

import pytest

from .conftest import ROOT
from .protos import write_protos

PAGE = (ROOT / "docs" / "languages.md").read_text()
BLOCKS = dict(re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL))
JARS = [
    path
    for name in (
        "grpc-*",
        "protobuf",
        "guava",
        "failureaccess",
        "geronimo-annotation-1.3-spec",
        "perfmark-api",
        "netty-*",
    )
    for path in glob.glob(f"/usr/share/java/{name}.jar")
]

pytestmark = pytest.mark.long


@pytest.fixture
def folder(tmp_path, astronaut):
    (tmp_path / "astronaut.png").write_bytes(astronaut)
    write_protos(tmp_path)
    return tmp_path


def run(folder, *command, **environment):
    environment = {**os.environ, **environment}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr


def program(language, server):
    text = BLOCKS[language]
    assert "localhost:8001" in text
    return text.replace("localhost:8001", server.grpc_url)


def need(*tools):
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not on this machine: {', '.join(missing)}")


def assert_same(folder, client, astronaut):
    same = client.generate(astronaut, "a portrait in a garden", seed=7)
    assert (folder / "out.png").read_bytes() == same.images[0]


def test_node(server, client, astronaut, folder):
    need("node", "npm")
    (folder / "paint.js").write_text(program("js", server))
    run(folder, "npm", "install", "--silent", *re.findall(r"@grpc/[\w-]+", PAGE.partition("```js")[0]))
    run(folder, "node", "paint.js")
    assert_same(folder, client, astronaut)


def test_go(server, client, astronaut, folder):
    """Debian's generator has its gRPC plugin inside and its packages in a GOPATH; the `M` options are the page's."""
    need("go", "protoc", "protoc-gen-go")
    paint = folder / "go" / "src" / "example.com" / "paint"
    (paint / "triton").mkdir(parents=True)
    packages = re.search(r"^packages=(\S+)$", BLOCKS["sh"], re.MULTILINE)[1]
    run(
        folder, "protoc", f"--go_out=plugins=grpc,{packages}:{paint}/triton", "grpc_service.proto", "model_config.proto"
    )
    (paint / "main.go").write_text(program("go", server))
    paths = {"GOPATH": f"{folder}/go:/usr/share/gocode", "GO111MODULE": "off"}
    run(folder, "go", "run", "example.com/paint", **paths)
    assert_same(folder, client, astronaut)


def test_java(server, client, astronaut, folder):
    need("javac", "protoc", "grpc_java_plugin")
    plugin = f"--plugin=protoc-gen-grpc-java={shutil.which('grpc_java_plugin')}"
    run(folder, "protoc", plugin, "--java_out=.", "--grpc-java_out=.", "grpc_service.proto", "model_config.proto")
    (folder / "Paint.java").write_text(program("java", server))
    sources = [str(path) for path in [folder / "Paint.java", *(folder / "inference").glob("*.java")]]
    run(folder, "javac", "-nowarn", "-proc:none", "-cp", ":".join(JARS), "-d", "classes", *sources)
    run(folder, "java", "-cp", ":".join(["classes", *JARS]), "Paint")
    assert_same(folder, client, astronaut)
