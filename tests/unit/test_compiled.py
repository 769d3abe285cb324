"""Steps compiled ahead of time: they compute what the networks compute, and nothing that is kept is trusted."""

import json
import shutil
import time
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from build_tools.weights import MINIATURE
from instantid.models.sdxl import SdxlDenoiser
from instantid.models.sdxl.compiled import difference, example, fingerprint, load_step, note_of
from instantid.serving import calibration, compiling
from instantid.serving.calibration import make_job
from instantid.serving.compiling import CompiledSteps
from instantid.settings import Settings
from miniature import sdxl

SIZE, ROWS = (64, 64), 2
SHAPE = torch.Size((ROWS, 4, 8, 8))
BLOCKS = {
    **sdxl.BLOCKS,
    "block_out_channels": (32,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "attention_head_dim": (2,),
    "transformer_layers_per_block": (1,),
}


def make_unet():
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, up_block_types=("CrossAttnUpBlock2D",), **BLOCKS
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The smallest networks that have every part: a compiler takes minutes for the miniature's."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdxl, "BLOCKS", BLOCKS)
        patch.setattr(sdxl, "make_unet", make_unet)
        sdxl.write_sdxl(folder / "sdxl")
        sdxl.write_identitynet(folder / "identitynet")
        sdxl.write_adapter(folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def one_step():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "planned_sizes", lambda profile: [SIZE])
        patch.setattr(compiling, "NATIVE_ROWS", (ROWS,))
        yield


@pytest.fixture(scope="module")
def settings(weights, tmp_path_factory):
    return Settings(weights=weights, cache=tmp_path_factory.mktemp("cache"), compile="background")


def load(weights):
    return SdxlDenoiser.load(weights, torch.device("cpu"), torch.float32)


def states(denoiser, rows=ROWS):
    return [denoiser.start(make_job(SIZE)) for _ in range(rows)]


@pytest.fixture(scope="module")
def made(weights, settings, one_step):
    """The package that a process beside a denoiser made while that took steps, and how many it took meanwhile."""
    denoiser = load(weights)
    steps = CompiledSteps(denoiser, MINIATURE, settings)
    steps.start()
    try:
        taken, ends = 0, time.monotonic() + 400
        while not denoiser.compiled and time.monotonic() < ends:
            denoiser.step(states(denoiser))
            taken += 1
            time.sleep(0.2)
    finally:
        steps.close()
    (path,) = settings.cache_folder.glob("compiled-*/*.pt2")
    assert list(denoiser.compiled) == [SHAPE], (path.parent / "log").read_text()
    return path, taken


@pytest.fixture
def own(made, settings, tmp_path):
    """Settings with a copy of the cache that a test may damage, and the package in it."""
    folder = tmp_path / "cache"
    shutil.copytree(settings.cache_folder, folder)
    return settings.model_copy(update={"cache": folder}), folder / made[0].relative_to(settings.cache_folder)


def test_steps_are_taken_while_a_process_compiles_them(made):
    path, taken = made
    assert taken > 20
    assert not list(path.parent.glob("*partial*"))


def test_what_was_compiled_serves_at_once_and_computes_what_the_networks_compute(weights, settings, made):
    denoiser, eager = load(weights), load(weights)
    CompiledSteps(denoiser, MINIATURE, settings)
    assert list(denoiser.compiled) == [SHAPE]
    assert 0 < difference(denoiser, denoiser.compiled[SHAPE], example(denoiser, states(denoiser))) <= 1e-5
    ours, theirs = states(denoiser), states(eager)
    for _ in range(5):
        denoiser.step(ours)
        eager.step(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert 0 < (one.latents - other.latents).abs().max() <= 1e-4 * other.latents.abs().max()


def test_a_package_for_slightly_other_weights_is_refused(weights, made):
    """The compiler writes vectors of up to eight numbers into the code, such as the bias of the last convolution."""
    denoiser = load(weights)
    denoiser.networks.unet.conv_out.bias.data += 0.01
    with pytest.raises(ValueError, match="from the networks"):
        load_step(denoiser, states(denoiser), made[0])


def test_a_package_that_is_not_the_one_that_was_written_is_thrown_away(weights, own, caplog):
    settings, path = own
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    denoiser = load(weights)
    CompiledSteps(denoiser, MINIATURE, settings)
    assert not denoiser.compiled
    assert f"{path.name}: not the file that was compiled" in caplog.text
    assert not path.exists()
    assert not note_of(path).exists()


def test_a_package_that_computes_something_else_is_thrown_away(weights, own, caplog, monkeypatch):
    settings, path = own
    denoiser = load(weights)
    right = denoiser.predict
    monkeypatch.setattr(denoiser, "predict", lambda *given: 1.001 * right(*given))
    CompiledSteps(denoiser, MINIATURE, settings)
    assert not denoiser.compiled
    assert not path.exists()
    assert "64x64-2.pt2: differs by 1.0e-03 from the networks" in caplog.text


@pytest.mark.parametrize("note", ["{}", "", "[]", '{"sha256": "0"}'])
def test_a_note_that_says_nothing_is_no_proof(weights, own, note):
    settings, path = own
    note_of(path).write_text(note)
    denoiser = load(weights)
    CompiledSteps(denoiser, MINIATURE, settings)
    assert not denoiser.compiled
    assert not path.exists()


def test_a_package_without_a_note_is_not_whole(weights, own):
    settings, path = own
    note_of(path).unlink()
    denoiser = load(weights)
    CompiledSteps(denoiser, MINIATURE, settings)
    assert not denoiser.compiled


def test_other_weights_look_elsewhere(weights, settings, made):
    denoiser = load(weights)
    assert made[0].parent.name == f"compiled-{fingerprint(denoiser)}"
    weight = denoiser.networks.unet.conv_in.weight.data
    weight[0, 0, 0, 0], weight[0, 0, 0, 1] = weight[0, 0, 0, 1].clone(), weight[0, 0, 0, 0].clone()
    CompiledSteps(denoiser, MINIATURE, settings)
    assert made[0].parent.name != f"compiled-{fingerprint(denoiser)}"
    assert not denoiser.compiled


def test_a_compiled_step_that_fails_is_done_without(weights, caplog):
    denoiser, eager = load(weights), load(weights)

    def broken(*given):
        raise RuntimeError("no kernel image is available")

    denoiser.compiled[SHAPE] = broken
    ours, theirs = states(denoiser), states(eager)
    denoiser.step(ours)
    eager.step(theirs)
    assert torch.equal(ours[0].latents, theirs[0].latents)
    assert not denoiser.compiled
    assert "going on without it" in caplog.text


def test_where_identitynet_does_not_act_the_networks_run_as_they_are(weights, monkeypatch):
    denoiser = load(weights)
    denoiser.compiled[SHAPE] = lambda *given: pytest.fail("compiled with IdentityNet")
    job = make_job(SIZE)
    job = job._replace(request=replace(job.request, controlnet_conditioning_scale=0.0))
    denoiser.step([denoiser.start(job) for _ in range(ROWS)])


@pytest.mark.parametrize(
    ("name", "stand_in", "reason"),
    [
        ("shutil.which", lambda name: None, "there is no g++"),
        ("instantid.serving.compiling.free_bytes", lambda device: 10**5, "0.0 GB are free on cpu"),
    ],
)
def test_where_nothing_can_be_compiled_the_log_says_why(
    weights, tmp_path, one_step, caplog, monkeypatch, name, stand_in, reason
):
    monkeypatch.setattr(name, stand_in)
    CompiledSteps(load(weights), MINIATURE, Settings(weights=weights, cache=tmp_path, compile="background")).start()
    assert f"1 steps stay uncompiled: {reason}" in caplog.text
    assert not list(tmp_path.rglob("*"))


def test_a_cache_folder_that_cannot_be_written_costs_only_the_compiling(weights, tmp_path, one_step, caplog):
    (tmp_path / "cache").write_text("a file where the folder would be")
    steps = CompiledSteps(load(weights), MINIATURE, Settings(weights=weights, cache=tmp_path / "cache"))
    steps.start()
    assert "1 steps stay uncompiled: [Errno" in caplog.text
    steps.close()


def test_a_worker_that_has_other_networks_than_the_server_makes_nothing(weights, settings, tmp_path, one_step, caplog):
    denoiser = load(weights)
    denoiser.networks.unet.conv_in.bias.data += 1
    steps = CompiledSteps(denoiser, MINIATURE, settings.model_copy(update={"cache": tmp_path}))
    steps.start()
    steps.wait()
    (log,) = tmp_path.glob("compiled-*/log")
    assert "the networks here are not those of the server" in log.read_text()
    assert not list(tmp_path.rglob("*.pt2"))
    steps.close()


def test_costs_of_compiled_steps_are_kept_by_themselves(weights):
    denoiser = load(weights)
    before = calibration.fingerprint(denoiser)
    denoiser.compiled[SHAPE] = print
    assert calibration.fingerprint(denoiser) != before


def test_the_note_names_the_file(made):
    note = json.loads(note_of(made[0]).read_text())
    assert set(note) == {"sha256"}
    assert len(note["sha256"]) == 64
