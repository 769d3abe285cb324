"""The client as its users install it: a small typed wheel that needs nothing else of this repository."""

import os
import shutil
import subprocess
import sys
import textwrap
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

from instantid_client import __version__

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PYTHONS = ["3.10", "3.11", "3.12", "3.13", "3.14"]


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "client", folder / "client", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    run(*pip, folder / "client")
    return next(folder.glob("*.whl"))


def test_the_wheel_is_small_and_holds_only_the_client(wheel):
    assert wheel.stat().st_size < 300_000
    with ZipFile(wheel) as content:
        names = content.namelist()
        metadata = message_from_bytes(content.read(next(name for name in names if name.endswith("METADATA"))))
    assert {name.split("/")[0].split("-")[0] for name in names} == {"instantid_client"}
    assert "instantid_client/py.typed" in names
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.10"
    needs = {
        text.split(";")[0].split(">")[0].strip() for text in metadata.get_all("Requires-Dist") if "extra" not in text
    }
    assert needs == {"tritonclient[grpc]", "numpy", "typer", "rich", "typing_extensions"}


USER = """
import asyncio
from pathlib import Path
from instantid_client import AsyncInstantIDClient, FakeClient, InstantIDClient, Options, Overloaded, Retry

def paint(client: InstantIDClient) -> None:
    result = client.generate(Path("me.png"), "x", width=1024, seed=7, timeout=5)
    reveal_type(result)
    reveal_type(result.seeds)
    reveal_type(result.face.box)
    reveal_type(client.health().ready)
    for item in client.batch([{"photo": b"x", "prompt": "x", "seed": 1}], concurrency=2):
        reveal_type(item.result)
    try:
        client.generate([b"a", b"b"], "x", **Options(seed=3))
    except Overloaded as error:
        reveal_type(error.retry_after)

async def paint_async() -> None:
    async with AsyncInstantIDClient(["a:1", "b:1"], retries=Retry(attempts=2), token=fetch) as client:
        reveal_type(await client.generate(b"x", "x"))
        async for item in client.batch([]):
            reveal_type(item.error)

async def fetch() -> str:
    return "token"

paint(FakeClient(lambda request: b"picture", timeout=3))
InstantIDClient().generate(b"x", "x", width="wide")
InstantIDClient().generate(b"x", "x", steps=3)
InstantIDClient().generate(3, "x")
InstantIDClient(timeout="long")
"""


@pytest.mark.parametrize("python", [PYTHONS[0], *[pytest.param(p, marks=pytest.mark.long) for p in PYTHONS[1:]]])
def test_its_users_code_is_typed(wheel, tmp_path, python):
    (tmp_path / "user.py").write_text(USER)
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    environment = {**os.environ, "MYPYPATH": str(tmp_path / "site")}
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-version", python, "--no-incremental", "user.py"]
    done = subprocess.run(mypy, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    told = [line.split(": ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("user.py")]
    revealed = [text.split('"')[1] for kind, text in told if kind == "note" and "Revealed" in text]
    assert revealed == [
        "instantid_client.results.GenerationResult", "tuple[int, ...]", "tuple[float, float, float, float]", "bool",
        "instantid_client.results.GenerationResult | None", "float | None",
        "instantid_client.results.GenerationResult", "Exception | None",
    ], done.stdout  # fmt: skip
    errors = [text.rsplit("[")[-1] for kind, text in told if kind == "error"]
    assert errors == ["arg-type]", "call-arg]", "arg-type]", "arg-type]"], done.stdout


def test_the_client_itself_is_strictly_typed():
    run(sys.executable, "-m", "mypy", "--config-file", "client/pyproject.toml", "client/instantid_client", cwd=ROOT)


@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS)
def test_its_packages_have_wheels_for_every_python(wheel, python, tmp_path):
    """Asks the package index. NumPy 2 is what a fresh environment gets; the oldest allowed is taken too."""
    where = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--target", tmp_path]
    resolved = run(BIN / "uv", "pip", "install", "--dry-run", "--only-binary", ":all:", *where, wheel)
    assert " + numpy==2" in resolved
    assert " + torch" not in resolved
    if python in ("3.10", "3.11", "3.12"):
        assert " + numpy==1.26.4" in run(BIN / "uv", "pip", "install", "--dry-run", *where, wheel, "numpy<2")


def interpreter(python):
    """A Python of that version on this machine, or None: PATH, or pyenv's folder."""
    found = [Path(found) for found in [shutil.which(f"python{python}")] if found and ".pyenv/shims" not in found]
    found += sorted(Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))
    return found[0] if found else None


SMOKE = """
import sys, importlib.util, numpy
import instantid_client
for name in ("torch", "build_tools", "loadtest", "miniature", "instantid"):
    assert not importlib.util.find_spec(name), name
with instantid_client.FakeClient() as client:
    assert client.generate(numpy.zeros((8, 8, 3), numpy.uint8), "x", seed=7).seeds == (7,)
print("NumPy", numpy.__version__)
"""


@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS)
def test_it_installs_into_a_fresh_environment(wheel, python, tmp_path):
    found = interpreter(python)
    if found is None:
        pytest.skip(f"no Python {python} on this machine")
    run(found, "-m", "venv", tmp_path / "venv")
    own = tmp_path / "venv" / "bin"
    run(own / "python", "-m", "pip", "install", "--quiet", wheel)
    assert "NumPy 2" in run(own / "python", "-c", textwrap.dedent(SMOKE), cwd=tmp_path)
    assert __version__ in run(own / "instantid", "--version")
    assert "--num-inference-steps" in run(own / "instantid", "generate", "--help")
