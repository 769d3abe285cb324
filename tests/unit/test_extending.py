"""The blocks of docs/extending.md run, in order, on toy weights; every row of its table has a block."""

import re
from pathlib import Path

import pytest
import torch

from instantid.engine import Admission, Answer, CostTable, Engine, Policy, Task
from instantid.models.sdxl import SdxlModel

from .diffusing import make_job, run

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def plain(diffusion_weights):
    return SdxlModel.load(diffusion_weights, torch.device("cpu"), torch.float32)


def painted(model):
    """The picture of a request that went through every phase of the model."""
    state = model.start(*make_job())
    for phase in model.plan(state.request).phases:
        for _ in range(phase.count):
            model.work(phase.kind, [state]).wait()
    return state.pictures[0]


def engine_with(listeners, model):
    """The answer of one request through an engine whose listeners are these: the pictures of its state."""
    request, given = make_job()
    answers = []
    costs = CostTable({("step", 64 * 64): ((1, 0.01),)})
    engine = Engine(
        model, Policy(costs, 16), Admission(16), lambda task: task.state.pictures, listeners=listeners,
        inline_events=True,
    )  # fmt: skip
    engine.submit([Task(request, given, model.plan(request), Answer(answers.append))])
    while engine.admission.tasks:
        engine.step()
    engine.close()
    return answers[0]


def test_the_blocks_of_the_page_run(plain):
    request, given = make_job()

    def identity_shapes(networks_pass):
        part = plain.conditions[0].start(request, given)
        ones = torch.ones(len(networks_pass.latents), 1, 1, 1)
        return plain.conditions[0].residuals(networks_pass, part, ones)

    names = {
        "SdxlModel": SdxlModel, "networks": plain.networks, "plain": plain, "request": request, "given": given,
        "state": plain.start(request, given), "identity_shapes": identity_shapes, "painted": painted,
        "final_latents": lambda model: run(model, make_job())[0],
        "engine_with": lambda listeners, model=plain: engine_with(listeners, model),
    }  # fmt: skip
    for block in BLOCKS:
        exec(compile(block, "docs/extending.md", "exec"), names)


def test_every_row_of_the_table_has_a_block_of_at_most_thirty_lines():
    rows = re.findall(r"^\| \[[^\]]+\]\(#([a-z-]+)\)", PAGE, re.MULTILINE)
    pattern = r"^## (.+?)\n(.*?)(?=^## |\Z)"
    sections = {title.lower().replace(" ", "-"): text for title, text in re.findall(pattern, PAGE, re.DOTALL | re.M)}
    assert len(rows) == 8
    for row in rows:
        (block,) = re.findall(r"```python\n(.*?)```", sections[row], re.DOTALL)
        assert len(block.splitlines()) <= 30, row
