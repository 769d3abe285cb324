"""What is no SDXL checkpoint, or not a whole one, is refused by the name of what is wrong."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from instantid.models.sdxl import SdxlModel
from instantid.models.sdxl.checkpoint import SINGLE_FILE_PARTS

from .checkpoints import CPU, EMPTY, rewrite

FIRST = "model.diffusion_model.input_blocks.0.0.weight"
LAYER = "model.diffusion_model.middle_block.1.proj_in"
OTHER_KINDS = {
    "CosXL": ({"edm_vpred.sigma_max": torch.tensor(120.0)}, "an EDM model that predicts velocity"),
    "Playground": ({"edm_mean": torch.zeros(4), "edm_std": torch.ones(4)}, r"an EDM model \(Playground"),
    "inpainting": ({FIRST: torch.zeros(32, 9, 3, 3)}, "takes 9 channels, so this is an inpainting model"),
    "pix2pix": ({FIRST: torch.zeros(32, 8, 3, 3)}, "takes 8 channels, so this is an instruct-pix2pix model"),
    "5 channels": ({FIRST: torch.zeros(32, 5, 3, 3)}, "takes 5 channels, so this is another model"),
    "refiner": ({"conditioner.embedders.0.model.ln_final.bias": torch.zeros(4)}, "the SDXL refiner"),
    "SD 1.5": ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": torch.zeros(4)}, "Diffusion 1.5"),
    "SD 2": ({"cond_stage_model.model.ln_final.bias": torch.zeros(4)}, "Stable Diffusion 2"),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": torch.zeros(4, 4)}, "Diffusion 3"),
    "ControlNet": ({"control_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, "a ControlNet"),
    "LoRA": ({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(4, 4)}, "INSTANTID_LORA"),
    "int8": ({f"{LAYER}.weight": torch.zeros(64, 64, dtype=torch.int8)}, r"proj_in.weight is quantised \(torch.int8"),
    "int8 of bitsandbytes": ({f"{LAYER}.SCB": torch.zeros(64)}, "quantised to whole numbers"),
    "nf4": ({f"{LAYER}.weight.quant_state.bitsandbytes__nf4": torch.zeros(9)}, "quantised to 4 bits"),
    "scale of nothing": ({f"{LAYER}.scale_weight": torch.tensor(2.0)}, "proj_in.scale_weight scales no float8"),
    "several scales": (
        {f"{LAYER}.weight": torch.zeros(64, 64).to(torch.float8_e4m3fn), f"{LAYER}.weight_scale": torch.ones(64, 4)},
        "proj_in.weight_scale scales no float8",
    ),
    "unknown": ({"extra.b": torch.ones(2), "extra.a": torch.ones(2)}, "SDXL has no place for extra.a and 1 more"),
    "unknown marker": ({"flow_pred": EMPTY}, "SDXL has no place for flow_pred and 0 more"),
    "unknown in the UNet": ({f"{LAYER}.extra": torch.ones(2)}, "the UNet has no place for .*proj_in.extra and 0 more"),
    "unknown in the VAE": ({"first_stage_model.extra": torch.ones(2)}, "the VAE has no place for .*extra and 0 more"),
    "unknown in CLIP-L": (
        {"conditioner.embedders.0.transformer.text_model.extra": torch.ones(2)},
        "CLIPTextModel has no place for .*extra and 0 more",
    ),
    "unknown in CLIP-G": (
        {"conditioner.embedders.1.model.extra": torch.ones(2)},
        "CLIP-G has no place for .*extra and 0 more",
    ),
    "unknown in a layer of CLIP-G": (
        {"conditioner.embedders.1.model.transformer.resblocks.0.extra": torch.ones(2)},
        "CLIPTextModelWithProjection has no place for .*extra and 0 more",
    ),
    "another size": (
        {f"{LAYER}.weight": torch.ones(2, 2), f"{LAYER}.bias": torch.ones(2)},
        r"proj_in\.\w+ has the shape .*, not .*, and 1 more have others too",
    ),
    "another shape in CLIP-L": (
        {"conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": torch.ones(2)},
        "final_layer_norm.bias and 0 more, or their shapes differ",
    ),
    "NaN": ({f"{LAYER}.bias": torch.full((64,), torch.nan)}, "unet.*proj_in.bias and 0 more tensors are NaN or inf"),
    "ztsnr alone": ({"ztsnr": EMPTY}, "zero terminal SNR; .* set INSTANTID_PREDICTION_TYPE"),
}


def refusal(weights, checkpoint, dtype=torch.float32):
    with pytest.raises(ValueError, match=re.escape(checkpoint.name)) as error:
        SdxlModel.load(weights, CPU, dtype, checkpoint=checkpoint)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(checkpoint)) + 300
    return str(error.value)


@pytest.mark.parametrize("case", OTHER_KINDS)
def test_what_is_not_sdxl_s_base_is_refused_by_name(diffusion_weights, community_tensors, tmp_path, case):
    changes, message = OTHER_KINDS[case]
    save_file(community_tensors | changes, tmp_path / "odd.safetensors")
    assert re.search(message, refusal(diffusion_weights, tmp_path / "odd.safetensors"))


@pytest.mark.parametrize("said", ["sample", "flow", "epsilon"])
def test_metadata_that_cannot_be_is_refused(diffusion_weights, community_tensors, tmp_path, said):
    file = tmp_path / "odd.safetensors"
    save_file(community_tensors | {"v_pred": EMPTY}, file, metadata={"modelspec.prediction_type": said})
    assert "INSTANTID_PREDICTION_TYPE" in refusal(diffusion_weights, file)


def test_values_beyond_float16_are_refused_where_float16_is_served(diffusion_weights, community_tensors, tmp_path):
    file = tmp_path / "large.safetensors"
    save_file(community_tensors | {f"{LAYER}.bias": torch.full((64,), 65600.0)}, file)
    SdxlModel.load(diffusion_weights, CPU, torch.bfloat16, checkpoint=file)
    assert re.search(
        r"unet\..*proj_in\.bias .*INSTANTID_DTYPE=bfloat16", refusal(diffusion_weights, file, torch.float16)
    )


@pytest.mark.parametrize(
    ("begin", "kind"), [(b"GGUF\x03", "GGUF"), (b"PK\x03\x04", "pickled torch"), (b"\x80\x02", "pickled")]
)
def test_files_of_other_formats_are_named(diffusion_weights, tmp_path, begin, kind):
    (tmp_path / "model.ckpt").write_bytes(begin + bytes(100))
    assert kind in refusal(diffusion_weights, tmp_path / "model.ckpt")


FOLDERS = {
    "inpainting": ("unet/config.json", {"in_channels": 9}, "takes 9 channels, so this is an inpainting model"),
    "nf4": ("unet/config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "this is quantised"),
    "SD 1.5": ("unet/config.json", {"addition_embed_type": None}, "this is Stable Diffusion 1.5 or 2"),
    "EDM": ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "for other schedulers .EDMEuler"),
    "flow": ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "for other sched"),
    "x0": ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "a model that predicts sample"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_of_another_kind_is_refused_by_name(diffusion_weights, community, tmp_path, case):
    file, changes, message = FOLDERS[case]
    shutil.copytree(community, tmp_path / "folder")
    rewrite(tmp_path / "folder" / file, **changes)
    assert re.search(message, refusal(diffusion_weights, tmp_path / "folder"))


def test_the_refiner_s_folder_is_refused_by_name(diffusion_weights, community, tmp_path):
    shutil.copytree(community, tmp_path / "refiner")
    shutil.rmtree(tmp_path / "refiner" / "text_encoder")
    assert "the SDXL refiner" in refusal(diffusion_weights, tmp_path / "refiner")


@pytest.mark.parametrize("part", SINGLE_FILE_PARTS)
def test_a_file_without_one_network_is_refused_by_name(diffusion_weights, community_tensors, tmp_path, part):
    file = tmp_path / "partial.safetensors"
    save_file({name: t for name, t in community_tensors.items() if not name.startswith(SINGLE_FILE_PARTS[part])}, file)
    with pytest.raises(ValueError, match=rf"partial\.safetensors.*{part}"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=file)


def test_a_file_that_lacks_a_tensor_is_refused(diffusion_weights, community_tensors, tmp_path):
    file = tmp_path / "hole.safetensors"
    save_file(
        {name: t for name, t in community_tensors.items() if not name.endswith("middle_block.0.in_layers.2.weight")},
        file,
    )
    with pytest.raises(ValueError, match=r"hole\.safetensors.*mid_block\.resnets\.0\.conv1\.weight"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=file)


@pytest.mark.parametrize(
    ("part", "name"), [("text_encoder", "layers.1.mlp.fc1.weight"), ("text_encoder_2", "text_projection.weight")]
)
def test_a_text_encoder_that_lacks_a_tensor_is_refused(diffusion_weights, community, tmp_path, part, name):
    shutil.copytree(community, tmp_path / "hole")
    file = tmp_path / "hole" / part / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if not n.endswith(name)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"hole/{part}: CLIP.* lacks .*{name} and 0 more"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=tmp_path / "hole")


def test_a_tensor_of_another_shape_is_named(diffusion_weights, community, tmp_path):
    shutil.copytree(community, tmp_path / "odd")
    file = tmp_path / "odd" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_in.bias": torch.zeros(7)}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"odd/unet: .*conv_in\.bias"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=tmp_path / "odd")


def test_what_is_no_checkpoint_is_refused(diffusion_weights, tmp_path):
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ValueError, match="not a safetensors file"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=tmp_path / "text.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=tmp_path / "nowhere")
