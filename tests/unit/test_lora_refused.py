"""LoRA files that are none, or not for this checkpoint, and the setting that lists files."""

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from instantid.models.sdxl import SdxlModel
from instantid.settings import Settings

from .lora_files import ATTENTION, CPU, write


def pair(layer, down=(3, 64), up=(64, 3), value=0.0):
    return {f"{layer}.lora_{k}.weight": torch.full(s, value) for k, s in (("A", down), ("B", up))}


QUERY = f"unet.{ATTENTION}.attn1.to_q"
KOHYA_QUERY = f"lora_unet_{ATTENTION.replace('.', '_')}_attn1_to_q"
FAULTS = {
    "no LoRA": ({"conv_in.weight": torch.zeros(2, 2)}, "not a LoRA for SDXL: conv_in.weight and 0 more"),
    "nothing": ({}, "it is empty"),
    "half a pair": ({f"{QUERY}.lora_A.weight": torch.zeros(3, 64)}, "attn1.to_q (down) does not fit"),
    "another model": (pair("unet.blocks.7.to_q"), "unet.blocks.7.to_q and 0 more are no layers of this checkpoint"),
    "another width": (pair(QUERY, down=(3, 65)), "attn1.to_q (down, up) does not fit"),
    "transposed": (pair(f"unet.{ATTENTION}.ff.net.0.proj", (3, 512), (64, 3)), "ff.net.0.proj (down, up) does not fit"),
    "a bias where there is none": ({f"{KOHYA_QUERY}.diff_b": torch.zeros(64)}, "does not fit the checkpoint's bias"),
    "two layouts at once": (
        pair(QUERY) | pair("diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q"),
        "names some layers twice",
    ),
    "biases": (pair(QUERY) | {f"{QUERY}.lora_B.bias": torch.zeros(64)}, "a LoRA of biases, which cannot be fused"),
    "several alphas": (pair(QUERY) | {f"{QUERY}.alpha": torch.ones(3)}, "attn1.to_q (alpha, down, up) does not fit"),
    "OFT": ({f"{KOHYA_QUERY}.oft_blocks": torch.zeros(4, 16, 16)}, "OFT, which cannot be fused"),
    "OFT of LyCORIS": ({f"{KOHYA_QUERY}.oft_diag": torch.zeros(4, 16)}, "OFT, which cannot be fused"),
    "IA3": ({f"{KOHYA_QUERY}.on_input": torch.zeros(1), f"{KOHYA_QUERY}.weight": torch.zeros(64)}, "IA3, which"),
    "GLoRA": ({f"{KOHYA_QUERY}.{k}.weight": torch.zeros(4, 4) for k in ("a1", "a2", "b1", "b2")}, "GLoRA, which"),
    "embedding": ({"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 64)}, "a textual inversion embedding"),
    "FLUX": (pair("transformer.single_transformer_blocks.0.attn.to_q"), "a LoRA for FLUX or Stable Diffusion 3"),
    "checkpoint": ({"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}, "a whole checkpoint"),
    "not finite": (pair(QUERY, value=torch.inf), "does not fit torch.float32"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_other_files_are_refused(diffusion_weights, tmp_path, fault):
    tensors, message = FAULTS[fault]
    path = write(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        SdxlModel.load(diffusion_weights, CPU, torch.float32, loras=[(path, 1.0)])
    assert str(path) in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 200
    assert "\n" not in str(error.value)


def test_settings_read_files_and_weights(monkeypatch):
    monkeypatch.setenv("INSTANTID_WEIGHTS", "w")
    assert Settings().lora == ()
    monkeypatch.setenv("INSTANTID_LORA", "a b.safetensors:0.65, /c/d.safetensors,e.safetensors:-1")
    assert Settings().lora == (
        (Path("a b.safetensors"), 0.65), (Path("/c/d.safetensors"), 1.0), (Path("e.safetensors"), -1.0),
    )  # fmt: skip
    for wrong in ("a.bin", "a.safetensors:x", "a.safetensors:", "a.safetensors,,b.safetensors", "a.safetensors:nan",
                  "a.safetensors:1e999", "a.safetensors:1_0", '"a, b".safetensors, c'):  # fmt: skip
        monkeypatch.setenv("INSTANTID_LORA", wrong)
        with pytest.raises(ValidationError, match="lora"):
            Settings()


GRAMMAR = {
    "a.safetensors: 0.6": ("a.safetensors", 0.6),
    "a.safetensors :.5": ("a.safetensors", 0.5),
    "a.safetensors:+0.5": ("a.safetensors", 0.5),
    "a.safetensors:1e-1": ("a.safetensors", 0.1),
    "a.safetensors:-2.": ("a.safetensors", -2.0),
    "A.SAFETENSORS:0.5": ("A.SAFETENSORS", 0.5),
    '"a, b.safetensors"': ("a, b.safetensors", 1.0),
    '"a, b.safetensors": 0.5': ("a, b.safetensors", 0.5),
    '"a, ""b"".safetensors:0.5"': ('a, "b".safetensors', 0.5),
    "a:0.3.safetensors:0.5": ("a:0.3.safetensors", 0.5),
}


@pytest.mark.parametrize("text", GRAMMAR)
def test_the_grammar_of_lora_files(monkeypatch, text):
    monkeypatch.setenv("INSTANTID_WEIGHTS", "w")
    path, weight = GRAMMAR[text]
    monkeypatch.setenv("INSTANTID_LORA", f"first.safetensors,{text} , last.safetensors")
    assert Settings().lora == ((Path("first.safetensors"), 1.0), (Path(path), weight), (Path("last.safetensors"), 1.0))
