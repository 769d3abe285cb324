"""A hub to download from, and sets made from what it has."""

from pathlib import Path

import pytest

from .commands import ACCEPT, make
from .downloads import CONTENT
from .hub import LoopbackHub
from .published_miniature import published_files, write_manifest


@pytest.fixture(scope="session")
def hub_server():
    with LoopbackHub({"someone/weights": CONTENT}) as server:
        yield server


@pytest.fixture
def hub(hub_server):
    hub_server.reset()
    return hub_server


@pytest.fixture
def no_waiting(monkeypatch):
    """huggingface_hub waits a second before it repeats a request."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)


@pytest.fixture(scope="session")
def faces(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faces")


@pytest.fixture(scope="session")
def repositories(diffusion_weights, faces):
    return published_files(diffusion_weights, faces)


@pytest.fixture(scope="session")
def manifest(repositories, faces, tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest") / "weights.toml", repositories, faces)


@pytest.fixture(scope="session")
def mirror(repositories, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for repository, files in repositories.items():
        for name, content in files.items():
            (folder / repository / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / repository / name).write_bytes(content)
    return folder


@pytest.fixture(scope="session")
def full(manifest, mirror, tmp_path_factory) -> Path:
    """A set made from the mirror; copy it before changing it."""
    folder = tmp_path_factory.mktemp("sets") / "full"
    assert make(folder, manifest, "--mirror", mirror, ACCEPT).exit_code == 0
    return folder
