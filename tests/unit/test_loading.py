"""Sets of weights that cannot be served are refused by the name of what is wrong; the adapter's conversion."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from build_tools.convert import convert_adapter
from instantid.models.sdxl import SdxlModel


def test_adapter_conversion_keeps_names_and_values(tmp_path):
    parts = {
        "image_proj": {"latents": torch.randn(1, 2, 3)},
        "ip_adapter": {"1.to_k_ip.weight": torch.randn(2, 3)},
    }
    torch.save(parts, tmp_path / "ip-adapter.bin")
    convert_adapter(tmp_path / "ip-adapter.bin", tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {"image_proj.latents", "ip_adapter.1.to_k_ip.weight"}
    assert torch.equal(found["image_proj.latents"], parts["image_proj"]["latents"])


def test_adapter_conversion_refuses_other_files(tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ValueError, match="image_proj and ip_adapter"):
        convert_adapter(tmp_path / "other.bin", tmp_path / "out.safetensors")


def copy_weights(source, target):
    shutil.copytree(source, target)
    return target


@pytest.mark.parametrize(
    "part",
    ["sdxl/unet/config.json", "identitynet/config.json", "adapter/ip-adapter.safetensors", "sdxl/tokenizer_2"],
)
def test_a_missing_part_is_named(diffusion_weights, tmp_path, part):
    weights = copy_weights(diffusion_weights, tmp_path / "w")
    (weights / part).rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=part.split("/")[-1]):
        SdxlModel.load(weights, torch.device("cpu"), torch.float32)


def test_an_adapter_for_another_unet_is_refused(diffusion_weights, tmp_path):
    weights = copy_weights(diffusion_weights, tmp_path / "w")
    path = weights / "adapter" / "ip-adapter.safetensors"
    tensors = load_file(path)
    del tensors["ip_adapter.3.to_v_ip.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"ip_adapter\.3\.to_v_ip\.weight and 0 more do not fit"):
        SdxlModel.load(weights, torch.device("cpu"), torch.float32)


def test_a_missing_tensor_is_named(diffusion_weights, tmp_path):
    weights = copy_weights(diffusion_weights, tmp_path / "w")
    path = weights / "sdxl" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing keys: conv_in.weight"):
        SdxlModel.load(weights, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("identitynet/diffusion_pytorch_model.safetensors", "conv_in.bias"),
        ("adapter/ip-adapter.safetensors", "image_proj.latents"),
    ],
)
def test_values_that_are_not_finite_are_refused_in_every_network(diffusion_weights, tmp_path, file, tensor):
    path = copy_weights(diffusion_weights, tmp_path / "w") / file
    tensors = load_file(path)
    tensors[tensor].fill_(torch.nan)
    save_file(tensors, path)
    with pytest.raises(ValueError, match=rf"{tensor} and 0 more tensors are NaN or infinite"):
        SdxlModel.load(tmp_path / "w", torch.device("cpu"), torch.float32)
