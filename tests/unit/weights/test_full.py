"""Download, convert and verify, from a hub on loopback to a picture."""

import shutil
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from build_tools.published import cli
from build_tools.published.manifest import MANIFEST, load_manifest
from build_tools.published.verify import verify
from instantid.models.sdxl import SdxlModel
from instantid.profile import SDXL, load_profile
from miniature.sdxl import TEST_SIZES

from .commands import ACCEPT, assert_paints, make, run
from .hub import LoopbackHub
from .test_verify import _flip


def test_from_hub_to_a_picture_in_one_command(repositories, manifest, tmp_path):
    """In a process of its own, as an operator runs it; huggingface_hub reads its settings when it is imported."""
    command = [sys.executable, "-m", "build_tools", "weights", "full", "--output", "set", "--manifest", manifest]
    with LoopbackHub(repositories) as hub:
        settings = {
            "HF_ENDPOINT": hub.url,
            "INSTANTID_ACCEPT_LICENCE": "yes",
            "PATH": "/usr/bin:/bin",
            "HOME": tmp_path,
        }
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "set: complete, untouched, loadable" in done.stderr
    assert_paints(tmp_path / "set")
    assert_finds_faces(tmp_path / "set")
    assert verify(tmp_path / "set", load=True) == []
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".partial", ".old"))]


def assert_finds_faces(folder):
    session = onnxruntime.InferenceSession(folder / "face_analysis.onnx", providers=["CPUExecutionProvider"])
    photo = np.random.default_rng(0).integers(0, 256, (1, 1280, 1280, 3), np.uint8)
    found = dict(zip([output.name for output in session.get_outputs()], session.run(None, {
        "images": photo, "sizes": np.array([[1280, 1280]], np.int64)
    }), strict=True))  # fmt: skip
    assert found["embeddings"].shape == (len(found["boxes"]), 512)


def test_the_set_holds_the_published_tensors(full, diffusion_weights):
    """Against the set that the miniature was published from."""
    for name, dtype in {
        "sdxl/unet/diffusion_pytorch_model": torch.float16,
        "sdxl/text_encoder_2/model": torch.float16,
        "identitynet/diffusion_pytorch_model": torch.float16,
        "adapter/ip-adapter": torch.float16,
        "sdxl/vae/diffusion_pytorch_model": torch.float32,
    }.items():
        original, found = (load_file(folder / f"{name}.safetensors") for folder in (diffusion_weights, full))
        assert found.keys() == original.keys()
        assert all(torch.equal(found[key], original[key].to(dtype)) for key in original), name


def test_the_tokenizers_encode_alike(full, diffusion_weights):
    from transformers import CLIPTokenizer

    text = "a portrait of a queen in a garden, watercolor"
    for name in ("tokenizer", "tokenizer_2"):
        ours, original = (CLIPTokenizer.from_pretrained(folder / "sdxl" / name) for folder in (full, diffusion_weights))
        assert ours(text).input_ids == original(text).input_ids
    padded = CLIPTokenizer.from_pretrained(full / "sdxl/tokenizer_2")(text, padding="max_length", max_length=77)
    assert padded.input_ids[-1] == ours.get_vocab()["!"]


def test_the_text_encoders_are_really_loaded(full, diffusion_weights):
    """transformers would leave tensors whose names it does not know at random."""
    cpu, text = torch.device("cpu"), "a portrait of a queen"
    found, expected = (
        SdxlModel.load(folder, cpu, torch.float32).networks.text.encode(text) for folder in (full, diffusion_weights)
    )
    first = slice(TEST_SIZES.text_widths[0])
    torch.testing.assert_close(found.tokens[..., first], expected.tokens[..., first], rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.pooled, expected.pooled, rtol=0.01, atol=0.01)


def test_profile_and_permissions(full):
    profile = load_profile(full)
    assert (profile.native_area, profile.max_side) == (SDXL["native_area"], SDXL["max_side"])
    assert any("research" in licence for licence in profile.licences)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in full.rglob("*"))


def test_files_of_the_same_disk_are_linked(full, mirror):
    unet = mirror / "stabilityai/stable-diffusion-xl-base-1.0/unet/diffusion_pytorch_model.fp16.safetensors"
    assert (full / "sdxl/unet/diffusion_pytorch_model.safetensors").samefile(unet)


def test_nothing_is_done_before_the_licence_is_accepted(manifest, mirror, tmp_path):
    result = make(tmp_path / "set", manifest, "--mirror", mirror)
    assert result.exit_code == 1
    assert "non-commercial research only" in result.output
    assert "instantid, antelopev2: if you may use them under these terms, add --accept-licence" in result.output
    assert not (tmp_path / "set").exists()


def test_wrong_file_in_a_mirror(manifest, mirror, tmp_path):
    shutil.copytree(mirror, tmp_path / "mirror")
    adapter = tmp_path / "mirror/InstantX/InstantID/ip-adapter.bin"
    _flip(adapter)
    result = make(tmp_path / "set", manifest, "--mirror", tmp_path / "mirror", ACCEPT)
    assert f"error: {adapter}: wrong checksum: sha256 is " in result.output
    adapter.unlink()
    result = make(tmp_path / "set", manifest, "--mirror", tmp_path / "mirror", ACCEPT)
    assert f"error: {adapter}: is missing" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == [".weights.lock", "mirror"]


def test_a_set_that_is_there_is_not_made_again(full, manifest, monkeypatch):
    monkeypatch.setattr(cli, "Hub", None)
    assert "already there" in make(full, manifest).output


def test_what_a_server_keeps_beside_a_set_changes_nothing_of_it(full, manifest, tmp_path, monkeypatch):
    shutil.copytree(full, tmp_path / "set")
    (tmp_path / "set" / ".cache").mkdir()
    (tmp_path / "set" / ".cache" / "costs-0.json").write_text("[]")
    assert run("verify", tmp_path / "set").exit_code == 0
    monkeypatch.setattr(cli, "Hub", None)
    assert "already there" in make(tmp_path / "set", manifest).output


def test_a_folder_that_is_no_set_is_never_replaced(manifest, mirror, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    result = make(tmp_path / "home", manifest, "--mirror", mirror, ACCEPT)
    assert "home: is not a set of weights and is not replaced" in result.output
    assert (tmp_path / "home/thesis.txt").exists()


def test_a_set_made_otherwise_is_replaced_whole(full, manifest, mirror, tmp_path):
    shutil.copytree(full, tmp_path / "full")
    (tmp_path / "full/leftover").write_text("of an older set")
    assert make(tmp_path / "full", manifest, "--mirror", mirror, ACCEPT, "--with", "lcm").exit_code == 0
    assert not (tmp_path / "full/leftover").exists()
    assert (tmp_path / "full/lora/lcm.safetensors").exists()


def test_the_real_manifest():
    manifest = load_manifest(MANIFEST)
    assert {name for name, source in manifest.items() if source.must_accept} == {"instantid", "antelopev2"}
    needed = [source for source in manifest.values() if not source.optional]
    assert sum(source.size for source in needed) == pytest.approx(11.66e9, rel=0.01)
    assert all(file.sha256 for source in manifest.values() for file in source.files)
