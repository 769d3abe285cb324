"""Any SDXL checkpoint in place of the set's own: a single file in the original layout, a folder, a hub's folder."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from instantid.models.sdxl import SdxlModel
from instantid.models.sdxl.checkpoint import SINGLE_FILE_PARTS

from .checkpoints import CPU, EMPTY, FULL_UNET, paint, rewrite
from .diffusing import relative
from .original_layout import original_layout


@pytest.fixture(scope="module")
def expected(diffusion_weights, community, tmp_path_factory):
    """What a set paints whose own SDXL is the community one."""
    folder = tmp_path_factory.mktemp("replaced")
    for name in ("identitynet", "adapter"):
        shutil.copytree(diffusion_weights / name, folder / name)
    shutil.copytree(community, folder / "sdxl")
    return paint(folder, None)


def test_a_single_file_paints_what_its_networks_paint(diffusion_weights, community_tensors, expected, tmp_path):
    save_file(community_tensors, tmp_path / "community.safetensors")
    latents, picture = paint(diffusion_weights, tmp_path / "community.safetensors")
    assert relative(latents, expected[0]) <= 1e-6
    assert (picture == expected[1]).all()
    own, _ = paint(diffusion_weights, None)
    assert relative(own, expected[0]) > 0.1


def test_a_folder_takes_the_place_of_the_set_s_own(diffusion_weights, community, expected):
    latents, _ = paint(diffusion_weights, community)
    assert relative(latents, expected[0]) <= 1e-6


@pytest.mark.parametrize("variant", ["fp16", "bf16"])
def test_a_folder_as_on_the_hub_has_only_files_of_a_variant(diffusion_weights, community, expected, tmp_path, variant):
    shutil.copytree(community, tmp_path / "hub")
    for file in (tmp_path / "hub").rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
        file.rename(file.with_suffix(f".{variant}.safetensors"))
    latents, _ = paint(diffusion_weights, tmp_path / "hub")
    assert relative(latents, expected[0]) <= 2e-2


EPSILON = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading"}
VELOCITY = EPSILON | {"prediction_type": "v_prediction"}
ZERO_SNR = VELOCITY | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SAYINGS = {
    "nothing": ({}, {}, "auto", EPSILON),
    "v_pred": ({"v_pred": EMPTY}, {}, "auto", VELOCITY),
    "v_pred and ztsnr": ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, "auto", ZERO_SNR),
    "modelspec v": ({}, {"modelspec.prediction_type": "v"}, "auto", VELOCITY),
    "modelspec epsilon": ({}, {"modelspec.prediction_type": "epsilon"}, "auto", EPSILON),
    "ComfyUI's key": ({"ztsnr": EMPTY}, {"modelspec.predict_key": "v"}, "auto", ZERO_SNR),
    "overridden to v": ({}, {"modelspec.prediction_type": "epsilon"}, "v_prediction", VELOCITY),
    "overridden to epsilon": ({"v_pred": EMPTY, "ztsnr": EMPTY}, {}, "epsilon", EPSILON),
}


def schedule_of(weights, checkpoint, prediction="auto"):
    model = SdxlModel.load(weights, CPU, torch.float32, checkpoint=checkpoint, prediction=prediction)
    return model.networks.scheduler_config


@pytest.mark.parametrize("case", SAYINGS)
def test_a_file_says_what_it_predicts(diffusion_weights, community_tensors, tmp_path, case):
    markers, metadata, prediction, expected = SAYINGS[case]
    save_file(community_tensors | markers, tmp_path / "v.safetensors", metadata=metadata)
    own = json.loads((diffusion_weights / "sdxl" / "scheduler" / "scheduler_config.json").read_text())
    assert schedule_of(diffusion_weights, tmp_path / "v.safetensors", prediction) == own | expected


def test_a_folder_says_what_it_predicts(diffusion_weights, community, tmp_path):
    shutil.copytree(community, tmp_path / "v")
    rewrite(tmp_path / "v" / "scheduler" / "scheduler_config.json", **ZERO_SNR)
    assert schedule_of(diffusion_weights, tmp_path / "v").items() >= ZERO_SNR.items()
    expected = EPSILON | {"timestep_spacing": "trailing"}
    assert schedule_of(diffusion_weights, tmp_path / "v", "epsilon").items() >= expected.items()


@pytest.mark.parametrize("layout", ["scale_weight", "weight_scale", "one scale an output", "none"])
def test_float8_weights_are_multiplied_by_their_scales(diffusion_weights, community_tensors, tmp_path, layout):
    """ComfyUI's scaled float8, older and newer names, against the product in float64."""
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    scale = (
        torch.rand(64, 1) + 0.5 if layout == "one scale an output" else torch.tensor(1.0 if layout == "none" else 0.37)
    )
    small = (community_tensors[f"{name}.weight"] / scale).to(torch.float8_e4m3fn)
    file = community_tensors | {
        f"{name}.weight": small,
        "model.diffusion_model.scaled_fp8": EMPTY.to(torch.float8_e4m3fn),
    }
    if layout != "none":
        suffix = "scale_weight" if layout == "scale_weight" else "weight_scale"
        file |= {f"{name}.{suffix}": scale, f"{name}.scale_input": torch.tensor(1.0)}
    save_file(file, tmp_path / "float8.safetensors")
    model = SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=tmp_path / "float8.safetensors")
    found = model.networks.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k").weight
    torch.testing.assert_close(found.double(), small.double() * scale.double(), rtol=1e-6, atol=0)


def test_names_without_use_are_accepted(diffusion_weights, community_tensors, expected, tmp_path):
    """As in the files of SDXL base 1.0, of A1111's merges and of ComfyUI."""
    more = {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "conditioner.embedders.0.transformer.text_projection.weight": torch.ones(2, 2),
        "conditioner.embedders.1.model.logit_scale": torch.tensor(4.6),
        "model_ema.decay": torch.tensor(0.99),
        "model_ema.num_updates": torch.tensor(0),
        "denoiser.sigmas": torch.ones(1000),
        "first_stage_model.loss.logvar": torch.tensor(0.0),
        "alphas_cumprod": torch.ones(1000),
    }
    save_file(community_tensors | more, tmp_path / "merge.safetensors")
    latents, _ = paint(diffusion_weights, tmp_path / "merge.safetensors")
    assert relative(latents, expected[0]) <= 1e-6


def test_a_network_in_several_files_is_the_same(diffusion_weights, community, expected, tmp_path):
    shutil.copytree(community, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "unet")
    network = UNet2DConditionModel.from_pretrained(community / "unet")
    network.save_pretrained(tmp_path / "parts" / "unet", max_shard_size="500KB")
    assert len(list((tmp_path / "parts" / "unet").glob("*.safetensors"))) > 1
    latents, _ = paint(diffusion_weights, tmp_path / "parts")
    assert relative(latents, expected[0]) <= 1e-6


@pytest.mark.long
def test_every_tensor_of_the_full_sized_networks_has_its_place(tmp_path, diffusion_weights):
    """At full size, on no memory: as many names as the public file of SDXL base 1.0 has for each network.

    That file has 2,515 tensors: CLIP-L's position ids and CLIP-G's logit scale are in it and are not used.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FULL_UNET)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
        first = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12, num_attention_heads=12))
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280)
        )
    names = original_layout(unet, vae, first, second)
    counts = {part: sum(name.startswith(prefix) for name in names) for part, prefix in SINGLE_FILE_PARTS.items()}
    assert counts == {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 389}
    assert sum(counts.values()) + 2 == 2515
    assert "model.diffusion_model.output_blocks.8.0.out_layers.3.weight" in names
    assert "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight" in names
