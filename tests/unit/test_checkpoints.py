"""Any SDXL checkpoint in place of the set's own: a single file in the original layout, a folder, a hub's folder."""

import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from instantid.models.sdxl import SdxlModel
from instantid.models.sdxl.checkpoint import SINGLE_FILE_PARTS
from miniature.sdxl import write_sdxl

from .original_layout import original_layout
from .test_diffusion import make_job, relative, run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def community(tmp_path_factory):
    """Another SDXL than the set's own."""
    folder = tmp_path_factory.mktemp("community") / "sdxl"
    write_sdxl(folder, seed=77)
    return folder


@pytest.fixture(scope="module")
def tensors(community):
    return original_layout(
        UNet2DConditionModel.from_pretrained(community / "unet"),
        AutoencoderKL.from_pretrained(community / "vae"),
        CLIPTextModel.from_pretrained(community / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(community / "text_encoder_2"),
    )


def paint(weights, checkpoint, **options):
    model = SdxlModel.load(weights, CPU, torch.float32, checkpoint=checkpoint)
    (latents,) = run(model, make_job(num_inference_steps=3, seed=3, **options))
    return latents, model.decode.picture(latents[0]).numpy()


@pytest.fixture(scope="module")
def expected(diffusion_weights, community, tmp_path_factory):
    """What a set paints whose own SDXL is the community one."""
    folder = tmp_path_factory.mktemp("replaced")
    for name in ("identitynet", "adapter"):
        shutil.copytree(diffusion_weights / name, folder / name)
    shutil.copytree(community, folder / "sdxl")
    return paint(folder, None)


def test_a_single_file_paints_what_its_networks_paint(diffusion_weights, tensors, expected, tmp_path):
    save_file(tensors, tmp_path / "community.safetensors")
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
EMPTY = torch.tensor([])
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
def test_a_file_says_what_it_predicts(diffusion_weights, tensors, tmp_path, case):
    markers, metadata, prediction, expected = SAYINGS[case]
    save_file(tensors | markers, tmp_path / "v.safetensors", metadata=metadata)
    own = json.loads((diffusion_weights / "sdxl" / "scheduler" / "scheduler_config.json").read_text())
    assert schedule_of(diffusion_weights, tmp_path / "v.safetensors", prediction) == own | expected


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_folder_says_what_it_predicts(diffusion_weights, community, tmp_path):
    shutil.copytree(community, tmp_path / "v")
    rewrite(tmp_path / "v" / "scheduler" / "scheduler_config.json", **ZERO_SNR)
    assert schedule_of(diffusion_weights, tmp_path / "v").items() >= ZERO_SNR.items()
    expected = EPSILON | {"timestep_spacing": "trailing"}
    assert schedule_of(diffusion_weights, tmp_path / "v", "epsilon").items() >= expected.items()


@pytest.mark.parametrize("layout", ["scale_weight", "weight_scale", "one scale an output", "none"])
def test_float8_weights_are_multiplied_by_their_scales(diffusion_weights, tensors, tmp_path, layout):
    """ComfyUI's scaled float8, older and newer names, against the product in float64."""
    name = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k"
    scale = (
        torch.rand(64, 1) + 0.5 if layout == "one scale an output" else torch.tensor(1.0 if layout == "none" else 0.37)
    )
    small = (tensors[f"{name}.weight"] / scale).to(torch.float8_e4m3fn)
    file = tensors | {f"{name}.weight": small, "model.diffusion_model.scaled_fp8": EMPTY.to(torch.float8_e4m3fn)}
    if layout != "none":
        suffix = "scale_weight" if layout == "scale_weight" else "weight_scale"
        file |= {f"{name}.{suffix}": scale, f"{name}.scale_input": torch.tensor(1.0)}
    save_file(file, tmp_path / "float8.safetensors")
    model = SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=tmp_path / "float8.safetensors")
    found = model.networks.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2.to_k").weight
    torch.testing.assert_close(found.double(), small.double() * scale.double(), rtol=1e-6, atol=0)


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
def test_what_is_not_sdxl_s_base_is_refused_by_name(diffusion_weights, tensors, tmp_path, case):
    changes, message = OTHER_KINDS[case]
    save_file(tensors | changes, tmp_path / "odd.safetensors")
    assert re.search(message, refusal(diffusion_weights, tmp_path / "odd.safetensors"))


@pytest.mark.parametrize("said", ["sample", "flow", "epsilon"])
def test_metadata_that_cannot_be_is_refused(diffusion_weights, tensors, tmp_path, said):
    file = tmp_path / "odd.safetensors"
    save_file(tensors | {"v_pred": EMPTY}, file, metadata={"modelspec.prediction_type": said})
    assert "INSTANTID_PREDICTION_TYPE" in refusal(diffusion_weights, file)


def test_values_beyond_float16_are_refused_where_float16_is_served(diffusion_weights, tensors, tmp_path):
    file = tmp_path / "large.safetensors"
    save_file(tensors | {f"{LAYER}.bias": torch.full((64,), 65600.0)}, file)
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


def test_names_without_use_are_accepted(diffusion_weights, tensors, expected, tmp_path):
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
    save_file(tensors | more, tmp_path / "merge.safetensors")
    latents, _ = paint(diffusion_weights, tmp_path / "merge.safetensors")
    assert relative(latents, expected[0]) <= 1e-6


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
def test_a_file_without_one_network_is_refused_by_name(diffusion_weights, tensors, tmp_path, part):
    file = tmp_path / "partial.safetensors"
    save_file({name: t for name, t in tensors.items() if not name.startswith(SINGLE_FILE_PARTS[part])}, file)
    with pytest.raises(ValueError, match=rf"partial\.safetensors.*{part}"):
        SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=file)


def test_a_file_that_lacks_a_tensor_is_refused(diffusion_weights, tensors, tmp_path):
    file = tmp_path / "hole.safetensors"
    save_file({name: t for name, t in tensors.items() if not name.endswith("middle_block.0.in_layers.2.weight")}, file)
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


def test_a_network_in_several_files_is_the_same(diffusion_weights, community, expected, tmp_path):
    shutil.copytree(community, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "unet")
    network = UNet2DConditionModel.from_pretrained(community / "unet")
    network.save_pretrained(tmp_path / "parts" / "unet", max_shard_size="500KB")
    assert len(list((tmp_path / "parts" / "unet").glob("*.safetensors"))) > 1
    latents, _ = paint(diffusion_weights, tmp_path / "parts")
    assert relative(latents, expected[0]) <= 1e-6


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


FULL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
    "sample_size": 128,
}


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
