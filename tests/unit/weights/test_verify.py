"""A set is checked file by file: what was changed since it was made, or does not fit together, is named."""

import json
import shutil

import pytest

from .commands import run


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
