"""The commands that make and check sets of weights, called in this process; and that a set paints."""

import torch
from typer.testing import CliRunner

from build_tools.__main__ import app
from instantid.models.sdxl import SdxlModel

from ..diffusing import make_job

ACCEPT = "--accept-licence"


def run(*arguments):
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


def make(output, manifest, *arguments):
    return run("full", "--output", output, "--manifest", manifest, *arguments)


def assert_paints(folder):
    model = SdxlModel.load(folder, torch.device("cpu"), torch.float32)
    state = model.start(*make_job(num_inference_steps=1))
    for kind in ("step", "decode"):
        model.work(kind, [state]).wait()
    picture = state.pictures[0].numpy()
    assert state.failure is None
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1
