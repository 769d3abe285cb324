"""Steps compiled ahead of time: they compute what the networks compute, and nothing that is kept is trusted."""

import shutil
from dataclasses import replace

import pytest
import torch

from build_tools.compiler import compile_missing
from instantid.models import compiled
from instantid.models.compiled import (
    WrongPackage,
    difference,
    example_inputs,
    load_compiled,
    load_step,
    note_of,
    package_folder,
)
from instantid.models.sdxl import SdxlModel
from miniature import sdxl

SIZE, ROWS = (64, 64), 2
SHAPES = [(SIZE, ROWS)]
SIZES = replace(sdxl.TEST_SIZES, widths=(32,), heads=(2,), depths=(1,))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The smallest networks that have every part: a compiler takes minutes for the miniature's."""
    folder = tmp_path_factory.mktemp("weights")
    sdxl.write_sdxl(folder / "sdxl", SIZES)
    sdxl.write_identitynet(folder / "identitynet", SIZES)
    sdxl.write_adapter(folder / "adapter", SIZES)
    return folder


def load(weights):
    return SdxlModel.load(weights, torch.device("cpu"), torch.float32)


def step(model, states):
    model.work("step", states).wait()


def prepared(model):
    return list(model.denoise.predictor.prepared)


@pytest.fixture(scope="module")
def cache(weights, tmp_path_factory):
    """The package of a step, as the job writes it."""
    folder = tmp_path_factory.mktemp("cache")
    assert [was_there for _, was_there in compile_missing(load(weights), folder, SHAPES)] == [False]
    return folder


@pytest.fixture
def own(cache, weights, tmp_path):
    """A copy of the cache that a test may damage, and the package in it."""
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    (path,) = folder.glob("compiled-*/64x64-2.pt2")
    return folder, path


def test_a_package_that_is_there_is_not_made_again(weights, cache):
    assert [was_there for _, was_there in compile_missing(load(weights), cache, SHAPES)] == [True]
    assert not list(cache.rglob("*partial*"))


def test_what_was_compiled_computes_what_the_networks_compute(weights, cache):
    model, eager = load(weights), load(weights)
    load_compiled(model, cache, SHAPES)
    ours, theirs = model.example(SIZE, ROWS), eager.example(SIZE, ROWS)
    assert prepared(model) == [model.denoise.inputs(ours).key]
    call = model.denoise.predictor.prepared[prepared(model)[0]]
    assert 0 < difference(model, call, example_inputs(model, ours)) <= 1e-5
    for _ in range(5):
        step(model, ours)
        step(eager, theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert 0 < (one.latents - other.latents).abs().max() <= 1e-4 * other.latents.abs().max()


def test_a_package_for_slightly_other_weights_is_refused(weights, own):
    """The compiler writes vectors of up to eight numbers into the code, such as the bias of the last convolution."""
    model = load(weights)
    model.networks.unet.conv_out.bias.data += 0.01
    with pytest.raises(WrongPackage, match="from the networks"):
        load_step(model, model.example(SIZE, ROWS), own[1])


def test_other_small_tensors_look_elsewhere(weights, cache):
    """Within the tolerance of 16 bits another bias would pass the comparison, so its folder is another one."""
    model, other = load(weights), load(weights)
    other.networks.unet.conv_out.bias.data += 1e-5
    assert package_folder(cache, other) != package_folder(cache, model)
    load_compiled(other, cache, SHAPES)
    assert not prepared(other)


def test_a_package_that_is_not_the_one_that_was_written_is_deleted(weights, own, caplog):
    folder, path = own
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    model = load(weights)
    load_compiled(model, folder, SHAPES)
    assert not prepared(model)
    assert f"{path.name}: not the file that was compiled" in caplog.text
    assert not path.exists()
    assert not note_of(path).exists()


def test_a_package_that_computes_something_else_is_deleted(weights, own, caplog, monkeypatch):
    folder, path = own
    model = load(weights)
    right = model.denoise.predictor.eager
    monkeypatch.setattr(model.denoise.predictor, "eager", lambda inputs: 1.001 * right(inputs))
    load_compiled(model, folder, SHAPES)
    assert not prepared(model)
    assert not path.exists()
    assert "64x64-2.pt2: differs by 1.0e-03 from the networks" in caplog.text


def test_a_package_is_kept_where_only_memory_ran_out(weights, own, caplog, monkeypatch):
    folder, path = own

    def full(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(compiled, "difference", full)
    model = load(weights)
    load_compiled(model, folder, SHAPES)
    assert not prepared(model)
    assert path.exists()
    assert "does not serve now" in caplog.text


@pytest.mark.parametrize("note", ["", "0", "[]"])
def test_a_note_that_says_nothing_is_no_proof(weights, own, note):
    folder, path = own
    note_of(path).write_text(note)
    model = load(weights)
    load_compiled(model, folder, SHAPES)
    assert not prepared(model)
    assert not path.exists()


def test_a_package_without_a_note_is_not_whole(weights, own, caplog):
    folder, path = own
    note_of(path).unlink()
    model = load(weights)
    load_compiled(model, folder, SHAPES)
    assert not prepared(model)
    assert "no compiled step 64x64-2" in caplog.text


def test_a_prepared_step_that_fails_is_done_without(weights, caplog):
    model, eager = load(weights), load(weights)
    ours, theirs = model.example(SIZE, ROWS), eager.example(SIZE, ROWS)

    def broken(inputs):
        raise RuntimeError("no kernel image is available")

    model.denoise.predictor.prepared[model.denoise.inputs(ours).key] = broken
    step(model, ours)
    step(eager, theirs)
    assert torch.equal(ours[0].latents, theirs[0].latents)
    assert not prepared(model)
    assert "runs eagerly from now on" in caplog.text


def test_where_identitynet_does_not_act_the_networks_run_as_they_are(weights):
    model = load(weights)
    states = model.example(SIZE, ROWS)
    inputs = model.denoise.inputs(states)
    model.denoise.predictor.prepared[inputs.key] = lambda inputs: pytest.fail("compiled with IdentityNet")
    for state in states:
        state.windows = ((0.0,) * len(state.timesteps),)
    step(model, states)


def test_the_note_names_the_file(cache):
    (path,) = cache.glob("compiled-*/*.sha256")
    assert path.read_bytes() == compiled.file_sha256(path.with_suffix(".pt2"))
    assert len(path.read_text()) == 64
