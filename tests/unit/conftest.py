"""Toy weights, what is loaded from them, and another SDXL in place of theirs; boards of one server's instances."""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from instantid.models.sdxl import SdxlModel
from instantid.serving.board import Board
from miniature.sdxl import write_adapter, write_identitynet, write_sdxl

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


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def join(tmp_path, clock):
    """Joins instances of one server that have just beaten; their work is `board.work`."""
    boards = []

    def join(name, work=0.0, clock=clock, backlog=None):
        board = Board(tmp_path / "s", name, backlog or (lambda: board.work), clock)
        board.work = work
        board.beat()
        board.refresh()
        boards.append(board)
        return board

    yield join
    for board in boards:
        if not board._closed:
            board.close()
