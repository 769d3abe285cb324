import pytest
import torch

from miniature.sdxl import write_adapter, write_identitynet, write_sdxl


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small networks on shared cores are fastest with one thread, and repeat to the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def diffusion_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_sdxl(folder / "sdxl")
    write_identitynet(folder / "identitynet")
    write_adapter(folder / "adapter")
    return folder
