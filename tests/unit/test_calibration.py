"""Step costs that were kept are taken only while they are true; rows in memory follow from a budget."""

import json

import pytest
import torch

from build_tools.weights import MINIATURE
from instantid.engine.calibrate import kept_costs, measure_costs
from instantid.errors import Overloaded
from instantid.models.sdxl import SdxlDenoiser, free_bytes, kept_bytes
from instantid.models.sdxl.memory import device_errors
from instantid.serving.calibration import fingerprint, make_job, plan_costs, plan_rows
from instantid.settings import Settings

SIZE = (64, 64)


@pytest.fixture(scope="module")
def denoiser(diffusion_weights):
    return SdxlDenoiser.load(diffusion_weights, torch.device("cpu"), torch.float32)


@pytest.fixture
def settings(diffusion_weights, tmp_path):
    return Settings(weights=diffusion_weights, cache=tmp_path / "cache", max_rows=16)


def test_costs_are_measured_once_and_then_checked(denoiser, settings):
    table = plan_costs(denoiser, MINIATURE, settings)
    (kept,) = settings.cache_folder.glob("costs-*.json")
    assert kept.name == f"costs-{fingerprint(denoiser)}.json"
    assert list(table.seconds) == [(128, 128), (64, 64)]
    assert all(seconds > 0 for points in table.seconds.values() for _, seconds in points)
    assert all(table.decode(size) > 0 for size in table.seconds)
    assert [rows for rows, _ in table.seconds[SIZE]] == [1, 2, 4, 8, 16]


def slowed(table, factor):
    return type(table)(
        {size: tuple((n, factor * s) for n, s in points) for size, points in table.seconds.items()},
        {size: factor * seconds for size, seconds in table.decodes.items()},
    )


def test_a_kept_table_that_is_not_true_any_more_is_refused(denoiser, tmp_path):
    table = measure_costs(denoiser, make_job, [SIZE], [1, 2])
    slowed(table, 50).save(tmp_path / "slow.json")
    slowed(table, 0.02).save(tmp_path / "fast.json")
    assert kept_costs(tmp_path / "slow.json", denoiser, make_job, (SIZE, 2)) is None
    assert kept_costs(tmp_path / "fast.json", denoiser, make_job, (SIZE, 2)) is None


def test_a_kept_table_that_is_true_is_taken(denoiser, tmp_path, monkeypatch):
    monkeypatch.setattr("instantid.engine.calibrate.TRUSTED", 1000.0)
    table = measure_costs(denoiser, make_job, [SIZE], [1, 2])
    table.save(tmp_path / "costs.json")
    assert kept_costs(tmp_path / "costs.json", denoiser, make_job, (SIZE, 2)) == table


@pytest.mark.parametrize("text", ["", "{", "[1]", json.dumps([{"height": 64}])])
def test_a_file_that_is_no_table_is_measured_again(denoiser, tmp_path, text):
    (tmp_path / "costs.json").write_text(text)
    assert kept_costs(tmp_path / "costs.json", denoiser, make_job, (SIZE, 2)) is None


def test_a_folder_that_cannot_be_written_costs_only_the_measurement(denoiser, diffusion_weights, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    settings = Settings(weights=diffusion_weights, cache=tmp_path / "cache", max_rows=2)
    assert plan_costs(denoiser, MINIATURE, settings).max_rows(SIZE) == 2


def test_rows_follow_from_the_memory_budget(denoiser, settings):
    costs = measure_costs(denoiser, make_job, [SIZE], [1])
    per_row = kept_bytes(denoiser.start(make_job((MINIATURE.max_side, MINIATURE.max_side))))
    settings.memory_gb = 7.5 * per_row / 1e9
    assert plan_rows(denoiser, MINIATURE, settings, costs) == 7
    settings.memory_gb = 1e-9
    assert plan_rows(denoiser, MINIATURE, settings, costs) == 2
    settings.memory_gb = 0
    assert plan_rows(denoiser, MINIATURE, settings, costs) == settings.max_rows
    assert plan_rows(denoiser, MINIATURE, settings, costs, reserved=1e15) == 2


def test_kept_bytes_count_every_storage_once():
    x = torch.zeros(10)
    assert kept_bytes((x, [x.view(2, 5), torch.zeros(3)], "text", 1)) == 52


def test_a_request_keeps_what_its_tensors_hold(denoiser):
    state = denoiser.start(make_job((128, 128)))
    kept = kept_bytes(state)
    tensors = [state.latents, state.inputs.landmarks, *state.inputs.unet.keys, *state.inputs.unet.values]
    assert kept > sum(tensor.nbytes for tensor in tensors)


def test_memory_that_does_not_suffice_becomes_overloaded_and_the_rest_is_passed_on():
    cpu = torch.device("cpu")
    with pytest.raises(Overloaded, match="memory"), device_errors(cpu):
        torch.empty(free_bytes(cpu) * 10**6, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="size of tensor"), device_errors(cpu):
        torch.zeros(2) + torch.zeros(3)
