"""One real Triton server with the miniature weights for all tests of this folder."""

import io
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from build_tools.embedded.serve import project_options
from build_tools.embedded.server import EmbeddedServer
from build_tools.weights import make_miniature
from instantid_client import InstantIDClient

from .load import Album

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def weights():
    """The miniature set that `make test` builds; built here if pytest is called by itself."""
    folder = ROOT / "weights" / "miniature"
    if not (folder / "profile.json").is_file():
        make_miniature(folder)
    return folder


@pytest.fixture(scope="session")
def server(weights, tmp_path_factory):
    options = project_options(weights, tmp_path_factory.mktemp("server"), ROOT / "model_repository")
    with EmbeddedServer(options) as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with InstantIDClient(server.grpc_url, timeout=120) as connected:
        yield connected


def encoded(image, fmt="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, fmt, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def astronaut():
    return encoded(data.astronaut())


@pytest.fixture
def tell(capsys):
    """Shows a measured line beside pytest's own."""

    def tell(row):
        with capsys.disabled():
            print(f"\n{row}", end=" ", flush=True)

    return tell


@pytest.fixture(scope="session")
def album(astronaut):
    return Album((astronaut, encoded(data.astronaut()[:, ::-1])))
