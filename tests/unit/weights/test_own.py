"""Sets with files of one's own: checkpoints, LoRAs, faces, folders in full precision."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from build_tools.published import cli
from build_tools.published.transfer import Hub
from build_tools.published.verify import verify
from instantid.profile import load_profile

from .commands import ACCEPT, assert_paints, make
from .hub import REVISION, LoopbackHub


def test_own_faces_need_no_antelopev2(manifest, mirror, faces, tmp_path):
    own = ("--faces", faces / "scrfd_10g_bnkps.onnx", faces / "glintr100.onnx")
    assert make(tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, *own).exit_code == 0
    licences = load_profile(tmp_path / "set").licences
    assert "glintr100.onnx: your own file, licence not known here" in licences
    assert not any("insightface" in licence for licence in licences)
    assert verify(tmp_path / "set") == []


def test_few_step_loras_and_own_ones_come_along(manifest, mirror, tmp_path):
    own = tmp_path / "style.safetensors"
    shutil.copy(mirror / "latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors", own)
    extras = ("--with", "lcm", "--with", "hyper", "--with", own, "--with", "vae-fp16-fix")
    result = make(tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, *extras)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "set/lora").iterdir()) == [
        "hyper.safetensors", "lcm.safetensors", "style.safetensors",
    ]  # fmt: skip
    assert "inexact" in result.output


def test_two_loras_of_one_name(manifest, mirror, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(mirror / "latent-consistency/lcm-lora-sdxl/pytorch_lora_weights.safetensors", tmp_path / folder)
    loras = [item for folder in "ab" for item in ("--with", tmp_path / folder / "pytorch_lora_weights.safetensors")]
    result = make(tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, *loras)
    assert "a second file for lora/pytorch_lora_weights.safetensors" in result.output
    assert not (tmp_path / "set").exists()


def test_unknown_extra_names_the_known(manifest, mirror, tmp_path):
    result = make(tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, "--with", "turbo")
    assert "--with turbo: is neither a file nor one of vae-fp16-fix, lcm, hyper" in result.output


def test_own_checkpoint_folder_in_full_precision(manifest, mirror, diffusion_weights, tmp_path):
    checkpoint = diffusion_weights / "sdxl"
    result = make(
        tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, "--checkpoint", checkpoint, "--dtype", "bfloat16"
    )
    assert result.exit_code == 0, result.output
    for name in ("sdxl/unet/diffusion_pytorch_model", "identitynet/diffusion_pytorch_model", "adapter/ip-adapter"):
        tensors = load_file(tmp_path / "set" / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert verify(tmp_path / "set") == []
    assert_paints(tmp_path / "set")


def test_own_checkpoint_on_the_hub_is_pinned(repositories, manifest, tmp_path, monkeypatch):
    sdxl = repositories["stabilityai/stable-diffusion-xl-base-1.0"]
    with LoopbackHub({**repositories, "someone/painterly-xl": sdxl}) as hub:
        monkeypatch.setattr(cli, "Hub", lambda: Hub(hub.url))
        result = make(tmp_path / "set", manifest, ACCEPT, "--checkpoint", "someone/painterly-xl")
        missing = make(tmp_path / "other", manifest, ACCEPT, "--checkpoint", "someone/else")
    assert result.exit_code == 0, result.output
    assert "someone/painterly-xl: openrail++" in result.output
    assert "checkpoint someone/else: neither here nor on the hub" in missing.output
    lock = json.loads((tmp_path / "published/weights.lock.json").read_text())
    recorded = {key.partition("@")[2] for key in lock}
    assert f"{REVISION}/unet/config.json" in recorded
    assert not any(key.endswith(".safetensors") for key in recorded)
    assert verify(tmp_path / "set") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "text_encoder_2 is missing"),
        (
            lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/model.bin"),
            "unet is only there as a pickle",
        ),
        (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler is missing"),
    ],
)
def test_checkpoint_folder_that_is_not_whole(manifest, mirror, diffusion_weights, tmp_path, change, message):
    shutil.copytree(diffusion_weights / "sdxl", tmp_path / "sdxl")
    change(tmp_path / "sdxl")
    result = make(tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, "--checkpoint", tmp_path / "sdxl")
    assert result.exit_code == 1
    assert f"{tmp_path / 'sdxl'}: {message}" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [".weights.lock", "sdxl"]


def test_one_file_is_left_to_serving(manifest, mirror, tmp_path):
    (tmp_path / "painterly.safetensors").touch()
    own = ("--checkpoint", tmp_path / "painterly.safetensors")
    result = make(tmp_path / "set", manifest, "--mirror", mirror, ACCEPT, *own)
    assert f"is served as it is: INSTANTID_CHECKPOINT={tmp_path}/painterly.safetensors" in result.output
