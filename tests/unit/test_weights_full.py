"""Download, convert and verify, from a hub on loopback to a picture."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from build_tools.__main__ import app
from build_tools.published import cli
from build_tools.published.manifest import MANIFEST, load_manifest
from build_tools.published.transfer import Hub
from build_tools.published.verify import verify
from instantid.models.sdxl import SdxlModel
from instantid.profile import SDXL, load_profile
from miniature.sdxl import TEST_SIZES

from .diffusing import make_job
from .hub import REVISION, LoopbackHub
from .published_miniature import published_files, write_manifest

ACCEPT = "--accept-licence"


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faces")


@pytest.fixture(scope="module")
def repositories(diffusion_weights, faces):
    return published_files(diffusion_weights, faces)


@pytest.fixture(scope="module")
def manifest(repositories, faces, tmp_path_factory) -> Path:
    return write_manifest(tmp_path_factory.mktemp("manifest") / "weights.toml", repositories, faces)


@pytest.fixture(scope="module")
def mirror(repositories, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mirror")
    for repository, files in repositories.items():
        for name, content in files.items():
            (folder / repository / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / repository / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def full(manifest, mirror, tmp_path_factory) -> Path:
    """A set made from the mirror; copy it before changing it."""
    folder = tmp_path_factory.mktemp("sets") / "full"
    assert make(folder, manifest, "--mirror", mirror, ACCEPT).exit_code == 0
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


def make(output, manifest, *arguments):
    return run("full", "--output", output, "--manifest", manifest, *arguments)


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


def assert_paints(folder):
    model = SdxlModel.load(folder, torch.device("cpu"), torch.float32)
    state = model.start(*make_job(num_inference_steps=1))
    for kind in ("step", "decode"):
        model.work(kind, [state]).wait()
    picture = state.pictures[0].numpy()
    assert state.failure is None
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: _flip(folder / "sdxl/unet/diffusion_pytorch_model.safetensors"), "was changed since"),
        (lambda folder: (folder / "identitynet/config.json").unlink(), "identitynet/config.json: is missing"),
        (lambda folder: (folder / "sdxl/extra.safetensors").touch(), "extra.safetensors: was not there"),
        (lambda folder: (folder / "files.json").unlink(), "files.json: no record"),
        (
            lambda folder: _truncate(folder / "adapter/ip-adapter.safetensors"),
            "adapter/ip-adapter.safetensors: ValueError",
        ),
        (lambda folder: _truncate(folder / "face_analysis.onnx"), "face_analysis.onnx: "),
        (lambda folder: _edit(folder / "sdxl/unet/config.json", layers_per_block=2), "sdxl/unet: ValueError: "),
        (lambda folder: _edit(folder / "sdxl/unet/config.json", cross_attention_dim=32), "do not fit this UNet"),
        (lambda folder: shutil.rmtree(folder / "sdxl/tokenizer"), "sdxl/tokenizer: FileNotFoundError"),
        (lambda folder: (folder / "sdxl/scheduler/scheduler_config.json").write_text("{"), "JSONDecodeError"),
    ],
)
def test_verify_finds(full, tmp_path, change, message):
    shutil.copytree(full, tmp_path / "set")
    change(tmp_path / "set")
    result = run("verify", tmp_path / "set")
    assert result.exit_code == 1
    assert message in result.output
    assert "licence: InstantX/InstantID" in result.output


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:1000])


def _edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_real_manifest():
    manifest = load_manifest(MANIFEST)
    assert {name for name, source in manifest.items() if source.must_accept} == {"instantid", "antelopev2"}
    needed = [source for source in manifest.values() if not source.optional]
    assert sum(source.size for source in needed) == pytest.approx(11.66e9, rel=0.01)
    assert all(file.sha256 for source in manifest.values() for file in source.files)
