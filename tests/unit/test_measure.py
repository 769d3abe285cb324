"""Costs that were kept are taken only while they are true; what started requests may keep follows from a budget."""

import json

import numpy as np
import pytest
import torch

from build_tools.weights import MINIATURE
from instantid.engine import CostTable, Group
from instantid.errors import Overloaded
from instantid.models import measure
from instantid.models.measure import kept_costs, measure_costs, memory_budget, plan_costs
from instantid.models.memory import device_errors, free_bytes
from instantid.models.parts import join, kept_bytes, repeat, select
from instantid.models.sdxl import RequestTensors, SdxlModel
from instantid.settings import Settings

SIZE = (64, 64)
GROUP = Group(64 * 64)


@pytest.fixture(scope="module")
def model(diffusion_weights):
    return SdxlModel.load(diffusion_weights, torch.device("cpu"), torch.float32)


@pytest.fixture
def settings(diffusion_weights, tmp_path):
    return Settings(weights=diffusion_weights, cache=tmp_path / "cache", max_rows=16)


def test_costs_are_measured_once_and_then_checked(model, settings, monkeypatch):
    table = plan_costs(model, MINIATURE, settings)
    assert set(table.measured) == {(kind, side * side) for kind in ("step", "decode") for side in (128, 64)}
    assert all(seconds > 0 for points in table.measured.values() for _, seconds in points)
    assert [rows for rows, _ in table.measured["step", 64 * 64]] == [1, 2, 4, 8, 16]
    assert [rows for rows, _ in table.measured["decode", 64 * 64]] == [1]
    monkeypatch.setattr(measure, "TRUSTED", 1000.0)
    assert plan_costs(model, MINIATURE, settings) == table
    assert len(list(settings.cache_folder.glob("costs-*.json"))) == 1


def test_costs_of_prepared_steps_are_kept_by_themselves(model, settings):
    plan_costs(model, MINIATURE, settings)
    inputs = model.denoise.inputs(model.example(SIZE, 1))
    model.denoise.predictor.prepared[inputs.key] = model.denoise.predictor.eager
    plan_costs(model, MINIATURE, settings)
    model.denoise.predictor.prepared.clear()
    assert len(list(settings.cache_folder.glob("costs-*.json"))) == 2


def slowed(table, factor):
    return CostTable({key: tuple((n, factor * s) for n, s in points) for key, points in table.measured.items()})


def test_a_kept_table_that_is_not_true_any_more_is_refused(model, tmp_path):
    table = measure_costs(model, [SIZE], [1, 2])
    slowed(table, 50).save(tmp_path / "slow.json")
    slowed(table, 0.02).save(tmp_path / "fast.json")
    assert kept_costs(tmp_path / "slow.json", model, SIZE) is None
    assert kept_costs(tmp_path / "fast.json", model, SIZE) is None


@pytest.mark.parametrize("text", ["", "{", "[1]", json.dumps([{"kind": "step"}])])
def test_a_file_that_is_no_table_is_measured_again(model, tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    assert kept_costs(tmp_path / "costs.json", model, SIZE) is None


def test_a_folder_that_cannot_be_written_costs_only_the_measurement(model, diffusion_weights, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    settings = Settings(weights=diffusion_weights, cache=tmp_path / "cache", max_rows=2)
    assert plan_costs(model, MINIATURE, settings).max_rows("step", GROUP) == 2


class SmallDevice:
    """The model on a device that holds at most `rows` rows."""

    def __init__(self, model, rows):
        self._model, self._rows, self.phases = model, rows, model.phases

    def example(self, size, rows):
        return self._model.example(size, rows)

    def work(self, kind, states):
        if kind == "step" and len(states) > self._rows:
            raise Overloaded("not enough device memory")
        return self._model.work(kind, states)


def test_measuring_stops_at_the_first_batch_that_does_not_fit(model):
    table = measure_costs(SmallDevice(model, 2), [SIZE], [1, 2, 4, 8])
    assert [rows for rows, _ in table.measured["step", 64 * 64]] == [1, 2]
    with pytest.raises(Overloaded):
        measure_costs(SmallDevice(model, 0), [SIZE], [1, 2])


def test_the_budget_is_the_setting_or_a_share_of_what_is_free(model, settings):
    costs = measure_costs(model, [SIZE], [1])
    settings.memory_gb = 7.5
    assert memory_budget(model, MINIATURE, settings, costs) == 7.5e9
    settings.memory_gb = 0
    budget = memory_budget(model, MINIATURE, settings, costs)
    assert budget == pytest.approx(0.25 * free_bytes(model.device), rel=0.2)


@pytest.mark.parametrize(("width", "height", "images"), [(64, 64, 1), (256, 128, 1), (128, 128, 3)])
def test_a_plan_says_what_a_started_request_keeps(model, width, height, images):
    (example,) = model.example((height, width), 1)
    request = type(example.request)(
        prompt="x", width=width, height=height, guidance_scale=1.0, num_images_per_prompt=images, seed=0,
        pictures=("landmarks",),
    )  # fmt: skip
    given = tensors_for(height, width)
    state = model.start(request, given)
    assert model.plan(request).bytes == pytest.approx(kept_bytes((state.latents, state.conditions)), rel=0.25)


def tensors_for(height, width):
    return RequestTensors(np.ones((1, 512), np.float32), np.zeros((1, height, width, 3), np.uint8))


def test_kept_bytes_count_every_storage_once():
    x = torch.zeros(10)
    assert kept_bytes((x, [x.view(2, 5), torch.zeros(3)], "text", 1)) == 52


def test_parts_are_joined_repeated_and_selected_by_row():
    one, two = (torch.zeros(1, 2), (torch.zeros(1),)), (torch.ones(2, 2), (torch.ones(2),))
    joined = join([one, two])
    assert joined[0].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert joined[1][0].tolist() == [0, 1, 1]
    assert join([one]) is one
    assert repeat(select(joined, slice(0, 2)), 2)[1][0].tolist() == [0, 0, 1, 1]


def test_memory_that_does_not_suffice_becomes_overloaded_and_the_rest_is_passed_on():
    cpu = torch.device("cpu")
    with pytest.raises(Overloaded, match="memory"), device_errors(cpu):
        torch.empty(free_bytes(cpu) * 10**6, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="size of tensor"), device_errors(cpu):
        torch.zeros(2) + torch.zeros(3)
