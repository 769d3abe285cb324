"""The image: its recipe linted, its packages resolved. It is not built; tests/server/test_entry_point.py runs it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text()
INSTRUCTIONS = [shlex.split(line) for line in DOCKERFILE.replace("\\\n", "").splitlines() if line[:1].isupper()]
STAGES = [words[-1] for words in INSTRUCTIONS if words[0] == "FROM"]


def run(*command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **options)


def sources(words):
    return [word for word in words[1:-1] if not word.startswith("--")]


def test_recipe_and_scripts_pass_their_linters():
    scripts = run("git", "ls-files", "*.sh", ".ci/run", cwd=ROOT).stdout.split()
    for command in ([BIN / "hadolint", "deploy/docker/Dockerfile"], [BIN / "shellcheck", *scripts]):
        result = run(*command, cwd=ROOT)
        assert result.returncode == 0, result.stdout


def test_every_source_exists_and_reaches_the_build():
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for words in INSTRUCTIONS:
        if words[0] == "COPY" and not any(word.startswith("--from=") for word in words):
            for source in sources(words):
                assert (ROOT / source).exists(), source
                assert source in kept, f"{source} is in .dockerignore"


def test_the_default_target_serves_without_root_and_without_tools():
    assert STAGES[-1] == "serve"
    serve = INSTRUCTIONS[[words[-1] == "serve" for words in INSTRUCTIONS].index(True) :]
    assert [words for words in serve if words[0] == "USER"] == [["USER", "1000:1000"]]
    copied = [source for words in serve if words[0] == "COPY" for source in sources(words)]
    assert copied == ["model_repository", "deploy/docker/entrypoint.sh"]


def test_nothing_in_the_image_reports_to_anybody():
    runtime = INSTRUCTIONS[[words[-1] == "runtime" for words in INSTRUCTIONS].index(True) :]
    environment = {word for words in runtime if words[0] == "ENV" for word in words[1:]}
    assert {"ORT_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_TELEMETRY=1"} <= environment


def test_the_image_is_pinned_alike_for_docker_and_compose():
    image = re.search(r"^ARG TRITON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)[1]
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", image)
    assert yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-build"]["args"] == {
        "TRITON_IMAGE": f"${{TRITON_IMAGE:-{image}}}",
        "APT_PACKAGES": "${INSTANTID_APT_PACKAGES:-}",
    }
    assert image in (ROOT / "docs/operations.md").read_text()


@pytest.fixture(scope="module")
def serving_wheel(tmp_path_factory):
    """Built from what the stage `serving` copies."""
    folder = tmp_path_factory.mktemp("build")
    stage = INSTRUCTIONS[[words[-1] == "serving" for words in INSTRUCTIONS].index(True) :]
    for words in stage[1:3]:
        for source in sources(words):
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            copy(ROOT / source, folder / source)
    shutil.rmtree(folder / "src/instantid_triton.egg-info", ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    result = run(*pip, folder)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


def test_the_serving_wheel_holds_nothing_but_the_package(serving_wheel):
    with ZipFile(serving_wheel) as wheel:
        top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"instantid"}


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(ROOT / "client", folder / "client", ignore=shutil.ignore_patterns("*.egg-info", "build"))
    result = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, folder / "client")
    assert result.returncode == 0, result.stderr
    return next(folder.glob("*.whl"))


@pytest.mark.long
@pytest.mark.parametrize("extras", ["server,otel", "build,loadtest", "gpu"])
def test_the_locked_packages_resolve_to_wheels_for_the_images_python(extras, serving_wheel, client_wheel, tmp_path):
    """Asks the package index; Ubuntu 24.04 has glibc 2.39."""
    where = ["--python-version", "3.12", "--python-platform", "x86_64-manylinux_2_39", "--target", tmp_path]
    lock = ["--constraint", ROOT / "constraints/3.12.txt", "--only-binary", ":all:"]
    result = run(BIN / "uv", "pip", "install", "--dry-run", *where, *lock, client_wheel, f"{serving_wheel}[{extras}]")
    assert result.returncode == 0, result.stderr
    assert " + torch==" in result.stderr
    assert " + nvidia-cudnn-cu13==" in result.stderr
