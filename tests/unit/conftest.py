"""Toy weights, what is loaded from them, another SDXL in place of theirs, and a hub that files are downloaded from."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from instantid.models.sdxl import SdxlModel
from miniature.sdxl import write_adapter, write_identitynet, write_sdxl

from .downloads import CONTENT
from .hub import LoopbackHub
from .original_layout import original_layout
from .reference import Reference


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


@pytest.fixture(scope="session")
def model(diffusion_weights):
    return SdxlModel.load(diffusion_weights, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="session")
def reference(diffusion_weights):
    return Reference(diffusion_weights)


@pytest.fixture(scope="session")
def community(tmp_path_factory):
    """The folder of another SDXL than the set's own."""
    folder = tmp_path_factory.mktemp("community") / "sdxl"
    write_sdxl(folder, seed=77)
    return folder


@pytest.fixture(scope="session")
def community_tensors(community):
    """The same as a single file in the original layout has it."""
    return original_layout(
        UNet2DConditionModel.from_pretrained(community / "unet"),
        AutoencoderKL.from_pretrained(community / "vae"),
        CLIPTextModel.from_pretrained(community / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(community / "text_encoder_2"),
    )


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
    """huggingface_hub waits a second before it asks again."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
