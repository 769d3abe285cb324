"""Any SDXL checkpoint in place of the set's own: a single file in the original layout, a folder, a hub's folder."""

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


def test_a_folder_as_on_the_hub_has_only_fp16_files(diffusion_weights, community, expected, tmp_path):
    shutil.copytree(community, tmp_path / "hub")
    for file in (tmp_path / "hub").rglob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
        file.rename(file.with_suffix(".fp16.safetensors"))
    latents, _ = paint(diffusion_weights, tmp_path / "hub")
    assert relative(latents, expected[0]) <= 2e-2


def test_a_file_says_that_it_predicts_velocity(diffusion_weights, tensors, tmp_path):
    file = tmp_path / "v.safetensors"
    save_file({**tensors, "v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}, file)
    config = SdxlModel.load(diffusion_weights, CPU, torch.float32, checkpoint=file).networks.scheduler_config
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is True


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
